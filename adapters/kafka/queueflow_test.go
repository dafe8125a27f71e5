package kafka_test

import (
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/kafka"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
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

// What was fetched ahead for a program that has stopped receiving goes back,
// and is not fetched again until it receives: each time would be an attempt.
func TestQueueFetchesNothingForNobody(t *testing.T) {
	onBrokers(t, func(t *testing.T, o *kafka.Options) {
		if testing.Short() {
			t.Skip("waits for locks of 1 s to end: run it without -short")
		}
		ctx := testContext(t)
		b := open(t, o)
		q := queue(t, b, broker.QueueConfig{Lease: time.Second})
		c, err := q.Consumer(ctx, &broker.ConsumerOptions{Prefetch: 5})
		if err != nil {
			t.Fatal(err)
		}
		enqueue(t, q, 3)
		if err := take(t, c, 1)[0].Ack(ctx); err != nil {
			t.Fatal(err)
		}
		nothing := time.NewTimer(4 * time.Second) // of four locks
		<-nothing.C
		for _, d := range take(t, c, 2) {
			if d.Attempt > 2 {
				t.Errorf("attempt %d of what nobody has received", d.Attempt)
			}
			if err := d.Ack(ctx); err != nil {
				t.Error(err)
			}
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
}

// A consumer that waits for an empty queue asks the broker a few times a
// second, with Prefetch or without, whether a Receive waits or not.
func TestQueueIdleIsQuiet(t *testing.T) {
	o := realOptions(t)
	ctx := testContext(t)
	for _, prefetch := range []int{0, 10} {
		var asked requests
		own := *o
		own.Client = []kgo.Opt{kgo.WithHooks(&asked)}
		q := queue(t, open(t, &own), broker.QueueConfig{})
		c, err := q.Consumer(ctx, &broker.ConsumerOptions{Prefetch: prefetch})
		if err != nil {
			t.Fatal(err)
		}
		before := asked.fetches.Load()
		nothing(t, c, 2*time.Second)
		waiting := asked.fetches.Load() - before
		pause := time.NewTimer(2 * time.Second)
		<-pause.C
		alone := asked.fetches.Load() - before - waiting
		if waiting > 60 || alone > 60 {
			t.Errorf("Prefetch %d: %d fetches of an empty queue in 2 s, %d while nobody received", prefetch, waiting, alone)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

type requests struct{ fetches atomic.Int64 }

// OnBrokerWrite counts share fetches.
func (r *requests) OnBrokerWrite(_ kgo.BrokerMetadata, key int16, _ int, _, _ time.Duration, _ error) {
	if key == kmsg.ShareFetch.Int16() {
		r.fetches.Add(1)
	}
}
