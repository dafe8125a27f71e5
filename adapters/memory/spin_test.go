package memory

import (
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/queuestream/broker"
)

// A mutex excludes, also those that have tried for long enough to park.
func TestMutexExcludes(t *testing.T) {
	var m mutex
	var all sync.WaitGroup
	n := 0
	for range 8 {
		all.Go(func() {
			for i := range 200 {
				m.Lock()
				n++
				if i%50 == 0 {
					for range 100 { // for longer than anybody tries
						runtime.Gosched()
					}
				}
				m.Unlock()
			}
		})
	}
	all.Wait()
	if n != 8*200 {
		t.Errorf("counted %d, want %d", n, 8*200)
	}
}

// An entry that went back to the queue is not used for another message: the
// attempt that was lost may still be copied from it.
func TestReturnedEntriesAreNotUsedAgain(t *testing.T) {
	b := open(t, nil)
	q := declare(t, b, "q", broker.QueueConfig{})
	c := consume(t, q, nil)
	send(t, q, body("a"))
	check(t, one(t, c, "a").Nack(t.Context(), 0))
	check(t, one(t, c, "a").Ack(t.Context()))
	if n := len(q.q.spare); n != 0 {
		t.Errorf("%d entries kept, want none", n)
	}
	send(t, q, body("b"))
	check(t, one(t, c, "b").Ack(t.Context()))
	if n := len(q.q.spare); n != 1 {
		t.Errorf("%d entries kept, want one", n)
	}
}

// What is settled long before its lease ends never gets among the events, and
// what is not goes back in time.
func TestLeasesAreScheduledLate(t *testing.T) {
	b := open(t, nil)
	q := declare(t, b, "q", broker.QueueConfig{Lease: 10 * time.Second})
	c := consume(t, q, nil)
	for range 100 {
		send(t, q, body("x"))
		check(t, one(t, c, "x").Ack(t.Context()))
	}
	if n := len(q.q.events.items); n != 0 {
		t.Errorf("%d events, want none", n)
	}
	if q.q.soon == 0 {
		t.Error("nobody looks when the first lease would have ended")
	}
}
