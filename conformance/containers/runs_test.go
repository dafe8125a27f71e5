package containers_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moby/moby/client"

	"github.com/queuestream/broker/conformance/containers"
)

// runner builds the runner and returns its path.
func runner(t *testing.T) string {
	t.Helper()
	if testing.Short() {
		t.Skip("needs a container engine: not run with -short")
	}
	if _, err := containers.EngineVersion(t.Context()); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skipf("needs a container engine: %v", err)
	}
	path := filepath.Join(t.TempDir(), "brokers")
	out, err := exec.CommandContext(t.Context(), "go", "build", "-o", path, "./cmd/brokers").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return path
}

// command is a run whose command prints its environment and waits.
type command struct {
	t   *testing.T
	cmd *exec.Cmd
	env map[string]string
	err *strings.Builder
}

// startRun starts a run of moto, the quickest broker, and returns once its
// command has printed its environment. The command goes on until it is told.
func startRun(t *testing.T, runner string) *command {
	t.Helper()
	c := &command{t: t, env: make(map[string]string), err: new(strings.Builder)}
	c.cmd = exec.CommandContext(t.Context(), runner, "-only", "sns", "run", "--", "sh", "-c", "env; echo ready; exec sleep 300")
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "BROKER_TEST_") {
			c.cmd.Env = append(c.cmd.Env, e)
		}
	}
	c.cmd.Stderr = c.err
	c.cmd.WaitDelay = 5 * time.Second // what a killed run leaves may hold its output open
	out, err := c.cmd.StdoutPipe()
	must(t, err)
	must(t, c.cmd.Start())
	t.Cleanup(func() { _ = c.cmd.Process.Kill() })
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if lines.Text() == "ready" {
			return c
		}
		if name, value, ok := strings.Cut(lines.Text(), "="); ok {
			c.env[name] = value
		}
	}
	_ = c.cmd.Wait()
	t.Fatalf("the run ended before its command began:\n%s", c.err)
	return nil
}

// end sends the signal and returns the exit code.
func (c *command) end(sig syscall.Signal) int {
	c.t.Helper()
	must(c.t, c.cmd.Process.Signal(sig))
	err := c.cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) && !errors.Is(err, exec.ErrWaitDelay) {
		c.t.Fatal(err)
	}
	return c.cmd.ProcessState.ExitCode()
}

func (c *command) container() string { return c.env["BROKER_TEST_SNS_CONTAINER"] }

// exists reports whether the engine knows the container.
func exists(ctx context.Context, t *testing.T, id string) bool {
	t.Helper()
	cl, err := client.New(client.FromEnv)
	must(t, err)
	defer cl.Close()
	list, err := cl.ContainerList(ctx, client.ContainerListOptions{All: true, Filters: make(client.Filters).Add("id", id)})
	must(t, err)
	return len(list.Items) > 0
}

func expectGone(t *testing.T, id string) {
	t.Helper()
	eventually(t, 30*time.Second, func(ctx context.Context) error {
		if exists(ctx, t, id) {
			return fmt.Errorf("container %.12s is still there", id)
		}
		return nil
	})
}

// Two runs side by side have brokers of their own, and the end of one is nothing
// to the other. A run ends with nothing left behind: after Ctrl-C, after SIGTERM,
// and even when the runner itself is killed.
func TestRunsSideBySide(t *testing.T) {
	path := runner(t)
	a, b := startRun(t, path), startRun(t, path)
	for _, name := range []string{"BROKER_TEST_SNS", "BROKER_TEST_SNS_CONTAINER", "BROKER_TEST_RUN"} {
		if a.env[name] == "" || a.env[name] == b.env[name] {
			t.Errorf("%s is %q in one run and %q in the other", name, a.env[name], b.env[name])
		}
	}
	ctx := within(t, 2*time.Minute)
	if code := a.end(syscall.SIGINT); code != 128+int(syscall.SIGINT) {
		t.Errorf("after Ctrl-C the exit code is %d, want %d\n%s", code, 128+int(syscall.SIGINT), a.err)
	}
	if exists(ctx, t, a.container()) {
		t.Error("a run that ended left its broker behind")
	}
	if !exists(ctx, t, b.container()) {
		t.Fatal("the end of one run took the other's broker away")
	}
	snsToSQS(t, snsClient(t, b.env["BROKER_TEST_SNS"]), sqsClient(t, b.env["BROKER_TEST_SNS"]), unique(t))
	if code := b.end(syscall.SIGTERM); code != 128+int(syscall.SIGTERM) {
		t.Errorf("after SIGTERM the exit code is %d, want %d\n%s", code, 128+int(syscall.SIGTERM), b.err)
	}
	if exists(ctx, t, b.container()) {
		t.Error("a run that ended left its broker behind")
	}

	c := startRun(t, path)
	_ = c.end(syscall.SIGKILL)
	expectGone(t, c.container()) // by the reaper
}

// A run's exit code is its command's, and its brokers are gone afterwards.
func TestRunPassesTheExitCodeOn(t *testing.T) {
	path := runner(t)
	cmd := exec.CommandContext(within(t, 2*time.Minute), path, "-only", "sns", "run", "--",
		"sh", "-c", "echo $BROKER_TEST_SNS_CONTAINER; exit 7")
	cmd.Env = append(os.Environ(), "BROKER_TEST_SNS=")
	out, err := cmd.Output()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 7 {
		t.Fatalf("got %v, want exit code 7", err)
	}
	if id := strings.TrimSpace(string(out)); id == "" || exists(t.Context(), t, id) {
		t.Errorf("container %q is still there", id)
	}
}

// What a killed process left, with its reaper killed too, goes with the next
// sweep; what a live one has stays.
func TestSweep(t *testing.T) {
	server := containers.OwnSNS(t)
	dead := filepath.Join(t.TempDir(), "dead.lock")
	must(t, os.WriteFile(dead, nil, 0o600)) // and nobody holds it locked
	host, err := os.Hostname()
	must(t, err)
	left, err := exec.CommandContext(t.Context(), "docker", "create",
		"--label", "queuestream.mode=run", "--label", "queuestream.lock="+dead, "--label", "queuestream.host="+host,
		server.Image()).Output()
	if err != nil {
		t.Skipf("needs the docker client: %v", err)
	}
	// Another test's start may sweep first; what counts is that it is gone.
	_, err = containers.Sweep(within(t, time.Minute))
	must(t, err)
	expectGone(t, strings.TrimSpace(string(left)))
	if !exists(t.Context(), t, server.Container()) {
		t.Fatal("the sweep took a live process's broker away")
	}
}
