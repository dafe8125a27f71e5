package conformance

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/queuestream/broker"
)

// A QueueOp is what an event of a [QueueHistory] is about.
type QueueOp uint8

// The operations of a queue's history.
const (
	// QueueSend: Value was published in Group. Values are unique, but for
	// retries of the same send. Batch and Position order what one batch held.
	QueueSend QueueOp = iota + 1
	// QueueReceive: Who was handed Value, as Delivery, its Attempt-th, to hold
	// until Deadline (zero: no lease). It takes no time: only the return counts.
	QueueReceive
	// QueueAck, QueueNack and QueueReject: Who settled Delivery.
	QueueAck
	QueueNack
	QueueReject
	// QueueExtend: Who extended Delivery, now until Deadline.
	QueueExtend
	// QueueClose: Who is closed or killed; what it held is free from Start on.
	QueueClose
	// QueueDead: Value was found in the dead-letter queue.
	QueueDead
)

// A QueueEvent is one operation: it was called at Start and returned at End,
// both positions in the order of the history.
type QueueEvent struct {
	Op         QueueOp
	Who        string
	Value      string
	Group      string
	Start, End int
	At         time.Time // of the return
	Outcome    Outcome
	Batch      int // 0: none
	Position   int
	Delivery   int // from 1, unique
	Attempt    int
	Deadline   time.Time
	Duplicate  bool // of QueueSend: the receipt said so; nothing new was stored
}

// QueueRules are what a history is judged by. The zero value demands only that
// what is delivered was published and has one holder at a time.
type QueueRules struct {
	// Ordered: groups keep order and have one delivery open at a time.
	Ordered bool
	// FIFO: everything without a group is one group for order (not for
	// exclusion).
	FIFO bool
	// Attempts: Delivery.Attempt counts every delivery.
	Attempts bool
	// MaxAttempts: deliveries before a message is dead-lettered; 0: no limit.
	MaxAttempts int
	// ExactlyOnce: a delivery after a successful acknowledgement, or of a value
	// that nobody gave back, is a failure.
	ExactlyOnce bool
	// Faulty: faults were injected. Deliveries may have been lost with their
	// connection without the holder's knowledge.
	Faulty bool
	// Drained: the queue was seen empty at the end, so that what is missing is
	// lost.
	Drained bool
	// Early is how much before its deadline a lease may end by the broker's clock.
	Early time.Duration
}

// A QueueHistory is what was done to one queue and what it answered.
// Recording may be called from many goroutines.
type QueueHistory struct {
	QueueRules
	Events []QueueEvent

	mu         sync.Mutex
	clock      int
	batches    int
	deliveries int
	producers  int // at work
	open       map[*broker.Delivery]int
}

func (h *QueueHistory) tick() int { h.clock++; return h.clock }

// Begin records that an operation is called and returns its index for End.
// Until then its outcome is OutcomeInfo.
func (h *QueueHistory) Begin(e QueueEvent) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	e.Start, e.End, e.Outcome = h.tick(), 0, OutcomeInfo
	h.Events = append(h.Events, e)
	return len(h.Events) - 1
}

// End records that the operation i returned err.
func (h *QueueHistory) End(i int, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	e := &h.Events[i]
	e.End, e.At, e.Outcome = h.tick(), time.Now(), e.Op.outcome(err)
}

// outcome tells what an error says about whether the call happened. A publish
// says ErrUnknownOutcome where it is unknown; a verdict whose context ended may
// have been applied.
func (op QueueOp) outcome(err error) Outcome {
	if op != QueueSend && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)) {
		return OutcomeInfo
	}
	return outcomeOf(err)
}

// Add records an operation that takes no time.
func (h *QueueHistory) Add(e QueueEvent) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.add(e)
}

func (h *QueueHistory) add(e QueueEvent) {
	e.Start = h.tick()
	e.End, e.Outcome = e.Start, OutcomeOK
	if e.At.IsZero() {
		e.At = time.Now()
	}
	h.Events = append(h.Events, e)
}

// Publish publishes m, whose body is its value, and records it.
func (h *QueueHistory) Publish(ctx context.Context, p broker.Publisher, who string, m broker.Message) (broker.Receipt, error) {
	i := h.Begin(QueueEvent{Op: QueueSend, Who: who, Value: string(m.Body), Group: m.GroupID})
	r, err := p.Publish(ctx, m)
	h.duplicate(i, r.Duplicate && err == nil)
	h.End(i, err)
	return r, err
}

// PublishBatch publishes ms and records it.
func (h *QueueHistory) PublishBatch(ctx context.Context, p broker.Publisher, who string, ms []broker.Message) ([]broker.Receipt, error) {
	h.mu.Lock()
	h.batches++
	batch := h.batches
	h.mu.Unlock()
	first := 0
	for i, m := range ms {
		at := h.Begin(QueueEvent{Op: QueueSend, Who: who, Value: string(m.Body), Group: m.GroupID, Batch: batch, Position: i})
		if i == 0 {
			first = at
		}
	}
	index := make([]int, 0, len(ms))
	h.mu.Lock()
	for i := first; i < len(h.Events) && len(index) < len(ms); i++ {
		if h.Events[i].Batch == batch {
			index = append(index, i)
		}
	}
	h.mu.Unlock()
	rs, err := p.PublishBatch(ctx, ms)
	if len(rs) != len(ms) {
		return rs, fmt.Errorf("%d receipts for %d messages: %w", len(rs), len(ms), errors.Join(err, broker.ErrInvalid))
	}
	for i, at := range index {
		e := broker.ErrorAt(err, i)
		h.duplicate(at, rs[i].Duplicate && e == nil)
		h.End(at, e)
	}
	return rs, err
}

func (h *QueueHistory) duplicate(i int, yes bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.Events[i].Duplicate = yes
}

// Received records deliveries that who was handed.
func (h *QueueHistory) Received(who string, ds ...*broker.Delivery) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.open == nil {
		h.open = map[*broker.Delivery]int{}
	}
	for _, d := range ds {
		h.deliveries++
		h.open[d] = h.deliveries
		h.add(QueueEvent{Op: QueueReceive, Who: who, Value: string(d.Body), Group: d.GroupID,
			Delivery: h.deliveries, Attempt: d.Attempt, Deadline: d.LeaseExpires()})
	}
}

// Settle carries out a verdict on d and records it.
func (h *QueueHistory) Settle(ctx context.Context, who string, d *broker.Delivery, v broker.Verdict) error {
	op := map[broker.VerdictKind]QueueOp{
		broker.VerdictAck: QueueAck, broker.VerdictNack: QueueNack,
		broker.VerdictReject: QueueReject, broker.VerdictExtend: QueueExtend,
	}[v.Kind]
	h.mu.Lock()
	n := h.open[d]
	h.mu.Unlock()
	i := h.Begin(QueueEvent{Op: op, Who: who, Value: string(d.Body), Group: d.GroupID, Delivery: n})
	var err error
	switch v.Kind {
	case broker.VerdictAck:
		err = d.Ack(ctx)
	case broker.VerdictNack:
		err = d.Nack(ctx, v.Delay)
	case broker.VerdictReject:
		err = d.Reject(ctx, v.Reason)
	default:
		if err = d.Extend(ctx, v.Lease); err == nil {
			h.mu.Lock()
			h.Events[i].Deadline = d.LeaseExpires()
			h.mu.Unlock()
		}
	}
	h.End(i, err)
	return err
}

// Closing records that who is about to be closed or killed.
func (h *QueueHistory) Closing(who string) { h.Add(QueueEvent{Op: QueueClose, Who: who}) }

// Dead records what was found in the dead-letter queue.
func (h *QueueHistory) Dead(ds ...*broker.Delivery) {
	for _, d := range ds {
		h.Add(QueueEvent{Op: QueueDead, Value: string(d.Body), Group: d.GroupID})
	}
}

// Acked counts the values that were acknowledged with success.
func (h *QueueHistory) Acked() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	seen := map[string]bool{}
	for i := range h.Events {
		if e := &h.Events[i]; e.Op == QueueAck && e.Outcome == OutcomeOK {
			seen[e.Value] = true
		}
	}
	return len(seen)
}

// snapshot returns the events so far; those that did not return end last.
func (h *QueueHistory) snapshot() []QueueEvent {
	h.mu.Lock()
	defer h.mu.Unlock()
	events := append([]QueueEvent(nil), h.Events...)
	for i := range events {
		if events[i].End == 0 {
			events[i].End = h.clock + 1
		}
	}
	return events
}
