package memory

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/queuestream/broker"
)

var _ broker.Exchange = (*Exchange)(nil)

// An exchange routes; the server's lock guards its bindings.
type exchange struct {
	name     string
	kind     broker.ExchangeKind
	deleted  bool
	bindings []binding
}

type binding struct {
	queue string
	broker.Binding
}

func (b *binding) equal(o *binding) bool {
	return b.queue == o.queue && b.RoutingKey == o.RoutingKey && b.MatchAny == o.MatchAny &&
		slices.Equal(b.Headers, o.Headers)
}

func (x *exchange) unbindAll(queue string) {
	x.bindings = slices.DeleteFunc(slices.Clone(x.bindings), func(b binding) bool { return b.queue == queue })
}

// matches tells whether b routes a message with that key and those headers.
func (b *binding) matches(kind broker.ExchangeKind, key string, h broker.Headers) bool {
	switch kind {
	case broker.ExchangeFanout:
		return true
	case broker.ExchangeDirect:
		return b.RoutingKey == key
	case broker.ExchangeTopic:
		return topicMatches(b.RoutingKey, key)
	case broker.ExchangeHeaders:
		return headersMatch(b.Headers, b.MatchAny, h)
	}
	return false
}

// topicMatches tells whether key matches pattern as AMQP 0-9-1, 3.1.3.3 says:
// words separated by dots, * is one word, # any number of words.
func topicMatches(pattern, key string) bool {
	p, k := words(pattern), words(key)
	// After the loop's step i, row[j] tells whether p[:i] matches k[:j].
	row := make([]bool, len(k)+1)
	row[0] = true
	for _, w := range p {
		if w == "#" {
			for j := range k {
				row[j+1] = row[j+1] || row[j]
			}
			continue
		}
		for j := len(k); j > 0; j-- {
			row[j] = row[j-1] && (w == "*" || w == k[j-1])
		}
		row[0] = false
	}
	return row[len(k)]
}

func words(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, ".")
}

// headersMatch tells whether any or all of want are in h. Without any wanted,
// all match and none does for any, as in AMQP.
func headersMatch(want broker.Headers, matchAny bool, h broker.Headers) bool {
	for _, w := range want {
		if slices.Contains(h, w) == matchAny {
			return matchAny
		}
	}
	return !matchAny
}

// DeclareExchange makes an exchange.
func (b *Broker) DeclareExchange(ctx context.Context, name string, kind broker.ExchangeKind) error {
	return opError("declare exchange", name, b.declareExchange(ctx, name, kind))
}

func (b *Broker) declareExchange(ctx context.Context, name string, kind broker.ExchangeKind) error {
	if err := b.check(ctx); err != nil {
		return err
	}
	if err := broker.ValidateDeclaredName(name); err != nil {
		return err
	}
	if err := b.srv.rules.exchangeKind(kind); err != nil {
		return err
	}
	b.srv.mu.Lock()
	defer b.srv.mu.Unlock()
	if x := b.srv.exchanges[name]; x != nil {
		if x.kind != kind {
			return fmt.Errorf("%w: the kind is %v, not %v", broker.ErrConflict, x.kind, kind)
		}
		return nil
	}
	b.srv.exchanges[name] = &exchange{name: name, kind: kind}
	return nil
}

func (r *rules) exchangeKind(kind broker.ExchangeKind) error {
	switch {
	case kind < broker.ExchangeDirect || kind > broker.ExchangeHeaders:
		return broker.Invalid("exchange kind %d", kind)
	case !slices.Contains(r.exchanges, kind):
		return broker.Unsupported("%v exchanges", kind)
	}
	return nil
}

// DeleteExchange removes an exchange with its bindings.
func (b *Broker) DeleteExchange(ctx context.Context, name string) error {
	err := b.check(ctx)
	if err == nil {
		b.srv.mu.Lock()
		if x := b.srv.exchanges[name]; x != nil {
			x.deleted = true
			delete(b.srv.exchanges, name)
		}
		b.srv.mu.Unlock()
	}
	return opError("delete exchange", name, err)
}

// Bind makes an exchange route to a queue what bind matches.
func (b *Broker) Bind(ctx context.Context, queue, exchange string, bind broker.Binding) error {
	return opError("bind", exchange, b.rebind(ctx, queue, exchange, bind, true))
}

// Unbind undoes a Bind with an equal binding.
func (b *Broker) Unbind(ctx context.Context, queue, exchange string, bind broker.Binding) error {
	return opError("unbind", exchange, b.rebind(ctx, queue, exchange, bind, false))
}

func (b *Broker) rebind(ctx context.Context, queue, exchange string, bind broker.Binding, add bool) error {
	if err := b.check(ctx); err != nil {
		return err
	}
	b.srv.mu.Lock()
	defer b.srv.mu.Unlock()
	x := b.srv.exchanges[exchange]
	if x == nil {
		return fmt.Errorf("exchange: %w", broker.ErrNotFound)
	}
	if b.srv.queues[queue] == nil {
		return fmt.Errorf("queue %q: %w", queue, broker.ErrNotFound)
	}
	n := binding{queue: queue, Binding: bind}
	n.Headers = slices.Clone(bind.Headers)
	if add {
		if err := b.srv.rules.binding(x.kind, &bind); err != nil {
			return err
		}
	}
	rest := slices.DeleteFunc(slices.Clone(x.bindings), func(o binding) bool { return o.equal(&n) })
	if add {
		rest = append(rest, n)
	}
	x.bindings = rest
	return nil
}

// binding refuses what an exchange of that kind ignores or cannot express.
func (r *rules) binding(kind broker.ExchangeKind, b *broker.Binding) error {
	if kind != broker.ExchangeHeaders && (len(b.Headers) > 0 || b.MatchAny) {
		return broker.Unsupported("headers in a binding of a %v exchange", kind)
	}
	if (kind == broker.ExchangeHeaders || kind == broker.ExchangeFanout) && b.RoutingKey != "" {
		return broker.Unsupported("a routing key in a binding of a %v exchange", kind)
	}
	if b.MatchAny && !r.exchange.MatchAny {
		return broker.Unsupported("MatchAny")
	}
	if kind == broker.ExchangeTopic && !r.exchange.TopicWords {
		p := strings.TrimSuffix(strings.TrimSuffix(b.RoutingKey, "#"), ".")
		if strings.ContainsAny(p, "*#") {
			return broker.Unsupported(`topic pattern %q: want "#", an exact key or "prefix.#"`, b.RoutingKey)
		}
	}
	return nil
}

// Exchange opens an exchange that was declared.
func (b *Broker) Exchange(ctx context.Context, name string) (broker.Exchange, error) {
	if err := b.check(ctx); err != nil {
		return nil, opError("open exchange", name, err)
	}
	if len(b.srv.rules.exchanges) == 0 {
		return nil, opError("open exchange", name, broker.Unsupported("the profile %q has no exchanges", b.srv.opts.Profile))
	}
	b.srv.mu.RLock()
	x := b.srv.exchanges[name]
	b.srv.mu.RUnlock()
	if x == nil {
		return nil, opError("open exchange", name, broker.ErrNotFound)
	}
	h := &Exchange{b: b, x: x, gate: newGate()}
	if err := b.handles.Add(h); err != nil {
		return nil, opError("open exchange", name, err)
	}
	return h, nil
}

// An Exchange is one handle of an exchange. It is safe for concurrent use.
type Exchange struct {
	b    *Broker
	x    *exchange
	gate *gate
	once sync.Once
}

// Name returns the exchange's name.
func (h *Exchange) Name() string { return h.x.name }

// Capabilities returns what this handle honours. Each queue honours its own,
// and a message is published to all matching queues or to none that refuses a
// field of it.
func (h *Exchange) Capabilities() broker.ExchangeCapabilities {
	c := h.b.srv.rules.exchange
	c.Kind = h.x.kind
	c.Queue = h.b.srv.rules.queueCapabilities(&broker.QueueConfig{})
	if h.b.srv.rules.exchange.Queue.Groups {
		c.Queue.Groups = true // honoured by the ordered queues
	}
	if h.b.srv.rules.exchangesNow {
		c.Queue.Delay = false
	}
	return c
}

// RouteTo returns a Publisher with that routing key.
func (h *Exchange) RouteTo(key string) broker.Publisher { return &route{h, key} }

// Close ends blocked calls. It may be called again.
func (h *Exchange) Close() error {
	h.once.Do(func() {
		close(h.gate.closed)
		h.b.handles.Remove(h)
		h.b.srv.wake()
	})
	return nil
}

func (h *Exchange) stop(error) {}

func (h *Exchange) drain(ctx context.Context) error { return h.gate.wait(ctx) }

type route struct {
	h   *Exchange
	key string
}

// Publish stores a copy of m in every queue that the exchange routes it to;
// ErrNotFound if there is none. If a later queue fails after an earlier one
// has stored its copy, the error wraps ErrUnknownOutcome.
func (r *route) Publish(ctx context.Context, m broker.Message) (broker.Receipt, error) {
	if m.ID == "" {
		m.ID = broker.NewID()
	}
	receipt := broker.Receipt{ID: m.ID}
	return receipt, opError("publish", r.h.x.name, r.publish(ctx, &m))
}

func (r *route) connection() *Broker { return r.h.b }

func (r *route) ended() error {
	if r.h.gate.ended() {
		return broker.ErrClosed
	}
	return nil
}

func (r *route) publish(ctx context.Context, m *broker.Message) error {
	if err := broker.ContextError(ctx); err != nil {
		return err
	}
	if err := r.ended(); err != nil {
		return err
	}
	f := r.h.b.srv.faults.Load()
	if f == nil {
		return r.store(ctx, m, 0)
	}
	s, err := f.send(ctx, r)
	if err != nil {
		return err
	}
	delay, after, err := s.one()
	if err != nil {
		return err
	}
	if err := after(r.store(ctx, m, delay)); err != nil {
		return err
	}
	return s.answer(ctx)
}

// store stores a copy of m in each queue that it goes to.
func (r *route) store(ctx context.Context, m *broker.Message, delay time.Duration) error {
	queues, err := r.targets(m)
	if err != nil {
		return err
	}
	for _, q := range queues {
		c := q.srv.rules.queueCapabilities(&q.cfg)
		c.Groups = c.Groups || q.srv.rules.exchange.Queue.Groups // a queue without groups ignores them
		if err := broker.ValidateMessage(m, &c); err != nil {
			return fmt.Errorf("queue %q: %w", q.name, err)
		}
	}
	stored := false
	for _, q := range queues {
		c := *m
		if len(c.Body) > smallBody {
			c.Body = append([]byte(nil), c.Body...)
		}
		switch _, err := q.store(ctx, r.h.gate, publication{m: &c, at: now(), delay: delay}); {
		case err == nil:
			stored = true
		case errors.Is(err, broker.ErrNotFound): // deleted meanwhile
		case stored:
			return fmt.Errorf("queue %q: %w", q.name, broker.UnknownOutcome(err))
		default:
			return fmt.Errorf("queue %q: %w", q.name, err)
		}
	}
	if !stored && r.h.Capabilities().Unroutable {
		return r.unroutable()
	}
	return nil
}

func (r *route) unroutable() error {
	return fmt.Errorf("%w: %w for routing key %q", broker.ErrNotFound, errNoQueue, r.key)
}

// targets returns the queues that m goes to, each once.
func (r *route) targets(m *broker.Message) ([]*queue, error) {
	s := r.h.b.srv
	c := r.h.Capabilities()
	if err := broker.ValidateMessage(m, &c.Queue); err != nil {
		return nil, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	x := r.h.x
	if x.deleted {
		return nil, broker.ErrNotFound
	}
	var queues []*queue
	for i := range x.bindings {
		b := &x.bindings[i]
		q := s.queues[b.queue]
		if q != nil && b.matches(x.kind, r.key, m.Headers) && !slices.Contains(queues, q) {
			queues = append(queues, q)
		}
	}
	if len(queues) == 0 && c.Unroutable {
		return nil, r.unroutable()
	}
	return queues, nil
}

// PublishBatch publishes ms in order, each on its own.
func (r *route) PublishBatch(ctx context.Context, ms []broker.Message) ([]broker.Receipt, error) {
	receipts := make([]broker.Receipt, len(ms))
	errs := make([]error, len(ms))
	for i := range ms {
		receipts[i], errs[i] = r.Publish(ctx, ms[i])
	}
	return receipts, broker.NewBatchError(errs)
}
