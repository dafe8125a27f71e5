package bridge

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/bridge/blob"
)

// A watched stream asks commit before each commit, and passes on what it allows.
type watched struct {
	broker.Stream
	commit func(rs []*broker.Record) error
}

func (s *watched) Consumer(ctx context.Context, group string, o *broker.GroupOptions) (broker.GroupConsumer, error) {
	c, err := s.Stream.Consumer(ctx, group, o)
	return &watchedConsumer{c, s}, err
}

type watchedConsumer struct {
	broker.GroupConsumer
	s *watched
}

func (c *watchedConsumer) Commit(ctx context.Context, rs ...*broker.Record) error {
	if err := c.s.commit(rs); err != nil {
		return err
	}
	return c.GroupConsumer.Commit(ctx, rs...)
}

// 1. No loss: whatever fails, what is committed never goes beyond the records
// that have ended without a gap, as enqueued, filtered or parked.
func TestContract1CommittedPrefix(t *testing.T) {
	for _, way := range []string{"one by one", "BatchSameGroup", "standard queue"} {
		t.Run(way, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 3)
				if way == "standard queue" {
					w.standard()
				}
				const n = 3000
				w.publish(n, 12)
				var mu sync.Mutex
				rnd := rand.New(rand.NewPCG(5, 6)) //nolint:gosec // a fixed seed
				ended, prefix := map[coordinates]int{}, map[int32]int64{}
				commits, behind := 0, 0
				source := &watched{Stream: w.stream, commit: func(rs []*broker.Record) error {
					mu.Lock()
					defer mu.Unlock()
					commits++
					for _, r := range rs {
						for ; ended[coordinates{r.Partition, broker.NewOffset(prefix[r.Partition])}] > 0; prefix[r.Partition]++ {
						}
						at, _ := r.Offset().Int64()
						if at >= prefix[r.Partition] {
							t.Errorf("%d of partition %d is committed, %d has not ended", at, r.Partition, prefix[r.Partition])
						}
						for o := at + 1; o < at+100; o++ {
							if ended[coordinates{r.Partition, broker.NewOffset(o)}] > 0 {
								behind++ // done, and rightly not committed yet
								break
							}
						}
					}
					if rnd.IntN(10) == 0 {
						return &broker.Error{Op: "commit", Temporary: true, Err: broker.ErrUnavailable}
					}
					return nil
				}}
				number := func(v []byte) int { i, _ := strconv.Atoi(string(v)); return i }
				rt := w.route(func(rt *Route) {
					rt.Source, rt.BatchSameGroup = source, way == "BatchSameGroup"
					rt.Target = &flaky{Queue: w.queue, before: func(m broker.Message) error {
						mu.Lock()
						fail, wait := rnd.IntN(6) == 0, time.Duration(rnd.IntN(300))*time.Millisecond
						mu.Unlock()
						<-time.After(wait)
						switch {
						case number(m.Body)%50 == 7:
							return errRefused
						case fail:
							return errThrottled
						}
						return nil
					}}
					if way != "standard queue" { // with a filter its records go one by one
						rt.Filter = func(r *broker.Record) (bool, error) { return number(r.Value)%9 != 0, nil }
					}
					rt.Observe = func(e Event) {
						if e.Kind == Enqueued || e.Kind == Filtered || e.Kind == Parked {
							mu.Lock()
							defer mu.Unlock()
							ended[coordinates{e.Record.Partition, e.Record.Offset()}]++
						}
					}
				})
				stop := w.start(rt)
				w.until("the end of the stream", func() bool { return w.lag("bridge-r") == 0 })
				check(t, stop())
				if s := rt.Stats(); len(ended) != n || s.Enqueued+s.Filtered+s.Parked != n || s.Parked == 0 || (s.Filtered > 0) != (rt.Filter != nil) {
					t.Errorf("%d of %d records ended; stats %+v", len(ended), n, s)
				}
				for at, times := range ended {
					if times != 1 {
						t.Errorf("%v ended %d times", at, times)
					}
				}
				ds := w.drain(w.queue)
				for v, times := range values(ds) {
					if times != 1 {
						t.Errorf("%s arrived %d times", v, times)
					}
				}
				if s := rt.Stats(); len(ds) != int(s.Enqueued) || s.Duplicates != 0 {
					t.Errorf("%d arrived; stats %+v", len(ds), s)
				}
				if commits < 5 || behind == 0 {
					t.Errorf("%d commits, %d of them behind what had ended: this shows nothing", commits, behind)
				}
			})
		})
	}
}

// A window may be smaller than a request, and one key in flight is one record.
func TestSmallWindows(t *testing.T) {
	for _, way := range []string{"BatchSameGroup", "standard queue"} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, 1)
			if way == "standard queue" {
				w.standard()
			}
			w.publish(100, 10)
			var mu sync.Mutex
			inFlight, most := 0, 0
			q := &flaky{Queue: w.queue, before: func(broker.Message) error {
				mu.Lock()
				inFlight++
				most = max(most, inFlight)
				mu.Unlock()
				<-time.After(time.Millisecond)
				mu.Lock()
				inFlight--
				mu.Unlock()
				return nil
			}}
			for _, edit := range []func(*Route){func(rt *Route) { rt.Window = 3 }, func(rt *Route) { rt.Concurrency = 1 }} {
				rt := w.route(func(rt *Route) {
					rt.Target, rt.BatchSameGroup, rt.Until = q, way == "BatchSameGroup", broker.Now()
					edit(rt)
				})
				check(t, rt.Run(w.ctx))
				check(t, w.events.ResetGroup(w.ctx, "orders", "bridge-r", broker.Earliest()))
				if s := rt.Stats(); s.Enqueued != 100 || rt.Concurrency == 1 && most > 1 {
					t.Errorf("%s: %d in flight; stats %+v", way, most, s)
				}
				most = 0
			}
		})
	}
}

// 7. Poison: a function of the route's that panics makes its own record poison,
// after Attempts, and no other one.
func TestContract7Panic(t *testing.T) {
	for _, way := range []string{"one by one", "BatchSameGroup", "standard queue"} {
		for name, edit := range map[string]func(*Route, func(*broker.Record)){
			"Filter": func(rt *Route, f func(*broker.Record)) {
				rt.Filter = func(r *broker.Record) (bool, error) { f(r); return true, nil }
			},
			"Map": func(rt *Route, f func(*broker.Record)) {
				rt.Map = func(r *broker.Record, _ *broker.Message) error { f(r); return nil }
			},
			"GroupFor": func(rt *Route, f func(*broker.Record)) {
				rt.GroupFor = func(r *broker.Record) (string, error) { f(r); return string(r.Key), nil }
			},
		} {
			if name == "GroupFor" && way == "standard queue" { // which has no groups
				continue
			}
			t.Run(fmt.Sprintf("%s,%s", name, way), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t, 1)
					if way == "standard queue" {
						w.standard()
					}
					w.publish(100, 10)
					tries := 0
					rt := w.route(func(rt *Route) {
						rt.Attempts, rt.BatchSameGroup = 3, way == "BatchSameGroup"
						edit(rt, func(r *broker.Record) {
							if string(r.Value) == "42" {
								tries++
								panic("cannot do 42")
							}
						})
					})
					stop := w.start(rt)
					w.until("the end of the stream", func() bool { return w.lag("bridge-r") == 0 })
					check(t, stop())
					ds, dead := w.drain(w.queue), w.drain(w.dead)
					if len(ds) != 99 || len(dead) != 1 || dead[0].Headers.Get(broker.HeaderDeadLetterReason) != "panic: cannot do 42" || tries < 3 || name != "GroupFor" && tries > 3 {
						t.Errorf("%d tasks, %d dead letters, %d tries", len(ds), len(dead), tries)
					}
					if s := rt.Stats(); s.Enqueued != 99 || s.Duplicates != 0 || s.Parked != 1 {
						t.Errorf("stats: %+v", s)
					}
				})
			})
		}
	}
}

// What is remembered of batches does not grow with what was committed.
func TestMemoryOfBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		w.standard()
		const n, window = 20_000, 100
		w.publish(n, 4)
		rt := w.route(func(rt *Route) {
			rt.Poison, rt.DeadLetter, rt.Window = PoisonDLQ, w.dead, window
			rt.Map = func(r *broker.Record, _ *broker.Message) error {
				if r.Value[len(r.Value)-1] < '4' {
					return errors.New("cannot map")
				}
				return nil
			}
		})
		stop := w.start(rt)
		w.until("the end of the stream", func() bool { return w.lag("bridge-r") == 0 })
		check(t, stop())
		if s := rt.Stats(); s.Parked != n*4/10 || s.Enqueued != n*6/10 || len(rt.ended) == 0 || len(rt.ended) > endedRoom+window {
			t.Errorf("%d remembered; stats %+v", len(rt.ended), s)
		}
	})
}

// 2. A crash between enqueue and commit: nothing that was enqueued last is
// committed, however much it is. What is sent again is within the window, and
// the FIFO queue suppresses it.
func TestContract2CrashBeforeCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2)
		const n, window = 2000, 100
		w.publish(n, 40)
		var dead atomic.Bool
		source := &watched{Stream: w.stream, commit: func([]*broker.Record) error {
			if dead.Load() {
				return &broker.Error{Op: "commit", Temporary: true, Err: errors.New("the process is dead")}
			}
			return nil
		}}
		q := &flaky{Queue: w.queue}
		q.set(func(broker.Message) error {
			if q.sent() > n/2 {
				dead.Store(true)
			}
			<-time.After(5 * time.Millisecond)
			return nil
		}, nil)
		first := w.route(func(rt *Route) { rt.Source, rt.Target, rt.Window, rt.DrainTimeout = source, q, window, time.Second })
		stop := w.start(first)
		w.until("the crash", dead.Load)
		<-time.After(10 * time.Second) // the window fills, and no further
		if stop() == nil {
			t.Error("the last commit went through")
		}
		enqueued, committed := int(first.Stats().Enqueued), n-int(w.lag("bridge-r"))
		if enqueued <= committed || enqueued-committed > 2*window {
			t.Errorf("%d enqueued, %d committed: want at most the window of %d in each of 2 partitions between them", enqueued, committed, window)
		}
		again := w.route(nil)
		stop = w.start(again)
		w.until("the end of the stream", func() bool { return w.lag("bridge-r") == 0 })
		check(t, stop())
		if s := again.Stats(); int(s.Enqueued) != n-committed || int(s.Duplicates) != enqueued-committed {
			t.Errorf("sent again: %+v; want %d, of which the queue knows %d", s, n-committed, enqueued-committed)
		}
		allOnce(t, w.drain(w.queue), n)
	})
}

// 5. An ambiguous send: SQS has stored a batch and its answer is lost. The same
// ids go again, the queue suppresses them, and no group goes ahead of it.
func TestContract5AnswersLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2)
		const n = 3000
		w.publish(n, 100)
		var lost atomic.Int64
		f := &fakeFIFO{}
		f.lose = func() bool { return rand.IntN(4) == 0 && lost.Add(1) > 0 } //nolint:gosec // any
		rt := w.route(nil)
		rt.Target = w.toSQS(f)
		stop := w.start(rt)
		w.until("the end of the stream", func() bool { return w.lag("bridge-r") == 0 })
		check(t, stop())
		checkArrived(t, f.all(), n)
		if lost.Load() == 0 || f.repeats == 0 {
			t.Errorf("%d answers were lost, %d tasks came again", lost.Load(), f.repeats)
		}
	})
}

// 9. Too large: the limit is the one that the queue tells, and all of a task
// counts, attributes as well. One byte makes the difference.
func TestContract9SizeLimit(t *testing.T) {
	record := func(size int) broker.Record {
		r := broker.Record{Key: []byte("k"), Value: []byte(strings.Repeat("x", size)), Headers: broker.Headers{{Key: "tenant", Value: "t"}}}
		r.SetTime(time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC))
		return r
	}
	send := func(t *testing.T, policy SizePolicy, sizes ...int) (*fakeFIFO, Stats) {
		t.Helper()
		w := newWorld(t, 1)
		for _, size := range sizes {
			_, err := w.stream.Publish(w.ctx, record(size))
			check(t, err)
		}
		f := &fakeFIFO{}
		rt := w.route(func(rt *Route) { rt.TooLarge, rt.Blobs = policy, blob.Dir{Path: t.TempDir()} })
		rt.Target = w.toSQS(f)
		stop := w.start(rt)
		w.until("the end of the stream", func() bool { return w.lag("bridge-r") == 0 })
		check(t, stop())
		return f, rt.Stats()
	}
	synctest.Test(t, func(t *testing.T) {
		f, _ := send(t, TooLargeReject, 1)
		around := fakeLimit - f.all()[0].size() // the largest body, less one
		f, s := send(t, TooLargeReject, around, around+1, around+2)
		if got := f.all(); s.Enqueued != 2 || s.Parked != 1 || len(got) != 2 || got[0].size() != fakeLimit-1 || got[1].size() != fakeLimit {
			t.Errorf("%d arrived; stats %+v", len(got), s)
		}
		f, s = send(t, TooLargeClaimCheck, around+1, around+2)
		if got := f.all(); s.Enqueued != 2 || s.Claimed != 1 || len(got) != 2 || got[1].size() > 2000 {
			t.Errorf("%d arrived; stats %+v", len(got), s)
		}
	})
}
