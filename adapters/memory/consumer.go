package memory

import (
	"context"
	"errors"
	"time"

	"github.com/queuestream/broker"
)

// A Consumer receives from a queue. It is safe for concurrent use.
type Consumer struct {
	h     *Queue
	q     *queue
	lease time.Duration // 0: none

	// Guarded by q.mu.
	open  int // deliveries
	err   error
	spare *waiter
	idle  chan struct{} // closed when open becomes 0, if somebody waits
}

// Name returns the queue's name.
func (c *Consumer) Name() string { return c.q.name }

// Adapter returns the name that errors carry.
func (c *Consumer) Adapter() string { return adapter }

// Receive does what broker.Consumer promises. Expired messages are never
// delivered.
func (c *Consumer) Receive(ctx context.Context, max int) ([]*broker.Delivery, error) {
	ds, err := c.receive(ctx, max)
	if err != nil {
		return nil, opError("receive", c.q.name, err)
	}
	return ds, nil
}

func (c *Consumer) receive(ctx context.Context, max int) ([]*broker.Delivery, error) {
	if max <= 0 {
		return nil, broker.Invalid("max %d: want at least 1", max)
	}
	if ctx.Err() != nil {
		return nil, broker.ContextError(ctx)
	}
	q := c.q
	if f := q.srv.faults.Load(); f != nil {
		if err := f.call(ctx, c); err != nil {
			return nil, err
		}
		if f.hit(f.Disconnect) {
			c.h.b.Disconnect()
		}
	}
	var w *waiter
	for {
		if q.fed.Load() {
			for _, f := range q.sources() {
				f.refresh()
			}
		}
		var t int64
		if c.lease > 0 {
			t = now()
		}
		q.mu.Lock()
		if q.fresh.n < max && q.in.some.Load() {
			q.absorb(true)
		}
		if q.timed() {
			if t == 0 {
				t = now()
			}
			q.advance(t)
		}
		var one [1]*entry
		ds, es, err := c.take(max, t, one[:0])
		if ds != nil || err != nil {
			if w != nil {
				c.spare = w
			}
			q.arm(t)
			q.unlock()
			c.fill(ds, es, t)
			return ds, err
		}
		if w == nil {
			if w = c.spare; w == nil {
				w = newWaiter()
			}
			c.spare = nil
		}
		q.receivers.push(w)
		q.parked.Add(1)
		q.absorb(true) // from publishers that did not see that somebody waits
		q.arm(t)
		feeders := q.feeders
		q.unlock()
		for _, f := range feeders {
			f.watch()
		}
		select {
		case <-w.token:
		case <-ctx.Done():
			c.unpark(w)
			return nil, broker.ContextError(ctx)
		}
		if f := q.srv.faults.Load(); f != nil {
			if err := f.wait(ctx, c, nil); err != nil {
				c.unpark(w)
				return nil, err
			}
		}
	}
}

func (c *Consumer) connection() *Broker { return c.h.b }

func (c *Consumer) ended() error {
	c.q.mu.Lock()
	defer c.q.mu.Unlock()
	return c.err
}

// fill completes deliveries of a time: it sets their leases and copies what the
// entries hold; nil: the delivery was made ahead. q.mu is not held: nobody
// changes that while it may be copied.
func (c *Consumer) fill(ds []*broker.Delivery, es []*entry, now int64) {
	for i, d := range ds {
		if c.lease > 0 {
			d.SetLease(time.Unix(0, now+int64(c.lease)))
		}
		if es[i] != nil {
			es[i].fill(d)
		}
	}
}

// take returns up to max deliveries, and in es the entries to fill them from;
// nil: it is full. q.mu is held.
func (c *Consumer) take(max int, now int64, es []*entry) ([]*broker.Delivery, []*entry, error) {
	q := c.q
	switch {
	case c.err != nil:
		return nil, nil, c.err
	case q.deleted.Load():
		return nil, nil, broker.ErrNotFound
	}
	var ds []*broker.Delivery
	var room *slab
	for len(ds) < max {
		e := q.next()
		if e == nil {
			break
		}
		s, from := e.attempt, e
		if s != nil {
			from = nil
		} else {
			if room == nil {
				room = q.srv.slab()
			}
			s = room.single(e)
			s.d.Body = room.body(len(e.body))
		}
		if ds == nil {
			ds = s.ds[:0]
			if n := min(int64(max), q.count[ready]); n > 1 {
				ds, es = make([]*broker.Delivery, 0, n), make([]*entry, 0, n)
			}
		}
		q.hold(e, c, now, s)
		ds, es = append(ds, &s.d), append(es, from)
		c.duplicate(e, now)
	}
	if room != nil {
		q.srv.slabs.Put(room)
	}
	return ds, es, nil
}

// duplicate stores a second copy of e where the faults say so. q.mu is held.
func (c *Consumer) duplicate(e *entry, now int64) {
	f := c.q.srv.faults.Load()
	if f == nil || e.group() != nil || !f.hit(f.Duplicate) {
		return
	}
	m := e.stored()
	n := newEntry(&m, e.at)
	n.attempts, n.expires, n.due = e.attempts, e.expires, 0
	c.q.admit(n, now)
}

// unpark ends the wait of w, whose call takes nothing: a token that it got
// goes to another.
func (c *Consumer) unpark(w *waiter) {
	q := c.q
	q.lock()
	if w.queued {
		q.receivers.remove(w)
		q.parked.Add(-1)
		c.spare = w
	} else if q.count[ready] > 0 {
		q.rouse(&q.receivers)
	}
	q.unlock()
}

// watch brings q up to now and arms its timer for somebody who waits for its
// dead letters.
func (q *queue) watch() {
	q.lock()
	t := now()
	q.advance(t)
	q.arm(t)
	q.unlock()
}

// SettleOne applies v to d at once.
func (c *Consumer) SettleOne(ctx context.Context, d *broker.Delivery, v broker.Verdict) error {
	if f := c.q.srv.faults.Load(); f != nil {
		if err := f.call(ctx, (*settling)(c)); err != nil {
			return opError(v.Kind.String(), c.q.name, err)
		}
	}
	return c.settle(ctx, d, v)
}

// settling is a consumer in a verdict, which may come during Shutdown.
type settling Consumer

func (c *settling) connection() *Broker { return c.h.b }

func (c *settling) ended() error {
	c.q.mu.Lock()
	defer c.q.mu.Unlock()
	if c.err != nil && c.open == 0 {
		return broker.ErrLeaseLost
	}
	return nil
}

func (c *Consumer) settle(ctx context.Context, d *broker.Delivery, v broker.Verdict) error {
	if ctx.Err() != nil {
		return opError(v.Kind.String(), c.q.name, broker.ContextError(ctx))
	}
	if v.Kind != broker.VerdictAck {
		if err := broker.ValidateVerdict(&v, &c.h.caps); err != nil {
			return opError(v.Kind.String(), c.q.name, err)
		}
	}
	c.q.mu.Lock()
	err := c.apply(d, &v)
	c.q.unlock()
	return opError(v.Kind.String(), c.q.name, err)
}

// Settle applies a batch of verdicts, each on its own.
func (c *Consumer) Settle(ctx context.Context, batch []broker.Outcome) {
	f := c.q.srv.faults.Load()
	var err error
	if f != nil {
		err = f.call(ctx, (*settling)(c))
	}
	for i := range batch {
		o := &batch[i]
		switch {
		case err != nil:
			o.Err = opError(o.Verdict.Kind.String(), c.q.name, err)
		case f != nil && f.hit(f.PartialBatch):
			o.Err = opError(o.Verdict.Kind.String(), c.q.name, errInjected)
		default:
			o.Err = c.settle(ctx, o.Delivery, o.Verdict)
		}
	}
}

// apply carries out one verdict. q.mu is held.
func (c *Consumer) apply(d *broker.Delivery, v *broker.Verdict) error {
	q := c.q
	slot := d.Token()
	if slot >= uint64(len(q.slots)) || q.slots[slot] == nil || &q.slots[slot].attempt.d != d || q.slots[slot].holder != c {
		return broker.ErrLeaseLost
	}
	e := q.slots[slot]
	switch v.Kind {
	case broker.VerdictAck:
		if f := q.srv.faults.Load(); f != nil && f.hit(f.DropAck) {
			if e.due == 0 {
				q.giveBack(e, now(), 0, false, "an acknowledgement was dropped")
			}
			return nil
		}
		q.finish(e)
		q.recycle(e)
		return nil
	case broker.VerdictNack:
		t := now()
		q.giveBack(e, t, v.Delay, v.Snooze, "not acknowledged")
		q.arm(t)
	case broker.VerdictReject:
		if c.h.policy.dead.deleted.Load() {
			return errors.Join(broker.ErrNotFound, errDeadLetterGone)
		}
		q.burySoon(e, v.Reason)
	case broker.VerdictExtend:
		lease := v.Lease
		if lease == 0 {
			lease = c.lease
		}
		t := now()
		until := t + int64(lease)
		e.due = until
		q.schedule(e, until)
		d.SetLease(time.Unix(0, until))
		q.arm(t)
	}
	return nil
}

var errDeadLetterGone = errors.New("the dead-letter queue was deleted")

// Close gives back what is unsettled, at once. It may be called again.
func (c *Consumer) Close() error {
	c.h.mu.Lock()
	delete(c.h.consumers, c)
	c.h.mu.Unlock()
	c.shut(broker.ErrClosed)
	return nil
}

// stop makes Receive return err from now on.
func (c *Consumer) stop(err error) {
	c.q.mu.Lock()
	c.stopLocked(err)
	c.q.unlock()
	c.stopped()
}

func (c *Consumer) stopLocked(err error) {
	if c.err == nil {
		c.q.consumers--
	}
	c.err = err
	for c.q.rouse(&c.q.receivers) { // whoever is not closed parks again
	}
}

// stopped tells those who care that c stopped: whoever waits in a Pause, and
// the queues whose dead letters it waited for.
func (c *Consumer) stopped() {
	c.q.srv.wake()
	for _, f := range c.q.sources() {
		f.mu.Lock()
		f.disarm()
		f.mu.Unlock()
	}
}

// shut stops c and gives back what it holds.
func (c *Consumer) shut(err error) {
	c.q.mu.Lock()
	c.stopLocked(err)
	c.returnHeld("the consumer closed")
	c.q.disarm()
	c.q.unlock()
	c.stopped()
}

// returnHeld gives everything back that c holds. q.mu is held.
func (c *Consumer) returnHeld(why string) {
	t := now()
	for i := 0; c.open > 0 && i < len(c.q.slots); i++ {
		if e := c.q.slots[i]; e != nil && e.holder == c {
			e.attempt.d.Lose()
			c.q.giveBack(e, t, 0, false, why)
		}
	}
}

// drain waits until nothing is held or ctx ends.
func (c *Consumer) drain(ctx context.Context) error {
	q := c.q
	q.mu.Lock()
	if c.open == 0 {
		q.mu.Unlock()
		return nil
	}
	if c.idle == nil {
		c.idle = make(chan struct{})
	}
	idle := c.idle
	q.parked.Add(1)
	q.arm(now())
	q.unlock()
	defer q.parked.Add(-1)
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return broker.ContextError(ctx)
	}
}
