package memory

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"sync"
	"time"

	"github.com/queuestream/broker"
)

var _ broker.Stream = (*Stream)(nil)

// Settings of StreamConfig.Options.
const (
	// OptionTombstoneRetention is how long a tombstone stays in a compacted
	// stream, as time.ParseDuration reads it; 24h by default.
	OptionTombstoneRetention = "tombstone-retention"
)

// A stream is what all handles of one stream share. One lock guards it, its
// logs and its groups.
type stream struct {
	srv        *server
	name       string
	id         int // order of locking
	identity   string
	cfg        broker.StreamConfig
	tombstones time.Duration

	mu      sync.Mutex
	deleted bool
	parts   []*partition
	groups  []*consumerGroup
	turn    int // of records without a key
}

func (s *server) declareStream(name string, cfg broker.StreamConfig) error {
	if !s.rules.streams {
		return broker.Unsupported("the profile %q has no streams", s.opts.Profile)
	}
	if err := s.rules.queueName(name); err != nil {
		return err
	}
	tombstones, err := s.rules.streamConfig(&cfg)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if st := s.streams[name]; st != nil {
		return st.redeclare(&cfg)
	}
	s.streamIDs++
	st := &stream{srv: s, name: name, id: s.streamIDs, identity: broker.NewID(), cfg: cfg, tombstones: tombstones}
	st.grow(cfg.Partitions)
	s.streams[name] = st
	return nil
}

const maxPartitions = 10_000

// streamConfig checks what a stream is declared with and fills in defaults.
func (r *rules) streamConfig(cfg *broker.StreamConfig) (tombstones time.Duration, err error) {
	if cfg.Partitions == 0 {
		cfg.Partitions = 1
	}
	switch {
	case cfg.Partitions < 0 || cfg.Partitions > maxPartitions:
		return 0, broker.Invalid("Partitions %d: want 0 to %d", cfg.Partitions, maxPartitions)
	case cfg.Replicas < 0:
		return 0, broker.Invalid("Replicas %d: must not be negative", cfg.Replicas)
	case cfg.Replicas > 1:
		return 0, broker.Unsupported("Replicas %d: there is one copy", cfg.Replicas)
	case cfg.Retention < 0 || cfg.Retention > broker.MaxDuration:
		return 0, broker.Invalid("Retention %v: want 0 to %v", cfg.Retention, broker.MaxDuration)
	case cfg.RetentionBytes < 0:
		return 0, broker.Invalid("RetentionBytes %d: must not be negative", cfg.RetentionBytes)
	case cfg.MaxBytes < 0:
		return 0, broker.Invalid("MaxBytes %d: must not be negative", cfg.MaxBytes)
	case cfg.Compact && !r.stream.Compaction:
		return 0, broker.Unsupported("Compact")
	}
	tombstones = 24 * time.Hour
	for key, value := range cfg.Options {
		if key != OptionTombstoneRetention {
			return 0, broker.Unsupported("Options[%q]: want %s", key, OptionTombstoneRetention)
		}
		if tombstones, err = time.ParseDuration(value); err != nil || tombstones < 0 || tombstones > broker.MaxDuration {
			return 0, broker.Invalid("Options[%q] %q: want a duration", key, value)
		}
	}
	return tombstones, nil
}

// redeclare adds partitions; anything else must be equal.
func (s *stream) redeclare(cfg *broker.StreamConfig) error {
	for _, f := range []struct {
		name      string
		has, want any
	}{
		{"Retention", s.cfg.Retention, cfg.Retention},
		{"RetentionBytes", s.cfg.RetentionBytes, cfg.RetentionBytes},
		{"Compact", s.cfg.Compact, cfg.Compact},
		{"MaxBytes", s.cfg.MaxBytes, cfg.MaxBytes},
		{OptionTombstoneRetention, s.cfg.Options[OptionTombstoneRetention], cfg.Options[OptionTombstoneRetention]},
	} {
		if f.has != f.want {
			return fmt.Errorf("%w: %s is %v, not %v", broker.ErrConflict, f.name, f.has, f.want)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch n := len(s.parts); {
	case cfg.Partitions < n:
		return fmt.Errorf("%w: Partitions is %d, not %d", broker.ErrConflict, n, cfg.Partitions)
	case cfg.Partitions > n && !s.srv.rules.stream.Growth:
		return fmt.Errorf("%w: Partitions is %d, not %d, and cannot grow", broker.ErrConflict, n, cfg.Partitions)
	}
	s.grow(cfg.Partitions)
	for _, g := range s.groups {
		g.rebalance()
	}
	return nil
}

// grow adds partitions up to n. s.mu is held, or s is new.
func (s *stream) grow(n int) {
	for len(s.parts) < n {
		p := &partition{id: int32(len(s.parts))}
		if s.cfg.Compact {
			p.latest = map[string]int64{}
		}
		s.parts = append(s.parts, p)
	}
}

func (s *stream) delete() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deleted = true
	s.parts = nil
	for _, g := range s.groups {
		for _, m := range slices.Clone(g.members) {
			m.lose()
			m.wake()
		}
	}
	s.groups = nil
}

func (s *server) stream(name string) (*stream, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	st := s.streams[name]
	if st == nil {
		return nil, broker.ErrNotFound
	}
	return st, nil
}

// capabilities returns what handles of the stream honour.
func (s *stream) capabilities() broker.StreamCapabilities {
	c := s.srv.rules.stream
	if s.cfg.MaxBytes > 0 {
		c.MaxBytes = s.cfg.MaxBytes
	}
	return c
}

// Stream opens a stream that was declared.
func (b *Broker) Stream(ctx context.Context, name string, opts *broker.StreamOptions) (broker.Stream, error) {
	h, err := b.openStream(ctx, name, opts)
	if err != nil {
		return nil, opError("open stream", name, err)
	}
	return h, nil
}

func (b *Broker) openStream(ctx context.Context, name string, opts *broker.StreamOptions) (*Stream, error) {
	if err := b.check(ctx); err != nil {
		return nil, err
	}
	if !b.srv.rules.streams {
		return nil, broker.Unsupported("the profile %q has no streams", b.srv.opts.Profile)
	}
	if err := b.srv.rules.queueName(name); err != nil {
		return nil, err
	}
	s, err := b.srv.stream(name)
	if err != nil {
		return nil, err
	}
	h := &Stream{b: b, s: s, caps: s.capabilities(), gate: newGate(), members: map[*GroupConsumer]struct{}{}}
	if opts != nil {
		if opts.Producer != "" && !h.caps.Dedup {
			return nil, broker.Unsupported("Producer: the stream does not deduplicate by producer")
		}
		if err := h.caps.Satisfies(opts.Require); err != nil {
			return nil, err
		}
	}
	return h, b.keep(h)
}

// A Stream is one handle of a stream. It is safe for concurrent use.
type Stream struct {
	b    *Broker
	s    *stream
	caps broker.StreamCapabilities

	gate     *gate
	mu       sync.Mutex
	isClosed bool
	members  map[*GroupConsumer]struct{}
}

// Name returns the stream's name.
func (h *Stream) Name() string { return h.s.name }

// Identity does what [broker.Identifier] promises.
func (h *Stream) Identity(context.Context) (string, error) { return h.s.identity, nil }

// Capabilities returns what this handle honours.
func (h *Stream) Capabilities() broker.StreamCapabilities { return h.caps }

// check returns the error that keeps an operation from starting.
func (h *Stream) check(ctx context.Context) error {
	if ctx.Err() != nil {
		return broker.ContextError(ctx)
	}
	return h.ended()
}

func (h *Stream) connection() *Broker { return h.b }

func (h *Stream) ended() error {
	if h.gate.ended() {
		return broker.ErrClosed
	}
	return nil
}

// reach is check for a call that goes to the broker.
func (h *Stream) reach(ctx context.Context) error {
	if err := h.check(ctx); err != nil {
		return err
	}
	if f := h.s.srv.faults.Load(); f != nil {
		return f.reach(ctx, h)
	}
	return nil
}

// send begins a publish: nil without faults.
func (h *Stream) send(ctx context.Context) (*sending, error) {
	f := h.s.srv.faults.Load()
	if f == nil {
		return nil, nil
	}
	if err := h.check(ctx); err != nil {
		return nil, err
	}
	return f.send(ctx, h)
}

// Publish appends a copy of r.
func (h *Stream) Publish(ctx context.Context, r broker.Record) (broker.Receipt, error) {
	s, err := h.send(ctx)
	if err != nil {
		return broker.Receipt{}, opError("publish", h.s.name, err)
	}
	receipt, err := h.publish(ctx, &r, s)
	if s != nil && err == nil {
		err = s.answer(ctx)
	}
	return receipt, opError("publish", h.s.name, err)
}

// publish appends r, as a part of s unless that is nil.
func (h *Stream) publish(ctx context.Context, r *broker.Record, s *sending) (broker.Receipt, error) {
	if err := h.check(ctx); err != nil {
		return broker.Receipt{}, err
	}
	if err := broker.ValidateRecord(r, &h.caps); err != nil {
		return broker.Receipt{}, err
	}
	if s == nil {
		return h.store(r)
	}
	_, after, err := s.one()
	if err != nil {
		return broker.Receipt{}, err
	}
	receipt, err := h.store(r)
	return receipt, after(err)
}

func (h *Stream) store(r *broker.Record) (broker.Receipt, error) {
	h.s.mu.Lock()
	defer h.s.mu.Unlock()
	return h.s.store(r, nil)
}

// PublishBatch appends copies of rs in order, each on its own.
func (h *Stream) PublishBatch(ctx context.Context, rs []broker.Record) ([]broker.Receipt, error) {
	receipts := make([]broker.Receipt, len(rs))
	var errs []error
	failed := func(i int, err error) {
		if errs == nil {
			errs = make([]error, len(rs))
		}
		if err != nil && errs[i] == nil {
			errs[i] = opError("publish", h.s.name, err)
		}
	}
	s, sendErr := h.send(ctx)
	for i := range rs {
		err, r := sendErr, rs[i]
		if err == nil {
			receipts[i], err = h.publish(ctx, &r, s)
		}
		if err != nil {
			failed(i, err)
		}
	}
	if s != nil {
		err := s.answer(ctx)
		for i := range rs {
			failed(i, err)
		}
	}
	return receipts, broker.NewBatchError(errs)
}

// store appends r to its partition. s.mu is held.
func (s *stream) store(r *broker.Record, tx *txState) (broker.Receipt, error) {
	p, err := s.partitionOf(r)
	if err != nil {
		return broker.Receipt{}, err
	}
	t := time.Now()
	if r.Time().IsZero() {
		r.SetTime(t)
	}
	offset := p.append(r, tx)
	if p.latest != nil && tx == nil {
		p.supersede(string(r.Key), offset)
	}
	s.retain(p, t)
	for _, g := range s.groups {
		if h := g.owner(p.id); h != nil {
			h.m.wake()
		}
	}
	return broker.Receipt{
		ID: fmtID(p.id, offset), Partition: p.id, Offset: broker.NewOffset(offset),
	}, nil
}

// fmtID is the stable id of a record within its stream.
func fmtID(partition int32, offset int64) string { return fmt.Sprintf("%d-%d", partition, offset) }

func (s *stream) partitionOf(r *broker.Record) (*partition, error) {
	if s.deleted {
		return nil, broker.ErrNotFound
	}
	n := len(s.parts)
	switch {
	case r.Pin && int(r.Partition) >= n:
		return nil, fmt.Errorf("%w: partition %d: the stream has %d", broker.ErrNotFound, r.Partition, n)
	case r.Pin:
		return s.parts[r.Partition], nil
	case len(r.Key) > 0:
		return s.parts[int(murmur2(r.Key)&0x7fffffff)%n], nil
	}
	s.turn++
	return s.parts[s.turn%n], nil
}

// murmur2 is the hash that Kafka's clients select partitions with.
func murmur2(b []byte) uint32 {
	const m = 0x5bd1e995
	h := uint32(0x9747b28c) ^ uint32(len(b))
	for ; len(b) >= 4; b = b[4:] {
		k := uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
		k *= m
		k ^= k >> 24
		h = h*m ^ k*m
	}
	switch len(b) {
	case 3:
		h ^= uint32(b[2]) << 16
		fallthrough
	case 2:
		h ^= uint32(b[1]) << 8
		fallthrough
	case 1:
		h = (h ^ uint32(b[0])) * m
	}
	h = (h ^ h>>13) * m
	return h ^ h>>15
}

// retain applies retention to p. s.mu is held.
func (s *stream) retain(p *partition, now time.Time) {
	p.settle(now.UnixNano())
	before, tombstones, size := int64(-1<<62), int64(-1<<62), s.cfg.RetentionBytes
	if s.cfg.Retention > 0 {
		before = now.Add(-s.cfg.Retention).UnixMilli()
	}
	if size == 0 && p.latest == nil {
		size = s.srv.opts.MaxPartitionBytes
	}
	if p.latest != nil {
		tombstones = now.Add(-s.tombstones).UnixMilli()
	}
	p.retain(before, size, tombstones)
}

// resolve turns a position into an offset of p; what has no meaning there is
// ErrInvalid. s.mu is held.
func (s *stream) resolve(to broker.Position, p *partition) (int64, error) {
	switch to.Kind() {
	case broker.PositionDefault, broker.PositionEarliest:
		return p.first, nil
	case broker.PositionLatest, broker.PositionNow:
		return p.next, nil
	case broker.PositionTime:
		return p.atTime(to.Time().UnixMilli()), nil
	case broker.PositionOffset:
		n, ok := to.Offset().Int64()
		if !ok || n < p.first || n > p.next {
			return 0, fmt.Errorf("%w: offset %v of partition %d: want %d to %d", broker.ErrOutOfRange, to.Offset(), p.id, p.first, p.next)
		}
		return n, nil
	}
	return 0, broker.Invalid("position %v", to)
}

// Partitions returns every partition with its first and next offset.
func (h *Stream) Partitions(ctx context.Context) ([]broker.Partition, error) {
	if err := h.reach(ctx); err != nil {
		return nil, opError("partitions", h.s.name, err)
	}
	s := h.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.deleted {
		return nil, opError("partitions", s.name, broker.ErrNotFound)
	}
	ps := make([]broker.Partition, len(s.parts))
	for i, p := range s.parts {
		s.retain(p, time.Now())
		ps[i] = broker.Partition{ID: p.id, First: broker.NewOffset(p.first), Next: broker.NewOffset(p.next)}
	}
	return ps, nil
}

// Lag returns the group's lag; a group that never was has all of it.
func (h *Stream) Lag(ctx context.Context, group string) ([]broker.PartitionLag, error) {
	if err := h.reach(ctx); err != nil {
		return nil, opError("lag", h.s.name, err)
	}
	s := h.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.deleted {
		return nil, opError("lag", s.name, broker.ErrNotFound)
	}
	g := s.group(group)
	lags := make([]broker.PartitionLag, len(s.parts))
	t := time.Now()
	for i, p := range s.parts {
		s.retain(p, t)
		l := broker.PartitionLag{Partition: p.id}
		from, committed := p.first, false
		if g != nil {
			committed = g.readCommitted
			if n, ok := g.offsets[p.id]; ok {
				l.Committed, l.HasCommit = broker.NewOffset(n), true
				from = max(n, p.first)
			}
		}
		end := p.end(committed, t.UnixNano())
		l.Next = broker.NewOffset(end)
		l.Lag = p.count(from, end, committed)
		lags[i] = l
	}
	return lags, nil
}

// readBatch is how many records Read copies at once.
const readBatch = 64

// Read does what broker.Stream promises, one partition after the other.
func (h *Stream) Read(ctx context.Context, r broker.Range) iter.Seq2[*broker.Record, error] {
	return func(yield func(*broker.Record, error) bool) {
		spans, err := h.spans(ctx, &r)
		if err != nil {
			yield(nil, opError("read", h.s.name, err))
			return
		}
		for _, sp := range spans {
			for sp.from < sp.until {
				batch, err := h.readSome(ctx, &sp, r.ReadCommitted)
				if err != nil {
					yield(nil, opError("read", h.s.name, err))
					return
				}
				for _, rec := range batch {
					if !yield(rec, nil) {
						return
					}
				}
			}
		}
	}
}

// A span is what is left to read of a partition.
type span struct {
	partition   int32
	from, until int64
}

// spans fixes what is to be read.
func (h *Stream) spans(ctx context.Context, r *broker.Range) ([]span, error) {
	if err := h.reach(ctx); err != nil {
		return nil, err
	}
	if r.ReadCommitted && !h.caps.Transactions {
		return nil, broker.Unsupported("ReadCommitted: the stream has no transactions")
	}
	s := h.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.deleted {
		return nil, broker.ErrNotFound
	}
	ids := r.Partitions
	if ids == nil {
		for i := range s.parts {
			ids = append(ids, int32(i))
		}
	}
	t := time.Now()
	spans := make([]span, 0, len(ids))
	for _, id := range ids {
		if id < 0 || int(id) >= len(s.parts) {
			return nil, fmt.Errorf("%w: partition %d: the stream has %d", broker.ErrNotFound, id, len(s.parts))
		}
		p := s.parts[id]
		s.retain(p, t)
		from, err := s.resolve(r.From, p)
		if err != nil {
			return nil, fmt.Errorf("from: %w", err)
		}
		until := p.end(r.ReadCommitted, t.UnixNano())
		switch r.Until.Kind() {
		case broker.PositionDefault, broker.PositionNow, broker.PositionLatest:
		case broker.PositionOffset:
			if n, ok := r.Until.Offset().Int64(); ok {
				until = min(until, n)
			}
		default:
			n, err := s.resolve(r.Until, p)
			if err != nil {
				return nil, fmt.Errorf("until: %w", err)
			}
			until = min(until, n)
		}
		spans = append(spans, span{id, from, until})
	}
	return spans, nil
}

// readSome reads the next records of a span and moves it on.
func (h *Stream) readSome(ctx context.Context, sp *span, committed bool) ([]*broker.Record, error) {
	if err := h.reach(ctx); err != nil {
		return nil, err
	}
	h.s.mu.Lock()
	defer h.s.mu.Unlock()
	if h.s.deleted {
		return nil, broker.ErrNotFound
	}
	var rs []*broker.Record
	rs, sp.from = h.s.parts[sp.partition].fetch(nil, sp.from, sp.until, readBatch, committed, nil)
	return rs, nil
}

// Close closes the handle and its members of groups. It may be called again.
func (h *Stream) Close() error {
	h.mu.Lock()
	if h.isClosed {
		h.mu.Unlock()
		return nil
	}
	h.isClosed = true
	close(h.gate.closed)
	ms := h.members
	h.members = nil
	h.mu.Unlock()
	h.s.srv.wake()
	for m := range ms {
		m.shut()
	}
	h.b.forget(h)
	return nil
}

func (h *Stream) all() []*GroupConsumer {
	h.mu.Lock()
	defer h.mu.Unlock()
	ms := make([]*GroupConsumer, 0, len(h.members))
	for m := range h.members {
		ms = append(ms, m)
	}
	return ms
}

func (h *Stream) stop(err error) {
	for _, m := range h.all() {
		m.stop(err)
	}
}

func (h *Stream) drain(ctx context.Context) error {
	for _, m := range h.all() {
		if err := m.drain(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (h *Stream) disconnect() {
	for _, m := range h.all() {
		h.s.mu.Lock()
		m.cut()
		m.wake()
		h.s.mu.Unlock()
	}
}
