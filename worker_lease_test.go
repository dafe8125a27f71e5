package broker_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/brokertest"
)

func TestWorkerKeepsLeases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := brokertest.NewQueue("jobs", messages(3)...)
		q.Lease = 30 * time.Second
		w := &broker.Worker{Queue: q, Logger: quiet, Handler: func(ctx context.Context, _ *broker.Delivery) error {
			select {
			case <-time.After(10 * time.Minute):
				return nil
			case <-ctx.Done():
				t.Errorf("the handler was cut off: %v", context.Cause(ctx))
				return ctx.Err()
			}
		}}
		stop := start(t, w)
		advance(11 * time.Minute)
		if s := w.Stats(); s.Acked != 3 || s.LeaseLost != 0 {
			t.Errorf("stats %+v", s)
		}
		n := 0
		for _, o := range q.Recorder.Outcomes() {
			if o.Verdict.Kind == broker.VerdictExtend {
				n++
			}
		}
		if n < 3*55 || n > 3*62 {
			t.Errorf("%d extensions of 3 deliveries in 10 min, want one each 10 s", n)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

// A verdict that passes an extension on its way makes the broker refuse that:
// the delivery is settled, not lost.
func TestWorkerExtendsWhatIsSettled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := brokertest.NewQueue("jobs", messages(1)...)
		q.Lease = 30 * time.Second
		extending, acked := make(chan struct{}), make(chan struct{})
		q.Recorder.Fail = func(_ *broker.Delivery, v broker.Verdict) error {
			if v.Kind == broker.VerdictAck {
				close(acked)
				return nil
			}
			close(extending)
			<-acked
			return broker.ErrLeaseLost
		}
		var seen watch
		w := &broker.Worker{Queue: q, Logger: quiet, Observe: seen.observe, Handler: func(context.Context, *broker.Delivery) error {
			<-extending
			return nil
		}}
		stop := start(t, w)
		advance(time.Minute)
		if s := w.Stats(); s.Acked != 1 || s.LeaseLost != 0 || len(seen.of(broker.ObservedLeaseLost)) != 0 {
			t.Errorf("stats %+v", s)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestWorkerLosesALease(t *testing.T) {
	for _, tc := range []struct {
		name string
		fail error // of the extension
		at   time.Duration
	}{
		{"the broker says so", broker.ErrLeaseLost, 10 * time.Second},
		{"extending is unsupported", broker.ErrUnsupported, 30 * time.Second},
		{"the broker is away", broker.ErrUnavailable, 30 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				q := brokertest.NewQueue("jobs", messages(1)...)
				q.Lease = 30 * time.Second
				q.Recorder.Fail = func(_ *broker.Delivery, v broker.Verdict) error {
					if v.Kind == broker.VerdictExtend {
						return tc.fail
					}
					return nil
				}
				var seen watch
				began := time.Now()
				done := make(chan time.Duration, 1)
				w := &broker.Worker{Queue: q, Logger: quiet, Observe: seen.observe, Handler: func(ctx context.Context, _ *broker.Delivery) error {
					<-ctx.Done()
					if !errors.Is(context.Cause(ctx), broker.ErrLeaseLost) {
						t.Errorf("cause %v", context.Cause(ctx))
					}
					done <- time.Since(began)
					return ctx.Err()
				}}
				stop := start(t, w)
				if at := <-done; at < tc.at || at > tc.at+3*time.Second {
					t.Errorf("lost after %v, want %v", at, tc.at)
				}
				synctest.Wait()
				if n := len(seen.of(broker.ObservedLeaseLost)); n != 1 {
					t.Errorf("%d lease losses observed", n)
				}
				if _, ok := q.Recorder.Settled("0"); ok {
					t.Error("a lost delivery was settled")
				}
				if err := stop(); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}

func TestWorkerNoticesALostConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := brokertest.NewQueue("jobs", messages(1)...) // no lease: as on RabbitMQ
		w := &broker.Worker{Queue: q, Logger: quiet, Handler: func(ctx context.Context, d *broker.Delivery) error {
			d.Lose()
			<-ctx.Done()
			if !errors.Is(context.Cause(ctx), broker.ErrLeaseLost) {
				t.Errorf("cause %v", context.Cause(ctx))
			}
			return nil
		}}
		stop := start(t, w)
		advance(2 * time.Second)
		if s := w.Stats(); s.LeaseLost != 1 || s.Acked != 0 || s.Held != 0 {
			t.Errorf("stats %+v", s)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestWorkerBatchLeaseLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := brokertest.NewQueue("jobs", messages(2)...)
		w := &broker.Worker{Queue: q, Logger: quiet, BatchHandler: func(ctx context.Context, ds []*broker.Delivery) error {
			ds[0].Lose()
			spend(5 * time.Second)
			if ctx.Err() != nil {
				t.Error("the batch was cut off for one of two")
			}
			ds[1].Lose()
			<-ctx.Done()
			if !errors.Is(context.Cause(ctx), broker.ErrLeaseLost) {
				t.Errorf("cause %v", context.Cause(ctx))
			}
			return nil
		}}
		stop := start(t, w)
		advance(10 * time.Second)
		if s := w.Stats(); s.LeaseLost != 2 || s.Held != 0 {
			t.Errorf("stats %+v", s)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

// shortLeases hands out deliveries of which only left of the lease is left, as
// after a while behind others.
type shortLeases struct {
	broker.Queue
	left   time.Duration
	extend time.Duration // how long an extension takes
}

func (q shortLeases) Consumer(ctx context.Context, o *broker.ConsumerOptions) (broker.Consumer, error) {
	c, err := q.Queue.Consumer(ctx, o)
	return shortLeaseConsumer{c, q.left, &slowExtension{c, q.extend}}, err
}

type shortLeaseConsumer struct {
	broker.Consumer
	left time.Duration
	slow *slowExtension
}

func (c shortLeaseConsumer) Receive(ctx context.Context, max int) ([]*broker.Delivery, error) {
	ds, err := c.Consumer.Receive(ctx, max)
	for _, d := range ds {
		d.Wrap(func(broker.Settler) broker.Settler { return c.slow })
		if d.ID == "late" {
			d.SetLease(time.Now().Add(c.left))
		}
	}
	return ds, err
}

type slowExtension struct {
	broker.Settler
	takes time.Duration
}

func (s *slowExtension) Settle(ctx context.Context, batch []broker.Outcome) {
	if batch[0].Verdict.Kind == broker.VerdictExtend {
		select {
		case <-time.After(s.takes):
		case <-ctx.Done():
		}
	}
	s.Settler.Settle(ctx, batch)
}

// What is left of a lease at the beginning tells when to extend it first, not
// how often from then on.
func TestWorkerExtendsWhatIsLeftOfALease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := brokertest.NewQueue("jobs", messages(1)...)
		q.Lease = 30 * time.Second
		w := &broker.Worker{Queue: shortLeases{q, 300 * time.Millisecond, 0}, Logger: quiet, Handler: func(ctx context.Context, _ *broker.Delivery) error {
			select {
			case <-time.After(10 * time.Minute):
				return nil
			case <-ctx.Done():
				t.Errorf("the handler was cut off: %v", context.Cause(ctx))
				return ctx.Err()
			}
		}}
		stop := start(t, w)
		advance(100 * time.Millisecond) // the leases are looked at again in 900 ms
		if _, err := q.Publish(t.Context(), broker.Message{ID: "late"}); err != nil {
			t.Fatal(err)
		}
		advance(11 * time.Minute)
		if s := w.Stats(); s.Acked != 2 || s.LeaseLost != 0 {
			t.Errorf("stats %+v", s)
		}
		n := 0
		for _, o := range q.Recorder.Outcomes() {
			if o.Verdict.Kind == broker.VerdictExtend && o.Delivery.ID == "late" {
				n++
			}
		}
		if n < 55 || n > 63 {
			t.Errorf("%d extensions in 10 min, want one each 10 s", n)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

// The time that is left of some leases does not bound the extension of others.
func TestWorkerExtendsLeasesApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := brokertest.NewQueue("jobs", messages(1)...)
		q.Lease = 30 * time.Second
		w := &broker.Worker{
			Queue: shortLeases{q, 600 * time.Millisecond, time.Second}, Logger: quiet, Concurrency: 100,
			Handler: func(ctx context.Context, d *broker.Delivery) error {
				select {
				case <-time.After(2 * time.Minute):
				case <-ctx.Done():
				}
				return context.Cause(ctx)
			},
		}
		stop := start(t, w)
		for range 1000 { // each is lost before its extension is through
			advance(100 * time.Millisecond)
			if _, err := q.Publish(t.Context(), broker.Message{ID: "late"}); err != nil {
				t.Fatal(err)
			}
		}
		advance(30 * time.Second)
		if v, _ := q.Recorder.Settled("0"); v.Kind != broker.VerdictAck {
			t.Errorf("verdict %+v, stats %+v", v, w.Stats())
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}
