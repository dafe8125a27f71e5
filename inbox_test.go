package broker_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/brokertest"
)

func delivery(id, group string) *broker.Delivery {
	return brokertest.NewDelivery(broker.Message{ID: id, GroupID: group}, nil)
}

func idsOf(ds []*broker.Delivery) []string {
	out := []string{}
	for _, d := range ds {
		out = append(out, d.ID)
	}
	return out
}

func TestInboxGroupGate(t *testing.T) {
	var back []string
	b := broker.NewInbox(func(ds []*broker.Delivery) { back = append(back, idsOf(ds)...) })
	a1, a2, a3 := delivery("a1", "a"), delivery("a2", "a"), delivery("a3", "a")
	b.Put(a1, delivery("x", ""), a2, a3, delivery("b1", "b"))
	receive := func() []string {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		if b.Len() == 0 {
			cancel()
		}
		defer cancel()
		ds, err := b.Receive(ctx, 10)
		if err != nil && !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		return idsOf(ds)
	}
	if got := receive(); !slices.Equal(got, []string{"a1", "x", "b1"}) {
		t.Fatalf("received %v", got)
	}
	if n := b.Len(); n != 2 {
		t.Errorf("Len %d", n)
	}
	b.Done(a2) // not the open one: nothing
	b.Done(a1)
	if got := receive(); !slices.Equal(got, []string{"a2"}) {
		t.Fatalf("received %v", got)
	}
	b.Undo(a2)
	if !slices.Equal(back, []string{"a3"}) || b.Len() != 0 {
		t.Errorf("given back %v, Len %d", back, b.Len())
	}
	b.Put(a2)
	if got := receive(); !slices.Equal(got, []string{"a2"}) {
		t.Errorf("received %v", got)
	}
	if _, err := b.Receive(t.Context(), 0); !errors.Is(err, broker.ErrInvalid) {
		t.Errorf("max 0: %v", err)
	}
}

func TestInboxLostDeliveries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var back []string
		b := broker.NewInbox(func(ds []*broker.Delivery) { back = append(back, idsOf(ds)...) })
		a1, a2, a3 := delivery("a1", "a"), delivery("a2", "a"), delivery("a3", "a")
		late := delivery("late", "")
		late.SetLease(time.Now().Add(time.Second))
		b.Put(a1, a2, late)
		spend(2 * time.Second)
		ds, err := b.Receive(t.Context(), 10)
		if err != nil || !slices.Equal(idsOf(ds), []string{"a1"}) {
			t.Errorf("received %v, %v: want no expired ones", idsOf(ds), err)
		}
		a1.Lose()
		b.Put(a3) // its redelivery, say: what waited is behind it
		if !slices.Equal(back, []string{"a2"}) {
			t.Errorf("given back %v", back)
		}
		ds, _ = b.Receive(t.Context(), 10)
		if !slices.Equal(idsOf(ds), []string{"a3"}) {
			t.Errorf("received %v", idsOf(ds))
		}
	})
}

func TestInboxWaitBelowFreesWhatNobodyWill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		back := 0
		b := broker.NewInbox(func(ds []*broker.Delivery) { back += len(ds) })
		first := delivery("a0", "a")
		first.SetLease(time.Now().Add(30 * time.Second))
		b.Put(first, delivery("a1", "a"), delivery("a2", "a"))
		if _, err := b.Receive(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if err := b.WaitBelow(t.Context(), 2); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took < 30*time.Second || took > 32*time.Second || back != 2 {
			t.Errorf("free after %v, %d given back", took, back)
		}
	})
}

func TestInboxSweep(t *testing.T) {
	var back []*broker.Delivery
	b := broker.NewInbox(func(ds []*broker.Delivery) { back = append(back, ds...) })
	first, held := delivery("a0", "a"), delivery("b0", "b")
	b.Put(first, delivery("a1", "a"), held, delivery("b1", "b"))
	if _, err := b.Receive(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	if b.Sweep(); len(back) != 0 {
		t.Fatalf("%d given back while both groups' first are open", len(back))
	}
	if !first.Lose() {
		t.Fatal("cannot lose an open delivery")
	}
	if b.Sweep(); len(back) != 1 || back[0].ID != "a1" || b.Len() != 1 {
		t.Errorf("%d given back, %d left", len(back), b.Len())
	}
}

func TestInboxCloseAndErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		given := 0
		b := broker.NewInbox(func(ds []*broker.Delivery) { given += len(ds) })
		b.SetErr(errBoom)
		for range 2 {
			if _, err := b.Receive(t.Context(), 1); !errors.Is(err, errBoom) {
				t.Errorf("Receive: %v", err)
			}
		}
		b.Put(delivery("1", ""))
		if ds, err := b.Receive(t.Context(), 1); err != nil || len(ds) != 1 {
			t.Errorf("what is there comes before the error: %v", err)
		}
		b.SetErr(nil)
		results := make(chan error, 3)
		for range 3 {
			go func() { _, err := b.Receive(t.Context(), 1); results <- err }()
		}
		waited := make(chan error, 1)
		b.Put(delivery("a1", "a"), delivery("a2", "a"), delivery("a3", "a"))
		go func() { waited <- b.WaitBelow(t.Context(), 1) }()
		synctest.Wait()
		rest := b.Close(nil)
		if !slices.Equal(idsOf(rest), []string{"a2", "a3"}) || b.Close(nil) != nil {
			t.Errorf("rest %v", idsOf(rest))
		}
		closed := 0
		for range 3 {
			if err := <-results; errors.Is(err, broker.ErrClosed) {
				closed++
			} else if err != nil {
				t.Error(err)
			}
		}
		if closed != 2 || !errors.Is(<-waited, broker.ErrClosed) {
			t.Errorf("%d receivers got ErrClosed", closed)
		}
		b.Put(delivery("2", ""))
		b.SetErr(errBoom)
		if given != 1 {
			t.Errorf("%d given back after Close", given)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := b.Receive(ctx, 1); !errors.Is(err, context.Canceled) {
			t.Errorf("an ended ctx: %v", err)
		}
	})
}

// TestInboxLosesNoWake: a receiver whose ctx ends may not take with it the
// token that was meant for another.
func TestInboxLosesNoWake(t *testing.T) {
	for range 200 {
		synctest.Test(t, func(t *testing.T) {
			b := broker.NewInbox(nil)
			ctx, cancel := context.WithCancel(t.Context())
			got := make(chan []*broker.Delivery, 2)
			go func() { ds, _ := b.Receive(ctx, 1); got <- ds }()
			go func() { ds, _ := b.Receive(t.Context(), 1); got <- ds }()
			synctest.Wait()
			go cancel()
			b.Put(delivery("1", ""), delivery("2", ""))
			a, c := <-got, <-got
			if len(a)+len(c) < 1 {
				t.Error("nobody received")
			}
		})
	}
}

// TestInboxModel compares an Inbox with a plain model of groups.
func TestInboxModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		back := map[string]bool{}
		b := broker.NewInbox(func(ds []*broker.Delivery) {
			for _, d := range ds {
				back[d.ID] = true
			}
		})
		var open []*broker.Delivery
		put, received := 0, map[string]bool{}
		isOpen := map[string]string{} // group: id
		lastOf := map[string]int{}
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				g := rapid.SampledFrom([]string{"", "a", "b", "c"}).Draw(t, "group")
				put++
				b.Put(delivery(fmt.Sprintf("%d", put), g))
			},
			"receive": func(t *rapid.T) {
				ctx, cancel := context.WithCancel(context.Background())
				defer cancel()
				b.SetErr(errBoom)
				ds, err := b.Receive(ctx, rapid.IntRange(1, 5).Draw(t, "max"))
				b.SetErr(nil)
				if (err == nil) == (len(ds) == 0) {
					t.Fatalf("%d deliveries, %v", len(ds), err)
				}
				for _, d := range ds {
					if received[d.ID] || back[d.ID] {
						t.Fatalf("%s came twice", d.ID)
					}
					received[d.ID] = true
					open = append(open, d)
					if d.GroupID == "" {
						continue
					}
					if o := isOpen[d.GroupID]; o != "" {
						t.Fatalf("%s of group %s while %s is open", d.ID, d.GroupID, o)
					}
					isOpen[d.GroupID] = d.ID
					var n int
					if _, err := fmt.Sscan(d.ID, &n); err != nil || n < lastOf[d.GroupID] {
						t.Fatalf("group %s: %d after %d", d.GroupID, n, lastOf[d.GroupID])
					}
					lastOf[d.GroupID] = n
				}
			},
			"settle": func(t *rapid.T) {
				if len(open) == 0 {
					t.Skip("nothing is open")
				}
				i := rapid.IntRange(0, len(open)-1).Draw(t, "which")
				d := open[i]
				open = slices.Delete(open, i, i+1)
				delete(isOpen, d.GroupID)
				if rapid.Bool().Draw(t, "done") {
					b.Done(d)
				} else {
					b.Undo(d)
				}
			},
			"": func(t *rapid.T) {
				if got := b.Len() + len(received) + len(back); got != put {
					t.Fatalf("%d accounted for, %d put", got, put)
				}
			},
		})
		for _, d := range b.Close(nil) {
			back[d.ID] = true
		}
		if got := len(received) + len(back); got != put {
			t.Fatalf("after Close %d accounted for, %d put", got, put)
		}
	})
}

func BenchmarkInbox(b *testing.B) {
	for _, group := range []string{"", "g"} {
		b.Run("group="+group, func(b *testing.B) {
			inbox := broker.NewInbox(nil)
			d := delivery("1", group)
			b.ReportAllocs()
			for b.Loop() {
				inbox.Put(d)
				ds, err := inbox.Receive(b.Context(), 1)
				if err != nil {
					b.Fatal(err)
				}
				inbox.Done(ds[0])
			}
		})
	}
}

// What was done with is let go of, however much of its group still waits.
func TestInboxLetsGoOfWhatIsDone(t *testing.T) {
	b := broker.NewInbox(nil)
	const n = 100
	var freed atomic.Int32
	func() {
		for range n {
			d := &broker.Delivery{Message: broker.Message{GroupID: "g", Body: make([]byte, 1<<10)}}
			runtime.AddCleanup(d, func(int) { freed.Add(1) }, 0)
			b.Put(d)
		}
		for range n - 2 {
			ds, err := b.Receive(t.Context(), 1)
			if err != nil {
				t.Fatal(err)
			}
			b.Done(ds[0])
		}
	}()
	for range 100 {
		if runtime.GC(); freed.Load() >= n-2 {
			break
		}
		runtime.Gosched()
	}
	if got := freed.Load(); got < n-2 {
		t.Errorf("%d of the %d that are done with are free", got, n-2)
	}
	if b.Len() != 2 {
		t.Errorf("%d wait", b.Len())
	}
}
