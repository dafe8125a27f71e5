package memory

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/queuestream/broker"
)

var _ broker.GroupConsumer = (*GroupConsumer)(nil)

// A GroupConsumer is one member of a group. The callbacks of its options run
// one at a time in a goroutine of their own; records of new partitions come
// after OnAssigned has returned.
type GroupConsumer struct {
	h      *Stream
	s      *stream
	opts   broker.GroupOptions
	ctx    context.Context // of OnRevoked; ends at Close
	cancel context.CancelFunc

	// Guarded by s.mu.
	g         *consumerGroup
	joined    bool
	err       error // after Close
	stopped   error // during Shutdown: what Receive returns
	seen      int64 // last call, UnixNano
	parked    int
	receivers waitList
	paused    map[int32]bool
	turn      int // the partition to begin with
	events    []groupEvent
	busy      bool          // runEvents runs
	quiet     chan struct{} // closed when it ends, if somebody waits
}

func errHasMembers(n int) error {
	return fmt.Errorf("%w: the group has %d members", broker.ErrConflict, n)
}

// Consumer joins a group.
func (h *Stream) Consumer(ctx context.Context, group string, opts *broker.GroupOptions) (broker.GroupConsumer, error) {
	m, err := h.join(ctx, group, opts)
	if err != nil {
		return nil, opError("join group", group, err)
	}
	return m, nil
}

func (h *Stream) join(ctx context.Context, group string, opts *broker.GroupOptions) (*GroupConsumer, error) {
	if err := h.reach(ctx); err != nil {
		return nil, err
	}
	if err := broker.ValidateDeclaredName(group); err != nil {
		return nil, err
	}
	m := &GroupConsumer{h: h, s: h.s, paused: map[int32]bool{}}
	if opts != nil {
		m.opts = *opts
	}
	switch {
	case m.opts.ReadCommitted && !h.caps.Transactions:
		return nil, broker.Unsupported("ReadCommitted: the stream has no transactions")
	case m.opts.Start.Kind() == broker.PositionCommitted, m.opts.Start.Kind() == broker.PositionNow:
		return nil, broker.Invalid("Start %v: want earliest, latest, a time or an offset", m.opts.Start)
	}
	m.ctx, m.cancel = context.WithCancel(context.WithoutCancel(ctx))
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.isClosed {
		m.cancel()
		return nil, broker.ErrClosed
	}
	h.s.mu.Lock()
	defer h.s.mu.Unlock()
	if h.s.deleted {
		m.cancel()
		return nil, broker.ErrNotFound
	}
	h.members[m] = struct{}{}
	m.g = h.s.makeGroup(group)
	m.enter()
	return m, nil
}

// enter makes m a member. s.mu is held.
func (m *GroupConsumer) enter() {
	m.joined, m.seen = true, now()
	m.g.readCommitted = m.opts.ReadCommitted
	m.g.members = append(m.g.members, m)
	m.g.evict(m.seen)
	m.g.rebalance()
}

// Receive does what broker.GroupConsumer promises.
func (m *GroupConsumer) Receive(ctx context.Context, max int) ([]*broker.Record, error) {
	rs, err := m.receive(ctx, max)
	if err != nil {
		return nil, opError("receive", m.s.name, err)
	}
	return rs, nil
}

func (m *GroupConsumer) receive(ctx context.Context, max int) ([]*broker.Record, error) {
	if max <= 0 {
		return nil, broker.Invalid("max %d: want at least 1", max)
	}
	if ctx.Err() != nil {
		return nil, broker.ContextError(ctx)
	}
	if f := m.s.srv.faults.Load(); f != nil {
		if err := f.call(ctx, m); err != nil {
			return nil, err
		}
	}
	var w *waiter
	for {
		if ctx.Err() != nil {
			return nil, broker.ContextError(ctx)
		}
		if f := m.s.srv.faults.Load(); f != nil {
			if err := f.wait(ctx, m, nil); err != nil {
				return nil, err
			}
		}
		m.s.mu.Lock()
		rs, wait, err := m.take(max)
		if rs != nil || err != nil {
			m.s.mu.Unlock()
			return rs, err
		}
		if w == nil {
			w = newWaiter()
		}
		m.receivers.push(w)
		m.g.waited(1)
		m.parked++
		m.s.mu.Unlock()
		m.park(ctx, w, wait)
		m.s.mu.Lock()
		m.parked--
		m.seen = now()
		if w.queued {
			m.receivers.remove(w)
			m.g.waited(-1)
		}
		select {
		case <-w.token:
		default:
		}
		m.s.mu.Unlock()
	}
}

func (m *GroupConsumer) connection() *Broker { return m.h.b }

func (m *GroupConsumer) ended() error {
	m.s.mu.Lock()
	defer m.s.mu.Unlock()
	if m.err != nil {
		return m.err
	}
	return m.stopped
}

// park waits for a token, the end of ctx or for so long (0: no limit).
func (m *GroupConsumer) park(ctx context.Context, w *waiter, wait time.Duration) {
	var due <-chan time.Time
	if wait > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		due = t.C
	}
	select {
	case <-w.token:
	case <-ctx.Done():
	case <-due:
	}
}

// wake lets parked calls of Receive look again. s.mu is held.
func (m *GroupConsumer) wake() {
	for w := m.receivers.pop(); w != nil; w = m.receivers.pop() {
		m.g.waited(-1)
		w.token <- struct{}{}
	}
}

// take returns records, or how long to wait for what happens by time alone.
// s.mu is held.
func (m *GroupConsumer) take(limit int) ([]*broker.Record, time.Duration, error) {
	t := time.Now()
	nano := t.UnixNano()
	switch {
	case m.err != nil:
		return nil, 0, m.err
	case m.stopped != nil:
		return nil, 0, m.stopped
	case m.s.deleted:
		return nil, 0, broker.ErrNotFound
	}
	next := m.g.evict(nano)
	m.seen = nano
	if !m.joined {
		m.enter()
	}
	var rs []*broker.Record
	n := len(m.s.parts)
	for i := range n {
		p := m.s.parts[(m.turn+i)%n]
		h := m.g.holds[p.id]
		if h == nil || h.m != m || h.state != holdActive || m.paused[p.id] {
			continue
		}
		m.s.retain(p, t)
		end := p.end(m.opts.ReadCommitted, nano)
		for _, o := range p.open {
			if m.opts.ReadCommitted && (next == 0 || o.tx.deadline < next) {
				next = o.tx.deadline
			}
		}
		if h.pos = max(h.pos, p.first); h.pos >= end {
			continue
		}
		had := len(rs)
		rs, h.pos = p.fetch(rs, h.pos, end, limit-len(rs), m.opts.ReadCommitted, h.a)
		if len(rs) > had {
			last, _ := rs[len(rs)-1].Offset().Int64()
			h.handed = last + 1
		}
		if len(rs) >= limit {
			m.turn = (m.turn + i + 1) % n
			break
		}
	}
	wait := time.Duration(0)
	if next != 0 {
		wait = time.Duration(max(next-nano, 1))
	}
	return rs, wait, nil
}

// Commit stores the position after each record, for each partition the
// furthest. What this member no longer holds, or fetched before a Seek, is
// ErrFenced and does not keep the rest from being stored.
func (m *GroupConsumer) Commit(ctx context.Context, rs ...*broker.Record) error {
	return opError("commit", m.s.name, m.commit(ctx, rs))
}

func (m *GroupConsumer) commit(ctx context.Context, rs []*broker.Record) error {
	if ctx.Err() != nil {
		return broker.ContextError(ctx)
	}
	if f := m.s.srv.faults.Load(); f != nil {
		if err := f.call(ctx, (*committing)(m)); err != nil {
			return err
		}
	}
	m.s.mu.Lock()
	defer m.s.mu.Unlock()
	if m.err != nil {
		return m.err
	}
	m.g.evict(now())
	m.seen = now()
	next, err := m.positions(rs)
	for h, n := range next {
		m.g.commit(h, n)
	}
	return err
}

// committing is a member in a call that goes on during Shutdown.
type committing GroupConsumer

func (m *committing) connection() *Broker { return m.h.b }

func (m *committing) ended() error {
	m.s.mu.Lock()
	defer m.s.mu.Unlock()
	return m.err
}

// positions returns the position after the furthest of rs in each hold. s.mu
// is held.
func (m *GroupConsumer) positions(rs []*broker.Record) (map[*hold]int64, error) {
	next := map[*hold]int64{}
	var err error
	for _, r := range rs {
		a := r.Assignment()
		if a == nil || a.Stream != m.s.name || a.Group != m.g.name {
			return nil, broker.Invalid("record %v of partition %d was not received by this group", r.Offset(), r.Partition)
		}
		h := m.g.holds[a.Partition]
		if h == nil || h.a != a || h.m != m || a.Ended() {
			err = fmt.Errorf("%w: partition %d is no longer held as it was for record %v", broker.ErrFenced, r.Partition, r.Offset())
			continue
		}
		n, _ := r.Offset().Int64()
		next[h] = max(next[h], n+1)
	}
	return next, err
}

// commit stores an offset. s.mu is held.
func (g *consumerGroup) commit(h *hold, n int64) {
	if old, ok := g.offsets[h.p.id]; !ok || n > old || h.rewound {
		g.offsets[h.p.id] = n
	}
	h.base, h.rewound = g.offsets[h.p.id], false
}

// Seek moves this member's position; records fetched before get ErrFenced at
// Commit.
func (m *GroupConsumer) Seek(ctx context.Context, partition int32, to broker.Position) error {
	return opError("seek", m.s.name, m.seek(ctx, partition, to))
}

func (m *GroupConsumer) seek(ctx context.Context, partition int32, to broker.Position) error {
	if ctx.Err() != nil {
		return broker.ContextError(ctx)
	}
	if f := m.s.srv.faults.Load(); f != nil {
		if err := f.reach(ctx, (*committing)(m)); err != nil {
			return err
		}
	}
	m.s.mu.Lock()
	defer m.s.mu.Unlock()
	if m.err != nil {
		return m.err
	}
	if partition < 0 || int(partition) >= len(m.s.parts) {
		return fmt.Errorf("%w: partition %d: the stream has %d", broker.ErrNotFound, partition, len(m.s.parts))
	}
	m.g.evict(now())
	m.seen = now()
	h := m.g.holds[partition]
	if h == nil || h.m != m || h.state == holdRevoking {
		return fmt.Errorf("%w: partition %d is not assigned to this member", broker.ErrFenced, partition)
	}
	m.s.retain(h.p, time.Now())
	var n int64
	if to.Kind() == broker.PositionCommitted {
		n = m.g.stored(h)
	} else {
		var err error
		if n, err = m.s.resolve(to, h.p); err != nil {
			return err
		}
		h.rewound = true
	}
	h.moveTo(n)
	m.wake()
	return nil
}

// stored returns the group's position in the partition of h.
func (g *consumerGroup) stored(h *hold) int64 {
	if n, ok := g.offsets[h.p.id]; ok {
		return n
	}
	return h.start
}

// moveTo goes on reading at n; what was fetched before is fenced.
func (h *hold) moveTo(n int64) {
	h.pos, h.handed, h.base = n, n, n
	a := &broker.Assignment{Stream: h.a.Stream, Group: h.a.Group, Partition: h.a.Partition, Identity: h.a.Identity}
	h.a.End()
	h.a = a
}

// Partitions returns those assigned to this member, without those that it is
// being asked to let go.
func (m *GroupConsumer) Partitions() []int32 {
	m.s.mu.Lock()
	defer m.s.mu.Unlock()
	ids := []int32{}
	for id, h := range m.g.holds {
		if h.m == m && h.state != holdRevoking {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// Pause stops Receive from returning records of the partitions until Resume or
// until they are taken from this member.
func (m *GroupConsumer) Pause(partitions ...int32) {
	m.s.mu.Lock()
	defer m.s.mu.Unlock()
	for _, p := range partitions {
		m.paused[p] = true
	}
}

// Resume undoes Pause.
func (m *GroupConsumer) Resume(partitions ...int32) {
	m.s.mu.Lock()
	defer m.s.mu.Unlock()
	for _, p := range partitions {
		delete(m.paused, p)
	}
	m.wake()
}

// Close leaves the group at once, without OnRevoked. A callback that runs has
// its context ended and is not waited for. It may be called again.
func (m *GroupConsumer) Close() error {
	m.h.mu.Lock()
	delete(m.h.members, m)
	m.h.mu.Unlock()
	m.shut()
	return nil
}

func (m *GroupConsumer) shut() {
	defer m.s.srv.wake()
	m.s.mu.Lock()
	defer m.s.mu.Unlock()
	m.err = broker.ErrClosed
	m.cancel()
	m.events = nil
	m.g.leave(m)
	m.g.rebalance()
	m.wake()
}

// stop makes Receive return err from now on.
func (m *GroupConsumer) stop(err error) {
	defer m.s.srv.wake()
	m.s.mu.Lock()
	defer m.s.mu.Unlock()
	m.stopped = err
	m.wake()
}

// drain revokes what m holds, so that its program commits, and leaves.
func (m *GroupConsumer) drain(ctx context.Context) error {
	s := m.s
	s.mu.Lock()
	var hs []*hold
	for _, h := range m.g.holds {
		if h.m == m && h.state != holdRevoking {
			hs = append(hs, h)
		}
	}
	m.g.members = slices.DeleteFunc(m.g.members, func(o *GroupConsumer) bool { return o == m })
	m.revoke(hs)
	var quiet chan struct{}
	if m.busy {
		if m.quiet == nil {
			m.quiet = make(chan struct{})
		}
		quiet = m.quiet
	}
	s.mu.Unlock()
	if quiet == nil {
		return nil
	}
	select {
	case <-quiet:
		return nil
	case <-ctx.Done():
		return broker.ContextError(ctx)
	}
}
