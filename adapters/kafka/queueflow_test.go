package kafka_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/kafka"
)

// A consumer that holds one delivery and may prefetch one keeps two messages
// from others and not one more, however its fetches meet its Receives.
func TestQueuePrefetchIsABound(t *testing.T) {
	onBrokers(t, func(t *testing.T, o *kafka.Options) {
		b := open(t, o)
		for range 5 {
			q := queue(t, b, broker.QueueConfig{})
			slow, err := q.Consumer(testContext(t), &broker.ConsumerOptions{Prefetch: 1})
			if err != nil {
				t.Fatal(err)
			}
			const n = 12
			enqueue(t, q, n)
			held := take(t, slow, 1)
			fast := consumer(t, q)
			got := take(t, fast, n-2)
			for _, d := range append(got, held...) {
				if err := d.Ack(testContext(t)); err != nil {
					t.Error(err)
				}
			}
			if err := slow.Close(); err != nil {
				t.Error(err)
			}
			for _, d := range take(t, fast, 1) { // what was prefetched comes back
				if err := d.Ack(testContext(t)); err != nil {
					t.Error(err)
				}
			}
		}
	})
}

// What one consumer gives back reaches another that waits: the broker mostly
// leaves the fetch that waits already asleep, so it must not wait for long.
func TestQueueGivenBackIsSeenSoon(t *testing.T) {
	onBrokers(t, func(t *testing.T, o *kafka.Options) {
		ctx := testContext(t)
		q := queue(t, open(t, o), broker.QueueConfig{})
		one, other := consumer(t, q), consumer(t, q)
		type arrival struct {
			at time.Time
			d  *broker.Delivery
		}
		var waits []time.Duration
		for i := range 5 {
			if _, err := q.Publish(ctx, broker.Message{Body: fmt.Appendf(nil, "m%d", i)}); err != nil {
				t.Fatal(err)
			}
			held := take(t, one, 1)[0]
			came := make(chan arrival, 1)
			go func() {
				ds, err := other.Receive(ctx, 1)
				if err != nil {
					t.Error(err)
					close(came)
					return
				}
				came <- arrival{time.Now(), ds[0]}
			}()
			given := time.Now()
			if err := held.Nack(ctx, 0); err != nil {
				t.Fatal(err)
			}
			a, ok := <-came
			if !ok {
				return
			}
			waits = append(waits, a.at.Sub(given))
			if err := a.d.Ack(ctx); err != nil {
				t.Fatal(err)
			}
		}
		slices.Sort(waits)
		if median := waits[len(waits)/2]; median > 300*time.Millisecond {
			t.Errorf("a message that was given back came after %v (median), want it soon", median)
		}
	})
}
