package broker_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/queuestream/broker"
)

// endless is a Queue whose consumer makes deliveries up without end, so that
// what is measured is the Worker alone.
type endless struct {
	broker.Queue
	caps   broker.QueueCapabilities
	rtt    time.Duration // of a Settle call
	total  int64
	body   []byte
	given  atomic.Int64
	acked  atomic.Int64
	all    chan struct{}
	settle sync.Mutex // one round trip at a time for SettleOne's like
	calls  atomic.Int64
}

func newEndless(total int, rtt time.Duration) *endless {
	return &endless{
		caps:  broker.QueueCapabilities{Reject: true, NackDelay: true, Attempts: true},
		total: int64(total), rtt: rtt, all: make(chan struct{}), body: make([]byte, 256),
	}
}

func (e *endless) Name() string                           { return "endless" }
func (e *endless) Capabilities() broker.QueueCapabilities { return e.caps }
func (e *endless) Close() error                           { return nil }
func (e *endless) Consumer(context.Context, *broker.ConsumerOptions) (broker.Consumer, error) {
	return e, nil
}

func (e *endless) Receive(ctx context.Context, max int) ([]*broker.Delivery, error) {
	n := int(min(int64(max), e.total-e.given.Load()))
	if n <= 0 {
		<-ctx.Done()
		return nil, broker.ContextError(ctx)
	}
	e.given.Add(int64(n))
	slab := make([]broker.Delivery, n)
	ds := make([]*broker.Delivery, n)
	for i := range ds {
		ds[i] = &slab[i]
		ds[i].Body, ds[i].Attempt = e.body, 1
		ds[i].Bind(e, 0, 0)
	}
	return ds, nil
}

func (e *endless) SettleOne(ctx context.Context, d *broker.Delivery, v broker.Verdict) error {
	batch := []broker.Outcome{{Delivery: d, Verdict: v}}
	e.Settle(ctx, batch)
	return batch[0].Err
}

func (e *endless) Settle(_ context.Context, batch []broker.Outcome) {
	e.calls.Add(1)
	if e.rtt > 0 {
		e.settle.Lock()
		<-time.After(e.rtt)
		e.settle.Unlock()
	}
	if e.acked.Add(int64(len(batch))) == e.total {
		close(e.all)
	}
}

func runWorker(tb testing.TB, w *broker.Worker, until <-chan struct{}) {
	tb.Helper()
	ctx, cancel := context.WithCancel(tb.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	select {
	case <-until:
	case err := <-done:
		tb.Fatalf("Run ended: %v", err)
	}
	cancel()
	if err := <-done; err != nil {
		tb.Fatal(err)
	}
}

func BenchmarkWorker(b *testing.B) {
	for _, lanes := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("lanes=%d", lanes), func(b *testing.B) {
			b.ReportAllocs()
			e := newEndless(b.N, 0)
			b.ResetTimer()
			runWorker(b, &broker.Worker{
				Queue: e, Concurrency: lanes, Logger: quiet,
				Handler: func(context.Context, *broker.Delivery) error { return nil },
			}, e.all)
		})
	}
}

// TestWorkerSettlesBehindTheLane holds the figure of the design: with 5 ms a
// round trip and 8 lanes at least 5,000 messages a second.
func TestWorkerSettlesBehindTheLane(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 20_000
		e := newEndless(n, 5*time.Millisecond)
		began := time.Now()
		runWorker(t, &broker.Worker{
			Queue: e, Concurrency: 8, Logger: quiet,
			Handler: func(context.Context, *broker.Delivery) error {
				<-time.After(time.Millisecond)
				return nil
			},
		}, e.all)
		rate := float64(n) / time.Since(began).Seconds()
		t.Logf("%.0f messages a second in %d settle calls", rate, e.calls.Load())
		if rate < 5000 {
			t.Errorf("%.0f messages a second, want at least 5,000", rate)
		}
	})
}

func TestWorkerSettlesALoneMessageAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEndless(1, 5*time.Millisecond)
		began := time.Now()
		runWorker(t, &broker.Worker{
			Queue: e, Logger: quiet,
			Handler: func(context.Context, *broker.Delivery) error { return nil },
		}, e.all)
		if took := time.Since(began); took != 5*time.Millisecond {
			t.Errorf("settled after %v, want one round trip of 5 ms", took)
		}
	})
}

// endlessStream makes records up.
type endlessStream struct {
	broker.Stream
	keys   int
	total  int64
	given  int64
	parts  []*broker.Assignment
	all    chan struct{}
	paused sync.Map
	wake   chan struct{}
	key    [][]byte
	value  []byte
}

func newEndlessStream(total, partitions, keys int) *endlessStream {
	s := &endlessStream{total: int64(total), keys: keys, all: make(chan struct{}), wake: make(chan struct{}, 1), value: make([]byte, 256)}
	for i := range partitions {
		s.parts = append(s.parts, &broker.Assignment{Stream: "endless", Group: "g", Partition: int32(i)})
	}
	for i := range max(keys, 1) {
		s.key = append(s.key, fmt.Appendf(nil, "key-%d", i))
	}
	return s
}

func (s *endlessStream) Name() string { return "endless" }
func (s *endlessStream) Consumer(context.Context, string, *broker.GroupOptions) (broker.GroupConsumer, error) {
	return &endlessMember{s}, nil
}

type endlessMember struct{ s *endlessStream }

func (m *endlessMember) Seek(context.Context, int32, broker.Position) error { return nil }
func (m *endlessMember) Partitions() []int32                                { return nil }
func (m *endlessMember) Close() error                                       { return nil }

func (m *endlessMember) Pause(ps ...int32) {
	for _, p := range ps {
		m.s.paused.Store(p, true)
	}
}

func (m *endlessMember) Resume(ps ...int32) {
	for _, p := range ps {
		m.s.paused.Delete(p)
	}
	select {
	case m.s.wake <- struct{}{}:
	default:
	}
}

func (m *endlessMember) Receive(ctx context.Context, max int) ([]*broker.Record, error) {
	s := m.s
	for ctx.Err() == nil {
		part := s.parts[int(s.given/512)%len(s.parts)]
		n := int(min(int64(max), s.total-s.given, 512-s.given%512))
		if _, paused := s.paused.Load(part.Partition); paused || n <= 0 {
			select {
			case <-ctx.Done():
			case <-s.wake:
			}
			continue
		}
		slab := make([]broker.Record, n)
		rs := make([]*broker.Record, n)
		for i := range rs {
			r := &slab[i]
			r.Partition, r.Value = part.Partition, s.value
			if s.keys > 0 {
				r.Key = s.key[int(s.given)%s.keys]
			}
			r.Bind(broker.NewOffset(s.given), part)
			s.given++
			rs[i] = r
		}
		return rs, nil
	}
	return nil, broker.ContextError(ctx)
}

func (m *endlessMember) Commit(_ context.Context, rs ...*broker.Record) error {
	for _, r := range rs {
		if n, _ := r.Offset().Int64(); n == m.s.total-1 {
			close(m.s.all)
		}
	}
	return nil
}

func BenchmarkProcessor(b *testing.B) {
	for _, bc := range []struct{ lanes, keys int }{{1, 0}, {8, 0}, {8, 1000}, {8, 1}, {64, 1000}} {
		b.Run(fmt.Sprintf("lanes=%d/keys=%d", bc.lanes, bc.keys), func(b *testing.B) {
			b.ReportAllocs()
			s := newEndlessStream(b.N, 1, bc.keys)
			b.ResetTimer()
			p := &broker.Processor{
				Stream: s, Group: "g", Concurrency: bc.lanes, Logger: quiet,
				Handler: func(context.Context, *broker.Record) error { return nil },
			}
			ctx, cancel := context.WithCancel(b.Context())
			defer cancel()
			done := make(chan error, 1)
			go func() { done <- p.Run(ctx) }()
			<-s.all
			cancel()
			if err := <-done; err != nil {
				b.Fatal(err)
			}
		})
	}
}
