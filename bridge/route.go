package bridge

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/bridge/blob"
)

// A PoisonPolicy tells what becomes of a record that can never become a task:
// its filter or mapping fails, or the queue refuses the task for what it is.
type PoisonPolicy string

// The policies. The zero value is PoisonDLQ.
const (
	PoisonDLQ      PoisonPolicy = "dlq"       // to the dead-letter queue, confirmed before the commit
	PoisonSkip     PoisonPolicy = "skip"      // dropped, counted and logged
	PoisonBlockKey PoisonPolicy = "block_key" // tried again for ever; its key waits, and in the end its partition
	PoisonHalt     PoisonPolicy = "halt"      // the route ends with an error before the record
)

// A SizePolicy tells what becomes of a task that is too large for its queue.
type SizePolicy string

// The policies. The zero value is TooLargeReject.
const (
	TooLargeReject     SizePolicy = "reject"      // as poison
	TooLargeClaimCheck SizePolicy = "claim_check" // the body goes to a blob store, the task carries a pointer
)

// Defaults of a Route.
const (
	DefaultConcurrency = 64
	DefaultWindow      = 10_000
	DefaultMaxAge      = time.Minute
	DefaultAttempts    = 10
	DefaultRetryMin    = 100 * time.Millisecond
	DefaultRetryMax    = 30 * time.Second
)

// A Route turns the records of Source into tasks on Target. Its fields must
// not change once Run was called.
type Route struct {
	Name          string          // required; for logs and metrics
	Source        broker.Stream   // required
	Group         string          // the consumer group; empty: "bridge-" + Name
	Start         broker.Position // where the group has no offset; zero: Earliest
	Until         broker.Position // ends the route there; zero: never
	ReadCommitted bool

	// Target takes the tasks, unless TargetFor chooses for each record. The
	// route closes neither.
	Target    broker.Queue
	TargetFor func(ctx context.Context, r *broker.Record) (broker.Queue, error)
	// Filter tells whether a record becomes a task; nil: all do.
	Filter func(r *broker.Record) (bool, error)
	// GroupFor chooses the GroupID of the task of r, and with it what is sent in
	// order: records of an equal group, within a partition. nil: the record's
	// key, where the queue has groups; "": no order to keep. An error makes r
	// poison.
	GroupFor func(r *broker.Record) (string, error)
	// Map edits the task that the bridge made of r: ID and DedupID from the
	// coordinates, GroupID as GroupFor says, the value as Body, the record's
	// headers and its coordinates (instead of any among its own). An error makes
	// r poison.
	Map func(r *broker.Record, task *broker.Message) error
	// Salt makes other ids for the same records, for a replay that has to get
	// past the queue's dedup window.
	Salt string

	Poison     PoisonPolicy
	DeadLetter broker.Queue // required by PoisonDLQ
	Attempts   int          // failures for a reason unknown to the bridge before a record is poison; 0: 10
	TooLarge   SizePolicy
	Blobs      blob.Store // required by TooLargeClaimCheck

	Concurrency    int           // keys in flight; 0: 64
	Window         int           // of each partition: records enqueued or in hand beyond the commit; 0: 10,000
	MaxAge         time.Duration // of the oldest of them; 0: 1 minute
	BatchSameGroup bool          // several tasks of a group in one request; see the package comment. SQS has to be opened with BatchGroups
	RateLimit      float64       // records started a second; 0: none
	RetryMin       time.Duration // back-off of sends; 0: 100 ms, or RetryMax if that is less
	RetryMax       time.Duration // 0: 30 s, or RetryMin if that is more
	DrainTimeout   time.Duration // 0: 30 s
	Middleware     []broker.Middleware

	Logger  *slog.Logger // nil: slog.Default()
	Observe func(Event)  // called for what becomes of each record; must not block

	live string // the group that a replay must not move
	state
}

// check returns what is wrong with the route, and sets the defaults.
func (rt *Route) check() error {
	invalid := func(format string, args ...any) error {
		return &broker.Error{Op: "run route", Adapter: "bridge", Name: rt.Name, Err: broker.Invalid(format, args...)}
	}
	switch {
	case rt.Name == "":
		return invalid("Name is empty")
	case rt.Source == nil:
		return invalid("Source is nil")
	case rt.Target == nil && rt.TargetFor == nil:
		return invalid("Target and TargetFor are nil")
	case rt.Target != nil && rt.TargetFor != nil:
		return invalid("Target and TargetFor are both set")
	case rt.live != "" && rt.Group == "":
		return invalid("Group is empty: want one of its own for a replay")
	case rt.group() == rt.live:
		return invalid("Group %q is the live route's, whose offsets stay as they are: want another for a replay", rt.live)
	case rt.Window < 0 || rt.Concurrency < 0 || rt.Attempts < 0:
		return invalid("Window, Concurrency and Attempts must not be negative")
	case !isRate(rt.RateLimit):
		return invalid("RateLimit %v: want 0 or a positive number", rt.RateLimit)
	case rt.RetryMin < 0 || rt.RetryMax < 0 || rt.MaxAge < 0 || rt.DrainTimeout < 0:
		return invalid("RetryMin, RetryMax, MaxAge and DrainTimeout must not be negative")
	}
	rt.Poison = orDefault(rt.Poison, PoisonDLQ)
	rt.TooLarge = orDefault(rt.TooLarge, TooLargeReject)
	rt.Concurrency = orDefault(rt.Concurrency, DefaultConcurrency)
	rt.Window = orDefault(rt.Window, DefaultWindow)
	rt.MaxAge = orDefault(rt.MaxAge, DefaultMaxAge)
	rt.Attempts = orDefault(rt.Attempts, DefaultAttempts)
	rt.RetryMax = orDefault(rt.RetryMax, max(DefaultRetryMax, rt.RetryMin))
	rt.RetryMin = orDefault(rt.RetryMin, min(DefaultRetryMin, rt.RetryMax))
	rt.Logger = orDefault(rt.Logger, slog.Default())
	switch rt.Poison {
	case PoisonDLQ:
		if rt.DeadLetter == nil {
			return invalid("DeadLetter is nil; policy %s needs it", rt.Poison)
		}
	case PoisonSkip, PoisonBlockKey, PoisonHalt:
	default:
		return invalid("Poison %q: want dlq, skip, block_key or halt", rt.Poison)
	}
	switch {
	case rt.TooLarge == TooLargeClaimCheck && rt.Blobs == nil:
		return invalid("Blobs is nil; policy %s needs it", rt.TooLarge)
	case rt.TooLarge != TooLargeClaimCheck && rt.TooLarge != TooLargeReject:
		return invalid("TooLarge %q: want reject or claim_check", rt.TooLarge)
	case rt.RetryMin > rt.RetryMax:
		return invalid("RetryMin %v is above RetryMax %v", rt.RetryMin, rt.RetryMax)
	}
	return nil
}

// isRate is false of NaN, too.
func isRate(r float64) bool { return r >= 0 && r <= math.MaxFloat64 }

func orDefault[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

// fill makes t the default task of r for the queue q.
func (rt *Route) fill(t *broker.Message, r *broker.Record, q broker.Queue) error {
	c := q.Capabilities()
	*t = broker.Message{ID: dedupID(r, rt.Salt), Body: r.Value, Headers: headers(r)}
	if r.Tombstone {
		t.Headers = append(t.Headers, broker.Header{Key: HeaderTombstone, Value: "true"})
	}
	if c.Dedup {
		t.DedupID = t.ID
	}
	if c.Groups || rt.GroupFor != nil {
		group, err := rt.groupOf(r, t.ID)
		if err != nil {
			return &poison{err}
		}
		t.GroupID = group
	}
	return nil
}

// edit lets Map edit t, which it may keep: one on the stack would not stay there.
func (rt *Route) edit(t *broker.Message, r *broker.Record) error {
	if rt.Map == nil {
		return nil
	}
	if err := rt.Map(r, t); err != nil {
		return &poison{err}
	}
	return nil
}

// HeaderTombstone marks the task of a tombstone, whose body is empty.
const HeaderTombstone = broker.HeaderSourceTombstone

// headers are the record's own and its coordinates. Coordinates among its own
// are those of an earlier way, and would be taken for the record's.
func headers(r *broker.Record) broker.Headers {
	source := broker.SourceHeaders(r)
	if len(r.Headers) == 0 {
		return source
	}
	own := r.Headers.Without(broker.IsSourceHeader)
	return append(append(make(broker.Headers, 0, len(own)+len(source)+1), own...), source...)
}

// groupOf is what GroupFor says, or the record's key. Where that is empty there
// is no order to keep: each such record is a group of its own, so that they do
// not wait for each other.
func (rt *Route) groupOf(r *broker.Record, id string) (string, error) {
	group := string(r.Key)
	if rt.GroupFor != nil {
		var err error
		if group, err = rt.askGroup(r); err != nil {
			return "", err
		}
	}
	return orDefault(group, id), nil
}

// askGroup asks GroupFor, on whose answer dead letters and order depend too.
func (rt *Route) askGroup(r *broker.Record) (group string, err error) {
	defer recovered(&err)
	return rt.GroupFor(r)
}

// order is what orders r among those of its partition; "" is nothing.
func (rt *Route) order(r *broker.Record) string {
	if rt.GroupFor != nil {
		return rt.orderBy(r)
	}
	return string(r.Key)
}

// orderBy is what the Processor orders r by; where GroupFor fails, r is poison
// and parked in the order of its key.
func (rt *Route) orderBy(r *broker.Record) string {
	group, err := rt.askGroup(r)
	if err != nil {
		return string(r.Key)
	}
	return group
}

// poison marks an error that the same record will meet again for ever.
type poison struct{ err error }

func (p *poison) Error() string { return p.err.Error() }
func (p *poison) Unwrap() error { return p.err }

// isPoison tells whether the queue refused the task for what it is.
func isPoison(err error) bool {
	_, mapping := errors.AsType[*poison](err)
	return mapping || errors.Is(err, broker.ErrTooLarge) ||
		errors.Is(err, broker.ErrInvalid) || errors.Is(err, broker.ErrUnsupported)
}

// isPassing tells whether trying again may help, however often.
func isPassing(err error) bool {
	for _, e := range []error{
		broker.ErrUnknownOutcome, broker.ErrFull, broker.ErrNotFound, broker.ErrUnauthorized,
		broker.ErrClosed, broker.ErrShutdown, context.Canceled, context.DeadlineExceeded,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return broker.IsTemporary(err)
}
