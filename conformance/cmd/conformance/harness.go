package main

import (
	"context"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/kafka"
	"github.com/queuestream/broker/adapters/memory"
	"github.com/queuestream/broker/adapters/rabbitmq"
	"github.com/queuestream/broker/adapters/sqs"
	"github.com/queuestream/broker/conformance"
)

// A target is what the flags say of the broker.
type target struct {
	url       string
	streamURL string // of RabbitMQ
	kind      string // empty: what there is
}

func (t *target) openers() broker.Openers {
	return broker.Openers{
		"memory": memory.OpenURL,
		"kafka":  kafka.OpenURL,
		"sqs":    sqs.OpenURL,
		"amqp":   t.openRabbitMQ,
		"amqps":  t.openRabbitMQ,
	}
}

// openRabbitMQ is rabbitmq.OpenURL with a URL of streams.
func (t *target) openRabbitMQ(ctx context.Context, rawURL string) (broker.Broker, error) {
	if t.streamURL == "" {
		return rabbitmq.OpenURL(ctx, rawURL)
	}
	o := &rabbitmq.Options{URLs: []string{rawURL}, StreamURLs: []string{t.streamURL}}
	if u, err := url.Parse(rawURL); err == nil && u.Query().Has("management") {
		q := u.Query()
		o.Management = q.Get("management")
		q.Del("management")
		u.RawQuery = q.Encode()
		o.URLs[0] = u.String()
	}
	b, err := rabbitmq.Open(ctx, o)
	if err != nil {
		return nil, err
	}
	return b, nil
}

// harness returns what fits the broker.
func (t *target) harness() (conformance.Harness, error) {
	scheme, _, _ := strings.Cut(t.url, ":")
	scheme = strings.ToLower(scheme)
	openers := t.openers()
	run, n := broker.NewID()[24:], new(atomic.Int64)
	h := conformance.Harness{
		Name: scheme, Kinds: conformance.Both,
		Open: func(ctx context.Context) (broker.Broker, error) { return openers.Open(ctx, t.url) },
		NewName: func(kind string) string {
			name := fmt.Sprintf("qs-%s-%s-%d", kind, run, n.Add(1))
			if kind == "ordered" && scheme == "sqs" {
				name += ".fifo"
			}
			return name
		},
		Soon: 30 * time.Second, Quiet: 500 * time.Millisecond, Tick: 20 * time.Millisecond,
	}
	switch scheme {
	case "memory":
		h.Embedded, h.Soon, h.Quiet = true, 0, 0
	case "kafka":
		h.Lease, h.Delay = 2*time.Second, time.Second
		h.QueueConfig = func(cfg *broker.QueueConfig) error {
			if cfg.Lease > 0 { // consumers' may be shorter than the cluster's least, queues' may not
				cfg.Lease = 30 * time.Second
			}
			return nil
		}
		h.StreamConfig = func(cfg *broker.StreamConfig) error {
			if cfg.Compact { // the cleaner spares what is written to, and waits for enough to do
				cfg.Options = map[string]string{"segment.ms": "500", "min.cleanable.dirty.ratio": "0.01", "delete.retention.ms": "500"}
			}
			return nil
		}
		const late = "a cluster looks for what its retention ends every log.retention.check.interval.ms, five minutes by default"
		h.Expected = map[int]string{59: late, 60: late}
	case "sqs":
		h.Duplicates = true
		h.Lease, h.Delay, h.Tick = time.Second, time.Second, time.Second // SQS counts whole seconds
		if t.kind == "" {
			h.Kinds = conformance.Queue
		}
	case "amqp", "amqps":
		h.Expected = map[int]string{
			59: "a stream's retention removes whole segments, when the next one begins, and never the last: https://www.rabbitmq.com/docs/streams#retention",
		}
	}
	if t.streamURL != "" && scheme != "amqp" && scheme != "amqps" {
		return h, fmt.Errorf("-stream-url is for amqp:// and amqps://, not for %s://", scheme)
	}
	switch t.kind {
	case "":
	case "queue":
		h.Kinds = conformance.Queue
	case "stream":
		h.Kinds = conformance.Stream
	case "both":
		h.Kinds = conformance.Both
	default:
		return h, fmt.Errorf("-kind %q: want queue, stream or both", t.kind)
	}
	return h, nil
}

// choose has h run the cases of these numbers and names alone. A name that no
// case has is an error, and so is a choice that leaves nothing to run.
func choose(h *conformance.Harness, only []string) error {
	kinds := conformance.Kind(0)
	for i, pattern := range only {
		only[i] = strings.TrimSpace(pattern)
		kind := conformance.Kind(0)
		for _, c := range conformance.Cases() {
			if strings.EqualFold(c.Name, only[i]) || strconv.Itoa(c.ID) == only[i] {
				kind |= c.Kind
			}
		}
		if kind == 0 {
			return fmt.Errorf("-only %q: no case has that number or name", only[i])
		}
		kinds |= kind
	}
	if kinds&h.Kinds == 0 {
		return fmt.Errorf("-only %s: the cases are for a %v, and here is only a %v", strings.Join(only, ","), kinds, h.Kinds)
	}
	h.Only, h.Kinds = only, kinds&h.Kinds
	return nil
}
