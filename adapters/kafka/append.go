package kafka

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/internal/clock"
	"github.com/twmb/franz-go/pkg/kgo"
)

// An appending is a record of AsyncAppend on its way. It is three cache lines:
// when it is answered, all of them have left the caches.
type appending struct {
	item
	answer broker.Answer
}

// Value is how an appending is found where a hook has wrapped the record's context.
func (a *appending) Value(key any) any { return a.value(key, a) }

// A sheet is memory for some appendings. It is not used again: what others have
// written since is slower to reach than new memory.
type sheet struct {
	next  atomic.Int32 // of items; it may count beyond the end
	_     [52]byte     // with what the runtime puts before it, a cache line
	items [21]appending
}

// AsyncAppend does what broker.AsyncAppending promises, with franz-go's own
// pipeline. What is on its way Shutdown waits for and Close fails.
func (s *Stream) AsyncAppend(ctx context.Context, r broker.Record, answer broker.Answer) error {
	a := s.newAppending()
	if err := s.append(ctx, a, &r, answer); err != nil {
		return fail("publish", s.topic.name, err)
	}
	return nil
}

func (s *Stream) append(ctx context.Context, a *appending, r *broker.Record, answer broker.Answer) error {
	if s.closed.Load() {
		return broker.ErrClosed
	}
	if err := s.b.mayPublish(ctx); err != nil {
		return err
	}
	if !s.b.appends.Load() {
		s.b.appends.Store(true)
	}
	carried := ctx
	if ctx.Done() != nil {
		carried = &ending{Context: ctx}
	}
	a.begin(carried, time.Unix(0, clock.Now()))
	a.answer, a.rec.Context = answer, a
	if err := s.encode(ctx, s.b.client, &a.item, r, nil); err != nil {
		return err
	}
	promise := s.appended
	if !s.b.lends { // hooks may keep a record, and take its context away
		promise = func(_ *kgo.Record, err error) { s.answer(a, err) }
	}
	return s.b.produce(ctx, s.met, &a.item, promise)
}

// newAppending takes an item of the stream's sheet, or of a new one.
func (s *Stream) newAppending() *appending {
	for {
		p := s.sheet.Load()
		if p != nil {
			if i := int(p.next.Add(1)) - 1; i < len(p.items) {
				return &p.items[i]
			}
		}
		s.sheet.CompareAndSwap(p, new(sheet))
	}
}

// answered is the promise of records that are in nobody else's hands.
func (s *Stream) answered(r *kgo.Record, err error) {
	if a, ok := r.Context.(*appending); ok {
		s.answer(a, err)
	}
}

func (s *Stream) answer(a *appending, err error) {
	var receipt broker.Receipt
	if err == nil {
		receipt.Partition, receipt.Offset = a.rec.Partition, broker.NewOffset(a.rec.Offset)
	} else {
		ctx := a.Context
		if e, ok := ctx.(*ending); ok {
			ctx = e.Context
		}
		err = fail("publish", s.topic.name, publishError(ctx, err))
	}
	if s.b.lends { // neighbours on the sheet may be on their way for longer
		a.rec.Key, a.rec.Value, a.rec.Headers = nil, nil, nil
	}
	a.answer.Give(receipt, err)
}
