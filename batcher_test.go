package broker_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/queuestream/broker"
)

type item struct {
	key  string
	n    int
	size int
}

// A batcherProgram is drawn as a whole, before virtual time begins.
type batcherProgram struct {
	o     broker.BatcherOptions[item, int]
	steps []batcherStep
	flush bool // before Close
	hurry bool // Close with an ended context
}

type batcherStep struct {
	kind  int
	items []item
	wait  bool
	spend time.Duration
}

func drawBatcherProgram(t *rapid.T) batcherProgram {
	p := batcherProgram{
		o: broker.BatcherOptions[item, int]{
			MaxItems:    rapid.IntRange(1, 7).Draw(t, "MaxItems"),
			MaxBytes:    rapid.SampledFrom([]int{0, 5, 20}).Draw(t, "MaxBytes"),
			MaxInFlight: rapid.IntRange(1, 4).Draw(t, "MaxInFlight"),
			MaxQueued:   rapid.SampledFrom([]int{0, 0, 3, 30}).Draw(t, "MaxQueued"),
			MaxPending:  rapid.SampledFrom([]int{0, 0, 30}).Draw(t, "MaxPending"),
			OnePerKey:   rapid.Bool().Draw(t, "OnePerKey"),
			Size:        func(i item) int { return i.size },
			Key:         func(i item) string { return i.key },
		},
		flush: rapid.Bool().Draw(t, "flush"),
		hurry: rapid.Bool().Draw(t, "hurry"),
	}
	n := 0
	for range rapid.IntRange(1, 60).Draw(t, "steps") {
		s := batcherStep{
			kind:  rapid.IntRange(0, 4).Draw(t, "kind"),
			wait:  rapid.Bool().Draw(t, "wait"),
			spend: time.Duration(rapid.IntRange(1, 3).Draw(t, "spend")) * time.Millisecond / 2,
		}
		size := 1
		if s.kind == stepDoAll {
			size = rapid.IntRange(0, 9).Draw(t, "items")
		}
		for range size {
			n++
			s.items = append(s.items, item{
				key: rapid.SampledFrom([]string{"", "a", "b", "c"}).Draw(t, "key"),
				n:   n, size: rapid.IntRange(0, 8).Draw(t, "size"),
			})
		}
		p.steps = append(p.steps, s)
	}
	return p
}

const (
	stepDo = iota
	stepDoAll
	stepGo
	stepCancel
	stepSpend
)

// batcherModel is what a Batcher promises, checked while it sends.
type batcherModel struct {
	t         *testing.T
	o         broker.BatcherOptions[item, int]
	mu        sync.Mutex
	inFlight  int
	open      map[string]bool
	last      map[string]int // sent, of each key
	lastDone  map[string]int // answered to Go, of each key
	sent      map[int]int
	answers   int
	unordered bool // callers wait for room and may overtake each other
}

func (m *batcherModel) send(_ context.Context, items []item, results []broker.Result[int]) {
	m.mu.Lock()
	if m.inFlight++; m.inFlight > m.o.MaxInFlight {
		m.t.Errorf("%d batches in flight of %d", m.inFlight, m.o.MaxInFlight)
	}
	if len(items) == 0 || len(items) > m.o.MaxItems {
		m.t.Errorf("a batch of %d, at most %d", len(items), m.o.MaxItems)
	}
	size := 0
	mine := map[string]int{}
	for i, it := range items {
		size += it.size
		m.sent[it.n]++
		results[i] = broker.Result[int]{Value: it.n * 10}
		if it.n%5 == 0 {
			results[i].Err = errBoom
		}
		if it.key == "" {
			continue
		}
		if mine[it.key]++; mine[it.key] == 1 && m.open[it.key] || m.o.OnePerKey && mine[it.key] > 1 {
			m.t.Errorf("key %q twice in flight", it.key)
		}
		m.open[it.key] = true
		if !m.unordered && it.n <= m.last[it.key] {
			m.t.Errorf("key %q: %d after %d", it.key, it.n, m.last[it.key])
		}
		m.last[it.key] = it.n
	}
	if m.o.MaxBytes > 0 && size > m.o.MaxBytes && len(items) > 1 {
		m.t.Errorf("a batch of %d bytes, at most %d", size, m.o.MaxBytes)
	}
	m.mu.Unlock()
	spend(time.Millisecond)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.inFlight--
	for k := range mine {
		delete(m.open, k)
	}
}

func (m *batcherModel) answer(it item, v int, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.answers++
	switch {
	case err == nil && it.n%5 != 0 && v == it.n*10, errors.Is(err, errBoom) && it.n%5 == 0 && v == it.n*10:
	case errors.Is(err, context.Canceled), errors.Is(err, broker.ErrClosed):
		if m.sent[it.n] > 0 && !errors.Is(err, broker.ErrUnknownOutcome) {
			m.t.Errorf("item %d was sent, and the error does not say so: %v", it.n, err)
		}
	default:
		m.t.Errorf("item %d: %d, %v", it.n, v, err)
	}
}

func (m *batcherModel) answerGo(it item, v int, err error) {
	m.mu.Lock()
	if it.key != "" && !m.unordered && it.n < m.lastDone[it.key] {
		m.t.Errorf("done of key %q: %d after %d", it.key, it.n, m.lastDone[it.key])
	}
	m.lastDone[it.key] = it.n
	m.mu.Unlock()
	m.answer(it, v, err)
}

// TestBatcherModel runs random programs and checks every promise of a Batcher.
func TestBatcherModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		p := drawBatcherProgram(rt)
		synctest.Test(t, func(t *testing.T) { runBatcherProgram(t, p) })
		if t.Failed() {
			rt.Fatal("see above")
		}
	})
}

func runBatcherProgram(t *testing.T, p batcherProgram) {
	m := &batcherModel{
		t: t, o: p.o, open: map[string]bool{}, last: map[string]int{}, lastDone: map[string]int{},
		sent: map[int]int{}, unordered: p.o.MaxQueued > 0 || p.o.MaxPending > 0,
	}
	p.o.Send = m.send
	b := broker.NewBatcher(p.o)
	var callers sync.WaitGroup
	total := 0
	for _, s := range p.steps {
		if s.kind != stepSpend {
			total += len(s.items)
		}
		switch s.kind {
		case stepDo:
			callers.Go(func() {
				v, err := b.Do(context.Background(), s.items[0])
				m.answer(s.items[0], v, err)
			})
		case stepDoAll:
			callers.Go(func() {
				for i, r := range b.DoAll(context.Background(), s.items) {
					m.answer(s.items[i], r.Value, r.Err)
				}
			})
		case stepGo:
			callers.Go(func() {
				it := s.items[0]
				if err := b.Go(context.Background(), it, func(v int, err error) { m.answerGo(it, v, err) }); err != nil {
					m.answer(it, 0, err)
				}
			})
		case stepCancel:
			ctx, cancel := context.WithCancel(context.Background())
			callers.Go(func() {
				v, err := b.Do(ctx, s.items[0])
				m.answer(s.items[0], v, err)
			})
			if s.wait {
				synctest.Wait()
			}
			cancel()
		case stepSpend:
			spend(s.spend)
		}
		synctest.Wait() // so that calls of a key come in order
	}
	if p.flush {
		if err := b.Flush(context.Background()); err != nil {
			t.Errorf("Flush: %v", err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if p.hurry {
		cancel()
	}
	if err := b.Close(ctx); err != nil && !p.hurry {
		t.Errorf("Close: %v", err)
	}
	callers.Wait()
	synctest.Wait()
	if m.answers != total {
		t.Errorf("%d answers to %d items", m.answers, total)
	}
	for n, times := range m.sent {
		if times != 1 {
			t.Errorf("item %d was sent %d times", n, times)
		}
	}
	if err := b.Go(context.Background(), item{}, nil); !errors.Is(err, broker.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func TestBatcherAloneLeavesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sizes []int
		b := broker.NewBatcher(broker.BatcherOptions[int, int]{
			MaxItems: 10,
			Send: func(_ context.Context, items []int, _ []broker.Result[int]) {
				spend(5 * time.Millisecond)
				sizes = append(sizes, len(items))
			},
		})
		began := time.Now()
		if _, err := b.Do(t.Context(), 1); err != nil || time.Since(began) != 5*time.Millisecond {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		for i := range 35 {
			if err := b.Go(t.Context(), i, nil); err != nil {
				t.Fatal(err)
			}
		}
		if err := b.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if want := []int{1, 1, 10, 10, 10, 4}; !slices.Equal(sizes, want) {
			t.Errorf("batches %v, want %v", sizes, want)
		}
		if err := b.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

func TestBatcherFlushWaitsForWhatWasBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stop := make(chan struct{})
		b := broker.NewBatcher(broker.BatcherOptions[int, int]{
			MaxItems: 1, MaxInFlight: 2,
			Send: func(_ context.Context, items []int, _ []broker.Result[int]) {
				if items[0] < 0 {
					<-stop
				}
				spend(time.Millisecond)
			},
		})
		if err := b.Go(t.Context(), 1, nil); err != nil {
			t.Fatal(err)
		}
		flushed := make(chan error, 1)
		go func() { flushed <- b.Flush(t.Context()) }()
		synctest.Wait()
		if err := b.Go(t.Context(), -1, nil); err != nil { // never ends by itself
			t.Fatal(err)
		}
		if err := <-flushed; err != nil {
			t.Error(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := b.Flush(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Flush of what never ends: %v", err)
		}
		close(stop)
		if err := b.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

func TestBatcherCloseIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		b := broker.NewBatcher(broker.BatcherOptions[int, int]{
			Send: func(context.Context, []int, []broker.Result[int]) { <-release },
		})
		var failed atomic.Int64
		for i := range 3 {
			if err := b.Go(t.Context(), i, func(_ int, err error) {
				if errors.Is(err, broker.ErrClosed) {
					failed.Add(1)
				}
			}); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		if err := b.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Close: %v", err)
		}
		if took := time.Since(began); took != 3*time.Second || failed.Load() != 2 {
			t.Errorf("closed after %v, %d failed", took, failed.Load())
		}
		close(release)
		synctest.Wait()
	})
}

func BenchmarkBatcher(b *testing.B) {
	send := func(context.Context, []int, []broker.Result[int]) {}
	for _, keyed := range []bool{false, true} {
		b.Run(fmt.Sprintf("Do/keyed=%v", keyed), func(b *testing.B) {
			o := broker.BatcherOptions[int, int]{Send: send}
			if keyed {
				keys := make([]string, 100)
				for i := range keys {
					keys[i] = fmt.Sprint("key", i)
				}
				o.Key = func(i int) string { return keys[i%100] }
			}
			bt := broker.NewBatcher(o)
			b.ReportAllocs()
			b.SetParallelism(32)
			b.RunParallel(func(pb *testing.PB) {
				for i := 0; pb.Next(); i++ {
					if _, err := bt.Do(b.Context(), i); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}
