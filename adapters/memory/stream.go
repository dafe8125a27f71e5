package memory

import (
	"context"
	"fmt"
	"iter"
	"sync"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/internal/handles"
)

var _ broker.Stream = (*Stream)(nil)

// Stream opens a stream that was declared.
func (b *Broker) Stream(ctx context.Context, name string, opts *broker.StreamOptions) (broker.Stream, error) {
	h, err := b.openStream(ctx, name, opts)
	if err != nil {
		return nil, opError("open stream", name, err)
	}
	return h, nil
}

func (b *Broker) openStream(ctx context.Context, name string, opts *broker.StreamOptions) (*Stream, error) {
	if err := b.check(ctx); err != nil {
		return nil, err
	}
	if !b.srv.rules.streams {
		return nil, broker.Unsupported("the profile %q has no streams", b.srv.opts.Profile)
	}
	if err := b.srv.rules.queueName(name); err != nil {
		return nil, err
	}
	s, err := b.srv.stream(name)
	if err != nil {
		return nil, err
	}
	h := &Stream{b: b, s: s, caps: s.capabilities(), gate: newGate(), members: map[*GroupConsumer]struct{}{}}
	if opts != nil {
		if opts.Producer != "" && !h.caps.Dedup {
			return nil, broker.Unsupported("Producer: the stream does not deduplicate by producer")
		}
		if err := h.caps.Satisfies(opts.Require); err != nil {
			return nil, err
		}
	}
	return h, b.handles.Add(h)
}

// A Stream is one handle of a stream. It is safe for concurrent use.
type Stream struct {
	b    *Broker
	s    *stream
	caps broker.StreamCapabilities

	gate     *gate
	mu       sync.Mutex
	isClosed bool
	members  map[*GroupConsumer]struct{}
}

// Name returns the stream's name.
func (h *Stream) Name() string { return h.s.name }

// Adapter returns the name that errors carry.
func (h *Stream) Adapter() string { return adapter }

// Identity does what [broker.Identifier] promises.
func (h *Stream) Identity(context.Context) (string, error) { return h.s.identity, nil }

// Capabilities returns what this handle honours.
func (h *Stream) Capabilities() broker.StreamCapabilities { return h.caps }

// check returns the error that keeps an operation from starting.
func (h *Stream) check(ctx context.Context) error {
	if ctx.Err() != nil {
		return broker.ContextError(ctx)
	}
	return h.ended()
}

func (h *Stream) connection() *Broker { return h.b }

func (h *Stream) ended() error {
	if h.gate.ended() {
		return broker.ErrClosed
	}
	return nil
}

// reach is check for a call that goes to the broker.
func (h *Stream) reach(ctx context.Context) error {
	if err := h.check(ctx); err != nil {
		return err
	}
	if f := h.s.srv.faults.Load(); f != nil {
		return f.reach(ctx, h)
	}
	return nil
}

// send begins a publish: nil without faults.
func (h *Stream) send(ctx context.Context) (*sending, error) {
	f := h.s.srv.faults.Load()
	if f == nil {
		return nil, nil
	}
	if err := h.check(ctx); err != nil {
		return nil, err
	}
	return f.send(ctx, h)
}

// Publish appends a copy of r.
func (h *Stream) Publish(ctx context.Context, r broker.Record) (broker.Receipt, error) {
	s, err := h.send(ctx)
	if err != nil {
		return broker.Receipt{}, opError("publish", h.s.name, err)
	}
	receipt, err := h.publish(ctx, &r, s)
	if s != nil && err == nil {
		err = s.answer(ctx)
	}
	return receipt, opError("publish", h.s.name, err)
}

// publish appends r, as a part of s unless that is nil.
func (h *Stream) publish(ctx context.Context, r *broker.Record, s *sending) (broker.Receipt, error) {
	if err := h.check(ctx); err != nil {
		return broker.Receipt{}, err
	}
	if err := broker.ValidateRecord(r, &h.caps); err != nil {
		return broker.Receipt{}, err
	}
	if s == nil {
		return h.store(r)
	}
	_, after, err := s.one()
	if err != nil {
		return broker.Receipt{}, err
	}
	receipt, err := h.store(r)
	return receipt, after(err)
}

func (h *Stream) store(r *broker.Record) (broker.Receipt, error) {
	h.s.mu.Lock()
	defer h.s.mu.Unlock()
	return h.s.store(r, nil)
}

// PublishBatch appends copies of rs in order, each on its own.
func (h *Stream) PublishBatch(ctx context.Context, rs []broker.Record) ([]broker.Receipt, error) {
	receipts := make([]broker.Receipt, len(rs))
	var errs []error
	failed := func(i int, err error) {
		if errs == nil {
			errs = make([]error, len(rs))
		}
		if err != nil && errs[i] == nil {
			errs[i] = opError("publish", h.s.name, err)
		}
	}
	s, sendErr := h.send(ctx)
	for i := range rs {
		err, r := sendErr, rs[i]
		if err == nil {
			receipts[i], err = h.publish(ctx, &r, s)
		}
		if err != nil {
			failed(i, err)
		}
	}
	if s != nil {
		err := s.answer(ctx)
		for i := range rs {
			failed(i, err)
		}
	}
	return receipts, broker.NewBatchError(errs)
}

// Partitions returns every partition with its first and next offset.
func (h *Stream) Partitions(ctx context.Context) ([]broker.Partition, error) {
	if err := h.reach(ctx); err != nil {
		return nil, opError("partitions", h.s.name, err)
	}
	s := h.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.deleted {
		return nil, opError("partitions", s.name, broker.ErrNotFound)
	}
	ps := make([]broker.Partition, len(s.parts))
	for i, p := range s.parts {
		s.retain(p, time.Now())
		ps[i] = broker.Partition{ID: p.id, First: broker.NewOffset(p.first), Next: broker.NewOffset(p.next)}
	}
	return ps, nil
}

// Lag returns the group's lag; a group that never was has all of it.
func (h *Stream) Lag(ctx context.Context, group string) ([]broker.PartitionLag, error) {
	if err := h.reach(ctx); err != nil {
		return nil, opError("lag", h.s.name, err)
	}
	s := h.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.deleted {
		return nil, opError("lag", s.name, broker.ErrNotFound)
	}
	g := s.group(group)
	lags := make([]broker.PartitionLag, len(s.parts))
	t := time.Now()
	for i, p := range s.parts {
		s.retain(p, t)
		l := broker.PartitionLag{Partition: p.id}
		from, committed := p.first, false
		if g != nil {
			committed = g.readCommitted
			if n, ok := g.offsets[p.id]; ok {
				l.Committed, l.HasCommit = broker.NewOffset(n), true
				from = max(n, p.first)
			}
		}
		end := p.end(committed, t.UnixNano())
		l.Next = broker.NewOffset(end)
		l.Lag = p.count(from, end, committed)
		lags[i] = l
	}
	return lags, nil
}

// readBatch is how many records Read copies at once.
const readBatch = 64

// Read does what broker.Stream promises, one partition after the other.
func (h *Stream) Read(ctx context.Context, r broker.Range) iter.Seq2[*broker.Record, error] {
	return func(yield func(*broker.Record, error) bool) {
		spans, err := h.spans(ctx, &r)
		if err != nil {
			yield(nil, opError("read", h.s.name, err))
			return
		}
		for _, sp := range spans {
			for sp.from < sp.until {
				batch, err := h.readSome(ctx, &sp, r.ReadCommitted)
				if err != nil {
					yield(nil, opError("read", h.s.name, err))
					return
				}
				for _, rec := range batch {
					if !yield(rec, nil) {
						return
					}
				}
			}
		}
	}
}

// A span is what is left to read of a partition.
type span struct {
	partition   int32
	from, until int64
}

// spans fixes what is to be read.
func (h *Stream) spans(ctx context.Context, r *broker.Range) ([]span, error) {
	if err := h.reach(ctx); err != nil {
		return nil, err
	}
	if r.ReadCommitted && !h.caps.Transactions {
		return nil, broker.Unsupported("ReadCommitted: the stream has no transactions")
	}
	s := h.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.deleted {
		return nil, broker.ErrNotFound
	}
	ids := r.Partitions
	if ids == nil {
		for i := range s.parts {
			ids = append(ids, int32(i))
		}
	}
	t := time.Now()
	spans := make([]span, 0, len(ids))
	for _, id := range ids {
		if id < 0 || int(id) >= len(s.parts) {
			return nil, fmt.Errorf("%w: partition %d: the stream has %d", broker.ErrNotFound, id, len(s.parts))
		}
		p := s.parts[id]
		s.retain(p, t)
		from, err := s.resolve(r.From, p)
		if err != nil {
			return nil, fmt.Errorf("from: %w", err)
		}
		until := p.end(r.ReadCommitted, t.UnixNano())
		switch r.Until.Kind() {
		case broker.PositionDefault, broker.PositionNow, broker.PositionLatest:
		case broker.PositionOffset:
			if n, ok := r.Until.Offset().Int64(); ok {
				until = min(until, n)
			}
		default:
			n, err := s.resolve(r.Until, p)
			if err != nil {
				return nil, fmt.Errorf("until: %w", err)
			}
			until = min(until, n)
		}
		spans = append(spans, span{id, from, until})
	}
	return spans, nil
}

// readSome reads the next records of a span and moves it on.
func (h *Stream) readSome(ctx context.Context, sp *span, committed bool) ([]*broker.Record, error) {
	if err := h.reach(ctx); err != nil {
		return nil, err
	}
	h.s.mu.Lock()
	defer h.s.mu.Unlock()
	if h.s.deleted {
		return nil, broker.ErrNotFound
	}
	var rs []*broker.Record
	rs, sp.from = h.s.parts[sp.partition].fetch(nil, sp.from, sp.until, readBatch, committed, nil)
	return rs, nil
}

// Close closes the handle and its members of groups. It may be called again.
func (h *Stream) Close() error {
	h.mu.Lock()
	if h.isClosed {
		h.mu.Unlock()
		return nil
	}
	h.isClosed = true
	close(h.gate.closed)
	ms := h.members
	h.members = nil
	h.mu.Unlock()
	h.s.srv.wake()
	for m := range ms {
		m.shut()
	}
	h.b.handles.Remove(h)
	return nil
}

func (h *Stream) all() []*GroupConsumer {
	h.mu.Lock()
	defer h.mu.Unlock()
	ms := make([]*GroupConsumer, 0, len(h.members))
	for m := range h.members {
		ms = append(ms, m)
	}
	return ms
}

func (h *Stream) stop(err error) {
	for _, m := range h.all() {
		m.stop(err)
	}
}

func (h *Stream) drain(ctx context.Context) error {
	return handles.Each(h.all(), func(m *GroupConsumer) error { return m.drain(ctx) })
}

func (h *Stream) disconnect() {
	for _, m := range h.all() {
		h.s.mu.Lock()
		m.cut()
		m.wake()
		h.s.mu.Unlock()
	}
}
