package broker

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"github.com/queuestream/broker/internal/clock"
)

// A Delivery is one attempt at a [Message]. The first verdict to succeed
// settles it; later ones get [ErrSettled], or [ErrLeaseLost] once the lease
// has passed. Its methods may be called from any goroutine. It must not be
// copied.
type Delivery struct {
	Message
	Attempt int       // from 1, counted by the SDK where the broker does not
	Time    time.Time // accepted by the broker

	settler    Settler
	token      uint64
	lease      atomic.Int64 // UnixNano; 0: none
	generation uint32
	state      atomic.Uint32
}

const (
	stateOpen uint32 = iota
	stateSettling
	stateSettled
	stateLost
)

// A VerdictKind is what is decided on a delivery.
type VerdictKind uint8

// The kinds of Verdict.
const (
	VerdictAck    VerdictKind = iota + 1 // done: remove it
	VerdictNack                          // redeliver after Delay
	VerdictReject                        // move it to the dead-letter queue with Reason
	VerdictExtend                        // hold it for Lease from now; settles nothing
)

// String returns the operation's name as in [Error].Op.
func (k VerdictKind) String() string {
	switch k {
	case VerdictAck:
		return "ack"
	case VerdictNack:
		return "nack"
	case VerdictReject:
		return "reject"
	case VerdictExtend:
		return "extend"
	}
	return "verdict"
}

// A Verdict is a decision on a delivery.
type Verdict struct {
	Kind   VerdictKind
	Delay  time.Duration // of VerdictNack
	Snooze bool          // of VerdictNack: the attempt does not count (capability Snooze)
	Lease  time.Duration // of VerdictExtend
	Reason string        // of VerdictReject
}

// An Outcome pairs a delivery with its verdict, and with what became of it.
type Outcome struct {
	Delivery *Delivery
	Verdict  Verdict
	Err      error
}

// Ack removes the message from the queue: its work is done.
func (d *Delivery) Ack(ctx context.Context) error {
	return d.settle(ctx, Verdict{Kind: VerdictAck})
}

// Nack gives the message back for redelivery after delay (0: at once). A delay
// that the queue cannot honour is [ErrUnsupported] and settles nothing.
func (d *Delivery) Nack(ctx context.Context, delay time.Duration) error {
	return d.settle(ctx, Verdict{Kind: VerdictNack, Delay: delay})
}

// Reject moves the message to the dead-letter queue together with reason.
// Without a dead-letter queue it is [ErrUnsupported] and settles nothing.
func (d *Delivery) Reject(ctx context.Context, reason string) error {
	return d.settle(ctx, Verdict{Kind: VerdictReject, Reason: reason})
}

// Extend holds the delivery for lease from now on (0: the consumer's lease).
func (d *Delivery) Extend(ctx context.Context, lease time.Duration) error {
	return d.settle(ctx, Verdict{Kind: VerdictExtend, Lease: lease})
}

// LeaseExpires returns when the delivery goes back to the queue unless it is
// settled or extended; the zero time if there is no lease.
func (d *Delivery) LeaseExpires() time.Time {
	ns := d.lease.Load()
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns)
}

// Settled tells whether a verdict has settled the delivery or its lease is lost.
func (d *Delivery) Settled() bool {
	s := d.state.Load()
	return s == stateSettled || s == stateLost
}

// Bind connects a new delivery to what settles it, a pointer. token and
// generation are the adapter's own (a delivery tag and a connection's number,
// say). Where s has methods Name and Adapter, both without arguments and
// returning a string, errors of the delivery carry what they return. For adapters.
func (d *Delivery) Bind(s Settler, token uint64, generation uint32) {
	d.settler, d.token, d.generation = s, token, generation
}

// Token returns the token given to Bind. For adapters.
func (d *Delivery) Token() uint64 { return d.token }

// Generation returns the generation given to Bind. For adapters.
func (d *Delivery) Generation() uint32 { return d.generation }

// SetLease sets when the lease ends; the zero time: none. For adapters, at
// delivery and after each extension that the broker has applied.
func (d *Delivery) SetLease(expires time.Time) {
	if expires.IsZero() {
		d.lease.Store(0)
		return
	}
	d.lease.Store(expires.UnixNano())
}

// Lose marks the delivery as lost (its lease passed, its connection died):
// every later verdict gets ErrLeaseLost. It reports false if the delivery was
// settled or lost before, or is being settled. For adapters.
func (d *Delivery) Lose() bool { return d.state.CompareAndSwap(stateOpen, stateLost) }

// Wrap puts a decorator around what settles the delivery. It must be called
// before the delivery is shared.
func (d *Delivery) Wrap(wrap func(Settler) Settler) { d.settler = wrap(d.settler) }

func (d *Delivery) settle(ctx context.Context, v Verdict) error {
	if err := d.begin(v); err != nil {
		return err
	}
	if d.settler == nil {
		err := &Error{Op: v.Kind.String(), Err: Invalid("the delivery did not come from a consumer")}
		d.end(v, err)
		return err
	}
	err := d.settler.SettleOne(ctx, d, v)
	d.end(v, err)
	return err
}

// begin claims the delivery for one verdict. An extension claims nothing: it
// may run beside a verdict, which then wins.
func (d *Delivery) begin(v Verdict) error {
	if err := v.validate(); err != nil {
		return d.fail(v, err)
	}
	claimed := stateSettling
	if v.Kind == VerdictExtend {
		claimed = stateOpen
	}
	if !d.state.CompareAndSwap(stateOpen, claimed) {
		if d.state.Load() == stateLost {
			return d.fail(v, ErrLeaseLost)
		}
		return d.fail(v, ErrSettled)
	}
	if ns := d.lease.Load(); ns != 0 && clock.Now() >= ns {
		if d.state.CompareAndSwap(claimed, stateLost) {
			return d.fail(v, ErrLeaseLost)
		}
	}
	return nil
}

func (d *Delivery) end(v Verdict, err error) {
	if v.Kind == VerdictExtend {
		if errors.Is(err, ErrLeaseLost) {
			d.state.CompareAndSwap(stateOpen, stateLost)
		}
		return
	}
	switch {
	case err == nil:
		d.state.Store(stateSettled)
	case errors.Is(err, ErrLeaseLost):
		d.state.Store(stateLost)
	case errors.Is(err, ErrSettled):
		d.state.Store(stateSettled)
	default:
		d.state.Store(stateOpen)
	}
}

func (d *Delivery) fail(v Verdict, err error) error {
	e := &Error{Op: v.Kind.String(), Name: d.source(), Err: err}
	if a, ok := d.settler.(interface{ Adapter() string }); ok {
		e.Adapter = a.Adapter()
	}
	return e
}

func (d *Delivery) source() string {
	if n, ok := d.settler.(interface{ Name() string }); ok {
		return n.Name()
	}
	return ""
}

func (v Verdict) validate() error {
	switch {
	case v.Delay < 0:
		return Invalid("delay %v: must not be negative", v.Delay)
	case v.Lease < 0:
		return Invalid("lease %v: must not be negative", v.Lease)
	}
	return nil
}

// AckAll acknowledges many in as few round trips as the broker allows. It
// returns nil or a [*BatchError] with an entry for each delivery.
func AckAll(ctx context.Context, ds ...*Delivery) error {
	batch := make([]Outcome, len(ds))
	for i, d := range ds {
		batch[i] = Outcome{Delivery: d, Verdict: Verdict{Kind: VerdictAck}}
	}
	return SettleAll(ctx, batch)
}

// SettleAll carries out the verdicts of batch in as few round trips as the
// broker allows, with the rules of Delivery's methods, and sets Err of each.
// It returns nil or a [*BatchError] with an entry for each.
func SettleAll(ctx context.Context, batch []Outcome) error {
	pending := make([]Outcome, 0, len(batch))
	index := make([]int, 0, len(batch))
	flush := func() {
		if len(pending) == 0 {
			return
		}
		pending[0].Delivery.settler.Settle(ctx, pending)
		for j, o := range pending {
			o.Delivery.end(o.Verdict, o.Err)
			batch[index[j]].Err = o.Err
		}
		pending, index = pending[:0], index[:0]
	}
	for i := range batch {
		o := &batch[i]
		if o.Err = o.Delivery.begin(o.Verdict); o.Err != nil {
			continue
		}
		if o.Delivery.settler == nil {
			o.Err = o.Delivery.fail(o.Verdict, Invalid("the delivery did not come from a consumer"))
			o.Delivery.end(o.Verdict, o.Err)
			continue
		}
		if len(pending) > 0 && pending[0].Delivery.settler != o.Delivery.settler {
			flush()
		}
		pending, index = append(pending, Outcome{Delivery: o.Delivery, Verdict: o.Verdict}), append(index, i)
	}
	flush()
	if !slices.ContainsFunc(batch, func(o Outcome) bool { return o.Err != nil }) {
		return nil
	}
	errs := make([]error, len(batch))
	for i := range batch {
		errs[i] = batch[i].Err
	}
	return NewBatchError(errs)
}
