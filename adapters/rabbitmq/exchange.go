package rabbitmq

import (
	"context"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/queuestream/broker"
)

// An Exchange routes messages. The one named "" is AMQP's default exchange: it
// routes to the queue that the routing key names.
type Exchange struct {
	b      *Broker
	name   string
	caps   broker.ExchangeCapabilities
	window *window
	calls  calls
}

var _ broker.Exchange = (*Exchange)(nil)

// Exchange implements [broker.Exchanger]. Capabilities name the kind where
// this Broker declared the exchange, or Options.Management is set.
func (b *Broker) Exchange(ctx context.Context, name string) (broker.Exchange, error) {
	e, err := b.openExchange(ctx, name)
	if err != nil {
		return nil, fail("open exchange", name, err)
	}
	return e, nil
}

func (b *Broker) openExchange(ctx context.Context, name string) (*Exchange, error) {
	if b.isClosed() {
		return nil, broker.ErrClosed
	}
	kind := broker.ExchangeDirect
	if name != "" {
		if err := broker.ValidateDeclaredName(name); err != nil {
			return nil, err
		}
		err := b.channel(ctx, func(ch *amqp.Channel) error {
			return ch.ExchangeDeclarePassive(name, amqp.ExchangeDirect, true, false, false, false, nil)
		})
		if err != nil {
			return nil, err
		}
		if kind, err = b.exchangeKind(ctx, name); err != nil {
			return nil, err
		}
	}
	e := &Exchange{
		b: b, name: name, window: newWindow(b.o.Window, b.o.WindowBytes),
		caps: broker.ExchangeCapabilities{
			Kind: kind, Unroutable: true, TopicWords: true, MatchAny: true,
			Queue: broker.QueueCapabilities{
				// Groups are honoured by the ordered queues bound to it.
				Groups: true, TTL: true, Headers: true, MaxBytes: b.o.MaxMessageBytes, Durable: true,
			},
		},
	}
	return e, b.add(e)
}

func (b *Broker) exchangeKind(ctx context.Context, name string) (broker.ExchangeKind, error) {
	kind := b.topo.exchange(name)
	if kind == "" {
		kind, _ = strings.CutPrefix(name, "amq.") // the predeclared ones are named after their kind
	}
	if parseKind(kind) == 0 && b.manage != nil {
		var e struct {
			Type string `json:"type"`
		}
		if err := b.manage.get(ctx, &e, "exchanges", b.manage.vhost, name); err != nil {
			return 0, err
		}
		kind = e.Type
	}
	return parseKind(kind), nil
}

func parseKind(s string) broker.ExchangeKind {
	for _, k := range []broker.ExchangeKind{broker.ExchangeDirect, broker.ExchangeFanout, broker.ExchangeTopic, broker.ExchangeHeaders} {
		if k.String() == s {
			return k
		}
	}
	return 0
}

// Name implements [broker.Exchange].
func (e *Exchange) Name() string { return e.name }

// Capabilities implements [broker.Exchange].
func (e *Exchange) Capabilities() broker.ExchangeCapabilities { return e.caps }

// RouteTo implements [broker.Exchange]. The key has at most 255 bytes.
func (e *Exchange) RouteTo(routingKey string) broker.Publisher { return &route{e, routingKey} }

// Close implements [broker.Exchange].
func (e *Exchange) Close() error {
	e.calls.close()
	e.b.remove(e)
	return nil
}

func (e *Exchange) drain(ctx context.Context) error { return e.calls.wait(ctx) }

type route struct {
	e   *Exchange
	key string
}

// Publish implements [broker.Publisher].
func (r *route) Publish(ctx context.Context, m broker.Message) (broker.Receipt, error) {
	rs, errs := r.publish(ctx, []broker.Message{m})
	return rs[0], fail("publish", r.e.name, errs[0])
}

// PublishBatch implements [broker.Publisher].
func (r *route) PublishBatch(ctx context.Context, ms []broker.Message) ([]broker.Receipt, error) {
	rs, errs := r.publish(ctx, ms)
	for i, err := range errs {
		errs[i] = fail("publish", r.e.name, err)
	}
	return rs, broker.NewBatchError(errs)
}

func (r *route) publish(ctx context.Context, ms []broker.Message) ([]broker.Receipt, []error) {
	rs, errs := prepare(ms, &r.e.caps.Queue)
	var refused error
	if len(r.key) > maxShortString {
		refused = broker.Invalid("routing key of %d bytes: at most %d", len(r.key), maxShortString)
	} else if !r.e.calls.begin() {
		refused = broker.ErrClosed
	}
	if refused != nil {
		for i := range errs {
			errs[i] = refused
		}
		return rs, errs
	}
	defer r.e.calls.end()
	var os []outbound
	var index []int
	now := time.Now()
	for i := range ms {
		if errs[i] != nil {
			continue
		}
		m := ms[i]
		m.ID = rs[i].ID
		o := outbound{exchange: r.e.name, key: r.key, msg: encode(&m, 0, time.Time{}, now)}
		o.msg.Headers[headerSlot] = slotHeader(m.GroupID)
		os, index = append(os, o), append(index, i)
	}
	if len(os) == 0 {
		return rs, errs
	}
	sent := make([]error, len(os))
	r.e.b.pub.publish(ctx, r.e.window, os, sent)
	for j, i := range index {
		errs[i] = sent[j]
	}
	return rs, errs
}

// DeclareExchange implements [broker.Admin]; exchanges are durable.
func (b *Broker) DeclareExchange(ctx context.Context, name string, kind broker.ExchangeKind) error {
	err := checkName(name)
	if err == nil && parseKind(kind.String()) == 0 {
		err = broker.Invalid("exchange kind %d: want direct, fanout, topic or headers", kind)
	}
	if err == nil {
		err = b.channel(ctx, func(ch *amqp.Channel) error {
			return ch.ExchangeDeclare(name, kind.String(), true, false, false, false, nil)
		})
	}
	if err == nil {
		b.topo.addExchange(name, kind.String())
	}
	return fail("declare exchange", name, err)
}

// DeleteExchange implements [broker.Admin].
func (b *Broker) DeleteExchange(ctx context.Context, name string) error {
	err := checkName(name)
	if err == nil {
		b.topo.removeExchange(name)
		err = b.channel(ctx, func(ch *amqp.Channel) error { return ch.ExchangeDelete(name, false, false) })
	}
	return fail("delete exchange", name, err)
}

// Bind implements [broker.Admin]. Binding an ordered queue routes to its shards
// what this package publishes; messages of other clients lack the header that
// selects one, and are unroutable.
func (b *Broker) Bind(ctx context.Context, queue, exchange string, bi broker.Binding) error {
	bd, err := b.queueBinding(ctx, queue, exchange, bi)
	if err == nil {
		err = b.channel(ctx, bd.declare)
	}
	if err == nil {
		b.topo.addBinding(bd)
	}
	return fail("bind", queue, err)
}

// Unbind implements [broker.Admin].
func (b *Broker) Unbind(ctx context.Context, queue, exchange string, bi broker.Binding) error {
	bd, err := b.queueBinding(ctx, queue, exchange, bi)
	if err == nil {
		b.topo.removeBinding(bd)
		err = b.channel(ctx, bd.remove)
	}
	return fail("unbind", queue, err)
}

func (b *Broker) queueBinding(ctx context.Context, queue, exchange string, bi broker.Binding) (binding, error) {
	if err := checkName(queue); err != nil {
		return binding{}, err
	}
	info, err := b.describe(ctx, queue)
	if err != nil {
		return binding{}, err
	}
	bd, err := newBinding(queue, exchange, bi)
	if info.shards > 0 {
		bd.to, bd.toExchange = shardExchange(queue), true
	}
	return bd, err
}

// BindExchange makes the exchange source route to the exchange destination
// what bi matches.
func (b *Broker) BindExchange(ctx context.Context, destination, source string, bi broker.Binding) error {
	bd, err := newBinding(destination, source, bi)
	bd.toExchange = true
	if err == nil {
		err = b.channel(ctx, bd.declare)
	}
	if err == nil {
		b.topo.addBinding(bd)
	}
	return fail("bind exchange", destination, err)
}

// UnbindExchange undoes BindExchange.
func (b *Broker) UnbindExchange(ctx context.Context, destination, source string, bi broker.Binding) error {
	bd, err := newBinding(destination, source, bi)
	bd.toExchange = true
	if err == nil {
		b.topo.removeBinding(bd)
		err = b.channel(ctx, bd.remove)
	}
	return fail("unbind exchange", destination, err)
}

func newBinding(to, from string, bi broker.Binding) (binding, error) {
	bd := binding{to: to, from: from, key: bi.RoutingKey}
	if err := broker.ValidateDeclaredName(from); err != nil {
		return bd, err
	}
	if len(bi.RoutingKey) > maxShortString {
		return bd, broker.Invalid("RoutingKey of %d bytes: at most %d", len(bi.RoutingKey), maxShortString)
	}
	if len(bi.Headers) == 0 {
		return bd, nil
	}
	bd.args = amqp.Table{"x-match": "all-with-x"}
	if bi.MatchAny {
		bd.args["x-match"] = "any-with-x"
	}
	for _, h := range bi.Headers {
		switch _, dup := bd.args[h.Key]; {
		case h.Key == "" || len(h.Key) > maxHeaderKey:
			return bd, broker.Invalid("Headers: key of %d bytes: want 1 to %d", len(h.Key), maxHeaderKey)
		case dup || reservedKey(h.Key):
			return bd, broker.Invalid("Headers: key %q: reserved or given twice", h.Key)
		}
		bd.args[h.Key] = h.Value
	}
	return bd, nil
}
