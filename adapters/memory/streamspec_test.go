package memory

import (
	"slices"
	"time"

	"github.com/queuestream/broker"
)

// A streamSpec is the specification of a stream, its groups and the
// transactions on it: lists, and rules that look at all of them each time.
type streamSpec struct {
	cfg        broker.StreamConfig
	tombstones time.Duration
	parts      []*logSpec
	groups     [2]*groupSpec
	txs        []*txSpec // that were begun
}

// A logSpec is what one partition holds.
type logSpec struct {
	id          int32
	first, next int64
	records     []*recordSpec
	tombstones  []*recordSpec // in the order in which they became the latest of their keys
}

type recordSpec struct {
	offset     int64
	key, value string
	tombstone  bool
	ms         int64 // UnixMilli
	size       int64
	tx         *txSpec // nil: none
	counts     bool    // for compaction: it is in no transaction, or in one that has committed
}

type txSpec struct {
	tx       broker.Tx
	state    int32 // as txState has it
	deadline time.Time
	offsets  []offsetsSpec
}

type offsetsSpec struct {
	m     *memberSpec
	taken []takenSpec
}

type groupSpec struct {
	name      string
	committed bool // its members read committed records alone
	start     broker.Position
	offsets   map[int32]int64
	starts    map[int32]int64 // where members began without a stored offset
	holds     map[int32]*holdSpec
	members   []*memberSpec
	known     bool // to the stream
}

type holdSpec struct {
	m       *memberSpec
	pos     int64 // next to read
	start   int64
	base    int64 // what is stored, or where a seek went since
	handed  int64 // after the last record received
	era     int   // counts the moves: what was received in an earlier one is fenced
	rewound bool
}

type memberSpec struct {
	g       *groupSpec
	c       *GroupConsumer
	commits bool // in OnRevoked
	paused  map[int32]bool
	taken   []takenSpec // received, in order
}

type takenSpec struct {
	r    *broker.Record
	hold *holdSpec
	era  int
}

func (t *takenSpec) partition() int32 { return t.r.Partition }

func (t *takenSpec) offset() int64 {
	n, _ := t.r.Offset().Int64()
	return n
}

// valid tells whether the position after t may be committed by m.
func (m *memberSpec) valid(t *takenSpec) bool {
	return m.g.holds[t.partition()] == t.hold && t.hold.m == m && t.hold.era == t.era
}

// ---- the log -----------------------------------------------------------------

func (s *streamSpec) grow(n int) {
	for len(s.parts) < n {
		s.parts = append(s.parts, &logSpec{id: int32(len(s.parts))})
	}
}

// sync carries out what has happened by now.
func (s *streamSpec) sync() {
	now := time.Now()
	for _, tx := range s.txs {
		if tx.state == txOpen && !now.Before(tx.deadline) {
			s.end(tx, txAborted)
		}
	}
	for _, p := range s.parts {
		s.retain(p)
	}
}

// store appends a record that the broker has put at an offset.
func (s *streamSpec) store(p *logSpec, r *recordSpec) {
	r.offset = p.next
	r.counts = r.tx == nil
	p.next++
	p.records = append(p.records, r)
	if r.counts {
		s.compact(p, r)
	}
	s.retain(p)
}

func (p *logSpec) remove(r *recordSpec) {
	p.records = slices.DeleteFunc(p.records, func(o *recordSpec) bool { return o == r })
}

// compact keeps one record of r's key: the one with the highest offset.
func (s *streamSpec) compact(p *logSpec, r *recordSpec) {
	if !s.cfg.Compact || r.key == "" {
		return
	}
	for _, o := range slices.Clone(p.records) {
		switch {
		case o == r || o.key != r.key || !o.counts:
		case o.offset > r.offset:
			p.remove(r)
			return
		default:
			p.remove(o)
		}
	}
	if r.tombstone {
		p.tombstones = append(p.tombstones, r)
	}
}

// retain lets go of tombstones that have had their time, then of what is over
// the limits, the oldest first, up to the first that is not or whose transaction
// is open.
func (s *streamSpec) retain(p *logSpec) {
	now := time.Now()
	for len(p.tombstones) > 0 && p.tombstones[0].ms < now.Add(-s.tombstones).UnixMilli() {
		p.remove(p.tombstones[0])
		p.tombstones = p.tombstones[1:]
	}
	for len(p.records) > 0 {
		r, bytes := p.records[0], int64(0)
		for _, o := range p.records {
			bytes += o.size
		}
		old := s.cfg.Retention > 0 && r.ms < now.Add(-s.cfg.Retention).UnixMilli()
		over := s.cfg.RetentionBytes > 0 && bytes > s.cfg.RetentionBytes && len(p.records) > 1
		if !old && !over || r.tx != nil && r.tx.state == txOpen {
			break
		}
		p.first = r.offset + 1
		p.remove(r)
	}
}

// end ends a transaction in the logs.
func (s *streamSpec) end(tx *txSpec, state int32) {
	tx.state = state
	for _, p := range s.parts {
		for _, r := range slices.Clone(p.records) {
			switch {
			case r.tx != tx:
			case state == txCommitted:
				r.counts = true
				s.compact(p, r)
			case s.cfg.Compact:
				p.remove(r)
			}
		}
	}
}

// limit is where readers stop.
func (p *logSpec) limit(committed bool) int64 {
	if committed {
		for _, r := range p.records {
			if r.tx != nil && r.tx.state == txOpen {
				return r.offset
			}
		}
	}
	return p.next
}

// visible returns what a reader is given from one offset up to another.
func (p *logSpec) visible(from, until int64, committed bool) []*recordSpec {
	var rs []*recordSpec
	for _, r := range p.records {
		if r.offset >= from && r.offset < min(until, p.limit(committed)) &&
			(!committed || r.tx == nil || r.tx.state == txCommitted) {
			rs = append(rs, r)
		}
	}
	return rs
}

func (p *logSpec) atTime(ms int64) int64 {
	for _, r := range p.records {
		if r.ms >= ms {
			return r.offset
		}
	}
	return p.next
}

func (p *logSpec) resolve(to broker.Position) (n int64, ok bool) {
	switch to.Kind() {
	case broker.PositionLatest:
		return p.next, true
	case broker.PositionTime:
		return p.atTime(to.Time().UnixMilli()), true
	case broker.PositionOffset:
		n, _ := to.Offset().Int64()
		return n, n >= p.first && n <= p.next
	}
	return p.first, true
}

// ---- groups ------------------------------------------------------------------

// take gives m a partition that nobody holds.
func (m *memberSpec) take(p *logSpec) {
	g := m.g
	pos, ok := g.offsets[p.id]
	if !ok {
		if pos, ok = g.starts[p.id]; !ok {
			pos, _ = p.resolve(g.start)
			g.starts[p.id] = pos
		}
	}
	g.holds[p.id] = &holdSpec{m: m, pos: pos, start: pos, base: pos, handed: pos}
}

func (m *memberSpec) letGo(id int32) {
	delete(m.g.holds, id)
	delete(m.paused, id)
}

// leave ends a member at once.
func (m *memberSpec) leave() {
	for id, h := range m.g.holds {
		if h.m == m {
			m.letGo(id)
		}
	}
	m.g.members = slices.DeleteFunc(m.g.members, func(o *memberSpec) bool { return o == m })
	if len(m.g.members) == 0 {
		clear(m.g.starts)
	}
}

// commit stores the furthest position after those of taken that are valid, and
// reports whether all were.
func (m *memberSpec) commit(taken []takenSpec) bool {
	all := true
	next := map[int32]int64{}
	for i := range taken {
		t := &taken[i]
		if !m.valid(t) {
			all = false
			continue
		}
		next[t.partition()] = max(next[t.partition()], t.offset()+1)
	}
	for id, n := range next {
		h := m.g.holds[id]
		if old, ok := m.g.offsets[id]; !ok || n > old || h.rewound {
			m.g.offsets[id] = n
		}
		h.base, h.rewound = m.g.offsets[id], false
	}
	return all
}

func (m *memberSpec) allValid(taken []takenSpec) bool {
	return !slices.ContainsFunc(taken, func(t takenSpec) bool { return !m.valid(&t) })
}

func (h *holdSpec) stored(id int32) int64 {
	if n, ok := h.m.g.offsets[id]; ok {
		return n
	}
	return h.start
}

func (h *holdSpec) moveTo(n int64) {
	h.pos, h.handed, h.base = n, n, n
	h.era++
}

// rewind takes the members of a transaction back to what is stored.
func (tx *txSpec) rewind() {
	for _, o := range tx.offsets {
		for _, h := range o.m.g.holds {
			if h.m == o.m && h.handed > h.base {
				h.moveTo(h.base)
			}
		}
	}
}

// lag is what Lag says of a partition: where the group is, and how much is left.
func (g *groupSpec) lag(p *logSpec) (committed int64, has bool, next, lag int64) {
	only := g.known && g.committed
	from := p.first
	if committed, has = g.offsets[p.id]; has {
		from = max(from, committed)
	}
	return committed, has, p.limit(only), int64(len(p.visible(from, p.next, only)))
}
