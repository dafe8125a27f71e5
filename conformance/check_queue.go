package conformance

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// The verdicts of CheckQueue.
const (
	VerdictLost       = "lost"               // accepted, and not delivered by the end; the detail says first, middle or tail
	VerdictPhantom    = "phantom"            // delivered, and never published, or refused when it was
	VerdictDuplicated = "duplicated"         // delivered again although nobody gave it back
	VerdictReordered  = "reordered in group" // first delivered before one that was accepted earlier
	VerdictParallel   = "parallel in group"  // two of a group open at once
	VerdictTwoHolders = "two holders"        // one message open twice at once
	VerdictAttempts   = "attempt count"      // does not rise with each delivery
	VerdictDeadLetter = "dead letter"        // too few or too many deliveries before it, or copies of it
)

// CheckQueue judges a history in linear time, but for sorting. It returns nil
// if the history is allowed.
func CheckQueue(h *QueueHistory) []Violation {
	c := &queueCheck{h: h, events: h.snapshot(), values: map[string]*queueValue{}, holds: map[int]*queueHold{}}
	c.collect()
	c.lost()
	c.phantom()
	c.duplicated()
	c.order()
	c.holders()
	c.attempts()
	c.deadLetters()
	return c.out
}

type queueCheck struct {
	h        *QueueHistory
	events   []QueueEvent
	values   map[string]*queueValue
	sequence []*queueValue // in the order first seen
	holds    map[int]*queueHold
	out      []Violation
}

type queueValue struct {
	value, group string
	sent         bool
	accepted     *QueueEvent // the first send that succeeded and stored it
	began        int         // when the first send that may have stored it was called
	possible     bool        // a send succeeded, or may have
	holds        []*queueHold
	dead         int
	rejected     bool
}

// A queueHold is one delivery: open from start until end.
type queueHold struct {
	v        *queueValue
	who      string
	start    int
	at       time.Time
	end      int // when it was given back, settled or closed; MaxInt: never
	deadline time.Time
	attempt  int
	acked    int  // when its acknowledgement had succeeded; 0: it has not
	unknown  bool // it may have been acknowledged: the answer was lost
	givenUp  bool
}

func (c *queueCheck) add(verdict, format string, args ...any) {
	c.out = append(c.out, violation(verdict, format, args...))
}

func (c *queueCheck) value(e *QueueEvent) *queueValue {
	v := c.values[e.Value]
	if v == nil {
		v = &queueValue{value: e.Value, group: e.Group}
		c.values[e.Value] = v
		c.sequence = append(c.sequence, v)
	}
	return v
}

func (c *queueCheck) collect() {
	open := map[string][]*queueHold{}
	for i := range c.events {
		e := &c.events[i]
		switch e.Op {
		case QueueSend:
			v := c.value(e)
			v.sent, v.group = true, e.Group
			if e.Outcome != OutcomeFail {
				if !v.possible {
					v.began = e.Start
				}
				v.possible = true
			}
			if e.Outcome == OutcomeOK && !e.Duplicate && v.accepted == nil {
				v.accepted = e
			}
		case QueueReceive:
			v := c.value(e)
			hold := &queueHold{v: v, who: e.Who, start: e.End, at: e.At, end: math.MaxInt, deadline: e.Deadline, attempt: e.Attempt}
			v.holds = append(v.holds, hold)
			c.holds[e.Delivery] = hold
			open[e.Who] = append(open[e.Who], hold)
		case QueueAck, QueueNack, QueueReject, QueueExtend:
			if hold := c.holds[e.Delivery]; hold != nil {
				hold.settle(e)
			}
		case QueueClose:
			for _, hold := range open[e.Who] {
				hold.end, hold.givenUp = min(hold.end, e.Start), true
			}
			delete(open, e.Who)
		case QueueDead:
			c.value(e).dead++
		}
	}
}

func (hold *queueHold) settle(e *QueueEvent) {
	if e.Op == QueueExtend {
		if e.Outcome == OutcomeOK {
			hold.deadline = e.Deadline
		}
		return
	}
	if e.Outcome == OutcomeFail {
		return
	}
	hold.end = min(hold.end, e.Start)
	switch {
	case e.Op == QueueAck && e.Outcome == OutcomeOK:
		hold.acked = e.End
	case e.Op == QueueReject && e.Outcome == OutcomeOK:
		hold.v.rejected = true
	default:
		hold.givenUp = true
		hold.unknown = hold.unknown || e.Op == QueueAck
	}
}

// done tells whether nothing more has to come of the value. Under faults an
// acknowledgement whose answer was lost may have removed it.
func (v *queueValue) done(faulty bool) bool {
	if v.rejected || v.dead > 0 {
		return true
	}
	for _, hold := range v.holds {
		if hold.acked > 0 || faulty && hold.unknown {
			return true
		}
	}
	return false
}

// lost finds what was accepted and never delivered, or delivered, given back
// and never seen again.
func (c *queueCheck) lost() {
	if !c.h.Drained {
		return
	}
	var accepted []*queueValue
	for _, v := range c.sequence {
		if v.accepted != nil {
			accepted = append(accepted, v)
		}
	}
	slices.SortFunc(accepted, func(a, b *queueValue) int { return a.accepted.End - b.accepted.End })
	parts := [3][]string{}
	for i, v := range accepted {
		switch {
		case len(v.holds) == 0 && v.dead == 0:
			part := 1
			if i < (len(accepted)+9)/10 {
				part = 0
			} else if i >= len(accepted)*9/10 {
				part = 2
			}
			parts[part] = append(parts[part], v.value)
		case !v.done(c.h.Faulty):
			c.add(VerdictLost, "%.40q was delivered %d times, never acknowledged, and is gone", v.value, len(v.holds))
		}
	}
	for i, where := range []string{"first", "middle", "tail"} {
		if len(parts[i]) > 0 {
			c.add(VerdictLost, "%s: %d of %d accepted: %s", where, len(parts[i]), len(accepted), some(parts[i]))
		}
	}
}

// some shows the first few of values.
func some(values []string) string {
	var b strings.Builder
	for i, v := range values {
		if i == 5 {
			return b.String() + ", …"
		}
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%.40q", v)
	}
	return b.String()
}

func (c *queueCheck) phantom() {
	for _, v := range c.sequence {
		switch {
		case len(v.holds) == 0 && v.dead == 0:
		case !v.sent:
			c.add(VerdictPhantom, "%.40q was delivered and never published", v.value)
		case !v.possible:
			c.add(VerdictPhantom, "%.40q was delivered although publishing it failed for certain", v.value)
		}
	}
}

// Duplicates counts deliveries that nobody asked for: after an acknowledgement
// had succeeded, or beside one that is still open.
func (h *QueueHistory) Duplicates() int {
	c := &queueCheck{h: h, events: h.snapshot(), values: map[string]*queueValue{}, holds: map[int]*queueHold{}}
	c.collect()
	n := 0
	for _, v := range c.sequence {
		for i, hold := range v.holds {
			if i > 0 && v.unasked(i, hold) {
				n++
			}
		}
	}
	return n
}

// unasked tells whether the i-th delivery came after an acknowledgement.
func (v *queueValue) unasked(i int, hold *queueHold) bool {
	for _, before := range v.holds[:i] {
		if before.acked > 0 && before.acked < hold.start {
			return true
		}
	}
	return false
}

func (c *queueCheck) duplicated() {
	if !c.h.ExactlyOnce {
		return
	}
	for _, v := range c.sequence {
		for i, hold := range v.holds {
			if i > 0 && v.unasked(i, hold) {
				c.add(VerdictDuplicated, "%.40q was delivered to %s after it had been acknowledged", v.value, hold.who)
				break
			}
		}
	}
}

// order finds a value whose first delivery came before that of one that was
// accepted earlier in the same group.
func (c *queueCheck) order() {
	groups := map[string][]*queueValue{}
	for _, v := range c.sequence {
		if v.accepted != nil && len(v.holds) > 0 && (v.group != "" && c.h.Ordered || v.group == "" && c.h.FIFO) {
			groups[v.group] = append(groups[v.group], v)
		}
	}
	for group, vs := range groups {
		// By first delivery: nobody later in this order may have been accepted
		// before the call that published an earlier one began.
		slices.SortFunc(vs, func(a, b *queueValue) int { return a.holds[0].start - b.holds[0].start })
		var latest *queueValue // the latest begun of those delivered so far
		batches := map[int]*queueValue{}
		for _, v := range vs {
			if latest != nil && v.accepted.End < latest.began {
				c.add(VerdictReordered, "group %q: %.40q was delivered after %.40q, and accepted before that was published", group, v.value, latest.value)
			}
			if latest == nil || v.began > latest.began {
				latest = v
			}
			if b := v.accepted.Batch; b != 0 {
				if before := batches[b]; before != nil && before.accepted.Position > v.accepted.Position {
					c.add(VerdictReordered, "group %q: %.40q was delivered after %.40q, which comes later in their batch", group, v.value, before.value)
				} else {
					batches[b] = v
				}
			}
		}
	}
}

// holders finds deliveries that start while another is held: of the same
// message, or of the same group.
func (c *queueCheck) holders() {
	if c.h.Faulty {
		return
	}
	for _, v := range c.sequence {
		c.overlap(VerdictTwoHolders, v.holds)
	}
	if !c.h.Ordered {
		return
	}
	groups := map[string][]*queueHold{}
	for _, v := range c.sequence {
		if v.group != "" {
			groups[v.group] = append(groups[v.group], v.holds...)
		}
	}
	for _, holds := range groups {
		c.overlap(VerdictParallel, holds)
	}
}

func (c *queueCheck) overlap(verdict string, holds []*queueHold) {
	slices.SortFunc(holds, func(a, b *queueHold) int { return a.start - b.start })
	var longest *queueHold // of those that started before, the one open longest
	for _, hold := range holds {
		if longest != nil && !longest.deadline.IsZero() && !hold.at.Before(longest.deadline.Add(-c.h.Early)) {
			longest = nil // its lease has passed
		}
		if longest != nil && hold.start < longest.end && (verdict != VerdictParallel || longest.v != hold.v) {
			c.add(verdict, "%s received %.40q while %s held %.40q", hold.who, hold.v.value, longest.who, longest.v.value)
		}
		if longest == nil || hold.end >= longest.end {
			longest = hold
		}
	}
}

func (c *queueCheck) attempts() {
	if !c.h.Attempts {
		return
	}
	for _, v := range c.sequence {
		last := 0
		for i, hold := range v.holds {
			switch {
			case i == 0 && hold.attempt < 1: // brokers may count deliveries that only an adapter saw
				c.add(VerdictAttempts, "the first delivery of %.40q says attempt %d", v.value, hold.attempt)
			case i > 0 && hold.attempt <= last:
				c.add(VerdictAttempts, "%.40q: attempt %d comes after attempt %d", v.value, hold.attempt, last)
			}
			last = hold.attempt
		}
	}
}

func (c *queueCheck) deadLetters() {
	limit := c.h.MaxAttempts
	for _, v := range c.sequence {
		n := len(v.holds)
		switch {
		case v.dead > 1:
			c.add(VerdictDeadLetter, "%d copies of %.40q", v.dead, v.value)
		case limit > 0 && n > limit:
			c.add(VerdictDeadLetter, "%.40q was delivered %d times, the limit is %d", v.value, n, limit)
		case v.dead == 1 && !v.rejected && limit == 0:
			c.add(VerdictDeadLetter, "%.40q was dead-lettered, and there is no limit", v.value)
		case v.dead == 1 && !v.rejected && n < limit && !c.h.Faulty:
			c.add(VerdictDeadLetter, "%.40q was dead-lettered after %d deliveries, the limit is %d", v.value, n, limit)
		case v.dead == 0 && v.rejected && c.h.Drained:
			c.add(VerdictDeadLetter, "%.40q was rejected and is not in the dead-letter queue", v.value)
		case v.dead > 0 && v.acked() && !c.h.Faulty:
			c.add(VerdictDeadLetter, "%.40q was dead-lettered although it was acknowledged", v.value)
		}
	}
}

func (v *queueValue) acked() bool {
	return slices.ContainsFunc(v.holds, func(h *queueHold) bool { return h.acked > 0 })
}
