package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/queuestream/broker"
)

// A Broker is a RabbitMQ virtual host.
type Broker struct {
	o       *Options
	control *link // consumes and declares: a blocked publisher must not stop acknowledgements
	apart   *link // consumes, after a queue's silence ended the connection; connects when there is one
	sending *link // connects at the first publish
	pub     *publisher
	manage  *management // nil without Options.Management
	topo    *topology
	ladder  *ladder
	streams *streams

	mu      sync.Mutex
	closed  bool
	handles map[handle]struct{}
}

var (
	_ broker.Broker      = (*Broker)(nil)
	_ broker.Admin       = (*Broker)(nil)
	_ broker.Exchanger   = (*Broker)(nil)
	_ broker.ReplyQueuer = (*Broker)(nil)
)

// A handle is what Close of the broker closes.
type handle interface {
	Close() error
	drain(ctx context.Context) error
}

// Open connects to the first endpoint that answers and supervises the
// connections from then on. Wrong credentials are [broker.ErrUnauthorized], a
// missing virtual host is [broker.ErrNotFound], and a cluster that does not
// answer is [broker.ErrUnavailable].
func Open(ctx context.Context, opts *Options) (*Broker, error) {
	o, err := opts.withDefaults()
	if err != nil {
		return nil, fail("open", "", err)
	}
	b := &Broker{o: o, topo: newTopology(), handles: map[handle]struct{}{}}
	b.control, b.apart, b.sending = newLink("consume", o), newLink("consume-apart", o), newLink("publish", o)
	b.pub = newPublisher(b.sending)
	b.ladder = newLadder(b)
	b.streams = newStreams(b)
	if b.manage, err = newManagement(o); err != nil {
		return nil, fail("open", "", err)
	}
	b.control.up = b.redeclare
	if err := b.control.open(ctx); err != nil {
		b.control.cancel()
		return nil, fail("open", "", err)
	}
	return b, nil
}

// Ping opens and closes a channel.
func (b *Broker) Ping(ctx context.Context) error {
	return fail("ping", "", b.channel(ctx, func(*amqp.Channel) error { return nil }))
}

// Health tells the state of the connections without asking the broker.
type Health struct {
	Consuming  ConnectionHealth
	Publishing ConnectionHealth // idle until the first publish
}

// ConnectionHealth is the state of one supervised connection.
type ConnectionHealth struct {
	State      string // connected, blocked, reconnecting, idle, closed
	Endpoint   string // host and port, while connected
	Generation uint32 // attempts to connect so far
	Reason     string // why it is blocked or not connected
}

// Health returns the state of the connections.
func (b *Broker) Health() Health {
	return Health{Consuming: b.control.health(), Publishing: b.sending.health()}
}

func (l *link) health() ConnectionHealth {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := ConnectionHealth{State: "reconnecting", Generation: l.count}
	switch {
	case l.ctx.Err() != nil:
		h.State = "closed"
	case !l.started:
		h.State = "idle"
	case l.gen != nil:
		l.gen.mu.Lock()
		defer l.gen.mu.Unlock()
		h.State, h.Endpoint = "connected", l.gen.endpoint
		if h.Reason = l.gen.blocked; h.Reason != "" {
			h.State = "blocked"
		}
	}
	if h.State == "reconnecting" && l.err != nil {
		h.Reason = l.err.Error()
	}
	return h
}

// Raw returns the live connections of amqp091-go, for consuming and declaring
// and for publishing, for what this package does not offer. They are replaced
// when they break and must not be closed.
func (b *Broker) Raw(ctx context.Context) (consuming, publishing *amqp.Connection, err error) {
	c, err := b.control.get(ctx)
	if err != nil {
		return nil, nil, fail("raw", "", err)
	}
	p, err := b.sending.get(ctx)
	if err != nil {
		return nil, nil, fail("raw", "", err)
	}
	return c.conn, p.conn, nil
}

// channel runs fn on a fresh channel of the control connection, so that what
// the broker closes it for is fn's own error. It waits for a connection until
// ctx ends, and runs fn again when the connection broke: fn is idempotent.
func (b *Broker) channel(ctx context.Context, fn func(*amqp.Channel) error) error {
	for {
		g, err := b.control.get(ctx)
		if err != nil {
			return err
		}
		_, err = call(ctx, func() (struct{}, error) { return struct{}{}, onChannel(g, fn) }, nil)
		if err == nil || ctx.Err() != nil {
			return err
		}
		if !g.isDead() {
			return classify(err)
		}
		select {
		case <-g.dead:
		case <-ctx.Done():
			return unavailable(ctx, err)
		}
	}
}

func onChannel(g *generation, fn func(*amqp.Channel) error) error {
	ch, err := g.conn.Channel()
	if err != nil {
		return err
	}
	return errors.Join(fn(ch), closeChannel(ch))
}

// add registers a handle, unless the broker is closed.
func (b *Broker) add(h handle) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return broker.ErrClosed
	}
	b.handles[h] = struct{}{}
	return nil
}

func (b *Broker) remove(h handle) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.handles, h)
}

func (b *Broker) isClosed() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.closed
}

// shut marks the broker as closed and returns its handles.
func (b *Broker) shut() []handle {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	hs := make([]handle, 0, len(b.handles))
	for h := range b.handles {
		hs = append(hs, h)
	}
	return hs
}

// Shutdown implements [broker.Broker].
func (b *Broker) Shutdown(ctx context.Context) error {
	b.mu.Lock()
	hs := make([]handle, 0, len(b.handles))
	for h := range b.handles {
		hs = append(hs, h)
	}
	b.mu.Unlock()
	errs := make([]error, len(hs)+1)
	var wg sync.WaitGroup
	for i, h := range hs {
		wg.Go(func() { errs[i] = h.drain(ctx) })
	}
	wg.Wait()
	errs[len(hs)] = b.Close()
	return fail("shutdown", "", errors.Join(errs...))
}

// Close implements [broker.Broker]. It takes about Options.CloseTimeout at most.
func (b *Broker) Close() error {
	var wg sync.WaitGroup
	for _, h := range b.shut() {
		wg.Go(func() {
			if err := h.Close(); err != nil {
				b.o.Logger.Warn("closing a handle failed", "adapter", adapterName, "error", err)
			}
		})
	}
	wg.Wait()
	wg.Go(b.control.close)
	wg.Go(b.apart.close)
	wg.Go(b.sending.close)
	wg.Go(b.streams.close)
	wg.Wait()
	b.manage.close()
	return nil
}

// Stream implements [broker.Broker].
func (b *Broker) Stream(ctx context.Context, name string, opts *broker.StreamOptions) (broker.Stream, error) {
	s, err := b.openStream(ctx, name, opts)
	if err != nil {
		return nil, fail("open stream", name, err)
	}
	return s, nil
}

// Queue implements [broker.Broker]. The result is a *[Queue].
func (b *Broker) Queue(ctx context.Context, name string, opts *broker.QueueOptions) (broker.Queue, error) {
	q, err := b.openQueue(ctx, name, opts)
	if err != nil {
		return nil, fail("open queue", name, err)
	}
	return q, nil
}

func (b *Broker) openQueue(ctx context.Context, name string, opts *broker.QueueOptions) (*Queue, error) {
	if b.isClosed() {
		return nil, broker.ErrClosed
	}
	if strings.HasPrefix(name, directPrefix) {
		return b.openReplyTarget(ctx, name, opts)
	}
	if err := checkName(name); err != nil {
		return nil, err
	}
	info, err := b.describe(ctx, name)
	if err != nil {
		return nil, err
	}
	if opts != nil {
		if opts.MaxAttempts > 0 {
			info.maxAttempts = opts.MaxAttempts
		}
		if opts.DeadLetter != "" {
			info.deadLetter = opts.DeadLetter
		}
	}
	q := newQueue(b, info)
	if err := broker.ValidateQueueOptions(opts, q.caps); err != nil {
		return nil, err
	}
	if info.deadLetter != "" {
		dl, err := b.describe(ctx, info.deadLetter)
		if err != nil {
			return nil, fmt.Errorf("dead-letter queue %q: %w", info.deadLetter, err)
		}
		q.dead = &dl
	}
	if err := b.add(q); err != nil {
		return nil, err
	}
	return q, nil
}

// checkName applies AMQP's rules of names.
func checkName(name string) error {
	if err := broker.ValidateDeclaredName(name); err != nil {
		return err
	}
	if strings.HasPrefix(name, "amq.") {
		return broker.Invalid("name %q: names that begin with amq. belong to the broker", name)
	}
	return nil
}
