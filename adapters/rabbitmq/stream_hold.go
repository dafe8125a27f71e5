package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/rabbitmq/internal/streamwire"
)

// holdBuffer is how many records of a partition a member reads ahead, beside
// the chunk that exceeds it.
const holdBuffer = 1000

// A hold is a partition from assigned to revoked or lost.
type hold struct {
	m         *member
	seat      *seat
	partition int32
	k         *streamwire.Conn // makes the member the active one
	a         *broker.Assignment
	ctx       context.Context // ends with the hold: reading
	cancel    context.CancelFunc
	cut       context.Context // ends when the commit under way took too long for a hand-over
	cutOff    context.CancelFunc
	room      chan struct{} // a signal: buf shrank
	turn      chan struct{} // a token: one commits at a time; gone when the hold has ended
	ended     sync.Once

	// guarded by m.mu
	over      bool // nothing more goes out
	reading   bool
	epoch     int // counts seeks
	at        *start
	stop      context.CancelFunc // ends the read of this epoch
	buf       []*broker.Record
	next      int64 // to be read
	committed int64 // -1: unknown
	signed    int64 // what was committed at the last sign of life
}

func newHold(m *member, st *seat, k *streamwire.Conn) *hold {
	h := &hold{
		m: m, seat: st, partition: st.partition, k: k,
		a:    &broker.Assignment{Stream: m.s.name, Group: m.group, Partition: st.partition},
		room: make(chan struct{}, 1), turn: make(chan struct{}, 1), stop: func() {}, committed: -1, signed: -2,
	}
	h.turn <- struct{}{}
	h.ctx, h.cancel = context.WithCancel(m.ctx)
	h.cut, h.cutOff = context.WithCancel(context.Background())
	return h
}

// end makes every later commit fail and waits for the one under way, for
// CloseTimeout at most before it is cancelled.
func (h *hold) end() {
	h.a.End()
	h.cancel()
	h.ended.Do(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(h.ctx), h.m.s.b.o.CloseTimeout)
		defer cancel()
		select {
		case <-h.turn:
		case <-ctx.Done():
			h.cutOff()
			<-h.turn
		}
		h.cutOff()
	})
}

// run reads the partition into the buffer until the hold ends.
func (h *hold) run() {
	wait := newBackoff(h.m.s.b.o)
	for h.goesOn() {
		began := time.Now()
		if err := h.read(); err != nil && h.ctx.Err() == nil {
			h.m.s.b.o.Logger.Warn("reading a partition failed", "adapter", adapterName,
				"stream", h.m.s.name, "partition", h.partition, "error", err)
			if errors.Is(err, broker.ErrUnsupported) {
				h.m.fail(err)
			}
			wait.sleep(h.ctx, began)
		}
	}
}

func (h *hold) goesOn() bool {
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	return !h.over && h.ctx.Err() == nil
}

// position returns where to read from, the epoch that it belongs to, and a
// context that ends with it.
func (h *hold) position() (start, int, context.Context, error) {
	h.m.mu.Lock()
	at, epoch := h.at, h.epoch
	h.stop()
	ctx, cancel := context.WithCancel(h.ctx)
	h.stop = cancel
	h.m.mu.Unlock()
	var st start
	committed := int64(-1)
	if at != nil {
		st = *at
	} else {
		var err error
		if st, err = h.m.s.resume(ctx, h.m.group, h.partition, h.m.o.Start); err != nil {
			return st, epoch, ctx, err
		}
		if st.stored {
			committed = st.offset
		}
	}
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	if h.epoch == epoch {
		h.at = &st
		h.move(st)
		h.committed = max(h.committed, committed)
	}
	return st, epoch, ctx, nil
}

// move notes where the hold reads; m.mu is held. A time is behind every commit:
// what it passes over is not committed.
func (h *hold) move(to start) {
	h.next = to.offset
	if to.ms != 0 {
		h.next = math.MaxInt64
	}
}

// resume returns the group's stored position, or where it starts without one.
// An offset that the retention has removed becomes the first one.
func (s *Stream) resume(ctx context.Context, group string, p int32, otherwise broker.Position) (start, error) {
	stored, ok, err := s.stored(ctx, group, p)
	if err != nil {
		return start{}, err
	}
	if ok {
		return start{spec: streamwire.AtOffset(stored), offset: stored, stored: true}, nil
	}
	if k := otherwise.Kind(); k == broker.PositionDefault || k == broker.PositionEarliest {
		return start{spec: streamwire.First()}, nil
	}
	first, next, err := s.bounds(ctx, p)
	if err != nil {
		return start{}, err
	}
	return startAt(otherwise, first, next)
}

// read fills the buffer over one subscription, until it breaks, a seek, or the end.
func (h *hold) read() error {
	m := h.m
	at, epoch, ctx, err := h.position()
	if err != nil {
		return ignoreEnd(ctx, err)
	}
	defer func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if h.epoch == epoch { // go on behind what was read
			h.at = &at
		}
	}()
	sub, err := m.s.subscribe(ctx, h.partition, at.spec)
	if err != nil {
		return ignoreEnd(ctx, err)
	}
	defer m.s.unsubscribe(sub)
	m.setReading(h, true)
	defer m.setReading(h, false)
	for {
		c, err := sub.Next(ctx)
		if err != nil {
			return ignoreEnd(ctx, err)
		}
		if err := h.take(ctx, epoch, c, &at); err != nil {
			return ignoreEnd(ctx, err)
		}
	}
}

func (m *member) setReading(h *hold, on bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	h.reading = on
}

// ignoreEnd drops the error of what ended because ctx did.
func ignoreEnd(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil //nolint:nilerr // as it says
	}
	return err
}

// take waits for room and puts the records of a chunk into the buffer; at moves
// behind them. One that cannot be read is an error, behind those before it.
func (h *hold) take(ctx context.Context, epoch int, c *streamwire.Chunk, at *start) error {
	rs := make([]*broker.Record, 0, c.Records)
	slab := make([]broker.Record, c.Records)
	var bad error
	from := *at
	err := c.Each(func(offset int64, message []byte) bool {
		r := &slab[len(rs)]
		if bad = decodeRecord(message, h.partition, r); bad != nil {
			bad = unreadable(h.partition, offset, bad)
			return false
		}
		if from.pass(offset, r) {
			r.Bind(broker.NewOffset(offset), h.a)
			rs = append(rs, r)
		} else {
			*r = broker.Record{}
		}
		return true
	})
	if err != nil {
		err = unreadable(h.partition, c.First, err)
	}
	err = errors.Join(err, bad)
	switch next := c.First + int64(c.Records); {
	case err == nil && (len(rs) > 0 || from.ms == 0):
		from.offset = max(from.offset, next)
	case len(rs) > 0: // what can be read goes out before the error
		last, _ := rs[len(rs)-1].Offset().Int64()
		from.offset = last + 1
	case err != nil:
		return err
	}
	if len(rs) > 0 || from.ms == 0 {
		from.spec = streamwire.AtOffset(from.offset)
	}
	for {
		h.m.mu.Lock()
		if h.epoch != epoch || h.over || h.a.Ended() {
			h.m.mu.Unlock()
			return fmt.Errorf("%w: the partition's owner or position changed", context.Canceled)
		}
		if len(h.buf) < holdBuffer {
			h.buf = append(h.buf, rs...)
			*at = from
			h.move(from)
			h.m.mu.Unlock()
			if len(rs) > 0 {
				h.m.signal()
			}
			return err
		}
		h.m.mu.Unlock()
		select {
		case <-h.room:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// acquire begins a commit: until release the hold does not end, unless the
// commit takes longer than a hand-over waits.
func (h *hold) acquire(ctx context.Context) error {
	select {
	case <-h.turn:
	case <-h.ctx.Done():
		return broker.ErrFenced
	case <-ctx.Done():
		return broker.ContextError(ctx)
	}
	if h.a.Ended() {
		h.release()
		return broker.ErrFenced
	}
	return nil
}

func (h *hold) release() { h.turn <- struct{}{} }

// commit stores where the group reads next, and never moves it back. The
// caller has acquired the hold.
func (h *hold) commit(ctx context.Context, next int64) error {
	h.m.mu.Lock()
	epoch, done := h.epoch, h.committed >= next
	h.m.mu.Unlock()
	if done {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(h.cut, cancel)()
	if err := storeOn(ctx, h.k, h.m.group, h.m.s.partitions[h.partition], next); err != nil {
		return broker.UnknownOutcome(classifyStream(err))
	}
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	if h.epoch == epoch {
		h.committed = max(h.committed, next)
	}
	return nil
}
