package broker_test

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/brokertest"
)

// ending is a handler that ends its goroutine (a test's FailNow does) the first
// times it is given the record "3", and remembers the rest.
type ending struct {
	journal
	times int

	mu    sync.Mutex
	tries int
}

func (e *ending) handle(r *broker.Record) {
	e.end(r)
	e.add(r)
}

func (e *ending) end(r *broker.Record) {
	if string(r.Value) != "3" {
		return
	}
	e.mu.Lock()
	e.tries++
	end := e.tries <= e.times
	e.mu.Unlock()
	if end {
		runtime.Goexit()
	}
}

func (e *ending) one(_ context.Context, r *broker.Record) error { e.handle(r); return nil }

func (e *ending) batch(_ context.Context, rs []*broker.Record) error {
	for _, r := range rs { // of a batch nothing is done when the handler ends before it does
		e.end(r)
	}
	for _, r := range rs {
		e.add(r)
	}
	return nil
}

func byKey(r *broker.Record) string { return string(r.Key) }

// The ways in which a Processor calls a handler.
var endings = map[string]func(p *broker.Processor, e *ending){
	"one after the other": func(p *broker.Processor, e *ending) { p.Handler = e.one },
	"in a lane":           func(p *broker.Processor, e *ending) { p.Handler, p.OrderBy = e.one, byKey },
	"with a middleware": func(p *broker.Processor, e *ending) {
		p.Handler, p.Middleware = e.one, []broker.Middleware{broker.Recover()}
	},
	"a batch": func(p *broker.Processor, e *ending) { p.BatchHandler = e.batch },
	"a batch, with a middleware": func(p *broker.Processor, e *ending) {
		p.BatchHandler, p.Middleware = e.batch, []broker.Middleware{broker.Recover()}
	},
	"the middleware of a batch": func(p *broker.Processor, e *ending) {
		p.BatchHandler = func(_ context.Context, rs []*broker.Record) error {
			for _, r := range rs {
				e.add(r)
			}
			return nil
		}
		p.Middleware = []broker.Middleware{func(next broker.HandlerFunc) broker.HandlerFunc {
			return func(ctx context.Context, in broker.Incoming) error { e.end(in.(*broker.Record)); return next(ctx, in) }
		}}
	},
}

// A handler that ends its goroutine has failed, as one that panics has: its
// record comes again, before those behind it of its key, nothing beyond it is
// committed until then, and the others go on.
func TestProcessorHandlerEndsItsGoroutine(t *testing.T) {
	for name, set := range endings {
		for _, lanes := range []int{1, 4} {
			t.Run(fmt.Sprintf("%s, on %d lanes", name, lanes), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := brokertest.NewStream("events", 1)
					fill(t, s, 20, 5)
					e := &ending{times: 2}
					var seen watch
					p := &broker.Processor{
						Stream: s, Group: "g", Logger: quiet, Observe: seen.observe, Concurrency: lanes,
						Retry: broker.RetryPolicy{Min: time.Minute},
					}
					set(p, e)
					stop := start(t, p)
					advance(time.Second)
					if n := s.Committed("g", 0); n > 3 {
						t.Errorf("committed %d with record 3 open", n)
					}
					if _, err := s.Publish(t.Context(), broker.Record{Key: []byte("k0"), Value: []byte("20")}); err != nil {
						t.Fatal(err)
					}
					advance(time.Hour)
					if st := p.Stats(); s.Committed("g", 0) != 21 || st.Handlers != 0 || st.Partitions[0].InHand != 0 {
						t.Errorf("committed %d of 21, stats %+v", s.Committed("g", 0), st)
					}
					if e.tries < 3 {
						t.Errorf("record 3 was tried %d times", e.tries)
					}
					failed := 0
					for _, o := range seen.of(broker.ObservedHandled) {
						if o.Err == nil {
							continue
						}
						if failed++; !strings.Contains(o.Err.Error(), "goroutine") {
							t.Errorf("observed %v", o.Err)
						}
					}
					if failed < 2 {
						t.Errorf("%d failures were observed", failed)
					}
					if name != "the middleware of a batch" { // there those behind it are handled, and again after it
						e.checkOrder(t)
					}
					if err := stop(); err != nil {
						t.Error(err)
					}
				})
			})
		}
	}
}

// One that always ends its goroutine uses up the attempts of its record.
func TestProcessorDeadLettersWhatEndsItsGoroutine(t *testing.T) {
	for name, set := range endings {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := brokertest.NewStream("events", 1)
				fill(t, s, 20, 20)
				e := &ending{times: 1 << 30}
				dead := brokertest.NewQueue("dead")
				p := &broker.Processor{
					Stream: s, Group: "g", Logger: quiet, Concurrency: 2,
					Retry: broker.RetryPolicy{MaxAttempts: 3}, DeadLetter: broker.DeadLetterTo(dead),
				}
				set(p, e)
				if p.BatchHandler != nil {
					p.MaxBatch = 1
				}
				stop := start(t, p)
				advance(time.Minute)
				if st := p.Stats(); s.Committed("g", 0) != 20 || e.tries != 3 || e.len() != 19 || st.Retried != 2 || st.DeadLettered != 1 || st.HandlerErrors != 3 || st.Handled != 22 {
					t.Errorf("committed %d, %d tries, %d handled, stats %+v", s.Committed("g", 0), e.tries, e.len(), st)
				}
				ms := dead.Waiting()
				if len(ms) != 1 || string(ms[0].Body) != "3" || !strings.Contains(ms[0].Headers.Get(broker.HeaderDeadLetterReason), "goroutine") {
					t.Errorf("dead letters %+v", ms)
				}
				if err := stop(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// So has a DeadLetterFunc that does: it is called again.
func TestProcessorDeadLetterEndsItsGoroutine(t *testing.T) {
	for _, mode := range []string{"one after the other", "in a lane", "a batch"} {
		t.Run(mode, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := brokertest.NewStream("events", 1)
				fill(t, s, 20, 5)
				e := &ending{}
				var calls atomic.Int64
				p := &broker.Processor{
					Stream: s, Group: "g", Logger: quiet, Concurrency: 1,
					DeadLetter: func(context.Context, *broker.Record, error) error {
						if calls.Add(1) < 3 {
							runtime.Goexit()
						}
						return nil
					},
				}
				endings[mode](p, e)
				reject := func(r *broker.Record) error {
					if string(r.Value) == "3" {
						return broker.Reject(errBoom)
					}
					return nil
				}
				if p.Handler != nil {
					p.Handler = func(_ context.Context, r *broker.Record) error { return reject(r) }
				} else {
					p.BatchHandler = func(_ context.Context, rs []*broker.Record) error {
						errs := make([]error, len(rs))
						for i, r := range rs {
							errs[i] = reject(r)
						}
						return broker.NewBatchError(errs)
					}
				}
				stop := start(t, p)
				advance(time.Millisecond)
				if calls.Load() != 1 || s.Committed("g", 0) > 3 {
					t.Errorf("called %d times at once, committed %d", calls.Load(), s.Committed("g", 0))
				}
				advance(time.Minute)
				if st := p.Stats(); s.Committed("g", 0) != 20 || calls.Load() != 3 || st.DeadLettered != 1 {
					t.Errorf("committed %d, %d calls, stats %+v", s.Committed("g", 0), calls.Load(), st)
				}
				if err := stop(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// Observe that does loses nothing either.
func TestProcessorObserveEndsItsGoroutine(t *testing.T) {
	for _, mode := range []string{"one after the other", "in a lane", "a batch"} {
		t.Run(mode, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := brokertest.NewStream("events", 1)
				fill(t, s, 20, 5)
				e := &ending{}
				n := 0
				p := &broker.Processor{
					Stream: s, Group: "g", Logger: quiet, Concurrency: 1,
					Observe: func(_ context.Context, o broker.Observation) {
						if o.Kind != broker.ObservedHandled {
							return
						}
						if n++; n == 3 {
							runtime.Goexit()
						}
					},
				}
				endings[mode](p, e)
				stop := start(t, p)
				advance(time.Minute)
				if st := p.Stats(); s.Committed("g", 0) != 20 || e.len() < 20 || st.Handlers != 0 {
					t.Errorf("committed %d and handled %d of 20, stats %+v", s.Committed("g", 0), e.len(), st)
				}
				if err := stop(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// OrderBy runs where records are received: without that goroutine Run ends.
func TestProcessorOrderByEndsItsGoroutine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := brokertest.NewStream("events", 1)
		fill(t, s, 20, 5)
		e := &ending{times: 1}
		p := &broker.Processor{
			Stream: s, Group: "g", Logger: quiet,
			OrderBy: func(r *broker.Record) string { e.end(r); return byKey(r) },
			Handler: func(context.Context, *broker.Record) error { return nil },
		}
		done := make(chan error, 1)
		go func() { done <- p.Run(t.Context()) }()
		synctest.Wait()
		select {
		case err := <-done:
			if err == nil || !strings.Contains(err.Error(), "goroutine") {
				t.Errorf("Run: %v", err)
			}
		default:
			t.Fatal("Run goes on, and receives nothing")
		}
	})
}
