package rabbitmq

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	samqp "github.com/rabbitmq/rabbitmq-stream-go-client/pkg/amqp"
	"github.com/rabbitmq/rabbitmq-stream-go-client/pkg/stream"

	"github.com/queuestream/broker"
)

// holdBuffer is how many records of a partition a member reads ahead.
const holdBuffer = 1000

// A hold is a partition from assigned to revoked or lost.
type hold struct {
	m         *member
	partition int32
	a         *broker.Assignment
	ctx       context.Context // ends with the hold
	cancel    context.CancelFunc

	// guarded by m.mu
	epoch     int // counts seeks
	at        *start
	buf       []*broker.Record
	room      chan struct{} // closed and replaced when buf shrinks
	reseek    chan struct{} // closed and replaced by Seek
	committed int64         // -1: unknown
}

func (h *hold) end() {
	h.a.End()
	h.cancel()
}

// run reads the partition into the buffer until the hold ends.
func (h *hold) run() {
	backoff := h.m.s.b.o.MinBackoff
	for h.ctx.Err() == nil {
		began := time.Now()
		if err := h.read(); err != nil && h.ctx.Err() == nil {
			h.m.s.b.o.Logger.Warn("reading a partition failed", "adapter", adapterName,
				"stream", h.m.s.name, "partition", h.partition, "error", err)
			if time.Since(began) > time.Second {
				backoff = h.m.s.b.o.MinBackoff
			}
			sleep(h.ctx, backoff/2+rand.N(backoff/2+1))
			backoff = min(2*backoff, h.m.s.b.o.MaxBackoff)
		}
	}
}

// position returns where to read from and the epoch that it belongs to.
func (h *hold) position() (start, int, <-chan struct{}, error) {
	h.m.mu.Lock()
	at, epoch, reseek := h.at, h.epoch, h.reseek
	h.m.mu.Unlock()
	if at != nil {
		return *at, epoch, reseek, nil
	}
	st, err := h.m.s.resume(h.ctx, h.m.group, h.partition, h.m.o.Start)
	if err != nil {
		return st, epoch, reseek, err
	}
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	if h.epoch == epoch {
		h.at = &st
	}
	return st, epoch, reseek, nil
}

// resume returns the group's stored position, or where it starts without one.
// An offset that the retention has removed becomes the first one.
func (s *Stream) resume(ctx context.Context, group string, p int32, otherwise broker.Position) (start, error) {
	var o stream.OffsetSpecification
	stored, ok, err := s.stored(ctx, group, p)
	if err != nil {
		return start{}, err
	}
	if ok {
		return start{spec: o.Offset(stored), offset: stored}, nil
	}
	if k := otherwise.Kind(); k == broker.PositionDefault || k == broker.PositionEarliest {
		return start{spec: o.First()}, nil
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
	at, epoch, reseek, err := h.position()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(h.ctx)
	defer cancel()
	defer func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if h.epoch == epoch { // go on behind what was read
			h.at = &at
		}
	}()
	var mu sync.Mutex // the handler's
	f, err := m.s.subscribe(ctx, h.partition, at.spec, func(offset int64, _ int, msg *samqp.Message) {
		mu.Lock()
		defer mu.Unlock()
		if ctx.Err() != nil {
			return
		}
		r := decodeRecord(msg, h.partition)
		if !at.pass(offset, r) {
			return
		}
		r.Bind(broker.NewOffset(offset), h.a)
		if h.put(ctx, epoch, r) {
			at.offset = offset + 1
			at.spec = stream.OffsetSpecification{}.Offset(offset + 1)
		}
	})
	if err != nil {
		return err
	}
	select {
	case <-f.closed:
		err = broker.ErrUnavailable
	case <-reseek:
	case <-ctx.Done():
	}
	cancel()
	f.close(m.s.b.o.CloseTimeout)
	mu.Lock()
	defer mu.Unlock()
	return err
}

// put waits for room. It reports false when the subscription is over.
func (h *hold) put(ctx context.Context, epoch int, r *broker.Record) bool {
	m := h.m
	for {
		m.mu.Lock()
		if h.epoch != epoch || h.a.Ended() {
			m.mu.Unlock()
			return false
		}
		if len(h.buf) < holdBuffer {
			h.buf = append(h.buf, r)
			m.signal()
			m.mu.Unlock()
			return true
		}
		room := h.room
		m.mu.Unlock()
		select {
		case <-room:
		case <-ctx.Done():
			return false
		}
	}
}
