package kafka

import (
	"context"
	"time"

	"github.com/queuestream/broker"
	"github.com/twmb/franz-go/pkg/kgo"
)

// An appending is a record of AsyncAppend on its way. It is three cache lines,
// beside others of its partition: see sheet. As a context it has no end: that
// of the call is none of the record's.
type appending struct {
	item
	answer broker.Answer
}

// Value is how an appending is found where a hook has wrapped the record's context.
func (a *appending) Value(key any) any { return a.value(key, a) }

// Deadline tells of none.
func (a *appending) Deadline() (deadline time.Time, ok bool) { return time.Time{}, false }

// Done returns nil: there is no end.
func (a *appending) Done() <-chan struct{} { return nil }

// Err returns nil.
func (a *appending) Err() error { return nil }

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
	a := s.newAppending(r)
	a.begin(ctx, time.Time{}) // of the moment when it is handed over
	a.rec.Context = a         //nolint:fatcontext // the record's, which is this one and no deeper
	if err := s.encode(ctx, s.b.client, &a.item, r, nil); err != nil {
		return err
	}
	a.answer = answer
	if err := s.handOver(ctx, a); err != nil {
		a.letGo()
		return err
	}
	return nil
}

// newAppending returns memory for a record on its way. Where hooks may keep it,
// it is apart from what others refer to.
func (s *Stream) newAppending(r *broker.Record) *appending {
	if !s.b.lends {
		return new(appending)
	}
	return s.sheets.item(s.partitionOf(r))
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
		err = fail("publish", s.topic.name, publishError(a, err))
	}
	answer := a.answer
	if s.b.lends {
		a.letGo()
	}
	answer.Give(receipt, err)
}

// letGo drops what an appending refers to that is the program's: neighbours on
// the sheet may be on their way for longer.
func (a *appending) letGo() {
	a.rec.Key, a.rec.Value, a.rec.Headers = nil, nil, nil
	a.answer = broker.Answer{}
}
