package conformance

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/queuestream/broker"
)

// A C is what a running case works with. Its methods may be called from any
// goroutine that was started with Go, and from the case's own. Those that end
// the case (Fatalf, Skip, Refused and what uses them) end the goroutine that
// they are called in, and the case with it.
type C struct {
	h      *Harness
	test   *Case
	kind   Kind
	t      T
	ctx    context.Context // of this case: the value lives as long as it does
	cancel context.CancelFunc
	rng    *rand.Rand

	broker     broker.Broker
	deadLetter broker.Queue // of the case's queue, where it has one

	mu       sync.Mutex
	result   Result
	sealed   bool // the result was taken
	cleanup  []func(ctx context.Context) error
	faults   []Injection
	injected bool // a fault, at some time
	handles  []handle
	group    sync.WaitGroup
}

type handle struct {
	what  string
	close func() error
}

func newC(t T, h *Harness, test *Case, kind Kind) *C {
	c := &C{
		h: h, test: test, kind: kind, t: t,
		result: Result{ID: test.ID, Name: test.Name, Kind: kind.String(), Group: test.Group, Status: StatusPass},
	}
	c.ctx, c.cancel = context.WithTimeout(t.Context(), h.CaseTimeout)
	c.rng = rand.New(&lockedSource{src: rand.NewPCG(h.Seed, uint64(test.ID)<<8|uint64(kind))}) //nolint:gosec // a test's random choices
	return c
}

// lockedSource makes a case's random numbers safe for concurrent use.
type lockedSource struct {
	mu  sync.Mutex
	src rand.Source
}

func (s *lockedSource) Uint64() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.src.Uint64()
}

// Context ends with the case.
func (c *C) Context() context.Context { return c.ctx }

// Harness returns the harness, with its defaults filled in.
func (c *C) Harness() *Harness { return c.h }

// Kind is Queue or Stream: what the case runs on.
func (c *C) Kind() Kind { return c.kind }

// Broker returns the client that the case was given.
func (c *C) Broker() broker.Broker { return c.broker }

// Rand returns the case's random numbers, which follow from the seed.
func (c *C) Rand() *rand.Rand { return c.rng }

// Name makes a fresh name, or an id; see Harness.NewName.
func (c *C) Name(kind string) string { return c.h.NewName(kind) }

// Logf writes to the test's log.
func (c *C) Logf(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.sealed {
		c.t.Logf(format, args...)
	}
}

// Note keeps what the case measured in the report.
func (c *C) Note(key, format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sealed {
		return
	}
	if c.result.Notes == nil {
		c.result.Notes = map[string]string{}
	}
	c.result.Notes[key] = fmt.Sprintf(format, args...)
}

// Errorf records that the rule is broken; the case goes on.
func (c *C) Errorf(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sealed {
		return
	}
	c.result.Status = StatusFail
	if len(c.result.Failures) < 20 {
		c.result.Failures = append(c.result.Failures, fmt.Sprintf(format, brief(args)...))
	}
}

// Fatalf records that the rule is broken and ends the case.
func (c *C) Fatalf(format string, args ...any) {
	c.Errorf(format, args...)
	c.exit()
}

// Skip ends the case, which could not be run for the reason.
func (c *C) Skip(format string, args ...any) { c.end(StatusSkip, format, args...) }

// Refused ends the case: what it needs is not claimed, and was refused.
func (c *C) Refused(format string, args ...any) { c.end(StatusRefused, format, args...) }

func (c *C) end(s Status, format string, args ...any) {
	c.mu.Lock()
	if c.result.Status == StatusPass && !c.sealed {
		c.result.Status, c.result.Reason = s, fmt.Sprintf(format, args...)
	}
	c.mu.Unlock()
	c.exit()
}

func (c *C) exit() {
	c.cancel()
	runtime.Goexit()
}

// Failed tells whether the case has failed so far.
func (c *C) Failed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.result.Status == StatusFail
}

// Check records every violation as a failure.
func (c *C) Check(vs []Violation) {
	for _, v := range vs {
		c.Errorf("%v", v)
	}
}

// Must ends the case unless err is nil.
func (c *C) Must(err error, format string, args ...any) {
	if err != nil {
		c.Fatalf(format+": %v", append(args, err)...)
	}
}

// WantErr fails the case unless err is target, wrapped in a *broker.Error that
// names the operation, or for a batch in a *broker.BatchError of such.
func (c *C) WantErr(err, target error, format string, args ...any) {
	what := fmt.Sprintf(format, brief(args)...)
	switch {
	case err == nil:
		c.Errorf("%v: nil, want %q", prose(what), target)
	case !errors.Is(err, target):
		c.Errorf("%v: %v, want %q", prose(what), err, target)
	default:
		e, ok := errors.AsType[*broker.Error](err)
		if !ok {
			c.Errorf("%v: %v (%T) is not a *broker.Error", prose(what), err, err)
		} else if e.Op == "" {
			c.Errorf("%v: %v names no operation", prose(what), err)
		}
	}
}

// Go runs f in a goroutine of the case. Wait waits for all of them.
func (c *C) Go(f func()) {
	c.group.Add(1)
	go func() {
		defer c.group.Done()
		defer c.recover()
		f()
	}()
}

// Wait waits for everything started with Go.
func (c *C) Wait() { c.group.Wait() }

func (c *C) recover() {
	if p := recover(); p != nil {
		c.Errorf("panic: %v\n%s", p, stack())
		c.cancel()
	}
}

// Cleanup runs f after the case, the last one first. Its error is a failure.
func (c *C) Cleanup(f func(ctx context.Context) error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cleanup = append(c.cleanup, f)
}

// Within returns a context that ends after d, or with the case.
func (c *C) Within(d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(c.ctx, d)
}

// Soon returns a context that ends when Harness.Soon has passed.
func (c *C) Soon() (context.Context, context.CancelFunc) { return c.Within(c.h.Soon) }

// Sleep waits for d to pass. A wait beyond Harness.Patience skips the case.
func (c *C) Sleep(d time.Duration) {
	if d > c.h.Patience {
		c.Skip("needs %v to pass, and Harness.Patience is %v", d, c.h.Patience)
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-c.ctx.Done():
		c.Fatalf("the case ended while waiting for %v to pass: %v", d, context.Cause(c.ctx))
	}
}

// pass lets a little time pass: work that a case simulates, or a pause before
// a call is tried again.
func (c *C) pass(d time.Duration) { c.Until(d, func() bool { return false }) }

// Eventually waits until cond is true, and ends the case if it is not within
// Harness.Soon.
func (c *C) Eventually(what string, cond func() bool) {
	if !c.Until(c.h.Soon, cond) {
		c.Fatalf("not within %v: %s", c.h.Soon, what)
	}
}

// Until polls cond until it is true, and reports false if it was not within d.
func (c *C) Until(d time.Duration, cond func() bool) bool {
	ctx, cancel := c.Within(d)
	defer cancel()
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		if cond() {
			return true
		}
		t := time.NewTimer(min(wait, d))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return cond()
		}
	}
}

// OpenBroker connects another client, closed after the case. With an embedded
// broker it is another, empty broker.
func (c *C) OpenBroker() broker.Broker {
	ctx, cancel := c.Soon()
	defer cancel()
	b, err := c.h.Open(ctx)
	c.Must(err, "open the broker")
	c.track("broker", b.Close)
	return b
}

// Fresh returns a client that has seen nothing: another one, or the case's own
// where the broker is embedded.
func (c *C) Fresh() broker.Broker {
	if c.h.Embedded {
		return c.broker
	}
	return c.OpenBroker()
}

// Admin returns the broker's Admin, or ends the case as skipped.
func (c *C) Admin() broker.Admin {
	a, ok := broker.As[broker.Admin](c.broker)
	if !ok {
		c.Skip("the broker has no broker.Admin")
	}
	return a
}

// Inject starts a fault, which ends with the case at the latest. A case whose
// fault cannot be injected is skipped.
func (c *C) Inject(kind FaultKind) Injection {
	start := c.h.Faults[kind]
	if start == nil {
		c.Skip("the harness cannot inject: %s", kind)
	}
	in, err := start(c.ctx)
	c.Must(err, "inject %s", kind)
	var once sync.Once
	stop := in.Stop
	in.Stop = func(ctx context.Context) (err error) {
		once.Do(func() {
			if stop != nil {
				err = stop(ctx)
			}
		})
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.faults, c.injected = append(c.faults, in), true
	return in
}

// faulty tells whether a fault was injected: from then on answers may be lost.
func (c *C) faulty() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.injected
}

// stopFaults ends every fault; a fault that never bit is a failure.
func (c *C) stopFaults(ctx context.Context) {
	c.mu.Lock()
	faults := c.faults
	c.faults = nil
	c.mu.Unlock()
	for _, in := range faults {
		if err := in.Stop(ctx); err != nil {
			c.Errorf("stop the fault: %v", err)
		}
		if in.Bites != nil && in.Bites() == 0 {
			c.Errorf("the fault never bit: this run shows nothing")
		}
	}
}

// Closes closes x after the case.
func (c *C) track(what string, closer func() error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.handles = append(c.handles, handle{what, closer})
}

// closeHandles closes what the case opened, but for brokers until the end.
func (c *C) closeHandles(brokers bool) {
	c.mu.Lock()
	all := c.handles
	c.handles = nil
	var now []handle
	for _, h := range all {
		if brokers || h.what != "broker" {
			now = append(now, h)
		} else {
			c.handles = append(c.handles, h)
		}
	}
	c.mu.Unlock()
	for _, h := range slices.Backward(now) {
		if err := h.close(); err != nil && !errors.Is(err, broker.ErrClosed) {
			c.Errorf("close the %s: %v", h.what, err)
		}
	}
}

func (c *C) runCleanup() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.t.Context()), time.Minute)
	defer cancel()
	c.stopFaults(ctx)
	c.closeHandles(false)
	c.mu.Lock()
	cleanup := c.cleanup
	c.cleanup = nil
	c.mu.Unlock()
	for _, f := range slices.Backward(cleanup) {
		if err := f(ctx); err != nil {
			c.Errorf("clean up: %v", err)
		}
	}
	c.closeHandles(true)
}

// seal takes the result; whatever still runs changes nothing any more.
func (c *C) seal() Result {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sealed = true
	r := c.result
	r.Notes = maps.Clone(r.Notes)
	r.Failures = slices.Clone(r.Failures)
	return r
}
