package memory

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/queuestream/broker"
)

// madeAheadIn counts the stored messages whose first attempt is there already.
func madeAheadIn(q *queue) (n int) {
	q.lock()
	defer q.unlock()
	for _, e := range q.stored() {
		if e.attempt != nil {
			n++
		}
	}
	return n
}

// Publishers make first attempts where receivers are behind, but not for a
// backlog, whether it is due or not: it would take twice its memory.
func TestAheadIsBounded(t *testing.T) {
	for name, delay := range map[string]time.Duration{"due": 0, "not due": time.Hour} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := open(t, nil)
				q := declare(t, b, "q", broker.QueueConfig{Delay: delay})
				c := consume(t, q, nil)
				for range aheadFrom {
					send(t, q, body("x"))
				}
				if n := madeAheadIn(q.q); n != 0 {
					t.Errorf("%d were made for %d messages", n, aheadFrom)
				}
				for i := range 3 * aheadTo {
					send(t, q, body("x"))
					if i%100 == 0 {
						if _, err := b.QueueStats(t.Context(), "q"); err != nil { // lets in what came
							t.Fatal(err)
						}
					}
				}
				if n := madeAheadIn(q.q); n == 0 || n > aheadTo {
					t.Errorf("%d were made, want some and at most %d", n, aheadTo)
				}
				for left := aheadFrom + 3*aheadTo; left > 0; {
					ds, err := c.Receive(t.Context(), 1000)
					check(t, err)
					check(t, broker.AckAll(t.Context(), ds...))
					left -= len(ds)
				}
				if n := madeAheadIn(q.q); n != 0 {
					t.Errorf("%d are left", n)
				}
			})
		})
	}
}

// An attempt that was made ahead is as any other, and what a program does to it
// does not reach the next.
func TestAheadIsAsMadeLater(t *testing.T) {
	b := open(t, nil)
	q := declare(t, b, "q", broker.QueueConfig{})
	c := consume(t, q, nil)
	for range aheadFrom {
		send(t, q, body("before"))
	}
	if n := madeAheadIn(q.q); n != 0 {
		t.Fatalf("%d were made ahead", n)
	}
	before := time.Now()
	send(t, q, broker.Message{ID: "id", Body: []byte("original")})
	if n := madeAheadIn(q.q); n != 1 {
		t.Fatalf("%d were made ahead, want 1", n)
	}
	for range aheadFrom {
		check(t, one(t, c, "before").Ack(t.Context()))
	}
	for attempt := 1; attempt <= 2; attempt++ {
		ds, err := c.Receive(t.Context(), 1)
		check(t, err)
		d := ds[0]
		if d.ID != "id" || string(d.Body) != "original" || d.Attempt != attempt || d.Time.Before(before) || time.Since(d.Time) > time.Minute {
			t.Fatalf("attempt %d: %q %q, attempt %d at %v", attempt, d.ID, d.Body, d.Attempt, d.Time)
		}
		if left := time.Until(d.LeaseExpires()); left <= 0 {
			t.Fatalf("attempt %d: a lease of %v", attempt, left)
		}
		copy(d.Body, "spoiled!")
		d.Body = append(d.Body, "spoiled"...)
		check(t, d.Nack(t.Context(), 0))
	}
}
