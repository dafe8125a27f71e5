package rabbitmq

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/rabbitmq/internal/streamwire"
)

// A Stream is a super stream, whose partitions are streams, or a single stream.
type Stream struct {
	b          *Broker
	name       string
	super      bool
	partitions []string // names in the broker
	producer   string   // unique: see producerName
	caps       broker.StreamCapabilities
	window     *window
	calls      calls
	ctx        context.Context // ends with Close
	cancel     context.CancelFunc
	workers    sync.WaitGroup
	writers    []*partitionWriter

	mu      sync.Mutex
	closed  bool
	members map[*member]struct{}
}

var _ broker.Stream = (*Stream)(nil)

func (b *Broker) openStream(ctx context.Context, name string, opts *broker.StreamOptions) (*Stream, error) {
	if b.isClosed() {
		return nil, broker.ErrClosed
	}
	if err := checkName(name); err != nil {
		return nil, err
	}
	names, super, err := b.partitions(ctx, name)
	if err != nil {
		return nil, err
	}
	s := &Stream{
		b: b, name: name, super: super, partitions: names,
		window: newWindow(10*b.o.Window, b.o.WindowBytes), members: map[*member]struct{}{},
		caps: broker.StreamCapabilities{
			Headers: true, Timestamps: true, SeekTime: true, GroupReset: true, MaxBytes: maxRecordBytes,
			Durable: true, Idempotent: true, Dedup: true,
		},
	}
	var named string
	if opts != nil {
		if err := s.caps.Satisfies(opts.Require); err != nil {
			return nil, err
		}
		named = opts.Producer
	}
	if s.producer, err = producerName(named); err != nil {
		return nil, err
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	for _, p := range names {
		s.writers = append(s.writers, newPartitionWriter(s, p))
	}
	if err := b.add(s); err != nil {
		s.cancel()
		return nil, err
	}
	return s, nil
}

// producerName is the name that a handle publishes under, with one ID of its
// own. The broker drops, and confirms, a number that is not above the last that
// it stored for a name: two producers of one name, each with numbers of its own,
// would lose records. Nothing is lost by it, since numbers are the handle's, and
// the records of its successor are no retries.
func producerName(named string) (string, error) {
	if len(named) > maxProducerName {
		return "", broker.Invalid("Producer of %d bytes: at most %d", len(named), maxProducerName)
	}
	if named == "" {
		return broker.NewID(), nil
	}
	return named + "." + broker.NewID(), nil
}

// maxProducerName leaves room for a dot and an ID of 36 bytes.
const maxProducerName = maxShortString - 37

// partitions returns the streams behind a name, in order.
func (b *Broker) partitions(ctx context.Context, name string) (names []string, super bool, err error) {
	names, err = control(ctx, b.streams, func(ctx context.Context, c *streamwire.Conn) ([]string, error) {
		return c.Partitions(ctx, name)
	})
	if err == nil && len(names) > 0 {
		slices.SortFunc(names, func(x, y string) int { return cmp.Compare(partitionIndex(x), partitionIndex(y)) })
		return names, true, nil
	}
	if err != nil && !errors.Is(err, broker.ErrNotFound) {
		return nil, false, err
	}
	_, err = control(ctx, b.streams, func(ctx context.Context, c *streamwire.Conn) (streamwire.Placement, error) {
		return c.Locate(ctx, name)
	})
	return []string{name}, false, err
}

func partitionIndex(name string) int {
	n, err := strconv.Atoi(name[strings.LastIndexByte(name, '-')+1:])
	if err != nil {
		return -1
	}
	return n
}

// Name implements [broker.Stream].
func (s *Stream) Name() string { return s.name }

// Adapter returns the name that errors carry.
func (s *Stream) Adapter() string { return adapterName }

// Capabilities implements [broker.Stream].
func (s *Stream) Capabilities() broker.StreamCapabilities { return s.caps }

// Publish implements [broker.Stream]. RabbitMQ does not tell the offset: the
// receipt has the partition, and the producer's number as its Sequence.
func (s *Stream) Publish(ctx context.Context, r broker.Record) (broker.Receipt, error) {
	rs, errs := s.publish(ctx, []broker.Record{r})
	return rs[0], fail("publish", s.name, errs[0])
}

// PublishBatch implements [broker.Stream].
func (s *Stream) PublishBatch(ctx context.Context, rs []broker.Record) ([]broker.Receipt, error) {
	receipts, errs := s.publish(ctx, rs)
	for i, err := range errs {
		errs[i] = fail("publish", s.name, err)
	}
	return receipts, broker.NewBatchError(errs)
}

func (s *Stream) publish(ctx context.Context, rs []broker.Record) ([]broker.Receipt, []error) {
	receipts, errs := make([]broker.Receipt, len(rs)), make([]error, len(rs))
	subs := make([]*submission, len(rs))
	open := s.calls.begin()
	if open {
		defer s.calls.end()
	}
	sticky := rand.IntN(len(s.partitions)) // of the records without a key
	landed := 0
	land := func(i int) {
		if sub := subs[i]; sub != nil {
			errs[i] = s.wait(ctx, receipts[i].Partition, sub)
			if sub.ID > 0 {
				receipts[i].Sequence = strconv.FormatInt(sub.ID, 10)
			}
		}
	}
	for i := range rs {
		receipts[i].ID = broker.NewID()
		r := &rs[i]
		if !open {
			errs[i] = broker.ErrClosed
			continue
		}
		if errs[i] = s.check(r); errs[i] != nil {
			continue
		}
		if errs[i] = broker.ContextError(ctx); errs[i] != nil {
			continue // nothing is sent with an ended context
		}
		p := s.partition(r, sticky)
		m, err := encodeRecord(r)
		if err != nil {
			errs[i] = broker.Invalid("%v", err)
			continue
		}
		sub := &submission{Entry: streamwire.Entry{Message: m}, done: make(chan struct{})}
		sub.weight = min(s.window.max, max(s.window.min, int64(sub.size())))
		for held := false; !held && errs[i] == nil; {
			switch held = s.window.sem.TryAcquire(sub.weight); {
			case held:
			case landed < i: // free what this call holds itself
				land(landed)
				landed++
			default:
				held = s.window.sem.Acquire(ctx, sub.weight) == nil
			}
			if !held {
				errs[i] = broker.ContextError(ctx)
			}
		}
		if errs[i] != nil {
			continue
		}
		receipts[i].Partition = int32(p) //nolint:gosec // few
		subs[i] = sub
		s.writers[p].submit(sub)
	}
	for ; landed < len(rs); landed++ {
		land(landed)
	}
	return receipts, errs
}

// wait returns what became of a submission.
func (s *Stream) wait(ctx context.Context, partition int32, sub *submission) error {
	select {
	case <-sub.done:
		s.window.sem.Release(sub.weight)
		return sub.err
	case <-ctx.Done():
	}
	release := func() {
		<-sub.done
		s.window.sem.Release(sub.weight)
	}
	go release() // the writer completes every submission, at Close at the latest
	if s.writers[partition].leave(sub) {
		return broker.ContextError(ctx)
	}
	return broker.UnknownOutcome(broker.ContextError(ctx))
}

func (s *Stream) check(r *broker.Record) error {
	if err := broker.ValidateRecord(r, &s.caps); err != nil {
		return err
	}
	if r.Pin && int(r.Partition) >= len(s.partitions) {
		return broker.Invalid("Partition %d: there are %d", r.Partition, len(s.partitions))
	}
	if len(r.Key)+r.Headers.Size() > maxHeaderBytes {
		return fmt.Errorf("key and headers: %w", &broker.SizeError{Size: len(r.Key) + r.Headers.Size(), Limit: maxHeaderBytes})
	}
	return nil
}

func (s *Stream) partition(r *broker.Record, sticky int) int {
	switch {
	case r.Pin:
		return int(r.Partition)
	case len(r.Key) == 0:
		return sticky
	}
	return int(keyHash(r.Key) % uint32(len(s.partitions))) //nolint:gosec // few
}

// Close implements [broker.Stream].
func (s *Stream) Close() error {
	s.mu.Lock()
	s.closed = true
	ms := make([]*member, 0, len(s.members))
	for m := range s.members {
		ms = append(ms, m)
	}
	s.mu.Unlock()
	s.calls.close()
	s.b.remove(s)
	var wg sync.WaitGroup
	for _, m := range ms {
		wg.Go(func() { m.close() })
	}
	wg.Wait()
	s.cancel()
	s.workers.Wait()
	return nil
}

// drain waits for what is being published. Members have nothing in hand that
// the broker would wait for.
func (s *Stream) drain(ctx context.Context) error { return s.calls.wait(ctx) }
