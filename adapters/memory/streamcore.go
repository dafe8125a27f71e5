package memory

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/queuestream/broker"
)

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
	waiting []*consumerGroup // those with waiting calls of Receive, in no order
	turn    int              // of records without a key
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
	for _, g := range slices.Backward(s.waiting) { // since it leaves when it wakes
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
