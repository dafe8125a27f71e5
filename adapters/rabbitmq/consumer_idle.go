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

// A relaxation asks for the end of a subscription.
type relaxation struct {
	drain bool
	done  chan struct{}
}

// relax ends the subscription, or waits until ctx ends. To drain, it is kept of a
// shard: that is left when all that is in hand is settled.
func (l *lane) relax(ctx context.Context, drain bool) {
	if drain && l.shard {
		return
	}
	r := relaxation{drain: drain, done: make(chan struct{})}
	select {
	case l.idle <- r:
	case <-ctx.Done():
		return
	}
	select {
	case <-r.done:
	case <-ctx.Done():
	}
}

// unsubscribe lets go of the queue while nobody receives and, where there are
// groups, nothing is open, so that an idle consumer keeps no messages, and no
// shards, from others. To drain, it lets go in any case.
func (l *lane) unsubscribe(s *session, drain bool) error {
	c := l.c
	c.mu.Lock()
	busy := c.receiving > 0
	c.mu.Unlock()
	switch {
	case s.tag == "", !drain && busy:
		return nil
	case !drain && c.ordered() && c.waiting(true) != nil:
		return nil
	case l.shard:
		return errIdle
	}
	_, err := call(c.ctx, func() (struct{}, error) {
		s.rpc.Lock()
		defer s.rpc.Unlock()
		if err := s.ch.Cancel(s.tag, false); err != nil {
			return struct{}{}, err
		}
		s.fetches.Wait() // what was on its way is in the inbox
		s.tag = ""
		return struct{}{}, nil
	}, nil)
	return err
}

// leave ends the subscription and the channel, behind the acknowledgements: a
// channel that closes at once may overtake them on the way to the queue, and the
// messages come again (seen on 4.0.5 with quorum queues). Cancelling waits for
// the queue; so does one more consumer of a shard, which never becomes active.
// s.rpc is held.
func (l *lane) leave(s *session) error {
	tag := s.tag
	if tag != "" && l.shard {
		tag = broker.NewID()
		if _, err := s.ch.Consume(l.queue, tag, false, false, false, false, amqp.Table{"x-priority": lastPriority}); err != nil {
			return err
		}
	}
	if tag != "" {
		if err := s.ch.Cancel(tag, false); err != nil {
			return err
		}
	}
	return s.ch.Close()
}

// lastPriority is below that of every consumer that receives.
const lastPriority = int32(-1)

// letGo leaves the queue to others, with what was prefetched, if anything was.
func (l *lane) letGo(s *session, prefetched bool) error {
	c := l.c
	if c.ordered() && prefetched {
		return errIdle
	}
	err := l.unsubscribe(s, false)
	if err != nil || c.ordered() || s.tag != "" || c.inbox.Len() == 0 {
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
