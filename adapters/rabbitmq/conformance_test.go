package rabbitmq

import (
	"context"
	"fmt"
	"net/url"
	"testing"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/conformance"
	"github.com/queuestream/broker/conformance/containers"
)

// TestConformance runs the suite on a real broker, for each kind of queue.
func TestConformance(t *testing.T) {
	in := containers.NeedRabbitMQ(t)
	for _, c := range []struct {
		name  string
		queue func(*broker.QueueConfig) error
	}{
		{"RabbitMQ quorum queue", func(cfg *broker.QueueConfig) error {
			if cfg.Ordered {
				return &broker.Error{Op: "declare queue", Adapter: "rabbitmq", Err: broker.Unsupported("a plain queue has no groups")}
			}
			return nil
		}},
		{"RabbitMQ classic queue", func(cfg *broker.QueueConfig) error {
			if cfg.Ordered {
				return &broker.Error{Op: "declare queue", Adapter: "rabbitmq", Err: broker.Unsupported("a classic queue has no groups")}
			}
			cfg.Options = map[string]string{"x-queue-type": "classic"}
			return nil
		}},
		{"RabbitMQ ordered queue", func(cfg *broker.QueueConfig) error {
			cfg.Ordered = true
			return nil
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			conformance.Run(t, harness(c.name, in, conformance.Queue, c.queue))
		})
	}
}

// TestStreamConformance runs the suite on super streams.
func TestStreamConformance(t *testing.T) {
	in := containers.NeedRabbitMQ(t)
	if in.StreamURL == "" {
		t.Skip("no stream endpoint: set BROKER_TEST_RABBITMQ_STREAM to rabbitmq-stream://user:password@host:port/")
	}
	conformance.Run(t, harness("RabbitMQ stream", in, conformance.Stream, nil))
}

func harness(name string, in *containers.RabbitMQInstance, kinds conformance.Kind, queue func(*broker.QueueConfig) error) conformance.Harness {
	open := func(url string) func(ctx context.Context) (broker.Broker, error) {
		return func(ctx context.Context) (broker.Broker, error) {
			o := &Options{URLs: []string{url}, Management: in.ManagementURL}
			if in.StreamURL != "" {
				o.StreamURLs = []string{in.StreamURL}
			}
			return Open(ctx, o)
		}
	}
	bad := fmt.Sprintf("amqp://nobody:wrong@%s/", hostOf(in.URL))
	return conformance.Harness{
		Name: name, Version: "4.0.5", Kinds: kinds, Open: open(in.URL), OpenBad: open(bad), QueueConfig: queue,
		Tick: 20 * time.Millisecond,
	}
}

func hostOf(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return raw
	}
	return u.Host
}
