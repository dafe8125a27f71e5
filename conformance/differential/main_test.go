// Package differential runs one random program against a real broker and
// against the embedded broker with the profile of it, and compares what both
// say of themselves and what they do. It needs both adapters, which know
// nothing of each other, and so stands apart from them.
package differential

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/kafka"
	"github.com/queuestream/broker/adapters/memory"
	"github.com/queuestream/broker/adapters/rabbitmq"
	"github.com/queuestream/broker/adapters/sqs"
	"github.com/queuestream/broker/conformance/containers"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A pair is a real broker and the profile that imitates it.
type pair struct {
	name    string
	profile memory.Profile
	suffix  string             // of every queue's name
	cfg     broker.QueueConfig // of the queue that programs run on
	open    func(t *testing.T) broker.Broker

	// Known differences: what the broker does and the profile does not. Programs
	// leave room for them, and attempts must rise instead of being exact.
	countsMore string // why an attempt may be counted that nobody saw
	// Why a message that is published with a delay does not hold up the rest of
	// its group until it is due, in the broker and the profile alike. When it
	// takes its place then depends on when it is sent.
	joinsWhenDue string
	noStreams    bool
	seeksStore   string // why a seek shows in what is stored before the next commit
}

var pairs = []pair{
	{name: "SQS standard queue", profile: memory.SQSStandard, open: openSQS, noStreams: true},
	{name: "SQS FIFO queue", profile: memory.SQSFIFO, suffix: ".fifo", cfg: broker.QueueConfig{Ordered: true}, open: openSQS,
		countsMore: "what the adapter holds back behind an open delivery of its group was received, and counts"},
	{name: "RabbitMQ quorum queue", profile: memory.RabbitMQQuorum, open: openRabbitMQ,
		countsMore: "RabbitMQ 4.0 now and then counts one more than was delivered, after a nack without a delay that follows one with a delay",
		seeksStore: "the partition may move to another member meanwhile, which resumes there"},
	{name: "RabbitMQ ordered queue", profile: memory.RabbitMQQuorum, cfg: broker.QueueConfig{Ordered: true, Shards: 2}, open: openRabbitMQ,
		countsMore:   "the capability Attempts is not claimed",
		joinsWhenDue: "it waits in a delay queue, and is in no group meanwhile: only redeliveries hold up their successors"},
	{name: "Kafka topic", profile: memory.KafkaTopic, open: openKafka},
}

// maxAttempts is the limit of the pair's queues: where attempts are counted
// that nobody sees, one that programs do not come near.
func (p *pair) maxAttempts() int {
	if p.countsMore != "" {
		return 100
	}
	return maxAttempts
}

// newName makes a name that nobody has used.
func (p *pair) newName(kind string) string {
	return "differs-" + kind + "-" + strings.ReplaceAll(broker.NewID(), "-", "")[12:] + p.suffix
}

func openMemory(ctx context.Context, t *testing.T, profile memory.Profile, seed uint64) *memory.Broker {
	t.Helper()
	b, err := memory.Open(ctx, &memory.Options{Profile: profile, Seed: seed})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func openSQS(t *testing.T) broker.Broker {
	in := containers.NeedSQS(t)
	b, err := sqs.Open(t.Context(), &sqs.Options{
		Region: "us-east-1", Endpoint: in.URL, Credentials: credentials.NewStaticCredentialsProvider("test", "test", ""),
		PollWait: time.Second, Logger: slog.New(slog.DiscardHandler),
	})
	return opened(t, b, err)
}

func openRabbitMQ(t *testing.T) broker.Broker {
	in := containers.NeedRabbitMQ(t)
	o := rabbitmq.Options{URLs: []string{in.URL}, Management: in.ManagementURL}
	if in.StreamURL != "" {
		o.StreamURLs = []string{in.StreamURL}
	}
	b, err := rabbitmq.Open(t.Context(), &o)
	return opened(t, b, err)
}

func openKafka(t *testing.T) broker.Broker {
	in := containers.NeedKafka(t)
	b, err := kafka.Open(t.Context(), &kafka.Options{Brokers: in.Addrs})
	return opened(t, b, err)
}

func opened(t *testing.T, b broker.Broker, err error) broker.Broker {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return b
}

// declared makes a queue with a dead-letter queue, both gone after the test.
func (p *pair) declared(ctx context.Context, t *testing.T, b broker.Broker, cfg broker.QueueConfig, queue, dead string) broker.Queue {
	t.Helper()
	admin := b.(broker.Admin)
	deadCfg := broker.QueueConfig{Ordered: cfg.Ordered && p.suffix != ""}
	if err := admin.DeclareQueue(ctx, dead, deadCfg); err != nil {
		t.Fatalf("declare the dead-letter queue: %v", err)
	}
	cfg.DeadLetter, cfg.MaxAttempts = dead, p.maxAttempts()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		for _, name := range []string{queue, dead} {
			if err := admin.DeleteQueue(ctx, name); err != nil {
				t.Errorf("delete %s: %v", name, err)
			}
		}
	})
	if err := admin.DeclareQueue(ctx, queue, cfg); err != nil {
		t.Fatalf("declare the queue: %v", err)
	}
	q, err := b.Queue(ctx, queue, nil)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

const maxAttempts = 3 // where they are exact
