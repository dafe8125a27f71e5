package conformance

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/queuestream/broker"
)

// rules returns what a history on q is judged by.
func (c *C) rules(q broker.Queue) QueueRules {
	caps := q.Capabilities()
	return QueueRules{
		Ordered: caps.Groups, Attempts: caps.Attempts && !c.h.Duplicates && !c.h.Faulty, MaxAttempts: caps.MaxAttempts,
		ExactlyOnce: !c.h.Duplicates && !c.h.Faulty, Faulty: c.h.Faulty, Early: c.h.Tick,
	}
}

// A crew is a number of consumers of one queue, each in a goroutine of its own,
// that record what they do until they are stopped.
type crew struct {
	c       *C
	q       broker.Queue
	h       *QueueHistory
	verdict func(d *broker.Delivery) broker.Verdict
	opts    *broker.ConsumerOptions
	ctx     context.Context
	cancel  context.CancelFunc
}

var ackVerdict = broker.Verdict{Kind: broker.VerdictAck}

// crew starts n consumers. verdict decides on each delivery; nil acknowledges.
func (c *C) crew(q broker.Queue, h *QueueHistory, n int, opts *broker.ConsumerOptions, verdict func(d *broker.Delivery) broker.Verdict) *crew {
	if verdict == nil {
		verdict = func(*broker.Delivery) broker.Verdict { return ackVerdict }
	}
	w := &crew{c: c, q: q, h: h, opts: opts, verdict: verdict}
	w.ctx, w.cancel = context.WithCancel(c.ctx)
	for i := range n {
		k := c.Consumer(q, opts)
		c.Go(func() { w.work(fmt.Sprintf("consumer %d", i), k) })
	}
	return w
}

// stop ends the consumers' loops; their handles are closed with the case.
func (w *crew) stop() {
	w.cancel()
	w.c.Wait()
}

func (w *crew) work(who string, k broker.Consumer) {
	for w.ctx.Err() == nil {
		ds, err := k.Receive(w.ctx, 1+w.c.rng.IntN(10))
		if err != nil {
			if w.ctx.Err() != nil {
				return
			}
			if w.h.Faulty && broker.IsTemporary(err) {
				w.c.pass(20 * time.Millisecond)
				continue
			}
			w.c.Errorf("%s: receive: %v", who, err) // a Worker would end with it
			return
		}
		w.h.Received(who, ds...)
		for _, d := range ds {
			w.settle(who, d, w.verdict(d))
		}
	}
}

func (w *crew) settle(who string, d *broker.Delivery, v broker.Verdict) {
	ctx, cancel := w.c.Soon()
	defer cancel()
	err := w.h.Settle(ctx, who, d, v)
	for w.h.Faulty && broker.IsTemporary(err) && ctx.Err() == nil { // as every program would
		w.c.pass(20 * time.Millisecond)
		err = w.h.Settle(ctx, who, d, v)
	}
	switch {
	case err == nil, errors.Is(err, broker.ErrLeaseLost):
	case w.h.Faulty:
		// Given back by its lease or its connection; the message comes again.
	default:
		w.c.Errorf("%s: %s %q: %v", who, v.Kind, clip(d.Body), err)
	}
}

// A workload is what a producer side publishes.
type workload struct {
	messages  int
	producers int
	groups    int    // 0: no groups; a group belongs to one producer
	prefix    string // of the values
}

// publish runs the producers to the end, half of the messages in batches. A
// publish that fails under faults is tried again with the same ID.
func (c *C) publish(q broker.Queue, h *QueueHistory, w workload) {
	w.producers = max(1, w.producers)
	for p := range w.producers {
		h.producing(1)
		c.Go(func() {
			defer h.producing(-1)
			var ms []broker.Message
			for i := p; i < w.messages; i += w.producers {
				m := broker.Message{ID: broker.NewID(), Body: fmt.Appendf(nil, "%s%d-%d", w.prefix, p, i/w.producers)}
				if w.groups > 0 {
					own := max(1, w.groups/w.producers)
					m.GroupID = fmt.Sprintf("g%d-%d", p, (i/w.producers)%own)
				}
				ms = append(ms, m)
			}
			c.publishSome(q, h, fmt.Sprintf("producer %d", p), ms)
		})
	}
}

func (c *C) publishSome(q broker.Queue, h *QueueHistory, who string, ms []broker.Message) {
	for len(ms) > 0 && c.ctx.Err() == nil {
		n := 1
		if c.rng.IntN(2) == 0 {
			n = min(len(ms), 1+c.rng.IntN(20))
		}
		var err error
		ctx, cancel := c.Soon()
		if n == 1 {
			_, err = h.Publish(ctx, q, who, ms[0])
		} else {
			_, err = h.PublishBatch(ctx, q, who, ms[:n])
		}
		ended := ctx.Err() != nil
		cancel()
		if err != nil && !h.Faulty {
			c.Errorf("%s: publish %d: %v", who, n, err)
		}
		if err != nil && h.Faulty {
			for i := range ms[:n] {
				if e := broker.ErrorAt(err, i); e != nil && !ended && !errors.Is(e, broker.ErrUnknownOutcome) && !broker.IsTemporary(e) {
					c.Errorf("%s: publish: %v, want a temporary error or an unknown outcome", who, e)
				}
			}
			ms = c.failed(ms[:n:n], ms[n:], err)
			c.pass(20 * time.Millisecond)
			continue
		}
		ms = ms[n:]
	}
}

// failed returns what of a batch has to be published again, before the rest.
func (c *C) failed(batch, rest []broker.Message, err error) []broker.Message {
	var again []broker.Message
	for i := range batch {
		if broker.ErrorAt(err, i) != nil {
			again = append(again, batch[i])
		}
	}
	return append(again, rest...)
}

// finish waits until everything that was accepted is acknowledged and nothing
// more comes for a while, stops the crew and judges the history.
func (w *crew) finish() {
	c := w.c
	done := c.Until(3*c.h.Soon+3*c.h.Lease, func() bool { return c.Failed() || w.h.settled(w.h.Faulty) })
	if done && w.h.Faulty { // those whose answer was lost may come again
		c.Until(c.h.Soon+c.h.Lease, func() bool { return c.Failed() || w.h.settled(false) })
	}
	if done {
		c.Until(c.h.Quiet, c.Failed)
	}
	w.stop()
	w.h.Drained = true
	c.Check(CheckQueue(w.h))
	if n := w.h.Duplicates(); n > 0 || c.h.Duplicates {
		c.Note("duplicates", "%d", n)
	}
}

// settled tells whether everything that was accepted was settled for good,
// or perhaps settled if maybe, and nobody is publishing any more.
func (h *QueueHistory) settled(maybe bool) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.producers > 0 {
		return false
	}
	done := map[string]bool{}
	for i := range h.Events {
		e := &h.Events[i]
		known := e.Outcome == OutcomeOK || maybe && e.Outcome == OutcomeInfo && e.End != 0
		if known && (e.Op == QueueAck || e.Op == QueueReject || e.Op == QueueDead) {
			done[e.Value] = true
		}
	}
	for i := range h.Events {
		e := &h.Events[i]
		if e.Op == QueueSend && (e.End == 0 || e.Outcome == OutcomeOK && !e.Duplicate && !done[e.Value]) {
			return false
		}
	}
	return true
}

// producing counts the producers that are at work.
func (h *QueueHistory) producing(n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.producers += n
}

// work publishes the workload to a crew of the harness' size and judges.
func (c *C) work(q broker.Queue, w workload, verdict func(d *broker.Delivery) broker.Verdict) *QueueHistory {
	h := &QueueHistory{QueueRules: c.rules(q)}
	crew := c.crew(q, h, c.h.Workers, nil, verdict)
	c.publish(q, h, w)
	crew.finish()
	return h
}
