package bridgetest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A Process is a run of the test binary as something else.
type Process struct {
	t     *testing.T
	cmd   *exec.Cmd
	out   Output
	ended chan struct{} // closed after err is set
	err   error
}

// An Output is what a process says; it may be written and read at once.
type Output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements io.Writer.
func (o *Output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

// String returns what was written.
func (o *Output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// Start starts the test binary with one more variable in its environment. It
// is killed when the test ends.
func Start(t *testing.T, variable, value string, args ...string) *Process {
	t.Helper()
	p := &Process{t: t, cmd: exec.CommandContext(t.Context(), os.Args[0], args...), ended: make(chan struct{})} //nolint:gosec // this very program
	p.cmd.Env = append(os.Environ(), variable+"="+value)
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.out
	_, err := p.cmd.StdinPipe() // EndWithParent sees it close
	check(t, err)
	check(t, p.cmd.Start())
	go func() {
		p.err = p.cmd.Wait()
		close(p.ended)
	}()
	t.Cleanup(func() {
		if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Error(err)
		}
		<-p.ended
		if t.Failed() {
			t.Logf("process %v %s:\n%s", args, value, &p.out)
		}
	})
	return p
}

// EndWithParent ends this process once the test that has started it is gone.
// It does not return.
func EndWithParent() {
	_, err := io.Copy(io.Discard, os.Stdin)
	fmt.Fprintln(os.Stderr, "the test is gone", err) //nolint:errcheck // as is who would read it
	os.Exit(100)
}

// Signal sends a signal to the process.
func (p *Process) Signal(s os.Signal) {
	p.t.Helper()
	check(p.t, p.cmd.Process.Signal(s))
}

// Terminate tells the process to stop, as a deployment does.
func (p *Process) Terminate() {
	p.t.Helper()
	p.Signal(syscall.SIGTERM)
}

// Wait waits for the end and returns the exit code, -1 for a signal, and all output.
func (p *Process) Wait() (int, string) {
	<-p.ended
	return p.cmd.ProcessState.ExitCode(), p.out.String()
}

// Stop terminates the process, which must end well.
func (p *Process) Stop() {
	p.t.Helper()
	p.Terminate()
	<-p.ended
	check(p.t, p.err)
}

// Killed waits until the process has killed itself.
func (p *Process) Killed() {
	p.t.Helper()
	select {
	case <-p.ended:
	case <-time.After(Stalled):
		p.t.Fatalf("the process still lives:\n%s", &p.out)
	}
	if e, ok := errors.AsType[*exec.ExitError](p.err); !ok || e.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		p.t.Fatalf("the process ended with %v, want SIGKILL", p.err)
	}
}
