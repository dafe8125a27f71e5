package kafka

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/queuestream/broker"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// An item is one record on its way to the broker. It is its record's Context,
// which is how the promise and the partitioner find it without an allocation
// for each record, and the context that the client gets: of the call until the
// client has room for the record, and one without an end from then on. The
// client looks at one record's context for a whole partition; the end of one
// call would fail what others publish.
type item struct {
	context.Context //nolint:containedctx // it is the record's context, for as long as the record is on its way
	rec             kgo.Record
	placed          atomic.Bool // the client has it in a partition, or is about to; where its context may end
	pin             bool
}

type itemKey struct{}

func (it *item) value(key, self any) any {
	if key == (itemKey{}) {
		return self
	}
	return it.Context.Value(key)
}

// Done is the call's until the record is placed; then there is no end.
func (it *item) Done() <-chan struct{} {
	if it.placed.Load() {
		return nil
	}
	return it.Context.Done()
}

// Err is of the same context as Done.
func (it *item) Err() error {
	if it.placed.Load() {
		return nil
	}
	return it.Context.Err()
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
func (b *Broker) produce(ctx context.Context, met *atomic.Bool, it *item, promise func(*kgo.Record, error)) error {
	if met.Load() {
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
	it.placed.Store(true)
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
