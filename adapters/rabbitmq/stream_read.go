package rabbitmq

import (
	"context"
	"errors"
	"iter"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/rabbitmq/internal/streamwire"
)

// subscribe reads a partition from spec on, over a node that has a copy.
func (s *Stream) subscribe(ctx context.Context, partition int32, spec streamwire.Start) (*streamwire.Subscription, error) {
	name := s.partitions[partition]
	k, err := s.b.streams.replica(ctx, roleConsume, name)
	if err != nil {
		return nil, classifyStream(err)
	}
	sub, err := k.Subscribe(ctx, name, spec, streamwire.SubscribeOptions{})
	return sub, classifyStream(err)
}

// unsubscribe is bounded by CloseTimeout.
func (s *Stream) unsubscribe(sub *streamwire.Subscription) {
	ctx, cancel := context.WithTimeout(context.Background(), s.b.o.CloseTimeout)
	defer cancel()
	sub.Close(ctx)
}

// bounds returns the first offset of a partition and the one after its last
// record. Stored offsets behind the last record are not counted.
func (s *Stream) bounds(ctx context.Context, partition int32) (first, next int64, err error) {
	type ends struct{ first, next int64 }
	e, err := persist(ctx, s.b.streams, func() (ends, error) {
		name := s.partitions[partition]
		k, err := s.b.streams.leader(ctx, roleControl, name)
		if err != nil {
			return ends{}, err
		}
		stats, err := k.Stats(ctx, name)
		if err != nil {
			return ends{}, err
		}
		first := stats["first_chunk_id"]
		if first < 0 {
			return ends{}, nil // nothing was ever stored
		}
		// The statistics tell where the last chunk begins; reading it tells
		// where it ends.
		sub, err := k.Subscribe(ctx, name, streamwire.Last(), streamwire.SubscribeOptions{Credits: 1})
		if err != nil {
			return ends{}, err
		}
		defer s.unsubscribe(sub)
		// The broker handles a connection's requests in turn, and sends the
		// chunk with the answer to the subscription: when the next request is
		// answered, the chunk is here, or there is none of records.
		if _, err := k.Stats(ctx, name); err != nil {
			return ends{}, err
		}
		if c := sub.Waiting(); c != nil {
			return ends{first, c.First + int64(c.Records)}, nil
		}
		return ends{first, first}, nil
	})
	return e.first, e.next, err
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
	spec   streamwire.Start
	offset int64 // records below are skipped
	ms     int64 // and those before this time, until the first that is not
	stored bool  // where a group had committed
}

// startAt resolves a position; first and next bound the partition.
func startAt(p broker.Position, first, next int64) (start, error) {
	switch p.Kind() {
	case broker.PositionDefault, broker.PositionEarliest:
		return start{spec: streamwire.First(), offset: first}, nil
	case broker.PositionLatest, broker.PositionNow:
		return start{spec: streamwire.AtOffset(next), offset: next}, nil
	case broker.PositionTime:
		ms := max(0, p.Time().UnixMilli())
		return start{spec: streamwire.AtTime(ms), ms: ms}, nil
	case broker.PositionOffset:
		n, ok := p.Offset().Int64()
		if !ok || n < first || n > next {
			return start{}, errors.Join(broker.ErrOutOfRange,
				broker.Invalid("offset %s: the partition has %d to %d", p.Offset(), first, next))
		}
		return start{spec: streamwire.AtOffset(n), offset: n}, nil
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
	until, untilMS := next, int64(math.MaxInt64)
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
	if from.offset >= until {
		return nil
	}
	_, err = persist(ctx, s.b.streams, func() (struct{}, error) {
		return struct{}{}, s.readSome(ctx, p, &from, until, untilMS, out)
	})
	return err
}

// readSome reads the range over one subscription, and moves from behind what
// it has sent.
func (s *Stream) readSome(ctx context.Context, p int32, from *start, until, untilMS int64, out chan<- readItem) error {
	sub, err := s.subscribe(ctx, p, from.spec)
	if err != nil {
		return err
	}
	defer s.unsubscribe(sub)
	for done := false; !done; {
		c, err := sub.Next(ctx)
		if err != nil {
			return err
		}
		var bad error
		err = c.Each(func(offset int64, message []byte) bool {
			if done = offset >= until; done {
				return false
			}
			rec := new(broker.Record)
			if bad = decodeRecord(message, p, rec); bad != nil {
				bad = unreadable(p, offset, bad)
				return false
			}
			if !from.pass(offset, rec) {
				return true
			}
			if done = rec.Time().UnixMilli() >= untilMS; done {
				return false
			}
			rec.Bind(broker.NewOffset(offset), nil)
			select {
			case out <- readItem{r: rec}:
				from.offset, from.spec = offset+1, streamwire.AtOffset(offset+1)
				return true
			case <-ctx.Done():
				return false
			}
		})
		if err != nil {
			err = unreadable(p, c.First, err)
		}
		if err = errors.Join(err, bad, ctx.Err()); err != nil {
			return err
		}
		done = done || c.First+int64(c.Records) >= until
	}
	return nil
}

// unreadable is the error of a record that another client wrote and that is not
// AMQP 1.0, or of a chunk that does not unpack: reading it again does not help.
func unreadable(p int32, offset int64, err error) error {
	return broker.Unsupported("partition %d, offset %d cannot be read; a seek behind it goes on: %v", p, offset, err)
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
	a, err := control(ctx, s.b.streams, func(ctx context.Context, c *streamwire.Conn) (answer, error) {
		n, ok, err := storedOn(ctx, c, group, s.partitions[p])
		return answer{n, ok}, err
	})
	return a.offset, a.ok, err
}

func storedOn(ctx context.Context, c *streamwire.Conn, group, partition string) (int64, bool, error) {
	n, err := c.QueryOffset(ctx, group, partition)
	if errors.Is(err, streamwire.ErrNoOffset) {
		return 0, false, nil
	}
	return n + 1, err == nil, err
}

// store sets the offset that a group reads next.
func (s *Stream) store(ctx context.Context, group string, p int32, next int64) error {
	_, err := control(ctx, s.b.streams, func(ctx context.Context, c *streamwire.Conn) (struct{}, error) {
		return struct{}{}, storeOn(ctx, c, group, s.partitions[p], next)
	})
	return err
}

// storeOn is store over one connection. The broker does not answer a store: a
// query follows it until it is seen.
func storeOn(ctx context.Context, c *streamwire.Conn, group, partition string, next int64) error {
	for {
		if err := c.StoreOffset(group, partition, next-1); err != nil {
			return err
		}
		for range 20 {
			got, ok, err := storedOn(ctx, c, group, partition)
			if err != nil {
				return err
			}
			if ok && got == next {
				return nil
			}
			sleep(ctx, 5*time.Millisecond)
		}
		if err := broker.ContextError(ctx); err != nil {
			return err
		}
	}
}
