package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"sync"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/queuestream/broker"
)

// Direct reply-to: https://www.rabbitmq.com/docs/direct-reply-to. The broker
// makes a name for a channel that consumes from the pseudo-queue, and tells it
// to whoever receives a request of that channel. A probe to ourselves brings it
// here, so that requests can be published anywhere.
const (
	directPseudo = "amq.rabbitmq.reply-to"
	directPrefix = directPseudo + "."
)

// A directQueue is a channel that answers are handed to.
type directQueue struct {
	*Queue // of the name: what others publish to
	ch     *amqp.Channel
	in     <-chan amqp.Delivery // closed with the channel
	closed chan struct{}
	once   sync.Once
}

func (b *Broker) directReplies(ctx context.Context) (broker.Queue, error) {
	if b.isClosed() {
		return nil, broker.ErrClosed
	}
	g, err := b.control.get(ctx)
	if err != nil {
		return nil, err
	}
	q := &directQueue{closed: make(chan struct{})}
	name, err := call(ctx, func() (string, error) { return q.open(g) }, func(string) { _ = q.ch.Close() })
	if err != nil {
		if ctx.Err() == nil {
			err = classify(err)
		}
		return nil, err
	}
	q.Queue = newQueue(b, queueInfo{name: name, direct: true})
	if err := b.add(q); err != nil {
		return nil, errors.Join(err, closeChannel(q.ch))
	}
	return q, nil
}

// open consumes from the pseudo-queue and finds out the name.
func (q *directQueue) open(g *generation) (name string, err error) {
	if q.ch, err = g.conn.Channel(); err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, closeChannel(q.ch))
		}
	}()
	if q.in, err = q.ch.Consume(directPseudo, "", true, false, false, false, nil); err != nil {
		return "", err
	}
	probe, err := q.ch.QueueDeclare("", false, true, true, false, nil)
	if err != nil {
		return "", err
	}
	back, err := q.ch.Consume(probe.Name, "", true, true, false, false, nil)
	if err != nil {
		return "", err
	}
	if err := q.ch.Publish("", probe.Name, true, false, amqp.Publishing{ReplyTo: directPseudo}); err != nil {
		return "", err
	}
	d, ok := <-back
	if !ok {
		return "", fmt.Errorf("%w: the channel was closed", broker.ErrUnavailable)
	}
	_, err = q.ch.QueueDelete(probe.Name, false, false, false)
	return d.ReplyTo, err
}

// Consumer implements [broker.Queue]. Several share the answers.
func (q *directQueue) Consumer(ctx context.Context, opts *broker.ConsumerOptions) (broker.Consumer, error) {
	err := broker.ContextError(ctx)
	if err == nil {
		err = broker.ValidateConsumer(opts, &q.caps)
	}
	if err != nil {
		return nil, fail("consumer", q.Name(), err)
	}
	return &directConsumer{q: q, closed: make(chan struct{})}, nil
}

// Close implements [broker.Queue]: answers that come later are dropped.
func (q *directQueue) Close() error {
	q.once.Do(func() {
		close(q.closed)
		q.b.remove(q)
		ctx, cancel := context.WithTimeout(context.Background(), q.b.o.CloseTimeout)
		defer cancel()
		// An error means that the channel is gone already, or goes with its
		// connection.
		_, _ = call(ctx, func() (struct{}, error) { return struct{}{}, closeChannel(q.ch) }, nil)
	})
	return q.Queue.Close()
}

// A directConsumer receives answers that the broker has forgotten already.
type directConsumer struct {
	q      *directQueue
	closed chan struct{}
	once   sync.Once
}

// Receive implements [broker.Consumer].
func (c *directConsumer) Receive(ctx context.Context, max int) ([]*broker.Delivery, error) {
	ds, err := c.receive(ctx, max)
	return ds, fail("receive", c.q.Name(), err)
}

func (c *directConsumer) receive(ctx context.Context, max int) ([]*broker.Delivery, error) {
	if max <= 0 {
		return nil, broker.Invalid("max %d: want at least 1", max)
	}
	if err := broker.ContextError(ctx); err != nil {
		return nil, err
	}
	var ds []*broker.Delivery
	select {
	case <-c.closed:
		return nil, broker.ErrClosed
	case <-c.q.closed:
		return nil, broker.ErrClosed
	default:
	}
	select {
	case a, ok := <-c.q.in:
		if !ok {
			return nil, c.ended()
		}
		ds = append(ds, c.delivery(&a))
	case <-c.closed:
		return nil, broker.ErrClosed
	case <-c.q.closed:
		return nil, broker.ErrClosed
	case <-ctx.Done():
		return nil, broker.ContextError(ctx)
	}
	for len(ds) < max {
		select {
		case a, ok := <-c.q.in:
			if !ok {
				return ds, nil
			}
			ds = append(ds, c.delivery(&a))
		default:
			return ds, nil
		}
	}
	return ds, nil
}

func (c *directConsumer) ended() error {
	select {
	case <-c.q.closed:
		return broker.ErrClosed
	default:
		return fmt.Errorf("%w: direct reply-to ended with its connection, the answers under way are lost", broker.ErrNotFound)
	}
}

func (c *directConsumer) delivery(a *amqp.Delivery) *broker.Delivery {
	d := &broker.Delivery{}
	decode(a, d)
	if d.ID == "" {
		d.ID = broker.NewID() // from a client that sets none
	}
	d.Bind(c, a.DeliveryTag, 0)
	return d
}

// SettleOne implements [broker.Settler].
func (c *directConsumer) SettleOne(_ context.Context, _ *broker.Delivery, v broker.Verdict) error {
	if v.Kind == broker.VerdictAck {
		return nil
	}
	return fail(v.Kind.String(), c.q.Name(), broker.Unsupported("a direct reply has left the broker: it can only be acknowledged"))
}

// Settle implements [broker.Settler].
func (c *directConsumer) Settle(ctx context.Context, batch []broker.Outcome) {
	for i := range batch {
		batch[i].Err = c.SettleOne(ctx, batch[i].Delivery, batch[i].Verdict)
	}
}

// Close implements [broker.Consumer].
func (c *directConsumer) Close() error {
	c.once.Do(func() { close(c.closed) })
	return nil
}

// openReplyTarget opens a caller's direct reply-to for publishing. A caller
// that is gone is [broker.ErrNotFound]; one that goes later drops the answer,
// since the broker reports every direct reply as routed nowhere.
func (b *Broker) openReplyTarget(ctx context.Context, name string, opts *broker.QueueOptions) (*Queue, error) {
	if err := broker.ValidateDeclaredName(name); err != nil {
		return nil, err
	}
	if _, _, err := b.inspect(ctx, name); err != nil {
		return nil, err
	}
	q := newQueue(b, queueInfo{name: name, direct: true})
	if err := broker.ValidateQueueOptions(opts, q.caps); err != nil {
		return nil, err
	}
	if err := b.add(q); err != nil {
		return nil, err
	}
	return q, nil
}
