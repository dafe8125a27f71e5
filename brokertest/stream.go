package brokertest

import (
	"context"
	"hash/maphash"
	"iter"
	"slices"
	"sync"
	"time"

	"github.com/queuestream/broker"
)

// A Stream is a Stream without a broker: what is published is read in order of
// its partition. A group has one member at a time, which gets all partitions;
// Revoke and Lose take some away from it. Retention, transactions and SetTime's
// refusal are left to the real adapters. Use NewStream.
type Stream struct {
	// Caps are what Capabilities returns; change them before use.
	Caps broker.StreamCapabilities
	// CommitErr, unless nil, is asked before each commit; an error refuses it.
	CommitErr func(rs []*broker.Record) error
	// ReceiveErr, unless nil, is asked at the beginning of each Receive.
	ReceiveErr func() error

	name   string
	seed   maphash.Seed
	mu     sync.Mutex
	logs   [][]broker.Record
	next   int // partition of the next record without a key
	groups map[string]*group
	wake   chan struct{}
	closed bool
}

type group struct {
	committed map[int32]int64 // the next offset to read
	commits   int             // calls of Commit that stored something
	member    *member
}

// NewStream returns an empty stream.
func NewStream(name string, partitions int) *Stream {
	return &Stream{
		name: name, seed: maphash.MakeSeed(), logs: make([][]broker.Record, partitions),
		groups: map[string]*group{}, wake: make(chan struct{}),
		Caps: broker.StreamCapabilities{
			Headers: true, Tombstones: true, Timestamps: true, SeekTime: true, Fencing: true, ExactLag: true, Offsets: true,
		},
	}
}

// Name implements [broker.Stream].
func (s *Stream) Name() string { return s.name }

// Adapter returns the name that errors carry.
func (s *Stream) Adapter() string { return adapter }

// Capabilities implements [broker.Stream].
func (s *Stream) Capabilities() broker.StreamCapabilities { return s.Caps }

// Publish implements [broker.Stream].
func (s *Stream) Publish(ctx context.Context, r broker.Record) (broker.Receipt, error) {
	err := broker.ContextError(ctx)
	if err == nil {
		err = broker.ValidateRecord(&r, &s.Caps)
	}
	if err == nil && r.Pin && int(r.Partition) >= len(s.logs) {
		err = broker.Invalid("Partition %d: the stream has %d", r.Partition, len(s.logs))
	}
	if err != nil {
		return broker.Receipt{}, s.fail("publish", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return broker.Receipt{}, s.fail("publish", broker.ErrClosed)
	}
	switch {
	case r.Pin:
	case len(r.Key) > 0:
		r.Partition = int32(maphash.Bytes(s.seed, r.Key) % uint64(len(s.logs))) //nolint:gosec // below len
	default:
		r.Partition = int32(s.next % len(s.logs)) //nolint:gosec // below len
		s.next++
	}
	r.Pin = false
	r.Key, r.Value = slices.Clone(r.Key), slices.Clone(r.Value)
	if r.Time().IsZero() {
		r.SetTime(time.Now())
	}
	o := broker.NewOffset(int64(len(s.logs[r.Partition])))
	r.Bind(o, nil)
	s.logs[r.Partition] = append(s.logs[r.Partition], r)
	s.wakeAll()
	return broker.Receipt{Partition: r.Partition, Offset: o}, nil
}

// PublishBatch implements [broker.Stream].
func (s *Stream) PublishBatch(ctx context.Context, rs []broker.Record) ([]broker.Receipt, error) {
	receipts, errs := make([]broker.Receipt, len(rs)), make([]error, len(rs))
	for i, r := range rs {
		receipts[i], errs[i] = s.Publish(ctx, r)
	}
	return receipts, broker.NewBatchError(errs)
}

// Partitions implements [broker.Stream].
func (s *Stream) Partitions(context.Context) ([]broker.Partition, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]broker.Partition, len(s.logs))
	for i, l := range s.logs {
		out[i] = broker.Partition{ID: int32(i), Next: broker.NewOffset(int64(len(l)))} //nolint:gosec // small
	}
	return out, nil
}

// Read implements [broker.Stream].
func (s *Stream) Read(ctx context.Context, rg broker.Range) iter.Seq2[*broker.Record, error] {
	return func(yield func(*broker.Record, error) bool) {
		s.mu.Lock()
		var rs []broker.Record
		for p, l := range s.logs {
			if rg.Partitions != nil && !slices.Contains(rg.Partitions, int32(p)) { //nolint:gosec // small
				continue
			}
			from, until := position(l, rg.From, 0), position(l, rg.Until, len(l))
			rs = append(rs, l[min(from, until):until]...)
		}
		s.mu.Unlock()
		for i := range rs {
			if err := broker.ContextError(ctx); err != nil {
				yield(nil, s.fail("read", err))
				return
			}
			if !yield(&rs[i], nil) {
				return
			}
		}
	}
}

func position(l []broker.Record, p broker.Position, otherwise int) int {
	switch p.Kind() {
	case broker.PositionEarliest:
		return 0
	case broker.PositionLatest, broker.PositionNow:
		return len(l)
	case broker.PositionOffset:
		n, _ := p.Offset().Int64()
		return int(min(max(n, 0), int64(len(l))))
	case broker.PositionTime:
		if i := slices.IndexFunc(l, func(r broker.Record) bool { return !r.Time().Before(p.Time()) }); i >= 0 {
			return i
		}
		return len(l)
	}
	return otherwise
}

// Lag implements [broker.Stream].
func (s *Stream) Lag(_ context.Context, name string) ([]broker.PartitionLag, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.group(name)
	out := make([]broker.PartitionLag, len(s.logs))
	for i, l := range s.logs {
		p := int32(i) //nolint:gosec // small
		c, ok := g.committed[p]
		out[i] = broker.PartitionLag{
			Partition: p, Committed: broker.NewOffset(c), HasCommit: ok,
			Next: broker.NewOffset(int64(len(l))), Lag: int64(len(l)) - c,
		}
	}
	return out, nil
}

// Committed returns the offset that group would read next in partition.
func (s *Stream) Committed(name string, partition int32) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.group(name).committed[partition]
}

// Commits returns how many calls of Commit stored something for group.
func (s *Stream) Commits(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.group(name).commits
}

// Close implements [broker.Stream].
func (s *Stream) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.wakeAll()
	return nil
}

func (s *Stream) fail(op string, err error) error {
	return &broker.Error{Op: op, Adapter: adapter, Name: s.name, Err: err}
}

func (s *Stream) wakeAll() {
	close(s.wake)
	s.wake = make(chan struct{})
}

func (s *Stream) group(name string) *group {
	g := s.groups[name]
	if g == nil {
		g = &group{committed: map[int32]int64{}}
		s.groups[name] = g
	}
	return g
}
