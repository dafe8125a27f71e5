package broker

import (
	"context"
	"slices"
)

// A PublishHook sees a private copy of every message and record before it is
// sent, whatever way it is published, and may change it. An error refuses it:
// nothing is sent. done, unless nil, is called once with the outcome. Hooks run
// in the order given to Use, their dones in reverse; they are called from many
// goroutines at once.
type PublishHook func(ctx context.Context, to string, out Outgoing) (done func(Receipt, error), err error)

// An Outgoing is a message or a record on its way out. A change is made to a
// copy that belongs to the hook; Payload must be replaced, not written to.
type Outgoing interface {
	Payload() []byte
	SetPayload(payload []byte)
	HeaderSet() *Headers
	// Message returns the message for changing, or nil: it is a record.
	Message() *Message
	// Record returns the record for changing, or nil: it is a message.
	Record() *Record
}

// Use returns b with hooks around every publish: through its queues, streams,
// exchanges and transactions, and those of ReplyQueue. Of the optional
// interfaces the result has those that carry no data past the hooks: Admin,
// QueueNamer, and Exchanger, ReplyQueuer and Transactional with the hooks
// applied. Its queues have BatchSizer alone, and its streams Identifier. A
// transaction takes streams of the same Use, of what that is around, or of b; one
// with other hooks is [ErrInvalid].
//
// Admin.Peek and Redrive see messages as they were sent.
func Use(b Broker, hooks ...PublishHook) Broker {
	if len(hooks) == 0 {
		return b
	}
	return &hookedBroker{Broker: b, hooks: slices.Clone(hooks)}
}

type hookedBroker struct {
	Broker
	hooks []PublishHook
}

// As passes on what cannot bypass the hooks.
func (b *hookedBroker) As(target any) bool {
	switch t := target.(type) {
	case *Admin:
		a, ok := As[Admin](b.Broker)
		if ok {
			*t = a
		}
		return ok
	case *QueueNamer:
		n, ok := As[QueueNamer](b.Broker)
		if ok {
			*t = n
		}
		return ok
	case *Exchanger:
		x, ok := As[Exchanger](b.Broker)
		if ok {
			*t = hookedExchanger{x, b.hooks}
		}
		return ok
	case *ReplyQueuer:
		r, ok := As[ReplyQueuer](b.Broker)
		if ok {
			*t = hookedReplyQueuer{r, b.hooks}
		}
		return ok
	case *Transactional:
		x, ok := As[Transactional](b.Broker)
		if ok {
			*t = hookedTransactional{x, b.hooks}
		}
		return ok
	}
	return false
}

func (b *hookedBroker) Queue(ctx context.Context, name string, opts *QueueOptions) (Queue, error) {
	q, err := b.Broker.Queue(ctx, name, opts)
	if err != nil {
		return nil, err
	}
	return newHookedQueue(q, b.hooks), nil
}

func (b *hookedBroker) Stream(ctx context.Context, name string, opts *StreamOptions) (Stream, error) {
	s, err := b.Broker.Stream(ctx, name, opts)
	if err != nil {
		return nil, err
	}
	return &hookedStream{Stream: s, hooks: b.hooks}, nil
}

// hookedPublisher is a Publisher behind hooks.
type hookedPublisher struct {
	to    string
	inner Publisher
	hooks []PublishHook
}

func (p *hookedPublisher) Publish(ctx context.Context, m Message) (Receipt, error) {
	done, err := runHooks(ctx, p.to, p.hooks, &outgoing{m: &m})
	if err != nil {
		return Receipt{ID: m.ID}, err
	}
	r, err := p.inner.Publish(ctx, m)
	done(r, err)
	return r, err
}

func (p *hookedPublisher) PublishBatch(ctx context.Context, ms []Message) ([]Receipt, error) {
	return hookBatch(ms, func(m *Message) (func(Receipt, error), error) {
		return runHooks(ctx, p.to, p.hooks, &outgoing{m: m})
	}, func(m *Message) string { return m.ID }, func(ms []Message) ([]Receipt, error) {
		return p.inner.PublishBatch(ctx, ms)
	})
}

type hookedQueue struct {
	Queue
	hookedPublisher
}

// As passes on how full requests are.
func (q *hookedQueue) As(target any) bool {
	b, ok := target.(*BatchSizer)
	if ok {
		*b, ok = As[BatchSizer](q.Queue)
	}
	return ok
}

func newHookedQueue(q Queue, hooks []PublishHook) *hookedQueue {
	return &hookedQueue{q, hookedPublisher{q.Name(), q, hooks}}
}

// Adapter returns that of the queue.
func (q *hookedQueue) Adapter() string { return adapterOf(q.Queue) }

func (q *hookedQueue) Publish(ctx context.Context, m Message) (Receipt, error) {
	return q.hookedPublisher.Publish(ctx, m)
}

func (q *hookedQueue) PublishBatch(ctx context.Context, ms []Message) ([]Receipt, error) {
	return q.hookedPublisher.PublishBatch(ctx, ms)
}

type hookedStream struct {
	Stream
	hooks []PublishHook
}

// Adapter returns that of the stream.
func (s *hookedStream) Adapter() string { return adapterOf(s.Stream) }

func (s *hookedStream) Publish(ctx context.Context, r Record) (Receipt, error) {
	done, err := runHooks(ctx, s.Name(), s.hooks, &outgoing{r: &r})
	if err != nil {
		return Receipt{}, err
	}
	rc, err := s.Stream.Publish(ctx, r)
	done(rc, err)
	return rc, err
}

func (s *hookedStream) PublishBatch(ctx context.Context, rs []Record) ([]Receipt, error) {
	return hookBatch(rs, func(r *Record) (func(Receipt, error), error) {
		return runHooks(ctx, s.Name(), s.hooks, &outgoing{r: r})
	}, func(*Record) string { return "" }, func(rs []Record) ([]Receipt, error) {
		return s.Stream.PublishBatch(ctx, rs)
	})
}

// As passes on the stream's identity.
func (s *hookedStream) As(target any) bool {
	i, ok := target.(*Identifier)
	if ok {
		*i, ok = As[Identifier](s.Stream)
	}
	return ok
}

type hookedExchanger struct {
	inner Exchanger
	hooks []PublishHook
}

func (x hookedExchanger) Exchange(ctx context.Context, name string) (Exchange, error) {
	e, err := x.inner.Exchange(ctx, name)
	if err != nil {
		return nil, err
	}
	return hookedExchange{e, x.hooks}, nil
}

type hookedExchange struct {
	Exchange
	hooks []PublishHook
}

func (e hookedExchange) RouteTo(key string) Publisher {
	return &hookedPublisher{e.Name(), e.Exchange.RouteTo(key), e.hooks}
}

type hookedReplyQueuer struct {
	inner ReplyQueuer
	hooks []PublishHook
}

func (r hookedReplyQueuer) ReplyQueue(ctx context.Context) (Queue, error) {
	q, err := r.inner.ReplyQueue(ctx)
	if err != nil {
		return nil, err
	}
	return newHookedQueue(q, r.hooks), nil
}

type hookedTransactional struct {
	inner Transactional
	hooks []PublishHook
}

func (x hookedTransactional) Transactor(ctx context.Context, id string) (Transactor, error) {
	t, err := x.inner.Transactor(ctx, id)
	if err != nil {
		return nil, err
	}
	return hookedTransactor{t, x.hooks}, nil
}

type hookedTransactor struct {
	Transactor
	hooks []PublishHook
}

func (t hookedTransactor) Begin(ctx context.Context) (Tx, error) {
	tx, err := t.Transactor.Begin(ctx)
	if err != nil {
		return nil, err
	}
	return hookedTx{tx, t.hooks}, nil
}

type hookedTx struct {
	Tx
	hooks []PublishHook
}

// Publish runs the hooks, then publishes to the stream under the hooked one,
// which is what the adapter knows; a stream with the hooks of another Use stays
// as it is, which the adapter refuses, since those would be bypassed. Dones run
// once the records are in the transaction, whose outcome they do not tell.
func (t hookedTx) Publish(ctx context.Context, s Stream, rs ...Record) error {
	if h, ok := s.(*hookedStream); ok && &h.hooks[0] == &t.hooks[0] { // of the same Use: there are no hooks without one
		s = h.Stream
	}
	_, err := hookBatch(rs, func(r *Record) (func(Receipt, error), error) {
		return runHooks(ctx, s.Name(), t.hooks, &outgoing{r: r})
	}, func(*Record) string { return "" }, func(rs []Record) ([]Receipt, error) {
		return make([]Receipt, len(rs)), t.Tx.Publish(ctx, s, rs...)
	})
	return err
}

// outgoing is an Outgoing over a copy that the publish owns.
type outgoing struct {
	m *Message
	r *Record
}

func (o *outgoing) Message() *Message { return o.m }
func (o *outgoing) Record() *Record   { return o.r }

func (o *outgoing) Payload() []byte {
	if o.m != nil {
		return o.m.Body
	}
	return o.r.Value
}

func (o *outgoing) SetPayload(b []byte) {
	if o.m != nil {
		o.m.Body = b
		return
	}
	o.r.Value = b
}

func (o *outgoing) HeaderSet() *Headers {
	if o.m != nil {
		return &o.m.Headers
	}
	return &o.r.Headers
}

// runHooks gives out a private copy of the headers and runs the hooks. With an
// error the dones of those that ran have been called.
func runHooks(ctx context.Context, to string, hooks []PublishHook, out *outgoing) (func(Receipt, error), error) {
	h := out.HeaderSet()
	*h = slices.Clone(*h)
	if out.m != nil && out.m.ID == "" {
		out.m.ID = NewID() // so that hooks see it, and a receipt carries it even on failure
	}
	var dones []func(Receipt, error)
	done := func(r Receipt, err error) {
		for _, d := range slices.Backward(dones) {
			d(r, err)
		}
	}
	for _, hook := range hooks {
		d, err := hook(ctx, to, out)
		if err != nil {
			r := Receipt{}
			if out.m != nil {
				r.ID = out.m.ID
			}
			done(r, err)
			return nil, &Error{Op: "publish", Name: to, Err: err}
		}
		if d != nil {
			dones = append(dones, d)
		}
	}
	return done, nil
}

// hookBatch runs the hooks for copies of items, sends those that were not
// refused, and puts the results together.
func hookBatch[T any](items []T, hook func(*T) (func(Receipt, error), error), id func(*T) string,
	send func([]T) ([]Receipt, error),
) ([]Receipt, error) {
	receipts, errs := make([]Receipt, len(items)), make([]error, len(items))
	copies := slices.Clone(items)
	dones := make([]func(Receipt, error), 0, len(items))
	index := make([]int, 0, len(items))
	kept := copies[:0]
	for i := range items {
		c := copies[i]
		done, err := hook(&c)
		if err != nil {
			receipts[i], errs[i] = Receipt{ID: id(&c)}, err
			continue
		}
		kept, dones, index = append(kept, c), append(dones, done), append(index, i)
	}
	if len(kept) > 0 {
		rs, err := send(kept)
		for k, i := range index {
			if k < len(rs) {
				receipts[i] = rs[k]
			}
			errs[i] = ErrorAt(err, k)
			dones[k](receipts[i], errs[i])
		}
	}
	return receipts, NewBatchError(errs)
}
