package bridge

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/bridge/blob"
)

var (
	errThrottled = &broker.Error{Op: "publish", Adapter: "test", Temporary: true, Err: errors.New("throttled")}
	errRefused   = &broker.Error{Op: "publish", Adapter: "test", Err: broker.Invalid("refused")}
)

// 1. No loss: every input ends exactly once, and all of it is committed.
func TestContract1NoLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 4)
		const n = 2000
		w.publish(n, 50)
		rnd := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // a fixed seed
		var mu sync.Mutex
		q := &flaky{Queue: w.queue, before: func(broker.Message) error {
			mu.Lock()
			defer mu.Unlock()
			if rnd.IntN(5) == 0 {
				return errThrottled
			}
			return nil
		}}
		number := func(r *broker.Record) int { i, _ := strconv.Atoi(string(r.Value)); return i }
		rt := w.route(func(rt *Route) {
			rt.Target = q
			rt.Filter = func(r *broker.Record) (bool, error) { return number(r)%10 != 0, nil }
			rt.Map = func(r *broker.Record, _ *broker.Message) error {
				if number(r)%10 == 1 {
					return errors.New("cannot map")
				}
				return nil
			}
		})
		stop := w.start(rt)
		w.until("the end of the stream", func() bool { return w.lag("bridge-r") == 0 })
		check(t, stop())
		s := rt.Stats()
		if s.Enqueued != n*8/10 || s.Filtered != n/10 || s.Parked != n/10 || s.In != n {
			t.Errorf("stats: %+v", s)
		}
		tasks, dead := w.drain(w.queue), w.drain(w.dead)
		if len(tasks) != n*8/10 || len(dead) != n/10 {
			t.Fatalf("%d tasks, %d dead letters", len(tasks), len(dead))
		}
		for v, count := range values(append(tasks, dead...)) {
			if count != 1 {
				t.Errorf("%s ended %d times", v, count)
			}
		}
		why, ok := broker.DeadLetterOf(&dead[0].Message)
		if !ok || why.Reason != "cannot map" || dead[0].Headers.Get(broker.HeaderSourceStream) != "orders" ||
			dead[0].Headers.Get(broker.HeaderSourceOffset) == "" {
			t.Errorf("dead letter: %+v, %v", why, dead[0].Headers)
		}
	})
}

// 2. A crash between enqueue and commit sends the window again, and no more;
// the FIFO queue suppresses it.
func TestContract2CrashResendsOnlyTheWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		const n, window = 1000, 128
		w.publish(n, 20)
		q := &flaky{Queue: w.queue}
		rt := w.route(func(rt *Route) { rt.Target, rt.Window = q, window })
		crashed := errors.New("crashed")
		q.set(func(broker.Message) error {
			if q.sent() > 500 {
				return &broker.Error{Op: "publish", Temporary: true, Err: crashed}
			}
			return nil
		}, nil)
		stop := w.start(rt)
		w.until("the crash", func() bool { return rt.Stats().Retried > 0 })
		if s := rt.Stats(); s.WindowRecords > window {
			t.Errorf("the window holds %d records, at most %d", s.WindowRecords, window)
		}
		// The process dies: its commits no longer arrive.
		check(t, w.events.ResetGroup(w.ctx, "orders", "other", broker.Earliest()))
		check(t, stop())
		before := rt.Stats().Enqueued
		committed := n - w.lag("bridge-r")
		q.set(nil, nil)
		again := w.route(func(rt *Route) { rt.Target, rt.Window = q, window })
		stop = w.start(again)
		w.until("the end of the stream", func() bool { return w.lag("bridge-r") == 0 })
		check(t, stop())
		if resent := before + again.Stats().Enqueued - n; resent < 0 || resent > window || before-committed > window {
			t.Errorf("%d records sent again, %d uncommitted, window %d", resent, before-committed, window)
		}
		allOnce(t, w.drain(w.queue), n)
	})
}

// 2. Sent again within 5 min, a task is suppressed and counted.
func TestContract2DuplicatesAvoided(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2)
		w.publish(100, 10)
		for range 2 {
			rt := w.route(nil)
			stop := w.start(rt)
			w.until("the end of the stream", func() bool { return w.lag("bridge-r") == 0 })
			check(t, stop())
			check(t, w.events.ResetGroup(w.ctx, "orders", "bridge-r", broker.Earliest()))
		}
		allOnce(t, w.drain(w.queue), 100)
	})
}

// 5. An ambiguous send goes again with the same ids, and its key waits for it.
func TestContract5AmbiguousSend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2)
		w.publish(200, 10)
		var mu sync.Mutex
		tries := map[string]int{}
		q := &flaky{Queue: w.queue, after: func(m broker.Message) error {
			mu.Lock()
			defer mu.Unlock()
			if m.ID != m.DedupID {
				t.Errorf("ID %s, DedupID %s", m.ID, m.DedupID)
			}
			if tries[m.ID]++; tries[m.ID] == 1 {
				return broker.UnknownOutcome(context.DeadlineExceeded)
			}
			return nil
		}}
		rt := w.route(func(rt *Route) { rt.Target = q })
		stop := w.start(rt)
		w.until("the end of the stream", func() bool { return w.lag("bridge-r") == 0 })
		check(t, stop())
		if s := rt.Stats(); s.Duplicates != 200 || s.Enqueued != 200 {
			t.Errorf("stats: %+v", s)
		}
		allOnce(t, w.drain(w.queue), 200)
	})
}

// 6. Members joining and leaving, and SIGTERM, make no duplicate.
func TestContract6PlannedHandover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 6)
		const n = 3000
		w.publish(n, 100)
		q := &flaky{Queue: w.queue, before: func(broker.Message) error {
			<-time.After(5 * time.Millisecond)
			return nil
		}}
		member := func() func() error {
			return w.start(w.route(func(rt *Route) { rt.Target, rt.Concurrency = q, 16 }))
		}
		stops := []func() error{member()}
		for _, at := range []int{400, 800, 1200, 1600} {
			w.until("progress", func() bool { return q.sent() >= at })
			if len(stops) < 3 {
				stops = append(stops, member())
			} else {
				check(t, stops[0]())
				stops = stops[1:]
			}
		}
		w.until("the end of the stream", func() bool { return w.lag("bridge-r") == 0 })
		for _, stop := range stops {
			check(t, stop())
		}
		if q.sent() != n {
			t.Errorf("%d sends for %d records", q.sent(), n)
		}
		allOnce(t, w.drain(w.queue), n)
	})
}

// 7. Poison: each policy, its batch mates unharmed.
func TestContract7Poison(t *testing.T) {
	const n, bad = 100, "42"
	refuse := func(m broker.Message) error {
		if string(m.Body) == bad {
			return errRefused
		}
		return nil
	}
	for _, same := range []bool{false, true} {
		for _, policy := range []PoisonPolicy{PoisonDLQ, PoisonSkip, PoisonBlockKey, PoisonHalt} {
			t.Run(fmt.Sprintf("%s,BatchSameGroup=%v", policy, same), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t, 2)
					w.publish(n, 10) // 42 and 52, 62, … share a key
					q := &flaky{Queue: w.queue, before: refuse}
					rt := w.route(func(rt *Route) { rt.Target, rt.Poison, rt.BatchSameGroup = q, policy, same })
					stop := w.start(rt)
					lost := 1
					switch policy {
					case PoisonDLQ, PoisonSkip:
						w.until("the end of the stream", func() bool { return w.lag("bridge-r") == 0 })
						check(t, stop())
					case PoisonBlockKey:
						lost = 6 // 42, 52, … 92 wait; with BatchSameGroup some of them went along
						w.until("the other keys", func() bool { return rt.Stats().Enqueued >= int64(n-lost) })
						check(t, stop())
						if w.lag("bridge-r") == 0 {
							t.Error("committed beyond the blocked record")
						}
					case PoisonHalt:
						w.until("the halt", func() bool { return rt.Stats().Halted != nil })
						err := stop()
						if _, ok := errors.AsType[*HaltError](err); !ok || !errors.Is(err, broker.ErrInvalid) {
							t.Errorf("Run returned %v", err)
						}
						if w.lag("bridge-r") == 0 {
							t.Error("committed beyond the poison record")
						}
						return
					}
					got := values(w.drain(w.queue))
					if len(got) < n-lost || len(got) > n-lost && !same || got[bad] != 0 {
						t.Errorf("%d tasks, want %d", len(got), n-lost)
					}
					if dead := w.drain(w.dead); (policy == PoisonDLQ) != (len(dead) == 1) {
						t.Errorf("%d dead letters", len(dead))
					}
				})
			})
		}
	}
}

// 7. A dead-letter queue that is down blocks; it never drops.
// Nor does it send twice what went along with the record that it blocks.
func TestContract7DeadLetterQueueDown(t *testing.T) {
	for _, same := range []bool{false, true} {
		t.Run(fmt.Sprintf("BatchSameGroup=%v", same), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 1)
				w.publish(10, 2)
				dead := &flaky{Queue: w.dead, before: func(broker.Message) error { return errThrottled }}
				q := &flaky{Queue: w.queue, before: func(m broker.Message) error {
					if string(m.Body) == "0" {
						return errRefused
					}
					return nil
				}}
				rt := w.route(func(rt *Route) { rt.Target, rt.DeadLetter, rt.BatchSameGroup = q, dead, same })
				stop := w.start(rt)
				w.until("many tries", func() bool { return dead.sent() > 10 })
				if w.lag("bridge-r") == 0 {
					t.Error("committed before the dead letter was stored")
				}
				dead.set(nil, nil)
				w.until("the end of the stream", func() bool { return w.lag("bridge-r") == 0 })
				check(t, stop())
				if got := w.drain(w.dead); len(got) != 1 || string(got[0].Body) != "0" {
					t.Errorf("dead letters: %v", values(got))
				}
				if s := rt.Stats(); q.sent() != 10 || s.Enqueued != 9 || s.Parked != 1 {
					t.Errorf("%d sends for 10 records; stats %+v", q.sent(), s)
				}
			})
		})
	}
}

// 7. A failure that the bridge does not know is tried Attempts times.
func TestContract7UnknownFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		w.publish(5, 5)
		q := &flaky{Queue: w.queue, before: func(broker.Message) error { return errors.New("who knows") }}
		rt := w.route(func(rt *Route) { rt.Target, rt.Attempts = q, 4 })
		stop := w.start(rt)
		w.until("the end of the stream", func() bool { return w.lag("bridge-r") == 0 })
		check(t, stop())
		if s := rt.Stats(); s.Parked != 5 || q.sent() != 20 {
			t.Errorf("%d parked after %d sends", s.Parked, q.sent())
		}
		for _, d := range w.drain(w.dead) {
			if why, ok := broker.DeadLetterOf(&d.Message); !ok || why.Attempts != 4 {
				t.Errorf("the dead letter says %+v", why)
			}
		}
	})
}

// 8. Replay by time with an end, in a group of its own; a dry run sends nothing.
func TestContract8Replay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3)
		w.publish(50, 10)
		<-time.After(time.Hour)
		from := time.Now()
		w.publish(50, 10)
		<-time.After(time.Hour)
		until := time.Now()
		w.publish(50, 10)
		live := w.route(nil)
		stop := w.start(live)
		w.until("the live route", func() bool { return w.lag("bridge-r") == 0 })
		check(t, stop())
		allOnce(t, w.drain(w.queue), 150)
		<-time.After(10 * time.Minute) // past the dedup window

		var planned int
		s, err := live.DryRun(w.ctx, broker.Range{From: broker.AtTime(from), Until: broker.AtTime(until)}, func(p Planned) error {
			planned++
			if p.Queue != "tasks.fifo" || !p.Kept || p.Task.GroupID == "" {
				t.Errorf("planned %+v", p)
			}
			return nil
		})
		check(t, err)
		if s.Records != 50 || s.Tasks != 50 || planned != 50 || len(w.drain(w.queue)) != 0 {
			t.Errorf("dry run: %+v, %d planned", s, planned)
		}

		check(t, live.Replay("again", broker.AtTime(from), broker.AtTime(until)).Run(w.ctx))
		ds := w.drain(w.queue)
		if len(ds) != 50 || values(ds)["50"] != 1 || values(ds)["99"] != 1 {
			t.Errorf("the replay sent %v", values(ds))
		}
		if w.lag("bridge-r") != 0 {
			t.Error("the replay moved the live offsets")
		}
	})
}

// 9. Too large: to the dead-letter queue without what does not fit there
// either, or into the blob store and back.
func TestContract9TooLarge(t *testing.T) {
	big := strings.Repeat("x", 2<<20)
	publish := func(w *world) {
		_, err := w.stream.Publish(w.ctx, broker.Record{Key: []byte("k"), Value: []byte(big)})
		check(w.t, err)
	}
	t.Run("reject", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, 1)
			publish(w)
			stop := w.start(w.route(nil))
			w.until("the end of the stream", func() bool { return w.lag("bridge-r") == 0 })
			check(t, stop())
			dead := w.drain(w.dead)
			if len(dead) != 1 || dead[0].Headers.Get(HeaderOmitted) != strconv.Itoa(len(big)+1) ||
				dead[0].Headers.Get(broker.HeaderSourceOffset) != "0" || !strings.Contains(dead[0].Headers.Get(broker.HeaderDeadLetterReason), "too large") {
				t.Errorf("dead letters: %+v", dead)
			}
		})
	})
	t.Run("claim check", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, 1)
			publish(w)
			store := blob.Dir{Path: t.TempDir()}
			rt := w.route(func(rt *Route) { rt.TooLarge, rt.Blobs = TooLargeClaimCheck, store })
			stop := w.start(rt)
			w.until("the end of the stream", func() bool { return w.lag("bridge-r") == 0 })
			check(t, stop())
			ds := w.drain(w.queue)
			if len(ds) != 1 || len(ds[0].Body) != 0 || rt.Stats().Claimed != 1 {
				t.Fatalf("%d tasks, stats %+v", len(ds), rt.Stats())
			}
			got := ""
			resolve := ClaimCheck(store)(func(_ context.Context, in broker.Incoming) error {
				got = string(in.Payload())
				return nil
			})
			check(t, resolve(w.ctx, ds[0]))
			if got != big {
				t.Errorf("the body came back with %d bytes", len(got))
			}
			check(t, store.Delete(w.ctx, ds[0].Headers.Get(HeaderClaimKey)))
			err := resolve(w.ctx, ds[0])
			if v, ok := broker.VerdictOf(err); !ok || v.Kind != broker.VerdictReject {
				t.Errorf("a missing body gives %v", err)
			}
		})
	})
}

// 10. Not promised, and said so where users read it: exactly once across both
// systems, order across partitions, order of a key after one of its records was
// parked. What each means shows here.
func TestContract10NotPromised(t *testing.T) {
	for file, title := range map[string]string{"doc.go": "Not promised:", "../docs/bridge/configuration.md": "## Not promised"} {
		doc := string(must(os.ReadFile(file))(t))
		_, doc, _ = strings.Cut(doc, title)
		doc = strings.ToLower(strings.ReplaceAll(doc, "\n// ", " "))
		for _, words := range []string{"exactly-once across both systems", "order across partitions", "order of a key after one of its records was parked"} {
			if !strings.Contains(doc, words) {
				t.Errorf("%s does not say that there is no promise of %s", file, words)
			}
		}
	}
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		w.publish(5, 1) // of one key
		mended := false
		rt := w.route(func(rt *Route) {
			rt.Map = func(r *broker.Record, _ *broker.Message) error {
				if string(r.Value) == "1" && !mended {
					return errors.New("cannot map")
				}
				return nil
			}
		})
		stop := w.start(rt)
		w.until("the end of the stream", func() bool { return w.lag("bridge-r") == 0 })
		check(t, stop())
		<-time.After(DedupWindow + time.Second)
		mended = true
		for _, live := range []string{"", "bridge-r"} {
			if err := rt.Replay(live, broker.Earliest(), broker.Now()).Run(w.ctx); !errors.Is(err, broker.ErrInvalid) {
				t.Errorf("a replay in the live group %q: %v, want ErrInvalid", live, err)
			}
		}
		other := w.route(func(rt *Route) { rt.Group = "other" })
		for _, group := range []string{"", "other"} {
			if err := other.Replay(group, broker.Earliest(), broker.Now()).Run(w.ctx); !errors.Is(err, broker.ErrInvalid) {
				t.Errorf("a replay of group %q in %q: %v, want ErrInvalid", other.Group, group, err)
			}
		}
		check(t, rt.Replay("again", broker.AtOffset(broker.NewOffset(0)), broker.AtOffset(broker.NewOffset(2))).Run(w.ctx))
		var got []string
		for _, d := range w.drain(w.queue) {
			got = append(got, string(d.Body))
		}
		if want := "0 2 3 4 0 1"; strings.Join(got, " ") != want {
			t.Errorf("the key's tasks are %v, want %s: 0 twice, beyond the window, and 1 behind its successors", got, want)
		}
	})
}

// A queue that is down for longer than the dedup window neither loses nor
// stalls another route, and its route goes on by itself; memory stays bounded.
func TestTargetDownForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2)
		const n, window = 5000, 200
		w.publish(n, 100)
		check(t, w.events.DeclareQueue(w.ctx, "other", broker.QueueConfig{}))
		other := must(w.events.Queue(w.ctx, "other", nil))(t)
		down := &flaky{Queue: w.queue, before: func(broker.Message) error {
			return &broker.Error{Op: "publish", Temporary: true, Err: broker.ErrUnavailable}
		}}
		stuck := w.route(func(rt *Route) { rt.Target, rt.Window, rt.RetryMax = down, window, 30*time.Second })
		b := &Bridge{Routes: []*Route{stuck, w.route(func(rt *Route) { rt.Name, rt.Target = "other", other })}}
		ctx, cancel := context.WithCancel(w.ctx)
		ended := make(chan error, 1)
		go func() { ended <- b.Run(ctx) }()
		w.until("the other route", func() bool { return w.lag("bridge-other") == 0 })
		<-time.After(7 * time.Minute)
		if s := stuck.Stats(); s.WindowRecords > 2*window || s.WindowAge < 6*time.Minute {
			t.Errorf("the window holds %d records, the oldest for %v", s.WindowRecords, s.WindowAge)
		}
		down.set(nil, nil)
		w.until("the stuck route", func() bool { return w.lag("bridge-r") == 0 })
		cancel()
		check(t, <-ended)
		allOnce(t, w.drain(w.queue), n)
	})
}

func TestPauseResume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		rt := w.route(nil)
		rt.Pause()
		stop := w.start(rt)
		w.publish(10, 2)
		<-time.After(time.Minute)
		if s := rt.Stats(); !s.Paused || s.Enqueued != 0 {
			t.Errorf("paused: %+v", s)
		}
		rt.Resume()
		w.until("the end of the stream", func() bool { return w.lag("bridge-r") == 0 })
		check(t, stop())
		allOnce(t, w.drain(w.queue), 10)
	})
}

// Either bound of the back-off may be set alone.
func TestOneBoundOfTheBackOff(t *testing.T) {
	for _, rt := range []*Route{{RetryMax: time.Millisecond}, {RetryMin: time.Hour}, {}} {
		w := newWorld(t, 1)
		w.publish(1, 1)
		min, max := rt.RetryMin, rt.RetryMax
		check(t, w.route(func(rt *Route) { rt.RetryMin, rt.RetryMax, rt.Until = min, max, broker.Now() }).Run(w.ctx))
	}
}

func TestMisconfiguredRoutes(t *testing.T) {
	w := newWorld(t, 1)
	for name, edit := range map[string]func(*Route){
		"no name":        func(rt *Route) { rt.Name = "" },
		"no source":      func(rt *Route) { rt.Source = nil },
		"no target":      func(rt *Route) { rt.Target = nil },
		"no dead letter": func(rt *Route) { rt.DeadLetter = nil },
		"policy":         func(rt *Route) { rt.Poison = "drop" },
		"no blobs":       func(rt *Route) { rt.TooLarge = TooLargeClaimCheck },
		"window":         func(rt *Route) { rt.Window = -1 },
		"retry":          func(rt *Route) { rt.RetryMin, rt.RetryMax = 2, 1 },
	} {
		t.Run(name, func(t *testing.T) {
			err := w.route(edit).Run(w.ctx)
			if e, ok := errors.AsType[*broker.Error](err); !ok || !errors.Is(err, broker.ErrInvalid) || e.Adapter != "bridge" {
				t.Errorf("got %v", err)
			}
		})
	}
}
