package conformance

import (
	"maps"
	"slices"
)

// checkOwners: a partition has one member of a group at a time, and nobody
// reads or commits after it was taken away.
func (c *streamCheck) checkOwners() {
	type groupSlot struct {
		group     string
		partition int32
	}
	type hold struct {
		known bool // the member was told about the partition at least once
		mine  bool
		ended int // when it was taken away
		// After a revocation the broker may take a commit until another is assigned
		// the partition: it cannot know when OnRevoked returned.
		revoked bool
		group   string
		next    int // when another was assigned it; 0: nobody
	}
	owner := map[groupSlot]string{}
	holds := map[streamHold]*hold{}
	of := func(who string, p int32) *hold {
		k := streamHold{who, p}
		if holds[k] == nil {
			holds[k] = &hold{}
		}
		return holds[k]
	}
	leaving := c.byStart(func(e *StreamEvent) bool { return e.Op == StreamLost || e.Op == StreamLeave })
	left := map[string]bool{}
	for i := range c.events {
		e := &c.events[i]
		for ; len(leaving) > 0 && leaving[0].Start <= e.End; leaving = leaving[1:] {
			l := leaving[0] // others may take over while it leaves
			left[l.Who] = left[l.Who] || l.Op == StreamLeave
			maps.DeleteFunc(owner, func(slot groupSlot, who string) bool {
				return who == l.Who && (l.Op == StreamLeave || slices.Contains(l.Partitions, slot.partition))
			})
		}
		switch e.Op {
		case StreamAssign:
			for _, p := range e.Partitions {
				slot := groupSlot{e.Group, p}
				if o := owner[slot]; o != "" && o != e.Who && !left[e.Who] {
					if c.losesNext(i, o, p) {
						of(o, p).next = e.Start
					} else {
						c.fail(NotOwned, "partition %d was assigned to %s while %s had it", p, e.Who, o)
					}
				}
				if !left[e.Who] { // a callback may be late
					owner[slot] = e.Who
				}
				for k, h := range holds {
					if k.partition == p && h.group == e.Group && k.who != e.Who && h.revoked && h.next == 0 {
						h.next = e.Start
					}
				}
				*of(e.Who, p) = hold{known: true, mine: true}
			}
		case StreamRevoke, StreamLost:
			for _, p := range e.Partitions {
				if slot := (groupSlot{e.Group, p}); e.Op == StreamRevoke && owner[slot] == e.Who {
					delete(owner, slot)
				}
				*of(e.Who, p) = hold{known: true, ended: e.End, revoked: e.Op == StreamRevoke, group: e.Group}
			}
		case StreamLeave:
			for k, h := range holds {
				if k.who == e.Who {
					*h = hold{known: true, ended: e.End}
				}
			}
		case StreamPoll, StreamCommit:
			if e.Group == "" || e.Outcome != OutcomeOK {
				continue
			}
			said := map[int32]bool{}
			for _, en := range e.Entries {
				h := of(e.Who, en.Partition)
				may := h.mine
				if e.Op == StreamCommit {
					may = (h.mine || h.revoked) && (h.next == 0 || e.Start < h.next)
				}
				if may || said[en.Partition] || !h.known || e.Start < h.ended {
					continue
				}
				said[en.Partition] = true
				did := "read"
				if e.Op == StreamCommit {
					did = "committed"
				}
				c.fail(NotOwned, "%s %s %d@%v after the partition was taken from it", e.Who, did, en.Partition, en.Offset)
			}
		}
	}
}

// losesNext tells whether what who hears next of a partition, after event i, is
// that it is lost. Then others may have it already where faults are injected: a
// broken connection is seen by the broker first.
func (c *streamCheck) losesNext(i int, who string, partition int32) bool {
	if !c.h.Faulty {
		return false
	}
	later := slices.DeleteFunc(slices.Clone(c.events[i+1:]), func(e StreamEvent) bool { return e.Who != who })
	for _, e := range later {
		switch e.Op {
		case StreamLost, StreamRevoke, StreamAssign:
			if slices.Contains(e.Partitions, partition) {
				return e.Op == StreamLost && !slices.ContainsFunc(later, func(l StreamEvent) bool {
					return l.Op == StreamLeave && l.Start < e.Start
				})
			}
		case StreamLeave:
			return false
		}
	}
	return false
}

// checkCommits: the stored position is not beyond the first record that was
// not processed. Without StreamProcess events of a group, what it was handed
// counts as processed.
func (c *streamCheck) checkCommits() {
	type groupState struct {
		processes     bool
		readCommitted bool
	}
	groups := map[string]*groupState{}
	for i := range c.events {
		if e := &c.events[i]; e.Group != "" {
			if groups[e.Group] == nil {
				groups[e.Group] = &groupState{}
			}
			g := groups[e.Group]
			g.processes = g.processes || e.Op == StreamProcess
			g.readCommitted = g.readCommitted || e.Op == StreamPoll && e.ReadCommitted
		}
	}
	type progress struct {
		next int // rank of the first record that is not processed
		done map[int]bool
	}
	type groupSlot struct {
		group     string
		partition int32
	}
	state := map[groupSlot]*progress{}
	for i := range c.events {
		e := &c.events[i]
		g := groups[e.Group]
		if g == nil || e.Outcome != OutcomeOK {
			continue
		}
		known := c.all
		if g.readCommitted {
			known = c.committed
		}
		for _, en := range e.Entries {
			k := groupSlot{e.Group, en.Partition}
			s := state[k]
			switch e.Op {
			case StreamPoll, StreamProcess:
				rank, ok := known.ranks[streamSlot{en.Partition, en.Offset}]
				if !ok {
					continue
				}
				if s == nil { // a group may begin anywhere
					s = &progress{next: rank, done: map[int]bool{}}
					state[k] = s
				}
				if e.Op == StreamProcess || !g.processes {
					s.done[rank] = true
				}
				for s.done[s.next] {
					delete(s.done, s.next)
					s.next++
				}
			case StreamCommitted:
				c.checkCommitted(e.Group, en, known, s == nil, func() int { return s.next })
			}
		}
	}
}

func (c *streamCheck) checkCommitted(group string, en StreamEntry, known ranking, untouched bool, next func() int) {
	offsets := known.slots[en.Partition]
	first := 0
	if !untouched {
		first = next()
	}
	if first < len(offsets) && offsets[first].Compare(en.Offset) < 0 {
		c.fail(CommittedTooFar, "group %s stored %d@%v, and %v was not processed", group, en.Partition, en.Offset, offsets[first])
	}
}
