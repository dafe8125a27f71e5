package broker_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/memory"
	"github.com/queuestream/broker/brokertest"
)

func TestTransformerExactlyOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		b := openMemory(t)
		in, out := declareStream(t, b, "in", 3), declareStream(t, b, "out", 2)
		for i := range 300 {
			if _, err := in.Publish(ctx, broker.Record{Key: fmt.Appendf(nil, "k%d", i%20), Value: fmt.Appendf(nil, "%d", i)}); err != nil {
				t.Fatal(err)
			}
		}
		calls := 0
		swallowed := map[string]bool{}
		run := func() *broker.Transformer {
			return &broker.Transformer{
				Broker: b, Source: in, Group: "g", ID: "t1", MaxBatch: 7, Logger: quiet,
				Retry: broker.RetryPolicy{Max: time.Second},
				Handler: func(_ context.Context, rs []*broker.Record, emit func(broker.Stream, ...broker.Record) error) error {
					calls++
					if calls%11 == 3 {
						for _, r := range rs {
							swallowed[string(r.Value)] = true
						}
						return nil // nothing follows from these: a plain commit
					}
					for _, r := range rs {
						if err := emit(out, broker.Record{Key: r.Key, Value: r.Value}); err != nil {
							return err
						}
					}
					switch {
					case calls%5 == 0:
						return errBoom
					case calls%7 == 0:
						panic("oops")
					}
					return nil
				},
			}
		}
		for range 20 {
			stop := start(t, run())
			spend(700 * time.Millisecond)
			if err := stop(); err != nil {
				t.Fatal(err)
			}
		}
		stop := start(t, run())
		advance(5 * time.Minute)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		seen := map[string]int{}
		for r, err := range out.Read(ctx, broker.Range{ReadCommitted: true}) {
			if err != nil {
				t.Fatal(err)
			}
			seen[string(r.Value)]++
		}
		for v, n := range seen {
			if n != 1 {
				t.Errorf("%s came %d times", v, n)
			}
		}
		lags, err := in.Lag(ctx, "g")
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range lags {
			if l.Lag != 0 {
				t.Errorf("lag %+v", l)
			}
		}
		lost := 0
		for i := range 300 {
			if v := fmt.Sprint(i); seen[v] == 0 && !swallowed[v] {
				lost++
			}
		}
		if lost > 0 || len(seen) < 200 || len(swallowed) == 0 {
			t.Errorf("%d came and %d were swallowed out of 300, %d are lost, %d calls", len(seen), len(swallowed), lost, calls)
		}
	})
}

// It is ready once it can receive, also where nothing comes, and not while it
// cannot.
func TestTransformerIsReadyWhileIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openMemory(t)
		in := declareStream(t, b, "in", 1)
		tr := &broker.Transformer{
			Broker: b, Source: in, Group: "g", ID: "x", Logger: quiet, Retry: broker.RetryPolicy{Min: time.Hour, Max: time.Hour},
			Handler: func(context.Context, []*broker.Record, func(broker.Stream, ...broker.Record) error) error {
				return errBoom
			},
		}
		stop := start(t, tr)
		advance(time.Minute)
		if err := tr.Ready(); err != nil {
			t.Errorf("idle: %v", err)
		}
		if _, err := in.Publish(t.Context(), broker.Record{}); err != nil {
			t.Fatal(err)
		}
		advance(time.Minute)
		if err := tr.Ready(); !errors.Is(err, errBoom) {
			t.Errorf("its handler fails: %v", err)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestTransformerEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openMemory(t)
		in := declareStream(t, b, "in", 1)
		if _, err := in.Publish(t.Context(), broker.Record{}); err != nil {
			t.Fatal(err)
		}
		ok := func(context.Context, []*broker.Record, func(broker.Stream, ...broker.Record) error) error {
			return broker.Reject(errBoom)
		}
		good := broker.Transformer{Broker: b, Source: in, Group: "g", ID: "x", Handler: ok, Logger: quiet}
		if good.Ready() == nil {
			t.Error("ready before Run")
		}
		if err := good.Run(t.Context()); !errors.Is(err, errBoom) {
			t.Errorf("Reject: %v", err)
		}
		for _, tr := range []*broker.Transformer{
			{},
			{Broker: b},
			{Broker: b, Source: in},
			{Broker: b, Source: in, Group: "g"},
			{Broker: b, Source: in, Group: "g", ID: "x"},
			{Broker: b, Source: in, Group: "g", ID: "x", Handler: ok, MaxBatch: -1},
			{Broker: b, Source: in, Group: "g", ID: "x", Handler: ok, DrainTimeout: -1},
			{Broker: b, Source: in, Group: "g", ID: "x", Handler: ok, Retry: broker.RetryPolicy{MaxAttempts: 1}},
		} {
			if err := tr.Run(t.Context()); !errors.Is(err, broker.ErrInvalid) {
				t.Errorf("%+v", err)
			}
		}
		none := &broker.Transformer{Broker: noAdmin{b}, Source: in, Group: "g", ID: "x", Handler: ok}
		if err := none.Run(t.Context()); !errors.Is(err, broker.ErrUnsupported) {
			t.Errorf("no transactions: %v", err)
		}
	})
}

func TestTransformerIsFencedByASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openMemory(t)
		in, out := declareStream(t, b, "in", 1), declareStream(t, b, "out", 1)
		tr := &broker.Transformer{Broker: b, Source: in, Group: "g", ID: "x", Logger: quiet, Handler: func(_ context.Context, rs []*broker.Record, emit func(broker.Stream, ...broker.Record) error) error {
			return emit(out, broker.Record{Value: rs[0].Value})
		}}
		done := make(chan error, 1)
		go func() { done <- tr.Run(t.Context()) }()
		synctest.Wait()
		x, err := b.Transactor(t.Context(), "x")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = x.Close() }()
		if _, err := in.Publish(t.Context(), broker.Record{Value: []byte("1")}); err != nil {
			t.Fatal(err)
		}
		if err := <-done; !errors.Is(err, broker.ErrFenced) {
			t.Errorf("Run: %v", err)
		}
	})
}

// A handler that never returns keeps neither Run nor the partitions, and what
// it emits later goes nowhere.
func TestTransformerWhoseHandlerDoesNotEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openMemory(t)
		in, out := declareStream(t, b, "in", 1), declareStream(t, b, "out", 1)
		if _, err := in.Publish(t.Context(), broker.Record{Value: []byte("1")}); err != nil {
			t.Fatal(err)
		}
		release, late := make(chan struct{}), make(chan error, 1)
		stuck := &broker.Transformer{
			Broker: b, Source: in, Group: "g", ID: "x", Logger: quiet, DrainTimeout: time.Second,
			Handler: func(_ context.Context, _ []*broker.Record, emit func(broker.Stream, ...broker.Record) error) error {
				if err := emit(out, broker.Record{Value: []byte("before")}); err != nil {
					t.Error(err)
				}
				<-release
				err := emit(out, broker.Record{Value: []byte("late")})
				late <- err
				return err
			},
		}
		stop := start(t, stuck)
		synctest.Wait()
		began := time.Now()
		err := stop()
		if took := time.Since(began); !errors.Is(err, broker.ErrShutdown) || took > 15*time.Second {
			t.Errorf("Run: %v after %v", err, took)
		}
		next := &broker.Transformer{
			Broker: b, Source: in, Group: "g", ID: "y", Logger: quiet,
			Handler: func(_ context.Context, rs []*broker.Record, emit func(broker.Stream, ...broker.Record) error) error {
				return emit(out, broker.Record{Value: rs[0].Value})
			},
		}
		stop = start(t, next)
		advance(time.Second)
		close(release)
		synctest.Wait()
		if err := <-late; err == nil {
			t.Error("emitted after the end")
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		var got []string
		for r, err := range out.Read(t.Context(), broker.Range{ReadCommitted: true}) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, string(r.Value))
		}
		if !slices.Equal(got, []string{"1"}) {
			t.Errorf("committed %q", got)
		}
	})
}

// A middleware's time-out reaches a batch handler, which has one context for all.
func TestBatchHandlerHearsMiddlewares(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := brokertest.NewQueue("q", messages(3)...)
		var took time.Duration
		w := &broker.Worker{
			Queue: q, Logger: quiet, Middleware: []broker.Middleware{broker.Timeout(time.Second)}, Retry: broker.RetryPolicy{Min: time.Hour},
			BatchHandler: func(ctx context.Context, _ []*broker.Delivery) error {
				began := time.Now()
				select {
				case <-ctx.Done():
				case <-time.After(time.Minute):
				}
				took = time.Since(began)
				return context.Cause(ctx)
			},
		}
		stop := start(t, w)
		advance(2 * time.Minute)
		if s := w.Stats(); took != time.Second || s.Retried != 3 {
			t.Errorf("ended after %v, stats %+v", took, s)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		drained := 0
		waits := broker.RunnerFunc(func(ctx context.Context) error {
			<-ctx.Done()
			spend(time.Second)
			drained++
			return nil
		})
		fails := broker.RunnerFunc(func(context.Context) error { spend(time.Minute); return errBoom })
		began := time.Now()
		if err := broker.Run(t.Context(), waits, fails); !errors.Is(err, errBoom) || drained != 1 {
			t.Errorf("%v, %d drained", err, drained)
		}
		if took := time.Since(began); took != time.Minute+time.Second {
			t.Errorf("took %v", took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := broker.Run(ctx, waits, broker.RunnerFunc(func(context.Context) error { return nil })); err != nil {
			t.Error(err)
		}
		panics := broker.RunnerFunc(func(context.Context) error { panic("oops") })
		err := broker.Run(t.Context(), waits, panics, panics)
		if p, ok := errors.AsType[*broker.PanicError](err); !ok || p.Value != "oops" || p.Unwrap() != nil {
			t.Error(err)
		}
		if err := broker.Run(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestMiddlewares(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		log := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{}))
		var order []string
		note := func(name string) broker.Middleware {
			return func(next broker.HandlerFunc) broker.HandlerFunc {
				return func(ctx context.Context, in broker.Incoming) error {
					order = append(order, name)
					return next(ctx, in)
				}
			}
		}
		h := broker.Chain(func(ctx context.Context, in broker.Incoming) error {
			switch string(in.Payload()) {
			case "panic":
				panic("oops")
			case "slow":
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		}, note("outer"), broker.Logging(log), broker.Recover(), broker.Timeout(time.Second), broker.RateLimit(10), note("inner"))
		call := func(body string) error {
			return h(t.Context(), brokertest.NewDelivery(broker.Message{ID: "id-" + body, Body: []byte(body)}, nil))
		}
		if err := call("fine"); err != nil || !slices.Equal(order, []string{"outer", "inner"}) {
			t.Errorf("%v, %v", err, order)
		}
		if _, ok := errors.AsType[*broker.PanicError](call("panic")); !ok {
			t.Error("a panic came through")
		}
		if err := call("slow"); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		for _, want := range []string{"level=INFO msg=handled", "id=id-fine", "level=WARN", "panic: oops"} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("log lacks %q:\n%s", want, out.String())
			}
		}
		limited := broker.RateLimit(10)(func(context.Context, broker.Incoming) error { return nil })
		began := time.Now()
		for range 21 {
			if err := limited(t.Context(), delivery("1", "")); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(began); took < 1999*time.Millisecond || took > 2100*time.Millisecond {
			t.Errorf("21 calls at 10 a second took %v", took)
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if err := limited(ended, delivery("1", "")); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		free := broker.Logging(nil)(broker.RateLimit(0)(func(context.Context, broker.Incoming) error { return nil }))
		if err := free(t.Context(), delivery("1", "")); err != nil {
			t.Error(err)
		}
	})
}

// decrypt stands for any middleware that replaces payload and headers.
func decrypt(next broker.HandlerFunc) broker.HandlerFunc {
	return func(ctx context.Context, in broker.Incoming) error {
		body, ok := bytes.CutPrefix(in.Payload(), []byte("secret:"))
		if !ok {
			return broker.Reject(errBoom)
		}
		in.SetPayload(body)
		in.HeaderSet().Set("plain", "true")
		return next(ctx, in)
	}
}

func TestMiddlewareServesBothLoops(t *testing.T) {
	for _, batch := range []bool{false, true} {
		t.Run(fmt.Sprintf("batch=%v", batch), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var seen sync.Map
				note := func(in broker.Incoming) error {
					seen.Store(string(in.Payload()), true)
					if in.HeaderSet().Get("plain") == "" {
						t.Error("the headers were not passed on")
					}
					if string(in.Payload()) == "no" {
						return broker.Reject(errBoom)
					}
					return nil
				}
				q := brokertest.NewQueue("q",
					broker.Message{Body: []byte("secret:yes")}, broker.Message{Body: []byte("secret:no")}, broker.Message{Body: []byte("open")})
				s := brokertest.NewStream("s", 1)
				for _, v := range []string{"secret:a", "secret:no", "open"} {
					if _, err := s.Publish(t.Context(), broker.Record{Value: []byte(v)}); err != nil {
						t.Fatal(err)
					}
				}
				dead := brokertest.NewStream("dead", 1)
				w := &broker.Worker{Queue: q, Logger: quiet, Middleware: []broker.Middleware{decrypt}}
				p := &broker.Processor{Stream: s, Group: "g", Logger: quiet, Middleware: []broker.Middleware{decrypt}, DeadLetter: broker.DeadLetterStream(dead)}
				if batch {
					w.BatchHandler = func(_ context.Context, ds []*broker.Delivery) error {
						errs := make([]error, len(ds))
						for i, d := range ds {
							errs[i] = note(d)
						}
						return broker.NewBatchError(errs)
					}
					p.BatchHandler = func(_ context.Context, rs []*broker.Record) error {
						errs := make([]error, len(rs))
						for i, r := range rs {
							errs[i] = note(r)
						}
						return broker.NewBatchError(errs)
					}
				} else {
					w.Handler = func(_ context.Context, d *broker.Delivery) error { return note(d) }
					p.Handler = func(_ context.Context, r *broker.Record) error { return note(r) }
				}
				stop := start(t, broker.RunnerFunc(func(ctx context.Context) error { return broker.Run(ctx, w, p) }))
				advance(5 * time.Second)
				if err := stop(); err != nil {
					t.Fatal(err)
				}
				for _, v := range []string{"yes", "no", "a"} {
					if _, ok := seen.Load(v); !ok {
						t.Errorf("%q was not handled", v)
					}
				}
				if _, ok := seen.Load("open"); ok {
					t.Error("what the middleware refused was handled")
				}
				letters := q.DeadLetters()
				if len(letters) != 2 || w.Stats().Acked != 1 {
					t.Fatalf("dead letters %v, stats %+v", letters, w.Stats())
				}
				for _, m := range letters {
					if b := string(m.Body); b != "secret:no" && b != "open" || m.Headers.Get("plain") != "" {
						t.Errorf("dead letter %q with %v: want what was published", b, m.Headers)
					}
				}
				n := 0
				for r, err := range dead.Read(t.Context(), broker.Range{}) {
					if err != nil {
						t.Fatal(err)
					}
					n++
					if v := string(r.Value); v != "secret:no" && v != "open" || r.Headers.Get(broker.HeaderDeadLetterReason) == "" {
						t.Errorf("dead record %q with %v", v, r.Headers)
					}
				}
				if n != 2 || s.Committed("g", 0) != 3 {
					t.Errorf("%d dead records, committed %d", n, s.Committed("g", 0))
				}
			})
		})
	}
}

func TestBatchMiddlewareRepeatsAndPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := map[string]int{}
		twice := func(next broker.HandlerFunc) broker.HandlerFunc {
			return func(ctx context.Context, in broker.Incoming) error {
				if string(in.Payload()) == "panic" {
					panic("oops")
				}
				if err := next(ctx, in); err != nil {
					return next(ctx, in)
				}
				return nil
			}
		}
		q := brokertest.NewQueue("q", broker.Message{Body: []byte("a")}, broker.Message{Body: []byte("b")}, broker.Message{Body: []byte("panic")})
		w := &broker.Worker{Queue: q, Logger: quiet, Retry: broker.RetryPolicy{MaxAttempts: 1}, Middleware: []broker.Middleware{twice}, BatchHandler: func(_ context.Context, ds []*broker.Delivery) error {
			errs := make([]error, len(ds))
			for i, d := range ds {
				if calls[string(d.Body)]++; string(d.Body) == "b" && calls["b"] == 1 {
					errs[i] = errBoom
				}
			}
			return broker.NewBatchError(errs)
		}}
		stop := start(t, w)
		advance(time.Second)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if s := w.Stats(); s.Acked != 2 || s.Panics != 1 || s.Rejected != 1 || calls["b"] != 2 || calls["a"] != 1 {
			t.Errorf("stats %+v, calls %v", s, calls)
		}
	})
}

func TestProcessorOnMemoryUnderRebalance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, err := memory.Open(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = b.Close() }()
		s := declareStream(t, b, "events", 6)
		for i := range 600 {
			if _, err := s.Publish(t.Context(), broker.Record{Key: fmt.Appendf(nil, "k%d", i%60), Value: fmt.Appendf(nil, "%d", i)}); err != nil {
				t.Fatal(err)
			}
		}
		var j journal
		member := func() *broker.Processor {
			return &broker.Processor{Stream: s, Group: "g", Logger: quiet, Handler: func(_ context.Context, r *broker.Record) error {
				spend(20 * time.Millisecond)
				j.add(r)
				return nil
			}}
		}
		stop := start(t, member())
		for range 4 {
			spend(150 * time.Millisecond)
			stop2 := start(t, member())
			spend(150 * time.Millisecond)
			if err := stop2(); err != nil {
				t.Fatal(err)
			}
		}
		advance(time.Minute)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if j.len() != 600 {
			t.Errorf("handled %d of 600 while members came and went", j.len())
		}
		j.checkOrder(t)
	})
}
