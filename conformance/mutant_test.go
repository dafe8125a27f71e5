package conformance

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/memory"
)

// A mutation is one defect around the correct memory adapter. A nil hook
// changes nothing.
type mutation struct {
	send      func(q *mutantQueue, ctx context.Context, ms []broker.Message) ([]broker.Receipt, error)
	message   func(q *mutantQueue, m *broker.Message) // edits what is published
	receive   func(k *mutantConsumer, ctx context.Context, max int) ([]*broker.Delivery, error)
	delivery  func(k *mutantConsumer, d *broker.Delivery) // edits what is delivered
	settle    func(k *mutantConsumer, ctx context.Context, d *broker.Delivery, v broker.Verdict) error
	consumer  func(q *mutantQueue, o broker.ConsumerOptions) broker.ConsumerOptions
	caps      func(c *broker.QueueCapabilities)
	closing   func(k *mutantConsumer) error // instead of a consumer's Close
	closed    func(q *mutantQueue) error    // instead of a queue's Close
	shut      func(b *mutantBroker) error   // instead of a broker's Close
	declare   func(cfg *broker.QueueConfig)
	bind      func(b *broker.Binding)
	exchange  func(kind broker.ExchangeKind) broker.ExchangeKind
	route     func(p broker.Publisher, ctx context.Context, m broker.Message) (broker.Receipt, error)
	redrive   func(a *mutantAdmin, ctx context.Context, from, to string, max int) (int, error)
	openQueue func(b *mutantBroker, ctx context.Context, name string, err error) (broker.Queue, error)
	reply     func(q broker.Queue) broker.Queue
}

// A world is what the mutants of one case share, through all connections.
type world struct {
	server *memory.Broker
	end    chan struct{} // closed when the case is over

	mu     sync.Mutex
	queues map[string]*state
}

// state is a mutation's memory of one queue.
type state struct {
	mu      sync.Mutex
	n       int
	at      time.Time
	seen    map[string]int
	held    map[string]*broker.Delivery
	stash   []*broker.Delivery
	dead    string
	content bool
	bodies  map[string][]byte
}

func (w *world) queue(name string) *state {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.queues[name] == nil {
		w.queues[name] = &state{seen: map[string]int{}, held: map[string]*broker.Delivery{}}
	}
	return w.queues[name]
}

type mutantBroker struct {
	*memory.Broker
	m *mutation
	w *world
}

// Queue opens the correct queue and wraps it.
func (b *mutantBroker) Queue(ctx context.Context, name string, opts *broker.QueueOptions) (broker.Queue, error) {
	q, err := b.Broker.Queue(ctx, name, opts)
	if err != nil && b.m.openQueue != nil {
		q, err = b.m.openQueue(b, ctx, name, err)
	}
	if err != nil {
		return nil, err
	}
	return &mutantQueue{Queue: q, b: b, s: b.w.queue(name)}, nil
}

func (b *mutantBroker) Close() error {
	if b.m.shut != nil {
		return b.m.shut(b)
	}
	return b.Broker.Close()
}

func (b *mutantBroker) DeclareQueue(ctx context.Context, name string, cfg broker.QueueConfig) error {
	s := b.w.queue(name)
	s.dead, s.content = cfg.DeadLetter, cfg.ContentDedup
	if b.m.declare != nil {
		b.m.declare(&cfg)
	}
	return b.Broker.DeclareQueue(ctx, name, cfg)
}

func (b *mutantBroker) Bind(ctx context.Context, queue, exchange string, bind broker.Binding) error {
	if b.m.bind != nil {
		b.m.bind(&bind)
	}
	return b.Broker.Bind(ctx, queue, exchange, bind)
}

func (b *mutantBroker) DeclareExchange(ctx context.Context, name string, kind broker.ExchangeKind) error {
	if b.m.exchange != nil {
		kind = b.m.exchange(kind)
	}
	return b.Broker.DeclareExchange(ctx, name, kind)
}

func (b *mutantBroker) Redrive(ctx context.Context, from, to string, max int) (int, error) {
	if b.m.redrive != nil {
		return b.m.redrive(&mutantAdmin{b}, ctx, from, to, max)
	}
	return b.Broker.Redrive(ctx, from, to, max)
}

func (b *mutantBroker) ReplyQueue(ctx context.Context) (broker.Queue, error) {
	q, err := b.Broker.ReplyQueue(ctx)
	if err == nil && b.m.reply != nil {
		q = b.m.reply(q)
	}
	return q, err
}

func (b *mutantBroker) Exchange(ctx context.Context, name string) (broker.Exchange, error) {
	x, err := b.Broker.Exchange(ctx, name)
	if err != nil {
		return nil, err
	}
	return &mutantExchange{x, b.m}, nil
}

type mutantAdmin struct{ *mutantBroker }

type mutantExchange struct {
	broker.Exchange
	m *mutation
}

func (x *mutantExchange) Capabilities() broker.ExchangeCapabilities {
	c := x.Exchange.Capabilities()
	if x.m.exchange != nil {
		c.Kind = broker.ExchangeDirect
	}
	return c
}

func (x *mutantExchange) RouteTo(key string) broker.Publisher {
	return &mutantRoute{x.Exchange.RouteTo(key), x.m}
}

type mutantRoute struct {
	broker.Publisher
	m *mutation
}

func (r *mutantRoute) Publish(ctx context.Context, m broker.Message) (broker.Receipt, error) {
	if r.m.route != nil {
		return r.m.route(r.Publisher, ctx, m)
	}
	return r.Publisher.Publish(ctx, m)
}

type mutantQueue struct {
	broker.Queue
	b *mutantBroker
	s *state
}

func (q *mutantQueue) Capabilities() broker.QueueCapabilities {
	c := q.Queue.Capabilities()
	if q.b.m.caps != nil {
		q.b.m.caps(&c)
	}
	return c
}

func (q *mutantQueue) Publish(ctx context.Context, m broker.Message) (broker.Receipt, error) {
	if q.b.m.send != nil {
		rs, err := q.b.m.send(q, ctx, []broker.Message{m})
		return rs[0], broker.ErrorAt(err, 0)
	}
	if q.b.m.message != nil {
		q.b.m.message(q, &m)
	}
	return q.Queue.Publish(ctx, m)
}

func (q *mutantQueue) PublishBatch(ctx context.Context, ms []broker.Message) ([]broker.Receipt, error) {
	if q.b.m.send != nil {
		return q.b.m.send(q, ctx, ms)
	}
	if q.b.m.message != nil {
		ms = append([]broker.Message(nil), ms...)
		for i := range ms {
			q.b.m.message(q, &ms[i])
		}
	}
	return q.Queue.PublishBatch(ctx, ms)
}

func (q *mutantQueue) Consumer(ctx context.Context, opts *broker.ConsumerOptions) (broker.Consumer, error) {
	var o broker.ConsumerOptions
	if opts != nil {
		o = *opts
	}
	asked := o.Lease
	if q.b.m.consumer != nil {
		o = q.b.m.consumer(q, o)
	}
	k, err := q.Queue.Consumer(ctx, &o)
	if err != nil {
		return nil, err
	}
	return &mutantConsumer{Consumer: k, q: q, s: q.s, lease: asked}, nil
}

func (q *mutantQueue) Close() error {
	if q.b.m.closed != nil {
		return q.b.m.closed(q)
	}
	return q.Queue.Close()
}

type mutantConsumer struct {
	broker.Consumer
	q     *mutantQueue
	s     *state
	lease time.Duration // that was asked for

	mu    sync.Mutex
	stash []*broker.Delivery
	n     int
}

func (k *mutantConsumer) Receive(ctx context.Context, max int) ([]*broker.Delivery, error) {
	receive := k.inner
	if k.q.b.m.receive != nil {
		receive = func(ctx context.Context, max int) ([]*broker.Delivery, error) { return k.q.b.m.receive(k, ctx, max) }
	}
	return receive(ctx, max)
}

// inner receives from the correct adapter, and puts the mutation's settler in.
func (k *mutantConsumer) inner(ctx context.Context, max int) ([]*broker.Delivery, error) {
	ds, err := k.Consumer.Receive(ctx, max)
	for _, d := range ds {
		if k.q.b.m.delivery != nil {
			k.q.b.m.delivery(k, d)
		}
		if k.q.b.m.settle != nil {
			d.Wrap(func(next broker.Settler) broker.Settler { return &mutantSettler{next, k} })
		}
	}
	return ds, err
}

// soon receives what comes within a moment.
func (k *mutantConsumer) soon(ctx context.Context, max int) []*broker.Delivery {
	ctx, cancel := context.WithTimeout(ctx, time.Millisecond)
	defer cancel()
	ds, _ := k.inner(ctx, max)
	return ds
}

func (k *mutantConsumer) Close() error {
	if k.q.b.m.closing != nil {
		return k.q.b.m.closing(k)
	}
	return k.Consumer.Close()
}

type mutantSettler struct {
	next broker.Settler
	k    *mutantConsumer
}

func (s *mutantSettler) SettleOne(ctx context.Context, d *broker.Delivery, v broker.Verdict) error {
	return s.k.q.b.m.settle(s.k, ctx, d, v)
}

func (s *mutantSettler) Settle(ctx context.Context, batch []broker.Outcome) {
	for i := range batch {
		batch[i].Err = s.SettleOne(ctx, batch[i].Delivery, batch[i].Verdict)
	}
}

// mutantHarness is the memory adapter's in virtual time, with the mutation
// around every connection.
func mutantHarness(t *testing.T, m *mutation, only ...string) Harness {
	var w *world
	return Harness{
		Name: "mutant", unreported: true, Kinds: Queue, Only: only, Patience: 24 * time.Hour,
		Million: 1000,
		Around: func(_ T, run func(T)) {
			synctest.Test(t, func(t *testing.T) {
				server, err := memory.Open(t.Context(), nil)
				if err != nil {
					t.Fatal(err)
				}
				w = &world{server: server, end: make(chan struct{}), queues: map[string]*state{}}
				run(t)
				close(w.end)
				if err := server.Close(); err != nil {
					t.Error(err)
				}
			})
		},
		Open: func(context.Context) (broker.Broker, error) {
			return &mutantBroker{Broker: w.server.Connect(), m: m, w: w}, nil
		},
		QueueConfig: func(cfg *broker.QueueConfig) error {
			if cfg.MaxBytes == 0 {
				cfg.MaxBytes = 256 << 10
			}
			return nil
		},
	}
}

// twice stores a second copy, as a publish that is repeated after a lost answer.
func twice(q *mutantQueue, ctx context.Context, ms []broker.Message) ([]broker.Receipt, error) {
	if _, err := q.Queue.PublishBatch(ctx, ms); err != nil {
		return nil, err
	}
	return q.Queue.PublishBatch(ctx, ms)
}

// Faulty excuses what a lost answer explains, a second copy, and no loss.
func TestFaultyHarness(t *testing.T) {
	for _, test := range []struct {
		name, by string
		m        mutation
		faulty   bool
		want     Status
	}{
		{"a message is stored twice", "AckedNotLost", mutation{send: twice}, false, StatusFail},
		{"a message is stored twice", "AckedNotLost", mutation{send: twice}, true, StatusPass},
		{"a message is lost", "AckedNotLost", mutation{send: drop(func(n int) bool { return n == 77 })}, true, StatusFail},
	} {
		h := mutantHarness(t, &test.m, test.by)
		h.Faulty = test.faulty
		report, err := Check(t.Context(), h)
		if err != nil || len(report.Results) != 1 || report.Results[0].Status != test.want {
			t.Errorf("%s, faulty %t: %v, %+v", test.name, test.faulty, err, report.Results)
		}
	}
}
