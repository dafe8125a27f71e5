package kafka

import (
	"context"
	"math/bits"
	"sync"
	"sync/atomic"
	"time"

	"github.com/queuestream/broker"
	"github.com/twmb/franz-go/pkg/kgo"
)

// A flight is what was handed to the client in one call.
type flight struct {
	items  []sending
	left   atomic.Int64
	done   chan struct{} // gets one when all is answered
	landed bool          // done was seen
	held   bool          // somebody may hold an item beyond its answer
	copies *copies       // of what items refer to; nil: they refer to the caller's
	kept   copies        // for copies
}

// A sending is an item of a flight.
type sending struct {
	item
	flight *flight
	err    error
	done   atomic.Bool // err and rec are final
}

// flights keeps them by the power of two that holds their items.
var flights [maxFlightBits + 1]sync.Pool

// maxFlightBits bounds what is kept: calls with more records are rare.
const maxFlightBits = 14

// newFlight returns one for n records of size bytes in all.
func (b *Broker) newFlight(ctx context.Context, n, size int) *flight {
	var f *flight
	if class := bits.Len(uint(max(n, 1) - 1)); class > maxFlightBits {
		f = &flight{items: make([]sending, n), done: make(chan struct{}, 1)}
	} else if kept, ok := flights[class].Get().(*flight); ok {
		f = kept
		f.items, f.landed = f.items[:n], false
	} else {
		f = &flight{items: make([]sending, n, 1<<class), done: make(chan struct{}, 1)}
	}
	f.left.Store(int64(n) + 1)
	f.held = !b.lends
	f.copies = f.kept.begin(ctx, b.lends, size)
	return f
}

// free ends the use of a flight.
func (f *flight) free() {
	if !f.landed || f.held {
		return
	}
	clear(f.items)
	if class := bits.Len(uint(cap(f.items) - 1)); class <= maxFlightBits {
		flights[class].Put(f)
	}
}

// Value is how a sending is found where a hook has wrapped the record's context.
func (it *sending) Value(key any) any { return it.value(key, it) }

// begin makes an item part of a flight. It carries the time now: left to the
// client, each record would read the clock.
func (it *sending) begin(ctx context.Context, f *flight, now time.Time) {
	it.rec.Timestamp = now
	it.Context, it.flight, it.rec.Context = ctx, f, it
}

func delivered(r *kgo.Record, err error) {
	if it, ok := carrierOf(r).(*sending); ok {
		it.settled(err)
	}
}

func (it *sending) settled(err error) {
	it.err = err
	it.done.Store(true)
	it.flight.land()
}

// land counts an answer. After the last one the flight is the caller's alone.
func (f *flight) land() {
	if f.left.Add(-1) == 0 {
		f.copies.giveBack()
		f.done <- struct{}{}
	}
}

// deliver publishes n records of size bytes in all, which encode translates
// one by one, and waits for them, or until ctx ends. One that encode refuses
// has its error. The caller frees the flight.
func (b *Broker) deliver(ctx context.Context, n, size int, encode func(i int, it *item, cp *copies) error) *flight {
	f := b.newFlight(ctx, n, size)
	denied := b.mayPublish(ctx)
	now := time.Now()
	var met *atomic.Bool
	for i := range f.items {
		it := &f.items[i]
		it.begin(ctx, f, now)
		err := encode(i, &it.item, f.copies)
		if err == nil {
			err = denied
		}
		if err == nil {
			if met == nil || it.rec.Topic != f.items[i-1].rec.Topic {
				met = b.met.of(it.rec.Topic)
			}
			if !met.Load() { // the client's search for a topic keeps a context
				f.held = true
			}
			promise := delivered
			if !b.lends { // hooks may take the record's context away
				promise = func(_ *kgo.Record, err error) { it.settled(err) }
			}
			err = b.produce(ctx, met, &it.item, promise)
		}
		if err != nil {
			it.settled(err)
		}
	}
	f.land()
	select {
	case <-f.done:
		f.landed = true
	case <-ctx.Done():
	}
	return f
}

// result returns what became of item i. Everything but "not sent" and "refused
// by the broker" is unknown.
func (f *flight) result(ctx context.Context, i int) (partition int32, offset int64, err error) {
	it := &f.items[i]
	if !it.done.Load() {
		return 0, 0, broker.UnknownOutcome(broker.ContextError(ctx))
	}
	if it.err == nil {
		return it.rec.Partition, it.rec.Offset, nil
	}
	return 0, 0, publishError(ctx, it.err)
}
