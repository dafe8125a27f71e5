package kafka

import (
	"context"

	"github.com/queuestream/broker"
	"github.com/twmb/franz-go/pkg/kgo"
)

// An appending is a record of AsyncAppend on its way.
type appending struct {
	item
	stream *Stream
	answer func(broker.Receipt, error)
}

// AsyncAppend does what broker.AsyncAppending promises, with franz-go's own
// pipeline. What is on its way Shutdown waits for and Close fails.
func (s *Stream) AsyncAppend(ctx context.Context, r broker.Record, done func(broker.Receipt, error)) error {
	if err := broker.ContextError(ctx); err != nil {
		return fail("publish", s.topic.name, err)
	}
	if s.closed.Load() {
		return fail("publish", s.topic.name, broker.ErrClosed)
	}
	if err := s.b.mayPublish(ctx); err != nil {
		return fail("publish", s.topic.name, err)
	}
	a := &appending{stream: s, answer: done}
	a.Context, a.rec.Context = ctx, &a.item
	if err := s.encode(ctx, s.b.client, &a.item, &r, nil); err != nil {
		return fail("publish", s.topic.name, err)
	}
	s.b.appends.Add(1)
	if err := s.b.produce(ctx, s.met, &a.item, a.delivered); err != nil {
		s.b.appended()
		return fail("publish", s.topic.name, err)
	}
	return nil
}

// delivered is the record's promise. A method of its own finds its way back
// whatever hooks did to the record.
func (a *appending) delivered(_ *kgo.Record, err error) {
	var receipt broker.Receipt
	if err == nil {
		receipt.Partition, receipt.Offset = a.rec.Partition, broker.NewOffset(a.rec.Offset)
	} else {
		err = fail("publish", a.stream.topic.name, publishError(a.Context, err))
	}
	a.answer(receipt, err)
	a.stream.b.appended()
}
