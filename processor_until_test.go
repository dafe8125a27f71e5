package broker_test

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/brokertest"
)

// lagless is a stream that cannot tell the lag for a while.
type lagless struct {
	broker.Stream
	asked int
}

func (s *lagless) Lag(ctx context.Context, group string) ([]broker.PartitionLag, error) {
	if s.asked++; s.asked < 5 {
		return nil, broker.ErrUnavailable
	}
	return s.Stream.Lag(ctx, group)
}

// Where the end is looked for in vain, the processor receives all the same.
func TestProcessorUntilIsReadyWhileItLooksForTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner := brokertest.NewStream("s", 1)
		fill(t, inner, 5, 1)
		s := &lagless{Stream: inner}
		var seen watch
		p := &broker.Processor{
			Stream: gapped{s}, Group: "g", Until: broker.Now(), Logger: quiet, Observe: seen.observe,
			Handler: func(context.Context, *broker.Record) error { return nil },
		}
		done := make(chan error, 1)
		go func() { done <- p.Run(t.Context()) }()
		for len(seen.of(broker.ObservedReceiveError)) == 0 {
			advance(100 * time.Millisecond)
		}
		if err := p.Ready(); err != nil {
			t.Errorf("Ready: %v", err)
		}
		if err := <-done; err != nil || s.asked < 5 {
			t.Errorf("Run: %v, asked %d times", err, s.asked)
		}
	})
}

func TestProcessorUntil(t *testing.T) {
	handler := func(n *atomic.Int64) broker.RecordHandler {
		return func(context.Context, *broker.Record) error { n.Add(1); return nil }
	}
	t.Run("empty", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := &broker.Processor{Stream: brokertest.NewStream("s", 3), Group: "g", Until: broker.Now(), Logger: quiet, Handler: handler(new(atomic.Int64))}
			if err := p.Run(t.Context()); err != nil {
				t.Fatal(err)
			}
		})
	})
	t.Run("offset", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := brokertest.NewStream("s", 1)
			fill(t, s, 20, 3)
			var n atomic.Int64
			p := &broker.Processor{Stream: s, Group: "g", Until: broker.AtOffset(broker.NewOffset(7)), Logger: quiet, Handler: handler(&n)}
			if err := p.Run(t.Context()); err != nil || n.Load() != 7 || s.Committed("g", 0) != 7 {
				t.Errorf("%v: handled %d, committed %d", err, n.Load(), s.Committed("g", 0))
			}
		})
	})
	t.Run("time", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := brokertest.NewStream("s", 2)
			fill(t, s, 20, 3)
			advance(time.Minute)
			end := time.Now()
			fill(t, s, 20, 3)
			var n atomic.Int64
			p := &broker.Processor{Stream: s, Group: "g", Until: broker.AtTime(end), Logger: quiet, Handler: handler(&n)}
			if err := p.Run(t.Context()); err != nil || n.Load() != 20 {
				t.Errorf("%v: handled %d", err, n.Load())
			}
		})
	})
	t.Run("time ahead of all", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := brokertest.NewStream("s", 2)
			fill(t, s, 20, 3)
			var n atomic.Int64
			p := &broker.Processor{Stream: s, Group: "g", Until: broker.AtTime(time.Now().Add(time.Hour)), Logger: quiet, Handler: handler(&n)}
			if err := p.Run(t.Context()); err != nil || n.Load() != 20 {
				t.Errorf("%v: handled %d", err, n.Load())
			}
		})
	})
	t.Run("the zero time, before all", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := brokertest.NewStream("s", 2)
			fill(t, s, 20, 3)
			var n atomic.Int64
			p := &broker.Processor{Stream: s, Group: "g", Until: broker.AtTime(time.Time{}), Logger: quiet, Handler: handler(&n)}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if err := p.Run(ctx); err != nil || ctx.Err() != nil || n.Load() != 0 {
				t.Errorf("%v, %v: handled %d", err, ctx.Err(), n.Load())
			}
		})
	})
	t.Run("a gap at the end", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := brokertest.NewStream("s", 1)
			fill(t, s, 20, 3)
			var n atomic.Int64
			p := &broker.Processor{Stream: gapped{s}, Group: "g", Until: broker.Now(), Logger: quiet, Handler: handler(&n)}
			if err := p.Run(t.Context()); err != nil || n.Load() != 20 {
				t.Errorf("%v: handled %d", err, n.Load())
			}
		})
	})
	t.Run("committed already", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := brokertest.NewStream("s", 2)
			fill(t, s, 20, 3)
			for _, want := range []int64{20, 0} {
				var n atomic.Int64
				p := &broker.Processor{Stream: s, Group: "g", Until: broker.Latest(), Logger: quiet, Handler: handler(&n)}
				if err := p.Run(t.Context()); err != nil || n.Load() != want {
					t.Errorf("%v: handled %d, want %d", err, n.Load(), want)
				}
			}
		})
	})
}

// gapped is a stream whose end is beyond its last record, as after a
// transaction's marker.
type gapped struct{ broker.Stream }

func (g gapped) Partitions(ctx context.Context) ([]broker.Partition, error) {
	ps, err := g.Stream.Partitions(ctx)
	for i := range ps {
		n, _ := ps[i].Next.Int64()
		ps[i].Next = broker.NewOffset(n + 2)
	}
	return ps, err
}
