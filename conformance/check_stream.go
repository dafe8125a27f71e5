package conformance

import (
	"fmt"
	"slices"

	"github.com/queuestream/broker"
)

// The verdicts of [CheckStream].
const (
	InconsistentOffset = "inconsistent offset" // one offset, two values
	AbortedRead        = "aborted read"        // a value that was rolled back or refused was read
	UncommittedRead    = "uncommitted read"    // a reader of committed records saw an open transaction, its own perhaps
	TornTransaction    = "torn transaction"    // a part of a transaction was read, another never
	LostWrite          = "lost write"          // acknowledged, never read, though later offsets were
	Unseen             = "unseen"              // acknowledged and never read by the end
	DuplicateWrite     = "duplicate"           // one value, two offsets
	UnknownValue       = "phantom"             // read and never sent
	NonMonotonicPoll   = "non-monotonic poll"  // a member or reader went back without being told to
	SkippingPoll       = "skipping poll"       // it left out records that others read
	NonMonotonicSend   = "non-monotonic send"  // a later send of one producer got an earlier offset
	NotOwned           = "not owned"           // a partition was read, committed or assigned while it was another's
	CommittedTooFar    = "committed beyond processed"
)

// CheckStream judges what h recorded of one stream. It wants everything that
// was acknowledged to be read by the end (unless h.Sparse), so a case ends
// with one complete read. It takes time in proportion to the history, but for
// sorting.
func CheckStream(h *StreamHistory) []Violation {
	c := &streamCheck{
		h:      h,
		events: h.snapshot(),
		values: map[string]*streamValue{},
		slots:  map[streamSlot]string{},
		txs:    map[string]*sentTx{},
		last:   map[int32]broker.Offset{},
	}
	c.collect()
	c.checkValues()
	c.checkTransactions()
	c.rank()
	c.checkSends()
	c.checkPolls()
	c.checkOwners()
	c.checkCommits()
	return c.out
}

type streamCheck struct {
	h      *StreamHistory
	events []StreamEvent // by End
	values map[string]*streamValue
	order  []string // of values, as first met
	slots  map[streamSlot]string
	txs    map[string]*sentTx
	last   map[int32]broker.Offset // highest read

	all, committed ranking // what readers of either isolation must not skip

	out []Violation
}

type streamSlot struct {
	partition int32
	offset    broker.Offset
}

func (s streamSlot) String() string { return fmt.Sprintf("%d@%v", s.partition, s.offset) }

type streamValue struct {
	outcome       Outcome // the best of its sends; OutcomeFail: refused for certain
	sends         int
	tx            string
	slots         []streamSlot
	read          bool
	readCommitted bool // by a reader of committed records
}

type sentTx struct {
	values  []string
	who     string
	ended   bool
	start   int // of its end
	outcome Outcome
	aborted bool // for certain
}

func (c *streamCheck) fail(verdict, format string, args ...any) {
	c.out = append(c.out, violation(verdict, format, args...))
}

func (c *streamCheck) value(v string) *streamValue {
	sv := c.values[v]
	if sv == nil {
		sv = &streamValue{outcome: OutcomeFail}
		c.values[v] = sv
		c.order = append(c.order, v)
	}
	return sv
}

func (c *streamCheck) tx(id string) *sentTx {
	t := c.txs[id]
	if t == nil {
		t = &sentTx{outcome: OutcomeInfo}
		c.txs[id] = t
	}
	return t
}

// collect sorts the events by their end and gathers what is known of each
// value, offset and transaction.
func (c *streamCheck) collect() {
	slices.SortStableFunc(c.events, func(a, b StreamEvent) int { return a.End - b.End })
	for i := range c.events {
		e := &c.events[i]
		switch e.Op {
		case StreamSend:
			for _, en := range e.Entries {
				v := c.value(en.Value)
				if v.sends++; e.Outcome == OutcomeOK || v.outcome == OutcomeFail && e.Outcome == OutcomeInfo {
					v.outcome = e.Outcome
				}
				if e.Tx != "" {
					v.tx = e.Tx
					t := c.tx(e.Tx)
					t.who, t.values = e.Who, append(t.values, en.Value)
				}
				if e.Outcome == OutcomeOK && en.HasOffset {
					c.place(en)
				}
			}
		case StreamPoll:
			for _, en := range e.Entries {
				v := c.value(en.Value)
				v.read = true
				v.readCommitted = v.readCommitted || e.ReadCommitted
				c.place(en)
				if last, ok := c.last[en.Partition]; !ok || en.Offset.Compare(last) > 0 {
					c.last[en.Partition] = en.Offset
				}
			}
		case StreamTxEnd:
			t := c.tx(e.Tx)
			t.ended, t.start, t.outcome = true, e.Start, e.Outcome
			t.aborted = e.Rollback && e.Outcome == OutcomeOK || !e.Rollback && e.Outcome == OutcomeFail
			if e.Rollback {
				t.outcome = OutcomeInfo // not committed for certain
			}
		}
	}
}

// place notes that a value was seen at an offset.
func (c *streamCheck) place(en StreamEntry) {
	slot := streamSlot{en.Partition, en.Offset}
	if other, ok := c.slots[slot]; ok && other != en.Value {
		c.fail(InconsistentOffset, "offset %v holds %q and %q", slot, other, en.Value)
		return
	}
	c.slots[slot] = en.Value
	if v := c.values[en.Value]; !slices.Contains(v.slots, slot) {
		v.slots = append(v.slots, slot)
	}
}

// visible tells whether every reader must find v.
func (c *streamCheck) visible(v *streamValue) bool {
	if v.outcome != OutcomeOK {
		return false
	}
	return v.tx == "" || c.txs[v.tx].outcome == OutcomeOK && !c.txs[v.tx].aborted
}

func (c *streamCheck) checkValues() {
	for _, name := range c.order {
		v := c.values[name]
		switch {
		case v.sends == 0:
			c.fail(UnknownValue, "%q was read and never sent", name)
			continue
		case v.read && v.outcome == OutcomeFail:
			c.fail(AbortedRead, "%q was read though its publish failed", name)
		case v.readCommitted && v.tx != "" && c.txs[v.tx].aborted:
			c.fail(AbortedRead, "%q was read though transaction %q was rolled back", name, v.tx)
		}
		if len(v.slots) > max(1, v.sends) && c.h.Idempotent {
			c.fail(DuplicateWrite, "%q is stored at %v", name, v.slots)
		}
		if v.read || c.h.Sparse || !c.visible(v) {
			continue
		}
		if len(v.slots) > 0 {
			s := v.slots[0]
			if last, ok := c.last[s.partition]; ok && last.Compare(s.offset) > 0 {
				c.fail(LostWrite, "%q was acknowledged at %v; %v was read, this never", name, s, last)
				continue
			}
		}
		c.fail(Unseen, "%q was acknowledged and never read", name)
	}
}

func (c *streamCheck) checkTransactions() {
	for i := range c.events {
		e := &c.events[i]
		if e.Op != StreamPoll || !e.ReadCommitted {
			continue
		}
		for _, en := range e.Entries {
			v := c.values[en.Value]
			if v.tx == "" {
				continue
			}
			t := c.txs[v.tx]
			switch {
			case t.ended && e.End >= t.start:
			case t.who == e.Who:
				c.fail(UncommittedRead, "%s read its own %q before transaction %q ended", e.Who, en.Value, v.tx)
			default:
				c.fail(UncommittedRead, "%s read %q before transaction %q ended", e.Who, en.Value, v.tx)
			}
		}
	}
	if c.h.Sparse {
		return
	}
	done := map[string]bool{}
	for _, name := range c.order {
		id := c.values[name].tx
		if id == "" || done[id] || c.txs[id].aborted {
			continue
		}
		done[id] = true
		seen, missing := "", ""
		for _, w := range c.txs[id].values {
			switch v := c.values[w]; {
			case v.readCommitted:
				seen = w
			case v.outcome == OutcomeOK:
				missing = w
			}
		}
		if seen != "" && missing != "" {
			c.fail(TornTransaction, "of transaction %q, %q was read and %q never", id, seen, missing)
		}
	}
}

// A ranking numbers the offsets of each partition in order.
type ranking struct {
	slots map[int32][]broker.Offset
	ranks map[streamSlot]int
}

// rank lists what readers must find, apart from what may legally be hidden.
func (c *streamCheck) rank() {
	c.all, c.committed = newRanking(), newRanking()
	for slot, name := range c.slots {
		v := c.values[name]
		if v.tx == "" || c.visible(v) {
			c.all.add(slot)
		}
		if v.tx == "" || c.visible(v) || v.readCommitted {
			c.committed.add(slot)
		}
	}
	c.all.sort()
	c.committed.sort()
}

func newRanking() ranking {
	return ranking{slots: map[int32][]broker.Offset{}, ranks: map[streamSlot]int{}}
}

func (r ranking) add(s streamSlot) { r.slots[s.partition] = append(r.slots[s.partition], s.offset) }

func (r ranking) sort() {
	for p, offsets := range r.slots {
		slices.SortFunc(offsets, broker.Offset.Compare)
		for i, o := range offsets {
			r.ranks[streamSlot{p, o}] = i
		}
	}
}

// after returns the rank of the first offset behind o.
func (r ranking) after(p int32, o broker.Offset) int {
	if i, ok := r.ranks[streamSlot{p, o}]; ok {
		return i + 1
	}
	return r.from(p, o)
}

// from returns the rank of the first offset at or behind o.
func (r ranking) from(p int32, o broker.Offset) int {
	i, _ := slices.BinarySearchFunc(r.slots[p], o, broker.Offset.Compare)
	return i
}
