package kafka_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/kafka"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kversion"
)

// queue declares a queue that is deleted when the test ends.
func queue(t testing.TB, b *kafka.Broker, cfg broker.QueueConfig) *kafka.Queue {
	t.Helper()
	n := name(t)
	if err := b.DeclareQueue(testContext(t), n, cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := b.DeleteQueue(ctx, n); err != nil && !errors.Is(err, broker.ErrClosed) {
			t.Errorf("deleting the queue: %v", err)
		}
	})
	q, err := b.Queue(testContext(t), n, nil)
	if err != nil {
		t.Fatal(err)
	}
	out, ok := q.(*kafka.Queue)
	if !ok {
		t.Fatalf("queue of type %T", q)
	}
	return out
}

func consumer(t testing.TB, q broker.Queue) broker.Consumer {
	t.Helper()
	c, err := q.Consumer(testContext(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Errorf("closing the consumer: %v", err)
		}
	})
	return c
}

func enqueue(t testing.TB, q broker.Queue, n int) {
	t.Helper()
	ms := make([]broker.Message, n)
	for i := range ms {
		ms[i].Body = fmt.Appendf(nil, "m%d", i)
	}
	if _, err := q.PublishBatch(testContext(t), ms); err != nil {
		t.Fatal(err)
	}
}

func take(t testing.TB, c broker.Consumer, n int) []*broker.Delivery {
	t.Helper()
	ctx := testContext(t)
	var out []*broker.Delivery
	for len(out) < n {
		ds, err := c.Receive(ctx, n-len(out))
		if err != nil {
			t.Fatalf("after %d of %d deliveries: %v", len(out), n, err)
		}
		out = append(out, ds...)
	}
	return out
}

// nothing checks that nothing is delivered for a while.
func nothing(t testing.TB, c broker.Consumer, d time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(testContext(t), d)
	defer cancel()
	if ds, err := c.Receive(ctx, 1); !errors.Is(err, context.DeadlineExceeded) {
		for _, d := range ds {
			t.Errorf("received %q, attempt %d", d.Body, d.Attempt)
		}
		t.Errorf("receive: %v, want nothing", err)
	}
}

func TestQueueKeepsMessagesExactly(t *testing.T) {
	onBrokers(t, func(t *testing.T, o *kafka.Options) {
		ctx := testContext(t)
		q := queue(t, open(t, o), broker.QueueConfig{})
		in := broker.Message{
			Body: []byte{0, 1, 0xff}, ContentType: "x/y", CorrelationID: "c", ReplyTo: "r",
			Headers: broker.Headers{{Key: "a", Value: "1"}, {Key: "a", Value: "\x00\xff"}, {Key: "b"}},
		}
		receipt, err := q.Publish(ctx, in)
		if err != nil {
			t.Fatal(err)
		}
		d := take(t, consumer(t, q), 1)[0]
		if d.ID != receipt.ID || string(d.Body) != string(in.Body) || d.ContentType != in.ContentType ||
			d.CorrelationID != in.CorrelationID || d.ReplyTo != in.ReplyTo || !slices.Equal(d.Headers, in.Headers) {
			t.Errorf("received %+v, want %+v with id %s", d.Message, in, receipt.ID)
		}
		if d.Attempt != 1 || d.LeaseExpires().Before(time.Now()) || time.Since(d.Time) > time.Minute {
			t.Errorf("attempt %d, lease until %v, accepted %v", d.Attempt, d.LeaseExpires(), d.Time)
		}
		if err := d.Ack(ctx); err != nil {
			t.Fatal(err)
		}
	})
}

func TestQueueHoldsAndSettlesInAnyOrder(t *testing.T) {
	onBrokers(t, func(t *testing.T, o *kafka.Options) {
		ctx := testContext(t)
		b := open(t, o)
		q := queue(t, b, broker.QueueConfig{})
		enqueue(t, q, 50)
		c := consumer(t, q)
		var held []*broker.Delivery
		for range 10 { // Receive does not wait for, nor settle, what is held
			held = append(held, take(t, c, 5)...)
		}
		for i := 49; i >= 0; i-- {
			var err error
			switch i % 5 {
			case 0:
				err = held[i].Nack(ctx, 0)
			case 1:
				err = held[i].Extend(ctx, 0)
			default:
				err = held[i].Ack(ctx)
			}
			if err != nil {
				t.Fatalf("delivery %d: %v", i, err)
			}
		}
		if err := held[2].Ack(ctx); !errors.Is(err, broker.ErrSettled) {
			t.Errorf("second ack: %v", err)
		}
		again := take(t, c, 10)
		for _, d := range again {
			if d.Attempt != 2 {
				t.Errorf("%q came again as attempt %d, want 2", d.Body, d.Attempt)
			}
		}
		for i := 1; i < 50; i += 5 {
			again = append(again, held[i])
		}
		if err := broker.AckAll(ctx, again...); err != nil {
			t.Fatal(err)
		}
		nothing(t, c, 300*time.Millisecond)
		eventually(t, "an empty queue", func() bool {
			stats, err := b.QueueStats(ctx, q.Name())
			return err == nil && stats.Ready == 0 && stats.Consumers == 1
		})
	})
}

func TestQueueDelays(t *testing.T) {
	onBrokers(t, func(t *testing.T, o *kafka.Options) {
		ctx := testContext(t)
		b := open(t, o)
		q := queue(t, b, broker.QueueConfig{})
		c := consumer(t, q)
		start := time.Now()
		for body, delay := range map[string]time.Duration{"long": 1200 * time.Millisecond, "short": 400 * time.Millisecond} {
			if _, err := q.Publish(ctx, broker.Message{Body: []byte(body), Delay: delay}); err != nil {
				t.Fatal(err)
			}
		}
		for _, want := range []struct {
			body  string
			after time.Duration
		}{{"short", 400 * time.Millisecond}, {"long", 1200 * time.Millisecond}} {
			d := take(t, c, 1)[0]
			if since := time.Since(start); string(d.Body) != want.body || since < want.after || since > want.after+2*time.Second || d.Attempt != 1 {
				t.Errorf("%q as attempt %d after %v, want %q after %v", d.Body, d.Attempt, since, want.body, want.after)
			}
			if err := d.Ack(ctx); err != nil {
				t.Fatal(err)
			}
		}
		enqueue(t, q, 1)
		d := take(t, c, 1)[0]
		start = time.Now()
		if err := d.Nack(ctx, 500*time.Millisecond); err != nil {
			t.Fatal(err)
		}
		again := take(t, c, 1)[0]
		if since := time.Since(start); since < 500*time.Millisecond || again.Attempt != 2 || again.ID != d.ID || !again.Time.Equal(d.Time) {
			t.Errorf("came again after %v as %s, attempt %d of %v, want attempt 2 of %s %v", since, again.ID, again.Attempt, again.Time, d.ID, d.Time)
		}
		if err := again.Ack(ctx); err != nil {
			t.Fatal(err)
		}
	})
}

func TestQueueDeadLetters(t *testing.T) {
	onBrokers(t, func(t *testing.T, o *kafka.Options) {
		ctx := testContext(t)
		b := open(t, o)
		dead := queue(t, b, broker.QueueConfig{})
		q := queue(t, b, broker.QueueConfig{MaxAttempts: 12, DeadLetter: dead.Name()})
		enqueue(t, q, 2)
		c := consumer(t, q)
		if err := take(t, c, 1)[0].Reject(ctx, "bad"); err != nil {
			t.Fatal(err)
		}
		for i := 1; i <= 12; i++ { // more than the broker's own limit
			d := take(t, c, 1)[0]
			if d.Attempt != i || string(d.Body) != "m1" {
				t.Fatalf("%q as attempt %d, want %d", d.Body, d.Attempt, i)
			}
			if err := d.Nack(ctx, 0); err != nil {
				t.Fatal(err)
			}
		}
		nothing(t, c, 300*time.Millisecond)
		peeked, err := b.Peek(ctx, dead.Name(), 10)
		if err != nil || len(peeked) != 2 {
			t.Fatalf("peeked at %d dead letters and %v, want 2", len(peeked), err)
		}
		why, ok := broker.DeadLetterOf(&peeked[1])
		if !ok || why.Attempts != 12 || why.Queue != q.Name() {
			t.Errorf("dead letter says %+v", why)
		}
		if n, err := b.Redrive(ctx, dead.Name(), "", 0); n != 2 || err != nil {
			t.Fatalf("moved %d back and %v, want 2", n, err)
		}
		ds := take(t, c, 2)
		for _, d := range ds {
			if d.Attempt != 1 || len(d.Headers) != 0 {
				t.Errorf("moved back as attempt %d with %v", d.Attempt, d.Headers)
			}
		}
		if err := broker.AckAll(ctx, ds...); err != nil {
			t.Fatal(err)
		}
	})
}

func TestQueueLeaseExpiresAndCloseGivesBack(t *testing.T) {
	ctx := testContext(t)
	b := open(t, realOptions(t))
	q := queue(t, b, broker.QueueConfig{Lease: time.Second})
	enqueue(t, q, 2)
	a := consumer(t, q)
	ds := take(t, a, 2)
	other := consumer(t, q)
	nothing(t, other, 300*time.Millisecond)
	for range 4 { // held past its lease by extending
		if err := ds[1].Extend(ctx, 0); err != nil {
			t.Fatal(err)
		}
		nothing2(t, other, 500*time.Millisecond, string(ds[0].Body))
	}
	if err := ds[0].Ack(ctx); !errors.Is(err, broker.ErrLeaseLost) {
		t.Errorf("ack after the lease: %v, want ErrLeaseLost", err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if err := ds[1].Ack(ctx); !errors.Is(err, broker.ErrLeaseLost) {
		t.Errorf("ack after close: %v, want ErrLeaseLost", err)
	}
	seen := map[string]bool{}
	for !seen["m0"] || !seen["m1"] {
		d := take(t, other, 1)[0]
		seen[string(d.Body)] = true
		if err := d.Ack(ctx); err != nil {
			t.Fatal(err)
		}
	}
}

// nothing2 receives for a while and gives back what it may get.
func nothing2(t testing.TB, c broker.Consumer, d time.Duration, allowed string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(testContext(t), d)
	defer cancel()
	for ctx.Err() == nil {
		ds, err := c.Receive(ctx, 1)
		if err != nil && ctx.Err() == nil {
			t.Fatal(err)
		}
		for _, d := range ds {
			if string(d.Body) != allowed {
				t.Errorf("received %q, which is held", d.Body)
			}
			if err := d.Nack(testContext(t), 0); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestQueueNeedsShareGroups(t *testing.T) {
	o := &kafka.Options{Brokers: fake(t, kfake.MaxVersions(kversion.V3_9_0())).ListenAddrs()}
	b := open(t, o)
	if err := b.DeclareQueue(testContext(t), "q", broker.QueueConfig{}); !errors.Is(err, broker.ErrUnsupported) {
		t.Errorf("declare: %v, want ErrUnsupported", err)
	}
	if err := b.DeclareStream(testContext(t), "q", broker.StreamConfig{}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Queue(testContext(t), "q", nil); !errors.Is(err, broker.ErrUnsupported) {
		t.Errorf("open: %v, want ErrUnsupported", err)
	}
}
