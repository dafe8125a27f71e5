package rabbitmq

import (
	"context"
	"flag"
	"fmt"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/conformance"
	"github.com/queuestream/broker/conformance/faultproxy"
)

func TestMain(m *testing.M) {
	conformance.SeedFlag(flag.CommandLine)
	goleak.VerifyTestMain(m, faultproxy.Leftovers()...)
}

// testURL returns the address of a real broker, or skips.
func testURL(t testing.TB) string {
	t.Helper()
	u := os.Getenv("BROKER_TEST_RABBITMQ")
	if u == "" {
		const say = "no RabbitMQ: set BROKER_TEST_RABBITMQ to amqp://user:password@host:port/"
		if os.Getenv("CI") == "true" {
			t.Fatal(say)
		}
		t.Skip(say)
	}
	return u
}

// testProxy stands between a test and the broker at an address; it returns the
// address to use instead.
func testProxy(t testing.TB, address string) (p *faultproxy.Proxy, through string) {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	p = faultproxy.New(t, "127.0.0.1:0", u.Host)
	u.Host = p.Addr()
	return p, u.String()
}

func testContext(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// testContextDetached is for cleanups, which run after the test's own context.
func testContextDetached(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// testBroker opens a broker that is closed after the test; edit may be nil.
func testBroker(t testing.TB, edit func(*Options)) *Broker {
	t.Helper()
	o := &Options{URLs: []string{testURL(t)}, Management: os.Getenv("BROKER_TEST_RABBITMQ_MANAGEMENT")}
	if edit != nil {
		edit(o)
	}
	b, err := Open(testContext(t), o)
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

// testName returns a name that no other test uses.
func testName(t testing.TB, what string) string {
	t.Helper()
	return fmt.Sprintf("test.%s.%s.%s", strings.ReplaceAll(t.Name(), "/", "."), what, broker.NewID()[24:])
}

// testQueue declares a queue, deletes it after the test, and opens it.
func testQueue(t testing.TB, b *Broker, cfg broker.QueueConfig) *Queue {
	t.Helper()
	return openTestQueue(t, b, testName(t, "q"), cfg)
}

func openTestQueue(t testing.TB, b *Broker, name string, cfg broker.QueueConfig) *Queue {
	t.Helper()
	if err := b.DeclareQueue(testContext(t), name, cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { deleteQueue(t, b, name) })
	q, err := b.Queue(testContext(t), name, nil)
	if err != nil {
		t.Fatal(err)
	}
	return q.(*Queue)
}

func deleteQueue(t testing.TB, b *Broker, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if b.isClosed() {
		var err error
		if b, err = Open(ctx, &Options{URLs: []string{testURL(t)}}); err != nil {
			t.Error(err)
			return
		}
		defer b.Close()
	}
	if err := b.DeleteQueue(ctx, name); err != nil {
		t.Error(err)
	}
}

func testConsumer(t testing.TB, q *Queue, o *broker.ConsumerOptions) broker.Consumer {
	t.Helper()
	c, err := q.Consumer(testContext(t), o)
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

func receive(t testing.TB, c broker.Consumer) *broker.Delivery {
	t.Helper()
	ds, err := c.Receive(testContext(t), 1)
	if err != nil {
		t.Fatal(err)
	}
	if len(ds) != 1 {
		t.Fatalf("%d deliveries", len(ds))
	}
	return ds[0]
}

// receiveNone checks that nothing arrives within d.
func receiveNone(t testing.TB, c broker.Consumer, d time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	if ds, err := c.Receive(ctx, 1); len(ds) > 0 {
		t.Fatalf("got %q, attempt %d", ds[0].Body, ds[0].Attempt)
	} else if ctx.Err() == nil {
		t.Fatal(err)
	}
}

func publish(t testing.TB, p broker.Publisher, m broker.Message) broker.Receipt {
	t.Helper()
	r, err := p.Publish(testContext(t), m)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func ack(t testing.TB, d *broker.Delivery) {
	t.Helper()
	if err := d.Ack(testContext(t)); err != nil {
		t.Fatal(err)
	}
}

func nack(t testing.TB, d *broker.Delivery, delay time.Duration) {
	t.Helper()
	if err := d.Nack(testContext(t), delay); err != nil {
		t.Fatal(err)
	}
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("never: %s", what)
		}
	}
}
