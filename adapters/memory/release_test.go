package memory

import (
	"context"
	"runtime"
	"testing"
	"time"
	"weak"

	"github.com/queuestream/broker"
)

// A closed broker is let go at once, whatever would have happened in it later.
func TestClosedBrokersAreLetGo(t *testing.T) {
	const later = time.Hour
	park := func(t *testing.T, c broker.Consumer) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		_, err := c.Receive(ctx, 1)
		wantErr(t, err, context.DeadlineExceeded)
	}
	for name, use := range map[string]func(t *testing.T, b *Broker){
		"a lease": func(t *testing.T, b *Broker) {
			q := declare(t, b, "q", broker.QueueConfig{Lease: later})
			c := consume(t, q, nil)
			send(t, q, body("a"))
			one(t, c, "a")
			park(t, c)
		},
		"a delay": func(t *testing.T, b *Broker) {
			q := declare(t, b, "q", broker.QueueConfig{})
			send(t, q, broker.Message{Delay: later})
			park(t, consume(t, q, nil))
		},
		"a purge": func(t *testing.T, b *Broker) {
			q := declare(t, b, "q", broker.QueueConfig{MaxPriority: 1})
			c := consume(t, q, nil)
			send(t, q, broker.Message{Delay: later, TTL: 2 * later})
			park(t, c)
			check(t, b.Purge(t.Context(), "q"))
		},
		"dead letters to come": func(t *testing.T, b *Broker) {
			dead := declare(t, b, "dead", broker.QueueConfig{})
			q := declare(t, b, "q", broker.QueueConfig{DeadLetter: "dead", MaxAttempts: 1, Lease: later})
			c := consume(t, q, nil)
			send(t, q, body("a"))
			one(t, c, "a")
			d := consume(t, dead, nil)
			park(t, d)
			check(t, c.Close())
		},
		"a blocked publisher": func(t *testing.T, b *Broker) {
			q := declare(t, b, "q", broker.QueueConfig{})
			send(t, q, broker.Message{Body: make([]byte, 1000), Delay: later})
			ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
			defer cancel()
			_, err := q.Publish(ctx, broker.Message{})
			wantErr(t, err, context.DeadlineExceeded)
		},
		"a shutdown": func(t *testing.T, b *Broker) {
			q := declare(t, b, "q", broker.QueueConfig{Lease: later})
			send(t, q, body("a"))
			one(t, consume(t, q, nil), "a")
			ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
			defer cancel()
			wantErr(t, b.Shutdown(ctx), context.DeadlineExceeded)
		},
	} {
		t.Run(name, func(t *testing.T) {
			var held weak.Pointer[server]
			func() {
				b, err := Open(t.Context(), &Options{MaxQueueBytes: 1000})
				check(t, err)
				use(t, b)
				held = weak.Make(b.srv)
				check(t, b.Close())
			}()
			wantLetGo(t, held)
		})
	}
}

// A delivery that a program keeps keeps no other broker than its own.
func TestKeptDeliveriesKeepNoOtherBroker(t *testing.T) {
	q := declare(t, open(t, nil), "q", broker.QueueConfig{})
	send(t, q, body("a"))
	kept := one(t, consume(t, q, nil), "a")
	var held weak.Pointer[server]
	func() {
		b, err := Open(t.Context(), nil)
		check(t, err)
		q := declare(t, b, "q", broker.QueueConfig{})
		for range 2 * slabDeliveries {
			send(t, q, body("b"))
			check(t, one(t, consume(t, q, nil), "b").Ack(t.Context()))
		}
		held = weak.Make(b.srv)
		check(t, b.Close())
	}()
	wantLetGo(t, held)
	runtime.KeepAlive(kept)
}

// wantLetGo fails unless what a broker holds is collected.
func wantLetGo(t *testing.T, held weak.Pointer[server]) {
	t.Helper()
	for range 20 {
		runtime.GC()
		if held.Value() == nil {
			return
		}
	}
	t.Error("what the broker held is still kept")
}
