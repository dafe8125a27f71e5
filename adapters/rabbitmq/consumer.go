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

// maxPrefetch is AMQP's limit of a consumer's prefetch count.
const maxPrefetch = 65535

// A consumer holds one channel of the control connection at a time, a session,
// and consumes from the queue, or from all of its shards.
type consumer struct {
	q        *Queue
	prefetch int
	inbox    *broker.Inbox
	ctx      context.Context // ends with Close
	cancel   context.CancelFunc
	done     chan struct{}
	held     holds
	fetches  sync.WaitGroup
	priority []int32 // by shard, random: spreads the shards over consumers

	poke chan struct{}   // a Receive began
	idle chan relaxation // the last Receive ended with nothing

	mu        sync.Mutex
	count     uint32 // of sessions
	receiving int    // calls of Receive that run
	receives  int    // calls of Receive so far
	session   *session
	draining  bool
	closed    chan struct{} // closed by the first Close
}

// A session is a channel from open to dead.
type session struct {
	gen  *generation
	ch   *amqp.Channel
	acks *acks
	tags []string // of the subscriptions, to the first of the queues; nil: none

	rpc       sync.Mutex       // one call at a time: answers carry no number
	fetches   sync.WaitGroup   // of the subscriptions that may be cancelled, so not of shards
	closed    chan *amqp.Error // by the broker, or with its connection
	cancelled chan string      // the broker ended a subscription
}

// Consumer implements [broker.Queue]. A Prefetch above 65535 is refused.
func (q *Queue) Consumer(ctx context.Context, opts *broker.ConsumerOptions) (broker.Consumer, error) {
	c, err := q.consumer(ctx, opts)
	if err != nil {
		return nil, fail("consumer", q.info.name, err)
	}
	return c, nil
}

func (q *Queue) consumer(ctx context.Context, opts *broker.ConsumerOptions) (*consumer, error) {
	if err := broker.ContextError(ctx); err != nil {
		return nil, err
	}
	if err := broker.ValidateConsumer(opts, &q.caps); err != nil {
		return nil, err
	}
	if q.info.direct {
		return nil, broker.Unsupported("a caller's direct reply-to: only the caller receives from it")
	}
	prefetch := q.b.o.Prefetch
	if opts != nil && opts.Prefetch > 0 {
		if prefetch = opts.Prefetch; prefetch > maxPrefetch {
			return nil, broker.Invalid("Prefetch %d: at most %d", prefetch, maxPrefetch)
		}
	}
	c := &consumer{q: q, prefetch: prefetch, done: make(chan struct{}), closed: make(chan struct{}),
		poke: make(chan struct{}, 1), idle: make(chan relaxation)}
	c.inbox = broker.NewInbox(c.giveBack)
	c.held.c = c
	c.ctx, c.cancel = context.WithCancel(context.Background())
	for range q.info.shards {
		c.priority = append(c.priority, rand.Int32N(1000))
	}
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		c.cancel()
		return nil, broker.ErrClosed
	}
	q.consumers[c] = struct{}{}
	q.mu.Unlock()
	// The first session opens here, so that a missing queue is an error here.
	first, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.ctx, cancel)()
	s, err := c.open(first)
	if err != nil && (errors.Is(err, broker.ErrNotFound) || errors.Is(err, broker.ErrUnauthorized) || first.Err() != nil) {
		if c.ctx.Err() != nil {
			err = broker.ErrClosed
		}
		q.forget(c)
		c.cancel()
		close(c.done)
		return nil, err
	}
	go c.run(s)
	return c, nil
}

func (q *Queue) forget(c *consumer) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.consumers, c)
}

// run keeps a session alive until Close.
func (c *consumer) run(s *session) {
	defer close(c.done)
	defer c.waitFetches()
	wait := newBackoff(c.q.b.o)
	for s != nil || c.ctx.Err() == nil { // a session is ended also when Close came first
		began := time.Now()
		if s == nil {
			var err error
			if s, err = c.open(c.ctx); err != nil {
				if c.ctx.Err() != nil {
					return
				}
				c.failed(err)
				wait.sleep(c.ctx, began)
				continue
			}
			c.inbox.SetErr(nil)
		}
		err := c.serve(s)
		idle := errors.Is(err, errIdle)
		if err != nil && !idle && c.ctx.Err() == nil {
			c.failed(classify(err))
		}
		c.end(s)
		s = nil
		if !idle {
			wait.sleep(c.ctx, began)
		}
	}
}

// waitFetches waits for the goroutines of the subscriptions. Where the network
// stalls they end later, with the connection.
func (c *consumer) waitFetches() {
	ctx, cancel := context.WithTimeout(context.Background(), c.q.b.o.CloseTimeout)
	defer cancel()
	// It can only time out.
	_, _ = call(ctx, func() (struct{}, error) { c.fetches.Wait(); return struct{}{}, nil }, nil)
}

// failed tells waiting Receives what will not pass by itself; the consumer goes
// on trying.
func (c *consumer) failed(err error) {
	c.q.b.o.Logger.Warn("consuming failed", "adapter", adapterName, "queue", c.q.info.name, "error", err)
	if errors.Is(err, broker.ErrNotFound) || errors.Is(err, broker.ErrUnauthorized) {
		c.inbox.SetErr(fail("receive", c.q.info.name, err))
	}
}

// open starts a session.
func (c *consumer) open(ctx context.Context) (*session, error) {
	g, err := c.q.b.control.get(ctx)
	if err != nil {
		return nil, err
	}
	s, err := call(ctx, func() (*session, error) { return c.openSession(g) }, func(s *session) { c.end(s) })
	if err != nil && ctx.Err() == nil {
		return nil, classify(err)
	}
	return s, err
}

func (c *consumer) openSession(g *generation) (*session, error) {
	ch, err := g.conn.Channel()
	if err != nil {
		return nil, err
	}
	queues := c.q.info.queues()
	for _, n := range queues {
		if _, err := ch.QueueDeclarePassive(n, true, false, false, false, nil); err != nil {
			return nil, errors.Join(err, closeChannel(ch))
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.count++
	s := &session{gen: g, ch: ch, acks: newAcks(ch, c.count, c.prefetch/max(1, len(c.priority)), c.signal)}
	s.closed = ch.NotifyClose(make(chan *amqp.Error, 1))
	s.cancelled = ch.NotifyCancel(make(chan string, len(queues)))
	c.session = s
	return s, nil
}

// serve subscribes when a Receive waits, lets go when the consumer is idle, and
// returns when the channel is gone,
// the broker ended a subscription (its queue was deleted), or the consumer is
// closed.
func (c *consumer) serve(s *session) error {
	look := time.NewTimer(idleAfter) // whether to let go
	defer look.Stop()
	looks, since := true, 0 // the timer runs, since that many Receives
	unwanted := 0           // looks in a row that found nothing but prefetched deliveries
	for {
		c.mu.Lock()
		want := c.receiving > 0 && !c.draining
		rests, receives := c.receiving == 0 && s.tags != nil, c.receives
		c.mu.Unlock()
		if rests && !looks {
			look.Reset(idleAfter)
			looks, since = true, receives
		}
		if want && len(s.tags) < len(c.q.info.queues()) {
			if _, err := call(c.ctx, func() (struct{}, error) { return struct{}{}, c.subscribe(s) }, nil); err != nil {
				return err
			}
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
		case <-c.poke:
		case <-look.C:
			looks = false
			switch open := s.acks.openCount(); {
			case !rests || receives != since, open > c.inbox.Len(): // the program comes back for more
				unwanted = 0
				continue
			case open > 0:
				if unwanted++; unwanted < keepLooks {
					continue
				}
			case s.acks.waiting(true) != nil:
				continue
			}
			if err := c.letGo(s); err != nil {
				return err
			}
		case r := <-c.idle:
			err := c.unsubscribe(s, r.drain)
			if errors.Is(err, errIdle) {
				c.end(s)
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

func (c *consumer) subscribe(s *session) error {
	s.rpc.Lock()
	defer s.rpc.Unlock()
	tags := slices.Clone(s.tags)
	for i, queue := range c.q.info.queues() {
		if i < len(tags) {
			continue
		}
		if err := broker.ContextError(c.ctx); err != nil {
			return err
		}
		// Shards divide the prefetch; what has no group may fill a quarter, so
		// that a consumer leaves some to others.
		var args amqp.Table
		prefetch := c.prefetch
		switch {
		case i < len(c.priority):
			prefetch = max(1, c.prefetch/len(c.priority))
		case len(c.priority) > 0:
			prefetch = max(1, c.prefetch/4)
		}
		if i == 0 || i == len(c.priority) {
			if err := s.ch.Qos(prefetch, 0, false); err != nil {
				return err
			}
		}
		if i < len(c.priority) {
			args = amqp.Table{"x-priority": c.priority[i]}
		}
		tag := broker.NewID()
		in, err := s.ch.Consume(queue, tag, false, false, false, false, args)
		if err != nil {
			return err
		}
		tags = append(tags, tag)
		fetch := func() { c.fetch(s, in) }
		if i >= len(c.priority) {
			s.fetches.Add(1)
			fetch = func() { defer s.fetches.Done(); c.fetch(s, in) }
		}
		c.fetches.Go(fetch)
	}
	s.tags = tags
	return nil
}

// end closes the session, once. What was open on it is lost to its holders, and
// the broker delivers it again.
func (c *consumer) end(s *session) {
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
			return struct{}{}, c.leave(s)
		}, nil)
		if err != nil {
			c.q.b.o.Logger.Debug("closing a channel failed", "adapter", adapterName, "queue", c.q.info.name, "error", err)
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

// fetch moves deliveries of one subscription into the inbox.
func (c *consumer) fetch(s *session, in <-chan amqp.Delivery) {
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

// relaxTime bounds how long a Receive that ends with its context waits for the
// broker to end the subscription.
const relaxTime = 100 * time.Millisecond

// Receive implements [broker.Consumer]. When it ends empty with its context, or
// idleAfter passes with nothing open, the consumer lets go of the queue until
// the next Receive.
func (c *consumer) Receive(ctx context.Context, max int) ([]*broker.Delivery, error) {
	if err := broker.ContextError(ctx); err != nil {
		return nil, fail("receive", c.q.info.name, err)
	}
	c.mu.Lock()
	c.receiving++
	c.receives++
	first := c.receiving == 1
	c.mu.Unlock()
	if first {
		c.signal()
	}
	ds, err := c.inbox.Receive(ctx, max)
	c.mu.Lock()
	c.receiving--
	last := c.receiving == 0
	c.mu.Unlock()
	if last {
		c.signal()
	}
	if last && err != nil && ctx.Err() != nil {
		c.relax(false, relaxTime)
		if c.inbox.Len() > 0 { // came meanwhile, and must not wait for a Receive that may never be
			late, cancel := context.WithTimeout(context.WithoutCancel(ctx), relaxTime)
			defer cancel()
			if more, lerr := c.inbox.Receive(late, max); lerr == nil {
				return more, nil
			}
		}
	}
	return ds, fail("receive", c.q.info.name, err)
}

// signal makes serve look again.
func (c *consumer) signal() {
	select {
	case c.poke <- struct{}{}:
	default:
	}
}

// A relaxation asks for the end of the subscriptions.
type relaxation struct {
	drain bool
	done  chan struct{}
}

// relax ends the subscriptions within limit, if there is a connection.
func (c *consumer) relax(drain bool, limit time.Duration) {
	t := time.NewTimer(limit)
	defer t.Stop()
	r := relaxation{drain: drain, done: make(chan struct{})}
	select {
	case c.idle <- r:
	case <-c.ctx.Done():
		return
	case <-t.C:
		return
	}
	select {
	case <-r.done:
	case <-t.C:
	}
}

// giveBack is the inbox's: deliveries that were never handed out. Those of a
// dead session are redelivered anyway; the rest goes back.
func (c *consumer) giveBack(ds []*broker.Delivery) {
	if c.held.capture(ds) {
		return
	}
	c.mu.Lock()
	s, draining := c.session, c.draining
	c.mu.Unlock()
	if s == nil {
		return
	}
	for _, d := range ds {
		switch {
		case d.Generation() != s.acks.generation:
		case c.q.info.shards == 0 && !draining:
			c.inbox.Put(d) // a plain queue promises no order: it need not go back
		case c.holds(d) && draining:
			s.acks.park(d.Token(), d.Generation()) // it goes back when the session ends
		case s.acks.decide(d.Token(), d.Generation(), true):
			d.Lose()
		}
	}
}

// drains tells whether nothing is handed out any more.
func (c *consumer) drains() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.draining
}

// live returns the state of the current session's acknowledgements.
func (c *consumer) live() *acks {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.session == nil {
		return nil
	}
	return c.session.acks
}

// Name implements the part of [broker.Queue] that errors of deliveries use.
func (c *consumer) Name() string { return c.q.info.name }

// Adapter returns the name that errors carry.
func (c *consumer) Adapter() string { return adapterName }

// Close implements [broker.Consumer]. What was acknowledged before is sent.
func (c *consumer) Close() error {
	c.mu.Lock()
	first := !c.draining
	c.draining = true
	select {
	case <-c.closed:
		c.mu.Unlock()
		<-c.done
		return nil
	default:
		close(c.closed)
	}
	c.mu.Unlock()
	if first {
		c.inbox.Close(fail("receive", c.q.info.name, broker.ErrClosed))
	}
	ctx, cancel := context.WithTimeout(context.Background(), c.q.b.o.CloseTimeout)
	defer cancel()
	if err := c.settled(ctx, false); err != nil {
		c.q.b.o.Logger.Warn("acknowledgements were not sent in time", "adapter", adapterName, "queue", c.q.info.name, "error", err)
	}
	c.cancel()
	<-c.done
	c.q.forget(c)
	return nil
}

// drain stops fetching, gives back what was not handed out, and waits for
// verdicts on the rest until ctx ends. Of groups nothing goes back before the
// session ends: another consumer would get it beside what is in hand here.
func (c *consumer) drain(ctx context.Context) error {
	c.mu.Lock()
	first := !c.draining
	c.draining = true
	c.mu.Unlock()
	if first {
		c.relax(true, c.q.b.o.CloseTimeout)
		c.giveBack(c.inbox.Close(fail("receive", c.q.info.name, broker.ErrClosed)))
		c.held.park()
	}
	return c.settled(ctx, true)
}

// settled waits until every verdict is sent and, with all, until there is one
// for every delivery.
func (c *consumer) settled(ctx context.Context, all bool) error {
	for {
		a := c.live()
		if a == nil {
			return nil
		}
		w := a.waiting(all)
		if w == nil {
			return nil
		}
		select {
		case <-w:
		case <-ctx.Done():
			return broker.ContextError(ctx)
		}
	}
}
