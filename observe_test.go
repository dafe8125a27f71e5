package broker_test

import (
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
	"github.com/queuestream/broker/brokertest"
)

// lines is a slog.Handler that keeps "LEVEL message" of each line, and the
// attributes by it.
type lines struct {
	slog.Handler // none of its own
	mu           sync.Mutex
	all          []string
	attrs        []map[string]string
}

func (l *lines) Enabled(context.Context, slog.Level) bool { return true }

func (l *lines) WithAttrs([]slog.Attr) slog.Handler { return l }

func (l *lines) Handle(_ context.Context, r slog.Record) error {
	attrs := map[string]string{}
	r.Attrs(func(a slog.Attr) bool { attrs[a.Key] = a.Value.String(); return true })
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, r.Level.String()+" "+r.Message)
	l.attrs = append(l.attrs, attrs)
	return nil
}

func (l *lines) logger() *slog.Logger { return slog.New(l) }

// loops are the ways to have one message handled, by handle, which is told the
// attempt. edit is given the one that is made.
func loops(t *testing.T, edit func(w *broker.Worker, p *broker.Processor, tr *broker.Transformer)) map[string]func(handle func(attempt int) error) broker.Runner {
	q := brokertest.NewQueue("q", messages(1)...)
	s := brokertest.NewStream("s", 1)
	fill(t, s, 1, 1)
	of := func(r *broker.Record) int { return r.Info().Attempt }
	return map[string]func(handle func(attempt int) error) broker.Runner{
		"worker": func(handle func(int) error) broker.Runner {
			w := &broker.Worker{Queue: q, Handler: func(_ context.Context, d *broker.Delivery) error { return handle(d.Attempt) }}
			edit(w, nil, nil)
			return w
		},
		"worker of batches": func(handle func(int) error) broker.Runner {
			w := &broker.Worker{Queue: q, BatchHandler: func(_ context.Context, ds []*broker.Delivery) error { return handle(ds[0].Attempt) }}
			edit(w, nil, nil)
			return w
		},
		"processor": func(handle func(int) error) broker.Runner {
			p := &broker.Processor{Stream: s, Group: "g", Handler: func(_ context.Context, r *broker.Record) error { return handle(of(r)) }}
			edit(nil, p, nil)
			return p
		},
		"processor in lanes": func(handle func(int) error) broker.Runner {
			p := &broker.Processor{Stream: s, Group: "g", OrderBy: byKey, Handler: func(_ context.Context, r *broker.Record) error { return handle(of(r)) }}
			edit(nil, p, nil)
			return p
		},
		"processor of batches": func(handle func(int) error) broker.Runner {
			p := &broker.Processor{Stream: s, Group: "g", BatchHandler: func(_ context.Context, rs []*broker.Record) error { return handle(of(rs[0])) }}
			edit(nil, p, nil)
			return p
		},
		"transformer": func(handle func(int) error) broker.Runner {
			b := openMemory(t)
			in := declareStream(t, b, "in", 1)
			if _, err := in.Publish(t.Context(), broker.Record{}); err != nil {
				t.Fatal(err)
			}
			tr := &broker.Transformer{
				Broker: b, Source: in, Group: "g", ID: "x",
				Handler: func(_ context.Context, rs []*broker.Record, _ func(broker.Stream, ...broker.Record) error) error {
					return handle(of(rs[0]))
				},
			}
			edit(nil, nil, tr)
			return tr
		},
	}
}

var loopNames = []string{"worker", "worker of batches", "processor", "processor in lanes", "processor of batches", "transformer"}

// A panic in Observe is logged, with its stack, and changes nothing else.
func TestPanicInObserve(t *testing.T) {
	for _, name := range loopNames {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log lines
				told := 0
				observe := func(context.Context, broker.Observation) { told++; panic("oops") }
				var done func() bool
				attempts := 0
				r := loops(t, func(w *broker.Worker, p *broker.Processor, tr *broker.Transformer) {
					switch {
					case w != nil:
						w.Observe, w.Logger, w.Concurrency = observe, log.logger(), 1
						done = func() bool { s := w.Stats(); return s.Acked == 1 && s.Retried == 1 && s.Panics == 0 }
					case p != nil:
						p.Observe, p.Logger, p.Concurrency = observe, log.logger(), 1
						done = func() bool { s := p.Stats(); return s.Committed == 1 && s.Retried == 1 && s.Panics == 0 }
					default:
						tr.Observe, tr.Logger = observe, log.logger()
						done = func() bool { return tr.Stats().Committed == 1 }
					}
				})[name](func(attempt int) error {
					if attempts++; attempt == 1 {
						return errBoom
					}
					return nil
				})
				stop := start(t, r)
				advance(time.Minute)
				if attempts != 2 || !done() {
					t.Errorf("%d attempts, log %v", attempts, log.all)
				}
				if err := stop(); err != nil {
					t.Error(err)
				}
				n := 0
				for i, line := range log.all {
					if line == "ERROR Observe panicked" {
						n++
						if a := log.attrs[i]; a["error"] != "panic: oops" || !strings.Contains(a["stack"], "TestPanicInObserve") {
							t.Errorf("%s: %v", line, a)
						}
					}
				}
				if n != told || n == 0 {
					t.Errorf("%d panics, %d of them logged", told, n)
				}
			})
		})
	}
}

// A panic in RetryPolicy.Delay is logged, with its stack; the wait is then that
// of a policy without it.
func TestPanicInRetryDelay(t *testing.T) {
	for _, name := range loopNames {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log lines
				retry := broker.RetryPolicy{Min: 4 * time.Second, Delay: func(int, error) time.Duration { panic("oops") }}
				var at []time.Duration
				began := time.Now()
				var done func() bool
				r := loops(t, func(w *broker.Worker, p *broker.Processor, tr *broker.Transformer) {
					switch {
					case w != nil:
						w.Retry, w.Logger = retry, log.logger()
						done = func() bool { s := w.Stats(); return s.Acked == 1 && s.Retried == 2 && s.Panics == 0 }
					case p != nil:
						p.Retry, p.Logger = retry, log.logger()
						done = func() bool { s := p.Stats(); return s.Committed == 1 && s.Retried == 2 && s.Panics == 0 }
					default:
						tr.Retry, tr.Logger = retry, log.logger()
						done = func() bool { return tr.Stats().Committed == 1 }
					}
				})[name](func(attempt int) error {
					if at = append(at, time.Since(began)); attempt < 3 {
						return errBoom
					}
					return nil
				})
				stop := start(t, r)
				advance(time.Minute)
				if !done() || len(at) != 3 {
					t.Fatalf("tried at %v", at)
				}
				for i, d := range []time.Duration{4 * time.Second, 8 * time.Second} {
					if wait := at[i+1] - at[i]; wait < d/2 || wait > d+time.Second {
						t.Errorf("waited %v after attempt %d, want %v less up to a half", wait, i+1, d)
					}
				}
				if err := stop(); err != nil {
					t.Error(err)
				}
				n := 0
				for i, line := range log.all {
					if line == "ERROR Retry.Delay panicked" {
						n++
						if a := log.attrs[i]; a["error"] != "panic: oops" || !strings.Contains(a["stack"], "TestPanicInRetryDelay") {
							t.Errorf("%s: %v", line, a)
						}
					}
				}
				if n != 2 {
					t.Errorf("%d of 2 panics were logged: %v", n, log.all)
				}
			})
		})
	}
}

// What happens is logged once: a record that is dead-lettered is not said to
// have failed as well, and a panic is not said to be an error as well.
func TestLoopsLogOnce(t *testing.T) {
	fails := func(int) error { return errBoom }
	for _, tt := range []struct {
		name   string
		handle func(attempt int) error
		retry  broker.RetryPolicy
		down   int // calls of DeadLetter that fail; -1: there is none
		want   []string
		stacks int
		ends   bool // Run, with the error
	}{
		{name: "rejected", handle: func(int) error { return broker.Reject(errBoom) }, want: []string{"WARN dead-lettered"}},
		{name: "failed, and up to the last time", handle: fails, retry: broker.RetryPolicy{MaxAttempts: 3}, want: []string{"INFO handled", "INFO handled", "WARN dead-lettered"}},
		{
			name: "panicked, and up to the last time", retry: broker.RetryPolicy{MaxAttempts: 2}, stacks: 2,
			handle: func(int) error { panic("oops") },
			want:   []string{"ERROR handler panicked", "ERROR handler panicked", "WARN dead-lettered"},
		},
		{
			name: "its dead letter is refused", down: 1, handle: func(int) error { return broker.Reject(errBoom) },
			want: []string{"WARN dead-lettering failed", "WARN dead-lettered"},
		},
		{name: "rejected for nobody", down: -1, handle: func(int) error { return broker.Reject(errBoom) }, want: []string{"INFO handled"}, ends: true},
	} {
		for _, name := range []string{"processor", "processor in lanes", "processor of batches"} {
			t.Run(tt.name+", "+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var log lines
					var seen watch
					down, calls := tt.down, 0
					r := loops(t, func(_ *broker.Worker, p *broker.Processor, _ *broker.Transformer) {
						p.Logger, p.Observe, p.Retry = log.logger(), seen.observe, tt.retry
						if down >= 0 {
							p.DeadLetter = func(context.Context, *broker.Record, error) error {
								if down--; down >= 0 {
									return broker.ErrUnavailable
								}
								return nil
							}
						}
					})[name](func(attempt int) error { calls++; return tt.handle(attempt) })
					stop := start(t, r)
					advance(time.Minute)
					if err := stop(); tt.ends != (err != nil) || err != nil && !errors.Is(err, errBoom) {
						t.Errorf("Run: %v", err)
					}
					if !slices.Equal(log.all, tt.want) {
						t.Errorf("logged %q, want %q", log.all, tt.want)
					}
					stacks := 0
					for i, a := range log.attrs {
						if a["stack"] != "" {
							stacks++
						}
						if a["error"] == "" || a["id"] == "" {
							t.Errorf("%s: %v", log.all[i], a)
						}
					}
					if n := len(seen.of(broker.ObservedHandled)); stacks != tt.stacks || n != calls {
						t.Errorf("%d stacks, want %d; %d of %d calls observed", stacks, tt.stacks, n, calls)
					}
				})
			})
		}
	}
	for _, name := range []string{"worker", "worker of batches"} {
		t.Run(fmt.Sprint("panicked, ", name), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log lines
				var seen watch
				r := loops(t, func(w *broker.Worker, _ *broker.Processor, _ *broker.Transformer) {
					w.Logger, w.Observe = log.logger(), seen.observe
				})[name](func(attempt int) error {
					if attempt == 1 {
						panic("oops")
					}
					return nil
				})
				stop := start(t, r)
				advance(time.Minute)
				if err := stop(); err != nil {
					t.Error(err)
				}
				if want := []string{"ERROR handler panicked"}; !slices.Equal(log.all, want) || len(seen.of(broker.ObservedHandled)) != 2 {
					t.Errorf("logged %q, want %q; observed %v", log.all, want, seen.all)
				}
			})
		})
	}
}
