package broker_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
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
		{"more attempts than the queue allows", func(w *broker.Worker, q *brokertest.Queue) { w.Retry.MaxAttempts, q.Caps.MaxAttempts = 5, 3 }, "after 3"},
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

// Once the drain is over no handler begins: what was received ahead goes back,
// also where every lane is stuck.
func TestWorkerBeginsNothingAfterTheDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := brokertest.NewQueue("jobs", messages(200)...)
		release := make(chan struct{})
		calls := 0
		w := &broker.Worker{
			Queue: q, Logger: quiet, Concurrency: 1,
			Handler: func(context.Context, *broker.Delivery) error {
				if calls++; calls > 190 { // by now they are so quick that more are received ahead
					<-release
				}
				return nil
			},
		}
		stop := start(t, w)
		advance(time.Second)
		if s := w.Stats(); s.Held < 2 {
			t.Fatalf("nothing is held ahead: %+v", s)
		}
		if err := stop(); !errors.Is(err, broker.ErrShutdown) {
			t.Errorf("Run: %v", err)
		}
		if n := len(q.Waiting()); n != 10 {
			t.Errorf("%d wait, want 10", n)
		}
		nacked := 0
		for _, o := range q.Recorder.Outcomes() {
			if o.Verdict.Kind == broker.VerdictNack && o.Verdict.Delay == 0 && o.Verdict.Snooze {
				nacked++
			}
		}
		if nacked != 9 {
			t.Errorf("%d given back at once and without an attempt, want 9", nacked)
		}
		close(release)
		synctest.Wait()
		if calls != 191 {
			t.Errorf("%d handlers began after Run had returned", calls-191)
		}
	})
}

// A *BatchError of another batch, of what the handler published say, is no
// verdict on some of the deliveries.
func TestBatchErrorOfAnotherBatch(t *testing.T) {
	other := &broker.BatchError{Errs: []error{errBoom, nil}}
	t.Run("worker", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			for _, mw := range [][]broker.Middleware{nil, {broker.Recover()}} {
				q := brokertest.NewQueue("jobs", messages(4)...)
				w := &broker.Worker{
					Queue: q, Logger: quiet, Middleware: mw, Retry: broker.RetryPolicy{Min: time.Hour},
					BatchHandler: func(context.Context, []*broker.Delivery) error { return fmt.Errorf("publish: %w", other) },
				}
				stop := start(t, w)
				advance(time.Second)
				if s := w.Stats(); s.Acked != 0 || s.Retried != 4 {
					t.Errorf("stats %+v", s)
				}
				if err := stop(); err != nil {
					t.Fatal(err)
				}
			}
		})
	})
	t.Run("processor", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			for _, mw := range [][]broker.Middleware{nil, {broker.Recover()}} {
				s := brokertest.NewStream("events", 1)
				for range 4 {
					if _, err := s.Publish(t.Context(), broker.Record{}); err != nil {
						t.Fatal(err)
					}
				}
				p := &broker.Processor{
					Stream: s, Group: "g", Logger: quiet, Middleware: mw, Retry: broker.RetryPolicy{Min: time.Hour},
					BatchHandler: func(context.Context, []*broker.Record) error { return fmt.Errorf("publish: %w", other) },
				}
				stop := start(t, p)
				advance(time.Second)
				if st := p.Stats(); st.Retried != 4 {
					t.Errorf("stats %+v", st)
				}
				if err := stop(); err != nil {
					t.Fatal(err)
				}
				if n := s.Committed("g", 0); n != 0 {
					t.Errorf("committed %d", n)
				}
			}
		})
	})
}
