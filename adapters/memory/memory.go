package memory

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/url"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/internal/handles"
)

var (
	_ broker.Broker        = (*Broker)(nil)
	_ broker.Admin         = (*Broker)(nil)
	_ broker.Exchanger     = (*Broker)(nil)
	_ broker.ReplyQueuer   = (*Broker)(nil)
	_ broker.Transactional = (*Broker)(nil)
)

// Full is what Publish does at a bound of memory.
type Full uint8

// The policies at a bound of memory. A queue declared with MaxLength, and a
// stream, always refuse.
const (
	Block  Full = iota // wait for room until ctx ends
	Refuse             // return ErrFull
)

// Options are the options of Open. The zero value is an empty broker with the
// default profile and no faults.
type Options struct {
	Name    string  // for people; empty: "memory"
	Profile Profile // empty: Default

	// MaxQueueBytes bounds what one queue holds: the bytes of its messages
	// and about 500 for each. A single message always fits.
	// 0: 256 MiB; negative: no bound.
	MaxQueueBytes int64
	WhenFull      Full
	// MaxPartitionBytes bounds what one partition of a stream holds where the
	// stream is declared without RetentionBytes; the oldest records go first.
	// 0: 256 MiB; negative: no bound.
	MaxPartitionBytes int64

	// SessionTimeout evicts a group's member that has called nothing for so
	// long (a blocked Receive counts as calling). 0: never.
	SessionTimeout time.Duration
	// RebalanceTimeout bounds OnRevoked; 0: 60 s.
	RebalanceTimeout time.Duration
	// TransactionTimeout aborts a transaction that is open for longer; 0: 60 s.
	TransactionTimeout time.Duration

	Seed   uint64 // of faults and of profiles that reorder
	Faults Faults
}

func (o *Options) defaults() {
	bytes := func(n *int64) {
		switch {
		case *n == 0:
			*n = 256 << 20
		case *n < 0:
			*n = 0
		}
	}
	bytes(&o.MaxQueueBytes)
	bytes(&o.MaxPartitionBytes)
	if o.Name == "" {
		o.Name = adapter
	}
	if o.RebalanceTimeout == 0 {
		o.RebalanceTimeout = time.Minute
	}
	if o.TransactionTimeout == 0 {
		o.TransactionTimeout = time.Minute
	}
}

func (o *Options) validate() error {
	for _, d := range []struct {
		name string
		d    time.Duration
	}{
		{"SessionTimeout", o.SessionTimeout},
		{"RebalanceTimeout", o.RebalanceTimeout},
		{"TransactionTimeout", o.TransactionTimeout},
	} {
		if d.d < 0 || d.d > broker.MaxDuration {
			return broker.Invalid("%s %v: want 0 to %v", d.name, d.d, broker.MaxDuration)
		}
	}
	if o.WhenFull > Refuse {
		return broker.Invalid("WhenFull %d: want Block or Refuse", o.WhenFull)
	}
	return o.Faults.validate()
}

// A server holds what all connections share.
type server struct {
	opts     Options
	rules    *rules
	faults   atomic.Pointer[faults] // nil: none
	injector injector
	slabs    sync.Pool // of *slab, that nobody takes from this moment

	mu        sync.RWMutex
	queues    map[string]*queue
	streams   map[string]*stream
	exchanges map[string]*exchange
	producers map[string]*producer
	ids       producer // the root of their ring
	streamIDs int
}

// A Broker is one connection to an embedded broker. It is safe for concurrent
// use.
type Broker struct {
	srv  *server
	cuts atomic.Int64 // how often the connection broke

	handles handles.Set[handle]
}

// A handle is what Close and Shutdown of a broker end.
type handle interface{ Close() error }

// Open makes an empty broker and connects to it; nil options are the defaults.
// What it holds lives as long as a connection to it is in use.
func Open(ctx context.Context, opts *Options) (*Broker, error) {
	if err := broker.ContextError(ctx); err != nil {
		return nil, opError("open", "", err)
	}
	var o Options
	if opts != nil {
		o = *opts
	}
	if err := o.validate(); err != nil {
		return nil, opError("open", o.Name, err)
	}
	r, ok := profiles[o.Profile]
	if !ok {
		return nil, opError("open", o.Name, broker.Invalid("profile %q: want one of %s", o.Profile, profileNames()))
	}
	o.defaults()
	srv := &server{
		opts: o, rules: r,
		queues:    map[string]*queue{},
		streams:   map[string]*stream{},
		exchanges: map[string]*exchange{},
		producers: map[string]*producer{},
	}
	srv.injector.random = rand.New(rand.NewPCG(o.Seed, 1)) //nolint:gosec // not for secrets
	srv.injector.faults = o.Faults
	srv.inject()
	return srv.connect(), nil
}

// OpenURL opens "memory://name". Its parameters, all optional, are profile,
// seed, full (block or refuse), max-queue-bytes, max-partition-bytes,
// session-timeout, rebalance-timeout and transaction-timeout.
func OpenURL(ctx context.Context, rawURL string) (broker.Broker, error) {
	o, err := parseURL(rawURL)
	if err != nil {
		return nil, opError("open", "", err)
	}
	b, err := Open(ctx, o)
	if err != nil {
		return nil, err
	}
	return b, nil
}

func parseURL(rawURL string) (*Options, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", broker.ErrInvalid, err)
	}
	if u.Scheme != adapter {
		return nil, broker.Invalid("scheme %q: want %q", u.Scheme, adapter)
	}
	params, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", broker.ErrInvalid, err)
	}
	o := &Options{Name: u.Host + u.Path}
	for key, values := range params {
		v := values[len(values)-1]
		switch key {
		case "profile":
			o.Profile = Profile(v)
		case "seed":
			o.Seed, err = strconv.ParseUint(v, 10, 64)
		case "max-queue-bytes":
			o.MaxQueueBytes, err = strconv.ParseInt(v, 10, 64)
		case "max-partition-bytes":
			o.MaxPartitionBytes, err = strconv.ParseInt(v, 10, 64)
		case "session-timeout":
			o.SessionTimeout, err = time.ParseDuration(v)
		case "rebalance-timeout":
			o.RebalanceTimeout, err = time.ParseDuration(v)
		case "transaction-timeout":
			o.TransactionTimeout, err = time.ParseDuration(v)
		case "full":
			switch v {
			case "block":
				o.WhenFull = Block
			case "refuse":
				o.WhenFull = Refuse
			default:
				err = fmt.Errorf("%q: want block or refuse", v)
			}
		default:
			return nil, broker.Invalid("parameter %q is unknown", key)
		}
		if err != nil {
			return nil, fmt.Errorf("%w: parameter %s: %w", broker.ErrInvalid, key, err)
		}
	}
	return o, nil
}

func (s *server) connect() *Broker {
	return &Broker{srv: s}
}

// Connect makes a second connection to the same embedded broker, as another
// process would have to a real one. Closing one leaves the others alone.
func (b *Broker) Connect() *Broker { return b.srv.connect() }

// check returns the error that keeps an operation of the broker from starting.
func (b *Broker) check(ctx context.Context) error {
	if err := broker.ContextError(ctx); err != nil {
		return err
	}
	if err := b.ended(); err != nil {
		return err
	}
	if f := b.srv.faults.Load(); f != nil {
		return f.reach(ctx, b)
	}
	return nil
}

func (b *Broker) connection() *Broker { return b }

func (b *Broker) ended() error { return b.handles.Err() }

func (s *server) queue(name string) (*queue, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	q := s.queues[name]
	if q == nil {
		return nil, broker.ErrNotFound
	}
	return q, nil
}

// Queue opens a queue that was declared.
func (b *Broker) Queue(ctx context.Context, name string, opts *broker.QueueOptions) (broker.Queue, error) {
	h, err := b.openQueue(ctx, name, opts)
	if err != nil {
		return nil, opError("open queue", name, err)
	}
	return h, nil
}

func (b *Broker) openQueue(ctx context.Context, name string, opts *broker.QueueOptions) (*Queue, error) {
	if err := b.check(ctx); err != nil {
		return nil, err
	}
	if err := b.srv.rules.queueName(name); err != nil {
		return nil, err
	}
	q, err := b.srv.queue(name)
	if err != nil {
		return nil, err
	}
	h := &Queue{b: b, q: q, gate: newGate(), consumers: map[*Consumer]struct{}{}}
	dead, attempts := q.cfg.DeadLetter, q.cfg.MaxAttempts
	if opts != nil {
		if opts.DeadLetter != "" {
			dead = opts.DeadLetter
		}
		if opts.MaxAttempts > 0 {
			attempts = opts.MaxAttempts
		}
	}
	if dead != "" {
		if h.policy.dead, err = b.srv.queue(dead); err != nil {
			return nil, fmt.Errorf("dead-letter queue %q: %w", dead, err)
		}
		connect(q, h.policy.dead)
	}
	h.caps = b.srv.rules.queueCapabilities(&q.cfg)
	h.caps.Reject = h.policy.dead != nil
	if h.caps.Reject {
		h.policy.maxAttempts = int32(min(attempts, math.MaxInt32)) //nolint:gosec // bounded
		h.caps.MaxAttempts = attempts
	}
	if err := broker.ValidateQueueOptions(opts, h.caps); err != nil {
		return nil, err
	}
	if limit := b.srv.rules.maxAttempts; limit > 0 && attempts > limit {
		return nil, broker.Unsupported("MaxAttempts %d: the most is %d", attempts, limit)
	}
	return h, b.handles.Add(h)
}

// ReplyQueue makes a queue that Close removes.
func (b *Broker) ReplyQueue(ctx context.Context) (broker.Queue, error) {
	name := "reply-" + broker.NewID()
	if suffix := b.srv.rules.suffix; suffix != "" {
		name += suffix
	}
	if err := b.replyQueue(ctx, name); err != nil {
		return nil, opError("reply queue", name, err)
	}
	h, err := b.openQueue(ctx, name, nil)
	if err != nil {
		return nil, opError("reply queue", name, err)
	}
	h.onClose = func() error {
		b.srv.deleteQueue(name)
		return nil
	}
	return h, nil
}

func (b *Broker) replyQueue(ctx context.Context, name string) error {
	if err := b.check(ctx); err != nil {
		return err
	}
	if b.srv.rules.noReplies {
		return broker.Unsupported("the profile %q has no reply queues", b.srv.opts.Profile)
	}
	return b.srv.declareQueue(name, broker.QueueConfig{Temporary: true, Ordered: b.srv.rules.suffix != ""})
}

// Ping returns nil while the connection is open.
func (b *Broker) Ping(ctx context.Context) error { return opError("ping", "", b.check(ctx)) }

// A drainer is a handle that can wait until nothing is in hand.
type drainer interface {
	stop(err error)
	drain(ctx context.Context) error
}

// Shutdown stops receiving, waits until what was received is settled, runs
// OnRevoked of the groups' members, and closes.
func (b *Broker) Shutdown(ctx context.Context) error {
	var ds []drainer
	for _, h := range b.handles.All() {
		if d, ok := h.(drainer); ok {
			d.stop(fmt.Errorf("%w: %w", broker.ErrClosed, broker.ErrShutdown))
			ds = append(ds, d)
		}
	}
	err := handles.Each(ds, func(d drainer) error { return d.drain(ctx) })
	return opError("shutdown", "", errors.Join(err, b.Close()))
}

// Close closes the connection and every handle of it. It may be called again.
func (b *Broker) Close() error {
	hs := b.handles.End()
	b.srv.wake()
	return handles.Each(hs, handle.Close)
}

// Disconnect breaks the connection as a network does, for tests: what its
// consumers hold is lost and redelivered, the members of its groups lose
// their partitions and rejoin at their next Receive, open transactions abort,
// and publishes that wait in a Pause get ErrUnknownOutcome. The handles stay
// usable.
func (b *Broker) Disconnect() {
	b.cuts.Add(1)
	b.srv.wake()
	for _, h := range b.handles.All() {
		if d, ok := h.(interface{ disconnect() }); ok {
			d.disconnect()
		}
	}
}

func (h *Queue) all() []*Consumer {
	h.mu.Lock()
	defer h.mu.Unlock()
	cs := make([]*Consumer, 0, len(h.consumers))
	for c := range h.consumers {
		cs = append(cs, c)
	}
	return cs
}

func (h *Queue) stop(err error) {
	for _, c := range h.all() {
		c.stop(err)
	}
}

func (h *Queue) drain(ctx context.Context) error {
	err := handles.Each(h.all(), func(c *Consumer) error { return c.drain(ctx) })
	return errors.Join(err, h.gate.wait(ctx))
}

func (h *Queue) disconnect() {
	for _, c := range h.all() {
		c.q.mu.Lock()
		c.returnHeld("the connection broke")
		c.q.unlock()
	}
}
