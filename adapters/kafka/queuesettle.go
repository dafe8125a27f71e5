package kafka

import (
	"context"
	"time"

	"github.com/queuestream/broker"
)

// SettleOne does what broker.Settler promises.
func (c *Consumer) SettleOne(ctx context.Context, d *broker.Delivery, v broker.Verdict) error {
	batch := []broker.Outcome{{Delivery: d, Verdict: v}}
	c.Settle(ctx, batch)
	return batch[0].Err
}

// Settle does what broker.Settler promises: one request to each broker, and
// before it one batch of copies where a message goes to another topic (a
// delay, a dead letter). A copy is confirmed before its message is removed.
func (c *Consumer) Settle(ctx context.Context, batch []broker.Outcome) {
	locks := make([]*shareLock, len(batch))
	kinds := make([]int8, len(batch))
	var outs []copyOut
	var index []int
	for i := range batch {
		var out *copyOut
		locks[i], kinds[i], out, batch[i].Err = c.plan(ctx, &batch[i])
		if out != nil && batch[i].Err == nil {
			outs, index = append(outs, *out), append(index, i)
		}
	}
	if len(outs) > 0 {
		for j, err := range c.q.b.send(ctx, outs) {
			batch[index[j]].Err = err
		}
	}
	c.acknowledge(ctx, batch, locks, kinds)
	for i := range batch {
		o := &batch[i]
		if o.Err != nil {
			o.Err = fail(o.Verdict.Kind.String(), c.q.name, o.Err)
		}
	}
}

// plan decides what a verdict means: which acknowledgement, after which copy.
func (c *Consumer) plan(ctx context.Context, o *broker.Outcome) (*shareLock, int8, *copyOut, error) {
	d, v := o.Delivery, &o.Verdict
	if err := broker.ContextError(ctx); err != nil {
		return nil, 0, nil, err
	}
	if err := broker.ValidateVerdict(v, &c.q.caps); err != nil {
		return nil, 0, nil, err
	}
	c.mu.Lock()
	l := c.locks[d.Token()]
	c.mu.Unlock()
	if l == nil || &l.d != d {
		return nil, 0, nil, broker.ErrLeaseLost
	}
	switch v.Kind {
	case broker.VerdictAck:
		return l, ackAccept, nil, nil
	case broker.VerdictExtend:
		return l, ackRenew, nil, nil
	case broker.VerdictReject:
		out := c.q.deadLetter(&d.Message, v.Reason, d.Attempt, d.Time)
		return l, ackReject, &out, nil
	case broker.VerdictNack:
		if c.q.exhausted(d) && !v.Snooze {
			out := c.q.deadLetter(&d.Message, "attempts exhausted", d.Attempt, d.Time)
			return l, ackReject, &out, nil
		}
		return c.planNack(l, v)
	}
	return nil, 0, nil, broker.Invalid("verdict kind %d", v.Kind)
}

func (c *Consumer) planNack(l *shareLock, v *broker.Verdict) (*shareLock, int8, *copyOut, error) {
	d := &l.d
	if v.Delay == 0 && !v.Snooze {
		return l, ackRelease, nil, nil
	}
	out := copyOut{topic: c.q.topic.name, message: &d.Message, attempts: d.Attempt, time: d.Time}
	if v.Snooze {
		out.attempts--
	}
	if v.Delay > 0 {
		out.topic, out.due = c.q.retry.name, time.Now().Add(v.Delay)
	}
	return l, ackAccept, &out, nil
}

// acknowledge sends what has no error yet and waits for the answers.
func (c *Consumer) acknowledge(ctx context.Context, batch []broker.Outcome, locks []*shareLock, kinds []int8) {
	call := &ackCall{done: make(chan struct{})}
	ops := make([]*ackOp, len(batch))
	slab := make([]ackOp, len(batch))
	c.mu.Lock()
	for i := range batch {
		if batch[i].Err == nil {
			call.left++
		}
	}
	if call.left == 0 {
		c.mu.Unlock()
		return
	}
	for i := range batch {
		if batch[i].Err == nil {
			slab[i] = ackOp{lock: locks[i], kind: kinds[i], call: call, lease: c.lease}
			if l := batch[i].Verdict.Lease; l > 0 {
				slab[i].lease = l
			}
			ops[i] = &slab[i]
			c.enqueue(ops[i])
		}
	}
	c.mu.Unlock()
	select {
	case <-call.done:
	case <-ctx.Done():
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, op := range ops {
		switch {
		case op == nil:
		case op.done:
			batch[i].Err = op.err
		case op.sent:
			batch[i].Err = broker.UnknownOutcome(broker.ContextError(ctx))
		default:
			op.done = true // it will not be sent
			batch[i].Err = broker.ContextError(ctx)
		}
	}
}
