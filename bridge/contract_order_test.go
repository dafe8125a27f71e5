package bridge

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/queuestream/broker"
)

// 3. Identity: the same however often a record is read, another for every
// other record, and the coordinates are in the task.
func TestContract3Identity(t *testing.T) {
	record := func(identity, stream string, partition int32, offset int64) *broker.Record {
		r := &broker.Record{Partition: partition}
		r.Bind(broker.NewOffset(offset), &broker.Assignment{Identity: identity, Stream: stream})
		return r
	}
	seen := map[string]string{}
	for name, r := range map[string]*broker.Record{
		"base":      record("c1", "s", 1, 1),
		"cluster":   record("c2", "s", 1, 1),
		"stream":    record("c1", "t", 1, 1),
		"partition": record("c1", "s", 2, 1),
		"offset":    record("c1", "s", 1, 2),
		"shifted":   record("c", "1s", 1, 1),
	} {
		id := dedupID(r, "")
		if other, ok := seen[id]; ok || len(id) != 64 || id != dedupID(r, "") || id == dedupID(r, "salt") {
			t.Errorf("%s: id %s, also of %q", name, id, other)
		}
		seen[id] = name
	}
	// It must not change: a route that runs on after an update would send what
	// its queue has already.
	if id := dedupID(record("cluster", "orders", 3, 42), ""); id != "98ad6f2211db9decc6d20b8c24a87bc397f963e880f52566923f54362d4ad080" {
		t.Errorf("id %s is another one than before", id)
	}
}

// 3. Identity: a stream of the same name is another one. Its records are not
// taken for those of the first, within the dedup window as well.
func TestContract3StreamMadeAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		for range 2 {
			w.publish(50, 5)
			rt := w.route(nil)
			stop := w.start(rt)
			w.until("the end of the stream", func() bool { return w.lag("bridge-r") == 0 })
			check(t, stop())
			check(t, w.events.DeleteStream(w.ctx, "orders"))
			check(t, w.events.DeclareStream(w.ctx, "orders", broker.StreamConfig{Partitions: 1}))
			w.stream = must(w.events.Stream(w.ctx, "orders", nil))(t)
		}
		allOnce(t, w.drain(w.queue), 100)
	})
}

// 3. Identity: a dry run shows the ids and coordinates that the route sends.
func TestContract3DryRunShowsIdentity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2)
		w.publish(20, 5)
		planned := map[string]string{}
		rt := w.route(nil)
		_, err := rt.DryRun(w.ctx, broker.Range{}, func(p Planned) error {
			planned[string(p.Task.Body)] = p.Task.ID + p.Task.DedupID + p.Task.Headers.Get(broker.HeaderSourceStream)
			return nil
		})
		check(t, err)
		stop := w.start(rt)
		w.until("the end of the stream", func() bool { return w.lag("bridge-r") == 0 })
		check(t, stop())
		ds := w.drain(w.queue)
		allOnce(t, ds, 20)
		for _, d := range ds {
			if got := d.ID + d.DedupID + d.Headers.Get(broker.HeaderSourceStream); got != planned[string(d.Body)] || d.DedupID == "" {
				t.Errorf("record %s: sent %s, planned %s", d.Body, got, planned[string(d.Body)])
			}
		}
	})
}

// 4. Order per key on first delivery, while sends fail at random.
func TestContract4OrderPerKey(t *testing.T) {
	for _, same := range []bool{false, true} {
		t.Run(fmt.Sprintf("BatchSameGroup=%v", same), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 3)
				const n = 3000
				w.publish(n, 40)
				var mu sync.Mutex
				rnd := rand.New(rand.NewPCG(3, 4)) //nolint:gosec // a fixed seed
				inFlight := map[string]int{}
				q := &flaky{Queue: w.queue, before: func(m broker.Message) error {
					mu.Lock()
					inFlight[m.GroupID]++
					if inFlight[m.GroupID] > 1 {
						t.Errorf("two of group %s in flight", m.GroupID)
					}
					wait, fail := time.Duration(rnd.IntN(10))*time.Millisecond, !same && rnd.IntN(8) == 0
					mu.Unlock()
					<-time.After(wait)
					mu.Lock()
					inFlight[m.GroupID]--
					mu.Unlock()
					if fail {
						return errThrottled
					}
					return nil
				}}
				rt := w.route(func(rt *Route) { rt.Target, rt.BatchSameGroup = q, same })
				stop := w.start(rt)
				w.until("the end of the stream", func() bool { return w.lag("bridge-r") == 0 })
				check(t, stop())
				ds := w.drain(w.queue)
				allOnce(t, ds, n)
				last := map[string]int{}
				for _, d := range ds {
					i, _ := strconv.Atoi(string(d.Body))
					if prev, ok := last[d.GroupID]; ok && i < prev {
						t.Fatalf("group %s: %d after %d", d.GroupID, i, prev)
					}
					last[d.GroupID] = i
				}
			})
		})
	}
}

// 4. Order per group, where the mapping makes one group of several keys.
func TestContract4OrderPerGroup(t *testing.T) {
	for _, same := range []bool{false, true} {
		t.Run(fmt.Sprintf("BatchSameGroup=%v", same), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 1)
				const n, groups = 1000, 10
				w.publish(n, 200)
				q := &flaky{Queue: w.queue, before: func(broker.Message) error {
					<-time.After(time.Duration(rand.IntN(10)) * time.Millisecond) //nolint:gosec // any
					if !same && rand.IntN(8) == 0 {                               //nolint:gosec // any
						return errThrottled
					}
					return nil
				}}
				rt := w.route(func(rt *Route) {
					rt.Target, rt.BatchSameGroup = q, same
					rt.GroupFor = func(r *broker.Record) (string, error) {
						i, err := strconv.Atoi(string(r.Value))
						switch {
						case i == 500:
							err = errors.New("no group")
						case i > 900:
							return "", nil
						}
						return fmt.Sprint("g", i%groups), err
					}
				})
				stop := w.start(rt)
				w.until("the end of the stream", func() bool { return w.lag("bridge-r") == 0 })
				check(t, stop())
				ds := w.drain(w.queue)
				last := map[string]int{}
				for _, d := range ds {
					i, _ := strconv.Atoi(string(d.Body))
					if prev, ok := last[d.GroupID]; ok && i < prev {
						t.Fatalf("group %s: %d after %d", d.GroupID, i, prev)
					}
					last[d.GroupID] = i
				}
				if dead := w.drain(w.dead); len(ds) != n-1 || len(last) != groups+99 || len(dead) != 1 || string(dead[0].Body) != "500" {
					t.Errorf("%d tasks of %d groups, %d dead letters", len(ds), len(last), len(dead))
				}
			})
		})
	}
}
