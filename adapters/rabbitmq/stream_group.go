package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	samqp "github.com/rabbitmq/rabbitmq-stream-go-client/pkg/amqp"
	"github.com/rabbitmq/rabbitmq-stream-go-client/pkg/stream"

	"github.com/queuestream/broker"
)

// revokeTimeout bounds OnRevoked: the broker waits for its answer before it
// makes another member active.
const revokeTimeout = 10 * time.Second

// A member is a single active consumer of every partition. Those subscriptions
// only tell which partitions are its own; the records of a partition come over
// another one, which can be set to any offset.
type member struct {
	s      *Stream
	group  string
	o      broker.GroupOptions
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	done   chan struct{}
	feeds  sync.WaitGroup

	mu     sync.Mutex
	holds  map[int32]*hold
	turn   int // partition that Receive looks at first
	paused map[int32]bool
	wake   chan struct{}
	closed bool
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
		s: s, group: group, done: make(chan struct{}), holds: map[int32]*hold{},
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
	s.members[m] = struct{}{}
	go m.run()
	return m, nil
}

// run keeps the member in the group until Close.
func (m *member) run() {
	defer close(m.done)
	defer m.feeds.Wait()
	backoff := m.s.b.o.MinBackoff
	for m.ctx.Err() == nil {
		began := time.Now()
		err := m.session()
		m.lose()
		if m.ctx.Err() != nil {
			return
		}
		m.s.b.o.Logger.Warn("left the group for a moment", "adapter", adapterName, "stream", m.s.name, "group", m.group, "error", err)
		if time.Since(began) > m.s.b.o.MaxBackoff {
			backoff = m.s.b.o.MinBackoff
		}
		sleep(m.ctx, backoff/2+rand.N(backoff/2+1))
		backoff = min(2*backoff, m.s.b.o.MaxBackoff)
	}
}

// session is in the group from join to the loss of a connection.
func (m *member) session() error {
	// An offset behind any end: the broker sends nothing on these
	// subscriptions, they only tell who is active.
	nowhere := stream.OffsetSpecification{}.Offset(math.MaxInt64 >> 1)
	sac := stream.NewSingleActiveConsumer(func(partition string, active bool) stream.OffsetSpecification {
		if p := slices.Index(m.s.partitions, partition); p >= 0 {
			if active {
				m.assign(int32(p)) //nolint:gosec // few
			} else {
				m.revoke(int32(p)) //nolint:gosec // few
			}
		}
		return nowhere
	})
	ignore := func(stream.ConsumerContext, *samqp.Message) {}
	name := m.s.b.o.Name
	closed := make(chan string, 1)
	note := func(what string) {
		select {
		case closed <- what:
		default:
		}
	}
	var leave func() error
	stop := make(chan struct{})
	defer close(stop)
	if m.s.super {
		sc, err := acquire(m.ctx, m.s.b.streams, func(env *stream.Environment) (*stream.SuperStreamConsumer, error) {
			sc, err := env.NewSuperStreamConsumer(m.s.name, ignore, stream.NewSuperStreamConsumerOptions().
				SetConsumerName(m.group).SetOffset(nowhere).SetSingleActiveConsumer(sac).
				SetManualCommit().SetClientProvidedName(name))
			if err != nil && sc != nil { // it may be in the group of some partitions
				err = errors.Join(err, sc.Close())
			}
			return sc, err
		}, func(sc *stream.SuperStreamConsumer) { m.left(sc.Close()) })
		if err != nil {
			return err
		}
		events := sc.NotifyPartitionClose(len(m.s.partitions) + 1)
		go func() {
			select {
			case e := <-events:
				note(e.Event.Reason)
			case <-stop:
			}
		}()
		leave = sc.Close
	} else {
		c, err := acquire(m.ctx, m.s.b.streams, func(env *stream.Environment) (*stream.Consumer, error) {
			return env.NewConsumer(m.s.partitions[0], ignore, stream.NewConsumerOptions().
				SetConsumerName(m.group).SetOffset(nowhere).SetSingleActiveConsumer(sac).
				SetManualCommit().SetClientProvidedName(name))
		}, func(c *stream.Consumer) { m.left(c.Close()) })
		if err != nil {
			return err
		}
		events := c.NotifyClose()
		go func() {
			select {
			case e := <-events:
				note(e.Reason)
			case <-stop:
			}
		}()
		leave = c.Close
	}
	var why error
	select {
	case reason := <-closed:
		why = fmt.Errorf("%w: %s", broker.ErrUnavailable, reason)
	case <-m.ctx.Done():
	}
	ctx, cancel := context.WithTimeout(context.Background(), m.s.b.o.CloseTimeout)
	defer cancel()
	if _, err := call(ctx, func() (struct{}, error) { return struct{}{}, leave() }, nil); why == nil {
		m.left(err)
	}
	return why
}

// left notes how leaving the group went.
func (m *member) left(err error) {
	if err != nil {
		m.s.b.o.Logger.Debug("leaving the group", "adapter", adapterName, "stream", m.s.name, "group", m.group, "error", err)
	}
}

// assign runs on the reader of the group's connection.
func (m *member) assign(p int32) {
	h := &hold{
		m: m, partition: p, a: &broker.Assignment{Stream: m.s.name, Group: m.group, Partition: p},
		room: make(chan struct{}), reseek: make(chan struct{}), committed: -1,
	}
	h.ctx, h.cancel = context.WithCancel(m.ctx)
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		h.cancel()
		return
	}
	old := m.holds[p]
	m.holds[p] = h
	m.mu.Unlock()
	if old != nil {
		old.end()
	}
	if m.o.OnAssigned != nil {
		m.o.OnAssigned([]int32{p})
	}
	m.feeds.Go(h.run)
}

// revoke runs on the reader of the group's connection; the hand-over waits.
func (m *member) revoke(p int32) {
	m.mu.Lock()
	h := m.holds[p]
	if h != nil {
		h.buf = nil // nothing more goes out
	}
	m.mu.Unlock()
	if h == nil {
		return
	}
	if m.o.OnRevoked != nil {
		ctx, cancel := context.WithTimeout(m.ctx, revokeTimeout)
		defer cancel()
		returned := make(chan struct{})
		go func() {
			defer close(returned)
			m.o.OnRevoked(ctx, []int32{p})
		}()
		select {
		case <-returned:
		case <-ctx.Done():
		}
	}
	m.drop(h)
}

func (m *member) drop(h *hold) {
	m.mu.Lock()
	if m.holds[h.partition] == h {
		delete(m.holds, h.partition)
	}
	m.mu.Unlock()
	h.end()
}

// lose ends every hold: another member may have the partitions by now.
func (m *member) lose() {
	m.mu.Lock()
	var hs []*hold
	for _, h := range m.holds {
		hs = append(hs, h)
	}
	clear(m.holds)
	closed := m.closed
	m.mu.Unlock()
	ids := make([]int32, 0, len(hs))
	for _, h := range hs {
		h.end()
		ids = append(ids, h.partition)
	}
	slices.Sort(ids)
	if len(ids) > 0 && !closed && m.o.OnLost != nil {
		m.o.OnLost(ids)
	}
}

func (m *member) signal() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// Receive implements [broker.GroupConsumer].
func (m *member) Receive(ctx context.Context, max int) ([]*broker.Record, error) {
	if max <= 0 {
		return nil, fail("receive", m.s.name, broker.Invalid("max %d: want at least 1", max))
	}
	for {
		if err := broker.ContextError(ctx); err != nil {
			return nil, fail("receive", m.s.name, err)
		}
		rs, closed := m.take(max)
		if closed {
			return nil, fail("receive", m.s.name, broker.ErrClosed)
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
func (m *member) take(max int) (out []*broker.Record, closed bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, true
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
		h.buf = slices.Delete(h.buf, 0, k)
		close(h.room)
		h.room = make(chan struct{})
		if len(out) == max {
			break
		}
	}
	m.turn = (m.turn + 1) % n
	return out, false
}

// Commit implements [broker.GroupConsumer]. The broker takes an offset from
// anyone: this client refuses records of a hold that has ended.
func (m *member) Commit(ctx context.Context, rs ...*broker.Record) error {
	last := map[int32]*broker.Record{}
	for _, r := range rs {
		a := r.Assignment()
		switch {
		case a == nil || a.Stream != m.s.name || a.Group != m.group:
			return fail("commit", m.s.name, broker.Invalid("a record was not received by this group"))
		case a.Ended():
			return fail("commit", m.s.name, broker.ErrFenced)
		}
		if l := last[r.Partition]; l == nil || r.Offset().Compare(l.Offset()) > 0 {
			last[r.Partition] = r
		}
	}
	errs := make([]error, 0, len(last))
	for p, r := range last {
		errs = append(errs, m.commit(ctx, p, r))
	}
	return fail("commit", m.s.name, errors.Join(errs...))
}

func (m *member) commit(ctx context.Context, p int32, r *broker.Record) error {
	n, ok := r.Offset().Int64()
	if !ok {
		return broker.Invalid("offset %s", r.Offset())
	}
	m.mu.Lock()
	h := m.holds[p]
	if h == nil || h.a != r.Assignment() {
		m.mu.Unlock()
		return broker.ErrFenced
	}
	epoch, back := h.epoch, h.committed >= n+1
	m.mu.Unlock()
	if back {
		return nil
	}
	if err := m.s.store(ctx, m.group, p, n+1); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if h.epoch == epoch {
		h.committed = max(h.committed, n+1)
	}
	return nil
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
	close(h.reseek)
	h.reseek = make(chan struct{})
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
	<-m.done
	m.s.mu.Lock()
	defer m.s.mu.Unlock()
	delete(m.s.members, m)
}
