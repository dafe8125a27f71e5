package kafka

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/queuestream/broker"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// A Broker is a connection to a Kafka cluster. All its streams and queues
// publish through one client; every group's member has one of its own. It is
// safe for concurrent use.
type Broker struct {
	opts     *Options
	client   *kgo.Client // publishes, and carries requests
	admin    *kadm.Client
	maxBytes sync.Map // of a topic's batch: name → int32
	met      metTopics
	lends    bool // nobody but the client sees records: see lendsCopies

	publishes atomic.Bool   // the client has a producer id
	asking    chan struct{} // holds a token while somebody asks for it
	appends   atomic.Bool   // AsyncAppend was used
	meeting   chan struct{} // holds a token while somebody waits for room to be the first of a topic

	mu      sync.Mutex
	handles map[io.Closer]struct{}
	state   brokerState
	busy    int           // calls that publish, and deliveries in hand
	idle    chan struct{} // closed when busy falls to zero, if somebody waits
	closing sync.Once
}

type brokerState uint8

const (
	stateOpen brokerState = iota
	stateDraining
	stateClosed
)

var (
	_ broker.Broker = (*Broker)(nil)
)

// closeTimeout bounds Close of every handle.
const closeTimeout = 5 * time.Second

// Open connects to a cluster and makes one round trip, so that a wrong address
// or wrong credentials show here. ctx bounds Open alone.
func Open(ctx context.Context, o *Options) (*Broker, error) {
	o, err := o.check()
	if err != nil {
		return nil, fail("open", "", err)
	}
	b := &Broker{opts: o, handles: map[io.Closer]struct{}{}, asking: make(chan struct{}, 1), meeting: make(chan struct{}, 1)}
	b.client, err = kgo.NewClient(o.producer(b.batchMaxBytes, &b.met)...)
	if err != nil {
		return nil, fail("open", "", broker.Invalid("%v", err))
	}
	if err := checkPools(b.client); err != nil {
		b.client.Close()
		return nil, fail("open", "", err)
	}
	b.lends = lendsCopies(b.client)
	b.admin = kadm.NewClient(b.client)
	if err := b.Ping(ctx); err != nil {
		b.client.Close()
		var e *broker.Error
		if errors.As(err, &e) {
			err = e.Err
		}
		return nil, fail("open", "", err)
	}
	return b, nil
}

// Client returns the franz-go client that publishes and carries requests. It
// belongs to the Broker: do not close it.
func (b *Broker) Client() *kgo.Client { return b.client }

// Ping makes one round trip to any broker of the cluster.
func (b *Broker) Ping(ctx context.Context) error {
	if err := b.usable(); err != nil {
		return fail("ping", "", err)
	}
	return fail("ping", "", bounded(ctx, b.ping(ctx)))
}

// ping ends with ctx. The client's own does not while a connection is made: a
// server that stays silent holds it up for 10 s.
func (b *Broker) ping(ctx context.Context) error {
	answered := make(chan error, 1)
	go func() { answered <- b.client.Ping(ctx) }()
	select {
	case err := <-answered:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Stream opens the stream that the topic name holds. A missing topic is
// broker.ErrNotFound.
func (b *Broker) Stream(ctx context.Context, name string, opts *broker.StreamOptions) (broker.Stream, error) {
	s, err := b.openStream(ctx, name, opts)
	if err != nil {
		return nil, fail("open stream", name, err)
	}
	return s, nil
}

func (b *Broker) openStream(ctx context.Context, name string, opts *broker.StreamOptions) (*Stream, error) {
	if err := b.usable(); err != nil {
		return nil, err
	}
	t, err := b.describe(ctx, name)
	if err != nil {
		return nil, err
	}
	c := t.streamCapabilities()
	if opts != nil {
		if opts.Producer != "" {
			return nil, broker.Unsupported("Producer: Kafka dedups the client's own retries alone")
		}
		if err := c.Satisfies(opts.Require); err != nil {
			return nil, err
		}
	}
	s := &Stream{b: b, topic: t, met: b.met.of(name), caps: c, count: t.partitions, sheets: newSheets(t.partitions)}
	s.appended = s.answered
	return s, b.add(s)
}

// Shutdown does what broker.Broker promises: consumers take nothing more, what
// is being published is answered and what queues have delivered is settled,
// then everything closes.
func (b *Broker) Shutdown(ctx context.Context) error {
	b.mu.Lock()
	if b.state == stateOpen {
		b.state = stateDraining
	}
	handles := b.snapshot()
	b.mu.Unlock()
	for _, h := range handles {
		if d, ok := h.(interface{ drain() }); ok {
			d.drain()
		}
	}
	err := b.waitIdle(ctx)
	if err == nil && b.appends.Load() { // the client alone counts what was appended
		err = bounded(ctx, b.client.Flush(ctx))
	}
	return fail("shutdown", "", errors.Join(err, b.Close()))
}

// Close does what broker.Broker promises.
func (b *Broker) Close() error {
	b.mu.Lock()
	b.state = stateClosed
	handles := b.snapshot()
	b.mu.Unlock()
	var wg sync.WaitGroup
	errs := make([]error, len(handles)+1) // the last: of the client
	for i, h := range handles {
		wg.Go(func() { errs[i] = h.Close() })
	}
	wg.Wait()
	b.closing.Do(func() {
		errs[len(handles)] = fail("close", "", within(closeTimeout, b.client.Close))
	})
	return errors.Join(errs...)
}

// within runs fn and waits for it, but not longer than d.
func within(d time.Duration, fn func()) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		fn()
	}()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-done:
		return nil
	case <-t.C:
		return fmt.Errorf("%w: still closing after %v", broker.ErrUnavailable, d)
	}
}

func (b *Broker) snapshot() []io.Closer {
	out := make([]io.Closer, 0, len(b.handles))
	for h := range b.handles {
		out = append(out, h)
	}
	return out
}

// add takes a handle that Close will close.
func (b *Broker) add(h io.Closer) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.usableLocked(); err != nil {
		return err
	}
	b.handles[h] = struct{}{}
	return nil
}

func (b *Broker) remove(h io.Closer) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.handles, h)
}

func (b *Broker) usable() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.usableLocked()
}

func (b *Broker) usableLocked() error {
	switch b.state {
	case stateClosed:
		return broker.ErrClosed
	case stateDraining:
		return broker.ErrShutdown
	case stateOpen:
	}
	return nil
}

// begin counts one thing in hand that Shutdown waits for, unless closed.
func (b *Broker) begin() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.state == stateClosed {
		return broker.ErrClosed
	}
	b.busy++
	return nil
}

func (b *Broker) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.busy--; b.busy == 0 && b.idle != nil {
		close(b.idle)
		b.idle = nil
	}
}

func (b *Broker) waitIdle(ctx context.Context) error {
	for {
		b.mu.Lock()
		if b.busy == 0 || b.state == stateClosed {
			b.mu.Unlock()
			return nil
		}
		if b.idle == nil {
			b.idle = make(chan struct{})
		}
		idle := b.idle
		b.mu.Unlock()
		select {
		case <-idle:
		case <-ctx.Done():
			return broker.ContextError(ctx)
		}
	}
}
