package rabbitmq

import (
	"context"
	"time"

	"github.com/queuestream/broker"
)

// idleAfter is how long a consumer that neither receives nor has any delivery
// stays subscribed. One that has prefetched some, of which the program holds
// none, passes them on after keepLooks times as long.
const (
	idleAfter = 200 * time.Millisecond
	keepLooks = 10
)

// letGo leaves the queue to others, with what was prefetched.
func (c *consumer) letGo(s *session) error {
	if c.q.info.shards > 0 && c.inbox.Len() > 0 {
		return errIdle
	}
	if err := c.unsubscribe(s, false); err != nil || s.tags != nil || c.inbox.Len() == 0 {
		return err
	}
	return c.passOn()
}

// passOn puts what was prefetched for nobody back into the queue, as copies,
// like a snooze: to requeue it would cost each message an attempt.
func (c *consumer) passOn() error {
	ctx, cancel := context.WithTimeout(c.ctx, c.q.b.o.CloseTimeout)
	defer cancel()
	now, stop := context.WithTimeout(ctx, relaxTime) // a Receive may have been faster
	defer stop()
	ds, err := c.inbox.Receive(now, max(1, c.inbox.Len()))
	if err != nil {
		return nil //nolint:nilerr // there is nothing left to pass on
	}
	batch := make([]broker.Outcome, len(ds))
	for i, d := range ds {
		batch[i] = broker.Outcome{Delivery: d, Verdict: broker.Verdict{Kind: broker.VerdictNack, Snooze: true}}
	}
	c.Settle(ctx, batch)
	for i := range batch {
		if batch[i].Err != nil {
			return errIdle
		}
	}
	return nil
}
