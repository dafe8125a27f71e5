package kafka_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/kafka"
	"github.com/queuestream/broker/conformance"
	"github.com/queuestream/broker/conformance/faultproxy"
	"go.uber.org/goleak"
)

// childEnv holds the orders of a process that is a group's member, in JSON.
const childEnv = "KAFKA_TEST_CHILD"

func TestMain(m *testing.M) {
	if text := os.Getenv(childEnv); text != "" {
		if err := runChild(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	conformance.SeedFlag(flag.CommandLine)
	flag.Parse()
	asked := false
	flag.Visit(func(f *flag.Flag) { asked = asked || f.Name == "test.parallel" })
	if testing.Short() && !asked { // the tests of the fake broker mostly wait
		if err := flag.Set("test.parallel", "8"); err != nil {
			panic(err)
		}
	}
	goleak.VerifyTestMain(m, faultproxy.Leftovers()...)
}

// Orders of a child.
type orders struct {
	Brokers       []string
	ServerSide    bool // the group protocol of KIP-848
	Stream, Group string
	Window        int  // of each partition: done and not committed
	ByHand        bool // see commitByHand; otherwise a Processor that says what it has done
	Work          time.Duration
}

// session is how long a member may be silent.
const session = 6 * time.Second

func runChild(text string) (err error) {
	var o orders
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	b, err := kafka.Open(ctx, &kafka.Options{
		Brokers: o.Brokers, SessionTimeout: session, HeartbeatInterval: 500 * time.Millisecond,
		ServerSideGroups: o.ServerSide,
		Logger:           slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	s, err := b.Stream(ctx, o.Stream, nil)
	if err != nil {
		return err
	}
	if o.ByHand {
		return commitByHand(ctx, s, o.Group)
	}
	go func() { // the parent's end is ours
		_, _ = io.Copy(io.Discard, os.Stdin) //nolint:errcheck // whatever ends it
		cancel()
	}()
	p := &broker.Processor{
		Stream: s, Group: o.Group, MaxWindow: o.Window, Concurrency: 4,
		Handler: func(ctx context.Context, r *broker.Record) error {
			select {
			case <-time.After(o.Work):
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			fmt.Printf("done %s\n", r.Value)
			return nil
		},
	}
	return p.Run(ctx)
}

// commitByHand reads records and says so, commits the first half, and all of
// them whenever it is told to: it says what came of that.
func commitByHand(ctx context.Context, s broker.Stream, group string) error {
	c, err := s.Consumer(ctx, group, nil)
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // what is tested has ended
	rs, err := c.Receive(ctx, 1000)
	if err != nil {
		return err
	}
	if err := c.Commit(ctx, rs[:len(rs)/2]...); err != nil {
		return err
	}
	for _, r := range rs {
		fmt.Printf("done %s\n", r.Value)
	}
	fmt.Println("half")
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		err := c.Commit(ctx, rs...)
		fmt.Printf("commit fenced=%v error=%q\n", errors.Is(err, broker.ErrFenced), fmt.Sprint(err))
	}
	return in.Err()
}

// A process is a running child.
type process struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	ended chan struct{}
	read  chan struct{} // closed when its output has ended

	mu   sync.Mutex
	said []string
	err  strings.Builder
}

func startChild(t *testing.T, o orders) *process {
	t.Helper()
	text, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: exec.CommandContext(context.WithoutCancel(t.Context()), os.Args[0]), ended: make(chan struct{}), read: make(chan struct{})} //nolint:gosec // this test's own binary
	p.cmd.Env = append(os.Environ(), childEnv+"="+string(text))
	p.cmd.Stderr = lockedWriter{p}
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.read)
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			p.mu.Lock()
			p.said = append(p.said, lines.Text())
			p.mu.Unlock()
		}
	}()
	go func() {
		<-p.read
		_ = p.cmd.Wait() //nolint:errcheck // it may have been killed
		close(p.ended)
	}()
	t.Cleanup(func() {
		p.kill(t)
		if t.Failed() {
			p.mu.Lock()
			defer p.mu.Unlock()
			t.Logf("process %d:\n%.3000s", p.cmd.Process.Pid, p.err.String())
		}
	})
	return p
}

type lockedWriter struct{ p *process }

func (w lockedWriter) Write(b []byte) (int, error) {
	w.p.mu.Lock()
	defer w.p.mu.Unlock()
	return w.p.err.Write(b)
}

func (p *process) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Error(err)
	}
}

// kill ends the process at once, and returns when it is gone.
func (p *process) kill(t *testing.T) {
	t.Helper()
	p.signal(t, syscall.SIGKILL)
	<-p.ended
}

// stop lets the process end as a deployment does.
func (p *process) stop(t *testing.T) {
	t.Helper()
	if err := p.in.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		t.Error(err)
	}
	select {
	case <-p.ended:
	case <-testContext(t).Done():
		t.Fatal("a member does not end")
	}
	if !p.cmd.ProcessState.Success() {
		t.Errorf("a member ended with %v", p.cmd.ProcessState)
	}
}

// done returns the values that the process has handled, in order.
func (p *process) done() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []string
	for _, line := range p.said {
		if v, ok := strings.CutPrefix(line, "done "); ok {
			out = append(out, v)
		}
	}
	return out
}

// says waits for a line that begins with prefix, the n-th such.
func (p *process) says(t *testing.T, prefix string, n int) string {
	t.Helper()
	var line string
	eventually(t, fmt.Sprintf("the process says %q %d times", prefix, n), func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		left := n
		for _, l := range p.said {
			if strings.HasPrefix(l, prefix) {
				if left--; left == 0 {
					line = l
					return true
				}
			}
		}
		return false
	})
	return line
}
