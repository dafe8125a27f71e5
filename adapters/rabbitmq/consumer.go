package rabbitmq

import (
	"context"
	"errors"
	"math/rand/v2"
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

	mu       sync.Mutex
	count    uint32 // of sessions
	session  *session
	draining bool
	closed   chan struct{} // closed by the first Close
}

// A session is a channel from open to dead.
type session struct {
	gen  *generation
	ch   *amqp.Channel
	acks *acks
	tags []string

	closed    chan *amqp.Error // by the broker, or with its connection
	cancelled chan string      // the broker ended a subscription: its queue is gone
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
	prefetch := q.b.o.Prefetch
	if opts != nil && opts.Prefetch > 0 {
		if prefetch = opts.Prefetch; prefetch > maxPrefetch {
			return nil, broker.Invalid("Prefetch %d: at most %d", prefetch, maxPrefetch)
		}
	}
	c := &consumer{q: q, prefetch: prefetch, done: make(chan struct{}), closed: make(chan struct{})}
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
	defer c.fetches.Wait()
	backoff := c.q.b.o.MinBackoff
	for s != nil || c.ctx.Err() == nil { // a session is ended also when Close came first
		if s == nil {
			var err error
			if s, err = c.open(c.ctx); err != nil {
				if c.ctx.Err() != nil {
					return
				}
				c.q.b.o.Logger.Warn("consuming failed", "adapter", adapterName, "queue", c.q.info.name, "error", err)
				if errors.Is(err, broker.ErrNotFound) || errors.Is(err, broker.ErrUnauthorized) {
					c.inbox.SetErr(fail("receive", c.q.info.name, err))
				}
				sleep(c.ctx, backoff/2+rand.N(backoff/2+1))
				backoff = min(2*backoff, c.q.b.o.MaxBackoff)
				continue
			}
			c.inbox.SetErr(nil)
		}
		began := time.Now()
		s.wait(c.ctx)
		c.end(s)
		s = nil
		if time.Since(began) > time.Second {
			backoff = c.q.b.o.MinBackoff
		} else {
			sleep(c.ctx, rand.N(backoff))
			backoff = min(2*backoff, c.q.b.o.MaxBackoff)
		}
	}
}

// open starts a session: a channel, its prefetch, and the subscriptions.
func (c *consumer) open(ctx context.Context) (*session, error) {
	g, err := c.q.b.control.get(ctx)
	if err != nil {
		return nil, err
	}
	s, err := call(ctx, func() (*session, error) { return c.subscribe(g) }, func(s *session) { c.end(s) })
	if err != nil && ctx.Err() == nil {
		return nil, classify(err)
	}
	return s, err
}

func (c *consumer) subscribe(g *generation) (*session, error) {
	ch, err := g.conn.Channel()
	if err != nil {
		return nil, err
	}
	queues := c.q.info.queues()
	prefetch := max(1, c.prefetch/len(queues))
	if err := ch.Qos(prefetch, 0, false); err != nil {
		return nil, errors.Join(err, closeChannel(ch))
	}
	c.mu.Lock()
	c.count++
	s := &session{gen: g, ch: ch, acks: newAcks(ch, c.count)}
	c.session = s
	c.mu.Unlock()
	s.closed = ch.NotifyClose(make(chan *amqp.Error, 1))
	s.cancelled = ch.NotifyCancel(make(chan string, len(queues)))
	for i, queue := range queues {
		var args amqp.Table
		if len(c.priority) > 0 {
			args = amqp.Table{"x-priority": c.priority[i]}
		}
		tag := broker.NewID()
		in, err := ch.Consume(queue, tag, false, false, false, false, args)
		if err != nil {
			c.end(s)
			return nil, err
		}
		s.tags = append(s.tags, tag)
		c.fetches.Go(func() { c.fetch(s, in) })
	}
	return s, nil
}

// wait returns when the channel is gone, a subscription was cancelled by the
// broker (its queue was deleted), or ctx ends.
func (s *session) wait(ctx context.Context) {
	select {
	case <-s.closed:
	case <-s.cancelled:
	case <-ctx.Done():
	}
}

// end closes the session. What was open on it is lost to its holders, and the
// broker delivers it again.
func (c *consumer) end(s *session) {
	lost := s.acks.close()
	waiting := c.held.stop(s)
	for _, d := range lost {
		d.Lose()
	}
	if !s.ch.IsClosed() {
		ctx, cancel := context.WithTimeout(context.Background(), c.q.b.o.CloseTimeout)
		defer cancel()
		if _, err := call(ctx, func() (struct{}, error) { return struct{}{}, s.ch.Close() }, nil); err != nil {
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
		case c.q.info.maxAttempts > 0 && d.Attempt > c.q.info.maxAttempts:
			d.Attempt = c.q.info.maxAttempts
			c.retire(d, reasonAttempts)
		default:
			c.held.put(d)
		}
	}
}

// Receive implements [broker.Consumer].
func (c *consumer) Receive(ctx context.Context, max int) ([]*broker.Delivery, error) {
	ds, err := c.inbox.Receive(ctx, max)
	return ds, fail("receive", c.q.info.name, err)
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
		case s.acks.decide(d.Token(), d.Generation(), true):
			d.Lose()
		}
	}
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
// verdicts on the rest until ctx ends.
func (c *consumer) drain(ctx context.Context) error {
	c.mu.Lock()
	first, s := !c.draining, c.session
	c.draining = true
	c.mu.Unlock()
	if first {
		if s != nil {
			_, err := call(ctx, func() (struct{}, error) {
				var errs []error
				for _, t := range s.tags {
					errs = append(errs, s.ch.Cancel(t, false))
				}
				return struct{}{}, errors.Join(errs...)
			}, nil)
			if err != nil && ctx.Err() == nil && !s.ch.IsClosed() {
				return err
			}
		}
		rest := c.inbox.Close(fail("receive", c.q.info.name, broker.ErrClosed))
		c.giveBack(rest)
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
