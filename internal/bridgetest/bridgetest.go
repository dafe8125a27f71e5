// Package bridgetest is what the tests of package bridge and of cmd/bridge on
// real brokers share: a topic and queues of their own, what arrives at a queue,
// and processes of the bridge, which are the test binary started again. For
// tests alone.
package bridgetest

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/kafka"
	"github.com/queuestream/broker/adapters/sqs"
	"github.com/queuestream/broker/conformance/containers"
)

// Stalled is after how long without any progress a test fails. A killed
// member's partitions are free after its session; a rebalance that it took part
// in ends later still.
const Stalled = time.Minute

// Brokers are a Kafka with a topic, and an SQS with queues.
type Brokers struct {
	KafkaURL, SQSURL string // the latter is an endpoint
	Stream           broker.Stream
	Queues           *sqs.Broker
}

// Open declares a topic and queues on the brokers of the environment, or of
// containers; they are deleted when the test ends.
func Open(t *testing.T, topic string, partitions int, cfg broker.QueueConfig, queues ...string) *Brokers {
	t.Helper()
	k, q := containers.NeedKafka(t), containers.NeedSQS(t)
	ctx := t.Context()
	b := &Brokers{KafkaURL: k.URL, SQSURL: q.URL}
	events, err := kafka.OpenURL(ctx, k.URL)
	check(t, err)
	admin, _ := broker.As[broker.Admin](events)
	check(t, admin.DeclareStream(ctx, topic, broker.StreamConfig{Partitions: partitions}))
	b.Stream, err = events.Stream(ctx, topic, nil)
	check(t, err)
	b.Queues, err = sqs.Open(ctx, &sqs.Options{
		Region: "elasticmq", Endpoint: q.URL, Credentials: credentials.NewStaticCredentialsProvider("x", "x", ""),
	})
	check(t, err)
	t.Cleanup(func() {
		ctx := context.WithoutCancel(ctx)
		errs := []error{admin.DeleteStream(ctx, topic), events.Close()}
		for _, name := range queues {
			errs = append(errs, b.Queues.DeleteQueue(ctx, name))
		}
		check(t, errors.Join(append(errs, b.Queues.Close())...))
	})
	for _, name := range queues {
		check(t, b.Queues.DeclareQueue(ctx, name, cfg))
	}
	return b
}

// Arrivals are what has arrived at a queue and was acknowledged.
type Arrivals struct {
	mu     sync.Mutex
	all    []*broker.Delivery
	failed error
}

// Consume receives from a queue until the test ends.
func (b *Brokers) Consume(t *testing.T, queue string) *Arrivals {
	t.Helper()
	q, err := b.Queues.Queue(t.Context(), queue, nil)
	check(t, err)
	c, err := q.Consumer(t.Context(), nil)
	check(t, err)
	a := &Arrivals{}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for a.receive(ctx, c) {
			continue
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		check(t, errors.Join(c.Close(), q.Close()))
	})
	return a
}

func (a *Arrivals) receive(ctx context.Context, c broker.Consumer) bool {
	ds, err := c.Receive(ctx, 1000)
	if err == nil {
		err = broker.AckAll(ctx, ds...)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.all = append(a.all, ds...)
	if err != nil && ctx.Err() == nil {
		a.failed = err
	}
	return err == nil
}

// All returns them in their order.
func (a *Arrivals) All() []*broker.Delivery {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.all
}

// Count returns how many there are.
func (a *Arrivals) Count() int { return len(a.All()) }

// Until waits for n of them, as long as some arrive.
func (a *Arrivals) Until(t *testing.T, n int) {
	t.Helper()
	last, since := -1, time.Now()
	for tick := time.Tick(20 * time.Millisecond); ; <-tick {
		a.mu.Lock()
		got, err := len(a.all), a.failed
		a.mu.Unlock()
		check(t, err)
		switch {
		case got >= n:
			return
		case got != last:
			last, since = got, time.Now()
		case time.Since(since) > Stalled:
			t.Fatalf("%d of %d arrived, and no more for %v", got, n, Stalled)
		}
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
