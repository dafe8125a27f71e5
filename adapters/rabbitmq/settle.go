package rabbitmq

import (
	"context"
	"sync"
	"time"

	"github.com/queuestream/broker"
)

const reasonAttempts = "attempts exhausted"

// maxHold is the longest delay of a group's redelivery: its holder keeps it,
// within half of the broker's default consumer_timeout.
const maxHold = 15 * time.Minute

// SettleOne implements [broker.Settler].
func (c *consumer) SettleOne(ctx context.Context, d *broker.Delivery, v broker.Verdict) error {
	batch := []broker.Outcome{{Delivery: d, Verdict: v}}
	c.Settle(ctx, batch)
	return batch[0].Err
}

// Settle implements [broker.Settler]. Verdicts that store a message elsewhere
// publish all of them at once and acknowledge what was confirmed.
func (c *consumer) Settle(ctx context.Context, batch []broker.Outcome) {
	var copies []copyOf
	var index []int
	for i := range batch {
		o := &batch[i]
		if o.Err = broker.ValidateVerdict(&o.Verdict, &c.q.caps); o.Err != nil {
			o.Err = fail(o.Verdict.Kind.String(), c.q.info.name, o.Err)
			continue
		}
		if cp, ok := c.copyFor(o.Delivery, &o.Verdict); ok {
			copies, index = append(copies, cp), append(index, i)
			continue
		}
		o.Err = c.decide(o.Delivery, &o.Verdict)
	}
	if len(copies) == 0 {
		return
	}
	c.q.b.send(ctx, c.q.window, copies)
	for j, i := range index {
		o := &batch[i]
		if o.Err = copies[j].err; o.Err == nil {
			o.Err = c.decide(o.Delivery, &broker.Verdict{Kind: broker.VerdictAck})
		}
		o.Err = fail(o.Verdict.Kind.String(), c.q.info.name, o.Err)
	}
}

// copyFor returns the message that must be stored elsewhere before d may be
// acknowledged, if the verdict asks for one.
func (c *consumer) copyFor(d *broker.Delivery, v *broker.Verdict) (copyOf, bool) {
	exhausted := v.Kind == broker.VerdictNack && !v.Snooze && c.exhausted(d)
	switch {
	case v.Kind == broker.VerdictReject:
		return c.deadLetter(d, v.Reason), true
	case exhausted:
		return c.deadLetter(d, reasonAttempts), true
	case v.Kind != broker.VerdictNack || c.holds(d):
		return copyOf{}, false
	case v.Delay == 0 && !v.Snooze && !c.q.info.classic:
		return copyOf{}, false // the quorum queue counts the attempt
	}
	cp := copyOf{m: d.Message, to: &c.q.info, attempt: d.Attempt, now: time.Now()}
	if v.Snooze {
		cp.attempt--
	}
	if d.TTL > 0 && !d.Time.IsZero() {
		cp.expires = d.Time.Add(d.TTL)
	}
	cp.m.Delay, cp.m.TTL = v.Delay, 0
	return cp, true
}

func (c *consumer) exhausted(d *broker.Delivery) bool {
	return c.q.info.maxAttempts > 0 && d.Attempt >= c.q.info.maxAttempts && c.q.dead != nil
}

func (c *consumer) deadLetter(d *broker.Delivery, reason string) copyOf {
	now := time.Now()
	m := broker.DeadLetterMessage(d.Message, broker.DeadLetter{
		Reason: reason, Queue: c.q.info.name, Attempts: d.Attempt, Time: now,
	})
	return copyOf{m: m, to: c.q.dead, now: now}
}

// holds tells whether a redelivery of d stays with this consumer: a group's
// successors wait behind it.
func (c *consumer) holds(d *broker.Delivery) bool { return c.ordered() && d.GroupID != "" }

// decide settles what needs nothing stored elsewhere.
func (c *consumer) decide(d *broker.Delivery, v *broker.Verdict) error {
	a := c.acksOf(d)
	op := v.Kind.String()
	lost := func() error {
		c.inbox.Undo(d)
		return fail(op, c.q.info.name, broker.ErrLeaseLost)
	}
	if a == nil {
		return lost()
	}
	switch {
	case v.Kind == broker.VerdictNack && c.holds(d):
		if !c.held.hold(a, d, v) {
			return lost()
		}
	case v.Kind == broker.VerdictNack:
		if !a.decide(d.Token(), d.Generation(), true) {
			return lost()
		}
		c.inbox.Undo(d)
	default:
		if !a.decide(d.Token(), d.Generation(), false) {
			return lost()
		}
		c.inbox.Done(d)
	}
	return nil
}

// retire settles a delivery that no program shall see: expired, or delivered
// too often. Without a dead-letter queue an expired one is dropped, which is
// what expiring means.
func (c *consumer) retire(d *broker.Delivery, reason string) {
	if c.q.dead == nil {
		if a := c.acksOf(d); a != nil {
			a.decide(d.Token(), d.Generation(), false)
		}
		return
	}
	copies := []copyOf{c.deadLetter(d, reason)}
	c.q.b.send(c.ctx, c.q.window, copies)
	a := c.acksOf(d)
	if copies[0].err == nil {
		if a != nil {
			a.decide(d.Token(), d.Generation(), false)
		}
		return
	}
	if c.ctx.Err() == nil {
		c.q.b.o.Logger.Error("dead-lettering failed; the message goes back", "adapter", adapterName,
			"queue", c.q.info.name, "id", d.ID, "error", copies[0].err)
	}
	if a != nil { // not at once: it comes again at once
		time.AfterFunc(retireAgain, func() { a.decide(d.Token(), d.Generation(), true) })
	}
}

// retireAgain is how long a message is kept that cannot be dead-lettered.
const retireAgain = time.Second

// holds keep the redeliveries of groups: the broker would put a requeued
// message behind its successors.
type holds struct {
	c *consumer

	// mu orders what enters the inbox: while a group is set back, nothing of
	// it may slip in between.
	mu sync.Mutex

	state    sync.Mutex
	timers   map[*broker.Delivery]*time.Timer
	captured *[]*broker.Delivery
}

func (h *holds) put(d *broker.Delivery) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.c.inbox.Put(d)
}

// hold redelivers d after v.Delay with one more attempt. Until then d stays the
// open one of its group. It reports false when d's session is gone.
func (h *holds) hold(a *acks, d *broker.Delivery, v *broker.Verdict) bool {
	if d.Generation() != a.generation {
		return false
	}
	next := &broker.Delivery{Message: d.Message, Attempt: d.Attempt, Time: d.Time}
	if !v.Snooze {
		next.Attempt++
	}
	next.Bind(h.c, d.Token(), d.Generation())
	if !a.replace(d.Token(), next) {
		return false
	}
	if v.Delay <= 0 {
		h.release(d, next)
		return true
	}
	h.state.Lock()
	defer h.state.Unlock()
	if h.c.drains() { // it would be due after the end
		a.park(d.Token(), d.Generation())
		return true
	}
	if h.timers == nil {
		h.timers = map[*broker.Delivery]*time.Timer{}
	}
	h.timers[d] = time.AfterFunc(v.Delay, func() {
		h.state.Lock()
		_, live := h.timers[d]
		delete(h.timers, d)
		h.state.Unlock()
		if live {
			h.release(d, next)
		}
	})
	return true
}

// release puts next at the head of its group, before what waited behind d.
func (h *holds) release(d, next *broker.Delivery) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var waiting []*broker.Delivery
	h.state.Lock()
	h.captured = &waiting
	h.state.Unlock()
	h.c.inbox.Undo(d)
	h.state.Lock()
	h.captured = nil
	h.state.Unlock()
	h.c.inbox.Put(next)
	h.c.inbox.Put(waiting...)
}

// capture takes what Undo gives back while release runs.
func (h *holds) capture(ds []*broker.Delivery) bool {
	h.state.Lock()
	defer h.state.Unlock()
	if h.captured == nil {
		return false
	}
	*h.captured = append(*h.captured, ds...)
	return true
}

// park ends the delays: what they keep goes back when the session ends.
func (h *holds) park() {
	h.state.Lock()
	defer h.state.Unlock()
	for d, t := range h.timers {
		t.Stop()
		delete(h.timers, d)
		if a := h.c.acksOf(d); a != nil {
			a.park(d.Token(), d.Generation())
		}
	}
}

// stop drops the timers of a session that ended and returns what they held.
func (h *holds) stop(s *session) (waiting []*broker.Delivery) {
	h.state.Lock()
	defer h.state.Unlock()
	for d, t := range h.timers {
		if d.Generation() == s.acks.generation {
			t.Stop()
			delete(h.timers, d)
			waiting = append(waiting, d)
		}
	}
	return waiting
}
