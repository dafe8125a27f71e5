package sqs

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/queuestream/broker"
)

// A Queue is a handle on a standard or FIFO queue.
type Queue struct {
	b     *Broker
	t     *target
	caps  broker.QueueCapabilities
	codec codec
	dead  *target // of Reject; nil: none
	// deadErr is why the dead-letter queue of the redrive policy may not be
	// looked at. A publisher needs no rights on it, a consumer does.
	deadErr error

	sends    *sender
	settles  *settler
	deadSend func() *sender // of dead, made when needed

	mu        sync.Mutex
	closed    bool
	consumers map[*Consumer]struct{}
	onClose   func(ctx context.Context) error
}

var (
	_ broker.Queue      = (*Queue)(nil)
	_ broker.BatchSizer = (*Queue)(nil)
)

// BatchSizes does what [broker.BatchSizer] promises.
func (q *Queue) BatchSizes() []int64 {
	sizes := make([]int64, len(q.sends.sizes))
	for i := range sizes {
		sizes[i] = q.sends.sizes[i].Load()
	}
	return sizes
}

// Retries returns how many messages were sent again since a try had failed for
// what passes, once for each try.
func (q *Queue) Retries() int64 { return q.sends.retries.Load() }

// Queue opens a queue; one that is missing is ErrNotFound. It needs
// sqs:GetQueueUrl and sqs:GetQueueAttributes.
func (b *Broker) Queue(ctx context.Context, name string, opts *broker.QueueOptions) (broker.Queue, error) {
	q, err := b.openQueue(ctx, name, opts)
	if err != nil {
		return nil, fail("open queue", name, err)
	}
	return q, nil
}

func (b *Broker) openQueue(ctx context.Context, name string, opts *broker.QueueOptions) (*Queue, error) {
	if err := b.use(); err != nil {
		return nil, err
	}
	t, err := b.resolve(ctx, name)
	if err != nil {
		return nil, err
	}
	q := &Queue{b: b, t: t, consumers: map[*Consumer]struct{}{}}
	if opts == nil {
		opts = &broker.QueueOptions{}
	}
	switch {
	case opts.DeadLetter != "":
		q.dead, err = b.resolve(ctx, opts.DeadLetter)
	case t.deadLetter != "":
		q.dead, err = b.resolveARN(ctx, t.deadLetter)
		if errors.Is(err, broker.ErrUnauthorized) {
			q.deadErr, err = fmt.Errorf("dead-letter queue %s: %w", t.deadLetter, err), nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("dead-letter queue of %q: %w", name, err)
	}
	if q.dead != nil && q.dead.fifo != t.fifo {
		return nil, broker.Invalid("dead-letter queue %q: a FIFO queue's must be FIFO, a standard queue's standard", q.dead.name)
	}
	q.caps = capabilities(t, &b.o)
	q.caps.Reject = q.dead != nil || q.deadErr != nil
	if n := opts.MaxAttempts; n > 0 && (q.caps.MaxAttempts == 0 || n < q.caps.MaxAttempts) {
		q.caps.MaxAttempts = n
	}
	if err := broker.ValidateQueueOptions(opts, q.caps); err != nil {
		return nil, err
	}
	q.codec = codec{fifo: t.fifo, contentDedup: t.contentDedup, plain: b.o.Plain, groups: b.o.FairGroups}
	q.sends = b.queueSender(t)
	q.settles = newSettler(b, t)
	q.deadSend = sync.OnceValue(func() *sender { return b.queueSender(q.dead) })
	if err := b.add(q); err != nil {
		return nil, err
	}
	return q, nil
}

func capabilities(t *target, o *Options) broker.QueueCapabilities {
	c := broker.QueueCapabilities{
		Headers:     true,
		MaxBytes:    largest(t.maxBytes, o),
		Lease:       true,
		MaxLease:    maxLease,
		NackDelay:   true,
		Attempts:    true,
		MaxAttempts: t.maxAttempts,
		Prefetch:    true,
		Durable:     true,
	}
	if t.fifo {
		c.Groups, c.Dedup, c.Idempotent = true, true, true
		c.ContentDedup, c.DedupWindow = t.contentDedup, dedupWindow
		c.MaxNackDelay = maxLease
	} else {
		c.Delay = true
		if o.Plain {
			c.MaxDelay = maxDelay
		}
	}
	return c
}

// largest returns how large a message is that fits into limit beside the
// attribute qs-id with an id that this SDK made: one whose body is text, since
// SQS counts what it is sent. In plain mode there is no attribute.
func largest(limit int, o *Options) int {
	const own = len(attrID + "String" + "01234567-0123-0123-0123-0123456789ab")
	if o.Plain {
		return limit
	}
	return limit - own
}

// Name returns the queue's name.
func (q *Queue) Name() string { return q.t.name }

// Adapter returns the name that errors carry.
func (q *Queue) Adapter() string { return adapterName }

// Capabilities returns what this queue honours.
func (q *Queue) Capabilities() broker.QueueCapabilities { return q.caps }

// Publish sends one message, in a batch with what others publish at the time.
func (q *Queue) Publish(ctx context.Context, m broker.Message) (broker.Receipt, error) {
	if m.ID == "" {
		m.ID = broker.NewID()
	}
	r := broker.Receipt{ID: m.ID}
	w, err := q.prepare(&m, extra{})
	if err == nil {
		err = broker.ContextError(ctx)
	}
	if err == nil {
		r.Sequence, err = q.sends.one(ctx, w)
	}
	return r, fail("publish", q.t.name, err)
}

// PublishBatch sends in batches of 10 and of 1 MiB, several at a time. Of a
// FIFO group one message is under way at a time, so that a failed one cannot
// be overtaken while it is tried again (see Options.BatchGroups).
func (q *Queue) PublishBatch(ctx context.Context, ms []broker.Message) ([]broker.Receipt, error) {
	return publishBatch(ctx, q.sends, q.t.name, ms, func(m *broker.Message) (wire, error) {
		return q.prepare(m, extra{})
	})
}

func publishBatch(ctx context.Context, s *sender, name string, ms []broker.Message,
	prepare func(m *broker.Message) (wire, error),
) ([]broker.Receipt, error) {
	receipts := make([]broker.Receipt, len(ms))
	errs := make([]error, len(ms))
	ws := make([]wire, len(ms))
	seqs := make([]string, len(ms))
	ended := broker.ContextError(ctx)
	var m broker.Message // one for all: it is kept nowhere
	for i := range ms {
		m = ms[i]
		if m.ID == "" {
			m.ID = broker.NewID()
		}
		receipts[i].ID = m.ID
		if errs[i] = ended; ended == nil {
			ws[i], errs[i] = prepare(&m)
		}
	}
	s.many(ctx, ws, seqs, errs)
	for i := range ms {
		receipts[i].Sequence = seqs[i]
		errs[i] = fail("publish", name, errs[i])
	}
	return receipts, broker.NewBatchError(errs)
}

// prepare checks m and encodes it.
func (q *Queue) prepare(m *broker.Message, x extra) (wire, error) {
	caps := q.caps
	if q.codec.groups {
		caps.Groups = true
	}
	if err := broker.ValidateMessage(m, &caps); err != nil {
		return wire{}, err
	}
	w, err := q.codec.encode(m, x)
	if err != nil {
		return w, err
	}
	if w.size > q.t.maxBytes {
		return w, &broker.SizeError{Size: w.size, Limit: q.t.maxBytes}
	}
	return w, nil
}

// Consumer opens a consumer. It polls from its first Receive on. Where the
// queue has a dead-letter queue, it needs sqs:GetQueueUrl,
// sqs:GetQueueAttributes and sqs:SendMessage on that too.
func (q *Queue) Consumer(_ context.Context, opts *broker.ConsumerOptions) (broker.Consumer, error) {
	if q.deadErr != nil {
		return nil, fail("open consumer", q.t.name, q.deadErr)
	}
	c, err := newConsumer(q, opts)
	if err == nil {
		err = q.add(c)
	}
	if err != nil {
		return nil, fail("open consumer", q.t.name, err)
	}
	return c, nil
}

func (q *Queue) add(c *Consumer) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return broker.ErrClosed
	}
	q.consumers[c] = struct{}{}
	return nil
}

func (q *Queue) removeConsumer(c *Consumer) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.consumers, c)
}

func (q *Queue) opened() []*Consumer {
	q.mu.Lock()
	defer q.mu.Unlock()
	cs := make([]*Consumer, 0, len(q.consumers))
	for c := range q.consumers {
		cs = append(cs, c)
	}
	return cs
}

func (q *Queue) drain(ctx context.Context) error {
	var wg sync.WaitGroup
	cs := q.opened()
	errs := make([]error, len(cs))
	for i, c := range cs {
		wg.Go(func() { errs[i] = c.drain(ctx) })
	}
	wg.Wait()
	return errors.Join(errors.Join(errs...), fail("shutdown", q.t.name, q.sends.drain(ctx)))
}

// Close closes its consumers, waits up to 3 s for what is being sent, and
// fails the rest with ErrClosed or ErrUnknownOutcome.
func (q *Queue) Close() error {
	q.mu.Lock()
	closed := q.closed
	q.closed = true
	q.mu.Unlock()
	if closed {
		return nil
	}
	var wg sync.WaitGroup
	for _, c := range q.opened() {
		wg.Go(func() { _ = c.Close() }) // returns nil always
	}
	wg.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	_ = q.sends.close(ctx) // ctx's error: who waited for an answer got his own
	q.settles.close(ctx)
	if q.dead != nil {
		_ = q.deadSend().close(ctx)
	}
	q.b.remove(q)
	if q.onClose != nil {
		return fail("close", q.t.name, q.onClose(ctx))
	}
	return nil
}
