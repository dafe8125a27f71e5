package memory

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/queuestream/broker"
)

// Whichever way a message comes in, no more come than fit.
func TestIntakeKeepsTheBound(t *testing.T) {
	const fit = 100
	body := make([]byte, 64)
	id := broker.NewID()
	size := int64(messageSize(&broker.Message{ID: id, Body: body}))
	for range 20 {
		b := open(t, &Options{MaxQueueBytes: fit * size, WhenFull: Refuse})
		q := declare(t, b, "q", broker.QueueConfig{MaxPriority: 1})
		var stored atomic.Int64
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				for n := range fit {
					m := broker.Message{ID: id, Body: body}
					if (n+i)%3 == 0 {
						m.Priority = 1 // must ask the queue
					}
					switch _, err := q.Publish(t.Context(), m); {
					case err == nil:
						stored.Add(1)
					case !errors.Is(err, broker.ErrFull):
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		if n := stored.Load(); n != fit {
			t.Fatalf("%d messages were stored where %d fit", n, fit)
		}
		if s, err := b.QueueStats(t.Context(), "q"); err != nil || s.Ready != fit {
			t.Fatalf("ready %d, %v: want %d", s.Ready, err, fit)
		}
	}
}

// A receiver that is about to wait sees what was published just then.
func TestIntakeWakesReceivers(t *testing.T) {
	b := open(t, nil)
	q := declare(t, b, "q", broker.QueueConfig{})
	c, err := q.Consumer(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	const messages = 5000
	acked := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for range messages / 2 {
				ds, err := c.Receive(ctx, 1)
				if err != nil {
					t.Error(err)
					return
				}
				if err := ds[0].Ack(ctx); err != nil {
					t.Error(err)
				}
				acked <- struct{}{}
			}
		})
	}
	for i := range messages {
		if _, err := q.Publish(ctx, broker.Message{}); err != nil {
			t.Fatal(err)
		}
		select {
		case <-acked:
		case <-ctx.Done():
			t.Fatalf("message %d was not received", i)
		}
	}
	wg.Wait()
}

// What came before something with a priority, a delay or a group is in order
// with it, and seen by whoever counts.
func TestIntakeKeepsOrder(t *testing.T) {
	b := open(t, nil)
	q := declare(t, b, "q", broker.QueueConfig{MaxPriority: 1})
	ctx := t.Context()
	for _, m := range []broker.Message{
		{ID: "a"}, {ID: "b", ContentType: "x"}, {ID: "c", GroupID: "g"}, {ID: "late", Delay: time.Hour},
		{ID: "d", GroupID: "g"}, {ID: "e"}, {ID: "f", Headers: broker.Headers{{Key: "k", Value: "v"}}},
		{ID: "first", Priority: 1}, {ID: "h"},
	} {
		if _, err := q.Publish(ctx, m); err != nil {
			t.Fatal(err)
		}
	}
	s, err := b.QueueStats(ctx, "q")
	if err != nil || s.Ready != 8 || s.Delayed != 1 {
		t.Fatalf("%+v, %v: want 8 ready and 1 delayed", s, err)
	}
	c, err := q.Consumer(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"first", "a", "b", "c", "d", "e", "f", "h"} {
		ds, err := c.Receive(ctx, 1)
		if err != nil || ds[0].ID != want {
			t.Fatalf("%v, %v: want %s", ds, err, want)
		}
		if err := ds[0].Ack(ctx); err != nil {
			t.Fatal(err)
		}
	}
}

// Once a queue is deleted nobody puts anything there.
func TestIntakeOfADeletedQueue(t *testing.T) {
	for range 50 {
		b := open(t, nil)
		q := declare(t, b, "q", broker.QueueConfig{})
		var deleted atomic.Bool
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				for {
					after := deleted.Load()
					_, err := q.Publish(t.Context(), broker.Message{})
					if after && !errors.Is(err, broker.ErrNotFound) {
						t.Errorf("published to a deleted queue: %v", err)
					}
					if err != nil {
						return
					}
				}
			})
		}
		if err := b.DeleteQueue(t.Context(), "q"); err != nil {
			t.Fatal(err)
		}
		deleted.Store(true)
		wg.Wait()
	}
}
