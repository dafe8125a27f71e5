package brokertest

import (
	"context"
	"errors"
	"maps"
	"slices"

	"github.com/queuestream/broker"
)

// member is the one consumer of a group; guarded by the stream's mutex.
type member struct {
	s      *Stream
	g      *group
	name   string
	opts   broker.GroupOptions
	parts  map[int32]*broker.Assignment
	pos    map[int32]int64
	paused map[int32]bool
	sought map[int32]bool
	still  map[int32]bool // until OnAssigned has returned, and from OnRevoked on: nothing goes out
	closed bool
}

// Consumer implements [broker.Stream].
func (s *Stream) Consumer(_ context.Context, name string, opts *broker.GroupOptions) (broker.GroupConsumer, error) {
	if opts == nil {
		opts = &broker.GroupOptions{}
	}
	s.mu.Lock()
	g := s.group(name)
	switch {
	case s.closed:
		s.mu.Unlock()
		return nil, s.fail("consumer", broker.ErrClosed)
	case g.member != nil:
		s.mu.Unlock()
		return nil, s.fail("consumer", errors.New("brokertest: the group has a member already"))
	}
	m := &member{
		s: s, g: g, name: name, opts: *opts,
		parts: map[int32]*broker.Assignment{}, pos: map[int32]int64{},
		paused: map[int32]bool{}, sought: map[int32]bool{}, still: map[int32]bool{},
	}
	g.member = m
	s.mu.Unlock()
	ids := make([]int32, len(s.logs))
	for i := range ids {
		ids[i] = int32(i) //nolint:gosec // small
	}
	s.Assign(name, ids...)
	return m, nil
}

// Assign gives partitions to the group's member.
func (s *Stream) Assign(name string, partitions ...int32) {
	s.mu.Lock()
	m := s.group(name).member
	if m == nil {
		s.mu.Unlock()
		return
	}
	for _, p := range partitions {
		m.parts[p] = &broker.Assignment{Stream: s.name, Group: name, Partition: p}
		c, ok := m.g.committed[p]
		if !ok {
			c = int64(position(s.logs[p], m.opts.Start, 0))
		}
		m.pos[p] = c
		m.still[p] = true
	}
	s.mu.Unlock()
	if m.opts.OnAssigned != nil {
		m.opts.OnAssigned(partitions)
	}
	s.mu.Lock()
	for _, p := range partitions {
		delete(m.still, p)
	}
	s.wakeAll()
	s.mu.Unlock()
}

// Revoke takes partitions from the group's member, which drains them first.
func (s *Stream) Revoke(ctx context.Context, name string, partitions ...int32) {
	s.take(name, partitions, false, func(m *member) {
		if m.opts.OnRevoked != nil {
			m.opts.OnRevoked(ctx, partitions)
		}
	})
}

// Lose takes partitions from the group's member without notice.
func (s *Stream) Lose(name string, partitions ...int32) {
	s.take(name, partitions, true, func(m *member) {
		if m.opts.OnLost != nil {
			m.opts.OnLost(partitions)
		}
	})
}

func (s *Stream) take(name string, partitions []int32, before bool, tell func(*member)) {
	s.mu.Lock()
	m := s.group(name).member
	if m != nil {
		for _, p := range partitions {
			m.still[p] = true
		}
	}
	s.mu.Unlock()
	if m == nil {
		return
	}
	gone := func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, p := range partitions {
			if a := m.parts[p]; a != nil {
				a.End()
			}
			delete(m.parts, p)
			delete(m.paused, p)
		}
	}
	if before {
		gone()
	}
	tell(m)
	if !before {
		gone()
	}
}

func (m *member) Receive(ctx context.Context, max int) ([]*broker.Record, error) {
	s := m.s
	if max <= 0 {
		return nil, s.fail("receive", broker.Invalid("max %d: want at least 1", max))
	}
	if s.ReceiveErr != nil {
		if err := s.ReceiveErr(); err != nil {
			return nil, err
		}
	}
	for {
		if err := broker.ContextError(ctx); err != nil {
			return nil, s.fail("receive", err)
		}
		s.mu.Lock()
		if s.closed || m.closed {
			s.mu.Unlock()
			return nil, s.fail("receive", broker.ErrClosed)
		}
		rs := m.takeRecords(max)
		wake := s.wake
		s.mu.Unlock()
		if len(rs) > 0 {
			return rs, nil
		}
		select {
		case <-wake:
		case <-ctx.Done():
		}
	}
}

func (m *member) takeRecords(max int) []*broker.Record {
	var rs []*broker.Record
	for _, p := range slices.Sorted(maps.Keys(m.parts)) {
		if m.paused[p] || m.still[p] {
			continue
		}
		l := m.s.logs[p]
		for m.pos[p] < int64(len(l)) && len(rs) < max {
			r := l[m.pos[p]]
			r.Bind(r.Offset(), m.parts[p])
			rs = append(rs, &r)
			m.pos[p]++
		}
	}
	return rs
}

func (m *member) Commit(ctx context.Context, rs ...*broker.Record) error {
	s := m.s
	if err := broker.ContextError(ctx); err != nil {
		return s.fail("commit", err)
	}
	if s.CommitErr != nil {
		if err := s.CommitErr(rs); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if m.closed {
		return s.fail("commit", broker.ErrClosed)
	}
	errs, stored := make([]error, len(rs)), false
	for i, r := range rs {
		if m.parts[r.Partition] == nil || m.parts[r.Partition] != r.Assignment() {
			errs[i] = s.fail("commit", broker.ErrFenced)
			continue
		}
		n, _ := r.Offset().Int64()
		if n+1 > m.g.committed[r.Partition] || m.sought[r.Partition] {
			m.g.committed[r.Partition] = n + 1
			m.sought[r.Partition] = false
			stored = true
		}
	}
	if stored {
		m.g.commits++
	}
	return broker.NewBatchError(errs)
}

func (m *member) Seek(_ context.Context, partition int32, to broker.Position) error {
	m.s.mu.Lock()
	defer m.s.mu.Unlock()
	if m.parts[partition] == nil {
		return m.s.fail("seek", broker.ErrFenced)
	}
	if to.Kind() == broker.PositionCommitted {
		m.pos[partition] = m.g.committed[partition]
	} else {
		m.pos[partition] = int64(position(m.s.logs[partition], to, 0))
	}
	m.sought[partition] = true
	m.s.wakeAll()
	return nil
}

func (m *member) Partitions() []int32 {
	m.s.mu.Lock()
	defer m.s.mu.Unlock()
	return slices.Sorted(maps.Keys(m.parts))
}

func (m *member) Pause(partitions ...int32) {
	m.s.mu.Lock()
	defer m.s.mu.Unlock()
	for _, p := range partitions {
		m.paused[p] = true
	}
}

func (m *member) Resume(partitions ...int32) {
	m.s.mu.Lock()
	defer m.s.mu.Unlock()
	for _, p := range partitions {
		delete(m.paused, p)
	}
	m.s.wakeAll()
}

func (m *member) Close() error {
	m.s.mu.Lock()
	defer m.s.mu.Unlock()
	if m.closed {
		return nil
	}
	m.closed = true
	for _, a := range m.parts {
		a.End()
	}
	m.g.member = nil
	m.s.wakeAll()
	return nil
}

var (
	_ broker.Stream        = (*Stream)(nil)
	_ broker.GroupConsumer = (*member)(nil)
)
