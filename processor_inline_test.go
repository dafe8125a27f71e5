package broker_test

import (
	"context"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/brokertest"
)

// A handler that blocks holds up what was received with its record for a
// millisecond, what comes next for another, and nothing that is received later.
func TestProcessorHandlerThatBlocksHoldsUpLittle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := brokertest.NewStream("events", 1)
		fill(t, s, 100, 100)
		began, free := time.Now(), make(chan struct{})
		var handled atomic.Int64
		p := &broker.Processor{Stream: s, Group: "g", Logger: quiet, Concurrency: 2, Handler: func(_ context.Context, r *broker.Record) error {
			if string(r.Key) == "k0" {
				<-free
			}
			if handled.Add(1) == 4*99 && time.Since(began) > 3*time.Millisecond { // but those of k0
				t.Errorf("others waited for %v", time.Since(began))
			}
			return nil
		}}
		stop := start(t, p)
		advance(2 * time.Millisecond)
		if n, st := handled.Load(), p.Stats(); n != 99 || st.Handlers != 1 || st.Partitions[0].InHand != 100 {
			t.Errorf("%d of 99 handled after 2 ms, stats %+v", n, st)
		}
		for i := range int64(3) {
			fill(t, s, 100, 100)
			if i == 0 {
				advance(time.Millisecond)
			}
			synctest.Wait()
			if n, st := handled.Load(), p.Stats(); n != 99*(i+2) || st.Handled != n {
				t.Errorf("%d of %d handled while one blocks, stats %+v", n, 99*(i+2), st)
			}
		}
		close(free)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if n := s.Committed("g", 0); n != 400 {
			t.Errorf("committed %d of 400", n)
		}
	})
}

// However quick handlers are, what is not committed is bounded by the window.
func TestProcessorWindowOfQuickHandlers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := brokertest.NewStream("events", 1)
		fill(t, s, 1000, 10)
		stored := make(chan struct{})
		s.CommitErr = func([]*broker.Record) error { <-stored; return nil }
		var j journal
		p := &broker.Processor{
			Stream: s, Group: "g", Logger: quiet, MaxWindow: 64,
			Handler: func(_ context.Context, r *broker.Record) error { j.add(r); return nil },
		}
		stop := start(t, p)
		advance(time.Minute)
		if st := p.Stats(); j.len() > 64 || j.len() < 32 || !st.Partitions[0].Paused || st.Partitions[0].Window != j.len() {
			t.Errorf("%d handled while nothing is committed, stats %+v", j.len(), st)
		}
		close(stored)
		advance(time.Minute)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if n := s.Committed("g", 0); n != 1000 || j.len() != 1000 {
			t.Errorf("handled %d and committed %d of 1000", j.len(), n)
		}
	})
}

// Nothing is handled any more once the hold has ended, of what was received
// under it: the next member does.
func TestProcessorQuickHandlersEndWithTheHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := brokertest.NewStream("events", 1)
		fill(t, s, 10, 10)
		var calls atomic.Int64
		p := &broker.Processor{Stream: s, Group: "g", Logger: quiet, Handler: func(_ context.Context, r *broker.Record) error {
			if calls.Add(1) == 3 {
				r.Assignment().End()
			}
			return nil
		}}
		stop := start(t, p)
		advance(time.Second)
		if n := calls.Load(); n != 3 {
			t.Errorf("%d handled, of 3 before the hold ended", n)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if n := s.Committed("g", 0); n != 0 {
			t.Errorf("committed %d under a hold that had ended", n)
		}
	})
}

// handledInline tells whether a handler runs on the goroutine that fetches.
func handledInline() bool {
	frames := runtime.CallersFrames(func() []uintptr {
		pcs := make([]uintptr, 64)
		return pcs[:runtime.Callers(2, pcs)]
	}())
	for {
		f, more := frames.Next()
		if strings.HasSuffix(f.Function, ".runInline") {
			return true
		}
		if !more {
			return false
		}
	}
}

// Lanes that take over from quick handlers, once or for a while, give back what
// comes next, though there is always more.
func TestProcessorLanesGiveBackQuickHandlers(t *testing.T) {
	for _, tt := range []struct {
		name    string
		records int
		slow    []int // of the records that are handled, which take longer
		last    int   // of the records, until which all do
		stats   int   // of the records, when somebody asks for the numbers
		lanes   int   // of the records, how many they may handle
	}{
		{name: "after one that was slow", records: 10_000, slow: []int{300}, lanes: 512},
		{name: "after one that was slow, twice", records: 20_000, slow: []int{300, 10_000}, lanes: 2 * 512},
		{name: "after slow ones in a row", records: 100_000, slow: []int{300, 700}, lanes: 60_000},
		{name: "after a long time of slow ones", records: 100_000, last: 500, lanes: 80_000},
		{name: "after a look at the numbers", records: 10_000, stats: 300, lanes: 512},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := brokertest.NewStream("events", 1)
				fill(t, s, tt.records, 100)
				var handled, inLanes int
				p := &broker.Processor{Stream: s, Group: "g", Logger: quiet, Concurrency: 1}
				p.Handler = func(context.Context, *broker.Record) error {
					took := time.Microsecond
					if handled++; handled < tt.last || slices.Contains(tt.slow, handled) {
						took = 1200 * time.Microsecond
					}
					if handled == tt.stats {
						p.Stats()
					}
					if !handledInline() {
						inLanes++
					}
					time.Sleep(took)
					return nil
				}
				stop := start(t, p)
				advance(time.Minute)
				if err := stop(); err != nil {
					t.Fatal(err)
				}
				if handled != tt.records || inLanes == 0 || inLanes > tt.lanes {
					t.Errorf("%d of %d handled, %d of them in lanes, want at most %d", handled, tt.records, inLanes, tt.lanes)
				}
			})
		})
	}
}

// Lanes get as long to give back quick handlers as they make progress: a
// handler that blocks, with much of its key behind it, holds up little.
func TestProcessorWaitsForLanesThatMakeProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := brokertest.NewStream("events", 1)
		free := make(chan struct{})
		var others atomic.Int64
		p := &broker.Processor{Stream: s, Group: "g", Logger: quiet, MaxWindow: 100_000, Handler: func(_ context.Context, r *broker.Record) error {
			if string(r.Key) == "k0" {
				<-free
			} else {
				others.Add(1)
			}
			return nil
		}}
		stop := start(t, p)
		fill(t, s, 5000, 1) // of k0
		advance(10 * time.Millisecond)
		fill(t, s, 20_000, 100)
		want := int64(20_000 - 200)
		for range 10 {
			advance(60 * time.Millisecond)
			fill(t, s, 100, 100)
			want += 99
			advance(3 * time.Millisecond)
			if n := others.Load(); n != want {
				t.Errorf("%d of %d handled 3 ms after they came", n, want)
			}
		}
		close(free)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}
