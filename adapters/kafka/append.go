package kafka

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/internal/clock"
	"github.com/twmb/franz-go/pkg/kgo"
)

// An appending is a record of AsyncAppend on its way.
type appending struct {
	item
	answer broker.Answer
	sheet  *sheet
}

// Value is how an appending is found where a hook has wrapped the record's context.
func (a *appending) Value(key any) any { return a.value(key, a) }

// A sheet is memory for some appendings, used again when all are answered.
type sheet struct {
	items [19]appending // for 4 KiB
	next  int           // guarded by the stream's sheetMu
	left  atomic.Int32  // not answered, or not taken yet
	held  atomic.Bool   // somebody may hold one of them: never again
}

var sheets = sync.Pool{New: func() any { return &sheet{} }}

// AsyncAppend does what broker.AsyncAppending promises, with franz-go's own
// pipeline. What is on its way Shutdown waits for and Close fails.
func (s *Stream) AsyncAppend(ctx context.Context, r broker.Record, answer broker.Answer) error {
	a := s.newAppending()
	if err := s.append(ctx, a, &r, answer); err != nil {
		a.free()
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
	a.Context, a.answer, a.rec.Context = ctx, answer, a
	a.rec.Timestamp = time.Unix(0, clock.Now()) // left to the client, each record would read the clock twice
	if err := s.encode(ctx, s.b.client, &a.item, r, nil); err != nil {
		return err
	}
	promise := s.appended
	if !s.b.lends { // hooks may keep a record, and take its context away
		promise = func(_ *kgo.Record, err error) { s.answer(a, err) }
	}
	sheet := a.sheet
	if !s.b.lends || !s.met.Load() { // the client's search for a topic keeps a context
		sheet.held.Store(true)
	}
	err := s.b.produce(ctx, s.met, &a.item, promise)
	if !s.met.Load() { // so does that for a topic deleted meanwhile
		sheet.held.Store(true)
	}
	return err
}

func (s *Stream) newAppending() *appending {
	s.sheetMu.Lock()
	defer s.sheetMu.Unlock()
	p := s.sheet
	if p == nil {
		p = sheets.Get().(*sheet) //nolint:errcheck,forcetypeassert // the pool holds nothing else
		p.next = 0
		p.left.Store(int32(len(p.items)))
		s.sheet = p
	}
	a := &p.items[p.next]
	a.sheet = p
	if p.next++; p.next == len(p.items) {
		s.sheet = nil
	}
	return a
}

// free ends the use of an appending.
func (a *appending) free() {
	p := a.sheet
	if !p.held.Load() {
		a.Context, a.rec, a.answer = nil, kgo.Record{}, broker.Answer{}
		a.placed.Store(false)
	}
	if p.left.Add(-1) == 0 && !p.held.Load() {
		sheets.Put(p)
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
		err = fail("publish", s.topic.name, publishError(a.Context, err))
	}
	answer := a.answer
	a.free()
	answer.Give(receipt, err)
}
