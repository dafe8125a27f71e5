package kafka

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"

	"github.com/queuestream/broker"
	"github.com/twmb/franz-go/pkg/kgo"
)

// A Stream is a topic. It is safe for concurrent use.
type Stream struct {
	b     *Broker
	topic *topic
	met   *metTopic
	caps  broker.StreamCapabilities

	appended func(*kgo.Record, error) // answered, bound once
	sheets   sheets                   // of newAppending
	handover handover

	mu      sync.Mutex
	members map[*GroupConsumer]struct{}
	count   int         // partitions, as far as known
	closed  atomic.Bool // set under mu
}

var (
	_ broker.Stream         = (*Stream)(nil)
	_ broker.Identifier     = (*Stream)(nil)
	_ broker.AsyncAppending = (*Stream)(nil)
)

// Name returns the topic's name.
func (s *Stream) Name() string { return s.topic.name }

// Adapter returns the name that errors carry.
func (s *Stream) Adapter() string { return adapter }

// Identity does what broker.Identifier promises: the cluster's id and the
// topic's, as they are now.
func (s *Stream) Identity(ctx context.Context) (string, error) {
	t, err := s.b.describe(ctx, s.topic.name)
	if err != nil {
		return "", fail("identify", s.topic.name, err)
	}
	return t.identity(t.id), nil
}

// Capabilities returns what the topic honours, as of the time it was opened.
func (s *Stream) Capabilities() broker.StreamCapabilities { return s.caps }

// Publish does what broker.Stream promises: acks=all, idempotent.
func (s *Stream) Publish(ctx context.Context, r broker.Record) (broker.Receipt, error) {
	one := singles.Get().(*single) //nolint:errcheck,forcetypeassert // the pool holds nothing else
	one.record[0] = r
	err := s.publish(one.load.begin(ctx, s, one.record[:], one.receipt[:]))
	if err != nil {
		err = broker.ErrorAt(err, 0)
	}
	receipt := one.receipt[0]
	*one = single{}
	singles.Put(one)
	return receipt, err
}

// A single is the load of one record, with all that it refers to.
type single struct {
	load    recordLoad
	record  [1]broker.Record
	receipt [1]broker.Receipt
}

var singles = sync.Pool{New: func() any { return &single{} }}

// PublishBatch does what broker.Stream promises, pipelined.
func (s *Stream) PublishBatch(ctx context.Context, rs []broker.Record) ([]broker.Receipt, error) {
	receipts := make([]broker.Receipt, len(rs))
	return receipts, s.publish(new(recordLoad).begin(ctx, s, rs, receipts))
}

func (s *Stream) publish(l *recordLoad) error {
	err := s.begin(l.ctx)
	if err != nil {
		return failAll("publish", s.topic.name, len(l.rs), err)
	}
	defer s.b.end()
	s.b.deliver(l.ctx, l, len(l.rs))
	return broker.NewBatchError(l.errs)
}

// A recordLoad is the load of records.
type recordLoad struct {
	ctx      context.Context //nolint:containedctx // of the one call that the load is of
	s        *Stream
	rs       []broker.Record
	receipts []broker.Receipt
	errs     []error // nil: none
}

func (l *recordLoad) begin(ctx context.Context, s *Stream, rs []broker.Record, receipts []broker.Receipt) *recordLoad {
	*l = recordLoad{ctx: ctx, s: s, rs: rs, receipts: receipts}
	return l
}

func (l *recordLoad) size(i int) int { return len(l.rs[i].Key) + len(l.rs[i].Value) }

func (l *recordLoad) partition(i int) int { return l.s.partitionOf(&l.rs[i]) }

func (l *recordLoad) encode(i int, it *item, cp *copies) error {
	return l.s.encode(l.ctx, l.s.b.client, it, &l.rs[i], cp)
}

func (l *recordLoad) answer(i int, partition int32, offset int64, err error) {
	if err == nil {
		l.receipts[i].Partition, l.receipts[i].Offset = partition, broker.NewOffset(offset)
		return
	}
	if l.errs == nil {
		l.errs = make([]error, len(l.rs))
	}
	l.errs[i] = fail("publish", l.s.topic.name, err)
}

func failAll(op, name string, n int, err error) error {
	errs := make([]error, n)
	for i := range errs {
		errs[i] = fail(op, name, err)
	}
	return broker.NewBatchError(errs)
}

func bodies(rs []broker.Record) int {
	n := 0
	for i := range rs {
		n += len(rs[i].Key) + len(rs[i].Value)
	}
	return n
}

// encode translates a record that is valid.
func (s *Stream) encode(ctx context.Context, client *kgo.Client, it *item, r *broker.Record, cp *copies) error {
	if err := broker.ValidateRecord(r, &s.caps); err != nil {
		return err
	}
	out := &it.rec
	out.Topic = s.topic.name
	if r.Pin {
		if err := s.hasPartition(ctx, client, r.Partition); err != nil {
			return err
		}
		out.Partition = r.Partition
	}
	if len(r.Key) > 0 {
		out.Key = cp.of(r.Key)
	}
	if !r.Tombstone {
		if out.Value = cp.of(r.Value); out.Value == nil {
			out.Value = []byte{}
		}
	}
	out.Headers = kafkaHeaders(r.Headers)
	if at := r.Time(); !at.IsZero() {
		out.Timestamp = at
	}
	return nil
}

// partitionOf returns where r goes most likely; negative: anywhere.
func (s *Stream) partitionOf(r *broker.Record) int {
	if r.Pin {
		return int(r.Partition)
	}
	if n := s.met.partitions.Load(); n > 0 && len(r.Key) > 0 {
		return hashed(r.Key, int(n))
	}
	return -1
}

// hasPartition tells whether partition p exists, looking again for one beyond
// those known, since streams grow.
func (s *Stream) hasPartition(ctx context.Context, client *kgo.Client, p int32) error {
	s.mu.Lock()
	n := s.count
	s.mu.Unlock()
	if int(p) < n {
		return nil
	}
	t, err := s.b.describe(ctx, s.topic.name)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.count = t.partitions
	s.mu.Unlock()
	if int(p) >= t.partitions {
		return broker.Invalid("Partition %d: want 0 to %d", p, t.partitions-1)
	}
	// The client has to know it too, unless it does not know the topic yet.
	return await(ctx, func() (bool, error) {
		leads, _, err := client.PartitionLeader(s.topic.name, p)
		first, _, _ := client.PartitionLeader(s.topic.name, 0) //nolint:errcheck // only whether it is known
		if err == nil && (leads >= 0 || first < 0) {
			return true, nil
		}
		client.ForceMetadataRefresh()
		return false, nil
	})
}

// begin counts a call unless the stream is closed or ctx has ended.
func (s *Stream) begin(ctx context.Context) error {
	if err := broker.ContextError(ctx); err != nil {
		return err
	}
	if s.closed.Load() {
		return broker.ErrClosed
	}
	return s.b.begin()
}

// Consumer joins a group; see broker.Stream.
func (s *Stream) Consumer(ctx context.Context, group string, opts *broker.GroupOptions) (broker.GroupConsumer, error) {
	c, err := s.join(ctx, group, opts)
	if err != nil {
		return nil, fail("consume", s.topic.name, err)
	}
	return c, nil
}

func (s *Stream) join(ctx context.Context, group string, opts *broker.GroupOptions) (*GroupConsumer, error) {
	if err := broker.ContextError(ctx); err != nil {
		return nil, err
	}
	if err := s.b.usable(); err != nil {
		return nil, err
	}
	if err := validateGroup(group); err != nil {
		return nil, err
	}
	c, err := newGroupConsumer(s, group, opts)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	if s.closed.Load() {
		s.mu.Unlock()
		return nil, errors.Join(broker.ErrClosed, c.Close())
	}
	if s.members == nil {
		s.members = map[*GroupConsumer]struct{}{}
	}
	s.members[c] = struct{}{}
	s.mu.Unlock()
	return c, nil
}

func (s *Stream) left(c *GroupConsumer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.members, c)
}

func (s *Stream) each() []*GroupConsumer {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]*GroupConsumer, 0, len(s.members))
	for c := range s.members {
		out = append(out, c)
	}
	return out
}

func (s *Stream) drain() {
	for _, c := range s.each() {
		c.drain()
	}
}

// Close closes the stream's consumers; what is being published is answered.
func (s *Stream) Close() error {
	s.mu.Lock()
	s.closed.Store(true)
	s.mu.Unlock()
	members := s.each()
	errs := make([]error, len(members))
	var wg sync.WaitGroup
	for i, c := range members {
		wg.Go(func() { errs[i] = c.Close() })
	}
	wg.Wait()
	s.b.remove(s)
	return errors.Join(errs...)
}

// appendRecords translates in, in one slab, appends that to out, and gives the
// client back the memory of its records.
func appendRecords(out []*broker.Record, in []*kgo.Record, a *broker.Assignment) []*broker.Record {
	slab := make([]broker.Record, len(in))
	var hs headerSlab
	for i, r := range in {
		if len(r.Headers) > cap(hs.headers)-len(hs.headers) {
			hs.makeFor(in[i:])
		}
		toRecord(&slab[i], r, a, &hs)
		out = append(out, &slab[i])
		r.Recycle()
	}
	return out
}

func toRecord(r *broker.Record, in *kgo.Record, a *broker.Assignment, hs *headerSlab) {
	r.Key, r.Value = in.Key, in.Value
	r.Partition = in.Partition
	r.Tombstone = in.Value == nil
	if len(in.Headers) > 0 {
		r.Headers = hs.of(in.Headers)
	}
	if !in.Timestamp.IsZero() {
		r.SetTime(in.Timestamp)
	}
	r.Bind(broker.NewOffset(in.Offset), a)
}

// A headerSlab holds the headers of many records in one allocation.
type headerSlab struct{ headers broker.Headers }

// makeFor makes room for the headers of in.
func (s *headerSlab) makeFor(in []*kgo.Record) {
	n := 0
	for _, r := range in {
		n += len(r.Headers)
	}
	s.headers = make(broker.Headers, 0, n)
}

func (s *headerSlab) of(in []kgo.RecordHeader) broker.Headers {
	first := len(s.headers)
	for i := range in {
		s.headers = append(s.headers, broker.Header{Key: in[i].Key, Value: string(in[i].Value)})
	}
	return s.headers[first:len(s.headers):len(s.headers)]
}
