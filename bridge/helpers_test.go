package bridge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/memory"
)

// A world is a stream, a FIFO queue that deduplicates as SQS does, and its
// dead-letter queue.
type world struct {
	t       *testing.T
	ctx     context.Context
	events  *memory.Broker
	tasks   *memory.Broker
	stream  broker.Stream
	queue   broker.Queue
	dead    broker.Queue
	entered int // records published
}

func newWorld(t *testing.T, partitions int) *world {
	t.Helper()
	ctx := t.Context()
	w := &world{t: t, ctx: ctx}
	w.events = must(memory.Open(ctx, nil))(t)
	w.tasks = must(memory.Open(ctx, &memory.Options{Profile: memory.SQSFIFO}))(t)
	t.Cleanup(func() {
		check(t, w.events.Close())
		check(t, w.tasks.Close())
	})
	check(t, w.events.DeclareStream(ctx, "orders", broker.StreamConfig{Partitions: partitions}))
	w.stream = must(w.events.Stream(ctx, "orders", nil))(t)
	fifo := broker.QueueConfig{Ordered: true, Dedup: true}
	for name, q := range map[string]*broker.Queue{"tasks.fifo": &w.queue, "dead.fifo": &w.dead} {
		check(t, w.tasks.DeclareQueue(ctx, name, fifo))
		*q = must(w.tasks.Queue(ctx, name, nil))(t)
	}
	return w
}

// standard makes the target a queue that keeps no order and suppresses nothing.
func (w *world) standard() {
	w.t.Helper()
	b := must(memory.Open(w.ctx, &memory.Options{Profile: memory.SQSStandard}))(w.t)
	w.t.Cleanup(func() { check(w.t, b.Close()) })
	check(w.t, b.DeclareQueue(w.ctx, "tasks", broker.QueueConfig{}))
	w.queue = must(b.Queue(w.ctx, "tasks", nil))(w.t)
}

// publish appends n records whose keys are key-0 … key-(keys-1), with the
// numbers from w.entered on as values.
func (w *world) publish(n, keys int) {
	w.t.Helper()
	rs := make([]broker.Record, n)
	for i := range rs {
		rs[i] = broker.Record{
			Key:     fmt.Appendf(nil, "key-%d", w.entered%keys),
			Value:   fmt.Append(nil, w.entered),
			Headers: broker.Headers{{Key: "tenant", Value: "t"}},
		}
		w.entered++
	}
	_, err := w.stream.PublishBatch(w.ctx, rs)
	check(w.t, err)
}

// route is a route of the world with quick retries and no log.
func (w *world) route(edit func(*Route)) *Route {
	rt := &Route{
		Name: "r", Source: w.stream, Target: w.queue, DeadLetter: w.dead,
		RetryMin: time.Millisecond, RetryMax: 50 * time.Millisecond,
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
	if edit != nil {
		edit(rt)
	}
	return rt
}

// start runs rt until the returned function is called, which waits and
// returns Run's error.
func (w *world) start(rt *Route) (stop func() error) {
	ctx, cancel := context.WithCancel(w.ctx)
	ended := make(chan error, 1)
	go func() { ended <- rt.Run(ctx) }()
	return sync.OnceValue(func() error { cancel(); return <-ended })
}

// until waits for a condition.
func (w *world) until(what string, done func() bool) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.ctx, time.Hour) // of virtual time
	defer cancel()
	for !done() {
		select {
		case <-ctx.Done():
			w.t.Fatalf("waited in vain for %s", what)
		case <-time.After(time.Millisecond):
		}
	}
}

func (w *world) lag(group string) int64 {
	w.t.Helper()
	parts := must(w.stream.Lag(w.ctx, group))(w.t)
	var n int64
	for _, p := range parts {
		n += p.Lag
	}
	return n
}

// drain receives and acknowledges everything in q.
func (w *world) drain(q broker.Queue) []*broker.Delivery {
	w.t.Helper()
	c := must(q.Consumer(w.ctx, nil))(w.t)
	defer func() { check(w.t, c.Close()) }()
	var all []*broker.Delivery
	for {
		ctx, cancel := context.WithTimeout(w.ctx, 100*time.Millisecond)
		ds, err := c.Receive(ctx, 100)
		cancel()
		if errors.Is(err, context.DeadlineExceeded) {
			return all
		}
		check(w.t, err)
		check(w.t, broker.AckAll(w.ctx, ds...))
		all = append(all, ds...)
	}
}

// values counts the bodies of deliveries.
func values(ds []*broker.Delivery) map[string]int {
	m := map[string]int{}
	for _, d := range ds {
		m[string(d.Body)]++
	}
	return m
}

// allOnce fails unless ds are the numbers 0 … n-1, each once.
func allOnce(t *testing.T, ds []*broker.Delivery, n int) {
	t.Helper()
	v := values(ds)
	for i := range n {
		if v[fmt.Sprint(i)] != 1 {
			t.Errorf("record %d arrived %d times", i, v[fmt.Sprint(i)])
		}
	}
	if len(ds) != n {
		t.Errorf("%d tasks for %d records", len(ds), n)
	}
}

// A flaky queue asks fault before and after each message is stored.
type flaky struct {
	broker.Queue
	mu sync.Mutex
	// before tells why a message is refused; after, why its answer is lost.
	before, after func(m broker.Message) error
	sends         int // messages handed over, refused or not
}

func (f *flaky) Publish(ctx context.Context, m broker.Message) (broker.Receipt, error) {
	f.mu.Lock()
	f.sends++
	before, after := f.before, f.after
	f.mu.Unlock()
	if before != nil {
		if err := before(m); err != nil {
			return broker.Receipt{ID: m.ID}, err
		}
	}
	r, err := f.Queue.Publish(ctx, m)
	if err == nil && after != nil {
		err = after(m)
	}
	return r, err
}

func (f *flaky) PublishBatch(ctx context.Context, ms []broker.Message) ([]broker.Receipt, error) {
	receipts, errs := make([]broker.Receipt, len(ms)), make([]error, len(ms))
	for i, m := range ms {
		receipts[i], errs[i] = f.Publish(ctx, m)
	}
	return receipts, broker.NewBatchError(errs)
}

func (f *flaky) set(before, after func(broker.Message) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.before, f.after = before, after
}

func (f *flaky) sent() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.sends
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		check(t, err)
		return v
	}
}
