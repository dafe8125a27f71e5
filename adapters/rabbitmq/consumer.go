package rabbitmq

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/queuestream/broker"
)

// maxPrefetch is AMQP's limit of a consumer's prefetch count.
const maxPrefetch = 65535

// A consumer receives from the queue, or from all of its shards and what has no
// group: it has a lane for each.
type consumer struct {
	q      *Queue
	inbox  *broker.Inbox
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	held   holds
	lanes  []*lane

	mu        sync.Mutex
	receiving int // calls of Receive that run
	receives  int // calls of Receive so far
	draining  bool
	closed    chan struct{} // closed by the first Close
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
	c := &consumer{q: q, closed: make(chan struct{})}
	c.inbox = broker.NewInbox(c.giveBack)
	c.held.c = c
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.lanes = newLanes(c, prefetch)
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		c.cancel()
		return nil, broker.ErrClosed
	}
	q.consumers[c] = struct{}{}
	q.mu.Unlock()
	if err := c.start(ctx); err != nil {
		q.forget(c)
		return nil, err
	}
	return c, nil
}

// start runs the lanes. The first sessions open here, so that a missing queue is
// an error here; what passes by itself is left to the lanes.
func (c *consumer) start(ctx context.Context) error {
	first, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.ctx, cancel)()
	sessions, errs := make([]*session, len(c.lanes)), make([]error, len(c.lanes))
	var all sync.WaitGroup
	for i, l := range c.lanes {
		all.Go(func() { sessions[i], errs[i] = l.open(first) })
	}
	all.Wait()
	i := slices.IndexFunc(errs, func(err error) bool { return err != nil && (lasting(err) || first.Err() != nil) })
	if i >= 0 {
		if c.ctx.Err() != nil {
			errs[i] = broker.ErrClosed
		}
		c.cancel()
	}
	for i, l := range c.lanes {
		go l.run(sessions[i])
	}
	if i >= 0 {
		return errs[i]
	}
	return nil
}

// lasting tells whether err is one that does not pass by itself.
func lasting(err error) bool {
	return errors.Is(err, broker.ErrNotFound) || errors.Is(err, broker.ErrUnauthorized)
}

func (q *Queue) forget(c *consumer) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.consumers, c)
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
	if c.receiving == 1 {
		c.wake()
	}
	c.mu.Unlock()
	ds, err := c.inbox.Receive(ctx, max)
	c.mu.Lock()
	c.receiving--
	last := c.receiving == 0
	if last {
		c.wake()
	}
	c.mu.Unlock()
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

// wake tells those lanes that want to know that the first Receive began, or that
// the last one ended. c.mu is held.
func (c *consumer) wake() {
	for _, l := range c.lanes {
		if l.asks {
			l.asks = false
			l.signal()
		}
	}
}

// relax ends the subscriptions within limit, if there is a connection.
func (c *consumer) relax(drain bool, limit time.Duration) {
	ctx, cancel := context.WithTimeout(c.ctx, limit)
	defer cancel()
	var all sync.WaitGroup
	for _, l := range c.lanes {
		all.Go(func() { l.relax(ctx, drain) })
	}
	all.Wait()
}

// giveBack is the inbox's: deliveries that were never handed out. Those of a
// dead session are redelivered anyway; the rest goes back.
func (c *consumer) giveBack(ds []*broker.Delivery) {
	if c.held.capture(ds) {
		return
	}
	draining := c.drains()
	for _, d := range ds {
		a := c.acksOf(d)
		switch {
		case a == nil:
		case !c.ordered() && !draining:
			c.inbox.Put(d) // a plain queue promises no order: it need not go back
		case c.holds(d) && draining:
			a.park(d.Token(), d.Generation()) // it goes back when the session ends
		case a.decide(d.Token(), d.Generation(), true):
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

// ordered tells whether the queue has groups.
func (c *consumer) ordered() bool { return c.q.info.shards > 0 }

// acksOf returns the acknowledgements of the session that delivered d, or nil when
// another session follows it.
func (c *consumer) acksOf(d *broker.Delivery) *acks {
	l := c.lanes[d.Generation()%uint32(len(c.lanes))]
	if a := l.acks(); a != nil && a.generation == d.Generation() {
		return a
	}
	return nil
}

// openCount returns how many deliveries are not decided on.
func (c *consumer) openCount() (n int) {
	for _, l := range c.lanes {
		if a := l.acks(); a != nil {
			n += a.openCount()
		}
	}
	return n
}

// waiting is that of the acks, for all lanes.
func (c *consumer) waiting(all bool) (w <-chan struct{}) {
	for _, l := range c.lanes { // all of them: it makes them send
		if a := l.acks(); a != nil {
			if more := a.waiting(all); w == nil {
				w = more
			}
		}
	}
	return w
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
		c.ended()
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
	c.ended()
	c.q.forget(c)
	return nil
}

// ended waits for the lanes.
func (c *consumer) ended() {
	for _, l := range c.lanes {
		<-l.done
	}
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
		w := c.waiting(all)
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
