package sqs

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/conformance/containers"
)

// openReal opens the SQS (ElasticMQ) or SNS (moto) that tests run against.
func openReal(t *testing.T, kind string, edit ...func(*Options)) *Broker {
	t.Helper()
	endpoint := realEndpoint(t, kind)
	o := &Options{Region: "us-east-1", Endpoint: endpoint, Credentials: staticCredentials("test", "test")}
	for _, e := range edit {
		e(o)
	}
	b, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// realName returns a name that no other test has.
func realName(kind string) string {
	return "qs-" + kind + "-" + broker.NewID()[24:] + broker.NewID()[30:]
}

// declareReal declares a queue and deletes it at the end.
func declareReal(t *testing.T, b *Broker, name string, cfg broker.QueueConfig) string {
	t.Helper()
	if err := b.DeclareQueue(t.Context(), name, cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := b.DeleteQueue(ctx, name); err != nil {
			t.Error(err)
		}
	})
	return name
}

func openQueue(t *testing.T, b *Broker, name string, o *broker.QueueOptions) *Queue {
	t.Helper()
	q, err := b.Queue(t.Context(), name, o)
	if err != nil {
		t.Fatal(err)
	}
	return q.(*Queue)
}

func consume(t *testing.T, q broker.Queue, o *broker.ConsumerOptions) broker.Consumer {
	t.Helper()
	c, err := q.Consumer(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// receiveOne returns the next delivery, which must come within 10 s.
func receiveOne(t *testing.T, c broker.Consumer) *broker.Delivery {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	ds, err := c.Receive(ctx, 1)
	if err != nil {
		t.Fatal(err)
	}
	return ds[0]
}

func TestRealStandardCarriesMany(t *testing.T) {
	b := openReal(t, "sqs")
	q := openQueue(t, b, declareReal(t, b, realName("many"), broker.QueueConfig{}), nil)
	const n = 2000
	ms := make([]broker.Message, n)
	for i := range ms {
		ms[i] = broker.Message{ID: fmt.Sprint("m", i), Body: fmt.Appendf(nil, "body %d", i)}
	}
	start := time.Now()
	if _, err := q.PublishBatch(t.Context(), ms); err != nil {
		t.Fatal(err)
	}
	published := time.Since(start)
	c := consume(t, q, nil)
	start = time.Now()
	seen := map[string]int{}
	for len(seen) < n {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		ds, err := c.Receive(ctx, 100)
		cancel()
		if err != nil {
			t.Fatalf("after %d: %v", len(seen), err)
		}
		for _, d := range ds {
			seen[d.ID]++
		}
		if err := broker.AckAll(t.Context(), ds...); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("published in %v, consumed in %v", published, time.Since(start))
	for id, k := range seen {
		if k != 1 {
			t.Errorf("%s came %d times", id, k)
		}
	}
}

func realEndpoint(t *testing.T, kind string) string {
	if kind == "sns" {
		return containers.NeedSNS(t).URL
	}
	return containers.NeedSQS(t).URL
}

// A FIFO topic keeps the order of a group into a FIFO queue, and dedups by id.
func TestRealFIFOTopic(t *testing.T) {
	b := openReal(t, "sns", func(o *Options) { o.PollWait = time.Second })
	queue, topic := declareReal(t, b, realName("orders")+fifoSuffix, broker.QueueConfig{Ordered: true}), realName("events")+fifoSuffix
	if err := b.DeclareExchange(t.Context(), topic, broker.ExchangeFanout); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := b.DeleteExchange(ctx, topic); err != nil {
			t.Error(err)
		}
	})
	if err := b.Bind(t.Context(), queue, topic, broker.Binding{}); err != nil {
		t.Fatal(err)
	}
	ex, err := b.Exchange(t.Context(), topic)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ex.RouteTo("").Publish(t.Context(), broker.Message{Body: []byte("x"), GroupID: "g", Delay: time.Second}); !errors.Is(err, broker.ErrUnsupported) {
		t.Errorf("a delay: %v", err)
	}
	const n = 25
	ms := make([]broker.Message, 0, n+1)
	for i := range n {
		ms = append(ms, broker.Message{Body: fmt.Appendf(nil, "%d", i), GroupID: "g", DedupID: fmt.Sprintf("%s-%d", queue, i)})
	}
	ms = append(ms, ms[n-1]) // stored once
	if _, err := ex.RouteTo("").PublishBatch(t.Context(), ms); err != nil {
		t.Fatal(err)
	}
	c := consume(t, openQueue(t, b, queue, nil), nil)
	for i := range n {
		d := receiveOne(t, c)
		if string(d.Body) != fmt.Sprint(i) { // moto tells no group: it knows no MessageSystemAttributeNames
			t.Fatalf("delivery %d is %q", i, d.Body)
		}
		if err := d.Ack(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if ds, err := c.Receive(ctx, 1); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("after the last one: %v, %v", ds, err)
	}
}
