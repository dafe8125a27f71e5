package kafka

import (
	"context"
	"log/slog"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/queuestream/broker"
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
	polls    chan struct{} // one poll at a time
	pausing  sync.Mutex    // while the client is told of a pause or of its end

	mu     sync.Mutex
	holds  map[int32]*hold
	seq    uint64             // counts what happens to holds
	ended  map[int32]uint64   // when the last hold of a partition ended
	retry  []int32            // partitions whose position is to be set again
	paused map[int32]bool     // by the program; true: and the client was told
	ahead  []*hold            // those with records ahead, in the order of the fetches
	wake   context.CancelFunc // ends the poll that waits; nil: none does
}

// A hold is this member's time with a partition. Guarded by GroupConsumer.mu.
type hold struct {
	c         *GroupConsumer
	a         *broker.Assignment
	start     int64         // where reading began, or was moved to; negative: not known
	moved     uint64        // when it was
	next      int64         // after the last record handed out; negative: none was
	ahead     []*kgo.Record // fetched and not handed out yet
	parts     int           // of fetches, that ahead is of
	committed int64         // the highest stored since start; negative: nothing
	base      int64         // where the group resumes: start, or what was stored since; negative: ask the broker
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
		commits: make(chan struct{}, 1), polls: make(chan struct{}, 1),
		holds: map[int32]*hold{}, ended: map[int32]uint64{}, paused: map[int32]bool{},
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
// What comes all the same is kept; see pauseClient.
func (c *GroupConsumer) Pause(partitions ...int32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range partitions {
		if _, paused := c.paused[p]; !paused {
			c.paused[p] = false
		}
	}
}

// pauseClient tells the client of the pauses where more lies ahead than a share
// of a whole fetch. It would throw away what it has of those partitions, and
// fetch without them: one that is resumed then waits for what others have, up
// to FetchMaxWait. A short pause is not worth that.
func (c *GroupConsumer) pauseClient() {
	c.pausing.Lock()
	defer c.pausing.Unlock()
	var tell []int32
	c.mu.Lock()
	most := c.s.b.opts.FetchMaxBytes / c.s.b.opts.FetchMaxPartitionBytes / max(1, len(c.paused))
	for _, h := range c.ahead {
		if told, paused := c.paused[h.a.Partition]; paused && !told && h.parts > most {
			c.paused[h.a.Partition] = true
			tell = append(tell, h.a.Partition)
		}
	}
	c.mu.Unlock()
	if len(tell) > 0 {
		c.client.PauseFetchPartitions(map[string][]int32{c.s.topic.name: tell})
	}
}

// Resume undoes Pause.
func (c *GroupConsumer) Resume(partitions ...int32) {
	c.pausing.Lock()
	defer c.pausing.Unlock()
	var tell []int32
	c.mu.Lock()
	for _, p := range partitions {
		if c.paused[p] {
			tell = append(tell, p)
		}
		delete(c.paused, p)
	}
	if c.stocked() {
		c.awake()
	}
	c.mu.Unlock()
	if len(tell) > 0 {
		c.client.ResumeFetchPartitions(map[string][]int32{c.s.topic.name: tell})
	}
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
		c.drop(c.holds[p])
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
			c.drop(h)
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
			h.ahead = nil // records that the program keeps refer to h
			c.ended[p] = c.seq
		}
		clear(c.holds)
		c.ahead = nil
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
	c.drop(h)
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
