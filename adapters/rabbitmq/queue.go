package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/queuestream/broker"
)

// A Queue is a quorum or classic queue, or the shard queues of an ordered one.
type Queue struct {
	b      *Broker
	info   queueInfo
	dead   *queueInfo // dead-letter queue, if known
	caps   broker.QueueCapabilities
	window *window
	calls  calls

	mu        sync.Mutex
	closed    bool
	consumers map[*consumer]struct{}
}

var _ broker.Queue = (*Queue)(nil)

func newQueue(b *Broker, info queueInfo) *Queue {
	return &Queue{
		b: b, info: info, caps: b.capabilities(info), window: newWindow(b.o.Window, b.o.WindowBytes),
		consumers: map[*consumer]struct{}{},
	}
}

// capabilities tells what a queue honours.
func (b *Broker) capabilities(info queueInfo) broker.QueueCapabilities {
	if info.direct {
		return broker.QueueCapabilities{Headers: true, MaxBytes: b.o.MaxMessageBytes, FIFO: true}
	}
	c := broker.QueueCapabilities{
		Delay: true, MaxDelay: MaxDelay, TTL: true, MaxPriority: info.maxPriority, Headers: true,
		MaxBytes: b.o.MaxMessageBytes,
		FIFO:     info.maxPriority == 0, NackDelay: true, MaxNackDelay: MaxDelay, Snooze: true,
		Reject: info.deadLetter != "", Attempts: !info.classic, MaxAttempts: info.maxAttempts,
		Prefetch: true, Durable: !info.transient, Bounded: info.bounded,
	}
	if info.shards > 0 {
		c.Groups, c.FIFO = true, false
		// A group's delay is kept by its holder, within the broker's
		// consumer_timeout; a crash forgets the attempts counted there; and
		// prefetch counts for each shard.
		c.MaxNackDelay, c.Attempts, c.Prefetch = maxHold, false, false
	}
	return c
}

// Name implements [broker.Queue].
func (q *Queue) Name() string { return q.info.name }

// Adapter returns the name that errors carry.
func (q *Queue) Adapter() string { return adapterName }

// Capabilities implements [broker.Queue].
func (q *Queue) Capabilities() broker.QueueCapabilities { return q.caps }

// Publish implements [broker.Publisher].
func (q *Queue) Publish(ctx context.Context, m broker.Message) (broker.Receipt, error) {
	rs, errs := q.publish(ctx, []broker.Message{m})
	return rs[0], fail("publish", q.info.name, errs[0])
}

// PublishBatch implements [broker.Publisher]. Messages are sent without
// waiting in between, up to Options.Window.
func (q *Queue) PublishBatch(ctx context.Context, ms []broker.Message) ([]broker.Receipt, error) {
	rs, errs := q.publish(ctx, ms)
	for i, err := range errs {
		errs[i] = fail("publish", q.info.name, err)
	}
	return rs, broker.NewBatchError(errs)
}

func (q *Queue) publish(ctx context.Context, ms []broker.Message) ([]broker.Receipt, []error) {
	rs, errs := prepare(ms, &q.caps)
	if !q.calls.begin() {
		for i := range errs {
			errs[i] = broker.ErrClosed
		}
		return rs, errs
	}
	defer q.calls.end()
	copies := make([]copyOf, len(ms))
	now := time.Now()
	for i := range ms {
		m := ms[i]
		m.ID = rs[i].ID
		copies[i] = copyOf{m: m, to: &q.info, err: errs[i], now: now}
	}
	q.b.send(ctx, q.window, copies)
	for i := range copies {
		errs[i] = copies[i].err
	}
	return rs, errs
}

// prepare sets ids and checks every message.
func prepare(ms []broker.Message, caps *broker.QueueCapabilities) ([]broker.Receipt, []error) {
	rs, errs := make([]broker.Receipt, len(ms)), make([]error, len(ms))
	for i := range ms {
		m := &ms[i]
		if rs[i].ID = m.ID; m.ID == "" {
			rs[i].ID = broker.NewID()
		}
		if errs[i] = broker.ValidateMessage(m, caps); errs[i] == nil {
			errs[i] = checkMessage(m)
		}
	}
	return rs, errs
}

// A copyOf is a message on its way to a queue.
type copyOf struct {
	m       broker.Message
	to      *queueInfo
	shard   string // overrides to, by the queue's name in the broker
	attempt int
	expires time.Time
	now     time.Time
	err     error // set before: do not send
}

// send publishes copies to queues and sets err of each.
func (b *Broker) send(ctx context.Context, w *window, copies []copyOf) {
	os := make([]outbound, 0, len(copies))
	index := make([]int, 0, len(copies))
	for i := range copies {
		c := &copies[i]
		if c.err != nil {
			continue
		}
		o := outbound{key: c.shard, optional: c.to != nil && c.to.direct}
		if o.key == "" {
			o.key = c.to.route(&c.m)
		}
		o.msg = encode(&c.m, c.attempt, c.expires, c.now)
		if c.to != nil && c.to.deadLetter != "" { // where the broker sends what expires
			o.msg.Headers[headerSlot] = slotHeader(c.m.GroupID)
		}
		if c.m.Delay > 0 {
			if o.exchange, o.key, c.err = b.ladder.route(ctx, o.key, c.m.Delay); c.err != nil {
				continue
			}
		}
		os, index = append(os, o), append(index, i)
	}
	if len(os) == 0 {
		return
	}
	errs := make([]error, len(os))
	b.pub.publish(ctx, w, os, errs)
	for j, i := range index {
		c := &copies[i]
		c.err = errs[j]
		if errors.Is(c.err, errNacked) && c.to != nil && c.to.bounded {
			c.err = fmt.Errorf("%w: %w", broker.ErrFull, c.err)
		}
		if c.m.Delay > 0 && errors.Is(c.err, broker.ErrNotFound) { // removed by another program
			b.ladder.reset()
		}
	}
}

// Close implements [broker.Queue]: it closes the queue's consumers.
func (q *Queue) Close() error {
	q.mu.Lock()
	q.closed = true
	cs := make([]*consumer, 0, len(q.consumers))
	for c := range q.consumers {
		cs = append(cs, c)
	}
	q.mu.Unlock()
	q.calls.close()
	q.b.remove(q)
	var wg sync.WaitGroup
	errs := make([]error, len(cs))
	for i, c := range cs {
		wg.Go(func() { errs[i] = c.Close() })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// drain stops fetching and waits for what is in hand.
func (q *Queue) drain(ctx context.Context) error {
	q.mu.Lock()
	cs := make([]*consumer, 0, len(q.consumers))
	for c := range q.consumers {
		cs = append(cs, c)
	}
	q.mu.Unlock()
	var wg sync.WaitGroup
	errs := make([]error, len(cs)+1)
	for i, c := range cs {
		wg.Go(func() { errs[i] = c.drain(ctx) })
	}
	wg.Wait()
	errs[len(cs)] = q.calls.wait(ctx)
	return errors.Join(errs...)
}

// calls counts what is being published, so that Shutdown can wait for it.
type calls struct {
	mu     sync.Mutex
	n      int
	closed bool
	idle   chan struct{}
}

func (c *calls) begin() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.n++
	return true
}

func (c *calls) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n--; c.n == 0 && c.idle != nil {
		close(c.idle)
		c.idle = nil
	}
}

func (c *calls) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
}

func (c *calls) wait(ctx context.Context) error {
	c.mu.Lock()
	if c.n == 0 {
		c.mu.Unlock()
		return nil
	}
	if c.idle == nil {
		c.idle = make(chan struct{})
	}
	idle := c.idle
	c.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return broker.ContextError(ctx)
	}
}
