package broker_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/brokertest"
)

// A rate limit whose next turn comes after the end of Run's context makes the
// worker wait for that end: time does not pass while it spins.
func TestWorkerRateLimitBeyondTheDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := brokertest.NewQueue("jobs", messages(5)...)
		w := &broker.Worker{Queue: q, RateLimit: 0.1, Logger: quiet, Handler: func(context.Context, *broker.Delivery) error { return nil }}
		ctx, cancel := context.WithTimeout(t.Context(), 25*time.Second)
		defer cancel()
		began := time.Now()
		if err := w.Run(ctx); err != nil {
			t.Fatal(err)
		}
		if took, n := time.Since(began), w.Stats().Acked; took != 25*time.Second || n != 3 {
			t.Errorf("%d handled in %v, want 3 in 25s", n, took)
		}
	})
}

// What could not be settled is given up when Run returns, once, and nothing is
// observed or tried after that.
func TestWorkerTriesNothingAfterRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := brokertest.NewQueue("jobs", messages(3)...)
		q.Recorder.Fail = func(*broker.Delivery, broker.Verdict) error { return broker.ErrUnavailable }
		var seen watch
		w := &broker.Worker{Queue: q, Logger: quiet, Observe: seen.observe, Handler: func(context.Context, *broker.Delivery) error { return nil }}
		stop := start(t, w)
		advance(10 * time.Second) // the next try is seconds away
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		tries, all := len(q.Recorder.Outcomes()), len(seen.of(broker.ObservedSettleError))
		errs := w.Stats().SettleErrors
		advance(time.Minute)
		if n := len(q.Recorder.Outcomes()); n != tries {
			t.Errorf("%d verdicts were tried after Run had returned", n-tries)
		}
		if n := len(seen.of(broker.ObservedSettleError)); n != all || w.Stats().SettleErrors != errs {
			t.Errorf("%d failures were observed after Run had returned; stats %+v", n-all, w.Stats())
		}
		given := map[string]int{}
		for _, o := range seen.of(broker.ObservedSettleError) {
			if o.GivenUp {
				given[o.Incoming.Info().ID]++
			}
		}
		if len(given) != 3 || given["0"] != 1 || given["1"] != 1 || given["2"] != 1 {
			t.Errorf("given up: %v, want each once", given)
		}
	})
}

// A *BatchError speaks for each only where it is the handler's result, not
// where it is part of a verdict, of several errors, or of a panic: what it has
// no error for is not done then.
func TestBatchErrorInsideAnotherResult(t *testing.T) {
	one := &broker.BatchError{Errs: []error{errBoom, nil, nil, nil}}
	for _, tc := range []struct {
		name                     string
		result                   func() error
		acked, retried, rejected int64
	}{
		{"itself", func() error { return one }, 3, 1, 0},
		{"wrapped", func() error { return fmt.Errorf("publish: %w", one) }, 3, 1, 0},
		{"joined", func() error { return errors.Join(one, errors.New("the transaction was rolled back")) }, 0, 4, 0},
		{"two wrapped", func() error { return fmt.Errorf("%w: %w", errBoom, one) }, 0, 4, 0},
		{"retried later", func() error { return broker.RetryAfter(time.Hour, one) }, 0, 4, 0},
		{"rejected", func() error { return broker.Reject(one) }, 0, 0, 4},
		{"panic", func() error { panic(one) }, 0, 4, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, mw := range [][]broker.Middleware{nil, {broker.Recover()}} {
				synctest.Test(t, func(t *testing.T) {
					q := brokertest.NewQueue("jobs", messages(4)...)
					w := &broker.Worker{
						Queue: q, Logger: quiet, Middleware: mw, Retry: broker.RetryPolicy{Min: time.Hour},
						BatchHandler: func(context.Context, []*broker.Delivery) error { return tc.result() },
					}
					stop := start(t, w)
					advance(time.Second)
					if s := w.Stats(); s.Acked != tc.acked || s.Retried != tc.retried || s.Rejected != tc.rejected {
						t.Errorf("stats %+v", s)
					}
					if err := stop(); err != nil {
						t.Fatal(err)
					}
				})
			}
		})
	}
}

// Run returns in time also while nothing can be settled, with more received
// than may wait for that.
func TestWorkerEndsWhileSettlingHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := brokertest.NewQueue("jobs", messages(5000)...)
		release := make(chan struct{})
		q.Recorder.Fail = func(*broker.Delivery, broker.Verdict) error { <-release; return broker.ErrUnavailable }
		w := &broker.Worker{Queue: q, Logger: quiet, Concurrency: 200, DrainTimeout: 10 * time.Second, Handler: func(context.Context, *broker.Delivery) error { return nil }}
		stop := start(t, w)
		synctest.Wait()
		advance(10 * time.Second)
		if n := w.Stats().Held; n < 2000 {
			t.Errorf("only %d held: the case shows nothing", n)
		}
		began := time.Now()
		ended := make(chan error, 1)
		go func() { ended <- stop() }()
		select {
		case err := <-ended:
			if took := time.Since(began); err != nil || took > 30*time.Second {
				t.Errorf("%v after %v", err, took)
			}
			if s := w.Stats(); s.Held != 0 {
				t.Errorf("stats %+v", s)
			}
		case <-time.After(10 * time.Minute):
			t.Error("Run does not return")
		}
		close(release)
		synctest.Wait()
	})
}

// The middleware RateLimit costs no attempt: what has no turn before its ctx
// ends is put off.
func TestRateLimitWithATimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := brokertest.NewQueue("jobs", messages(20)...)
		w := &broker.Worker{
			Queue: q, Logger: quiet, Timeout: time.Second, Concurrency: 8,
			Middleware: []broker.Middleware{broker.RateLimit(1)}, Retry: broker.RetryPolicy{MaxAttempts: 2},
			Handler: func(_ context.Context, d *broker.Delivery) error {
				if d.Attempt != 1 {
					t.Errorf("message %s: attempt %d", d.ID, d.Attempt)
				}
				return nil
			},
		}
		stop := start(t, w)
		advance(5 * time.Minute)
		if s := w.Stats(); s.Acked != 20 || s.Rejected != 0 {
			t.Errorf("stats %+v", s)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

// A handler that ends its goroutine (a test's FailNow does) has failed, as one
// that panics has: its message comes again and the lane goes on.
func TestWorkerHandlerEndsItsGoroutine(t *testing.T) {
	first := func(tries *atomic.Int32) {
		if tries.Add(1) == 1 {
			runtime.Goexit()
		}
	}
	pass := func(next broker.HandlerFunc) broker.HandlerFunc {
		return func(ctx context.Context, in broker.Incoming) error { return next(ctx, in) }
	}
	for name, set := range map[string]func(w *broker.Worker, tries *atomic.Int32){
		"one": func(w *broker.Worker, tries *atomic.Int32) {
			w.Handler = func(context.Context, *broker.Delivery) error { first(tries); return nil }
		},
		"a batch": func(w *broker.Worker, tries *atomic.Int32) {
			w.BatchHandler = func(context.Context, []*broker.Delivery) error { first(tries); return nil }
		},
		"a batch, with a middleware": func(w *broker.Worker, tries *atomic.Int32) {
			w.BatchHandler = func(context.Context, []*broker.Delivery) error { first(tries); return nil }
			w.Middleware = []broker.Middleware{pass}
		},
		"the middleware of a batch": func(w *broker.Worker, tries *atomic.Int32) {
			w.BatchHandler = func(context.Context, []*broker.Delivery) error { return nil }
			w.Middleware = []broker.Middleware{func(next broker.HandlerFunc) broker.HandlerFunc {
				return func(ctx context.Context, in broker.Incoming) error { first(tries); return next(ctx, in) }
			}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				q := brokertest.NewQueue("q", broker.Message{ID: "1"})
				w := &broker.Worker{Queue: q, Concurrency: 1, Logger: quiet}
				set(w, new(atomic.Int32))
				stop := start(t, w)
				advance(time.Minute)
				if s := w.Stats(); s.Acked != 1 || s.Retried != 1 || s.HandlerErrors != 1 || s.Held != 0 || s.Handlers != 0 {
					t.Errorf("%+v", s)
				}
				if err := stop(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}
