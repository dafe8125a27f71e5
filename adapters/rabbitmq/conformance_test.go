package rabbitmq

import (
	"cmp"
	"context"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/conformance"
	"github.com/queuestream/broker/conformance/containers"
)

// A suite is a column of the guarantee matrix.
type suite struct {
	name  string
	kinds conformance.Kind
	queue func(*broker.QueueConfig) error
}

var suites = []suite{
	{"RabbitMQ quorum queue", conformance.Queue, func(cfg *broker.QueueConfig) error {
		if cfg.Ordered {
			return &broker.Error{Op: "declare queue", Adapter: "rabbitmq", Err: broker.Unsupported("a plain queue has no groups")}
		}
		return nil
	}},
	{"RabbitMQ classic queue", conformance.Queue, func(cfg *broker.QueueConfig) error {
		if cfg.Ordered {
			return &broker.Error{Op: "declare queue", Adapter: "rabbitmq", Err: broker.Unsupported("a classic queue has no groups")}
		}
		cfg.Options = map[string]string{"x-queue-type": "classic"}
		return nil
	}},
	{"RabbitMQ ordered queue", conformance.Queue, func(cfg *broker.QueueConfig) error {
		cfg.Ordered = true
		return nil
	}},
	{"RabbitMQ stream", conformance.Stream, nil},
}

// aloneCases measure the process: its heap, its goroutines.
var aloneCases = []string{"69", "78"}

// TestConformance runs the suite on a real broker, for each kind of queue and
// for streams, side by side.
func TestConformance(t *testing.T) {
	in := containers.NeedRabbitMQ(t)
	var rest []string
	for _, c := range conformance.Cases() {
		if id := strconv.Itoa(c.ID); !slices.Contains(aloneCases, id) {
			rest = append(rest, id)
		}
	}
	var all sync.WaitGroup
	for _, s := range suites {
		all.Go(func() {
			t.Run(s.name, func(t *testing.T) { conformance.Run(t, s.harness(t, in, rest...)) })
		})
	}
	all.Wait()
}

// TestConformanceAlone runs the cases that others would disturb.
func TestConformanceAlone(t *testing.T) {
	in := containers.NeedRabbitMQ(t)
	for _, s := range suites {
		t.Run(s.name, func(t *testing.T) { conformance.Run(t, s.harness(t, in, aloneCases...)) })
	}
}

func (s *suite) harness(t *testing.T, in *containers.RabbitMQInstance, only ...string) conformance.Harness {
	t.Helper()
	if s.kinds == conformance.Stream && in.StreamURL == "" {
		t.Skip("no stream endpoint: set BROKER_TEST_RABBITMQ_STREAM to rabbitmq-stream://user:password@host:port/")
	}
	o := Options{URLs: []string{in.URL}, Management: in.ManagementURL}
	if in.StreamURL != "" {
		o.StreamURLs = []string{in.StreamURL}
	}
	bad := o
	bad.URLs = []string{fmt.Sprintf("amqp://nobody:wrong@%s/", hostOf(in.URL))}
	h := conformance.Harness{
		Name: s.name, Version: cmp.Or(in.Version(), "4.0.5"), Kinds: s.kinds, QueueConfig: s.queue, Only: only,
		Open: opener(o), OpenBad: opener(bad),
		Victim: func(ctx context.Context) (broker.Broker, func(), error) {
			l, own := new(conformance.Lifeline), o
			own.Dial = l.DialContext
			b, err := Open(ctx, &own)
			return b, l.Cut, err
		},
		Tick: 20 * time.Millisecond,
		// Four suites share two processors with the broker, and a delivery of
		// 16 MB takes its time.
		Soon: 30 * time.Second, Quiet: 500 * time.Millisecond,
		Patience: 20 * time.Second,
	}
	if s.kinds == conformance.Stream {
		h.Expected = map[int]string{
			59: "a stream's retention removes whole segments, when the next one begins, and never the last: " +
				"https://www.rabbitmq.com/docs/streams#retention",
		}
	}
	return h
}

func opener(o Options) func(ctx context.Context) (broker.Broker, error) {
	return func(ctx context.Context) (broker.Broker, error) { return Open(ctx, &o) }
}

func hostOf(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return raw
	}
	return u.Host
}
