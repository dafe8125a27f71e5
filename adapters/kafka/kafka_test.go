package kafka_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/kafka"
	"github.com/queuestream/broker/conformance/containers"
	"github.com/twmb/franz-go/pkg/kfake"
)

// testContext bounds a test, so that nothing that hangs hangs the run.
func testContext(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// fake starts a cluster in process.
func fake(t testing.TB, opts ...kfake.Opt) *kfake.Cluster {
	t.Helper()
	c, err := kfake.NewCluster(append([]kfake.Opt{kfake.NumBrokers(1)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func open(t testing.TB, o *kafka.Options) *kafka.Broker {
	t.Helper()
	b, err := kafka.Open(testContext(t), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("closing the broker: %v", err)
		}
	})
	return b
}

// openOn opens a broker, which the test closes itself, and a stream of it.
func openOn(t testing.TB, cluster *kfake.Cluster) (*kafka.Broker, broker.Stream) {
	t.Helper()
	ctx := testContext(t)
	b, err := kafka.Open(ctx, &kafka.Options{Brokers: cluster.ListenAddrs()})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.DeclareStream(ctx, "s", broker.StreamConfig{}); err != nil {
		t.Fatal(err)
	}
	s, err := b.Stream(ctx, "s", nil)
	if err != nil {
		t.Fatal(err)
	}
	return b, s
}

// onBrokers runs a test on a fake cluster and on the real one, if there is
// one, beside other tests: most of the time they wait.
func onBrokers(t *testing.T, test func(t *testing.T, o *kafka.Options)) {
	t.Parallel()
	t.Run("fake", func(t *testing.T) {
		t.Parallel()
		test(t, &kafka.Options{Brokers: fake(t).ListenAddrs()})
	})
	t.Run("real", func(t *testing.T) {
		t.Parallel()
		test(t, realOptions(t))
	})
}

func realOptions(t testing.TB) *kafka.Options {
	t.Helper()
	o, _ := realBroker(t)
	return o
}

// realBroker returns the real broker of this test run and its version, or skips.
func realBroker(t testing.TB) (*kafka.Options, string) {
	t.Helper()
	in := containers.NeedKafka(t)
	o, err := kafka.ParseURL(in.URL)
	if err != nil {
		t.Fatal(err)
	}
	return o, in.Version()
}

// name returns a name of its own for each test and run.
func name(t testing.TB) string {
	clean := strings.Map(func(r rune) rune {
		if r == '/' || r == ' ' || r == '#' {
			return '-'
		}
		return r
	}, t.Name())
	return fmt.Sprintf("%.60s-%s", clean, broker.NewID()[24:])
}

// declare makes a stream that is deleted when the test ends.
func declare(t testing.TB, b *kafka.Broker, cfg broker.StreamConfig) *kafka.Stream {
	t.Helper()
	n := name(t)
	if err := b.DeclareStream(testContext(t), n, cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := b.DeleteStream(ctx, n); err != nil && !errors.Is(err, broker.ErrClosed) {
			t.Errorf("deleting the stream: %v", err)
		}
	})
	s, err := b.Stream(testContext(t), n, nil)
	if err != nil {
		t.Fatal(err)
	}
	st, ok := s.(*kafka.Stream)
	if !ok {
		t.Fatalf("stream of type %T", s)
	}
	return st
}

func texts(n int) []broker.Record {
	rs := make([]broker.Record, n)
	for i := range rs {
		rs[i] = broker.Record{Key: fmt.Appendf(nil, "k%d", i%29), Value: fmt.Appendf(nil, "v%d", i)}
	}
	return rs
}

// publish publishes n records and fails the test on any error.
func publish(t testing.TB, s broker.Stream, n int) []broker.Receipt {
	t.Helper()
	receipts, err := s.PublishBatch(testContext(t), texts(n))
	if err != nil {
		t.Fatal(err)
	}
	return receipts
}

// receive collects n records.
func receive(t testing.TB, c broker.GroupConsumer, n int) []*broker.Record {
	t.Helper()
	ctx := testContext(t)
	var out []*broker.Record
	for len(out) < n {
		rs, err := c.Receive(ctx, n-len(out))
		if err != nil {
			t.Fatalf("after %d of %d records: %v", len(out), n, err)
		}
		out = append(out, rs...)
	}
	return out
}

func member(t testing.TB, s broker.Stream, group string, o *broker.GroupOptions) broker.GroupConsumer {
	t.Helper()
	c, err := s.Consumer(testContext(t), group, o)
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

// eventually waits for a condition.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	ctx := testContext(t)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("waited in vain for: %s", what)
		}
	}
}
