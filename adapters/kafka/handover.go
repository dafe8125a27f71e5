package kafka

import (
	"context"
	"sync"
	"time"

	"github.com/queuestream/broker"
	"github.com/twmb/franz-go/pkg/kgo"
)

// A handover takes appendings to the client in order, from a goroutine of its
// own for as long as there are any. The client's part is about half of the work
// for a record; done beside that of whoever publishes, it keeps up with the
// server, so that the client has enough for large batches.
type handover struct {
	mu      sync.Mutex
	waiting []*appending
	bytes   int // of what waits
	running bool
	taken   []*appending  // by the goroutine, while it runs
	room    chan struct{} // closed and dropped once what waits was taken; nil: nobody asks
}

const (
	maxHandover      = 1024    // appendings that wait, and that are taken at once
	maxHandoverBytes = 1 << 20 // of what waits, and a record more
)

// handOver waits for room until ctx ends. With an error a has not been taken.
func (s *Stream) handOver(ctx context.Context, a *appending) error {
	h := &s.handover
	h.mu.Lock()
	for len(h.waiting) >= min(maxHandover, s.b.opts.MaxBufferedRecords) || h.bytes >= maxHandoverBytes {
		if h.room == nil {
			h.room = make(chan struct{})
		}
		room := h.room
		h.mu.Unlock()
		select {
		case <-room:
		case <-ctx.Done():
			return broker.ContextError(ctx)
		}
		h.mu.Lock()
	}
	defer h.mu.Unlock()
	if !h.running {
		if err := s.b.begin(); err != nil {
			return err
		}
		h.running = true
		go s.runHandover() //nolint:gosec // what it hands over outlives the call
	}
	h.waiting = append(h.waiting, a)
	h.bytes += len(a.rec.Key) + len(a.rec.Value)
	return nil
}

// runHandover ends when nothing waits.
func (s *Stream) runHandover() {
	defer s.b.end()
	for s.handover.take() {
		now := time.Now() // after the call of each, and before its answer
		for _, a := range s.handover.taken {
			if a.rec.Timestamp.IsZero() {
				a.rec.Timestamp = now
			}
			promise := s.appended
			if !s.b.lends { // hooks may keep a record, and take its context away
				promise = func(_ *kgo.Record, err error) { s.answer(a, err) }
			}
			if err := s.b.produce(context.Background(), s.met, &a.item, promise); err != nil {
				s.answer(a, err)
			}
		}
	}
}

// take exchanges what waits for what was taken before; false: nothing waits.
func (h *handover) take() bool {
	clear(h.taken)
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.waiting) == 0 {
		h.running = false
		return false
	}
	h.waiting, h.taken, h.bytes = h.taken[:0], h.waiting, 0
	if h.room != nil {
		close(h.room)
		h.room = nil
	}
	return true
}
