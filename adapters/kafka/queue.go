package kafka

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/queuestream/broker"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// A Queue is a topic that is consumed by a share group (KIP-932). It is safe
// for concurrent use.
type Queue struct {
	b     *Broker
	name  string
	topic *topic
	retry *topic // where delayed messages wait; nil: there is none
	dead  string // the topic of the dead-letter queue; empty: none
	// unread is why it is not known whether the queue was declared with a
	// dead-letter queue. Publishing needs none.
	unread error
	caps   broker.QueueCapabilities
	lock   time.Duration // of a delivery, as the group is configured
	limit  int           // deliveries after which the broker drops a record

	mu        sync.Mutex
	consumers map[*Consumer]struct{}
	closed    bool
}

var _ broker.Queue = (*Queue)(nil)

const (
	// shareGroupPrefix begins the name of a queue's share group, since groups
	// of all types share one name space.
	shareGroupPrefix = "queue-"
	retrySuffix      = ".retry"
)

func shareGroup(queue string) string { return shareGroupPrefix + queue }

// Queue opens the queue that the topic name holds. A missing topic is
// broker.ErrNotFound; a cluster without share groups is broker.ErrUnsupported.
func (b *Broker) Queue(ctx context.Context, name string, opts *broker.QueueOptions) (broker.Queue, error) {
	q, err := b.openQueue(ctx, name, opts)
	if err != nil {
		return nil, fail("open queue", name, err)
	}
	return q, nil
}

func (b *Broker) openQueue(ctx context.Context, name string, opts *broker.QueueOptions) (*Queue, error) {
	if err := b.usable(); err != nil {
		return nil, err
	}
	if opts == nil {
		opts = &broker.QueueOptions{}
	}
	t, err := b.describe(ctx, name)
	if err != nil {
		return nil, err
	}
	renew, err := b.shareGroups(ctx)
	if err != nil {
		return nil, err
	}
	q := &Queue{b: b, name: name, topic: t, consumers: map[*Consumer]struct{}{}}
	if q.retry, err = b.describe(ctx, name+retrySuffix); err != nil {
		if q.retry = nil; !errors.Is(classify(err), broker.ErrNotFound) {
			return nil, err
		}
	}
	if err := q.readGroup(ctx); err != nil {
		return nil, err
	}
	e, err := b.entry(ctx, name)
	if isUnauthorized(err) && opts.DeadLetter == "" {
		q.unread = err
	} else if err != nil && !isUnauthorized(err) {
		return nil, err
	}
	if opts.MaxAttempts > 0 {
		e.MaxAttempts = opts.MaxAttempts
	}
	if opts.DeadLetter != "" {
		e.DeadLetter = opts.DeadLetter
	}
	if e.DeadLetter != "" {
		if _, err := b.describe(ctx, e.DeadLetter); err != nil {
			return nil, fmt.Errorf("dead-letter queue %q: %w", e.DeadLetter, err)
		}
		q.dead = e.DeadLetter
	}
	q.caps = q.capabilities(renew, e.MaxAttempts)
	if err := broker.ValidateQueueOptions(opts, q.caps); err != nil {
		return nil, err
	}
	return q, b.add(q)
}

// shareGroups checks that the cluster has them, and whether locks can be renewed.
func (b *Broker) shareGroups(ctx context.Context) (renew bool, err error) {
	resp, err := kmsg.NewPtrApiVersionsRequest().RequestWith(ctx, b.client)
	if err != nil {
		return false, bounded(ctx, err)
	}
	for _, k := range resp.ApiKeys {
		if k.ApiKey == shareFetch && k.MaxVersion >= 1 {
			return k.MaxVersion >= 2, nil
		}
	}
	return false, broker.Unsupported("the cluster has no share groups: a queue needs Kafka 4.1, and 4.2 to extend leases; streams work here")
}

// shareFetch is the request's key in Kafka's protocol.
const shareFetch = 78

// readGroup reads how the queue's share group is configured.
func (q *Queue) readGroup(ctx context.Context) error {
	q.lock, q.limit = 30*time.Second, 5
	configs, err := q.b.groupConfigs(ctx, shareGroup(q.name))
	if err != nil {
		return err
	}
	if ms, err := strconv.Atoi(configs[configLock]); err == nil && ms > 0 {
		q.lock = time.Duration(ms) * time.Millisecond
	}
	if n, err := strconv.Atoi(configs[configLimit]); err == nil && n > 1 {
		q.limit = n
	}
	return nil
}

func (q *Queue) capabilities(renew bool, maxAttempts int) broker.QueueCapabilities {
	return broker.QueueCapabilities{
		Delay:       q.retry != nil,
		Headers:     true,
		MaxBytes:    max(0, q.topic.maxBytes-recordOverhead-queueOverhead),
		Lease:       renew,
		NackDelay:   q.retry != nil,
		Snooze:      q.retry != nil,
		Reject:      q.dead != "",
		Attempts:    true,
		MaxAttempts: maxAttempts,
		Prefetch:    true,
		Durable:     true,
		Requeue:     broker.RequeueFront,
	}
}

// Name returns the queue's name, which is its topic's.
func (q *Queue) Name() string { return q.name }

// Adapter returns the name that errors carry.
func (q *Queue) Adapter() string { return adapter }

// Capabilities returns what the queue honours, as of the time it was opened.
func (q *Queue) Capabilities() broker.QueueCapabilities { return q.caps }

// Publish does what broker.Publisher promises: acks=all, idempotent. A delayed
// message waits in the topic named like the queue with ".retry" at the end.
func (q *Queue) Publish(ctx context.Context, m broker.Message) (broker.Receipt, error) {
	receipts, err := q.PublishBatch(ctx, []broker.Message{m})
	return receipts[0], broker.ErrorAt(err, 0)
}

// PublishBatch does what broker.Publisher promises, pipelined.
func (q *Queue) PublishBatch(ctx context.Context, ms []broker.Message) ([]broker.Receipt, error) {
	receipts := make([]broker.Receipt, len(ms))
	outs := make([]copyOut, 0, len(ms))
	index := make([]int, 0, len(ms))
	errs := make([]error, len(ms))
	msgs := make([]broker.Message, len(ms))
	start := q.begin(ctx)
	if start == nil {
		defer q.b.end()
	}
	for i := range ms {
		m := &msgs[i]
		*m = ms[i]
		if m.ID == "" {
			m.ID = broker.NewID()
		}
		receipts[i].ID = m.ID
		if errs[i] = start; start != nil {
			continue
		}
		if errs[i] = validateQueueMessage(m, &q.caps); errs[i] != nil {
			continue
		}
		out := copyOut{topic: q.topic.name, message: m}
		if m.Delay > 0 {
			out.topic, out.time = q.retry.name, time.Now()
			out.due = out.time.Add(m.Delay)
		}
		outs, index = append(outs, out), append(index, i)
	}
	if len(outs) > 0 {
		for j, err := range q.b.send(ctx, outs) {
			errs[index[j]] = err
		}
	}
	for i := range errs {
		errs[i] = fail("publish", q.name, errs[i])
	}
	return receipts, broker.NewBatchError(errs)
}

func (q *Queue) begin(ctx context.Context) error {
	if err := broker.ContextError(ctx); err != nil {
		return err
	}
	q.mu.Lock()
	closed := q.closed
	q.mu.Unlock()
	if closed {
		return broker.ErrClosed
	}
	return q.b.begin()
}

// Consumer opens a consumer: one more member of the queue's share group, with
// connections of its own. Its lease may be of any length; see Delivery in the
// package's documentation.
func (q *Queue) Consumer(ctx context.Context, opts *broker.ConsumerOptions) (broker.Consumer, error) {
	c, err := q.consumer(ctx, opts)
	if err != nil {
		return nil, fail("consume", q.name, err)
	}
	return c, nil
}

func (q *Queue) consumer(ctx context.Context, opts *broker.ConsumerOptions) (*Consumer, error) {
	if err := broker.ContextError(ctx); err != nil {
		return nil, err
	}
	if err := q.b.usable(); err != nil {
		return nil, err
	}
	if opts == nil {
		opts = &broker.ConsumerOptions{}
	}
	if err := broker.ValidateConsumer(opts, &q.caps); err != nil {
		return nil, err
	}
	if q.unread != nil {
		return nil, fmt.Errorf("%w: allow it, or set QueueOptions.DeadLetter", q.unread)
	}
	c, err := newConsumer(q, opts)
	if err != nil {
		return nil, err
	}
	q.mu.Lock()
	closed := q.closed
	q.consumers[c] = struct{}{}
	q.mu.Unlock()
	if closed {
		return nil, errors.Join(broker.ErrClosed, c.Close())
	}
	if err := c.joined(ctx); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func (q *Queue) each() []*Consumer {
	q.mu.Lock()
	defer q.mu.Unlock()
	out := make([]*Consumer, 0, len(q.consumers))
	for c := range q.consumers {
		out = append(out, c)
	}
	return out
}

func (q *Queue) left(c *Consumer) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.consumers, c)
}

func (q *Queue) drain() {
	for _, c := range q.each() {
		c.drain()
	}
}

// Close closes the queue's consumers; what is being published is answered.
func (q *Queue) Close() error {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	consumers := q.each()
	errs := make([]error, len(consumers))
	var wg sync.WaitGroup
	for i, c := range consumers {
		wg.Go(func() { errs[i] = c.Close() })
	}
	wg.Wait()
	q.b.remove(q)
	return errors.Join(errs...)
}
