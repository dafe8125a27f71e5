package broker

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

func TestInboxReadyLeavesOutWhatWaitsForItsGroup(t *testing.T) {
	b := NewInbox(nil)
	d := func(group string) *Delivery { return &Delivery{Message: Message{GroupID: group}} }
	first := d("a")
	b.Put(first, d("a"), d("a"), d("b"), d(""))
	if ready, all := b.Ready(), b.Len(); ready != 3 || all != 5 {
		t.Fatalf("ready %d of %d, want 3 of 5", ready, all)
	}
	if _, err := b.Receive(t.Context(), 3); err != nil {
		t.Fatal(err)
	}
	if ready, all := b.Ready(), b.Len(); ready != 0 || all != 2 {
		t.Fatalf("ready %d of %d, want 0 of 2", ready, all)
	}
	b.Done(first)
	if ready, all := b.Ready(), b.Len(); ready != 1 || all != 2 {
		t.Fatalf("ready %d of %d, want 1 of 2", ready, all)
	}
}

// Demand is what waiting Receives will not find ready: none of it once they
// have something, all of it while they have nothing.
func TestInboxDemand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, waits := NewInbox(nil), 0
		b.OnWait(func() { waits++ })
		want := func(demand int, why string) {
			t.Helper()
			synctest.Wait()
			if got := b.Demand(); got != demand {
				t.Errorf("%s: demand %d, want %d", why, got, demand)
			}
		}
		want(0, "nobody receives")
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		got := make(chan int, 3)
		for _, n := range []int{10, 1, 5} {
			go func() {
				ds, _ := b.Receive(ctx, n)
				got <- len(ds)
			}()
			synctest.Wait()
		}
		want(16, "three wait")
		// What is ready serves the first ones, also before they have taken it.
		b.mu.Lock()
		b.ready = append(b.ready, new(Delivery), new(Delivery))
		b.mu.Unlock()
		if d := b.Demand(); d != 6 {
			t.Errorf("two are ready: demand %d, want 6", d)
		}
		b.Put()
		synctest.Wait()
		if n := <-got; n == 0 {
			t.Error("nothing received")
		}
		for range 2 {
			b.Put(new(Delivery))
			<-got
		}
		want(0, "all have something")
		if waits < 3 {
			t.Errorf("told %d times that a Receive waits, want 3 at least", waits)
		}
		go func() { _, _ = b.Receive(ctx, 7) }()
		want(7, "another waits")
		<-ctx.Done()
		want(0, "its context has ended")
		go func() { _, _ = b.Receive(t.Context(), 7) }()
		want(7, "another waits")
		b.Close(nil)
		want(0, "closed")
	})
}

// A Receive that finds only what is lost tells again that it waits.
func TestInboxTellsOfWaitingBehindLostOnes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, waits := NewInbox(nil), 0
		b.OnWait(func() { waits++ })
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() { _, _ = b.Receive(ctx, 1) }()
		synctest.Wait()
		lost := new(Delivery)
		lost.state.Store(stateLost)
		b.Put(lost)
		synctest.Wait()
		if waits != 2 || b.Demand() != 1 {
			t.Errorf("told %d times, demand %d, want 2 and 1", waits, b.Demand())
		}
	})
}

func TestInboxSweepDropsWhatCannotBeDelivered(t *testing.T) {
	back := 0
	b := NewInbox(func(ds []*Delivery) { back += len(ds) })
	d := func(group string) *Delivery { return &Delivery{Message: Message{GroupID: group}} }
	lost, open := d("a"), d("")
	b.Put(lost, d("a"), open)
	lost.state.Store(stateLost)
	b.Sweep()
	if ready, all := b.Ready(), b.Len(); ready != 1 || all != 1 || back != 1 {
		t.Errorf("ready %d of %d, %d given back, want 1 of 1, and 1", ready, all, back)
	}
	if ds, err := b.Receive(t.Context(), 5); err != nil || len(ds) != 1 || ds[0] != open {
		t.Errorf("received %v, %v", ds, err)
	}
}
