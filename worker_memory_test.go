package broker_test

import (
	"context"
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/brokertest"
)

// floodQueue hands out n deliveries as soon as they are asked for, and counts
// those that nobody keeps any more.
type floodQueue struct {
	*brokertest.Queue
	n     int
	freed atomic.Int32
}

func (q *floodQueue) Consumer(context.Context, *broker.ConsumerOptions) (broker.Consumer, error) {
	return &floodConsumer{q}, nil
}

type floodConsumer struct{ q *floodQueue }

func (c *floodConsumer) Receive(ctx context.Context, max int) ([]*broker.Delivery, error) {
	if c.q.n == 0 {
		<-ctx.Done()
		return nil, broker.ContextError(ctx)
	}
	ds := make([]*broker.Delivery, min(max, c.q.n))
	for i := range ds {
		ds[i] = &broker.Delivery{Message: broker.Message{Priority: c.q.n}}
		ds[i].Bind(c, 0, 0)
		runtime.AddCleanup(ds[i], func(int) { c.q.freed.Add(1) }, 0)
		c.q.n--
	}
	return ds, nil
}

func (*floodConsumer) SettleOne(context.Context, *broker.Delivery, broker.Verdict) error { return nil }
func (*floodConsumer) Settle(context.Context, []broker.Outcome)                          {}
func (*floodConsumer) Close() error                                                      { return nil }

// A slow handler keeps its own message, a few others at most, and not all that
// came with it.
func TestWorkerLetsGoOfWhatIsDone(t *testing.T) {
	const n = 200
	q := &floodQueue{Queue: brokertest.NewQueue("q"), n: n}
	q.Caps.Lease = false
	release := make(chan struct{})
	w := &broker.Worker{
		Queue: q, Concurrency: n, Logger: quiet,
		Handler: func(_ context.Context, d *broker.Delivery) error {
			if d.Priority == n {
				<-release
			}
			return nil
		},
	}
	stop := start(t, w)
	for range 2000 {
		if runtime.GC(); q.freed.Load() >= n-16 {
			break
		}
		runtime.Gosched()
	}
	if got := q.freed.Load(); got < n-16 {
		t.Errorf("%d of the %d that are done are free: %+v", got, n-1, w.Stats())
	}
	close(release)
	if err := stop(); err != nil {
		t.Error(err)
	}
}
