package differential

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"github.com/queuestream/broker"
)

// A streamProgram is a fixed sequence of calls on a stream. Which member of a
// group has which partition is the broker's choice, so a step is of all members
// of a group, and what a choice could change is settled before the next step
// that could show it.
type streamProgram struct {
	begin  time.Time // of what happened
	steps  []streamStep
	serial int // of records
}

type streamStep struct {
	op        streamOp
	group     int
	partition int32
	records   []broker.Record // to publish
	batch     bool            // at once
	max       int             // of a Receive
	back      int             // how many of the last pinned records are not committed
	to        broker.PositionKind
	at        int  // the pinned record that a position means, as far as there are so many
	offsets   bool // of the transaction
	commit    bool // ends the transaction; otherwise it is rolled back
}

type streamOp int

const (
	publish streamOp = iota
	drain
	commitPrefix
	join
	leave
	seek
	pause
	reset
	read
	transaction
)

var streamOpNames = [...]string{"publish", "drain", "commit", "join", "leave", "seek", "pause", "reset", "read", "transaction"}

// streamOps are the operations, the frequent ones more than once.
var streamOps = []streamOp{
	publish, publish, publish, drain, commitPrefix, commitPrefix, join, leave, seek, seek, pause, reset, read, transaction, transaction,
}

func (s *streamStep) String() string { return streamOpNames[s.op] }

const (
	streamPartitions = 3
	streamSteps      = 24
	streamGroups     = 2
	streamMembers    = 2 // of a group, at most
)

// newStreamProgram uses what caps claim.
func newStreamProgram(seed uint64, caps broker.StreamCapabilities, seeksStore bool) streamProgram {
	r := rand.New(rand.NewPCG(seed, 3))
	p := streamProgram{begin: time.Now().Truncate(time.Second).Add(-time.Hour)}
	members, transactions := [streamGroups]int{}, false
	for len(p.steps) < streamSteps {
		s := streamStep{
			op: streamOps[r.IntN(len(streamOps))], group: r.IntN(streamGroups), partition: int32(r.IntN(streamPartitions)),
			max: 1 + r.IntN(9), batch: r.IntN(2) == 0, at: r.IntN(12), offsets: r.IntN(2) == 0, commit: r.IntN(3) > 0,
			to: broker.PositionEarliest,
		}
		n := &members[s.group]
		if len(p.steps) < streamGroups { // somebody reads from the beginning
			s.op, s.group, n = join, len(p.steps), &members[len(p.steps)]
		}
		kinds := []broker.PositionKind{broker.PositionEarliest, broker.PositionLatest, broker.PositionOffset}
		// The markers of transactions have times, too, in Kafka: those of the
		// broker, at which a seek by time may begin.
		if caps.SeekTime && caps.Timestamps && !transactions {
			kinds = append(kinds, broker.PositionTime)
		}
		switch s.op {
		case publish:
			s.records = p.records(r, caps, 1+r.IntN(12), false)
		case drain, read:
		case commitPrefix:
			s.back = r.IntN(4)
		case join:
			if *n == streamMembers {
				continue
			}
			*n++
		case leave:
			if *n == 0 {
				continue
			}
			*n--
		case seek:
			if *n == 0 || seeksStore {
				continue
			}
			s.to = append(kinds, broker.PositionCommitted)[r.IntN(len(kinds)+1)]
		case pause:
			if *n == 0 {
				continue
			}
			s.records = p.records(r, caps, 5, true)
		case reset:
			if !caps.GroupReset {
				continue
			}
			s.to = kinds[r.IntN(len(kinds))]
			if s.to == broker.PositionOffset {
				s.to = broker.PositionLatest
			}
		case transaction:
			if !caps.Transactions {
				continue
			}
			s.records, transactions = p.records(r, caps, 1+r.IntN(8), true), true
		}
		p.steps = append(p.steps, s)
	}
	return p
}

// records makes some, all pinned or some with keys.
func (p *streamProgram) records(r *rand.Rand, caps broker.StreamCapabilities, n int, pinned bool) []broker.Record {
	rs := make([]broker.Record, n)
	for i := range rs {
		rec := broker.Record{Value: []byte(strconv.Itoa(p.serial))}
		if pinned || r.IntN(3) > 0 {
			rec.Pin, rec.Partition = true, int32(r.IntN(streamPartitions))
		} else {
			rec.Key = fmt.Appendf(nil, "key %d", r.IntN(6))
		}
		if caps.Headers && r.IntN(3) == 0 {
			rec.Headers = broker.Headers{{Key: "b", Value: "\x00\xfe"}, {Key: "a", Value: "1"}, {Key: "a", Value: "2"}}
		}
		if caps.Timestamps {
			rec.SetTime(p.begin.Add(time.Duration(p.serial) * time.Second)) // later ones are later
		}
		rs[i] = rec
		p.serial++
	}
	return rs
}

// ---- the specification -------------------------------------------------------

// A logged record is one that the broker has put into a partition.
type logged struct {
	rec    broker.Record
	offset broker.Offset
	seen   bool // offset is known
	tx     *txSpec
}

type txSpec struct{ open, aborted bool }

// A logSpec is one partition: its records in order. Positions are indices into
// it, since brokers number them in their own ways.
type logSpec struct{ records []*logged }

// limit is where readers stop.
func (l *logSpec) limit(committed bool) int {
	if committed {
		for i, r := range l.records {
			if r.tx != nil && r.tx.open {
				return i
			}
		}
	}
	return len(l.records)
}

// find returns the index of a record that a reader at i may be given next. What
// was rolled back may have been stored, or not: a broker need not hear of it.
func (l *logSpec) find(value []byte, i int, committed bool) (int, error) {
	for end := l.limit(committed); i < end; i++ {
		r := l.records[i]
		gone := r.tx != nil && r.tx.aborted
		switch same := string(r.rec.Value) == string(value); {
		case same && gone && committed:
			return 0, fmt.Errorf("%q was rolled back", value)
		case same:
			return i, nil
		case !gone:
			return 0, fmt.Errorf("%q came, want %q", value, r.rec.Value)
		}
	}
	return 0, fmt.Errorf("%q came, want nothing", value)
}

// left counts the records from i on that a reader must be given.
func (l *logSpec) left(i int, committed bool) int {
	n := 0
	for end := l.limit(committed); i < end; i++ {
		if tx := l.records[i].tx; tx == nil || !tx.aborted {
			n++
		}
	}
	return n
}

// pinned returns the indices of the records that were published to this
// partition by its number: where those with keys go is the broker's choice.
func (l *logSpec) pinned() []int {
	var is []int
	for i, r := range l.records {
		if r.rec.Pin {
			is = append(is, i)
		}
	}
	return is
}

// place writes an index as all brokers must agree on it: as the number of
// pinned records before it.
func (l *logSpec) place(i int) int {
	n, _ := slices.BinarySearch(l.pinned(), i)
	return n
}

// resolve returns the index that a position of a step means, and the position.
func (l *logSpec) resolve(to broker.PositionKind, at int) (int, broker.Position) {
	is := l.pinned()
	at = min(at, len(is)-1)
	switch {
	case to == broker.PositionLatest:
		return len(l.records), broker.Latest()
	case at < 0:
	case to == broker.PositionTime:
		return is[at], broker.AtTime(l.records[is[at]].rec.Time())
	case to == broker.PositionOffset && l.records[is[at]].seen:
		return is[at], broker.AtOffset(l.records[is[at]].offset)
	}
	return 0, broker.Earliest()
}

// A groupSpec is what is stored for a group: the index of the next record to
// read of each partition that has one.
type groupSpec struct {
	name      string
	committed bool // its members read committed records alone
	stored    map[int32]int
	members   []*memberSpec
}

type memberSpec struct {
	c     broker.GroupConsumer
	holds map[int32]*holdSpec // guarded by runner.mu, as all here
}

// A holdSpec is a partition while a member has it.
type holdSpec struct {
	pos     int // next to read
	base    int // what is stored, or where a seek went since
	handed  []*broker.Record
	indices []int // of handed
	rewound bool
	paused  bool
}

func (h *holdSpec) moveTo(i int) { h.pos, h.base, h.handed, h.indices = i, i, nil, nil }

// commit returns the record whose position is to be stored when the last ones,
// back of which were pinned, are not, and stores it.
func (g *groupSpec) commit(id int32, h *holdSpec, back int) *broker.Record {
	n := len(h.handed) - 1
	for ; n >= 0 && back > 0; n-- {
		if h.handed[n].Key == nil {
			back--
		}
	}
	if n < 0 {
		return nil
	}
	next := h.indices[n] + 1
	if old, ok := g.stored[id]; !ok || next > old || h.rewound {
		g.stored[id] = next
	}
	h.base, h.rewound = g.stored[id], false
	return h.handed[n]
}

// sameRecord tells how a record that was read differs from what was published.
func sameRecord(got, want *broker.Record) error {
	if string(got.Key) != string(want.Key) || string(got.Value) != string(want.Value) ||
		fmt.Sprintf("%q", got.Headers) != fmt.Sprintf("%q", want.Headers) ||
		!want.Time().IsZero() && !got.Time().Equal(want.Time()) {
		return fmt.Errorf("read %q=%q %q at %v, want %q=%q %q at %v", got.Key, got.Value, got.Headers, got.Time(),
			want.Key, want.Value, want.Headers, want.Time())
	}
	return nil
}
