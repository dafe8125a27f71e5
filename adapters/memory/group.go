package memory

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/queuestream/broker"
)

// A consumerGroup has the members and the stored offsets of one group of a
// stream. The stream's lock guards it.
type consumerGroup struct {
	s             *stream
	name          string
	offsets       map[int32]int64
	starts        map[int32]int64 // where reading began without a stored offset
	members       []*GroupConsumer
	holds         map[int32]*hold
	readCommitted bool // of the member that joined last
	waits         int  // calls of Receive that wait for a wake
	at            int  // in s.waiting, while there are any
}

// A hold is one member's hold on one partition.
type hold struct {
	m       *GroupConsumer
	a       *broker.Assignment
	p       *partition
	pos     int64 // next to read
	handed  int64 // after the last record handed out
	start   int64 // where to go back to while nothing is stored
	base    int64 // where a transaction's end goes back to: what is stored, or where Seek went since
	state   holdState
	rewound bool // by Seek: the next Commit may store an earlier offset
	timer   *time.Timer
}

type holdState uint8

const (
	holdNew      holdState = iota // OnAssigned has not returned
	holdActive                    // records are handed out
	holdRevoking                  // OnRevoked has not returned
)

// group returns a group or nil. s.mu is held.
func (s *stream) group(name string) *consumerGroup {
	for _, g := range s.groups {
		if g.name == name {
			return g
		}
	}
	return nil
}

// makeGroup returns a group, a new one if it is the first time. s.mu is held.
func (s *stream) makeGroup(name string) *consumerGroup {
	g := s.group(name)
	if g == nil {
		g = &consumerGroup{
			s: s, name: name, offsets: map[int32]int64{}, starts: map[int32]int64{}, holds: map[int32]*hold{},
		}
		s.groups = append(s.groups, g)
	}
	return g
}

func (g *consumerGroup) owner(partition int32) *hold { return g.holds[partition] }

// waited counts calls of Receive that begin to wait (n > 0) or do so no longer,
// and keeps s.waiting: an append looks at those groups alone.
func (g *consumerGroup) waited(n int) {
	s, before := g.s, g.waits
	g.waits += n
	switch {
	case before == 0 && g.waits > 0:
		g.at = len(s.waiting)
		s.waiting = append(s.waiting, g)
	case before > 0 && g.waits == 0:
		end := len(s.waiting) - 1
		last := s.waiting[end]
		s.waiting[g.at], last.at = last, g.at
		s.waiting[end] = nil
		s.waiting = s.waiting[:end]
	}
}

// position returns where reading a partition goes on.
func (g *consumerGroup) position(p *partition, start broker.Position) int64 {
	if n, ok := g.offsets[p.id]; ok {
		return n
	}
	if n, ok := g.starts[p.id]; ok {
		return n
	}
	n, err := g.s.resolve(start, p)
	if err != nil { // an offset that this partition does not have
		n = p.first
	}
	g.starts[p.id] = n
	return n
}

// rebalance gives every member its share and leaves what it can where it is. A
// partition that moves is given to the next member once its owner has let it go.
func (g *consumerGroup) rebalance() {
	k := len(g.members)
	if k == 0 || g.s.deleted {
		return
	}
	parts := g.s.parts
	share := map[*GroupConsumer]int{}
	order := slices.Clone(g.members)
	slices.SortStableFunc(order, func(a, b *GroupConsumer) int { return cmp.Compare(g.load(b), g.load(a)) })
	for i, m := range order {
		share[m] = len(parts) / k
		if i < len(parts)%k {
			share[m]++
		}
	}
	for _, m := range order {
		var revoked []*hold
		for i, n := len(parts)-1, g.load(m); i >= 0 && n > share[m]; i-- {
			if h := g.holds[int32(i)]; h != nil && h.m == m && h.state != holdRevoking {
				revoked = append(revoked, h)
				n--
			}
		}
		m.revoke(revoked)
	}
	for _, m := range order {
		var added []*hold
		n := g.load(m)
		for _, p := range parts {
			if n >= share[m] {
				break
			}
			if g.holds[p.id] == nil {
				added = append(added, g.hold(m, p))
				n++
			}
		}
		m.assign(added)
	}
}

// load returns how many partitions a member has and keeps.
func (g *consumerGroup) load(m *GroupConsumer) int {
	n := 0
	for _, h := range g.holds {
		if h.m == m && h.state != holdRevoking {
			n++
		}
	}
	return n
}

func (g *consumerGroup) hold(m *GroupConsumer, p *partition) *hold {
	pos := g.position(p, m.opts.Start)
	h := &hold{m: m, p: p, pos: pos, handed: pos, start: pos, base: pos}
	h.a = &broker.Assignment{Stream: g.s.name, Group: g.name, Partition: p.id, Identity: g.s.identity}
	g.holds[p.id] = h
	return h
}

// free ends a hold; the next rebalance gives the partition away.
func (g *consumerGroup) free(h *hold) {
	h.a.End()
	if h.timer != nil {
		h.timer.Stop()
	}
	if g.holds[h.p.id] == h {
		delete(g.holds, h.p.id)
	}
	delete(h.m.paused, h.p.id)
}

// leave takes m out with all that it holds and returns those partitions.
func (g *consumerGroup) leave(m *GroupConsumer) []int32 {
	var ids []int32
	for _, h := range g.holds {
		if h.m == m {
			ids = append(ids, h.p.id)
			g.free(h)
		}
	}
	slices.Sort(ids)
	g.members = slices.DeleteFunc(g.members, func(o *GroupConsumer) bool { return o == m })
	g.emptied()
	m.joined = false
	return ids
}

// emptied forgets where a group began once it has no members.
func (g *consumerGroup) emptied() {
	if len(g.members) == 0 {
		clear(g.starts)
	}
}

// evict takes out members that were silent for too long, and returns when the
// next one may have to go (UnixNano; 0: none).
func (g *consumerGroup) evict(now int64) int64 {
	timeout := int64(g.s.srv.opts.SessionTimeout)
	if timeout == 0 {
		return 0
	}
	next := int64(0)
	for _, m := range slices.Clone(g.members) {
		if m.parked > 0 || m.busy {
			continue
		}
		at := m.seen + timeout
		if at <= now {
			m.lose()
		} else if next == 0 || at < next {
			next = at
		}
	}
	return next
}

// resetGroup sets the stored offsets of a group.
func (s *stream) resetGroup(name string, to broker.Position) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.deleted {
		return broker.ErrNotFound
	}
	g := s.makeGroup(name)
	if n := len(g.members); n > 0 {
		return errHasMembers(n)
	}
	offsets := map[int32]int64{}
	for _, p := range s.parts {
		s.retain(p, time.Now())
		n, err := s.resolve(to, p)
		if err != nil {
			return err
		}
		offsets[p.id] = n
	}
	g.offsets = offsets
	return nil
}

// ---- callbacks ---------------------------------------------------------------

// A groupEvent is a call of one of the program's functions, made by a
// goroutine that lives only while there are some.
type groupEvent struct {
	call func()
	then func() // with the stream's lock
}

// post queues a callback. s.mu is held.
func (m *GroupConsumer) post(e groupEvent) {
	if e.call == nil && !m.busy {
		if e.then != nil {
			e.then()
		}
		return
	}
	m.events = append(m.events, e)
	if !m.busy {
		m.busy = true
		go m.runEvents()
	}
}

func (m *GroupConsumer) runEvents() {
	s := m.s
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(m.events) > 0 {
		e := m.events[0]
		m.events = m.events[1:]
		if e.call != nil {
			s.mu.Unlock()
			e.call()
			s.mu.Lock()
		}
		m.seen = now()
		if e.then != nil {
			e.then()
		}
	}
	m.busy = false
	if m.quiet != nil {
		close(m.quiet)
		m.quiet = nil
	}
}

func partitionsOf(hs []*hold) []int32 {
	ids := make([]int32, len(hs))
	for i, h := range hs {
		ids[i] = h.p.id
	}
	slices.Sort(ids)
	return ids
}

// assign tells the member of new holds; it gets their records after OnAssigned.
func (m *GroupConsumer) assign(hs []*hold) {
	if len(hs) == 0 {
		return
	}
	var call func()
	if f := m.opts.OnAssigned; f != nil {
		ids := partitionsOf(hs)
		call = func() { f(ids) }
	}
	m.post(groupEvent{call, func() {
		for _, h := range hs {
			if h.state == holdNew {
				h.state = holdActive
			}
		}
		m.wake()
	}})
}

// revoke asks the member to let holds go.
func (m *GroupConsumer) revoke(hs []*hold) {
	if len(hs) == 0 {
		return
	}
	m.letGo(hs, m.opts.OnRevoked, m.opts.OnLost)
}

// letGo calls f, and takes the holds when it has returned, or when the
// rebalance time-out has passed; late is called then.
func (m *GroupConsumer) letGo(hs []*hold, f func(context.Context, []int32), late func([]int32)) {
	for _, h := range hs {
		h.state = holdRevoking
	}
	if f == nil {
		m.post(groupEvent{nil, func() { m.handOver(hs) }})
		return
	}
	ids := partitionsOf(hs)
	timeout := m.s.srv.opts.RebalanceTimeout
	ctx, cancel := context.WithTimeout(m.ctx, timeout)
	timer := time.AfterFunc(timeout, func() {
		m.s.mu.Lock()
		defer m.s.mu.Unlock()
		if m.handOver(hs) && late != nil {
			m.post(groupEvent{func() { late(ids) }, nil})
		}
	})
	for _, h := range hs {
		h.timer = timer
	}
	m.post(groupEvent{
		func() {
			defer cancel()
			f(ctx, ids)
		},
		func() {
			cancel()
			m.handOver(hs)
		},
	})
}

// handOver frees holds and gives their partitions on. It reports whether any
// was still held.
func (m *GroupConsumer) handOver(hs []*hold) bool {
	held := false
	for _, h := range hs {
		if m.g.holds[h.p.id] == h {
			held = true
		}
		m.g.free(h)
	}
	if held {
		m.g.rebalance()
	}
	return held
}

// lose evicts the member; it rejoins at its next Receive. s.mu is held.
func (m *GroupConsumer) lose() {
	if !m.joined {
		return
	}
	ids := m.g.leave(m)
	if f := m.opts.OnLost; f != nil && len(ids) > 0 {
		m.post(groupEvent{func() { f(ids) }, nil})
	}
	m.g.rebalance()
}

// cut fences the member at once; unlike an evicted one it knows, so others get
// its partitions after OnLost. s.mu is held.
func (m *GroupConsumer) cut() {
	if !m.joined {
		return
	}
	m.joined = false
	m.g.members = slices.DeleteFunc(m.g.members, func(o *GroupConsumer) bool { return o == m })
	var hs []*hold
	for _, h := range m.g.holds {
		if h.m != m {
			continue
		}
		h.a.End()
		if h.state != holdRevoking { // else OnRevoked runs already
			hs = append(hs, h)
		}
	}
	if len(hs) == 0 {
		return
	}
	var f func(context.Context, []int32)
	if lost := m.opts.OnLost; lost != nil {
		f = func(_ context.Context, ids []int32) { lost(ids) }
	}
	m.letGo(hs, f, nil)
}
