package conformance

import (
	"cmp"
	"context"
	"fmt"
	"hash/maphash"
	"io"
	"sync/atomic"
	"time"

	"github.com/queuestream/broker"
)

// A Harness tells the suite how to use a broker. Name, Kinds and Open are
// required; the zero value of everything else is a default or "cannot".
type Harness struct {
	Name    string // of the broker, a column's title in the guarantee matrix: "RabbitMQ quorum queue"
	Version string // of the broker
	Kinds   Kind   // what to test

	// Open connects a new client; the suite closes it.
	Open func(ctx context.Context) (broker.Broker, error)
	// Embedded: the broker lives in the client, so that a second Open makes
	// another broker instead of another client of the same one.
	Embedded bool
	// OpenBad connects with wrong credentials; nil: the broker has none.
	OpenBad func(ctx context.Context) (broker.Broker, error)

	// NewName makes a name that nobody has used. kind is "queue", "ordered" (a
	// queue declared with Ordered), "stream", "exchange", "group" or "id". nil:
	// kind and a random number.
	NewName func(kind string) string
	// QueueConfig edits how a case declares a queue. ErrUnsupported tells that
	// the broker, as tested here, has no such queue. nil: nothing to edit.
	QueueConfig func(cfg *broker.QueueConfig) error
	// StreamConfig does the same for a stream.
	StreamConfig func(cfg *broker.StreamConfig) error

	// Duplicates: the broker is documented to deliver a message twice now and
	// then without any fault (SQS standard queues). They are then counted
	// instead of failing the case.
	Duplicates bool
	// Faulty: what Open returns meets faults all the time. Histories are then
	// judged as under a Fault: a message whose lost answer was followed by a
	// repetition may have two holders, but nothing may be lost or out of order.
	Faulty bool

	// Restart stops the broker in good order and starts it again; nil: cannot.
	Restart func(ctx context.Context) error
	// Faults start what they are named after; a missing one cannot be injected
	// and its cases are skipped. Package faultproxy has those of the network.
	Faults map[FaultKind]func(ctx context.Context) (Injection, error)
	// Victim connects a client that kill ends as SIGKILL ends a process: its
	// connections break without a goodbye and it never comes back; see
	// Lifeline. nil: Close of a client, which says goodbye, stands for it.
	Victim func(ctx context.Context) (b broker.Broker, kill func(), err error)
	// Around runs a case; it is where testing/synctest's bubble goes, with the
	// bubble's T. nil: run(t).
	Around func(t T, run func(T))

	// Soon bounds waits for what must happen: 0: 10 s.
	Soon time.Duration
	// Quiet is how long nothing must happen to conclude that nothing will;
	// 0: 200 ms.
	Quiet time.Duration
	// Lease is the shortest lease that tests may use; 0: 1 s.
	Lease time.Duration
	// Delay is the shortest message delay that tests may use; 0: Lease.
	Delay time.Duration
	// Tick is how exact the broker's times are: what happens up to Tick early
	// is not early. 0: 10 ms.
	Tick time.Duration
	// Patience is the longest that a case may wait for time to pass (a dedup
	// window, a retention); a case that needs more is skipped. 0: 30 s.
	Patience time.Duration
	// CaseTimeout bounds one case; 0: Patience and 2 min. A case that hangs is
	// abandoned and fails.
	CaseTimeout time.Duration

	// Messages is how many messages an ordinary case publishes; 0: 200.
	Messages int
	// Million is how many the scale cases publish; 0: they are skipped. They
	// run with 1_000_000 where the rule's name is to be earned.
	Million int
	// Workers is how many consumers or members a case runs; 0: 4.
	Workers int

	// Expected names, by case ID, known differences between what is tested here
	// and the real product (an emulator's gaps) with the reason. Such a case may
	// fail; the report lists it.
	Expected map[int]string
	// Only runs the cases with these IDs or names; nil: all.
	Only []string
	// Seed makes every random choice; 0: the flag's (see SeedFlag), else the
	// environment's CONFORMANCE_SEED, else random.
	Seed uint64
	// Log is where Check writes; nil: nowhere.
	Log io.Writer

	unreported bool // a run of this package's own tests leaves no report
}

// A FaultKind names a fault.
type FaultKind string

// The faults that a harness may inject.
const (
	FaultConnectionCut FaultKind = "connection cut" // connections are cut now and then while it lasts
	FaultAnswerLost    FaultKind = "answer lost"    // requests are applied and their answers dropped, now and then
	FaultKill          FaultKind = "broker killed"  // killed at once, started again by Stop at the latest
	FaultPause         FaultKind = "broker paused"  // for longer than its session time-out
	FaultBlackHole     FaultKind = "black hole"     // packets vanish in both directions until Stop
	FaultSlowLink      FaultKind = "slow link"      // latency and little bandwidth
	FaultThrottle      FaultKind = "throttling"     // the broker refuses for a while: too fast
)

// An Injection is a fault that was started.
type Injection struct {
	// Stop ends the fault and waits until the broker can be used again.
	Stop func(ctx context.Context) error
	// Bites counts what the fault did so far. A run whose fault never bit
	// fails, since it shows nothing.
	Bites func() int64
}

// withDefaults returns h with every default filled in, or what is wrong.
func (h Harness) withDefaults() (Harness, error) {
	switch {
	case h.Name == "" || h.Open == nil:
		return h, fmt.Errorf("conformance: Harness needs Name and Open")
	case h.Kinds == 0 || h.Kinds&^Both != 0:
		return h, fmt.Errorf("conformance: Harness.Kinds is %d: want Queue, Stream or Both", h.Kinds)
	}
	h.Soon = cmp.Or(h.Soon, 10*time.Second)
	h.Quiet = cmp.Or(h.Quiet, 200*time.Millisecond)
	h.Lease = cmp.Or(h.Lease, time.Second)
	h.Delay = cmp.Or(h.Delay, h.Lease)
	h.Tick = cmp.Or(h.Tick, 10*time.Millisecond)
	h.Patience = cmp.Or(h.Patience, 30*time.Second)
	h.CaseTimeout = cmp.Or(h.CaseTimeout, h.Patience+2*time.Minute)
	h.Messages = cmp.Or(h.Messages, 200)
	h.Workers = cmp.Or(h.Workers, 4)
	var err error
	if h.Seed, err = h.seed(); err != nil {
		return h, err
	}
	if h.NewName == nil {
		h.NewName = newNames()
	}
	if h.Around == nil {
		h.Around = func(t T, run func(T)) { run(t) }
	}
	if h.Log == nil {
		h.Log = io.Discard
	}
	return h, nil
}

func newNames() func(kind string) string {
	run, n := maphash.Comparable(maphash.MakeSeed(), 0), new(atomic.Int64)
	return func(kind string) string {
		return fmt.Sprintf("qs-%s-%08x-%d", kind, uint32(run), n.Add(1)) //nolint:gosec // any 32 bits do
	}
}

func (h *Harness) wants(c *Case) bool {
	if len(h.Only) == 0 {
		return true
	}
	for _, pattern := range h.Only {
		if c.named(pattern) {
			return true
		}
	}
	return false
}
