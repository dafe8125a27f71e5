package sqs

import (
	"context"
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
