package memory

import (
	"context"
	"fmt"
	"time"

	"github.com/queuestream/broker"
)

// full tells whether e does not fit. q.mu is held.
func (q *queue) full(size int32) bool {
	n := q.length()
	return q.cfg.MaxLength > 0 && n >= int64(q.cfg.MaxLength) ||
		q.srv.opts.MaxQueueBytes > 0 && n > 0 && q.bytes+int64(size) > q.srv.opts.MaxQueueBytes
}

func (q *queue) length() int64 {
	return q.count[waiting] + q.count[delayed] + q.count[ready] + q.count[inFlight]
}

// A publication is a message on its way into a queue.
type publication struct {
	m     *broker.Message // with its ID; a large body is the queue's to keep
	at    int64           // UnixNano
	delay time.Duration   // on top of the message's own
}

// store waits for room if that is the policy, then stores p.m. It reports
// whether p.m duplicates a message that was stored before.
func (q *queue) store(ctx context.Context, g *gate, p publication) (duplicate bool, err error) {
	key, dedups := q.dedupKey(p.m)
	t := p.at
	var ahead *single
	if q.in.ahead.Load() {
		ahead = q.srv.madeAhead(p.m, t)
	}
	if !dedups && p.delay == 0 && q.in.put(p.m, t, ahead) {
		if q.parked.Load() > 0 {
			q.lock()
			q.advance(t)
			q.arm(t)
			q.unlock()
		}
		return false, nil
	}
	size := messageSize(p.m)
	q.mu.Lock()
	defer q.unlock()
	for waited := false; ; waited = true {
		q.absorb(false) // nobody comes in meanwhile
		q.advance(t)
		if q.deleted.Load() {
			return false, broker.ErrNotFound
		}
		if dedups && q.dedup.has(key, t) {
			q.passSpace()
			return true, nil
		}
		if !q.full(size) && (waited || q.space.n == 0) {
			break
		}
		if q.refuses() {
			return false, fmt.Errorf("%w: %d messages, %d bytes", broker.ErrFull, q.length(), q.bytes)
		}
		if err := q.waitForSpace(ctx, g, t, waited); err != nil {
			return false, err
		}
		t = now()
	}
	e := q.entry(p.m, t, size)
	if e.attempt = ahead; ahead != nil {
		ahead.d.Time = time.Unix(0, t) // by now
	}
	q.setDefaults(e)
	if p.delay > 0 {
		e.due = max(e.due, t+int64(p.delay))
	}
	if dedups {
		q.dedup.add(key, t, q.srv.rules.caps.DedupWindow)
	}
	q.admit(e, t)
	q.passSpace()
	q.openIntake()
	q.arm(t)
	return false, nil
}

// waitForSpace parks a publisher until there may be room; first in line if it
// has waited before. q.mu is held, but not meanwhile.
func (q *queue) waitForSpace(ctx context.Context, g *gate, now int64, again bool) (err error) {
	w := newWaiter()
	if again {
		q.space.pushFront(w)
	} else {
		q.space.push(w)
	}
	q.arm(now)
	q.unlock()
	g.enter()
	select {
	case <-w.token:
	case <-ctx.Done():
		err = broker.ContextError(ctx)
	case <-g.closed:
		err = broker.ErrClosed
	}
	g.leave()
	q.lock()
	if err != nil && w.queued {
		q.space.remove(w)
		q.disarm()
	} else if err != nil {
		q.passSpace()
	}
	return err
}

// refuses tells whether Publish fails at the bound rather than waits: always
// at a declared length.
func (q *queue) refuses() bool { return q.cfg.MaxLength > 0 || q.srv.opts.WhenFull == Refuse }

// passSpace wakes the next blocked publisher while there is room. q.mu is held.
func (q *queue) passSpace() {
	if q.space.n > 0 && !q.full(entryOverhead) {
		q.rouse(&q.space)
	}
}
