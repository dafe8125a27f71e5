package memory

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/queuestream/broker"
)

// Faults are injected at random, reproducibly from Options.Seed as long as the
// calls come in the same order. Each, but for the times, is the probability, 0
// to 1, that one operation is hit.
type Faults struct {
	DropAck      float64       // Ack returns nil, and the message comes again once its lease ends
	LoseAnswer   float64       // Publish stores, and returns ErrUnknownOutcome
	Fail         float64       // Publish stores nothing, and returns ErrUnavailable
	Throttle     float64       // Publish, Receive, Commit or a verdict does nothing, and returns ErrUnavailable: too fast
	Duplicate    float64       // a delivery without a group comes twice
	Delay        float64       // a message becomes ready later, by up to MaxDelay
	MaxDelay     time.Duration // of Delay; 0: 1 s
	Latency      time.Duration // every call to the broker takes so much longer
	Disconnect   float64       // a queue's Receive finds the connection broken; see Broker.Disconnect
	PartialBatch float64       // an entry of a batch settled fails with ErrUnavailable
}

var (
	errInjected  = fmt.Errorf("%w: injected fault", broker.ErrUnavailable)
	errThrottled = fmt.Errorf("%w: injected throttling", broker.ErrUnavailable)
	errCut       = fmt.Errorf("%w: the connection broke", broker.ErrUnavailable)
)

func (f *Faults) validate() error {
	for _, p := range []struct {
		name string
		p    float64
	}{
		{"DropAck", f.DropAck}, {"LoseAnswer", f.LoseAnswer}, {"Fail", f.Fail}, {"Throttle", f.Throttle},
		{"Duplicate", f.Duplicate}, {"Delay", f.Delay}, {"Disconnect", f.Disconnect}, {"PartialBatch", f.PartialBatch},
	} {
		if !(p.p >= 0 && p.p <= 1) {
			return broker.Invalid("Faults.%s %v: want a probability, 0 to 1", p.name, p.p)
		}
	}
	for _, d := range []struct {
		name string
		d    time.Duration
	}{{"MaxDelay", f.MaxDelay}, {"Latency", f.Latency}} {
		if d.d < 0 || d.d > broker.MaxDuration {
			return broker.Invalid("Faults.%s %v: want 0 to %v", d.name, d.d, broker.MaxDuration)
		}
	}
	return nil
}

// SetFaults replaces the faults of the embedded broker, for all connections and
// from the next call on. The zero value ends them.
func (b *Broker) SetFaults(f Faults) error {
	if err := f.validate(); err != nil {
		return opError("set faults", b.srv.opts.Name, err)
	}
	in := &b.srv.injector
	in.mu.Lock()
	defer in.mu.Unlock()
	in.faults = f
	b.srv.inject()
	return nil
}

// Pause stalls the embedded broker, as if its process had been stopped, until
// resume is called: every call over any connection waits. Time goes on; leases
// end. Of a publish under way some have taken effect and wait for the answer,
// the others wait to be read, so that one whose context or connection ends
// meanwhile (see Disconnect) is ErrUnknownOutcome. Close does not wait.
func (b *Broker) Pause() (resume func()) {
	in := &b.srv.injector
	in.mu.Lock()
	defer in.mu.Unlock()
	in.pauses++
	b.srv.inject()
	return sync.OnceFunc(func() {
		in.mu.Lock()
		defer in.mu.Unlock()
		in.pauses--
		b.srv.inject()
		in.poke()
	})
}

// Injected returns how many calls over all connections faults have hit so far,
// those of Pause among them: a test whose faults never hit shows nothing.
func (b *Broker) Injected() int64 { return b.srv.injector.hits.Load() }

// An injector is what is injected into all calls of a server.
type injector struct {
	hits atomic.Int64

	mu      sync.Mutex
	random  *rand.Rand
	faults  Faults
	pauses  int
	changed chan struct{} // closed when something changes for those who wait
}

// poke lets those who wait look again. in.mu is held.
func (in *injector) poke() {
	if in.changed != nil {
		close(in.changed)
		in.changed = nil
	}
}

// faults are what is injected as of now; nil: nothing.
type faults struct {
	Faults
	*injector
}

// inject makes known what there is to inject. injector.mu is held.
func (s *server) inject() {
	f := s.injector.faults
	if s.injector.pauses == 0 && f == (Faults{MaxDelay: f.MaxDelay}) {
		s.faults.Store(nil)
		return
	}
	if f.MaxDelay == 0 {
		f.MaxDelay = time.Second
	}
	s.faults.Store(&faults{Faults: f, injector: &s.injector})
}

// wake lets calls that wait in a pause see that their handle was closed.
func (s *server) wake() {
	if s.faults.Load() == nil {
		return
	}
	s.injector.mu.Lock()
	defer s.injector.mu.Unlock()
	s.injector.poke()
}

func (f *faults) hit(p float64) bool {
	if p <= 0 {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.random.Float64() >= p {
		return false
	}
	f.hits.Add(1)
	return true
}

// A caller is a handle whose calls may have to wait.
type caller interface {
	connection() *Broker
	ended() error // why none of its calls can go on
}

// reach returns once a call arrives at the broker: after the latency and the
// pauses, or with the reason why it never does.
func (f *faults) reach(ctx context.Context, c caller) error {
	if f.Latency > 0 {
		f.hits.Add(1)
		t := time.NewTimer(f.Latency)
		defer t.Stop()
		if err := f.wait(ctx, c, t.C); err != nil {
			return err
		}
	}
	return f.wait(ctx, c, nil)
}

// wait returns at due or, if that is nil, once there is no pause.
func (f *faults) wait(ctx context.Context, c caller, due <-chan time.Time) error {
	for hit := false; ; {
		f.mu.Lock()
		paused := f.pauses > 0
		if f.changed == nil {
			f.changed = make(chan struct{})
		}
		changed := f.changed
		f.mu.Unlock()
		if err := c.ended(); err != nil {
			return err
		}
		if due == nil {
			if !paused {
				return nil
			}
			if !hit {
				hit = true
				f.hits.Add(1)
			}
		}
		select {
		case <-due:
			return nil
		case <-changed:
		case <-ctx.Done():
			return broker.ContextError(ctx)
		}
	}
}

// call is reach for what may be throttled.
func (f *faults) call(ctx context.Context, c caller) error {
	if err := f.reach(ctx, c); err != nil {
		return err
	}
	if f.hit(f.Throttle) {
		return errThrottled
	}
	return nil
}

// A sending is one publish or batch of them under faults.
type sending struct {
	caller
	f    *faults
	cuts int64 // of the connection, before it
	late bool  // in a pause, the answer waits instead of the request
}

// ended tells of a connection that broke, too: nobody sends again what may
// have been stored.
func (s *sending) ended() error {
	if s.connection().cuts.Load() != s.cuts {
		return errCut
	}
	return s.caller.ended()
}

// send begins a publish.
func (f *faults) send(ctx context.Context, c caller) (*sending, error) {
	s := &sending{caller: c, f: f, cuts: c.connection().cuts.Load()}
	f.mu.Lock()
	s.late = f.pauses > 0 && f.random.IntN(2) == 0
	f.mu.Unlock()
	if s.late {
		return s, nil
	}
	if err := f.reach(ctx, s); err != nil {
		return nil, broker.UnknownOutcome(err)
	}
	if f.hit(f.Throttle) {
		return nil, errThrottled
	}
	return s, nil
}

// one injects into one message or record: delay is how much later it becomes
// ready, after what becomes of the answer.
func (s *sending) one() (delay time.Duration, after func(error) error, err error) {
	f := s.f
	if f.hit(f.Fail) {
		return 0, nil, errInjected
	}
	after = func(err error) error { return err }
	if f.hit(f.LoseAnswer) {
		after = func(err error) error {
			if err == nil {
				return broker.UnknownOutcome(broker.ErrUnavailable)
			}
			return err
		}
	}
	if f.hit(f.Delay) {
		f.mu.Lock()
		delay = time.Duration(f.random.Int64N(int64(f.MaxDelay))) + 1
		f.mu.Unlock()
	}
	return delay, after, nil
}

// answer ends the publish: nil, or why nobody knows what became of what was
// stored.
func (s *sending) answer(ctx context.Context) error {
	if !s.late {
		return nil
	}
	return broker.UnknownOutcome(s.f.wait(ctx, s, nil))
}
