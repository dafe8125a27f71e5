package sqs

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/queuestream/broker"
)

// SettleOne does what [broker.Settler] says.
func (c *Consumer) SettleOne(ctx context.Context, d *broker.Delivery, v broker.Verdict) error {
	batch := [1]broker.Outcome{{Delivery: d, Verdict: v}}
	c.Settle(ctx, batch[:])
	return batch[0].Err
}

// Settle carries out acknowledgements by DeleteMessageBatch, redeliveries and
// extensions by ChangeMessageVisibilityBatch, and rejections by sending to the
// dead-letter queue and then deleting. Failed entries are tried again until
// ctx or the lease ends.
func (c *Consumer) Settle(ctx context.Context, batch []broker.Outcome) {
	var deletes, extensions, changes, moves plan
	for i := range batch {
		o := &batch[i]
		o.Err = c.plan(o, i, &deletes, &extensions, &changes, &moves)
	}
	if ended := broker.ContextError(ctx); ended != nil {
		for _, p := range []*plan{&deletes, &extensions, &changes, &moves} {
			for j, i := range p.at {
				batch[i].Err = ended
				p.items[j].end()
			}
		}
		c.finish(batch)
		return
	}
	s := c.q.settles
	deletes.set(batch, s.many(ctx, s.deletes, deletes.items, deletes.leases))
	start := time.Now()
	extensions.set(batch, s.many(ctx, s.changes, extensions.items, extensions.leases))
	for j, i := range extensions.at {
		if o := &batch[i]; o.Err == nil {
			o.Delivery.SetLease(start.Add(time.Duration(extensions.items[j].seconds) * time.Second))
		}
	}
	changes.set(batch, s.many(ctx, s.changes, changes.items, changes.leases))
	c.move(ctx, batch, &moves)
	c.finish(batch)
}

// A plan is what one kind of request has to carry out of a batch.
type plan struct {
	at     []int // of the batch
	items  []settlement
	leases []time.Time
	copies []copied
}

func (p *plan) add(i int, h *hold, s settlement) {
	s.receipt = h.receipt
	p.at = append(p.at, i)
	p.items = append(p.items, s)
	p.leases = append(p.leases, h.d.LeaseExpires())
}

func (p *plan) set(batch []broker.Outcome, errs []error) {
	for j, err := range errs {
		batch[p.at[j]].Err = err
	}
}

// plan sorts one outcome into the requests, or refuses it.
func (c *Consumer) plan(o *broker.Outcome, i int, deletes, extensions, changes, moves *plan) error {
	d, v := o.Delivery, &o.Verdict
	if err := broker.ValidateVerdict(v, &c.q.caps); err != nil {
		return err
	}
	h, err := c.settling(d, v.Kind != broker.VerdictExtend)
	if err != nil {
		return err
	}
	left := maxLease - time.Since(h.since) // SQS counts 12 h from the receive
	switch v.Kind {
	case broker.VerdictAck:
		deletes.add(i, &h, settlement{})
	case broker.VerdictExtend:
		lease := v.Lease
		if lease == 0 {
			lease = c.lease
		}
		if lease > left {
			return broker.Unsupported("extend by %v: SQS holds a message for %v in all, of which %v are left",
				lease, maxLease, max(0, left.Truncate(time.Second)))
		}
		s, ok := c.extending(d, seconds(lease))
		if !ok {
			return broker.ErrSettled
		}
		extensions.add(i, &h, s)
	case broker.VerdictReject:
		moves.add(i, &h, settlement{})
		moves.copies = append(moves.copies, c.copyOf(&h, v.Reason))
	case broker.VerdictNack:
		limit := c.q.caps.MaxAttempts
		switch {
		case limit > 0 && d.Attempt >= limit && c.q.dead != nil:
			moves.add(i, &h, giveAway(&h, v.Delay)) // if the dead-letter queue refuses it
			moves.copies = append(moves.copies, c.copyOf(&h, spentReason(d.Attempt)))
		case v.Delay <= left:
			changes.add(i, &h, giveAway(&h, v.Delay))
		case c.q.t.fifo:
			return broker.Unsupported("nack with a delay of %v: SQS holds a message for %v in all, of which %v are left",
				v.Delay, maxLease, max(0, left.Truncate(time.Second)))
		default: // beyond what visibility can do: a copy for later
			cp := c.copyOf(&h, "")
			cp.r.due = time.Now().Add(v.Delay)
			cp.r.attempt++ // the next delivery's, from which the copy's own first is taken off
			moves.add(i, &h, settlement{})
			moves.copies = append(moves.copies, cp)
		}
	}
	return nil
}

// giveAway makes what is held visible after delay.
func giveAway(h *hold, delay time.Duration) settlement {
	return settlement{receipt: h.receipt, seconds: seconds(delay), release: true, after: h.kept}
}

func (c *Consumer) copyOf(h *hold, reason string) copied {
	return copied{
		r:       received{Message: h.d.Message, attempt: h.d.Attempt, time: h.d.Time, lock: h.lock},
		receipt: h.receipt,
		until:   h.d.LeaseExpires(),
		reason:  reason,
		count:   h.d.Attempt,
	}
}

// move carries out rejections and long delays. Where the dead-letter queue
// refuses a message that was only nacked, the nack is carried out: the
// service's own redrive policy then moves it.
func (c *Consumer) move(ctx context.Context, batch []broker.Outcome, p *plan) {
	var dead, later, nacked plan
	for j, i := range p.at {
		to := &dead
		if !p.copies[j].r.due.IsZero() {
			to = &later
		}
		to.at, to.items, to.copies = append(to.at, i), append(to.items, p.items[j]), append(to.copies, p.copies[j])
	}
	if len(later.at) > 0 {
		later.set(batch, c.q.postpone(ctx, later.copies))
	}
	if len(dead.at) == 0 {
		return
	}
	dead.set(batch, c.q.bury(ctx, dead.copies))
	for j, i := range dead.at {
		o := &batch[i]
		if o.Err != nil && o.Verdict.Kind == broker.VerdictNack && !errors.Is(o.Err, broker.ErrLeaseLost) && ctx.Err() == nil {
			c.q.b.log.WarnContext(ctx, "sqs: dead-lettering failed; giving the message back instead",
				"queue", c.q.t.name, "id", o.Delivery.ID, "error", o.Err)
			nacked.at = append(nacked.at, i)
			nacked.items = append(nacked.items, dead.items[j])
			nacked.leases = append(nacked.leases, dead.copies[j].until)
		}
	}
	s := c.q.settles
	nacked.set(batch, s.many(ctx, s.changes, nacked.items, nacked.leases))
}

// finish tells the inbox what became of each, and wraps the errors.
func (c *Consumer) finish(batch []broker.Outcome) {
	for i := range batch {
		o := &batch[i]
		extend := o.Verdict.Kind == broker.VerdictExtend
		lost := errors.Is(o.Err, broker.ErrLeaseLost)
		if o.Err != nil && !lost && !extend {
			c.undecided(o.Delivery)
		}
		if lost || o.Err == nil && !extend {
			c.drop(o.Delivery)
			if lost || o.Verdict.Kind == broker.VerdictNack {
				c.expect(o.Delivery.GroupID, o.Verdict.Delay)
				c.inbox.Undo(o.Delivery)
			} else {
				c.settled(o.Delivery.GroupID)
				c.inbox.Done(o.Delivery)
			}
		}
		o.Err = fail(o.Verdict.Kind.String(), c.q.t.name, o.Err)
	}
	if c.q.t.fifo && c.inbox.Ready() > 0 { // what waited for its group
		c.watchUnread()
	}
}

// spentReason is why a message is dead-lettered after n deliveries.
func spentReason(n int) string { return fmt.Sprintf("delivered %d times, the most allowed", n) }
