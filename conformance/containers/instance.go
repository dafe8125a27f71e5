package containers

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/client"
)

const (
	// controlTimeout bounds Restart, Start and Resume, with the wait for the
	// broker to serve, when the caller's context has no deadline.
	controlTimeout = 2 * time.Minute
	// pollInterval is the pause between two looks at a broker that starts.
	pollInterval = 100 * time.Millisecond
	// probeTimeout bounds one look.
	probeTimeout = 5 * time.Second
	// freezeTries is how often a container that runs on is paused.
	freezeTries = 50
)

// Instance is a broker that runs in a container, or somewhere behind an
// endpoint. It is part of KafkaInstance, RabbitMQInstance and so on, which add
// the endpoints.
//
// The methods that stop a broker disturb everyone who uses it. Tests that call
// them start a broker of their own (StartKafka and so on), unless the test run
// is one that does nothing else. A broker comes back at the same endpoints, with
// the data that its kind keeps.
//
// Methods may be called concurrently; which of two opposite ones wins is open.
type Instance struct {
	kind      Kind
	version   string
	image     string
	container string // "" for a broker given by its endpoint alone
	private   bool
	at        addrs
	serves    func(context.Context, addrs) error
	gone      atomic.Bool
}

// Kind returns which broker it is.
func (in *Instance) Kind() Kind { return in.kind }

// Version returns the broker's version, or "" when the environment did not say.
func (in *Instance) Version() string { return in.version }

// Image returns the name of the container's image, or "" when unknown.
func (in *Instance) Image() string { return in.image }

// Container returns the id of the broker's container, or "" for a broker that
// was given by its endpoint alone.
func (in *Instance) Container() string { return in.container }

// Controlled reports whether the methods that stop and start the broker work.
func (in *Instance) Controlled() bool { return in.container != "" }

// Private reports whether the broker was started for its caller alone.
func (in *Instance) Private() bool { return in.private }

// Kill ends the broker at once (SIGKILL), as a crash of its process would: what
// it had only in memory is gone, what it had handed to the system is not, since
// the host lives on. It stays down until Start or Restart. Killing a broker that
// is down is no error.
func (in *Instance) Kill(ctx context.Context) error {
	return in.control(ctx, "kill", func(ctx context.Context, e *engine) error {
		if err := in.unpause(ctx, e); err != nil {
			return err
		}
		_, err := e.api.ContainerKill(ctx, in.container, client.ContainerKillOptions{Signal: "SIGKILL"})
		if err != nil && !errdefs.IsConflict(err) { // conflict: it does not run
			return err
		}
		return in.awaitStopped(ctx, e)
	})
}

// Stop ends the broker in an orderly way: it closes connections and flushes. It
// stays down until Start or Restart. Stopping a broker that is down is no error.
func (in *Instance) Stop(ctx context.Context) error {
	return in.control(ctx, "stop", func(ctx context.Context, e *engine) error {
		if err := in.unpause(ctx, e); err != nil {
			return err
		}
		_, err := e.api.ContainerStop(ctx, in.container, client.ContainerStopOptions{})
		return err
	})
}

// Start starts a broker that is down and returns once it serves. Starting one
// that runs is no error.
func (in *Instance) Start(ctx context.Context) error {
	return in.control(ctx, "start", func(ctx context.Context, e *engine) error {
		if err := in.unpause(ctx, e); err != nil {
			return err
		}
		return in.start(ctx, e)
	})
}

// Restart stops the broker in an orderly way if it runs, starts it, and returns
// once it serves.
func (in *Instance) Restart(ctx context.Context) error {
	return in.control(ctx, "restart", func(ctx context.Context, e *engine) error {
		if err := in.unpause(ctx, e); err != nil {
			return err
		}
		if _, err := e.api.ContainerStop(ctx, in.container, client.ContainerStopOptions{}); err != nil {
			return err
		}
		return in.start(ctx, e)
	})
}

// Pause freezes the broker's processes (SIGSTOP, in effect): connections stay
// open, and nothing answers. Its clock goes on, so that timers which ran out
// meanwhile fire at Resume. Pausing a paused broker is no error.
func (in *Instance) Pause(ctx context.Context) error {
	return in.control(ctx, "pause", in.freeze)
}

// freeze tries again while the container runs on: a host with cgroup v1 cannot
// freeze one that begins a process at that moment, and the engine gives up on
// it at once (opencontainers/runc#4388).
func (in *Instance) freeze(ctx context.Context, e *engine) error {
	for tries := 1; ; tries++ {
		_, err := e.api.ContainerPause(ctx, in.container, client.ContainerPauseOptions{})
		if err == nil {
			return nil
		}
		switch state := in.state(ctx, e); {
		case state == "paused":
			return nil
		case state != "running" || tries == freezeTries:
			return err
		}
		if pause(ctx, pollInterval) != nil {
			return err
		}
	}
}

// Resume lets a paused broker go on and returns once it serves. Resuming one
// that is not paused is no error.
func (in *Instance) Resume(ctx context.Context) error {
	return in.control(ctx, "resume", func(ctx context.Context, e *engine) error {
		if err := in.unpause(ctx, e); err != nil {
			return err
		}
		return in.awaitServing(ctx, e)
	})
}

// Terminate removes a private broker with its data. Terminating it again is no
// error. A broker that others use is not terminated: ErrShared.
func (in *Instance) Terminate(ctx context.Context) error {
	if !in.private {
		return wrap("terminate", in.kind, ErrShared)
	}
	if in.gone.Swap(true) {
		return nil
	}
	return in.control(ctx, "terminate", func(ctx context.Context, e *engine) error {
		return e.remove(ctx, in.container)
	})
}

// Ready returns nil as soon as the broker serves, and an error that says what
// is missing once ctx ends. A ctx without a deadline is given two minutes.
func (in *Instance) Ready(ctx context.Context) error {
	ctx, cancel := withDefaultTimeout(ctx, controlTimeout)
	defer cancel()
	return wrap("await", in.kind, in.awaitServing(ctx, nil))
}

// Probe looks at the broker once and returns nil when it serves.
func (in *Instance) Probe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	return wrap("probe", in.kind, in.serves(ctx, in.at))
}

// Logs returns the last lines of what the broker wrote to its output.
func (in *Instance) Logs(ctx context.Context, lines int) (string, error) {
	var out string
	err := in.control(ctx, "read the logs of", func(ctx context.Context, e *engine) (err error) {
		out, err = e.logs(ctx, in.container, lines)
		return err
	})
	return out, err
}

// control runs f with a connection to the engine, unless the broker cannot be
// controlled.
func (in *Instance) control(ctx context.Context, op string, f func(context.Context, *engine) error) error {
	if !in.Controlled() {
		return wrap(op, in.kind, ErrNotControlled)
	}
	ctx, cancel := withDefaultTimeout(ctx, controlTimeout)
	defer cancel()
	e, err := openEngine(ctx)
	if err != nil {
		return wrap(op, in.kind, err)
	}
	defer e.close()
	return wrap(op, in.kind, f(ctx, e))
}

// start starts the container and waits until the broker serves.
func (in *Instance) start(ctx context.Context, e *engine) error {
	if _, err := e.api.ContainerStart(ctx, in.container, client.ContainerStartOptions{}); err != nil {
		return err
	}
	return in.awaitServing(ctx, e)
}

// awaitServing waits until the broker serves. With an engine it gives up as
// soon as the container has ended, and shows its last words.
func (in *Instance) awaitServing(ctx context.Context, e *engine) error {
	for {
		probe, cancel := context.WithTimeout(ctx, probeTimeout)
		err := in.serves(probe, in.at)
		cancel()
		if err == nil {
			return nil
		}
		if e != nil {
			if s := in.state(ctx, e); s == "exited" || s == "dead" {
				logs, _ := e.logs(ctx, in.container, 20)
				return fmt.Errorf("the container has ended; its last lines:\n%s", logs)
			}
		}
		if werr := pause(ctx, pollInterval); werr != nil {
			return fmt.Errorf("it does not serve (%w): %w", err, werr)
		}
	}
}

// awaitStopped waits until the container does not run any more: a kill is
// answered before the processes are gone.
func (in *Instance) awaitStopped(ctx context.Context, e *engine) error {
	for in.state(ctx, e) == "running" {
		if err := pause(ctx, pollInterval/10); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// unpause lets a paused container go on; an engine stops no paused one.
func (in *Instance) unpause(ctx context.Context, e *engine) error {
	if in.state(ctx, e) != "paused" {
		return nil
	}
	_, err := e.api.ContainerUnpause(ctx, in.container, client.ContainerUnpauseOptions{})
	return err
}

// state returns the engine's word for the container's state, or "".
func (in *Instance) state(ctx context.Context, e *engine) string {
	r, err := e.api.ContainerInspect(ctx, in.container, client.ContainerInspectOptions{})
	if err != nil || r.Container.State == nil {
		return ""
	}
	return string(r.Container.State.Status)
}

// logs returns the last lines of a container's output.
func (e *engine) logs(ctx context.Context, id string, lines int) (string, error) {
	r, err := e.api.ContainerLogs(ctx, id, client.ContainerLogsOptions{
		ShowStdout: true, ShowStderr: true, Tail: fmt.Sprint(lines),
	})
	if err != nil {
		return "", err
	}
	defer func() { _ = r.Close() }()
	var out bytes.Buffer
	_, err = stdcopy.StdCopy(&out, &out, r)
	return strings.TrimSpace(out.String()), err
}

// pause waits for d or for the end of ctx, whose error it then returns.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
