package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/queuestream/broker"
)

// A lane receives from one queue in the broker. It holds one channel at a time, a
// session, and shares it with no other lane: the broker serves a channel one call
// at a time, and while a queue without a leader does not answer a subscription,
// nothing else passes on its channel. After 65 s (net_ticktime and 5 s) the broker
// gives up and closes the connection with an internal error (seen on 4.0.5); the
// lane then tries over another one, where that harms only others of its kind.
type lane struct {
	c        *consumer
	queue    string // in the broker
	shard    bool   // with a single active consumer
	prefetch int
	priority int32 // of a shard, random: spreads the shards over consumers
	fetches  sync.WaitGroup
	done     chan struct{} // closed when run has returned
	silent   bool          // the last subscription got no answer

	poke chan struct{}   // look again
	idle chan relaxation // the last Receive ended with nothing

	// By c.mu.
	asks bool  // to be told when the first Receive begins, or the last one ends
	err  error // that does not pass by itself

	mu      sync.Mutex
	count   uint32 // the generation of the session: modulo the number of lanes it is the lane
	session *session
}

// A session is a channel from open to dead.
type session struct {
	ch   *amqp.Channel
	acks *acks
	tag  string // of the subscription; "": none

	rpc       sync.Mutex       // one call at a time: answers carry no number
	fetches   sync.WaitGroup   // of the subscriptions
	closed    chan *amqp.Error // by the broker, or with its connection
	cancelled chan string      // the broker ended the subscription
}

// newLanes makes the lanes of a consumer. Shards divide the prefetch; what has no
// group may fill a quarter, so that a consumer leaves some to others.
func newLanes(c *consumer, prefetch int) []*lane {
	shards := c.q.info.shards
	var ls []*lane
	for i, queue := range c.q.info.queues() {
		l := &lane{c: c, queue: queue, prefetch: prefetch, count: uint32(i), done: make(chan struct{}),
			poke: make(chan struct{}, 1), idle: make(chan relaxation)}
		switch {
		case i < shards:
			l.shard, l.prefetch, l.priority = true, max(1, prefetch/shards), rand.Int32N(1000)
		case shards > 0:
			l.prefetch = max(1, prefetch/4)
		}
		ls = append(ls, l)
	}
	return ls
}

// run keeps a session alive until Close.
func (l *lane) run(s *session) {
	defer close(l.done)
	defer l.waitFetches()
	wait := newBackoff(l.c.q.b.o)
	for s != nil || l.c.ctx.Err() == nil { // a session is ended also when Close came first
		began := time.Now()
		if s == nil {
			var err error
			if s, err = l.open(l.c.ctx); err != nil {
				if l.c.ctx.Err() != nil {
					return
				}
				l.failed(err)
				wait.sleep(l.c.ctx, began)
				continue
			}
			l.setErr(nil)
		}
		err := l.serve(s)
		idle := errors.Is(err, errIdle)
		if err != nil && !idle && l.c.ctx.Err() == nil {
			l.failed(classify(err))
		}
		l.end(s)
		s = nil
		if !idle {
			wait.sleep(l.c.ctx, began)
		}
	}
}

// waitFetches waits for the goroutines of the subscriptions. Where the network
// stalls they end later, with the connection.
func (l *lane) waitFetches() {
	ctx, cancel := context.WithTimeout(context.Background(), l.c.q.b.o.CloseTimeout)
	defer cancel()
	// It can only time out.
	_, _ = call(ctx, func() (struct{}, error) { l.fetches.Wait(); return struct{}{}, nil }, nil)
}

// failed tells waiting Receives what will not pass by itself; the lane goes on
// trying.
func (l *lane) failed(err error) {
	l.c.q.b.o.Logger.Warn("consuming failed", "adapter", adapterName, "queue", l.queue, "error", err)
	if lasting(err) {
		l.setErr(fail("receive", l.c.q.info.name, err))
	}
}

// setErr makes Receive return the first of the lanes' errors, once nothing is
// ready.
func (l *lane) setErr(err error) {
	c := l.c
	c.mu.Lock()
	defer c.mu.Unlock()
	l.err = err
	if i := slices.IndexFunc(c.lanes, func(of *lane) bool { return of.err != nil }); i >= 0 {
		err = c.lanes[i].err
	}
	c.inbox.SetErr(err)
}

// open starts a session.
func (l *lane) open(ctx context.Context) (*session, error) {
	from := l.c.q.b.control
	if l.silent {
		from = l.c.q.b.apart
	}
	g, err := from.get(ctx)
	if err != nil {
		return nil, err
	}
	s, err := call(ctx, func() (*session, error) { return l.openSession(g) }, func(s *session) { l.end(s) })
	if err != nil && ctx.Err() == nil {
		return nil, classify(err)
	}
	return s, err
}

func (l *lane) openSession(g *generation) (*session, error) {
	ch, err := g.conn.Channel()
	if err != nil {
		return nil, err
	}
	if _, err := ch.QueueDeclarePassive(l.queue, true, false, false, false, nil); err != nil {
		return nil, errors.Join(err, closeChannel(ch))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.count += uint32(len(l.c.lanes))
	s := &session{ch: ch, acks: newAcks(ch, l.count, l.prefetch, l.signal)}
	s.closed = ch.NotifyClose(make(chan *amqp.Error, 1))
	s.cancelled = ch.NotifyCancel(make(chan string, 1))
	l.session = s
	return s, nil
}

// acks returns those of the current session, or nil before the first one.
func (l *lane) acks() *acks {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.session == nil {
		return nil
	}
	return l.session.acks
}

// signal makes serve look again.
func (l *lane) signal() {
	select {
	case l.poke <- struct{}{}:
	default:
	}
}

// serve subscribes when a Receive waits, lets go when the consumer is idle, and
// returns when the channel is gone, the broker ended the subscription (its queue
// was deleted), or the consumer is closed.
func (l *lane) serve(s *session) error {
	c := l.c
	look := time.NewTimer(idleAfter) // whether to let go
	look.Stop()
	defer look.Stop()
	looks, since := false, 0 // the timer runs, since that many Receives
	unwanted := 0            // looks in a row that found nothing but prefetched deliveries
	for {
		subscribed := s.tag != ""
		c.mu.Lock()
		receiving, receives, draining := c.receiving > 0, c.receives, c.draining
		l.asks = !subscribed || receiving && !looks
		c.mu.Unlock()
		switch {
		case receiving && !subscribed && !draining:
			_, err := call(c.ctx, func() (struct{}, error) { return struct{}{}, l.subscribe(s) }, nil)
			if err != nil {
				e, ok := errors.AsType[*amqp.Error](err)
				l.silent = ok && e.Code == amqp.InternalError
				return err
			}
			l.silent = false
			continue
		case !receiving && !looks && (subscribed || s.acks.openCount() > 0):
			look.Reset(idleAfter)
			looks, since = true, receives
		}
		select {
		case err := <-s.closed:
			if err != nil {
				return err
			}
			return broker.ErrUnavailable
		case _, ok := <-s.cancelled:
			if !ok { // closed with the channel, of which s.closed tells more
				s.cancelled = nil
				continue
			}
			// The queue may be gone: the next session finds out. Or a delivery was
			// held for too long: RabbitMQ closed the channel for that before 4.3.
			return fmt.Errorf("%w: the broker ended the subscription", broker.ErrUnavailable)
		case <-l.poke:
		case <-look.C:
			looks = false
			c.mu.Lock()
			back := c.receiving > 0 || c.receives != since
			c.mu.Unlock()
			open := c.openCount()
			switch {
			case back, open > c.inbox.Len(): // the program comes back for more
				unwanted = 0
				continue
			case open > 0:
				if unwanted++; unwanted < keepLooks {
					continue
				}
			case c.waiting(true) != nil:
				continue
			}
			if err := l.letGo(s, open > 0); err != nil {
				return err
			}
		case r := <-l.idle:
			err := l.unsubscribe(s, r.drain)
			if errors.Is(err, errIdle) {
				l.end(s)
			}
			close(r.done)
			if err != nil {
				return err
			}
		case <-c.ctx.Done():
			return nil
		}
	}
}

func (l *lane) subscribe(s *session) error {
	s.rpc.Lock()
	defer s.rpc.Unlock()
	if err := broker.ContextError(l.c.ctx); err != nil {
		return err
	}
	if err := s.ch.Qos(l.prefetch, 0, false); err != nil {
		return err
	}
	var args amqp.Table
	if l.shard {
		args = amqp.Table{"x-priority": l.priority}
	}
	tag := broker.NewID()
	in, err := s.ch.Consume(l.queue, tag, false, false, false, false, args)
	if err != nil {
		return err
	}
	s.tag = tag
	s.fetches.Add(1)
	l.fetches.Go(func() {
		defer s.fetches.Done()
		l.fetch(s, in)
	})
	return nil
}

// end closes the session, once. What was open on it is lost to its holders, and
// the broker delivers it again.
func (l *lane) end(s *session) {
	c := l.c
	lost := s.acks.close()
	waiting := c.held.stop(s)
	for _, d := range lost {
		d.Lose()
	}
	if !s.ch.IsClosed() {
		ctx, cancel := context.WithTimeout(context.Background(), c.q.b.o.CloseTimeout)
		defer cancel()
		_, err := call(ctx, func() (struct{}, error) {
			s.rpc.Lock() // a call that was given up may still wait for its answer
			defer s.rpc.Unlock()
			return struct{}{}, l.leave(s)
		}, nil)
		if err != nil {
			c.q.b.o.Logger.Debug("closing a channel failed", "adapter", adapterName, "queue", l.queue, "error", err)
		}
	}
	for _, d := range append(lost, waiting...) {
		c.inbox.Undo(d)
	}
}

func closeChannel(ch *amqp.Channel) error {
	if ch.IsClosed() {
		return nil
	}
	return ch.Close()
}

// fetch moves deliveries of a subscription into the inbox.
func (l *lane) fetch(s *session, in <-chan amqp.Delivery) {
	c := l.c
	for a := range in {
		d := &broker.Delivery{}
		r := decode(&a, d)
		if d.ID == "" {
			d.ID = broker.NewID() // from a client that sets none
		}
		d.Bind(c, a.DeliveryTag, s.acks.generation)
		if !s.acks.add(a.DeliveryTag, d) {
			continue // the broker delivers it again
		}
		switch {
		case !r.expires.IsZero() && !time.Now().Before(r.expires):
			c.retire(d, "expired")
		case c.q.info.maxAttempts > 0 && d.Attempt > c.q.info.maxAttempts && c.q.dead != nil:
			d.Attempt = c.q.info.maxAttempts
			c.retire(d, reasonAttempts)
		default:
			c.held.put(d)
		}
	}
}
