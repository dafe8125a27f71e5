package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/queuestream/broker"
)

// A member is a single active consumer of every partition. Those subscriptions
// only tell which partitions are its own; the records of a partition come over
// another one, which can be set to any offset.
type member struct {
	s      *Stream
	group  string
	o      broker.GroupOptions
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	work   sync.WaitGroup // run, and each hold

	role  string          // of its connection to each node: no other member of the group is on it
	again bool            // of run: the member was in the group before
	views map[int32]*view // of run: what it sees of the partitions that others have

	mu      sync.Mutex
	seats   map[int32]*seat
	holds   map[int32]*hold
	turn    int // partition that Receive looks at first
	paused  map[int32]bool
	wake    chan struct{}
	closed  bool
	problem error // that does not pass by itself: for the next Receive
}

// Consumer implements [broker.Stream].
func (s *Stream) Consumer(ctx context.Context, group string, opts *broker.GroupOptions) (broker.GroupConsumer, error) {
	m, err := s.consumer(ctx, group, opts)
	if err != nil {
		return nil, fail("consumer", s.name, err)
	}
	return m, nil
}

func (s *Stream) consumer(ctx context.Context, group string, opts *broker.GroupOptions) (*member, error) {
	if err := broker.ContextError(ctx); err != nil {
		return nil, err
	}
	if err := checkName(group); err != nil {
		return nil, fmt.Errorf("group: %w", err)
	}
	m := &member{
		s: s, group: group, seats: map[int32]*seat{}, holds: map[int32]*hold{}, views: map[int32]*view{},
		paused: map[int32]bool{}, wake: make(chan struct{}, 1),
	}
	if opts != nil {
		m.o = *opts
	}
	if m.o.ReadCommitted {
		return nil, broker.Unsupported("ReadCommitted: streams have no transactions")
	}
	switch m.o.Start.Kind() {
	case broker.PositionDefault, broker.PositionEarliest, broker.PositionLatest, broker.PositionTime, broker.PositionOffset:
	default:
		return nil, broker.Invalid("Start %v: want Earliest, Latest, AtTime or AtOffset", m.o.Start)
	}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		m.cancel()
		return nil, broker.ErrClosed
	}
	m.role = s.b.streams.groupRole(s.name, group)
	s.members[m] = struct{}{}
	m.work.Go(m.run)
	return m, nil
}

func (m *member) signal() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// fail makes the next Receive return err.
func (m *member) fail(err error) {
	m.mu.Lock()
	m.problem = err
	m.mu.Unlock()
	m.signal()
}

// Receive implements [broker.GroupConsumer]. When the stream was deleted it
// returns [broker.ErrNotFound], once for each attempt to join its group again:
// the consumer goes on when the stream is declared anew. A record that is not
// AMQP 1.0 is [broker.ErrUnsupported], once for each attempt to read it: its
// partition stands still until a Seek, the others go on.
func (m *member) Receive(ctx context.Context, max int) ([]*broker.Record, error) {
	if max <= 0 {
		return nil, fail("receive", m.s.name, broker.Invalid("max %d: want at least 1", max))
	}
	for {
		if err := broker.ContextError(ctx); err != nil {
			return nil, fail("receive", m.s.name, err)
		}
		rs, err := m.take(max)
		if err != nil {
			return nil, fail("receive", m.s.name, err)
		}
		if len(rs) > 0 {
			return rs, nil
		}
		select {
		case <-m.wake:
		case <-ctx.Done():
		case <-m.ctx.Done():
		}
	}
}

// take returns what is buffered, beginning with another partition each time.
func (m *member) take(max int) (out []*broker.Record, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, broker.ErrClosed
	}
	if err := m.problem; err != nil {
		m.problem = nil // the next attempt tells whether it still is
		return nil, err
	}
	n := len(m.s.partitions)
	for i := range n {
		p := int32((m.turn + i) % n) //nolint:gosec // few
		h := m.holds[p]
		if h == nil || m.paused[p] || len(h.buf) == 0 {
			continue
		}
		k := min(max-len(out), len(h.buf))
		out = append(out, h.buf[:k]...)
		clear(h.buf[:k])
		h.buf = h.buf[k:]
		select {
		case h.room <- struct{}{}:
		default:
		}
		if len(out) == max {
			break
		}
	}
	m.turn = (m.turn + 1) % n
	return out, nil
}

// Commit implements [broker.GroupConsumer]. The broker takes an offset from
// anyone. Here it goes over the connection that makes this member the active
// one, and is over before the member answers that it gives the partition up: it
// cannot arrive after a commit of the next owner.
//
// Of several partitions, all are committed or none, unless the connection
// breaks: then the outcome is unknown.
func (m *member) Commit(ctx context.Context, rs ...*broker.Record) error {
	return fail("commit", m.s.name, m.commit(ctx, rs))
}

func (m *member) commit(ctx context.Context, rs []*broker.Record) error {
	if err := broker.ContextError(ctx); err != nil {
		return err
	}
	last := map[int32]int64{}
	holds := map[int32]*hold{}
	m.mu.Lock()
	for _, r := range rs {
		a := r.Assignment()
		h := m.holds[r.Partition]
		n, ok := r.Offset().Int64()
		var err error
		switch {
		case !ok || a == nil || a.Stream != m.s.name || a.Group != m.group:
			err = broker.Invalid("a record was not received by this group")
		case a.Ended() || h == nil || h.a != a:
			err = broker.ErrFenced
		}
		if err != nil {
			m.mu.Unlock()
			return err
		}
		holds[r.Partition] = h
		last[r.Partition] = max(last[r.Partition], n+1)
	}
	m.mu.Unlock()
	ps := slices.Sorted(maps.Keys(holds)) // in order, so that two commits do not wait for each other
	for _, p := range ps {
		if err := holds[p].acquire(ctx); err != nil {
			return err
		}
		defer holds[p].release()
	}
	errs := make([]error, 0, len(ps))
	for _, p := range ps {
		errs = append(errs, holds[p].commit(ctx, last[p]))
	}
	return errors.Join(errs...)
}

// Seek implements [broker.GroupConsumer].
func (m *member) Seek(ctx context.Context, partition int32, to broker.Position) error {
	return fail("seek", m.s.name, m.seek(ctx, partition, to))
}

func (m *member) seek(ctx context.Context, p int32, to broker.Position) error {
	m.mu.Lock()
	h, closed := m.holds[p], m.closed
	m.mu.Unlock()
	switch {
	case closed:
		return broker.ErrClosed
	case h == nil:
		return fmt.Errorf("%w: partition %d is not assigned to this member", broker.ErrFenced, p)
	}
	var st start
	var err error
	if to.Kind() == broker.PositionCommitted {
		st, err = m.s.resume(ctx, m.group, p, m.o.Start)
	} else {
		var first, next int64
		if first, next, err = m.s.bounds(ctx, p); err == nil {
			st, err = startAt(to, first, next)
		}
	}
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	h.epoch++
	h.at, h.buf, h.committed = &st, nil, -1
	h.stop()
	return nil
}

// Partitions implements [broker.GroupConsumer].
func (m *member) Partitions() []int32 {
	m.mu.Lock()
	defer m.mu.Unlock()
	ps := make([]int32, 0, len(m.holds))
	for p := range m.holds {
		ps = append(ps, p)
	}
	slices.Sort(ps)
	return ps
}

// Pause implements [broker.GroupConsumer].
func (m *member) Pause(partitions ...int32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range partitions {
		m.paused[p] = true
	}
}

// Resume implements [broker.GroupConsumer].
func (m *member) Resume(partitions ...int32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range partitions {
		delete(m.paused, p)
	}
	m.signal()
}

// Close implements [broker.GroupConsumer].
func (m *member) Close() error {
	m.close()
	return nil
}

func (m *member) close() {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.cancel()
	m.work.Wait()
	m.s.mu.Lock()
	defer m.s.mu.Unlock()
	if _, ok := m.s.members[m]; ok {
		delete(m.s.members, m)
		m.s.b.streams.freeRole(m.s.name, m.group, m.role)
	}
}
