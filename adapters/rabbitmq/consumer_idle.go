package rabbitmq

import (
	"context"
	"errors"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/queuestream/broker"
)

// idleAfter is how long a consumer that neither receives nor has any delivery
// stays subscribed. One that has prefetched some, of which the program holds
// none, passes them on after keepLooks times as long.
const (
	idleAfter = 200 * time.Millisecond
	keepLooks = 10
)

// errIdle ends a session that nobody needs: closing the channel gives back what
// was prefetched, in its order, which counts an attempt before RabbitMQ 4.3. It
// is the only way to leave shards: who cancels a single active consumer makes the
// next one active beside what is delivered, or on its way, and not settled yet.
var errIdle = errors.New("idle")

// unsubscribe lets go of the queue while nobody receives and nothing is open,
// so that an idle consumer keeps no messages, and no shards, from others.
// To drain, it leaves in any case, except from shards: there the session ends
// when all that is in hand is settled.
func (c *consumer) unsubscribe(s *session, drain bool) error {
	c.mu.Lock()
	busy := c.receiving > 0
	c.mu.Unlock()
	shards := c.q.info.shards
	switch {
	case s.tags == nil, !drain && busy:
		return nil
	case !drain && shards > 0 && s.acks.waiting(true) != nil:
		return nil
	}
	// What has no group first, and by itself: it may come while the shards are
	// left, which takes long, and would cost an attempt.
	_, err := call(c.ctx, func() (struct{}, error) {
		s.rpc.Lock()
		defer s.rpc.Unlock()
		for _, t := range s.tags[shards:] {
			if err := s.ch.Cancel(t, false); err != nil {
				return struct{}{}, err
			}
		}
		s.fetches.Wait() // what was on its way is in the inbox
		if s.tags = s.tags[:shards]; shards == 0 {
			s.tags = nil
		}
		return struct{}{}, nil
	}, nil)
	if err == nil && !drain && shards > 0 && s.acks.waiting(true) == nil {
		return errIdle
	}
	return err
}

// leave ends the subscriptions and the channel, behind the acknowledgements: a
// channel that closes at once may overtake them on the way to the queue, and the
// messages come again (seen on 4.0.5 with quorum queues). Cancelling waits for
// the queue; so does one more consumer of a shard, which never becomes active.
// s.rpc is held.
func (c *consumer) leave(s *session) error {
	for i, tag := range s.tags {
		if i < c.q.info.shards {
			tag = broker.NewID()
			if _, err := s.ch.Consume(shardName(c.q.info.name, i), tag, false, false, false, false, amqp.Table{"x-priority": lastPriority}); err != nil {
				return err
			}
		}
		if err := s.ch.Cancel(tag, false); err != nil {
			return err
		}
	}
	return s.ch.Close()
}

// lastPriority is below that of every consumer that receives.
const lastPriority = int32(-1)

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
