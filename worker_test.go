package broker_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/brokertest"
)

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

func messages(n int) []broker.Message {
	ms := make([]broker.Message, n)
	for i := range ms {
		ms[i] = broker.Message{ID: strconv.Itoa(i), Body: fmt.Appendf(nil, "message %d", i)}
	}
	return ms
}

// start runs a Runner and returns a function that stops it and returns its error.
func start(t *testing.T, r broker.Runner) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	return func() error {
		cancel()
		return <-done
	}
}

func TestWorkerAcksEachOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := brokertest.NewQueue("jobs", messages(1000)...)
		var handled atomic.Int64
		w := &broker.Worker{Queue: q, Logger: quiet, Handler: func(context.Context, *broker.Delivery) error {
			handled.Add(1)
			return nil
		}}
		stop := start(t, w)
		synctest.Wait()
		if err := w.Ready(); err != nil {
			t.Errorf("Ready: %v", err)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		s := w.Stats()
		if handled.Load() != 1000 || s.Acked != 1000 || s.Held != 0 || len(q.Waiting()) != 0 {
			t.Errorf("handled %d, stats %+v, waiting %d", handled.Load(), s, len(q.Waiting()))
		}
	})
}

func TestWorkerVerdicts(t *testing.T) {
	boom := errors.New("boom")
	for _, tc := range []struct {
		name     string
		err      error
		want     broker.Verdict
		wantGone bool
	}{
		{"nil acks", nil, broker.Verdict{Kind: broker.VerdictAck}, true},
		{"reject", broker.Reject(boom), broker.Verdict{Kind: broker.VerdictReject, Reason: "boom"}, true},
		{"retry after", broker.RetryAfter(time.Minute, boom), broker.Verdict{Kind: broker.VerdictNack, Delay: time.Minute}, false},
		{"snooze", broker.Snooze(time.Minute), broker.Verdict{Kind: broker.VerdictNack, Delay: time.Minute, Snooze: true}, false},
		{"wrapped", fmt.Errorf("wrapped: %w", broker.RetryAfter(2*time.Minute, boom)), broker.Verdict{Kind: broker.VerdictNack, Delay: 2 * time.Minute}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				q := brokertest.NewQueue("jobs", messages(1)...)
				w := &broker.Worker{Queue: q, Logger: quiet, Handler: func(context.Context, *broker.Delivery) error { return tc.err }}
				stop := start(t, w)
				synctest.Wait()
				if got, ok := q.Recorder.Settled("0"); !ok || got != tc.want {
					t.Errorf("verdict %+v, %v; want %+v", got, ok, tc.want)
				}
				if err := stop(); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}

func TestWorkerMisconfigured(t *testing.T) {
	ok := func(context.Context, *broker.Delivery) error { return nil }
	okBatch := func(context.Context, []*broker.Delivery) error { return nil }
	for _, tc := range []struct {
		name string
		edit func(w *broker.Worker, q *brokertest.Queue)
		want string
	}{
		{"no queue", func(w *broker.Worker, _ *brokertest.Queue) { w.Queue = nil }, "Queue is nil"},
		{"no handler", func(w *broker.Worker, _ *brokertest.Queue) { w.Handler = nil }, "Handler is nil"},
		{"both handlers", func(w *broker.Worker, _ *brokertest.Queue) { w.BatchHandler = okBatch }, "both"},
		{"concurrency", func(w *broker.Worker, _ *brokertest.Queue) { w.Concurrency = -1 }, "Concurrency -1"},
		{"max batch", func(w *broker.Worker, _ *brokertest.Queue) {
			w.Handler, w.BatchHandler, w.MaxBatch = nil, okBatch, -1
		}, "MaxBatch -1"},
		{"max batch without batches", func(w *broker.Worker, _ *brokertest.Queue) { w.MaxBatch = 2 }, "need a BatchHandler"},
		{"rate", func(w *broker.Worker, _ *brokertest.Queue) { w.RateLimit = -1 }, "RateLimit -1"},
		{"timeout", func(w *broker.Worker, _ *brokertest.Queue) { w.Timeout = -1 }, "Timeout"},
		{"drain", func(w *broker.Worker, _ *brokertest.Queue) { w.DrainTimeout = -1 }, "DrainTimeout"},
		{"retry max attempts", func(w *broker.Worker, _ *brokertest.Queue) { w.Retry.MaxAttempts = -1 }, "MaxAttempts -1"},
		{"retry min", func(w *broker.Worker, _ *brokertest.Queue) { w.Retry.Min = -1 }, "Retry.Min"},
		{"retry min over max", func(w *broker.Worker, _ *brokertest.Queue) { w.Retry.Min, w.Retry.Max = 2, 1 }, "longer than"},
		{"no dead letter", func(w *broker.Worker, q *brokertest.Queue) { w.Retry.MaxAttempts, q.Caps.Reject = 3, false }, "dead-letter target"},
		{"prefetch", func(w *broker.Worker, _ *brokertest.Queue) { w.Consumer.Prefetch = -1 }, "Prefetch -1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			q := brokertest.NewQueue("jobs", messages(1)...)
			w := &broker.Worker{Queue: q, Handler: ok, Logger: quiet}
			tc.edit(w, q)
			err := w.Run(t.Context())
			e, isError := errors.AsType[*broker.Error](err)
			if !isError || !errors.Is(err, broker.ErrInvalid) || e.Op != "run worker" || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Run: %v; want ErrInvalid with %q", err, tc.want)
			}
			if len(q.Waiting()) != 1 {
				t.Error("something was received")
			}
		})
	}
	q := brokertest.NewQueue("jobs")
	q.Caps.Lease = false
	w := &broker.Worker{Queue: q, Handler: ok, Consumer: broker.ConsumerOptions{Lease: time.Second}}
	if err := w.Run(t.Context()); !errors.Is(err, broker.ErrUnsupported) {
		t.Errorf("a lease where there is none: %v", err)
	}
}

// watch collects observations.
type watch struct {
	mu  sync.Mutex
	all []broker.Observation
}

func (w *watch) observe(_ context.Context, o broker.Observation) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = append(w.all, o)
}

func (w *watch) of(k broker.ObservationKind) []broker.Observation {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []broker.Observation
	for _, o := range w.all {
		if o.Kind == k {
			out = append(out, o)
		}
	}
	return out
}

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
		if !ok || !errors.Is(p, errBoom) || !strings.Contains(string(p.Stack), "worker_test") {
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

func TestWorkerDrains(t *testing.T) {
	for _, tc := range []struct {
		name      string
		handler   func(ctx context.Context, release chan struct{}) error
		wantTook  time.Duration
		wantCause error
		wantKind  broker.VerdictKind
		wantErr   error
	}{
		{
			"a handler that ends", func(context.Context, chan struct{}) error { spend(10 * time.Second); return nil },
			9 * time.Second, nil, broker.VerdictAck, nil,
		},
		{
			"a handler that is told", func(ctx context.Context, _ chan struct{}) error { <-ctx.Done(); return ctx.Err() },
			20 * time.Second, broker.ErrShutdown, broker.VerdictNack, nil,
		},
		{
			"a handler that does not listen", func(_ context.Context, release chan struct{}) error { <-release; return nil },
			25 * time.Second, broker.ErrShutdown, 0, broker.ErrShutdown,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				q := brokertest.NewQueue("jobs", messages(1)...)
				handed := make(chan context.Context, 1)
				release := make(chan struct{})
				w := &broker.Worker{Queue: q, Logger: quiet, DrainTimeout: 20 * time.Second, Handler: func(ctx context.Context, _ *broker.Delivery) error {
					handed <- ctx
					return tc.handler(ctx, release)
				}}
				stop := start(t, w)
				advance(time.Second)
				began := time.Now()
				err := stop()
				if took := time.Since(began); took != tc.wantTook {
					t.Errorf("drained in %v, want %v", took, tc.wantTook)
				}
				if !errors.Is(err, tc.wantErr) {
					t.Errorf("Run: %v, want %v", err, tc.wantErr)
				}
				if cause := context.Cause(<-handed); tc.wantCause != nil && !errors.Is(cause, tc.wantCause) {
					t.Errorf("cause %v", cause)
				}
				v, _ := q.Recorder.Settled("0")
				if v.Kind != tc.wantKind || v.Delay != 0 {
					t.Errorf("verdict %+v", v)
				}
				if gone := len(q.Waiting()) == 0; gone != (tc.wantKind == broker.VerdictAck) {
					t.Errorf("waiting: %v", q.Waiting())
				}
				close(release)
				synctest.Wait()
			})
		})
	}
}

func TestWorkerPauseAndReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := brokertest.NewQueue("jobs")
		w := &broker.Worker{Queue: q, Logger: quiet, Handler: func(context.Context, *broker.Delivery) error { return nil }}
		if w.Ready() == nil {
			t.Error("ready before Run")
		}
		stop := start(t, w)
		synctest.Wait()
		w.Pause()
		w.Pause()
		synctest.Wait()
		if _, err := q.PublishBatch(t.Context(), messages(5)); err != nil {
			t.Fatal(err)
		}
		advance(time.Minute)
		if s := w.Stats(); s.Received != 0 || !s.Paused || !s.Running || w.Ready() != nil {
			t.Errorf("paused: stats %+v, ready %v", s, w.Ready())
		}
		w.Resume()
		synctest.Wait()
		if s := w.Stats(); s.Acked != 5 || s.Paused {
			t.Errorf("resumed: %+v", s)
		}
		if err := w.Run(t.Context()); !errors.Is(err, broker.ErrInvalid) {
			t.Errorf("a second Run: %v", err)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if w.Ready() == nil || w.Stats().Running {
			t.Error("ready after Run")
		}
	})
}

func TestWorkerRateLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := brokertest.NewQueue("jobs", messages(100)...)
		w := &broker.Worker{Queue: q, Logger: quiet, RateLimit: 10, Handler: func(context.Context, *broker.Delivery) error { return nil }}
		stop := start(t, w)
		advance(5*time.Second + time.Millisecond)
		if s := w.Stats(); s.Handled < 50 || s.Handled > 51 || s.Received > s.Handled {
			t.Errorf("after 5 s at 10 a second: %+v", s)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestWorkerHoldsNoMoreThanItHandles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := brokertest.NewQueue("jobs", messages(100)...)
		release := make(chan struct{})
		w := &broker.Worker{Queue: q, Logger: quiet, Concurrency: 3, Handler: func(context.Context, *broker.Delivery) error {
			<-release
			return nil
		}}
		stop := start(t, w)
		synctest.Wait()
		if s := w.Stats(); s.Held != 3 || s.Handlers != 3 || len(q.Waiting()) != 97 {
			t.Errorf("stats %+v, %d left for others", s, len(q.Waiting()))
		}
		close(release)
		synctest.Wait()
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestWorkerTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := brokertest.NewQueue("jobs", messages(1)...)
		w := &broker.Worker{Queue: q, Logger: quiet, Timeout: time.Second, Handler: func(ctx context.Context, d *broker.Delivery) error {
			if d.Attempt > 1 {
				return nil
			}
			<-ctx.Done()
			if !errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
				t.Errorf("cause %v", context.Cause(ctx))
			}
			return ctx.Err()
		}}
		stop := start(t, w)
		advance(3 * time.Second)
		if s := w.Stats(); s.Retried != 1 || s.Acked != 1 {
			t.Errorf("stats %+v", s)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestWorkerReceiveErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := brokertest.NewQueue("jobs", messages(1)...)
		var fail atomic.Bool
		fail.Store(true)
		q.ReceiveErr = func() error {
			if fail.Load() {
				return &broker.Error{Op: "receive", Temporary: true, Err: broker.ErrUnavailable}
			}
			return nil
		}
		w := &broker.Worker{Queue: q, Logger: quiet, Handler: func(context.Context, *broker.Delivery) error { return nil }}
		stop := start(t, w)
		advance(time.Minute)
		if n := w.Stats().ReceiveErrors; n < 5 || n > 30 {
			t.Errorf("%d tries in a minute", n)
		}
		if err := w.Ready(); !errors.Is(err, broker.ErrUnavailable) {
			t.Errorf("Ready: %v", err)
		}
		fail.Store(false)
		advance(time.Minute)
		if w.Ready() != nil || w.Stats().Acked != 1 {
			t.Errorf("Ready: %v, stats %+v", w.Ready(), w.Stats())
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
	q := brokertest.NewQueue("jobs")
	q.ReceiveErr = func() error { return broker.ErrNotFound }
	w := &broker.Worker{Queue: q, Logger: quiet, Handler: func(context.Context, *broker.Delivery) error { return nil }}
	if err := w.Run(t.Context()); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("Run: %v", err)
	}
}

func TestWorkerGroupOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ms := messages(200)
		for i := range ms {
			ms[i].GroupID = strconv.Itoa(i % 5)
		}
		q := brokertest.NewQueue("jobs", ms...)
		var mu sync.Mutex
		open, last := map[string]bool{}, map[string]int{}
		w := &broker.Worker{Queue: q, Logger: quiet, Handler: func(_ context.Context, d *broker.Delivery) error {
			mu.Lock()
			if open[d.GroupID] {
				t.Errorf("two of group %s at once", d.GroupID)
			}
			open[d.GroupID] = true
			mu.Unlock()
			spend(10 * time.Millisecond)
			mu.Lock()
			defer mu.Unlock()
			open[d.GroupID] = false
			n, _ := strconv.Atoi(d.ID)
			if n%7 == 0 && d.Attempt == 1 {
				return errBoom
			}
			if l, ok := last[d.GroupID]; ok && n < l {
				t.Errorf("group %s: %d after %d", d.GroupID, n, l)
			}
			last[d.GroupID] = n
			return nil
		}}
		stop := start(t, w)
		advance(5 * time.Minute)
		if s := w.Stats(); s.Acked != 200 {
			t.Errorf("stats %+v", s)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
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

func TestWorkerBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := brokertest.NewQueue("jobs")
		var sizes []int
		w := &broker.Worker{
			Queue: q, Logger: quiet, Concurrency: 1, MaxBatch: 10, MaxWait: time.Second,
			BatchHandler: func(_ context.Context, ds []*broker.Delivery) error {
				sizes = append(sizes, len(ds))
				errs := make([]error, len(ds))
				for i, d := range ds {
					switch d.ID {
					case "3":
						errs[i] = broker.Reject(errBoom)
					case "4":
						if d.Attempt == 1 {
							errs[i] = errBoom
						}
					}
				}
				return broker.NewBatchError(errs)
			},
		}
		stop := start(t, w)
		began := time.Now()
		for _, m := range messages(15) {
			if _, err := q.Publish(t.Context(), m); err != nil {
				t.Fatal(err)
			}
			advance(100 * time.Millisecond)
		}
		advance(10 * time.Second)
		if s := w.Stats(); s.Acked != 14 || s.Rejected != 1 || s.Retried != 1 {
			t.Errorf("after %v: stats %+v, sizes %v", time.Since(began), s, sizes)
		}
		if len(sizes) > 4 || sizes[0] < 9 {
			t.Errorf("sizes %v", sizes)
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
