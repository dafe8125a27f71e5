package broker

import "context"

// AsyncOptions configure an AsyncPublisher or an AsyncAppender; nil selects the
// defaults. Where it works natively, MaxBatch and MaxInFlight are the client's
// own, and what is not answered counts as not sent.
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

// AsyncAppending is for a Stream that pipelines by itself. With an error
// AsyncAppend has refused r and sent nothing, and gives no answer. Otherwise it
// gives the answer once, from another goroutine, and until then r's slices are
// the stream's. ctx bounds only what AsyncAppend itself may wait for: room in
// the client, and what that has to ask the broker before a first record.
// Records are stored, and answers given, in order per partition; a failure may
// be reported ahead of those before it. The stream must be closed after its
// AsyncAppender, and answers by then what was left.
type AsyncAppending interface {
	AsyncAppend(ctx context.Context, r Record, answer Answer) error
}

// An AsyncPublisher publishes without waiting for the answer: over
// PublishBatch with several batches in flight, messages of one group in one
// batch at a time and in order, or natively where p is [AsyncPublishing].
// Close it when done with it; it does not close p.
type AsyncPublisher struct {
	fail   func(error) error
	core   asyncCore[Message]
	native AsyncPublishing
	calls  nativeAsync // for native
}

// NewAsyncPublisher returns an AsyncPublisher over p. Its errors carry what
// p's methods Name and Adapter return, where p has them.
func NewAsyncPublisher(p Publisher, opts *AsyncOptions) *AsyncPublisher {
	o := opts.withDefaults()
	a := &AsyncPublisher{fail: publishErrors(p)}
	if n, ok := As[AsyncPublishing](p); ok {
		a.native = n
		a.calls.init(o)
		return a
	}
	a.core.init(a.fail, o, p.PublishBatch, func(m Message) string { return m.GroupID },
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
			done(Receipt{ID: m.ID}, a.fail(err))
		}
		return
	}
	answer, err := a.calls.enter(ctx, m.Size(), done)
	if err != nil {
		done(Receipt{ID: m.ID}, a.fail(err))
		return
	}
	a.native.AsyncPublish(context.WithoutCancel(ctx), m, answer.Give)
}

// Flush waits until everything published before is answered and its done has
// returned, or until ctx ends.
func (a *AsyncPublisher) Flush(ctx context.Context) error {
	if a.native == nil {
		return a.core.batcher.Flush(ctx)
	}
	return a.calls.flush(ctx)
}

// Close refuses further messages and waits for those published until ctx ends.
// What was not sent by then fails with ErrClosed; what was sent and not
// answered has an unknown outcome. Where it works natively, what was not
// answered by then is still on its way, and is answered when p is closed at the
// latest. Close may be called again.
func (a *AsyncPublisher) Close(ctx context.Context) error {
	if a.native == nil {
		return a.core.batcher.Close(ctx)
	}
	return a.calls.close(ctx)
}

// An AsyncAppender does for a Stream what AsyncPublisher does for a Publisher,
// with order kept for each key, or for each partition of pinned records. What
// is published by other means comes after a record for certain only once that
// is answered. It works natively where s is [AsyncAppending].
type AsyncAppender struct {
	fail   func(error) error
	core   asyncCore[Record]
	native AsyncAppending
	calls  nativeAsync // for native
}

// NewAsyncAppender returns an AsyncAppender over s, with errors as those of
// [NewAsyncPublisher].
func NewAsyncAppender(s Stream, opts *AsyncOptions) *AsyncAppender {
	o := opts.withDefaults()
	a := &AsyncAppender{fail: publishErrors(s)}
	if n, ok := As[AsyncAppending](s); ok {
		a.native = n
		a.calls.init(o)
		return a
	}
	a.core.init(a.fail, o, s.PublishBatch, recordLane,
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

// Publish queues r; see [AsyncPublisher.Publish]. The record's slices are the
// appender's until done is called. Where it works natively, a record that is
// not valid never gets into the queue, and a failure may be reported ahead of
// records before it that are still on their way.
func (a *AsyncAppender) Publish(ctx context.Context, r Record, done func(Receipt, error)) {
	if err := a.publish(ctx, &r, done); err != nil && done != nil {
		if _, ok := err.(*Error); !ok { //nolint:errorlint // whether it is one, not whether it wraps one
			err = a.fail(err)
		}
		done(Receipt{}, err)
	}
}

func (a *AsyncAppender) publish(ctx context.Context, r *Record, done func(Receipt, error)) error {
	if a.native == nil {
		return a.core.batcher.Go(ctx, *r, done)
	}
	answer, err := a.calls.enter(ctx, r.Size(), done)
	if err != nil {
		return err
	}
	if err := a.native.AsyncAppend(ctx, *r, answer); err != nil {
		answer.run.leave()
		return err
	}
	return nil
}

// Flush waits as [AsyncPublisher.Flush] does.
func (a *AsyncAppender) Flush(ctx context.Context) error {
	if a.native == nil {
		return a.core.batcher.Flush(ctx)
	}
	return a.calls.flush(ctx)
}

// Close ends as [AsyncPublisher.Close] does.
func (a *AsyncAppender) Close(ctx context.Context) error {
	if a.native == nil {
		return a.core.batcher.Close(ctx)
	}
	return a.calls.close(ctx)
}

// publishErrors returns what makes an error of publishing to a handle.
func publishErrors(handle any) func(error) error {
	name, adapter := "", adapterOf(handle)
	if n, ok := handle.(interface{ Name() string }); ok {
		name = n.Name()
	}
	return func(err error) error { return &Error{Op: "publish", Adapter: adapter, Name: name, Err: err} }
}

// asyncCore pipelines over a PublishBatch.
type asyncCore[T any] struct{ batcher *Batcher[T, Receipt] }

func (c *asyncCore[T]) init(fail func(error) error, o AsyncOptions, publish func(context.Context, []T) ([]Receipt, error),
	key func(T) string, size func(T) int, receipt func(T) Receipt,
) {
	c.batcher = NewBatcher(BatcherOptions[T, Receipt]{
		MaxItems: o.MaxBatch, MaxInFlight: o.MaxInFlight, MaxQueued: o.MaxQueued, MaxPending: o.MaxBytes,
		Key: key, Size: size,
		Unsent: func(item T, err error) Result[Receipt] {
			return Result[Receipt]{receipt(item), fail(err)}
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
