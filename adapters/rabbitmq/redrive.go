package rabbitmq

import (
	"context"
	"errors"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/queuestream/broker"
)

// Peek implements [broker.Admin]. AMQP can only receive and give back: the
// messages count an attempt, and consumers do not see them meanwhile.
func (b *Broker) Peek(ctx context.Context, queue string, max int) ([]broker.Message, error) {
	if max <= 0 {
		return nil, fail("peek", queue, broker.Invalid("max %d: want at least 1", max))
	}
	err := checkName(queue)
	if err == nil {
		var info queueInfo
		if info, err = b.describe(ctx, queue); info.shards > 0 {
			err = broker.Unsupported("peek: the broker refuses it on shard queues, which have a single active consumer")
		}
	}
	if err != nil {
		return nil, fail("peek", queue, err)
	}
	ms := []broker.Message{}
	err = b.onQueue(ctx, queue, func(ch *amqp.Channel, n string) error {
		// The deliveries stay open, and return when the channel closes. It runs
		// again when the connection broke.
		for ms = ms[:0]; len(ms) < max; {
			a, ok, err := ch.Get(n, false)
			if err != nil {
				return err
			}
			if !ok {
				return nil
			}
			var d broker.Delivery
			decode(&a, &d)
			ms = append(ms, d.Message)
		}
		return nil
	})
	if err != nil { // after ctx ended, ms may still be written to
		return nil, fail("peek", queue, err)
	}
	return ms, nil
}

// redriveBatch is how many messages are moved at a time.
const redriveBatch = 100

// Redrive implements [broker.Admin]. Each message is confirmed at its target
// before it is acknowledged at its source: a failure in between leaves two.
// Where to is empty, a message without a dead letter's headers stays, and the
// call ends with [broker.ErrInvalid].
func (b *Broker) Redrive(ctx context.Context, deadLetterQueue, to string, max int) (int, error) {
	n, err := b.redrive(ctx, deadLetterQueue, to, max)
	return n, fail("redrive", deadLetterQueue, err)
}

func (b *Broker) redrive(ctx context.Context, from, to string, max int) (moved int, err error) {
	if max < 0 {
		return 0, broker.Invalid("max %d: must not be negative", max)
	}
	for _, n := range []string{from, to} {
		if n == "" && n == to {
			continue
		}
		if err := checkName(n); err != nil {
			return 0, err
		}
	}
	if from == to {
		return 0, broker.Invalid("the target %q is the source", to)
	}
	info, err := b.describe(ctx, from)
	if err != nil {
		return 0, err
	}
	r := redriver{b: b, to: to, w: newWindow(b.o.Window, b.o.WindowBytes), targets: map[string]*queueInfo{}}
	if info.shards > 0 {
		return r.consume(ctx, info, max)
	}
	for _, n := range info.queues() {
		ready, _, err := b.inspect(ctx, n)
		if err != nil {
			return moved, err
		}
		if max > 0 {
			ready = min(ready, max-moved)
		}
		for ready > 0 {
			k, err := r.batch(ctx, n, min(ready, redriveBatch))
			moved += k
			if err != nil {
				return moved, err
			}
			if k == 0 {
				break
			}
			ready -= k
		}
	}
	return moved, nil
}

type redriver struct {
	b       *Broker
	to      string
	w       *window
	targets map[string]*queueInfo
}

// batch moves up to max messages of one queue in the broker. What it could not
// move returns to the queue.
func (r *redriver) batch(ctx context.Context, queue string, max int) (int, error) {
	g, err := r.b.control.get(ctx)
	if err != nil {
		return 0, err
	}
	ch, err := call(ctx, g.conn.Channel, func(ch *amqp.Channel) { _ = closeChannel(ch) })
	if err != nil {
		return 0, classify(err)
	}
	got, err := call(ctx, func() ([]amqp.Delivery, error) { return getSome(ch, queue, max) }, nil)
	if err == nil {
		var n int
		n, err = r.move(ctx, ch, got)
		_, cerr := call(context.WithoutCancel(ctx), func() (struct{}, error) { return struct{}{}, closeChannel(ch) }, nil)
		return n, errors.Join(err, cerr)
	}
	go func() { _ = closeChannel(ch) }() // it ends with the connection at the latest
	return 0, classify(err)
}

// redriveQuiet ends a redrive from shard queues: nothing came for so long.
const redriveQuiet = 2 * time.Second

// consume moves the messages of an ordered queue. The broker refuses basic.get
// on queues with a single active consumer, so it is one of them for a while.
func (r *redriver) consume(ctx context.Context, info queueInfo, max int) (moved int, err error) {
	ready := 0
	for _, n := range info.queues() {
		k, _, err := r.b.inspect(ctx, n)
		if err != nil {
			return 0, err
		}
		ready += k
	}
	if max == 0 || max > ready {
		max = ready
	}
	info.maxAttempts, info.deadLetter = 0, ""
	q := newQueue(r.b, info)
	c, err := q.consumer(ctx, nil)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	for moved < max {
		wait, cancel := context.WithTimeout(ctx, redriveQuiet)
		ds, err := c.Receive(wait, min(max-moved, redriveBatch))
		cancel()
		if err != nil {
			if ctx.Err() == nil && wait.Err() != nil {
				return moved, nil
			}
			return moved, err
		}
		copies, now := make([]copyOf, len(ds)), time.Now()
		for i, d := range ds {
			copies[i] = r.copyOf(ctx, d, now)
		}
		r.b.send(ctx, r.w, copies)
		var errs []error
		for i, d := range ds {
			err := copies[i].err
			if err == nil {
				if err = d.Ack(ctx); err == nil {
					moved++
				}
			}
			errs = append(errs, err)
		}
		if err := errors.Join(errs...); err != nil {
			return moved, err
		}
	}
	return moved, nil
}

// copyOf returns what to store at a dead letter's target.
func (r *redriver) copyOf(ctx context.Context, d *broker.Delivery, now time.Time) copyOf {
	target, err := r.target(ctx, &d.Message)
	m := broker.RedriveMessage(d.Message)
	if m.ID == "" {
		m.ID = broker.NewID()
	}
	m.TTL = 0
	return copyOf{m: m, to: target, now: now, err: err}
}

func getSome(ch *amqp.Channel, queue string, max int) ([]amqp.Delivery, error) {
	var got []amqp.Delivery
	for len(got) < max {
		a, ok, err := ch.Get(queue, false)
		if err != nil || !ok {
			return got, err
		}
		got = append(got, a)
	}
	return got, nil
}

func (r *redriver) move(ctx context.Context, ch *amqp.Channel, got []amqp.Delivery) (int, error) {
	copies := make([]copyOf, 0, len(got))
	now := time.Now()
	var errs []error
	for i := range got {
		var d broker.Delivery
		decode(&got[i], &d)
		copies = append(copies, r.copyOf(ctx, &d, now))
	}
	r.b.send(ctx, r.w, copies)
	moved := 0
	for i := range copies {
		err := copies[i].err
		if err == nil {
			if err = ch.Ack(got[i].DeliveryTag, false); err == nil {
				moved++
			}
		}
		errs = append(errs, err)
	}
	return moved, errors.Join(errs...)
}

func (r *redriver) target(ctx context.Context, m *broker.Message) (*queueInfo, error) {
	name := r.to
	if name == "" {
		why, ok := broker.DeadLetterOf(m)
		if !ok || why.Queue == "" {
			return nil, broker.Invalid("message %q does not say where it came from: name a target", m.ID)
		}
		name = why.Queue
	}
	if info := r.targets[name]; info != nil {
		return info, nil
	}
	info, err := r.b.describe(ctx, name)
	if err != nil {
		return nil, err
	}
	r.targets[name] = &info
	return &info, nil
}
