package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/queuestream/broker"
)

// A topology remembers what this program declared: to declare it again when a
// connection is replaced, and since AMQP cannot tell what a queue is.
type topology struct {
	mu        sync.Mutex
	queues    map[string]queueInfo // by the program's name
	declared  map[string]amqp.Table
	exchanges map[string]string // kind
	bindings  []binding
}

// A binding leads from an exchange to a queue or another exchange.
type binding struct {
	to, from   string
	toExchange bool
	key        string
	args       amqp.Table
}

func (b *binding) equal(c *binding) bool {
	return b.to == c.to && b.from == c.from && b.toExchange == c.toExchange && b.key == c.key && maps.Equal(b.args, c.args)
}

func (b *binding) declare(ch *amqp.Channel) error {
	if b.toExchange {
		return ch.ExchangeBind(b.to, b.key, b.from, false, b.args)
	}
	return ch.QueueBind(b.to, b.key, b.from, false, b.args)
}

func (b *binding) remove(ch *amqp.Channel) error {
	if b.toExchange {
		return ch.ExchangeUnbind(b.to, b.key, b.from, false, b.args)
	}
	return ch.QueueUnbind(b.to, b.key, b.from, b.args)
}

func newTopology() *topology {
	return &topology{
		queues: map[string]queueInfo{}, declared: map[string]amqp.Table{}, exchanges: map[string]string{},
	}
}

func (t *topology) queue(name string) (queueInfo, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	i, ok := t.queues[name]
	return i, ok
}

func (t *topology) addQueue(info queueInfo, args amqp.Table) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.queues[info.name] = info
	for _, n := range info.queues() {
		t.declared[n] = info.arguments(n, args)
	}
}

func (t *topology) removeQueue(info queueInfo) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.queues, info.name)
	names := info.queues()
	for _, n := range names {
		delete(t.declared, n)
	}
	t.bindings = slices.DeleteFunc(t.bindings, func(b binding) bool { return !b.toExchange && slices.Contains(names, b.to) })
}

func (t *topology) addExchange(name, kind string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.exchanges[name] = kind
}

func (t *topology) exchange(name string) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.exchanges[name]
}

func (t *topology) removeExchange(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.exchanges, name)
	t.bindings = slices.DeleteFunc(t.bindings, func(b binding) bool { return b.from == name || b.toExchange && b.to == name })
}

func (t *topology) addBinding(b binding) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !slices.ContainsFunc(t.bindings, func(c binding) bool { return c.equal(&b) }) {
		t.bindings = append(t.bindings, b)
	}
}

func (t *topology) removeBinding(b binding) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.bindings = slices.DeleteFunc(t.bindings, func(c binding) bool { return c.equal(&b) })
}

// redeclare runs on each new connection before anything else uses it. What
// fails is logged: whoever uses it gets the error again.
func (b *Broker) redeclare(ctx context.Context, g *generation) {
	t := b.topo
	t.mu.Lock()
	exchanges, queues, bindings := maps.Clone(t.exchanges), maps.Clone(t.declared), slices.Clone(t.bindings)
	t.mu.Unlock()
	if len(exchanges)+len(queues)+len(bindings) == 0 {
		return
	}
	d := redeclaration{g: g}
	_, err := call(ctx, func() (struct{}, error) {
		for name, kind := range exchanges {
			d.do(fmt.Sprintf("exchange %q", name), func(ch *amqp.Channel) error {
				return ch.ExchangeDeclare(name, kind, true, false, false, false, nil)
			})
		}
		for name, args := range queues {
			d.do(fmt.Sprintf("queue %q", name), func(ch *amqp.Channel) error {
				_, err := ch.QueueDeclare(name, true, false, false, false, args)
				return err
			})
		}
		for i := range bindings {
			d.do(fmt.Sprintf("binding of %q to %q", bindings[i].to, bindings[i].from), bindings[i].declare)
		}
		return struct{}{}, errors.Join(append(d.errs, d.close())...)
	}, nil)
	if err != nil {
		b.o.Logger.Warn("declaring again failed", "adapter", adapterName, "error", err)
	}
}

// A redeclaration goes on after a failure, on a new channel.
type redeclaration struct {
	g    *generation
	ch   *amqp.Channel
	errs []error
}

func (d *redeclaration) do(what string, fn func(*amqp.Channel) error) {
	if d.g.conn.IsClosed() {
		return
	}
	var err error
	if d.ch == nil || d.ch.IsClosed() {
		if d.ch, err = d.g.conn.Channel(); err != nil {
			d.ch = nil
		}
	}
	if err == nil {
		err = fn(d.ch)
	}
	if err != nil {
		d.errs = append(d.errs, fmt.Errorf("%s: %w", what, classify(err)))
	}
}

func (d *redeclaration) close() error {
	if d.ch == nil {
		return nil
	}
	return closeChannel(d.ch)
}

// describe finds out what a queue is: from what this program declared, from the
// management API, or by asking whether it exists.
func (b *Broker) describe(ctx context.Context, name string) (queueInfo, error) {
	if info, ok := b.topo.queue(name); ok {
		_, _, err := b.inspect(ctx, info.queues()[0])
		return info, err
	}
	_, _, err := b.inspect(ctx, name)
	if err == nil {
		info := queueInfo{name: name}
		if b.manage != nil {
			return b.manage.describe(ctx, info, name)
		}
		return info, nil
	}
	if !errors.Is(err, broker.ErrNotFound) {
		return queueInfo{}, err
	}
	info := queueInfo{name: name}
	for info.shards <= slots {
		_, _, serr := b.inspect(ctx, shardName(name, info.shards))
		if errors.Is(serr, broker.ErrNotFound) {
			break
		}
		if serr != nil {
			return queueInfo{}, serr
		}
		info.shards++
	}
	if info.shards == 0 {
		return queueInfo{}, err
	}
	if b.manage != nil {
		return b.manage.describe(ctx, info, shardName(name, 0))
	}
	return info, nil
}

// inspect returns the ready messages and the consumers of a queue in the broker.
func (b *Broker) inspect(ctx context.Context, name string) (ready, consumers int, err error) {
	var q amqp.Queue
	err = b.channel(ctx, func(ch *amqp.Channel) (err error) {
		q, err = ch.QueueDeclarePassive(name, true, false, false, false, nil)
		return err
	})
	if err != nil { // after ctx ended, q may still be written to
		return 0, 0, err
	}
	return q.Messages, q.Consumers, nil
}
