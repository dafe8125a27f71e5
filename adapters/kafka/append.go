package kafka

import (
	"context"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/internal/clock"
	"github.com/twmb/franz-go/pkg/kgo"
)

// An appending is a record of AsyncAppend on its way. It is three cache lines,
// beside others of its partition: see sheet.
type appending struct {
	item
	answer broker.Answer
}

// Value is how an appending is found where a hook has wrapped the record's context.
func (a *appending) Value(key any) any { return a.value(key, a) }

// AsyncAppend does what broker.AsyncAppending promises, with franz-go's own
// pipeline. What is on its way Shutdown waits for and Close fails.
func (s *Stream) AsyncAppend(ctx context.Context, r broker.Record, answer broker.Answer) error {
	if err := s.append(ctx, &r, answer); err != nil {
		return fail("publish", s.topic.name, err)
	}
	return nil
}

func (s *Stream) append(ctx context.Context, r *broker.Record, answer broker.Answer) error {
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
	now := clock.Now()
	a := s.newAppending(r, now)
	a.begin(carried, time.Unix(0, now))
	a.rec.Context = a //nolint:fatcontext // the record's, which is this one and no deeper
	if err := s.encode(ctx, s.b.client, &a.item, r, nil); err != nil {
		return err
	}
	a.answer = answer
	promise := s.appended
	if !s.b.lends { // hooks may keep a record, and take its context away
		promise = func(_ *kgo.Record, err error) { s.answer(a, err) }
	}
	return s.b.produce(ctx, s.met, &a.item, promise)
}

// newAppending returns memory for a record on its way. Where hooks may keep it,
// it is apart from what others refer to.
func (s *Stream) newAppending(r *broker.Record, now int64) *appending {
	if !s.b.lends {
		return new(appending)
	}
	return s.sheets.item(s.partitionOf(r), now)
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
	answer := a.answer
	if s.b.lends { // neighbours on the sheet may be on their way for longer
		a.rec.Key, a.rec.Value, a.rec.Headers = nil, nil, nil
		a.answer = broker.Answer{}
	}
	answer.Give(receipt, err)
}
