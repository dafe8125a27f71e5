package kafka

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/queuestream/broker"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Read does what broker.Stream promises. It fetches by itself, without a
// client of its own, so that it knows its position also where no record is
// (transaction markers, compaction), and so where to end. An Until beyond the
// end waits for the records that are missing.
func (s *Stream) Read(ctx context.Context, r broker.Range) iter.Seq2[*broker.Record, error] {
	return func(yield func(*broker.Record, error) bool) {
		if err := s.read(ctx, r, yield); err != nil && !errors.Is(err, errStopped) {
			yield(nil, fail("read", s.topic.name, err))
		}
	}
}

// errStopped ends a read whose caller has had enough.
var errStopped = errors.New("stopped")

func (s *Stream) read(ctx context.Context, r broker.Range, yield func(*broker.Record, error) bool) error {
	spans, err := s.spans(ctx, r)
	if err != nil {
		return err
	}
	f := &fetcher{s: s, committed: r.ReadCommitted}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for next := f.start(ctx, spans); next != nil; {
		p := <-next
		// The next fetch is under way while the records of this one are yielded.
		if next = nil; p.err == nil && len(p.rest) > 0 {
			next = f.start(ctx, p.rest)
		}
		for _, rec := range p.records {
			if !yield(rec, nil) {
				f.abandon(next, cancel)
				return errStopped
			}
		}
		if p.err != nil {
			return p.err
		}
	}
	return nil
}

// A span is what remains to be read of a partition.
type span struct {
	partition   int32
	next, until int64
}

// spans fixes both ends of what r asks for.
func (s *Stream) spans(ctx context.Context, r broker.Range) ([]*span, error) {
	if err := broker.ContextError(ctx); err != nil {
		return nil, err
	}
	if err := s.usable(); err != nil {
		return nil, err
	}
	until := r.Until
	if until.IsZero() {
		until = broker.Now()
	}
	to, err := s.untils(ctx, until, r.ReadCommitted)
	if err != nil {
		return nil, err
	}
	from, err := s.resolve(ctx, r.From, r.ReadCommitted)
	if err != nil {
		return nil, err
	}
	partitions := r.Partitions
	if partitions == nil {
		partitions = sorted(to)
	}
	spans := make([]*span, 0, len(partitions))
	for _, p := range partitions {
		next, ok := from[p]
		switch {
		case !ok:
			return nil, broker.Invalid("partition %d: the stream has %d", p, len(to))
		case next < 0:
			return nil, outOfRange(r.From, p)
		case next < to[p] && !slices.ContainsFunc(spans, func(s *span) bool { return s.partition == p }):
			spans = append(spans, &span{p, next, to[p]})
		}
	}
	return spans, nil
}

// untils resolves an end, which may lie beyond what is there.
func (s *Stream) untils(ctx context.Context, until broker.Position, committed bool) (map[int32]int64, error) {
	to, err := s.resolve(ctx, until, committed)
	if err != nil || until.Kind() != broker.PositionOffset {
		return to, err
	}
	n, _ := until.Offset().Int64()
	for p := range to {
		to[p] = n
	}
	return to, nil
}

// A page is what one fetch found, what is left to read, and why it failed.
type page struct {
	records []*broker.Record
	rest    []*span
	err     error
}

// A fetcher reads partitions from their leaders, one fetch at a time.
type fetcher struct {
	s         *Stream
	committed bool
	leaders   map[int32]int32
	id        [16]byte
	bytes     atomic.Int64 // fetched so far
}

const (
	readMaxWait      = 500 * time.Millisecond
	readMaxBytes     = 16 << 20
	readMaxPartition = 1 << 20
	readGrace        = 100 * time.Millisecond
)

// start fetches in the background; nil if there is nothing to fetch.
func (f *fetcher) start(ctx context.Context, spans []*span) <-chan page {
	if len(spans) == 0 {
		return nil
	}
	out := make(chan page, 1)
	go func() { out <- f.page(ctx, spans) }()
	return out
}

// abandon waits for a fetch that nobody wants any more. Cancelling one cuts
// the connection, so that comes second.
func (f *fetcher) abandon(next <-chan page, cancel func()) {
	if next == nil {
		return
	}
	t := time.AfterFunc(readGrace, cancel)
	defer t.Stop()
	<-next
}

// page fetches until there are records, or nothing is left. It sits out what
// passes: a leader that moves, a connection that breaks.
func (f *fetcher) page(ctx context.Context, spans []*span) page {
	for wait := 20 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		records, err := f.round(ctx, spans)
		spans = slices.DeleteFunc(spans, func(s *span) bool { return s.next >= s.until })
		if ce := broker.ContextError(ctx); ce != nil && len(spans) > 0 {
			return page{records: records, err: ce}
		}
		if err != nil && !passing(err) {
			return page{records: records, err: err}
		}
		if len(records) > 0 || len(spans) == 0 {
			return page{records: records, rest: spans}
		}
		if err == nil {
			wait = 20 * time.Millisecond
			continue
		}
		f.leaders = nil
		if err := sleep(ctx, wait); err != nil {
			return page{err: err}
		}
	}
}

// passing tells the failures that a new look at the metadata may end.
func passing(err error) bool {
	err = classify(err)
	return temporary(err) && !errors.Is(err, broker.ErrNotFound)
}

// round asks every leader once for what it has of spans, and moves those on.
func (f *fetcher) round(ctx context.Context, spans []*span) ([]*broker.Record, error) {
	if err := f.load(ctx); err != nil {
		return nil, err
	}
	byLeader := map[int32][]*span{}
	for _, s := range spans {
		l, ok := f.leaders[s.partition]
		if !ok || l < 0 {
			return nil, kerr.LeaderNotAvailable
		}
		byLeader[l] = append(byLeader[l], s)
	}
	found := make([][]*broker.Record, len(byLeader))
	errs := make([]error, len(byLeader))
	var wg sync.WaitGroup
	for i, l := range sorted(byLeader) {
		wg.Go(func() { found[i], errs[i] = f.fetch(ctx, l, byLeader[l]) })
	}
	wg.Wait()
	return slices.Concat(found...), errors.Join(errs...)
}

// load reads the topic's id and its partitions' leaders, unless known.
func (f *fetcher) load(ctx context.Context) error {
	if f.leaders != nil {
		return nil
	}
	name := f.s.topic.name
	details, err := f.s.b.admin.ListTopics(ctx, name)
	if err != nil {
		return authError(err)
	}
	d := details[name]
	if d.Err != nil {
		return d.Err
	}
	if f.id != [16]byte{} && f.id != d.ID {
		return fmt.Errorf("%w: the topic was deleted and created again while it was read", broker.ErrNotFound)
	}
	f.id, f.leaders = d.ID, make(map[int32]int32, len(d.Partitions))
	for p, pd := range d.Partitions {
		f.leaders[p] = pd.Leader
	}
	return nil
}

func (f *fetcher) fetch(ctx context.Context, leader int32, spans []*span) ([]*broker.Record, error) {
	req := kmsg.NewPtrFetchRequest()
	req.MaxWaitMillis = int32(readMaxWait / time.Millisecond)
	req.MinBytes, req.MaxBytes = 1, readMaxBytes
	req.SessionEpoch = -1
	isolation := kgo.ReadUncommitted()
	if f.committed {
		req.IsolationLevel, isolation = 1, kgo.ReadCommitted()
	}
	t := kmsg.NewFetchRequestTopic()
	t.Topic, t.TopicID = f.s.topic.name, f.id
	for _, s := range spans {
		p := kmsg.NewFetchRequestTopicPartition()
		p.Partition, p.FetchOffset, p.PartitionMaxBytes = s.partition, s.next, readMaxPartition
		t.Partitions = append(t.Partitions, p)
	}
	req.Topics = append(req.Topics, t)
	kresp, err := f.s.b.client.Broker(int(leader)).RetriableRequest(ctx, req)
	if err != nil {
		return nil, err
	}
	resp, ok := kresp.(*kmsg.FetchResponse)
	if !ok {
		return nil, fmt.Errorf("answer of type %T to a fetch", kresp)
	}
	if err := kerr.ErrorForCode(resp.ErrorCode); err != nil {
		return nil, err
	}
	var out []*broker.Record
	var errs []error
	for i := range resp.Topics {
		for j := range resp.Topics[i].Partitions {
			rp := &resp.Topics[i].Partitions[j]
			k := slices.IndexFunc(spans, func(s *span) bool { return s.partition == rp.Partition })
			if k < 0 {
				continue
			}
			f.bytes.Add(int64(len(rp.RecordBatches)))
			fp, next := kgo.ProcessFetchPartition(kgo.ProcessFetchPartitionOpts{
				Offset: spans[k].next, IsolationLevel: isolation, Topic: f.s.topic.name, Partition: rp.Partition, Pools: []kgo.Pool{&slabs},
			}, rp, kgo.DefaultDecompressor(), nil)
			if fp.Err != nil {
				errs = append(errs, fmt.Errorf("partition %d at offset %d: %w", rp.Partition, spans[k].next, fp.Err))
			}
			out = append(out, spans[k].take(fp.Records, next)...)
		}
	}
	return out, errors.Join(errs...)
}

// take translates what lies before the end, and moves the span on.
func (s *span) take(in []*kgo.Record, next int64) []*broker.Record {
	n := len(in)
	for n > 0 && in[n-1].Offset >= s.until {
		n--
	}
	s.next = max(s.next, next)
	return appendRecords(make([]*broker.Record, 0, n), in[:n], nil)
}
