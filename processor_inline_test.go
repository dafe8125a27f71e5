package broker_test

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/brokertest"
)

// A handler that blocks holds up what was received with its record for a
// millisecond, and nothing that is received later.
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
			if handled.Add(1) == 198 && time.Since(began) > 3*time.Millisecond { // but those of k0
				t.Errorf("others waited for %v", time.Since(began))
			}
			return nil
		}}
		stop := start(t, p)
		advance(2 * time.Millisecond)
		if n, st := handled.Load(), p.Stats(); n != 99 || st.Handlers != 1 || st.Partitions[0].InHand != 100 {
			t.Errorf("%d of 99 handled after 2 ms, stats %+v", n, st)
		}
		fill(t, s, 100, 100)
		advance(time.Millisecond)
		if n, st := handled.Load(), p.Stats(); n != 198 || st.Handled != 198 {
			t.Errorf("%d of 198 handled after 3 ms, stats %+v", n, st)
		}
		close(free)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if n := s.Committed("g", 0); n != 200 {
			t.Errorf("committed %d of 200", n)
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
