package broker

import (
	"context"
	"sync"
)

// AsyncOptions configure an AsyncPublisher; nil selects the defaults.
type AsyncOptions struct {
	MaxBatch    int // messages in one PublishBatch; 0: 100
	MaxInFlight int // batches at once; 0: 4
	MaxQueued   int // messages not sent yet, beyond which Publish waits; 0: 10,000
	MaxBytes    int // their bytes, beyond which Publish waits; 0: 64 MiB
}

// AsyncPublishing is for a Publisher that pipelines by itself. AsyncPublish
// neither waits for the broker nor calls done before it returns; done is called
// once, in order per group. It must be closed after its AsyncPublisher.
type AsyncPublishing interface {
	AsyncPublish(ctx context.Context, m Message, done func(Receipt, error))
}

// An AsyncPublisher publishes without waiting for the answer: over
// PublishBatch with several batches in flight, messages of one group in one
// batch at a time and in order, or natively where p is [AsyncPublishing].
// Close it when done with it; it does not close p.
type AsyncPublisher struct {
	core   asyncCore[Message]
	native AsyncPublishing
	limit  int
	limitB int

	mu    sync.Mutex // of what follows, for native
	n     int
	bytes int
	epochs
	closed  bool
	changed chan struct{}
}

// NewAsyncPublisher returns an AsyncPublisher over p.
func NewAsyncPublisher(p Publisher, opts *AsyncOptions) *AsyncPublisher {
	o := opts.withDefaults()
	a := &AsyncPublisher{limit: o.MaxQueued, limitB: o.MaxBytes}
	if n, ok := As[AsyncPublishing](p); ok {
		a.native = n
		return a
	}
	a.core.init(o, p.PublishBatch, func(m Message) string { return m.GroupID },
		func(m Message) int { return m.Size() }, func(m Message) Receipt { return Receipt{ID: m.ID} })
	return a
}

func (o *AsyncOptions) withDefaults() AsyncOptions {
	var d AsyncOptions
	if o != nil {
		d = *o
	}
	for _, f := range []struct {
		v    *int
		zero int
	}{{&d.MaxBatch, 100}, {&d.MaxInFlight, 4}, {&d.MaxQueued, 10_000}, {&d.MaxBytes, 64 << 20}} {
		if *f.v <= 0 {
			*f.v = f.zero
		}
	}
	return d
}

// Publish queues m and returns; it waits only for room in the queue, until ctx
// ends. done, unless nil, is called once with the outcome, in order per group,
// and must not block. What never got into the queue (ctx ended, Close was
// called) is reported before Publish returns. The body must not change until
// done is called.
func (a *AsyncPublisher) Publish(ctx context.Context, m Message, done func(Receipt, error)) {
	if m.ID == "" {
		m.ID = NewID()
	}
	if done == nil {
		done = func(Receipt, error) {}
	}
	if a.native == nil {
		if err := a.core.batcher.Go(ctx, m, done); err != nil {
			done(Receipt{ID: m.ID}, &Error{Op: "publish", Err: err})
		}
		return
	}
	size := m.Size()
	e, err := a.enter(ctx, size)
	if err != nil {
		done(Receipt{ID: m.ID}, &Error{Op: "publish", Err: err})
		return
	}
	a.native.AsyncPublish(context.WithoutCancel(ctx), m, func(r Receipt, err error) {
		done(r, err)
		a.mu.Lock()
		defer a.mu.Unlock()
		a.n--
		a.bytes -= size
		a.leave(e)
		a.wake()
	})
}

func (a *AsyncPublisher) enter(ctx context.Context, size int) (*epoch, error) {
	for {
		if err := ContextError(ctx); err != nil {
			return nil, err
		}
		a.mu.Lock()
		if a.closed {
			a.mu.Unlock()
			return nil, ErrClosed
		}
		if a.n == 0 || a.n < a.limit && a.bytes+size <= a.limitB {
			a.n++
			a.bytes += size
			e := a.epochs.enter()
			a.mu.Unlock()
			return e, nil
		}
		if a.changed == nil {
			a.changed = make(chan struct{})
		}
		changed := a.changed
		a.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}

func (a *AsyncPublisher) wake() {
	if a.changed != nil {
		close(a.changed)
		a.changed = nil
	}
}

// Flush waits until everything published before is answered and its done has
// returned, or until ctx ends.
func (a *AsyncPublisher) Flush(ctx context.Context) error {
	if a.native == nil {
		return a.core.batcher.Flush(ctx)
	}
	a.mu.Lock()
	waits := a.all()
	a.mu.Unlock()
	return waitAll(ctx, waits)
}

// Close refuses further messages and waits for those published until ctx ends.
// What was not sent by then fails with ErrClosed; what was sent and not
// answered has an unknown outcome. It may be called again.
func (a *AsyncPublisher) Close(ctx context.Context) error {
	if a.native == nil {
		return a.core.batcher.Close(ctx)
	}
	a.mu.Lock()
	a.closed = true
	a.wake()
	a.mu.Unlock()
	return a.Flush(ctx)
}

// An AsyncAppender does for a Stream what AsyncPublisher does for a Publisher,
// with order kept for each key, or for each partition of pinned records.
type AsyncAppender struct{ core asyncCore[Record] }

// NewAsyncAppender returns an AsyncAppender over s.
func NewAsyncAppender(s Stream, opts *AsyncOptions) *AsyncAppender {
	a := &AsyncAppender{}
	a.core.init(opts.withDefaults(), s.PublishBatch, recordLane,
		func(r Record) int { return r.Size() }, func(Record) Receipt { return Receipt{} })
	return a
}

func recordLane(r Record) string {
	if r.Pin {
		return string([]byte{'p', byte(r.Partition >> 24), byte(r.Partition >> 16), byte(r.Partition >> 8), byte(r.Partition)})
	}
	if len(r.Key) == 0 {
		return ""
	}
	return "k" + string(r.Key)
}

// Publish queues r; see [AsyncPublisher.Publish].
func (a *AsyncAppender) Publish(ctx context.Context, r Record, done func(Receipt, error)) {
	if err := a.core.batcher.Go(ctx, r, done); err != nil && done != nil {
		done(Receipt{}, &Error{Op: "publish", Err: err})
	}
}

// Flush waits as [AsyncPublisher.Flush] does.
func (a *AsyncAppender) Flush(ctx context.Context) error { return a.core.batcher.Flush(ctx) }

// Close ends as [AsyncPublisher.Close] does.
func (a *AsyncAppender) Close(ctx context.Context) error { return a.core.batcher.Close(ctx) }

// asyncCore pipelines over a PublishBatch.
type asyncCore[T any] struct{ batcher *Batcher[T, Receipt] }

func (c *asyncCore[T]) init(o AsyncOptions, publish func(context.Context, []T) ([]Receipt, error),
	key func(T) string, size func(T) int, receipt func(T) Receipt,
) {
	c.batcher = NewBatcher(BatcherOptions[T, Receipt]{
		MaxItems: o.MaxBatch, MaxInFlight: o.MaxInFlight, MaxQueued: o.MaxQueued, MaxPending: o.MaxBytes,
		Key: key, Size: size,
		Unsent: func(item T, err error) Result[Receipt] {
			return Result[Receipt]{receipt(item), &Error{Op: "publish", Err: err}}
		},
		Send: func(ctx context.Context, items []T, results []Result[Receipt]) {
			receipts, err := publish(ctx, items)
			for i := range results {
				if i < len(receipts) {
					results[i].Value = receipts[i]
				}
				results[i].Err = ErrorAt(err, i)
			}
		},
	})
}
