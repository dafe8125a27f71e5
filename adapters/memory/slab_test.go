package memory

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/queuestream/broker"
)

// Deliveries that share memory do not see each other's bodies, whatever their
// sizes and however they were received.
func TestBodiesOfNeighboursStayApart(t *testing.T) {
	sizes := []int{0, 1, 255, 256, 257, slabBody, slabBody + 1, smallBody, smallBody + 1, 100, 0, 3 * smallBody}
	for _, batch := range []int{1, 3, 100} {
		b := open(t, nil)
		q := declare(t, b, "q", broker.QueueConfig{})
		c := consume(t, q, nil)
		content := func(i int) []byte { return bytes.Repeat([]byte{byte(1 + i)}, sizes[i%len(sizes)]) }
		total := 5 * len(sizes)
		for i := range total {
			send(t, q, broker.Message{Body: content(i)})
		}
		var ds []*broker.Delivery
		for len(ds) < total {
			more, err := c.Receive(t.Context(), batch)
			check(t, err)
			if len(more) > batch {
				t.Fatalf("received %d where at most %d were asked for", len(more), batch)
			}
			ds = append(ds, more...)
		}
		for i, d := range ds {
			if want := content(i); !bytes.Equal(d.Body, want) {
				t.Fatalf("batches of %d: message %d has %d bytes, want %d of %d", batch, i, len(d.Body), len(want), 1+i)
			}
			clear(d.Body)
			d.Body = append(d.Body, 0xff)
		}
		for _, d := range ds {
			check(t, d.Nack(t.Context(), 0))
		}
		for i := range total { // as they were published
			more, err := c.Receive(t.Context(), 1)
			check(t, err)
			if want := content(i); !bytes.Equal(more[0].Body, want) {
				t.Fatalf("batches of %d: message %d comes again with %d bytes, want %d of %d", batch, i, len(more[0].Body), len(want), 1+i)
			}
		}
	}
}

// A slab does not keep the large messages that were delivered with it.
func TestLargeDeliveriesAreLetGo(t *testing.T) {
	for _, m := range []broker.Message{
		{Body: make([]byte, slabMessage+1)},
		{Headers: broker.Headers{{Key: "k", Value: strings.Repeat("v", slabMessage)}}},
		{ContentType: strings.Repeat("t", slabMessage+1)},
	} {
		small := body("small")
		room := &slab{}
		for i, m := range []*broker.Message{&small, &m, &small} {
			s := room.single(newEntry(m, 0))
			shared := false
			for j := range room.singles {
				shared = shared || &room.singles[j] == s
			}
			if shared != (i != 1) {
				t.Errorf("delivery %d of %d bytes shares memory: %v", i, m.Size(), shared)
			}
		}
	}
}

// Messages that come at once wake a receiver each, also while those woken
// before have not run yet.
func TestEachMessageWakesAReceiver(t *testing.T) {
	for range 50 {
		synctest.Test(t, func(t *testing.T) {
			b := open(t, nil)
			q := declare(t, b, "q", broker.QueueConfig{})
			c := consume(t, q, nil)
			const receivers = 8
			got := make(chan error, receivers)
			for range receivers {
				go func() {
					ds, err := c.Receive(t.Context(), 1)
					if err == nil {
						err = ds[0].Ack(t.Context())
					}
					got <- err
				}()
			}
			synctest.Wait()
			for range receivers {
				send(t, q, body("x"))
			}
			synctest.Wait()
			if len(got) != receivers {
				t.Errorf("%d of %d receivers were woken", len(got), receivers)
			}
			for range receivers {
				check(t, <-got)
			}
			if n := q.q.parked.Load(); n != 0 {
				t.Errorf("%d count as parked", n)
			}
		})
	}
}

// Who gave up waiting does not count as parked, and takes no wake-up along.
func TestCancelledReceiversAreNotParked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, nil)
		q := declare(t, b, "q", broker.QueueConfig{})
		c := consume(t, q, nil)
		ctx, cancel := context.WithCancel(t.Context())
		const receivers = 3
		ended := make(chan error, receivers)
		for range receivers {
			go func() {
				_, err := c.Receive(ctx, 1)
				ended <- err
			}()
		}
		synctest.Wait()
		if n := q.q.parked.Load(); n != receivers {
			t.Errorf("%d count as parked, want %d", n, receivers)
		}
		cancel()
		for range receivers {
			wantErr(t, <-ended, context.Canceled)
		}
		if n := q.q.parked.Load(); n != 0 {
			t.Errorf("%d count as parked", n)
		}
		send(t, q, body("x"))
		check(t, one(t, c, "x").Ack(t.Context()))
	})
}
