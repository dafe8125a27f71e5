package kafka

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/queuestream/broker"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// A GroupConsumer is a member of a consumer group, with a client of its own.
type GroupConsumer struct {
	s      *Stream
	group  string
	opts   broker.GroupOptions
	client *kgo.Client
	cut    context.CancelFunc // ends whatever the client does

	stop     context.Context //nolint:containedctx // ends every Receive that waits, at Close and at Shutdown
	stopped  context.CancelCauseFunc
	closed   atomic.Bool
	closing  sync.Once
	closeErr error
	callback atomic.Int32  // of the program, running now
	commits  chan struct{} // one commit at a time

	mu    sync.Mutex
	holds map[int32]*hold
	seq   uint64           // counts what happens to holds
	ended map[int32]uint64 // when the last hold of a partition ended
	retry []int32          // partitions whose position is to be set again
}

// A hold is this member's time with a partition. Guarded by GroupConsumer.mu.
type hold struct {
	c         *GroupConsumer
	a         *broker.Assignment
	start     int64  // where reading began, or was moved to; negative: not known
	moved     uint64 // when it was
	next      int64  // after the last record handed out; negative: none was
	committed int64  // the highest stored since start; negative: nothing
	base      int64  // where the group resumes: start, or what was stored since; negative: ask the broker
	revoking  bool
}

const (
	// idleCheck is how often a Receive that waits looks whether the topic
	// still is the one that it reads.
	idleCheck = 5 * time.Second
	// growthAge is how soon a group learns of partitions that were added.
	growthAge = 5 * time.Second
	// committedReader is stored with the offsets of groups that read
	// committed records alone, so that Lag knows what they read.
	committedReader = "read_committed"
)

func newGroupConsumer(s *Stream, group string, opts *broker.GroupOptions) (*GroupConsumer, error) {
	c := &GroupConsumer{
		s: s, group: group,
		commits: make(chan struct{}, 1),
		holds:   map[int32]*hold{}, ended: map[int32]uint64{},
	}
	if opts != nil {
		c.opts = *opts
	}
	start, err := startOffset(c.opts.Start)
	if err != nil {
		return nil, err
	}
	isolation := kgo.ReadUncommitted()
	if c.opts.ReadCommitted {
		isolation = kgo.ReadCommitted()
	}
	c.stop, c.stopped = context.WithCancelCause(context.Background())
	life, cut := context.WithCancel(context.Background())
	c.cut = cut
	c.client, err = kgo.NewClient(s.b.opts.consumer(
		kgo.WithContext(life),
		kgo.MetadataMaxAge(growthAge),
		kgo.ConsumerGroup(group),
		kgo.ConsumeTopics(s.topic.name),
		kgo.ConsumeStartOffset(start),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(isolation),
		kgo.OnPartitionsAssigned(c.onAssigned),
		kgo.OnPartitionsRevoked(c.onRevoked),
		kgo.OnPartitionsLost(c.onLost),
		kgo.AdjustFetchOffsetsFn(c.onStart),
		kgo.WithPools(&slabs),
	)...)
	if err != nil {
		c.stopped(broker.ErrClosed)
		cut()
		return nil, broker.Invalid("%v", err)
	}
	return c, nil
}

func startOffset(p broker.Position) (kgo.Offset, error) {
	o := kgo.NewOffset()
	switch p.Kind() {
	case broker.PositionDefault, broker.PositionEarliest:
		return o.AtStart(), nil
	case broker.PositionLatest, broker.PositionNow:
		return o.AtEnd(), nil
	case broker.PositionTime:
		return o.AfterMilli(milli(p)), nil
	case broker.PositionOffset:
		n, ok := p.Offset().Int64()
		if !ok {
			return o, broker.Invalid("Start %v: Kafka's offsets are below 2^63", p)
		}
		return o.At(n), nil
	case broker.PositionCommitted:
	}
	return o, broker.Invalid("Start %v: want Earliest, Latest, AtTime or AtOffset", p)
}

// Client returns the franz-go client of this member. It belongs to the
// consumer: do not close it, poll it or commit with it.
func (c *GroupConsumer) Client() *kgo.Client { return c.client }

// Receive does what broker.GroupConsumer promises.
func (c *GroupConsumer) Receive(ctx context.Context, max int) ([]*broker.Record, error) {
	rs, err := c.receive(ctx, max)
	return rs, fail("receive", c.s.topic.name, err)
}

func (c *GroupConsumer) receive(ctx context.Context, max int) ([]*broker.Record, error) {
	if max <= 0 {
		return nil, broker.Invalid("max %d: want at least 1", max)
	}
	for {
		if err := broker.ContextError(ctx); err != nil {
			return nil, err
		}
		if c.stop.Err() != nil {
			return nil, context.Cause(c.stop)
		}
		if err := c.again(ctx); err != nil {
			return nil, err
		}
		seq := c.now()
		fetches := c.client.PollRecords(nil, max) //nolint:staticcheck // nil: what is there, without waiting
		if len(fetches) == 0 {
			fetches = c.wait(ctx, max)
		}
		rs := c.stamp(fetches, seq)
		if len(rs) > 0 {
			return rs, nil // an error repeats with the next fetch
		}
		if err := c.fetchError(fetches); err != nil {
			return nil, err
		}
		if len(fetches) == 0 {
			if err := c.checkTopic(ctx); err != nil {
				return nil, err
			}
		}
	}
}

// wait polls until something comes, ctx ends, the consumer stops, or it is
// time to look after the topic.
func (c *GroupConsumer) wait(ctx context.Context, max int) kgo.Fetches {
	ctx, cancel := context.WithTimeout(ctx, idleCheck)
	defer cancel()
	defer context.AfterFunc(c.stop, cancel)()
	fetches := c.client.PollRecords(ctx, max)
	if ctx.Err() != nil && fetches.NumRecords() == 0 {
		return nil
	}
	return fetches
}

func (c *GroupConsumer) now() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.seq
}

// stamp gives each record the hold under which it was fetched. Records of
// holds that are gone are dropped: another member reads them. Where a hold was
// replaced or moved while the poll ran, nobody can tell of which the records
// are: they are dropped too, and the position is set again.
func (c *GroupConsumer) stamp(fetches kgo.Fetches, seq uint64) []*broker.Record {
	if len(fetches) == 0 {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return records(fetches, func(id kadm.TopicID, p *kgo.FetchPartition) (*broker.Assignment, bool) {
		h := c.holds[p.Partition]
		if h == nil || h.revoking {
			return nil, false
		}
		if h.moved > seq && (c.ended[p.Partition] > seq || h.next >= 0) {
			c.retry = append(c.retry, p.Partition)
			return nil, false
		}
		if h.next = p.Records[len(p.Records)-1].Offset + 1; h.a.Identity == "" { // before anybody has it
			h.a.Identity = c.s.topic.identity(id)
		}
		return h.a, true
	})
}

// again sets the positions that stamp could not make out.
func (c *GroupConsumer) again(ctx context.Context) error {
	for {
		c.mu.Lock()
		if len(c.retry) == 0 {
			c.mu.Unlock()
			return nil
		}
		p := c.retry[0]
		h := c.holds[p]
		to := broker.Committed()
		if h != nil && h.start >= 0 {
			to = broker.AtOffset(broker.NewOffset(h.start))
		}
		c.mu.Unlock()
		if h != nil {
			if err := c.seek(ctx, h, to, false); err != nil {
				return err
			}
		}
		c.mu.Lock()
		c.retry = slices.DeleteFunc(c.retry, func(q int32) bool { return q == p })
		c.mu.Unlock()
	}
}

// fetchError returns what the program must know of; what the client deals with
// by itself is logged.
func (c *GroupConsumer) fetchError(fetches kgo.Fetches) error {
	var out error
	fetches.EachError(func(_ string, partition int32, err error) {
		var loss *kgo.ErrDataLoss
		switch {
		case errors.Is(err, kgo.ErrClientClosed):
			out = errors.Join(out, broker.ErrClosed)
		case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		case errors.As(err, &loss):
			c.log(slog.LevelWarn, "kafka: records were lost or expired before this group read them", "partition", partition, "error", err)
		case errors.Is(err, kerr.UnknownTopicOrPartition), errors.Is(err, kerr.UnknownTopicID):
			out = errors.Join(out, err)
		default:
			if err = classify(err); inRebalance(err) || temporary(err) || errors.Is(err, broker.ErrFenced) || errors.Is(err, broker.ErrOutOfRange) {
				c.log(slog.LevelWarn, "kafka: fetching failed; the client tries again", "partition", partition, "error", err)
				return
			}
			out = errors.Join(out, err)
		}
	})
	return out
}

// checkTopic tells a topic that is gone. One that was created again under the
// same name needs a new consumer: the client reads the first one alone.
func (c *GroupConsumer) checkTopic(ctx context.Context) error {
	name := c.s.topic.name
	ctx, cancel := context.WithTimeout(ctx, idleCheck)
	defer cancel()
	defer context.AfterFunc(c.stop, cancel)()
	details, err := c.s.b.admin.ListTopics(ctx, name)
	if err != nil {
		return nil //nolint:nilerr // the broker is away: the client reconnects by itself
	}
	if err := details[name].Err; err != nil && !temporary(classify(err)) {
		return err
	}
	return nil
}

func (c *GroupConsumer) log(level slog.Level, msg string, args ...any) {
	if l := c.s.b.opts.Logger; l != nil {
		l.Log(context.Background(), level, msg, append(args, "topic", c.s.topic.name, "group", c.group)...)
	}
}

// Partitions returns those assigned to this member, ascending.
func (c *GroupConsumer) Partitions() []int32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	ps := make([]int32, 0, len(c.holds))
	for p, h := range c.holds {
		if !h.revoking {
			ps = append(ps, p)
		}
	}
	slices.Sort(ps)
	return ps
}

// Pause does what broker.GroupConsumer promises; it ends with the assignment.
func (c *GroupConsumer) Pause(partitions ...int32) {
	c.client.PauseFetchPartitions(map[string][]int32{c.s.topic.name: partitions})
}

// Resume undoes Pause.
func (c *GroupConsumer) Resume(partitions ...int32) {
	c.client.ResumeFetchPartitions(map[string][]int32{c.s.topic.name: partitions})
}

func (c *GroupConsumer) onAssigned(_ context.Context, _ *kgo.Client, m map[string][]int32) {
	ps := m[c.s.topic.name]
	if len(ps) == 0 {
		return
	}
	c.mu.Lock()
	c.seq++
	for _, p := range ps {
		h := &hold{c: c, start: -1, moved: c.seq, next: -1, committed: -1, base: -1}
		h.a = &broker.Assignment{Stream: c.s.topic.name, Group: c.group, Partition: p, State: h}
		if c.closed.Load() {
			h.a.End()
		}
		c.holds[p] = h
	}
	c.mu.Unlock()
	if c.opts.OnAssigned != nil {
		c.calling(func() { c.opts.OnAssigned(slices.Clone(ps)) })
	}
}

// onStart learns where the new holds begin.
func (c *GroupConsumer) onStart(_ context.Context, m map[string]map[int32]kgo.Offset) (map[string]map[int32]kgo.Offset, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for p, o := range m[c.s.topic.name] {
		if h := c.holds[p]; h != nil && h.start < 0 {
			h.start = o.EpochOffset().Offset
			h.committed, h.base = h.start, h.start
		}
	}
	return m, nil
}

func (c *GroupConsumer) onRevoked(ctx context.Context, _ *kgo.Client, m map[string][]int32) {
	ps := c.held(m[c.s.topic.name])
	if len(ps) == 0 {
		return
	}
	c.mu.Lock()
	c.seq++
	for _, p := range ps {
		c.holds[p].revoking = true
	}
	c.mu.Unlock()
	if c.opts.OnRevoked != nil {
		ctx, cancel := context.WithTimeout(ctx, c.s.b.opts.RebalanceTimeout)
		defer cancel()
		c.calling(func() { c.opts.OnRevoked(ctx, slices.Clone(ps)) })
	}
	c.endHolds(ps)
}

func (c *GroupConsumer) onLost(_ context.Context, _ *kgo.Client, m map[string][]int32) {
	ps := c.held(m[c.s.topic.name])
	if len(ps) == 0 {
		return
	}
	c.endHolds(ps)
	if c.opts.OnLost != nil {
		c.calling(func() { c.opts.OnLost(slices.Clone(ps)) })
	}
}

// held returns those of ps that have a hold.
func (c *GroupConsumer) held(ps []int32) []int32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(ps), func(p int32) bool { return c.holds[p] == nil })
}

func (c *GroupConsumer) endHolds(ps []int32) {
	c.mu.Lock()
	c.seq++
	for _, p := range ps {
		if h := c.holds[p]; h != nil {
			h.a.End()
			delete(c.holds, p)
			c.ended[p] = c.seq
		}
	}
	c.mu.Unlock()
	c.Resume(ps...)
}

// calling runs a callback of the program, unless the consumer is closed: Close
// hands nothing over.
func (c *GroupConsumer) calling(fn func()) {
	if c.closed.Load() {
		return
	}
	c.callback.Add(1)
	defer c.callback.Add(-1)
	fn()
}

// drain makes Receive return broker.ErrShutdown; the rest works on.
func (c *GroupConsumer) drain() { c.stopped(broker.ErrShutdown) }

// Close leaves the group at once; it commits nothing and calls no callback.
// Called inside a callback it does not wait for the leaving.
func (c *GroupConsumer) Close() error {
	c.closing.Do(func() {
		c.closed.Store(true)
		c.stopped(broker.ErrClosed)
		c.mu.Lock()
		c.seq++
		for p, h := range c.holds {
			h.a.End()
			c.ended[p] = c.seq
		}
		clear(c.holds)
		c.mu.Unlock()
		if c.callback.Load() > 0 {
			go c.leave()
		} else {
			c.closeErr = fail("close", c.s.topic.name, within(closeTimeout, c.leave))
		}
		c.s.left(c)
	})
	return c.closeErr
}

// moveTo sets the position of a hold; what was fetched before is dropped. back
// lets the next commit go backwards.
func (c *GroupConsumer) moveTo(h *hold, n int64, back bool) {
	c.mu.Lock()
	if c.holds[h.a.Partition] != h {
		c.mu.Unlock()
		return
	}
	h.moved, h.start, h.next, h.base = math.MaxUint64, n, n, n // until the client has moved
	if back {
		h.committed = -1
	}
	c.mu.Unlock()
	c.client.SetOffsets(map[string]map[int32]kgo.EpochOffset{
		c.s.topic.name: {h.a.Partition: {Epoch: -1, Offset: n}},
	})
	c.mu.Lock()
	c.seq++
	h.moved = c.seq
	c.mu.Unlock()
}
