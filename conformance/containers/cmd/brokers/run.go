package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/queuestream/broker/conformance/containers"
)

// grace is how long a command may take to end after a signal was passed on.
const grace = 15 * time.Second

// signals are those that end a run.
var signals = []os.Signal{os.Interrupt, syscall.SIGTERM, syscall.SIGHUP}

// run starts the brokers, runs the command and removes the brokers.
func (t *tool) run(args []string) int {
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	if len(args) == 0 {
		say("run needs a command: brokers run -- go test ./...")
		return 2
	}
	caught := make(chan os.Signal, 4)
	signal.Notify(caught, signals...)
	defer signal.Stop(caught)

	r, code := t.start(caught)
	if r == nil {
		return code
	}
	code = command(args, append(os.Environ(), r.Environ()...), caught)
	if err := r.Close(context.Background()); err != nil {
		say("%v", err)
		code = max(code, 1)
	}
	t.report(r)
	return code
}

// start starts the brokers. A nil Run comes with the code to exit with.
func (t *tool) start(caught <-chan os.Signal) (*containers.Run, int) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	type outcome struct {
		run *containers.Run
		err error
	}
	started := make(chan outcome, 1)
	begin := time.Now()
	go func() {
		// A broker that cannot be started for it is told below.
		if err := containers.Prepare(ctx, t.startable(), t.build()); err != nil && !errors.Is(err, containers.ErrUnavailable) {
			say("%v", err)
		}
		begin = time.Now()
		r, err := containers.StartRun(ctx, t.kinds)
		started <- outcome{r, err}
	}()
	interrupted := 0
	for {
		select {
		case sig := <-caught:
			if interrupted != 0 {
				return nil, exitCode(sig) // the reaper removes what is there
			}
			interrupted = exitCode(sig)
			say("%v: removing what was started", sig)
			cancel()
		case o := <-started:
			if interrupted != 0 {
				if o.run != nil {
					if err := o.run.Close(context.Background()); err != nil {
						say("%v", err)
					}
				}
				return nil, interrupted
			}
			return t.judge(o.run, o.err, time.Since(begin))
		}
	}
}

// startable are the kinds that the environment has no endpoint of.
func (t *tool) startable() []containers.Kind {
	return slices.DeleteFunc(slices.Clone(t.kinds), func(k containers.Kind) bool { return os.Getenv(k.Env()) != "" })
}

// judge decides whether the run goes on with the brokers that there are.
func (t *tool) judge(r *containers.Run, err error, took time.Duration) (*containers.Run, int) {
	switch {
	case err == nil:
		say("%s in %.1f s", t.list(r), took.Seconds())
		return r, 0
	case r == nil || !errors.Is(err, containers.ErrUnavailable):
		say("%v", err)
		return nil, 1
	case os.Getenv("CI") == "true":
		say("%v", err)
		say("CI=true, so that a missing broker is a failure")
		if err := r.Close(context.Background()); err != nil {
			say("%v", err)
		}
		return nil, 1
	}
	say("%v", err)
	say("going on without: tests that need %s are skipped", t.missing(r))
	return r, 0
}

// report says, after everything else, what was tested and what was not.
func (t *tool) report(r *containers.Run) {
	say("tested with %s", t.list(r))
	if missing := t.missing(r); missing != "" {
		say("NOT RUN: whatever needs %s. To run it, install a container engine "+
			"(Debian: \"make test\" as root does it), or set BROKER_TEST_KAFKA and so on to endpoints; see docs/testing.md", missing)
	}
}

func (t *tool) list(r *containers.Run) string {
	var names []string
	for _, in := range r.Instances() {
		names = append(names, in.Describe())
	}
	if len(names) == 0 {
		return "no broker"
	}
	return strings.Join(names, ", ")
}

func (t *tool) missing(r *containers.Run) string {
	var names []string
	for _, k := range t.kinds {
		if !r.Has(k) {
			names = append(names, k.Product())
		}
	}
	return strings.Join(names, ", ")
}

// command runs the command in a process group of its own, passes signals on to
// all of the group, and returns the code to exit with.
func command(args, env []string, caught <-chan os.Signal) int {
	cmd := exec.Command(args[0], args[1:]...) //nolint:gosec,noctx // running what was asked for is the purpose; signals end it
	cmd.Env = env
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	ownGroup(cmd)
	if err := cmd.Start(); err != nil {
		say("%v", err)
		return 127
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	var (
		deadline <-chan time.Time
		by       os.Signal
	)
	for {
		select {
		case sig := <-caught:
			by = sig
			signalGroup(cmd, sig)
			if deadline == nil {
				deadline = time.After(grace)
			}
		case <-deadline:
			say("the command goes on after %v: it is killed", grace)
			signalGroup(cmd, os.Kill)
		case err := <-ended:
			// Whatever of the group is left goes too: its brokers do.
			signalGroup(cmd, os.Kill)
			return codeOf(err, by)
		}
	}
}

// codeOf returns the code of a command that ended with err, after the signal by
// if one was passed on.
func codeOf(err error, by os.Signal) int {
	if by != nil {
		return exitCode(by)
	}
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit) && exit.ExitCode() >= 0:
		return exit.ExitCode()
	}
	say("%v", err)
	return 1
}

// exitCode is the code by which shells report an end by a signal.
func exitCode(sig os.Signal) int {
	if s, ok := sig.(syscall.Signal); ok {
		return 128 + int(s)
	}
	return 1
}
