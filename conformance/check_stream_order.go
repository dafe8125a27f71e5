package conformance

import (
	"maps"
	"slices"

	"github.com/queuestream/broker"
)

// A streamHold is a reader's place in one partition.
type streamHold struct {
	who       string
	partition int32
}

// checkSends: what a producer sends after an answer lands behind what the
// answer was for, and a batch lands in its order.
func (c *streamCheck) checkSends() {
	type moment struct {
		at    int
		event int
		end   bool
	}
	moments := make([]moment, 2*c.lastMoment()+2)
	for i := range c.events {
		if e := &c.events[i]; e.Op == StreamSend && e.Outcome == OutcomeOK {
			moments[2*e.Start] = moment{e.Start, i, false}
			moments[2*e.End+1] = moment{e.End, i, true}
		}
	}
	highest := map[string]map[int32]broker.Offset{} // of each producer, answered
	before := map[int]map[int32]broker.Offset{}     // highest when a send began
	placed := map[string]bool{}
	for _, m := range moments {
		if m.at == 0 {
			continue
		}
		e := &c.events[m.event]
		if !m.end {
			before[m.event] = maps.Clone(highest[e.Who])
			continue
		}
		if highest[e.Who] == nil {
			highest[e.Who] = map[int32]broker.Offset{}
		}
		floor := before[m.event]
		delete(before, m.event)
		if floor == nil {
			floor = map[int32]broker.Offset{}
		}
		for _, en := range e.Entries {
			if !en.HasOffset || placed[en.Value] {
				continue // a retry may be answered with the first copy's offset
			}
			placed[en.Value] = true
			if o, ok := floor[en.Partition]; ok && en.Offset.Compare(o) <= 0 {
				c.fail(NonMonotonicSend, "%s sent %q after offset %d@%v was answered and got %v",
					e.Who, en.Value, en.Partition, o, en.Offset)
			}
			floor[en.Partition] = en.Offset
			if o, ok := highest[e.Who][en.Partition]; !ok || en.Offset.Compare(o) > 0 {
				highest[e.Who][en.Partition] = en.Offset
			}
		}
	}
}

func (c *streamCheck) lastMoment() int {
	last := 0
	for i := range c.events {
		last = max(last, c.events[i].Start, c.events[i].End)
	}
	return last
}

// checkPolls: a member reads each partition onwards, without a gap, within a
// call and from call to call; an assignment starts behind the group's commit
// at most, a seek anywhere.
func (c *streamCheck) checkPolls() {
	type place struct {
		offset broker.Offset
		hold   *broker.Assignment
	}
	type groupSlot struct {
		group     string
		partition int32
	}
	places := map[streamHold]place{}
	sought := map[streamHold]bool{}         // since its last record
	stored := map[groupSlot]broker.Offset{} // highest record committed, perhaps
	// Commits that may have been stored.
	called := c.byStart(func(e *StreamEvent) bool { return e.Op == StreamCommit && e.Outcome != OutcomeFail })
	for i := range c.events {
		e := &c.events[i]
		for ; len(called) > 0 && called[0].Start < e.End; called = called[1:] {
			for _, en := range called[0].Entries {
				k := groupSlot{called[0].Group, en.Partition}
				if o, ok := stored[k]; !ok || en.Offset.Compare(o) > 0 {
					stored[k] = en.Offset
				}
			}
		}
		switch e.Op {
		case StreamAssign, StreamRevoke, StreamLost, StreamSeek:
			for _, p := range e.Partitions {
				delete(places, streamHold{e.Who, p})
				sought[streamHold{e.Who, p}] = e.Op == StreamSeek
			}
			continue
		case StreamPoll:
		default:
			continue
		}
		known := c.all
		if e.ReadCommitted {
			known = c.committed
		}
		inCall := map[int32]bool{}
		for _, en := range e.Entries {
			k := streamHold{e.Who, en.Partition}
			at, ok := places[k]
			ok = ok && at.hold == en.Hold
			switch {
			case ok && en.Offset.Compare(at.offset) <= 0:
				c.fail(NonMonotonicPoll, "%s got %d@%v after %v, %s", e.Who, en.Partition, en.Offset, at.offset, whereIn(inCall[en.Partition]))
			case c.h.Sparse:
			case ok:
				if i := known.after(en.Partition, at.offset); i < known.from(en.Partition, en.Offset) {
					c.fail(SkippingPoll, "%s got %d@%v after %v and never %v, %s", e.Who, en.Partition, en.Offset, at.offset,
						known.slots[en.Partition][i], whereIn(inCall[en.Partition]))
				}
			case e.Group != "" && !sought[k]:
				if o, ok := stored[groupSlot{e.Group, en.Partition}]; ok {
					if i := known.after(en.Partition, o); i < known.from(en.Partition, en.Offset) {
						c.fail(SkippingPoll, "%s began at %d@%v, the group had committed up to %v at most: %v was left out",
							e.Who, en.Partition, en.Offset, o, known.slots[en.Partition][i])
					}
				}
			}
			inCall[en.Partition] = true
			places[k] = place{en.Offset, en.Hold}
			sought[k] = false
		}
	}
}

// byStart returns the events that pass, by their start.
func (c *streamCheck) byStart(pass func(*StreamEvent) bool) []*StreamEvent {
	var out []*StreamEvent
	for i := range c.events {
		if e := &c.events[i]; pass(e) {
			out = append(out, e)
		}
	}
	slices.SortFunc(out, func(a, b *StreamEvent) int { return a.Start - b.Start })
	return out
}

func whereIn(call bool) string {
	if call {
		return "within a call"
	}
	return "between calls"
}
