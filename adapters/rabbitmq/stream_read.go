package rabbitmq

import (
	"context"
	"errors"
	"iter"
	"slices"
	"sync"
	"time"

	samqp "github.com/rabbitmq/rabbitmq-stream-go-client/pkg/amqp"
	"github.com/rabbitmq/rabbitmq-stream-go-client/pkg/stream"

	"github.com/queuestream/broker"
)

// A feed is one subscription to one partition.
type feed struct {
	c      *stream.Consumer
	closed stream.ChannelClose
}

// subscribe delivers a partition's records from spec on to fn, which may block;
// it must return once its own side is stopped, since close waits for it.
func (s *Stream) subscribe(ctx context.Context, partition int32, spec stream.OffsetSpecification, fn func(offset int64, entries int, m *samqp.Message)) (*feed, error) {
	handler := func(cc stream.ConsumerContext, m *samqp.Message) {
		fn(cc.Consumer.GetOffset(), int(cc.GetEntriesCount()), m)
	}
	return acquire(ctx, s.b.streams, func(env *stream.Environment) (*feed, error) {
		c, err := env.NewConsumer(s.partitions[partition], handler,
			stream.NewConsumerOptions().SetOffset(spec).SetManualCommit().SetClientProvidedName(s.b.o.Name))
		if err != nil {
			return nil, err
		}
		return &feed{c: c, closed: c.NotifyClose()}, nil
	}, func(f *feed) { f.close(s.b.o.CloseTimeout) })
}

// close unsubscribes; it is bounded by CloseTimeout.
func (f *feed) close(timeout time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	// It fails only if the subscription is gone already, or the broker stalls.
	_, _ = call(ctx, func() (struct{}, error) { return struct{}{}, f.c.Close() }, nil)
}

// bounds returns the first offset of a partition and the one after its last
// record. Stored offsets behind the last record are not counted.
func (s *Stream) bounds(ctx context.Context, partition int32) (first, next int64, err error) {
	stats, err := do(ctx, s.b.streams, func(env *stream.Environment) (*stream.StreamStats, error) {
		return env.StreamStats(s.partitions[partition])
	})
	if err != nil {
		return 0, 0, err
	}
	if first, err = stats.FirstOffset(); err != nil {
		return 0, 0, nil // an empty stream has none
	}
	// The statistics tell where the last chunk begins; reading it tells where
	// it ends.
	type end struct{ next int64 }
	got := make(chan end, 1)
	base, count := int64(-1), 0
	f, err := s.subscribe(ctx, partition, stream.OffsetSpecification{}.Last(), func(offset int64, entries int, _ *samqp.Message) {
		if base < 0 {
			base, count = offset, entries
			select {
			case got <- end{base + int64(count)}:
			default:
			}
		}
	})
	if err != nil {
		return 0, 0, err
	}
	defer f.close(s.b.o.CloseTimeout)
	wait, cancel := context.WithTimeout(ctx, s.b.o.DialTimeout)
	defer cancel()
	select {
	case e := <-got:
		return first, e.next, nil
	case <-f.closed:
		return 0, 0, broker.ErrUnavailable
	case <-wait.Done():
		if ctx.Err() != nil {
			return 0, 0, broker.ContextError(ctx)
		}
		return first, first, nil // chunks, but no record among them
	}
}

// Partitions implements [broker.Stream].
func (s *Stream) Partitions(ctx context.Context) ([]broker.Partition, error) {
	ps := make([]broker.Partition, len(s.partitions))
	err := s.each(func(i int) error {
		first, next, err := s.bounds(ctx, int32(i)) //nolint:gosec // few
		ps[i] = broker.Partition{ID: int32(i), First: broker.NewOffset(first), Next: broker.NewOffset(next)}
		return err
	})
	if err != nil {
		return nil, fail("partitions", s.name, err)
	}
	return ps, nil
}

// each runs fn for every partition at once.
func (s *Stream) each(fn func(i int) error) error {
	if s.ctx.Err() != nil {
		return broker.ErrClosed
	}
	errs := make([]error, len(s.partitions))
	var wg sync.WaitGroup
	for i := range s.partitions {
		wg.Go(func() { errs[i] = fn(i) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// A start says where to read a partition from.
type start struct {
	spec   stream.OffsetSpecification
	offset int64 // records below are skipped
	ms     int64 // and those before this time, until the first that is not
}

// startAt resolves a position; first and next bound the partition.
func startAt(p broker.Position, first, next int64) (start, error) {
	var o stream.OffsetSpecification
	switch p.Kind() {
	case broker.PositionDefault, broker.PositionEarliest:
		return start{spec: o.First(), offset: first}, nil
	case broker.PositionLatest, broker.PositionNow:
		return start{spec: o.Offset(next), offset: next}, nil
	case broker.PositionTime:
		return start{spec: o.Timestamp(p.Time().UnixMilli()), ms: p.Time().UnixMilli()}, nil
	case broker.PositionOffset:
		n, ok := p.Offset().Int64()
		if !ok || n < first || n > next {
			return start{}, errors.Join(broker.ErrOutOfRange,
				broker.Invalid("offset %s: the partition has %d to %d", p.Offset(), first, next))
		}
		return start{spec: o.Offset(n), offset: n}, nil
	}
	return start{}, broker.Invalid("position %v cannot be used here", p)
}

// pass tells whether a record is at or behind the start; times count only until
// the first record that passes.
func (s *start) pass(offset int64, r *broker.Record) bool {
	if offset < s.offset {
		return false
	}
	if s.ms != 0 && r.Time().UnixMilli() < s.ms {
		return false
	}
	s.ms = 0
	return true
}

// Read implements [broker.Stream].
func (s *Stream) Read(ctx context.Context, r broker.Range) iter.Seq2[*broker.Record, error] {
	return func(yield func(*broker.Record, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(s.ctx, cancel)()
		if err := s.read(ctx, r, func(rec *broker.Record) bool { return yield(rec, nil) }); err != nil {
			if s.ctx.Err() != nil {
				err = broker.ErrClosed
			}
			yield(nil, fail("read", s.name, err))
		}
	}
}

type readItem struct {
	r   *broker.Record
	err error // of its partition: the end of everything
	end bool  // of its partition
}

func (s *Stream) read(ctx context.Context, r broker.Range, yield func(*broker.Record) bool) error {
	if r.ReadCommitted {
		return broker.Unsupported("ReadCommitted: streams have no transactions")
	}
	parts := r.Partitions
	if parts == nil {
		for i := range s.partitions {
			parts = append(parts, int32(i)) //nolint:gosec // few
		}
	}
	for _, p := range parts {
		if p < 0 || int(p) >= len(s.partitions) {
			return broker.Invalid("partition %d: there are %d", p, len(s.partitions))
		}
	}
	if len(slices.Compact(slices.Sorted(slices.Values(parts)))) != len(parts) {
		return broker.Invalid("Partitions %v: one is given twice", parts)
	}
	ctx, cancel := context.WithCancel(ctx)
	items := make(chan readItem, 256)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for _, p := range parts {
		wg.Go(func() {
			err := s.readPartition(ctx, p, r, items)
			select {
			case items <- readItem{err: err, end: true}:
			case <-ctx.Done():
			}
		})
	}
	for left := len(parts); left > 0; {
		select {
		case it := <-items:
			switch {
			case it.err != nil:
				return it.err
			case it.end:
				left--
			case !yield(it.r):
				return nil
			}
		case <-ctx.Done():
			return broker.ContextError(ctx)
		}
	}
	return nil
}

// readPartition sends a partition's records of a range to out. When the
// connection breaks it goes on behind the last one.
func (s *Stream) readPartition(ctx context.Context, p int32, r broker.Range, out chan<- readItem) error {
	first, next, err := s.bounds(ctx, p)
	if err != nil {
		return err
	}
	from, err := startAt(r.From, first, next)
	if err != nil {
		return err
	}
	until, untilMS := next, int64(0)
	switch r.Until.Kind() {
	case broker.PositionDefault, broker.PositionNow, broker.PositionLatest:
	case broker.PositionOffset:
		if n, ok := r.Until.Offset().Int64(); ok {
			until = min(until, n)
		}
	case broker.PositionTime:
		untilMS = r.Until.Time().UnixMilli()
	case broker.PositionEarliest:
		until = first
	default:
		return broker.Invalid("Until %v cannot be used here", r.Until)
	}
	for from.offset < until {
		done, err := s.readSome(ctx, p, &from, until, untilMS, out)
		if done || err != nil {
			return err
		}
	}
	return nil
}

// readSome reads over one subscription. It reports whether the range is done.
func (s *Stream) readSome(ctx context.Context, p int32, from *start, until, untilMS int64, out chan<- readItem) (bool, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan struct{})
	finished := false // written by the handler before it closes ended
	at := *from
	var mu sync.Mutex
	f, err := s.subscribe(ctx, p, from.spec, func(offset int64, _ int, m *samqp.Message) {
		mu.Lock()
		defer mu.Unlock()
		if finished || ctx.Err() != nil {
			return
		}
		if offset >= until {
			finished = true
			close(ended)
			return
		}
		rec := decodeRecord(m, p)
		if at.pass(offset, rec) {
			if untilMS != 0 && rec.Time().UnixMilli() >= untilMS {
				finished = true
				close(ended)
				return
			}
			rec.Bind(broker.NewOffset(offset), nil)
			select {
			case out <- readItem{r: rec}:
				at.offset = offset + 1
				at.spec = stream.OffsetSpecification{}.Offset(offset + 1)
			case <-ctx.Done():
				return
			}
		}
		if offset == until-1 {
			finished = true
			close(ended)
		}
	})
	if err != nil {
		return false, err
	}
	select {
	case <-ended:
	case <-f.closed:
	case <-ctx.Done():
	}
	cancel()
	f.close(s.b.o.CloseTimeout)
	mu.Lock()
	defer mu.Unlock()
	*from = at
	select {
	case <-ended:
		return true, nil
	default:
		return false, nil
	}
}

// Lag implements [broker.Stream]. It is an upper bound: stored offsets take
// offsets themselves.
func (s *Stream) Lag(ctx context.Context, group string) ([]broker.PartitionLag, error) {
	ls := make([]broker.PartitionLag, len(s.partitions))
	err := s.each(func(i int) error {
		p := int32(i) //nolint:gosec // few
		first, next, err := s.bounds(ctx, p)
		if err != nil {
			return err
		}
		stored, ok, err := s.stored(ctx, group, p)
		if err != nil {
			return err
		}
		l := broker.PartitionLag{Partition: p, HasCommit: ok, Next: broker.NewOffset(next), Lag: next - first}
		if ok {
			l.Committed = broker.NewOffset(stored)
			l.Lag = max(0, next-max(first, stored))
		}
		ls[i] = l
		return nil
	})
	if err != nil {
		return nil, fail("lag", s.name, err)
	}
	return ls, nil
}

// stored returns the offset that a group reads next, and whether it has one.
// RabbitMQ's clients store the last offset that they processed; so do we.
func (s *Stream) stored(ctx context.Context, group string, p int32) (int64, bool, error) {
	type answer struct {
		offset int64
		ok     bool
	}
	a, err := do(ctx, s.b.streams, func(env *stream.Environment) (answer, error) {
		n, err := env.QueryOffset(group, s.partitions[p])
		if errors.Is(err, stream.OffsetNotFoundError) {
			return answer{}, nil
		}
		return answer{n + 1, err == nil}, err
	})
	return a.offset, a.ok, err
}

// store sets the offset that a group reads next. The broker does not answer a
// store: a query follows it until it is seen.
func (s *Stream) store(ctx context.Context, group string, p int32, next int64) error {
	for {
		_, err := do(ctx, s.b.streams, func(env *stream.Environment) (struct{}, error) {
			return struct{}{}, env.StoreOffset(group, s.partitions[p], next-1)
		})
		if err != nil {
			return err
		}
		for range 20 {
			got, ok, err := s.stored(ctx, group, p)
			if err != nil {
				return err
			}
			if ok && got == next {
				return nil
			}
			sleep(ctx, 5*time.Millisecond)
		}
		if err := broker.ContextError(ctx); err != nil {
			return broker.UnknownOutcome(err)
		}
	}
}
