package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/conformance"
	"github.com/queuestream/broker/conformance/containers"
)

// TestConformanceDirectReplies: the request-reply case over direct reply-to.
func TestConformanceDirectReplies(t *testing.T) {
	in := containers.NeedRabbitMQ(t)
	s := suites[0]
	h := s.harness(t, in, "89")
	h.Name += ", direct reply-to"
	h.Open = opener(Options{URLs: []string{in.URL}, DirectReplies: true})
	h.OpenBad = nil
	conformance.Run(t, h)
}

func serve(t *testing.T, b *Broker, q broker.Queue) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	w := &broker.Worker{Queue: q, Handler: broker.Respond(b, func(_ context.Context, d *broker.Delivery) (broker.Message, error) {
		return broker.Message{Body: append([]byte("re: "), d.Body...)}, nil
	})}
	var done sync.WaitGroup
	done.Go(func() {
		if err := w.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); done.Wait() })
}

// TestDirectReplies: many callers share one channel; when its connection breaks
// the call under way fails with a typed error, and the next one works.
func TestDirectReplies(t *testing.T) {
	direct := testBroker(t, nil)
	q := testQueue(t, direct, broker.QueueConfig{})
	p, through := testProxy(t, testURL(t))
	b := testBroker(t, func(o *Options) {
		proxied(through)(o)
		o.DirectReplies = true
	})
	target, err := b.Queue(testContext(t), q.Name(), nil)
	if err != nil {
		t.Fatal(err)
	}
	r := &broker.Requester{Broker: b, Target: target}
	defer r.Close()
	ctx := testContext(t)
	cut := make(chan error, 1)
	go func() { // nobody answers yet
		_, err := r.Do(ctx, broker.Message{Body: []byte("lost")})
		cut <- err
	}()
	first := testConsumer(t, q, nil)
	request := receive(t, first)
	p.Cut()
	if err := <-cut; !errors.Is(err, broker.ErrNotFound) || ctx.Err() != nil {
		t.Fatalf("a call whose connection broke: %v", err)
	}
	if _, err := direct.Queue(ctx, request.ReplyTo, nil); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("a caller that is gone: %v", err)
	}
	ack(t, request)
	// It would share the requests and never answer: a consumer keeps what it
	// has prefetched (see the package's documentation).
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	serve(t, direct, q)
	var calls sync.WaitGroup
	for i := range 20 {
		calls.Go(func() {
			d, err := r.Do(ctx, broker.Message{Body: fmt.Append(nil, i)})
			if err != nil || string(d.Body) != fmt.Sprintf("re: %d", i) {
				t.Errorf("%d: %v, %v", i, d, err)
			}
		})
	}
	calls.Wait()
}

// TestDirectReplyRefuses: what an answer that has left the broker cannot do.
func TestDirectReplyRefuses(t *testing.T) {
	b := testBroker(t, func(o *Options) { o.DirectReplies = true })
	ctx := testContext(t)
	q, err := b.ReplyQueue(ctx)
	if err != nil {
		t.Fatal(err)
	}
	c, err := q.Consumer(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	to, err := testBroker(t, nil).Queue(ctx, q.Name(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := to.Consumer(ctx, nil); !errors.Is(err, broker.ErrUnsupported) {
		t.Errorf("a foreign consumer: %v", err)
	}
	if _, err := to.Publish(ctx, broker.Message{Delay: 1}); !errors.Is(err, broker.ErrUnsupported) {
		t.Errorf("a delay: %v", err)
	}
	publish(t, to, broker.Message{Body: []byte("answer")})
	ds, err := c.Receive(ctx, 5)
	if err != nil || len(ds) != 1 {
		t.Fatal(ds, err)
	}
	if err := ds[0].Nack(ctx, 0); !errors.Is(err, broker.ErrUnsupported) {
		t.Errorf("nack: %v", err)
	}
	ack(t, ds[0])
	if err := q.Close(); err != nil {
		t.Error(err)
	}
	if _, err := c.Receive(ctx, 1); !errors.Is(err, broker.ErrClosed) {
		t.Errorf("receive after close: %v", err)
	}
}

// TestReplyQueueClosedWhileDown: a reply queue that cannot be deleted now is not
// declared again by each later connection; it goes by itself.
func TestReplyQueueClosedWhileDown(t *testing.T) {
	p, through := testProxy(t, testURL(t))
	b := testBroker(t, proxied(through))
	q, err := b.ReplyQueue(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	p.Down()
	if err := q.Close(); !broker.IsTemporary(err) {
		t.Errorf("close: %v", err)
	}
	if _, known := b.topo.queue(q.Name()); known || b.topo.arguments(q.Name()) != nil {
		t.Error("it will be declared again")
	}
	deleteQueue(t, testBroker(t, nil), q.Name())
}
