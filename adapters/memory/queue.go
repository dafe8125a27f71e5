package memory

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/queuestream/broker"
)

var (
	_ broker.Queue    = (*Queue)(nil)
	_ broker.Consumer = (*Consumer)(nil)
)

const adapter = "memory"

// opError wraps err for the operation op on name; nil stays nil.
func opError(op, name string, err error) error {
	if err == nil {
		return nil
	}
	return &broker.Error{Op: op, Adapter: adapter, Name: name, Err: err,
		Temporary: errors.Is(err, broker.ErrFull) || errors.Is(err, broker.ErrUnavailable)}
}

// A Queue is one handle of a queue. It is safe for concurrent use.
type Queue struct {
	b       *Broker
	q       *queue
	caps    broker.QueueCapabilities
	policy  policy
	onClose func() error // of reply queues

	gate      *gate
	mu        sync.Mutex
	isClosed  bool
	consumers map[*Consumer]struct{}
}

// Name returns the queue's name.
func (h *Queue) Name() string { return h.q.name }

// Adapter returns the name that errors carry.
func (h *Queue) Adapter() string { return adapter }

// Capabilities returns what this handle honours.
func (h *Queue) Capabilities() broker.QueueCapabilities { return h.caps }

// Publish stores a copy of m. At the queue's bound it waits or returns
// ErrFull, as Options.WhenFull says.
func (h *Queue) Publish(ctx context.Context, m broker.Message) (broker.Receipt, error) {
	p := publication{m: &m, at: now()}
	if m.ID == "" {
		m.ID = h.q.ids.next(p.at)
	}
	var duplicate bool
	var err error
	if f := h.q.srv.faults.Load(); f == nil {
		duplicate, err = h.publish(ctx, p, nil)
	} else {
		duplicate, err = h.publishUnder(ctx, p, f)
	}
	return broker.Receipt{ID: m.ID, Duplicate: duplicate}, opError("publish", h.q.name, err)
}

// publishUnder is publish for one message under faults.
func (h *Queue) publishUnder(ctx context.Context, p publication, f *faults) (duplicate bool, err error) {
	if err := h.check(ctx); err != nil {
		return false, err
	}
	s, err := f.send(ctx, h)
	if err != nil {
		return false, err
	}
	p.at = now()
	if duplicate, err = h.publish(ctx, p, s); err == nil {
		err = s.answer(ctx)
	}
	return duplicate, err
}

// publishBatchUnder is PublishBatch under faults: one call for all.
func (h *Queue) publishBatchUnder(ctx context.Context, ms []broker.Message, f *faults) ([]broker.Receipt, error) {
	receipts, errs := make([]broker.Receipt, len(ms)), make([]error, len(ms))
	err := h.check(ctx)
	var s *sending
	if err == nil {
		s, err = f.send(ctx, h)
	}
	for i, m := range ms {
		p := publication{m: &m, at: now()}
		if m.ID == "" {
			m.ID = h.q.ids.next(p.at)
		}
		receipts[i].ID = m.ID
		if errs[i] = err; err == nil {
			receipts[i].Duplicate, errs[i] = h.publish(ctx, p, s)
		}
	}
	if err == nil {
		err = s.answer(ctx)
	}
	for i := range errs {
		if errs[i] == nil {
			errs[i] = err
		}
		errs[i] = opError("publish", h.q.name, errs[i])
	}
	return receipts, broker.NewBatchError(errs)
}

func (h *Queue) check(ctx context.Context) error {
	if ctx.Err() != nil {
		return broker.ContextError(ctx)
	}
	return h.ended()
}

func (h *Queue) connection() *Broker { return h.b }

func (h *Queue) ended() error {
	if h.gate.ended() {
		return broker.ErrClosed
	}
	return nil
}

// publish stores p, as a part of s unless that is nil.
func (h *Queue) publish(ctx context.Context, p publication, s *sending) (duplicate bool, err error) {
	if err := h.check(ctx); err != nil {
		return false, err
	}
	if err := broker.ValidateMessage(p.m, &h.caps); err != nil {
		return false, err
	}
	if len(p.m.Body) > smallBody {
		p.m.Body = append([]byte(nil), p.m.Body...)
	}
	if s == nil {
		return h.q.store(ctx, h.gate, p)
	}
	delay, after, err := s.one()
	if err != nil {
		return false, err
	}
	p.delay = delay
	duplicate, err = h.q.store(ctx, h.gate, p)
	return duplicate, after(err)
}

// setDefaults applies the queue's own delay and time to live.
func (q *queue) setDefaults(e *entry) {
	if q.cfg.Delay > 0 && (e.extra == nil || e.extra.Delay == 0) {
		e.due = e.at + int64(q.cfg.Delay)
	}
	q.setTTL(e, e.at)
}

// setTTL applies the queue's own time to live from a time on.
func (q *queue) setTTL(e *entry, from int64) {
	ttl := q.cfg.TTL
	if ttl == 0 {
		ttl = q.srv.rules.retention
	}
	if e.expires == 0 && ttl > 0 {
		e.expires = from + int64(ttl)
	}
}

// PublishBatch stores copies of ms in order, each on its own.
func (h *Queue) PublishBatch(ctx context.Context, ms []broker.Message) ([]broker.Receipt, error) {
	if f := h.q.srv.faults.Load(); f != nil {
		return h.publishBatchUnder(ctx, ms, f)
	}
	receipts := make([]broker.Receipt, len(ms))
	var errs []error
	for i := range ms {
		var err error
		if receipts[i], err = h.Publish(ctx, ms[i]); err != nil {
			if errs == nil {
				errs = make([]error, len(ms))
			}
			errs[i] = err
		}
	}
	return receipts, broker.NewBatchError(errs)
}

// Consumer opens a consumer that competes with all others of the queue.
// Nothing is handed out ahead of Receive, whatever Prefetch says.
func (h *Queue) Consumer(ctx context.Context, opts *broker.ConsumerOptions) (broker.Consumer, error) {
	c, err := h.consumer(ctx, opts)
	if err != nil {
		return nil, opError("consumer", h.q.name, err)
	}
	return c, nil
}

func (h *Queue) consumer(ctx context.Context, opts *broker.ConsumerOptions) (*Consumer, error) {
	if err := broker.ContextError(ctx); err != nil {
		return nil, err
	}
	if err := broker.ValidateConsumer(opts, &h.caps); err != nil {
		return nil, err
	}
	c := &Consumer{h: h, q: h.q}
	if h.caps.Lease {
		c.lease = h.q.lease()
		if opts != nil && opts.Lease > 0 {
			c.lease = opts.Lease
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.isClosed {
		return nil, broker.ErrClosed
	}
	if h.q.deleted.Load() {
		return nil, broker.ErrNotFound
	}
	h.consumers[c] = struct{}{}
	h.q.mu.Lock()
	h.q.consumers++
	h.q.mu.Unlock()
	return c, nil
}

// lease is how long a delivery is held by default.
func (q *queue) lease() time.Duration {
	if q.cfg.Lease > 0 {
		return q.cfg.Lease
	}
	return q.srv.rules.lease
}

// Close closes the handle and its consumers: blocked calls return ErrClosed
// and what is unsettled goes back to the queue. It may be called again.
func (h *Queue) Close() error {
	h.mu.Lock()
	if h.isClosed {
		h.mu.Unlock()
		return nil
	}
	h.isClosed = true
	close(h.gate.closed)
	cs := h.consumers
	h.consumers = nil
	h.mu.Unlock()
	h.q.srv.wake()
	for c := range cs {
		c.shut(broker.ErrClosed)
	}
	h.b.handles.Remove(h)
	if h.onClose != nil {
		return h.onClose()
	}
	return nil
}
