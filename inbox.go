package broker

import (
	"context"
	"sync"
	"time"

	"github.com/queuestream/broker/internal/clock"
)

// An Inbox stands between an adapter's fetching and [Consumer].Receive. It
// keeps the group gate: of the deliveries of a group it hands out one, in the
// order of Put, and the next once the adapter says what became of that one
// (Done or Undo). Deliveries without a group pass freely. It is safe for
// concurrent use, has no goroutine, and allocates for groups alone.
type Inbox struct {
	giveBack func([]*Delivery)

	mu      sync.Mutex
	ready   []*Delivery // from head on
	head    int
	waiting int // behind an open one of their group
	groups  map[string]*inboxGroup
	err     error
	closed  bool
	wake    chan struct{} // a token while something is ready
	taken   chan struct{} // closed and dropped when the buffer shrinks; nil: nobody waits for that
	wants   []int         // max of each Receive that waits, in order
	onWait  func()
}

type inboxGroup struct {
	open    *Delivery
	waiting []*Delivery
}

// NewInbox returns an Inbox. giveBack is called, outside all locks, with
// deliveries that were never handed out and must return to the broker, since
// an earlier one of their group will be redelivered first.
func NewInbox(giveBack func([]*Delivery)) *Inbox {
	return &Inbox{
		giveBack: giveBack,
		groups:   map[string]*inboxGroup{},
		wake:     make(chan struct{}, 1),
	}
}

// Put hands deliveries to the inbox in the order in which the broker gave
// them. After Close they are given back at once.
func (b *Inbox) Put(ds ...*Delivery) {
	var back []*Delivery
	b.mu.Lock()
	if b.closed {
		back = ds
	} else {
		for _, d := range ds {
			back = b.put(d, back)
		}
		b.signal()
	}
	b.mu.Unlock()
	b.back(back)
}

func (b *Inbox) put(d *Delivery, back []*Delivery) []*Delivery {
	if d.GroupID == "" {
		b.ready = append(b.ready, d)
		return back
	}
	g := b.groups[d.GroupID]
	if g != nil && !expired(g.open) {
		g.waiting = append(g.waiting, d)
		b.waiting++
		return back
	}
	if g != nil { // the open one was lost: what waits behind it comes after its redelivery
		back = append(back, g.waiting...)
		b.waiting -= len(g.waiting)
	}
	b.groups[d.GroupID] = &inboxGroup{open: d}
	b.ready = append(b.ready, d)
	return back
}

// Receive does what [Consumer].Receive promises.
func (b *Inbox) Receive(ctx context.Context, max int) ([]*Delivery, error) {
	if max <= 0 {
		return nil, Invalid("max %d: want at least 1", max)
	}
	waits := false
	for {
		if err := ContextError(ctx); err != nil {
			b.pass(max, waits)
			return nil, err
		}
		ds, err := b.take(max, waits)
		if ds != nil || err != nil {
			return ds, err
		}
		if waits = true; b.onWait != nil {
			b.onWait()
		}
		select {
		case <-ctx.Done():
		case <-b.wake:
		}
	}
}

// pass hands on a token that was taken and not used.
func (b *Inbox) pass(max int, waits bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.want(max, waits, false)
	b.signal()
}

// take returns what is ready. waits: this Receive has found nothing before.
func (b *Inbox) take(max int, waits bool) ([]*Delivery, error) {
	var back []*Delivery
	defer func() { b.back(back) }()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		b.want(max, waits, false)
		b.signal()
		return nil, b.err
	}
	var out []*Delivery
	shrunk := false
	for b.head < len(b.ready) && len(out) < max {
		d := b.ready[b.head]
		b.ready[b.head] = nil
		b.head++
		shrunk = true
		if expired(d) {
			back = append(back, b.undo(d)...)
			continue
		}
		if out == nil {
			out = make([]*Delivery, 0, min(max, len(b.ready)-b.head+1))
		}
		out = append(out, d)
	}
	if b.head == len(b.ready) {
		b.ready, b.head = b.ready[:0], 0
	} else if b.head > 1024 && b.head > len(b.ready)/2 {
		n := copy(b.ready, b.ready[b.head:])
		clear(b.ready[n:])
		b.ready, b.head = b.ready[:n], 0
	}
	if shrunk {
		b.shrunk()
	}
	b.want(max, waits, out == nil && b.err == nil)
	if out == nil && b.err != nil {
		b.signal()
		return nil, b.err
	}
	b.signal()
	return out, nil
}

// Done tells that d is settled for good: the next of its group may go out.
func (b *Inbox) Done(d *Delivery) {
	if d.GroupID == "" {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	g := b.groups[d.GroupID]
	if g == nil || g.open != d {
		return
	}
	if len(g.waiting) == 0 {
		delete(b.groups, d.GroupID)
		return
	}
	g.open, g.waiting[0] = g.waiting[0], nil // done with, it is not kept
	g.waiting = g.waiting[1:]
	b.waiting--
	b.ready = append(b.ready, g.open)
	b.signal()
}

// Undo tells that d will be redelivered: what waited behind it is given back,
// and its group is free.
func (b *Inbox) Undo(d *Delivery) {
	if d.GroupID == "" {
		return
	}
	b.mu.Lock()
	back := b.undo(d)
	b.mu.Unlock()
	b.back(back)
}

func (b *Inbox) undo(d *Delivery) []*Delivery {
	g := b.groups[d.GroupID]
	if d.GroupID == "" || g == nil || g.open != d {
		return nil
	}
	delete(b.groups, d.GroupID)
	b.waiting -= len(g.waiting)
	if len(g.waiting) > 0 {
		b.shrunk()
	}
	return g.waiting
}

// Len returns how many deliveries were put and not handed out yet.
func (b *Inbox) Len() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.len()
}

// Ready returns how many of those Receive may return at once; the others wait
// for an earlier one of their group.
func (b *Inbox) Ready() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.ready) - b.head
}

func (b *Inbox) len() int { return len(b.ready) - b.head + b.waiting }

// WaitBelow blocks until Len is below n. It returns ctx's error, or ErrClosed
// after Close. While it waits it gives back what stands behind a delivery that
// was lost without anyone saying so: nothing would ever free it.
func (b *Inbox) WaitBelow(ctx context.Context, n int) error {
	var timer *time.Timer
	for {
		b.mu.Lock()
		var back []*Delivery
		if !b.closed && b.len() >= n {
			back = b.sweep()
		}
		l, closed, check := b.len(), b.closed, b.waiting > 0
		if b.taken == nil && l >= n {
			b.taken = make(chan struct{})
		}
		taken := b.taken
		b.mu.Unlock()
		b.back(back)
		switch {
		case closed:
			return ErrClosed
		case l < n:
			return nil
		}
		var tick <-chan time.Time
		if check {
			if timer == nil {
				timer = time.NewTimer(sweepInterval)
				defer timer.Stop()
			} else {
				timer.Reset(sweepInterval)
			}
			tick = timer.C
		}
		select {
		case <-ctx.Done():
			return ContextError(ctx)
		case <-taken:
		case <-tick:
		}
	}
}

const sweepInterval = time.Second

// Sweep gives back what stands behind a delivery that was lost without anyone
// saying so; an adapter that does not use WaitBelow calls it now and then.
// It also drops what is ready and can no longer be delivered.
func (b *Inbox) Sweep() {
	b.mu.Lock()
	back := append(b.drop(), b.sweep()...)
	b.mu.Unlock()
	b.back(back)
}

// sweep frees the groups whose open delivery is lost and returns what waited.
func (b *Inbox) sweep() []*Delivery {
	var back []*Delivery
	for _, g := range b.groups {
		if len(g.waiting) > 0 && expired(g.open) {
			back = append(back, b.undo(g.open)...)
		}
	}
	return back
}

// SetErr makes Receive return err whenever nothing is ready, until SetErr(nil).
func (b *Inbox) SetErr(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.closed {
		b.err = err
		b.signal()
	}
}

// Close makes Receive return err (nil: ErrClosed) and returns everything that
// was not handed out, which the adapter gives back to the broker.
func (b *Inbox) Close(err error) []*Delivery {
	if err == nil {
		err = ErrClosed
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil
	}
	b.closed, b.err = true, err
	rest := b.ready[b.head:]
	for _, g := range b.groups {
		rest = append(rest, g.waiting...)
	}
	b.ready, b.head, b.waiting, b.groups = nil, 0, 0, nil
	b.shrunk()
	b.signal()
	return rest
}

// signal leaves a token for one receiver while there is something to see.
func (b *Inbox) signal() {
	if b.head < len(b.ready) || b.err != nil {
		select {
		case b.wake <- struct{}{}:
		default:
		}
	}
}

func (b *Inbox) shrunk() {
	if b.taken != nil {
		close(b.taken)
		b.taken = nil
	}
}

func (b *Inbox) back(ds []*Delivery) {
	if len(ds) > 0 && b.giveBack != nil {
		b.giveBack(ds)
	}
}

// expired tells whether nothing will come of d any more.
func expired(d *Delivery) bool {
	if d.state.Load() == stateLost {
		return true
	}
	ns := d.lease.Load()
	return ns != 0 && clock.Now() >= ns && d.state.Load() == stateOpen
}
