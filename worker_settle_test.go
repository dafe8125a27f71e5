package broker_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/brokertest"
)

func TestWorkerRetriesThenDeadLetters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := brokertest.NewQueue("jobs", messages(1)...)
		var seen watch
		var attempts []int
		var at []time.Time
		w := &broker.Worker{
			Queue: q, Logger: quiet, Observe: seen.observe,
			Retry: broker.RetryPolicy{MaxAttempts: 4},
			Handler: func(_ context.Context, d *broker.Delivery) error {
				attempts, at = append(attempts, d.Attempt), append(at, time.Now())
				panic(fmt.Errorf("attempt %d: %w", d.Attempt, errBoom))
			},
		}
		stop := start(t, w)
		advance(time.Minute)
		if !slices.Equal(attempts, []int{1, 2, 3, 4}) {
			t.Errorf("attempts %v", attempts)
		}
		for i := 1; i < len(at); i++ {
			top := time.Second << (i - 1)
			if wait := at[i].Sub(at[i-1]); wait < top/2 || wait > top {
				t.Errorf("waited %v after attempt %d, want %v to %v", wait, i, top/2, top)
			}
		}
		dead := q.DeadLetters()
		if len(dead) != 1 || !strings.Contains(dead[0].Headers.Get(broker.HeaderDeadLetterReason), "boom") {
			t.Errorf("dead letters %+v", dead)
		}
		panics := seen.of(broker.ObservedPanic)
		if len(panics) != 4 {
			t.Fatalf("%d panics observed", len(panics))
		}
		p, ok := errors.AsType[*broker.PanicError](panics[0].Err)
		if !ok || !errors.Is(p, errBoom) || !strings.Contains(string(p.Stack), "TestWorkerRetriesThenDeadLetters") {
			t.Errorf("panic %v, stack %s", p, p.Stack)
		}
		if s := w.Stats(); s.Panics != 4 || s.Retried != 3 || s.Rejected != 1 {
			t.Errorf("stats %+v", s)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestWorkerWhatTheQueueCannotDo(t *testing.T) {
	for _, tc := range []struct {
		name string
		caps func(*broker.QueueCapabilities)
		err  error
		want broker.Verdict
	}{
		{"no delay", func(c *broker.QueueCapabilities) { c.NackDelay = false }, broker.RetryAfter(time.Hour, errBoom), broker.Verdict{Kind: broker.VerdictNack}},
		{"no such delay", func(c *broker.QueueCapabilities) { c.MaxNackDelay = time.Minute }, broker.RetryAfter(time.Hour, errBoom), broker.Verdict{Kind: broker.VerdictNack, Delay: time.Minute}},
		{"no snooze", func(c *broker.QueueCapabilities) { c.Snooze = false }, broker.Snooze(time.Minute), broker.Verdict{Kind: broker.VerdictNack, Delay: time.Minute}},
		{"no dead letters", func(c *broker.QueueCapabilities) { c.Reject = false }, broker.Reject(errBoom), broker.Verdict{Kind: broker.VerdictNack, Delay: time.Second}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				q := brokertest.NewQueue("jobs", messages(1)...)
				tc.caps(&q.Caps)
				var seen watch
				calls := 0
				w := &broker.Worker{
					Queue: q, Logger: quiet, Observe: seen.observe,
					Retry: broker.RetryPolicy{Delay: func(int, error) time.Duration { return time.Second }},
					Handler: func(context.Context, *broker.Delivery) error {
						if calls++; calls > 1 {
							return nil
						}
						return tc.err
					},
				}
				stop := start(t, w)
				advance(2 * time.Minute)
				if calls != 2 {
					t.Errorf("%d calls, want a redelivery", calls)
				}
				if err := stop(); err != nil {
					t.Fatal(err)
				}
				if o := q.Recorder.Outcomes()[0]; o.Verdict != tc.want {
					t.Errorf("verdict %+v, want %+v", o.Verdict, tc.want)
				}
				o := seen.of(broker.ObservedUnsupported)
				if len(o) != 1 || !errors.Is(o[0].Err, broker.ErrUnsupported) {
					t.Errorf("observed %+v", o)
				}
			})
		})
	}
}

// Where there is no delay to be had, the lane waits for a failed batch once, not
// for each of it.
func TestWorkerWaitsOnceForAFailedBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := brokertest.NewQueue("jobs", messages(20)...)
		q.Caps.NackDelay = false
		began := time.Now()
		var at []time.Duration
		w := &broker.Worker{
			Queue: q, Logger: quiet, Concurrency: 1, MaxBatch: 20, MaxWait: time.Millisecond,
			BatchHandler: func(_ context.Context, ds []*broker.Delivery) error {
				at = append(at, time.Since(began))
				if len(ds) != 20 {
					t.Errorf("a batch of %d", len(ds))
				}
				return errBoom
			},
			Retry: broker.RetryPolicy{Delay: func(int, error) time.Duration { return time.Minute }},
		}
		stop := start(t, w)
		advance(3500 * time.Millisecond)
		if !slices.Equal(at, []time.Duration{0, time.Second, 2 * time.Second, 3 * time.Second}) {
			t.Errorf("handled at %v, want once a second", at)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

// TestWorkerTakesTheLesserVerdict is for a queue that claims more than it does.
func TestWorkerTakesTheLesserVerdict(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := brokertest.NewQueue("jobs", messages(1)...)
		q.Recorder.Fail = func(_ *broker.Delivery, v broker.Verdict) error {
			if v.Snooze || v.Delay > 0 {
				return broker.Unsupported("not that")
			}
			return nil
		}
		calls := 0
		w := &broker.Worker{Queue: q, Logger: quiet, Handler: func(context.Context, *broker.Delivery) error {
			if calls++; calls > 1 {
				return nil
			}
			return broker.Snooze(time.Minute)
		}}
		stop := start(t, w)
		advance(time.Minute)
		if calls != 2 || w.Stats().Acked != 1 {
			t.Errorf("%d calls, stats %+v", calls, w.Stats())
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestWorkerTriesToSettleAgain(t *testing.T) {
	for _, tc := range []struct {
		name     string
		failures int
		wantAck  int64
	}{{"for a while", 5, 1}, {"not for ever", 1000, 0}} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				q := brokertest.NewQueue("jobs", messages(1)...)
				n := 0
				q.Recorder.Fail = func(*broker.Delivery, broker.Verdict) error {
					if n++; n <= tc.failures {
						return broker.ErrUnavailable
					}
					return nil
				}
				var seen watch
				w := &broker.Worker{Queue: q, Logger: quiet, Observe: seen.observe, Handler: func(context.Context, *broker.Delivery) error { return nil }}
				stop := start(t, w)
				advance(5 * time.Minute)
				s := w.Stats()
				if s.Acked != tc.wantAck || s.Held != 0 {
					t.Errorf("stats %+v", s)
				}
				last := seen.of(broker.ObservedSettleError)
				if given := last[len(last)-1].GivenUp; given != (tc.wantAck == 0) {
					t.Errorf("given up: %v", given)
				}
				if err := stop(); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}

func TestWorkerHandlerThatSettles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := brokertest.NewQueue("jobs", messages(1)...)
		w := &broker.Worker{Queue: q, Logger: quiet, Handler: func(ctx context.Context, d *broker.Delivery) error {
			if err := d.Ack(ctx); err != nil {
				t.Error(err)
			}
			return errBoom
		}}
		stop := start(t, w)
		synctest.Wait()
		if n := len(q.Recorder.Outcomes()); n != 1 || w.Stats().Held != 0 {
			t.Errorf("%d verdicts, stats %+v", n, w.Stats())
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

// The last attempt that the queue allows is rejected by the worker, so that
// the dead letter says what the handler said.
func TestWorkerTellsWhyTheQueueGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := brokertest.NewQueue("jobs", messages(1)...)
		q.Caps.MaxAttempts = 2
		w := &broker.Worker{
			Queue: q, Logger: quiet,
			Handler: func(context.Context, *broker.Delivery) error { return errBoom },
		}
		stop := start(t, w)
		advance(time.Minute)
		dead := q.DeadLetters()
		if len(dead) != 1 || dead[0].Headers.Get(broker.HeaderDeadLetterReason) != errBoom.Error() {
			t.Errorf("dead letters %+v", dead)
		}
		stop()
	})
}
