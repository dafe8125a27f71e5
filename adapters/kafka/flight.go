package kafka

import (
	"context"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/queuestream/broker"
	"github.com/twmb/franz-go/pkg/kgo"
)

// A flight is what was handed to the client at once: all that a call publishes,
// or, where bytes are copied, some of it. Handed over all at once, what is
// copied would have left the processor's caches by the time that it is sent.
type flight struct {
	from    int // what the first item is of the load
	items   []sending
	places  []int32  // of the records, in items; see arrange
	results []result // of items
	endings []ending // the items' contexts, where they may end; empty: they may not
	left    atomic.Int64
	done    chan struct{} // gets one when all is answered
	landed  bool          // done was seen
	lends   bool          // nobody has a record once it is answered
	held    bool          // somebody may hold an item beyond its answer
	copies  *copies       // of what items refer to; nil: they refer to the caller's
	kept    copies        // for copies
}

// A sending is an item of a flight. It is three cache lines.
type sending struct {
	item
	flight *flight
	index  int32
}

// A result is what became of an item. It is apart from it: who reads the
// results of a flight need not go over all of its memory once more.
type result struct {
	offset    int64
	err       error
	partition int32
	done      atomic.Bool // all of it is final
}

// A load is what a call publishes.
type load interface {
	// size is of what encode copies of record i.
	size(i int) int
	// partition is where record i goes most likely; negative: anywhere.
	partition(i int) int
	// encode translates record i.
	encode(i int, it *item, cp *copies) error
	// answer tells what became of record i.
	answer(i int, partition int32, offset int64, err error)
}

const (
	flightBytes = 4 << 20 // of copies in a flight, and less than a record more
	maxFlights  = 4       // of a call
)

// flights keeps them by the power of two that holds their items.
var flights [maxFlightBits + 1]sync.Pool

// maxFlightBits bounds what is kept: calls with more records are rare.
const maxFlightBits = 14

// newFlight returns one for records of a load of n.
func (b *Broker) newFlight(ctx context.Context, l load, from, n int) *flight {
	size, copied := 0, ctx.Done() != nil
	if copied {
		to := from
		lingers := b.opts.Linger > 0 // what lingers must not be waited for
		for ; to < n && (lingers || size < flightBytes && to-from < 1<<maxFlightBits); to++ {
			size += l.size(to)
		}
		n = to
	}
	n -= from
	var f *flight
	if class := bits.Len(uint(n - 1)); class > maxFlightBits {
		f = &flight{items: make([]sending, n), results: make([]result, n), done: make(chan struct{}, 1)}
	} else if kept, ok := flights[class].Get().(*flight); ok {
		f = kept
		f.items, f.results, f.landed = f.items[:n], f.results[:n], false
	} else {
		f = &flight{items: make([]sending, n, 1<<class), results: make([]result, n, 1<<class), done: make(chan struct{}, 1)}
	}
	f.from, f.lends, f.held, f.copies = from, b.lends, !b.lends, nil
	f.left.Store(int64(n) + 1)
	f.endings = f.endings[:0]
	if copied {
		if cap(f.endings) < n {
			f.endings = make([]ending, 0, cap(f.items))
		}
		f.endings = f.endings[:n]
		f.copies = f.kept.begin(b.lends, size)
	}
	return f
}

// free ends the use of a flight.
func (f *flight) free() {
	if !f.landed || f.held {
		return
	}
	clear(f.results)
	clear(f.endings)
	if class := bits.Len(uint(cap(f.items) - 1)); class <= maxFlightBits {
		flights[class].Put(f)
	}
}

// Value is how a sending is found where a hook has wrapped the record's context.
func (it *sending) Value(key any) any { return it.value(key, it) }

// begin makes a sending part of a flight, if it has one.
func (it *sending) begin(ctx context.Context, f *flight, i int, now time.Time) {
	*it = sending{flight: f, index: int32(i)} //nolint:gosec // flights are smaller
	if f != nil && len(f.endings) > 0 {
		e := &f.endings[i]
		e.Context = ctx
		e.placed.Store(false)
		ctx = e
	}
	it.item.begin(ctx, now)
	it.rec.Context = it
}

func delivered(r *kgo.Record, err error) {
	if it, ok := carrierOf(r).(*sending); ok {
		it.settled(err)
	}
}

func (it *sending) settled(err error) {
	f := it.flight
	r := &f.results[it.index]
	r.partition, r.offset, r.err = it.rec.Partition, it.rec.Offset, err
	if f.lends {
		it.rec = kgo.Record{} // what it refers to may be the caller's; the context stays, see held
	}
	r.done.Store(true)
	f.land()
}

// land counts an answer. After the last one the flight is the caller's alone.
func (f *flight) land() {
	if f.left.Add(-1) == 0 {
		f.copies.giveBack()
		f.done <- struct{}{}
	}
}

// deliver publishes a load of n records, and waits for them, or until ctx ends.
// A record that encode refuses has its error.
func (b *Broker) deliver(ctx context.Context, l load, n int) {
	denied := b.mayPublish(ctx)
	now := time.Now()
	var under [maxFlights]*flight
	first, next := 0, 0 // flights under way: from first up to next
	for i := 0; i < n; next++ {
		if next-first == maxFlights {
			under[first%maxFlights].finish(ctx, l)
			first++
			if err := broker.ContextError(ctx); err != nil {
				for ; i < n; i++ {
					l.answer(i, 0, 0, err)
				}
				break
			}
		}
		f := b.newFlight(ctx, l, i, n)
		under[next%maxFlights] = f
		b.start(ctx, f, l, now, denied)
		i += len(f.items)
	}
	for ; first < next; first++ {
		under[first%maxFlights].finish(ctx, l)
	}
}

// arranged is from how many records on a flight is larger than the caches that
// make it all the same where an item is.
const arranged = 500

// arrange returns where each record is among the items: side by side with those
// of its partition, for the reason that a sheet tells. With nil they are in order.
func (f *flight) arrange(l load) []int32 {
	n := len(f.items)
	if n < arranged {
		return nil
	}
	f.places = slices.Grow(f.places[:0], n)[:n]
	var next [1 + maxSheets]int32 // place for a record: of no partition, of one
	for i := range f.places {
		side := 0
		if p := l.partition(f.from + i); p >= 0 {
			side = 1 + p%maxSheets
		}
		f.places[i] = int32(side) //nolint:gosec // an index of next
		next[side]++
	}
	begin := int32(0)
	for side, count := range next {
		next[side] = begin
		begin += count
	}
	for i, side := range f.places {
		f.places[i] = next[side]
		next[side]++
	}
	return f.places
}

// start hands a flight to the client, unless publishing is denied.
func (b *Broker) start(ctx context.Context, f *flight, l load, now time.Time, denied error) {
	var met *metTopic
	topic := ""
	places := f.arrange(l)
	for i := range f.items {
		it := &f.items[i]
		if places != nil {
			it = &f.items[places[i]]
		}
		it.begin(ctx, f, i, now)
		err := l.encode(f.from+i, &it.item, f.copies)
		if err == nil {
			err = denied
		}
		if err == nil {
			if met == nil || it.rec.Topic != topic {
				topic = it.rec.Topic
				met = b.met.of(topic)
			}
			promise := delivered
			if !b.lends { // hooks may take the record's context away
				promise = func(_ *kgo.Record, err error) { it.settled(err) }
			}
			known := met.known.Load()
			err = b.produce(ctx, met, &it.item, promise)
			if !known || !met.known.Load() { // the client's search for a topic, or for one deleted meanwhile, keeps a context
				f.held = true
			}
		}
		if err != nil {
			it.settled(err)
		}
	}
	f.land()
}

// finish waits for a flight, or until ctx ends, tells what became of its
// records, and frees it.
func (f *flight) finish(ctx context.Context, l load) {
	select {
	case <-f.done:
		f.landed = true
	case <-ctx.Done():
	}
	for i := range f.results {
		partition, offset, err := f.results[i].get(ctx)
		l.answer(f.from+i, partition, offset, err)
	}
	f.free()
}

// get returns a result. Everything but "not sent" and "refused by the broker"
// is unknown.
func (r *result) get(ctx context.Context) (partition int32, offset int64, err error) {
	switch {
	case !r.done.Load():
		return 0, 0, broker.UnknownOutcome(broker.ContextError(ctx))
	case r.err != nil:
		return 0, 0, publishError(ctx, r.err)
	}
	return r.partition, r.offset, nil
}
