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

// holdBuffer is how many records of a partition a member reads ahead.
const holdBuffer = 1000

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

// A hold is a partition from assigned to revoked or lost.
type hold struct {
	m         *member
	partition int32
	a         *broker.Assignment
	ctx       context.Context // ends with the hold
	cancel    context.CancelFunc

	// guarded by m.mu
	epoch     int // counts seeks
	at        *start
	buf       []*broker.Record
	next      int64         // behind the last record put into buf
	room      chan struct{} // closed and replaced when buf shrinks
	reseek    chan struct{} // closed and replaced by Seek
	committed int64         // -1: unknown
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
		sc, err := do(m.ctx, m.s.b.streams, func(env *stream.Environment) (*stream.SuperStreamConsumer, error) {
			return env.NewSuperStreamConsumer(m.s.name, ignore, stream.NewSuperStreamConsumerOptions().
				SetConsumerName(m.group).SetOffset(nowhere).SetSingleActiveConsumer(sac).
				SetManualCommit().SetClientProvidedName(name))
		})
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
		c, err := do(m.ctx, m.s.b.streams, func(env *stream.Environment) (*stream.Consumer, error) {
			return env.NewConsumer(m.s.partitions[0], ignore, stream.NewConsumerOptions().
				SetConsumerName(m.group).SetOffset(nowhere).SetSingleActiveConsumer(sac).
				SetManualCommit().SetClientProvidedName(name))
		})
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
	if _, err := call(ctx, func() (struct{}, error) { return struct{}{}, leave() }, nil); err != nil && why == nil {
		m.s.b.o.Logger.Debug("leaving the group", "adapter", adapterName, "stream", m.s.name, "group", m.group, "error", err)
	}
	return why
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

func (h *hold) end() {
	h.a.End()
	h.cancel()
}

// run reads the partition into the buffer until the hold ends.
func (h *hold) run() {
	backoff := h.m.s.b.o.MinBackoff
	for h.ctx.Err() == nil {
		began := time.Now()
		if err := h.read(); err != nil && h.ctx.Err() == nil {
			h.m.s.b.o.Logger.Warn("reading a partition failed", "adapter", adapterName,
				"stream", h.m.s.name, "partition", h.partition, "error", err)
			if time.Since(began) > time.Second {
				backoff = h.m.s.b.o.MinBackoff
			}
			sleep(h.ctx, backoff/2+rand.N(backoff/2+1))
			backoff = min(2*backoff, h.m.s.b.o.MaxBackoff)
		}
	}
}

// position returns where to read from and the epoch that it belongs to.
func (h *hold) position() (start, int, <-chan struct{}, error) {
	h.m.mu.Lock()
	at, epoch, reseek := h.at, h.epoch, h.reseek
	h.m.mu.Unlock()
	if at != nil {
		return *at, epoch, reseek, nil
	}
	st, err := h.m.s.resume(h.ctx, h.m.group, h.partition, h.m.o.Start)
	if err != nil {
		return st, epoch, reseek, err
	}
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	if h.epoch == epoch {
		h.at = &st
	}
	return st, epoch, reseek, nil
}

// resume returns the group's stored position, or where it starts without one.
// An offset that the retention has removed becomes the first one.
func (s *Stream) resume(ctx context.Context, group string, p int32, otherwise broker.Position) (start, error) {
	var o stream.OffsetSpecification
	stored, ok, err := s.stored(ctx, group, p)
	if err != nil {
		return start{}, err
	}
	if ok {
		return start{spec: o.Offset(stored), offset: stored}, nil
	}
	if k := otherwise.Kind(); k == broker.PositionDefault || k == broker.PositionEarliest {
		return start{spec: o.First()}, nil
	}
	first, next, err := s.bounds(ctx, p)
	if err != nil {
		return start{}, err
	}
	return startAt(otherwise, first, next)
}

// read fills the buffer over one subscription, until it breaks, a seek, or the end.
func (h *hold) read() error {
	m := h.m
	at, epoch, reseek, err := h.position()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(h.ctx)
	defer cancel()
	defer func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if h.epoch == epoch { // go on behind what was read
			h.at = &at
		}
	}()
	var mu sync.Mutex // the handler's
	f, err := m.s.subscribe(ctx, h.partition, at.spec, func(offset int64, _ int, msg *samqp.Message) {
		mu.Lock()
		defer mu.Unlock()
		if ctx.Err() != nil {
			return
		}
		r := decodeRecord(msg, h.partition)
		if !at.pass(offset, r) {
			return
		}
		r.Bind(broker.NewOffset(offset), h.a)
		if h.put(ctx, epoch, r) {
			at.offset = offset + 1
			at.spec = stream.OffsetSpecification{}.Offset(offset + 1)
		}
	})
	if err != nil {
		return err
	}
	select {
	case <-f.closed:
		err = broker.ErrUnavailable
	case <-reseek:
	case <-ctx.Done():
	}
	cancel()
	f.close(m.s.b.o.CloseTimeout)
	mu.Lock()
	defer mu.Unlock()
	return err
}

// put waits for room. It reports false when the subscription is over.
func (h *hold) put(ctx context.Context, epoch int, r *broker.Record) bool {
	m := h.m
	for {
		m.mu.Lock()
		if h.epoch != epoch || h.a.Ended() {
			m.mu.Unlock()
			return false
		}
		if len(h.buf) < holdBuffer {
			h.buf = append(h.buf, r)
			m.signal()
			m.mu.Unlock()
			return true
		}
		room := h.room
		m.mu.Unlock()
		select {
		case <-room:
		case <-ctx.Done():
			return false
		}
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
