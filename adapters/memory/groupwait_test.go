package memory

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/queuestream/broker"
)

// The stream knows the groups that somebody waits for, and no others: an append
// wakes them, and the end of a call or of a member takes them off.
func TestWaitingGroups(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, nil)
		s := declareStream(t, b, broker.StreamConfig{})
		waiting := func() int {
			synctest.Wait()
			s.s.mu.Lock()
			defer s.s.mu.Unlock()
			for i, g := range s.s.waiting {
				if g.at != i || g.waits == 0 {
					t.Errorf("%s is at %d, not %d, with %d calls", g.name, g.at, i, g.waits)
				}
			}
			return len(s.s.waiting)
		}
		var wg sync.WaitGroup
		var got sync.Map
		var ms []*GroupConsumer
		var cancels []context.CancelFunc
		for i := range 6 {
			m := join(t, s, fmt.Sprint("g", i), nil)
			ctx, cancel := context.WithCancel(t.Context())
			ms, cancels = append(ms, m), append(cancels, cancel)
			for range 1 + i%2 {
				wg.Go(func() {
					rs, err := m.Receive(ctx, 1)
					if err == nil {
						got.Store(i, values(rs))
					}
				})
			}
		}
		if n := waiting(); n != 6 {
			t.Fatalf("%d groups wait, want 6", n)
		}
		cancels[0]()
		if n := waiting(); n != 5 {
			t.Fatalf("%d groups wait after the end of a call, want 5", n)
		}
		check(t, ms[3].Close())
		if n := waiting(); n != 4 {
			t.Fatalf("%d groups wait after a Close, want 4", n)
		}
		appendTo(t, s, rec("", "a"))
		if n := waiting(); n != 2 { // g1 and g5 have a second call
			t.Fatalf("%d groups wait after an append, want 2", n)
		}
		for _, i := range []int{1, 2, 4, 5} {
			if v, _ := got.Load(i); v != "a" {
				t.Errorf("g%d received %v", i, v)
			}
		}
		check(t, b.DeleteStream(t.Context(), "s"))
		if n := waiting(); n != 0 {
			t.Fatalf("%d groups wait for a stream that is gone", n)
		}
		for _, cancel := range cancels {
			cancel()
		}
		wg.Wait()
	})
}
