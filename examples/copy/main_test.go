package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/kafka"
	"github.com/queuestream/broker/conformance/containers"
	"go.uber.org/goleak"
)

// dieEnv makes the test's binary the program itself; its value is how many
// transactions it begins before it kills itself amid one. Zero: it does not.
const dieEnv = "COPY_TEST_DIES_AMID"

func TestMain(m *testing.M) {
	if n, err := strconv.Atoi(os.Getenv(dieEnv)); err == nil {
		child(n)
		return
	}
	goleak.VerifyTestMain(m)
}

// child is main with a copier that dies amid its n-th transaction.
func child(n int) {
	c := copier{url: os.Args[1], from: os.Args[2], to: os.Args[3], group: "copy", id: os.Args[4]}
	if n > 0 {
		c.amid = func() {
			if n--; n == 0 {
				_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {}
			}
		}
	}
	if err := c.run(context.Background(), os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "copy:", err)
		os.Exit(1)
	}
}

// A running copier.
type process struct {
	cmd     *exec.Cmd
	commits atomic.Int64
	ended   chan struct{}
	stderr  strings.Builder
}

func start(t *testing.T, dies int, args ...string) *process {
	t.Helper()
	p := &process{cmd: exec.CommandContext(context.WithoutCancel(t.Context()), os.Args[0], args...), ended: make(chan struct{})} //nolint:gosec // this test's own binary
	p.cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", dieEnv, dies))
	p.cmd.Stderr = &p.stderr
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.ended)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			p.commits.Add(1)
		}
		_ = p.cmd.Wait() //nolint:errcheck // it is killed
	}()
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("copier %v:\n%.2000s", args, p.stderr.String())
		}
	})
	return p
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill() //nolint:errcheck // it may have ended
	<-p.ended
}

// Copiers are killed again and again, by others and amid a transaction by
// themselves. What a reader of committed records sees is the source, record
// for record.
func TestCopyIsExactWhileCopiersAreKilled(t *testing.T) {
	in := containers.NeedKafka(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	b, err := kafka.OpenURL(ctx, in.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close() //nolint:errcheck // the test is over
	admin, ok := broker.As[broker.Admin](b)
	if !ok {
		t.Fatal("no admin")
	}
	const partitions, rounds, each = 3, 10, 300
	run := broker.NewID()[24:]
	from, to := "copy-from-"+run, "copy-to-"+run
	streams := map[string]broker.Stream{}
	for _, name := range []string{from, to} {
		if err := admin.DeclareStream(ctx, name, broker.StreamConfig{Partitions: partitions}); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := admin.DeleteStream(context.WithoutCancel(ctx), name); err != nil {
				t.Error(err)
			}
		}()
		if streams[name], err = b.Stream(ctx, name, nil); err != nil {
			t.Fatal(err)
		}
	}
	// A static member that is started again has its partitions back at once.
	launch := func(i, dies int) *process {
		id := fmt.Sprintf("copier-%s-%d", run, i)
		return start(t, dies, in.URL+"?session_timeout=6s&heartbeat_interval=500ms&instance_id="+id, from, to, id)
	}
	copiers := make([]*process, partitions)
	for i := range copiers {
		copiers[i] = launch(i, 0)
	}
	sent := 0
	send := func() {
		rs := make([]broker.Record, each)
		for i := range rs {
			rs[i] = broker.Record{Key: fmt.Appendf(nil, "k%d", i%17), Value: fmt.Appendf(nil, "v%d", sent+i)}
			if i%10 == 0 {
				rs[i].Headers = broker.Headers{{Key: "n", Value: strconv.Itoa(i)}}
			}
		}
		if _, err := streams[from].PublishBatch(ctx, rs); err != nil {
			t.Fatal(err)
		}
		sent += each
	}
	for round := range rounds {
		i := round % partitions
		victim := copiers[i]
		before := victim.commits.Load()
		until(ctx, t, "the copier to be killed works", func() bool {
			send()
			select {
			case <-victim.ended: // amid its transaction
				return true
			default:
				return victim.commits.Load() > before
			}
		})
		if round%2 == 1 { // its replacement dies amid a transaction
			victim.kill()
			copiers[i] = launch(i, 1+round/3)
			until(ctx, t, "the copier dies amid a transaction", func() bool {
				send()
				select {
				case <-copiers[i].ended:
					return true
				default:
					return false
				}
			})
		}
		copiers[i].kill()
		copiers[i] = launch(i, 0)
	}
	send()
	until(ctx, t, "everything is copied", func() bool { return len(read(ctx, t, streams[to], true)) >= sent })

	want, got := read(ctx, t, streams[from], false), read(ctx, t, streams[to], true)
	if len(want) != sent || len(got) != sent {
		t.Fatalf("%d records were sent, the source has %d and the copy %d", sent, len(want), len(got))
	}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("record %d of the copy is %s, want %s", i, got[i], want[i])
		}
	}
	all := len(read(ctx, t, streams[to], false))
	if all <= sent {
		t.Errorf("the copy holds no record of an aborted transaction: no kill hit one")
	}
	t.Logf("%d records copied exactly once through %d kills; %d more were rolled back", sent, rounds+rounds/2, all-sent)
}

// read returns the records of a stream, partition by partition.
func read(ctx context.Context, t *testing.T, s broker.Stream, committed bool) []string {
	t.Helper()
	parts, err := s.Partitions(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, p := range parts {
		for r, err := range s.Read(ctx, broker.Range{From: broker.Earliest(), Partitions: []int32{p.ID}, ReadCommitted: committed}) {
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, fmt.Sprintf("%d %s %s %v %d", r.Partition, r.Key, r.Value, r.Headers, r.Time().UnixMilli()))
		}
	}
	return out
}

// until waits for a condition.
func until(ctx context.Context, t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("waited in vain until %s", what)
		}
	}
}
