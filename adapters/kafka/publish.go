package kafka

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/queuestream/broker"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// An item is one record on its way to the broker. What has it (a carrier) is its
// record's Context, which is how the promise and the partitioner find it without
// an allocation for each record, and the context that the client gets: of the
// call until the client has room for the record, and one without an end from
// then on; of an appending, it never has one. The client looks at one record's
// context for a whole partition; the end of one call would fail what others
// publish.
type item struct {
	rec             kgo.Record
	context.Context //nolint:containedctx // it is the record's context, for as long as the record is on its way
}

// What the Partition of a record is that is not pinned, until it has one.
const (
	unpinned       int32 = -1
	unpinnedEnding int32 = -2 // its context may end: the partitioner has to place it
)

// begin sets what all items have; its context is an *ending if it may end. It
// carries the time now: left to the client, each record would read the clock.
func (it *item) begin(ctx context.Context, now time.Time) {
	it.Context, it.rec.Timestamp, it.rec.Partition = ctx, now, unpinned
	if _, ok := ctx.(*ending); ok {
		it.rec.Partition = unpinnedEnding
	}
}

// place is called once the client has the record in a partition, or is about
// to: its context has no end any more.
func (it *item) place() {
	if e, ok := it.Context.(*ending); ok {
		e.placed.Store(true)
	}
}

// An ending is a context that may end until a record is placed.
type ending struct {
	context.Context //nolint:containedctx // it is a context
	placed          atomic.Bool
}

// Done is the call's until the record is placed; then there is no end.
func (e *ending) Done() <-chan struct{} {
	if e.placed.Load() {
		return nil
	}
	return e.Context.Done()
}

// Err is of the same context as Done.
func (e *ending) Err() error {
	if e.placed.Load() {
		return nil
	}
	return e.Context.Err()
}

type itemKey struct{}

func (it *item) value(key, self any) any {
	if key == (itemKey{}) {
		return self
	}
	return it.Context.Value(key)
}

// carrierOf returns what a record is part of: a *sending or an *appending.
func carrierOf(r *kgo.Record) any {
	switch c := r.Context.(type) {
	case *sending, *appending:
		return c
	}
	return r.Context.Value(itemKey{})
}

func itemOf(r *kgo.Record) *item {
	switch c := carrierOf(r).(type) {
	case *sending:
		return &c.item
	case *appending:
		return &c.item
	}
	return nil
}

// produce hands a record to the client that publishes, waiting for room until
// ctx ends. With an error promise is not called.
func (b *Broker) produce(ctx context.Context, met *metTopic, it *item, promise func(*kgo.Record, error)) error {
	if met.known.Load() {
		b.client.Produce(it.rec.Context, &it.rec, promise)
		return nil
	}
	// While the client asks for a topic it does not know it looks at the first
	// record's context for all; so that must not end, nor be waited with. Who
	// finds room takes it before the next one looks.
	select {
	case b.meeting <- struct{}{}:
		defer func() { <-b.meeting }()
	case <-ctx.Done():
		return broker.ContextError(ctx)
	}
	size := len(it.rec.Key) + len(it.rec.Value)
	if err := await(ctx, func() (bool, error) { return b.opts.hasRoom(b.client, size), nil }); err != nil {
		return err
	}
	it.place()
	b.client.TryProduce(it.rec.Context, &it.rec, promise)
	return nil
}

// publishError tells refused from unknown. franz-go fails an idempotent record
// on the end of a context only if it was never sent.
func publishError(ctx context.Context, err error) error {
	if known(err) {
		if ctx.Err() == nil && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)) {
			return fmt.Errorf("%w: not sent: the context of a record ahead of it ended", broker.ErrUnavailable)
		}
		return bounded(ctx, err)
	}
	if ke, ok := errors.AsType[*kerr.Error](err); ok {
		if _, refused := sentinels[ke.Code]; refused {
			return classify(err)
		}
		return broker.UnknownOutcome(err)
	}
	switch {
	case errors.Is(err, kgo.ErrClientClosed):
		return broker.UnknownOutcome(fmt.Errorf("%w: %w", broker.ErrClosed, err))
	case errors.Is(err, kgo.ErrMaxBuffered):
		return fmt.Errorf("%w: %w", broker.ErrFull, err)
	}
	return broker.UnknownOutcome(classify(err))
}

func kafkaHeaders(h broker.Headers) []kgo.RecordHeader {
	if len(h) == 0 {
		return nil
	}
	out := make([]kgo.RecordHeader, len(h))
	for i := range h {
		out[i] = kgo.RecordHeader{Key: h[i].Key, Value: []byte(h[i].Value)}
	}
	return out
}
