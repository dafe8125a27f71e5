package memory

import (
	"math"
	"sync/atomic"

	"github.com/queuestream/broker"
)

// An intake is where publishers leave messages without waiting for those who
// receive and settle: they meet at its lock alone. What is in it counts as
// stored, after all that is in the queue; lock brings it there for those who
// look at more than what is next. Its lock may be taken while queue.mu is held,
// not the other way round.
type intake struct {
	mu      mutex
	entries []*entry
	bytes   int64    // of entries
	credit  int64    // bytes that may come without asking the queue whether they fit
	spare   []*entry // to be used again
	before  int      // how many were in the queue and in nobody's hands when entries was empty
	some    atomic.Bool
	ahead   atomic.Bool // publishers make first attempts: see aheadFrom
}

// put stores m, accepted at a time, with its first attempt if that was made
// ahead, unless the queue has to be asked first: a priority may overtake what
// is there.
func (in *intake) put(m *broker.Message, at int64, ahead *single) bool {
	size := messageSize(m)
	in.mu.Lock()
	if in.credit < int64(size) || m.Priority != 0 {
		in.mu.Unlock()
		return false
	}
	in.credit -= int64(size)
	in.bytes += int64(size)
	var e *entry
	if n := len(in.spare); n > 0 {
		e = in.spare[n-1]
		in.spare = in.spare[:n-1]
	} else {
		e = roomyEntry(len(m.Body))
	}
	e.set(m, at, size)
	e.attempt = ahead
	in.entries = append(in.entries, e)
	if len(in.entries) == 1 {
		in.some.Store(true)
	}
	switch in.before + len(in.entries) {
	case aheadFrom:
		in.ahead.Store(true)
	case aheadTo:
		in.ahead.Store(false)
	}
	in.mu.Unlock()
	return true
}

// lock locks q.mu and lets in what is in the intake.
func (q *queue) lock() {
	q.mu.Lock()
	if q.in.some.Load() {
		q.absorb(true)
	}
}

// absorb moves what is in the intake into q, and opens or shuts the intake.
// q.mu is held.
func (q *queue) absorb(open bool) {
	in := &q.in
	in.mu.Lock()
	es := in.entries
	in.entries, q.absorbed = q.absorbed, nil
	in.some.Store(false)
	in.before = int(q.count[waiting]+q.count[delayed]+q.count[ready]) + len(es)
	in.ahead.Store(aheadFrom <= in.before && in.before < aheadTo)
	if len(in.spare) < len(q.spare) {
		in.spare, q.spare = q.spare, in.spare
	}
	q.bytes += in.bytes
	in.bytes = 0
	in.credit = 0
	if open {
		in.credit = q.room()
	}
	in.mu.Unlock()
	simple := q.cfg.Delay == 0 && q.cfg.TTL == 0 && q.srv.rules.retention == 0
	for _, e := range es {
		if simple && e.extra == nil { // as below, for less
			q.seq++
			e.seq, e.state = q.seq, ready
			q.count[ready]++
			q.fresh.push(e)
			q.rouse(&q.receivers)
			continue
		}
		q.setDefaults(e)
		q.enter(e, e.at)
	}
	if cap(es) <= idleRing {
		clear(es)
		q.absorbed = es[:0]
	}
}

// openIntake undoes absorb(false). q.mu is held.
func (q *queue) openIntake() {
	q.in.mu.Lock()
	q.in.credit = q.room()
	q.in.mu.Unlock()
}

// room returns how many bytes may come in unasked: none where more than bytes
// is to be asked about. q.mu is held.
func (q *queue) room() int64 {
	switch limit := q.srv.opts.MaxQueueBytes; {
	case q.deleted.Load() || q.space.n > 0 || q.cfg.MaxLength > 0:
		return 0
	case limit == 0:
		return math.MaxInt64
	default:
		return max(limit-q.bytes, 0)
	}
}
