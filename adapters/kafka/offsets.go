package kafka

import (
	"context"
	"errors"
	"fmt"

	"github.com/queuestream/broker"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
)

// Partitions returns every partition with its first and next offset.
func (s *Stream) Partitions(ctx context.Context) ([]broker.Partition, error) {
	first, next, err := s.bounds(ctx, false)
	if err != nil {
		return nil, fail("partitions", s.topic.name, err)
	}
	out := make([]broker.Partition, 0, len(next))
	for _, p := range sorted(next) {
		out = append(out, broker.Partition{ID: p, First: broker.NewOffset(first[p]), Next: broker.NewOffset(next[p])})
	}
	return out, nil
}

// bounds returns the first offset of each partition, and the end: that of
// committed records if committed, otherwise the high watermark.
func (s *Stream) bounds(ctx context.Context, committed bool) (first, next map[int32]int64, err error) {
	if err := s.usable(); err != nil {
		return nil, nil, err
	}
	if first, err = s.offsets(ctx, s.b.admin.ListStartOffsets); err != nil {
		return nil, nil, err
	}
	next, err = s.ends(ctx, committed)
	return first, next, err
}

func (s *Stream) ends(ctx context.Context, committed bool) (map[int32]int64, error) {
	if committed {
		return s.offsets(ctx, s.b.admin.ListCommittedOffsets)
	}
	return s.offsets(ctx, s.b.admin.ListEndOffsets)
}

func (s *Stream) after(ctx context.Context, ms int64) (map[int32]int64, error) {
	return s.offsets(ctx, func(ctx context.Context, topics ...string) (kadm.ListedOffsets, error) {
		return s.b.admin.ListOffsetsAfterMilli(ctx, ms, topics...)
	})
}

func (s *Stream) offsets(ctx context.Context, list func(context.Context, ...string) (kadm.ListedOffsets, error)) (map[int32]int64, error) {
	var out map[int32]int64
	// A leader that moves, or has just begun, refuses for a moment.
	return out, repeat(ctx, func() error {
		listed, err := list(ctx, s.topic.name)
		if err != nil {
			return authError(err)
		}
		out = make(map[int32]int64, len(listed[s.topic.name]))
		for p, o := range listed[s.topic.name] {
			if o.Err != nil {
				return o.Err
			}
			out[p] = o.Offset
		}
		if len(out) == 0 {
			return kerr.UnknownTopicOrPartition
		}
		return nil
	})
}

// milli is the time of a position as Kafka takes it: negative ones stand for
// other things.
func milli(p broker.Position) int64 { return max(0, p.Time().UnixMilli()) }

// resolve turns a position into an offset for each partition wanted.
// Committed is not a position of the stream alone: see GroupConsumer.resolve.
func (s *Stream) resolve(ctx context.Context, to broker.Position, committed bool) (map[int32]int64, error) {
	switch to.Kind() {
	case broker.PositionDefault, broker.PositionEarliest:
		return s.offsets(ctx, s.b.admin.ListStartOffsets)
	case broker.PositionLatest, broker.PositionNow:
		return s.ends(ctx, committed)
	case broker.PositionTime:
		return s.after(ctx, milli(to))
	case broker.PositionOffset:
		n, ok := to.Offset().Int64()
		if !ok {
			return nil, fmt.Errorf("%w: offset %v: Kafka's offsets are below 2^63", broker.ErrOutOfRange, to.Offset())
		}
		first, next, err := s.bounds(ctx, false)
		if err != nil {
			return nil, err
		}
		out := make(map[int32]int64, len(first))
		for p := range next {
			out[p] = n
			if n < first[p] || n > next[p] {
				out[p] = -1 // the caller says so if it wants this partition
			}
		}
		return out, nil
	case broker.PositionCommitted:
	}
	return nil, broker.Invalid("position %v: want Earliest, Latest, AtTime or AtOffset", to)
}

func outOfRange(to broker.Position, partition int32) error {
	return fmt.Errorf("%w: %v in partition %d", broker.ErrOutOfRange, to, partition)
}

func (s *Stream) usable() error {
	if s.closed.Load() {
		return broker.ErrClosed
	}
	return s.b.usable()
}

// stored is a group's offset in a partition.
type stored struct {
	offset    int64
	committed bool // it belongs to a group that reads committed records alone
}

// storedOffsets returns what group has stored, without the partitions where it
// has nothing. It waits up to retryTimeout for the end of a transaction that
// stores some.
func (s *Stream) storedOffsets(ctx context.Context, group string) (map[int32]stored, error) {
	out := map[int32]stored{}
	return out, repeat(ctx, func() error {
		all, err := s.b.admin.FetchOffsetsForTopics(kadm.RequireStable(ctx), group, s.topic.name)
		if errors.Is(err, kerr.GroupIDNotFound) { // nobody has joined it yet
			return nil
		}
		if err != nil {
			return authError(err)
		}
		clear(out)
		for p, o := range all[s.topic.name] {
			if o.Err != nil {
				return o.Err
			}
			if o.At >= 0 {
				out[p] = stored{o.At, o.Metadata == committedReader}
			}
		}
		return nil
	})
}

// Seek does what broker.GroupConsumer promises.
func (c *GroupConsumer) Seek(ctx context.Context, partition int32, to broker.Position) error {
	c.mu.Lock()
	h := c.holds[partition]
	c.mu.Unlock()
	var err error
	switch {
	case c.closed.Load():
		err = broker.ErrClosed
	case h == nil:
		err = broker.Invalid("partition %d is not assigned to this member, which has %v", partition, c.Partitions())
	default:
		err = c.seek(ctx, h, to, true)
	}
	return fail("seek", c.s.topic.name, err)
}

// seek moves the position of h: asked for by the program, which may move back
// what is stored and must not leave the log, or to set a position again.
func (c *GroupConsumer) seek(ctx context.Context, h *hold, to broker.Position, asked bool) error {
	p := h.a.Partition
	n, err := c.resolve(ctx, p, to)
	if err != nil {
		return err
	}
	if n < 0 {
		if asked {
			return outOfRange(to, p)
		}
		n, _ = to.Offset().Int64()
	}
	c.moveTo(h, n, asked)
	return nil
}

func (c *GroupConsumer) resolve(ctx context.Context, p int32, to broker.Position) (int64, error) {
	if to.Kind() == broker.PositionCommitted {
		all, err := c.s.storedOffsets(ctx, c.group)
		if err != nil {
			return 0, err
		}
		if o, ok := all[p]; ok {
			return o.offset, nil
		}
		to = c.opts.Start
	}
	all, err := c.s.resolve(ctx, to, c.opts.ReadCommitted)
	if err != nil {
		return 0, err
	}
	n, ok := all[p]
	if !ok {
		return 0, kerr.UnknownTopicOrPartition
	}
	return n, nil
}
