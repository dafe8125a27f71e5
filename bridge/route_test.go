package bridge

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/bridge/blob"
)

// A mapping may give a task any ID.
func TestClaimCheckOfAShortID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		_, err := w.stream.Publish(w.ctx, broker.Record{Key: []byte("k"), Value: []byte(strings.Repeat("x", 2<<20))})
		check(t, err)
		rt := w.route(func(rt *Route) {
			rt.TooLarge, rt.Blobs = TooLargeClaimCheck, blob.Dir{Path: t.TempDir()}
			rt.Map = func(_ *broker.Record, task *broker.Message) error { task.ID = "order-1"; return nil }
		})
		stop := w.start(rt)
		w.until("the end of the stream", func() bool { return w.lag("bridge-r") == 0 })
		check(t, stop())
		if ds := w.drain(w.queue); len(ds) != 1 || ds[0].ID != "order-1" || ds[0].Headers.Get(HeaderClaimKey) == "" {
			t.Errorf("tasks: %v, stats %+v", ds, rt.Stats())
		}
	})
}

// A record that has come from a stream once before carries the coordinates of
// that way; its task and its dead letter carry its own.
func TestCoordinatesOfAnEarlierWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		for _, value := range []string{"good", "bad"} {
			_, err := w.stream.Publish(w.ctx, broker.Record{Key: []byte("k"), Value: []byte(value), Headers: broker.Headers{
				{Key: "tenant", Value: "t"}, {Key: broker.HeaderSourceStream, Value: "elsewhere"}, {Key: HeaderTombstone, Value: "true"},
				{Key: broker.HeaderSourceOffset, Value: "777"}, {Key: "x-source-of-truth", Value: "kept"},
			}})
			check(t, err)
		}
		rt := w.route(func(rt *Route) {
			rt.Map = func(r *broker.Record, _ *broker.Message) error {
				if string(r.Value) == "bad" {
					return errors.New("cannot map")
				}
				return nil
			}
		})
		stop := w.start(rt)
		w.until("the end of the stream", func() bool { return w.lag("bridge-r") == 0 })
		check(t, stop())
		for offset, ds := range [][]*broker.Delivery{w.drain(w.queue), w.drain(w.dead)} {
			if len(ds) != 1 {
				t.Fatalf("%d deliveries", len(ds))
			}
			h := ds[0].Headers
			if h.Get(broker.HeaderSourceStream) != "orders" || h.Get(broker.HeaderSourceOffset) != fmt.Sprint(offset) ||
				h.Get(HeaderTombstone) != "" || h.Get("tenant") != "t" || h.Get("x-source-of-truth") != "kept" || len(h.Keys()) != len(h) {
				t.Errorf("%s carries %v", ds[0].Body, h)
			}
		}
	})
}

// A slowBroker takes its time to open some queues.
type slowBroker struct {
	broker.Broker
	slow  string
	after chan struct{}
	opens atomic.Int64
}

func (b *slowBroker) Queue(ctx context.Context, name string, o *broker.QueueOptions) (broker.Queue, error) {
	b.opens.Add(1)
	if name == b.slow {
		select {
		case <-b.after:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return b.Broker.Queue(ctx, name, o)
}

// A queue that is being opened holds up no record of another one, and is opened once.
func TestChosenQueuesOpenApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		check(t, w.tasks.DeclareQueue(w.ctx, "slow.fifo", broker.QueueConfig{Ordered: true}))
		b := &slowBroker{Broker: w.tasks, slow: "slow.fifo", after: make(chan struct{})}
		queue := must(compileTemplate(`=key == "fast" ? "tasks.fifo" : key == "slow" ? "slow.fifo" : "missing.fifo"`))(t)
		choose := chooseQueue(b, &mapper{queue: queue})
		record := func(key string) *broker.Record { return &broker.Record{Key: []byte(key)} }
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() {
				if q, err := choose(w.ctx, record("slow")); err != nil || q.Name() != "slow.fifo" {
					t.Errorf("%v, %v", q, err)
				}
			})
		}
		synctest.Wait()
		if q, err := choose(w.ctx, record("fast")); err != nil || q.Name() != "tasks.fifo" {
			t.Errorf("%v, %v", q, err)
		}
		if _, err := choose(w.ctx, record("other")); !isPoison(err) || !errors.Is(err, broker.ErrNotFound) {
			t.Errorf("a missing queue: %v", err)
		}
		impatient, cancel := context.WithTimeout(w.ctx, time.Second)
		defer cancel()
		if _, err := choose(impatient, record("slow")); !errors.Is(err, context.DeadlineExceeded) || isPoison(err) {
			t.Errorf("an impatient caller: %v", err)
		}
		close(b.after)
		wg.Wait()
		if n := b.opens.Load(); n != 3 {
			t.Errorf("%d queues were opened, want the slow, the fast and the missing one", n)
		}
	})
}

// A refusing stream lets nobody join while it refuses.
type refusing struct {
	broker.Stream
	refuses atomic.Bool
}

func (s *refusing) Consumer(ctx context.Context, group string, o *broker.GroupOptions) (broker.GroupConsumer, error) {
	if s.refuses.Load() {
		return nil, &broker.Error{Op: "consume", Name: s.Name(), Err: broker.ErrUnauthorized}
	}
	return s.Stream.Consumer(ctx, group, o)
}

// Rights that are taken away stop a route until they are given back, not for good.
func TestSourceRightsGivenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		w.publish(10, 2)
		source := &refusing{Stream: w.stream}
		source.refuses.Store(true)
		rt := w.route(func(rt *Route) { rt.Source = source })
		stop := w.start(rt)
		<-time.After(10 * time.Minute)
		if s := rt.Stats(); s.Halted != nil || s.Enqueued != 0 {
			t.Errorf("stats: %+v", s)
		}
		source.refuses.Store(false)
		w.until("the end of the stream", func() bool { return w.lag("bridge-r") == 0 })
		check(t, stop())
		allOnce(t, w.drain(w.queue), 10)
	})
}

// A dry run tells what the queue would refuse, as far as it can be known.
func TestDryRunTellsWhatDoesNotFit(t *testing.T) {
	for policy, poison := range map[SizePolicy]int{TooLargeReject: 1, TooLargeClaimCheck: 0} {
		w := newWorld(t, 1)
		w.publish(3, 2)
		_, err := w.stream.Publish(w.ctx, broker.Record{Key: []byte("k"), Value: []byte(strings.Repeat("x", 2<<20))})
		check(t, err)
		rt := w.route(func(rt *Route) { rt.TooLarge, rt.Blobs = policy, blob.Dir{Path: t.TempDir()} })
		s, err := rt.DryRun(w.ctx, broker.Range{}, func(p Planned) error {
			if p.Poison != nil && !errors.Is(p.Poison, broker.ErrTooLarge) {
				t.Errorf("%s: %v", p.Record.Offset(), p.Poison)
			}
			return nil
		})
		check(t, err)
		if s.Records != 4 || s.Poison != poison || s.Tasks != 4-poison {
			t.Errorf("%s: %+v", policy, s)
		}
	}
}

// What tells of a route may be asked while it begins.
func TestLagWhileARouteBegins(t *testing.T) {
	w := newWorld(t, 1)
	rt := w.route(nil)
	stop := w.start(rt)
	for range 100 {
		_, err := rt.Lag(w.ctx)
		check(t, err)
		rt.Stats()
	}
	check(t, stop())
}

// A configuration that maps nothing costs no more than none: expressions get a
// copy of each record.
func TestNothingMappedCostsNothing(t *testing.T) {
	for task, edits := range map[string]bool{
		"{}": false, "{group: =key}": false, "{body: =value}": true, "{dedup: =key}": true, "{content_type: a/b}": true,
		"{delay: 1s}": true, "{priority: 1}": true, "{headers: {a: b}}": true, "{drop_headers: [a]}": true,
	} {
		cfg, err := Load(fmt.Appendf(nil, `brokers: {m: "memory://x"}
routes:
  - {name: r, source: {broker: m, stream: s}, target: {broker: m, queue: q}, poison: {policy: skip}, task: %s}
`, task), "bridge.yaml", nil)
		check(t, err)
		if m, problems := compileRoute(&cfg.Routes[0]); len(problems) > 0 || m.edits() != edits {
			t.Errorf("%s: edits %v, %v", task, m.edits(), problems)
		}
	}
}
