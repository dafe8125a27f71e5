package conformance

import (
	"context"
	"iter"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/memory"
)

// A streamMutation is one defect around the correct memory adapter's streams.
// A nil hook changes nothing.
type streamMutation struct {
	profile  memory.Profile // of the broker that it is around
	caps     func(c *broker.StreamCapabilities)
	declare  func(b *mutantStreams, ctx context.Context, name string, cfg *broker.StreamConfig) (done bool)
	open     func(b *mutantStreams, ctx context.Context, name string, err error) (*memory.Stream, error)
	options  func(o *broker.StreamOptions)
	send     func(s *mutantStream, ctx context.Context, rs []broker.Record) ([]broker.Receipt, error)
	ctx      func(ctx context.Context) context.Context
	join     func(s *mutantStream, group string, o *broker.GroupOptions) string // edits, and returns the group
	read     func(s *mutantStream, ctx context.Context, r broker.Range) iter.Seq2[*broker.Record, error]
	record   func(s *mutantStream, rec *broker.Record) // edits what is read and received
	receive  func(m *mutantMember, ctx context.Context, max int) ([]*broker.Record, error)
	commit   func(m *mutantMember, ctx context.Context, rs []*broker.Record) error
	seek     func(m *mutantMember, ctx context.Context, p int32, to broker.Position) error
	noPause  bool
	pauses   bool                        // outlast the assignment
	leave    func(m *mutantMember) error // instead of a member's Close
	closed   func(s *mutantStream) error // instead of a stream's Close
	lag      func(s *mutantStream, lags []broker.PartitionLag)
	txSend   func(tx *mutantTx, ctx context.Context, s broker.Stream, rs []broker.Record) error
	txCommit func(tx *mutantTx, ctx context.Context, m *mutantMember, rs []*broker.Record) error
	txEnd    func(tx *mutantTx, ctx context.Context, rollback bool) error
	id       func(id string) string
}

// streamWorld is what the mutants of one case share, through all connections.
type streamWorld struct {
	server *memory.Broker
	end    chan struct{} // closed when the case is over
	mu     sync.Mutex
	n      int
	kept   map[string]string
	all    []*mutantMember
}

func (w *streamWorld) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.n++
	return w.n
}

type mutantStreams struct {
	*memory.Broker
	m *streamMutation
	w *streamWorld
}

func (b *mutantStreams) Stream(ctx context.Context, name string, opts *broker.StreamOptions) (broker.Stream, error) {
	if opts != nil && b.m.options != nil {
		o := *opts
		b.m.options(&o)
		opts = &o
	}
	s, err := b.Broker.Stream(ctx, name, opts)
	var inner *memory.Stream
	if err == nil {
		inner = s.(*memory.Stream)
	} else if b.m.open != nil {
		inner, err = b.m.open(b, ctx, name, err)
	}
	if err != nil {
		return nil, err
	}
	return &mutantStream{Stream: inner, b: b}, nil
}

func (b *mutantStreams) DeclareStream(ctx context.Context, name string, cfg broker.StreamConfig) error {
	if b.m.declare != nil && b.m.declare(b, ctx, name, &cfg) {
		return nil
	}
	return b.Broker.DeclareStream(ctx, name, cfg)
}

func (b *mutantStreams) Transactor(ctx context.Context, id string) (broker.Transactor, error) {
	if b.m.id != nil {
		id = b.m.id(id)
	}
	t, err := b.Broker.Transactor(ctx, id)
	if err != nil {
		return nil, err
	}
	return &mutantTransactor{t, b}, nil
}

type mutantTransactor struct {
	broker.Transactor
	b *mutantStreams
}

func (t *mutantTransactor) Begin(ctx context.Context) (broker.Tx, error) {
	tx, err := t.Transactor.Begin(ctx)
	if err != nil {
		return nil, err
	}
	return &mutantTx{Tx: tx, b: t.b}, nil
}

type mutantTx struct {
	broker.Tx
	b *mutantStreams
	n int
}

func (tx *mutantTx) Publish(ctx context.Context, s broker.Stream, rs ...broker.Record) error {
	if tx.b.m.txSend != nil {
		return tx.b.m.txSend(tx, ctx, s, rs)
	}
	return tx.Tx.Publish(ctx, s, rs...)
}

func (tx *mutantTx) CommitOffsets(ctx context.Context, c broker.GroupConsumer, rs ...*broker.Record) error {
	if tx.b.m.txCommit != nil {
		return tx.b.m.txCommit(tx, ctx, c.(*mutantMember), rs)
	}
	return tx.Tx.CommitOffsets(ctx, c, rs...)
}

func (tx *mutantTx) Commit(ctx context.Context) error {
	if tx.b.m.txEnd != nil {
		return tx.b.m.txEnd(tx, ctx, false)
	}
	return tx.Tx.Commit(ctx)
}

func (tx *mutantTx) Rollback(ctx context.Context) error {
	if tx.b.m.txEnd != nil {
		return tx.b.m.txEnd(tx, ctx, true)
	}
	return tx.Tx.Rollback(ctx)
}

type mutantStream struct {
	*memory.Stream
	b *mutantStreams
}

func (s *mutantStream) Capabilities() broker.StreamCapabilities {
	c := s.Stream.Capabilities()
	if s.b.m.caps != nil {
		s.b.m.caps(&c)
	}
	return c
}

func (s *mutantStream) Publish(ctx context.Context, r broker.Record) (broker.Receipt, error) {
	if s.b.m.send != nil {
		rs, err := s.b.m.send(s, ctx, []broker.Record{r})
		return rs[0], broker.ErrorAt(err, 0)
	}
	return s.Stream.Publish(ctx, r)
}

func (s *mutantStream) PublishBatch(ctx context.Context, rs []broker.Record) ([]broker.Receipt, error) {
	if s.b.m.send != nil {
		return s.b.m.send(s, ctx, append([]broker.Record(nil), rs...))
	}
	return s.Stream.PublishBatch(ctx, rs)
}

func (s *mutantStream) Consumer(ctx context.Context, group string, opts *broker.GroupOptions) (broker.GroupConsumer, error) {
	var o broker.GroupOptions
	if opts != nil {
		o = *opts
	}
	m := &mutantMember{s: s, taken: map[int32]broker.Position{}, at: map[int32]broker.Offset{}}
	if s.b.m.join != nil {
		group = s.b.m.join(s, group, &o)
	}
	m.opts, m.group = o, group
	if f := o.OnRevoked; f != nil {
		o.OnRevoked = func(ctx context.Context, ps []int32) { f(ctx, ps); m.revoked(ps) }
	}
	gc, err := s.Stream.Consumer(ctx, group, &o)
	if err != nil {
		return nil, err
	}
	m.GroupConsumer = gc.(*memory.GroupConsumer)
	s.b.w.mu.Lock()
	defer s.b.w.mu.Unlock()
	s.b.w.all = append(s.b.w.all, m)
	return m, nil
}

func (s *mutantStream) Read(ctx context.Context, r broker.Range) iter.Seq2[*broker.Record, error] {
	inner := s.Stream.Read(ctx, r)
	if s.b.m.read != nil {
		inner = s.b.m.read(s, ctx, r)
	}
	return func(yield func(*broker.Record, error) bool) {
		for rec, err := range inner {
			if rec != nil && s.b.m.record != nil {
				s.b.m.record(s, rec)
			}
			if !yield(rec, err) {
				return
			}
		}
	}
}

func (s *mutantStream) Lag(ctx context.Context, group string) ([]broker.PartitionLag, error) {
	if s.b.m.join != nil {
		group = s.b.m.join(s, group, &broker.GroupOptions{})
	}
	lags, err := s.Stream.Lag(ctx, group)
	if s.b.m.lag != nil {
		s.b.m.lag(s, lags)
	}
	return lags, err
}

func (s *mutantStream) Close() error {
	if s.b.m.closed != nil {
		return s.b.m.closed(s)
	}
	return s.Stream.Close()
}

type mutantMember struct {
	*memory.GroupConsumer
	s     *mutantStream
	group string
	opts  broker.GroupOptions

	mu     sync.Mutex
	at     map[int32]broker.Offset // last received
	taken  map[int32]broker.Position
	stash  []*broker.Record
	paused []int32 // guarded by mu
}

func (m *mutantMember) revoked(ps []int32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range ps {
		m.taken[p] = broker.Earliest()
		if o, ok := m.at[p]; ok {
			n, _ := o.Int64()
			m.taken[p] = broker.AtOffset(broker.NewOffset(n + 1))
		}
	}
}

func (m *mutantMember) Receive(ctx context.Context, max int) ([]*broker.Record, error) {
	if m.s.b.m.ctx != nil {
		ctx = m.s.b.m.ctx(ctx)
	}
	rs, err := m.receive(ctx, max)
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, rec := range rs {
		m.at[rec.Partition] = rec.Offset()
		if m.s.b.m.record != nil {
			m.s.b.m.record(m.s, rec)
		}
	}
	return rs, err
}

func (m *mutantMember) receive(ctx context.Context, max int) ([]*broker.Record, error) {
	if m.s.b.m.receive != nil {
		return m.s.b.m.receive(m, ctx, max)
	}
	for {
		rs, err := m.GroupConsumer.Receive(ctx, max)
		if !m.s.b.m.pauses || err != nil {
			return rs, err
		}
		m.mu.Lock()
		rs = slices.DeleteFunc(rs, func(r *broker.Record) bool { return slices.Contains(m.paused, r.Partition) })
		m.mu.Unlock()
		if len(rs) > 0 {
			return rs, nil
		}
	}
}

func (m *mutantMember) Commit(ctx context.Context, rs ...*broker.Record) error {
	if m.s.b.m.commit != nil {
		return m.s.b.m.commit(m, ctx, rs)
	}
	return m.GroupConsumer.Commit(ctx, rs...)
}

func (m *mutantMember) Seek(ctx context.Context, p int32, to broker.Position) error {
	if m.s.b.m.seek != nil {
		return m.s.b.m.seek(m, ctx, p, to)
	}
	return m.GroupConsumer.Seek(ctx, p, to)
}

func (m *mutantMember) Pause(ps ...int32) {
	if !m.s.b.m.noPause {
		m.GroupConsumer.Pause(ps...)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.paused = append(m.paused, ps...)
}

func (m *mutantMember) Resume(ps ...int32) {
	m.GroupConsumer.Resume(ps...)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.paused = slices.DeleteFunc(m.paused, func(p int32) bool { return slices.Contains(ps, p) })
}

func (m *mutantMember) Close() error {
	if m.s.b.m.leave != nil {
		return m.s.b.m.leave(m)
	}
	return m.GroupConsumer.Close()
}

// streamMutantHarness is the memory adapter's in virtual time, with the
// mutation around every connection.
func streamMutantHarness(t *testing.T, m *streamMutation, only ...string) Harness {
	var w *streamWorld
	return Harness{
		Name: "mutant", unreported: true, Kinds: Stream, Only: only, Patience: 24 * time.Hour, Million: 5000, Seed: 1,
		Around: func(_ T, run func(T)) {
			synctest.Test(t, func(t *testing.T) {
				server, err := memory.Open(t.Context(), &memory.Options{Profile: m.profile})
				if err != nil {
					t.Fatal(err)
				}
				w = &streamWorld{server: server, end: make(chan struct{}), kept: map[string]string{}}
				run(t)
				close(w.end)
				if err := server.Close(); err != nil {
					t.Error(err)
				}
			})
		},
		Open: func(context.Context) (broker.Broker, error) {
			return &mutantStreams{Broker: w.server.Connect(), m: m, w: w}, nil
		},
		StreamConfig: func(cfg *broker.StreamConfig) error {
			if cfg.MaxBytes == 0 {
				cfg.MaxBytes = 512 << 10
			}
			return nil
		},
	}
}

func TestStreamMutants(t *testing.T) {
	for i := range streamMutants {
		mu := &streamMutants[i]
		caught(t, mu.by, mu.name, func(t *testing.T) Harness { return streamMutantHarness(t, &mu.m, mu.by) })
	}
	t.Logf("%d mutants", len(streamMutants))
}

// The wrapper by itself changes nothing.
func TestNoStreamMutation(t *testing.T) {
	harmless(t, streamMutantHarness(t, &streamMutation{}), 45)
}
