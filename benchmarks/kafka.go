package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
	wkafka "github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/twmb/franz-go/pkg/kgo"
	"gocloud.dev/pubsub"
	"gocloud.dev/pubsub/kafkapubsub"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/kafka"
)

const (
	kafkaEnv        = "BROKER_TEST_KAFKA"
	kafkaPartitions = 6
	commitEvery     = 500_000               // records: more than a poll brings, so that all commit as often
	windowRecords   = 50_000                // of the Processor
	kgoLinger       = 10 * time.Millisecond // franz-go's default
)

func kafkaScenarios() []scenario {
	needs := []string{kafkaEnv}
	flood := scenario{
		name:     "kafka publish, 1 goroutine",
		what:     "acks=all, idempotent. The raw client pipelines Produce; the broker gets batches of 10,000 (16 MiB at most), five under way at once since the raw client buffers 50,000, or an AsyncAppender record by record, with the raw client's bound of 50,000 and its linger of 10 ms; the peers have a blocking call only. A call that its context may cut off (cancellable) copies what it sends, since its caller may then change it; the other calls, and those of the raw client, have contexts that do not end.",
		messages: 3_000_000, needs: needs,
		contenders: []contender{
			{name: "raw franz-go", open: flooding(kafkaTopic, rawKafka)},
			{name: "broker", open: flooding(kafkaTopic, brokerKafka)},
			{name: "broker, cancellable", open: flooding(kafkaTopic, cancellableKafka)},
			{name: "broker, async", open: flooding(kafkaTopic, asyncKafka(kgoLinger))},
			{name: "Watermill", open: flooding(kafkaTopic, watermillKafka), fraction: 0.002},
			{name: "Go CDK", open: flooding(kafkaTopic, cdkKafka), fraction: 0.002},
		},
		targets: []target{
			{of: "broker", over: "raw franz-go", atLeast: 0.95},
			{of: "broker", over: "raw franz-go", maxCPU: 1.15},
			{of: "broker, async", over: "raw franz-go", atLeast: 0.95},
			{of: "broker, async", over: "raw franz-go", maxCPU: 1.15},
		},
	}
	noLinger := scenario{
		name:     "kafka publish, 1 goroutine, no linger",
		what:     "As kafka publish, 1 goroutine, record by record, but without a linger, which is the broker's default: a batch is what has come while the server was busy, and whoever is slower to publish gets smaller ones.",
		messages: flood.messages, needs: needs,
		contenders: []contender{
			{name: "raw franz-go", open: flooding(kafkaTopic, rawKafkaWith(kgo.ProducerLinger(0)))},
			{name: "broker, async", open: flooding(kafkaTopic, asyncKafka(0))},
		},
		targets: flood.targets[2:], // of async
	}
	begin, shared := share(filled(kafkaTopic, rawKafka))
	read := scenario{
		name:     "kafka consume and commit",
		what:     "A group's only member joins, reads all, commits and leaves; each reads with what is fetched ahead.",
		messages: 6_000_000, needs: needs, begin: begin,
		contenders: []contender{
			{name: "raw franz-go", open: reading(shared, rawKafka)},
			{name: "broker", open: reading(shared, brokerKafka)},
			{name: "Watermill", open: reading(shared, watermillKafka), fraction: 0.05},
			{name: "Go CDK", open: reading(shared, cdkKafka), fraction: 0.01},
		},
		targets: []target{
			{of: "broker", over: "raw franz-go", atLeast: 0.95},
			{of: "broker", over: "raw franz-go", maxCPU: 1.15},
			{of: "broker", over: "Watermill", atLeast: 5},
			{of: "broker", over: "Go CDK", atLeast: 5},
		},
	}
	fullQueue := filled(kafkaQueue, brokerShare)
	return []scenario{
		flood, sized(flood, "1 KiB", 1<<10, 1_200_000), sized(flood, "64 KiB", 64<<10, 30_000), noLinger,
		{
			name:     "kafka publish, 64 goroutines",
			what:     "A blocking call for each message from 64 goroutines.",
			messages: 150_000, needs: needs,
			contenders: []contender{
				{name: "raw franz-go, blocking", open: sending(kafkaTopic, rawKafka)},
				{name: "broker", open: sending(kafkaTopic, brokerKafka)},
				{name: "Watermill", open: sending(kafkaTopic, watermillKafka), fraction: 0.5},
				{name: "Go CDK", open: sending(kafkaTopic, cdkKafka), fraction: 0.5},
			},
			targets: []target{
				{of: "broker", over: "raw franz-go, blocking", atLeast: 0.95},
				{of: "broker", over: "raw franz-go, blocking", maxCPU: 1.15},
			},
		},
		read, sized(read, "1 KiB", 1<<10, 3_000_000), sized(read, "64 KiB", 64<<10, 45_000),
		{
			name:     "kafka processing with per-key order",
			what:     "A Processor with 8 lanes and a handler that does nothing, 5,000 keys, beside raw consumption; both join, commit and leave.",
			messages: 6_000_000, needs: needs, begin: begin,
			contenders: []contender{
				{name: "raw franz-go", open: reading(shared, rawKafka)},
				{name: "broker Processor", open: processing(shared, 8, 0)},
			},
			targets: []target{{of: "broker Processor", over: "raw franz-go", atLeast: 0.9}},
		},
		{
			name:     "kafka processing, a handler that waits 5 ms",
			what:     "A Processor with 1, 8 and 64 lanes, each for about a second; 5,000 keys.",
			messages: 12_800, needs: needs,
			contenders: []contender{
				{name: "1 lane", open: processing(filled(kafkaTopic, rawKafka), 1, 5*time.Millisecond), fraction: 1.0 / 64},
				{name: "8 lanes", open: processing(filled(kafkaTopic, rawKafka), 8, 5*time.Millisecond), fraction: 8.0 / 64},
				{name: "64 lanes", open: processing(filled(kafkaTopic, rawKafka), 64, 5*time.Millisecond)},
			},
			targets: []target{
				{of: "8 lanes", over: "1 lane", atLeast: 8 * 0.9},
				{of: "64 lanes", over: "1 lane", atLeast: 64 * 0.9},
			},
		},
		{
			name:     "kafka queue (share group), receive and ack",
			what:     "One consumer of a share group; each message acknowledged on its own.",
			messages: 50_000, needs: needs,
			contenders: []contender{
				{name: "kgo share group", open: reading(fullQueue, rawShare)},
				{name: "broker", open: reading(fullQueue, brokerShare)},
			},
			targets: []target{{of: "broker", over: "kgo share group", atLeast: 1}},
		},
		{
			name: "kafka stream, half load", what: halfLoadWhat, messages: 60_000, needs: needs,
			contenders: []contender{
				{name: "raw franz-go", open: halfLoad(kafkaTopic, rawKafka)},
				{name: "broker", open: halfLoad(kafkaTopic, brokerKafka)},
				{name: "Watermill", open: halfLoad(kafkaTopic, watermillKafka)},
				{name: "Go CDK", open: halfLoad(kafkaTopic, cdkKafka)},
			},
		},
	}
}

func kafkaAddrs() []string {
	return strings.Split(strings.TrimPrefix(os.Getenv(kafkaEnv), "kafka://"), ",")
}

func kafkaTopic(ctx context.Context, _ int) (place, error) {
	b, err := kafka.Open(ctx, &kafka.Options{Brokers: kafkaAddrs()})
	if err != nil {
		return place{}, err
	}
	name := "bench-" + broker.NewID()
	if err := b.DeclareStream(ctx, name, broker.StreamConfig{Partitions: kafkaPartitions}); err != nil {
		return place{}, errors.Join(err, b.Close())
	}
	return streamPlace(b, b, name), nil
}

// rawKafka is franz-go with its defaults; see rawKafkaWith.
func rawKafka(ctx context.Context, p place) (rig, error) { return rawKafkaWith()(ctx, p) }

// rawKafkaWith keys what it floods with 5,000 keys, and uses a client for each
// of the three ways to work, as one has to; flooding has options.
func rawKafkaWith(flooding ...kgo.Opt) func(context.Context, place) (rig, error) {
	return func(_ context.Context, p place) (rig, error) { return openRawKafka(p, flooding) }
}

func openRawKafka(p place, flooding []kgo.Opt) (rig, error) {
	client := func(opts ...kgo.Opt) (*kgo.Client, error) {
		return kgo.NewClient(append(opts, kgo.SeedBrokers(kafkaAddrs()...), kgo.DefaultProduceTopic(p.name))...)
	}
	many, err := client(append(flooding, kgo.MaxBufferedRecords(50_000))...)
	if err != nil {
		return rig{}, err
	}
	single, err := client(kgo.ProducerLinger(0))
	if err != nil {
		return rig{}, err
	}
	keys := benchKeys()
	return rig{
		send: func(ctx context.Context, body []byte) error {
			return single.ProduceSync(ctx, &kgo.Record{Value: body}).FirstErr()
		},
		flood: unending(func(ctx context.Context, n int) error {
			bodies := bodies()
			var acked atomic.Int64
			for i := range n {
				many.Produce(ctx, &kgo.Record{Key: keys[i%len(keys)], Value: bodies[i%len(bodies)]}, func(_ *kgo.Record, err error) {
					if err == nil {
						acked.Add(1)
					}
				})
			}
			return errors.Join(many.Flush(ctx), counted(acked.Load(), n))
		}),
		read: func(ctx context.Context, got func([]byte) bool) error {
			c, err := client(kgo.ConsumeTopics(p.name), kgo.ConsumerGroup("g-"+broker.NewID()),
				kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.DisableAutoCommit())
			if err != nil {
				return err
			}
			defer c.Close()
			since := 0
			for more := true; more; {
				fs := c.PollFetches(ctx) // all there is, so that the next fetch is under way meanwhile
				if err := fs.Err0(); err != nil {
					return unlessEnded(ctx, err)
				}
				fs.EachRecord(func(r *kgo.Record) {
					since++
					more = got(r.Value) && more
				})
				if since >= commitEvery || !more {
					if err := c.CommitUncommittedOffsets(ctx); err != nil {
						return err
					}
					since = 0
				}
			}
			return nil
		},
		stop: func() error {
			many.Close()
			single.Close()
			return nil
		},
	}, nil
}

func benchKeys() [][]byte {
	keys := make([][]byte, 5000)
	for i := range keys {
		keys[i] = fmt.Appendf(nil, "key-%d", i)
	}
	return keys
}

func brokerKafka(ctx context.Context, p place) (rig, error) {
	r, err := cancellableKafka(ctx, p)
	r.flood = unending(r.flood)
	return r, err
}

// cancellableKafka floods with calls whose context may end before their answers.
func cancellableKafka(ctx context.Context, p place) (rig, error) {
	b, err := kafka.Open(ctx, &kafka.Options{Brokers: kafkaAddrs()})
	if err != nil {
		return rig{}, err
	}
	s, err := b.Stream(ctx, p.name, nil)
	return rig{
		send: func(ctx context.Context, body []byte) error {
			_, err := s.Publish(ctx, broker.Record{Value: body})
			return err
		},
		flood: floodStream(s, 10_000, 5, benchKeys()), read: readStream(s), stop: b.Close,
	}, err
}

// unending floods with calls that no context cuts off.
func unending(flood func(context.Context, int) error) func(context.Context, int) error {
	return func(ctx context.Context, n int) error { return flood(context.WithoutCancel(ctx), n) }
}

// floodStream publishes batches, of up to 16 MiB, to a stream of the broker,
// some of them under way at once, with the keys if there are any.
func floodStream(s broker.Stream, batch, underWay int, keys [][]byte) func(context.Context, int) error {
	return func(ctx context.Context, n int) error {
		bodies := bodies()
		batch := max(1, min(batch, 16<<20/payloadSize))
		slots, errs := make(chan struct{}, underWay), make([]error, (n+batch-1)/batch)
		var batches sync.WaitGroup
		for k := range errs {
			rs := make([]broker.Record, min(batch, n-k*batch))
			for i := range rs {
				rs[i].Value = bodies[(k*batch+i)%len(bodies)]
				if keys != nil {
					rs[i].Key = keys[(k*batch+i)%len(keys)]
				}
			}
			slots <- struct{}{}
			batches.Go(func() {
				_, errs[k] = s.PublishBatch(ctx, rs)
				<-slots
			})
		}
		batches.Wait()
		return errors.Join(errs...)
	}
}

// readStream joins a group of its own, commits now and then, and leaves.
func readStream(s broker.Stream) func(context.Context, func([]byte) bool) error {
	return func(ctx context.Context, got func([]byte) bool) error {
		c, err := s.Consumer(ctx, "g-"+broker.NewID(), nil)
		if err != nil {
			return err
		}
		since := 0
		last := map[int32]*broker.Record{}
		for more := true; more; {
			rs, err := c.Receive(ctx, 5000)
			if err != nil {
				return errors.Join(unlessEnded(ctx, err), c.Close())
			}
			since += len(rs)
			for i, r := range rs {
				if i+1 == len(rs) || rs[i+1].Partition != r.Partition { // the last of a run
					last[r.Partition] = r
				}
				more = got(r.Value) && more
			}
			if since >= commitEvery || !more {
				var commit []*broker.Record
				for _, r := range last {
					commit = append(commit, r)
				}
				if err := c.Commit(ctx, commit...); err != nil {
					return errors.Join(err, c.Close())
				}
				since = 0
			}
		}
		return c.Close()
	}
}

// asyncKafka appends record by record.
func asyncKafka(linger time.Duration) func(context.Context, place) (rig, error) {
	return func(ctx context.Context, p place) (rig, error) { return openAsyncKafka(ctx, p, linger) }
}

func openAsyncKafka(ctx context.Context, p place, linger time.Duration) (rig, error) {
	b, err := kafka.Open(ctx, &kafka.Options{Brokers: kafkaAddrs(), Linger: linger})
	if err != nil {
		return rig{}, err
	}
	s, err := b.Stream(ctx, p.name, nil)
	keys := benchKeys()
	return rig{
		flood: unending(func(ctx context.Context, n int) error {
			a := broker.NewAsyncAppender(s, &broker.AsyncOptions{MaxQueued: 50_000})
			bodies := bodies()
			var acked atomic.Int64
			for i := range n {
				a.Publish(ctx, broker.Record{Key: keys[i%len(keys)], Value: bodies[i%len(bodies)]}, func(_ broker.Receipt, err error) {
					if err == nil {
						acked.Add(1)
					}
				})
			}
			return errors.Join(a.Close(ctx), counted(acked.Load(), n))
		}),
		stop: b.Close,
	}, err
}

// processing runs a Processor that commits as it goes, with a handler that waits.
func processing(at makePlace, lanes int, wait time.Duration) opener {
	return func(ctx context.Context, n int) (func() error, func() error, error) {
		p, err := at(ctx, n)
		if err != nil {
			return nil, nil, err
		}
		b, err := kafka.Open(ctx, &kafka.Options{Brokers: kafkaAddrs()})
		if err != nil {
			return nil, nil, err
		}
		s, err := b.Stream(ctx, p.name, nil)
		if err != nil {
			return nil, nil, errors.Join(err, b.Close())
		}
		return func() error {
			var got atomic.Int64
			p := &broker.Processor{
				Stream: s, Group: "g-" + broker.NewID(), Until: broker.Now(), MaxWindow: windowRecords,
				Concurrency: lanes,
				Handler: func(context.Context, *broker.Record) error {
					if wait > 0 {
						<-time.After(wait)
					}
					got.Add(1)
					return nil
				},
			}
			return errors.Join(p.Run(ctx), counted(got.Load(), n))
		}, func() error { return errors.Join(b.Close(), p.remove(ctx)) }, nil
	}
}

func watermillKafka(_ context.Context, p place) (rig, error) {
	cfg := wkafka.DefaultSaramaSyncPublisherConfig()
	cfg.Producer.RequiredAcks = sarama.WaitForAll
	pub, err := wkafka.NewPublisher(wkafka.PublisherConfig{
		Brokers: kafkaAddrs(), Marshaler: wkafka.DefaultMarshaler{}, OverwriteSaramaConfig: cfg,
	}, watermill.NopLogger{})
	if err != nil {
		return rig{}, err
	}
	rcfg := wkafka.DefaultSaramaSubscriberConfig()
	rcfg.Consumer.Offsets.Initial = sarama.OffsetOldest
	sub, err := wkafka.NewSubscriber(wkafka.SubscriberConfig{
		Brokers: kafkaAddrs(), Unmarshaler: wkafka.DefaultMarshaler{}, ConsumerGroup: "g-" + broker.NewID(), OverwriteSaramaConfig: rcfg,
	}, watermill.NopLogger{})
	if err != nil {
		return rig{}, errors.Join(err, pub.Close())
	}
	return rig{
		send: watermillSend(pub, p.name), read: watermillRead(sub, p.name),
		stop: func() error { return errors.Join(pub.Close(), sub.Close()) },
	}, nil
}

func cdkKafka(_ context.Context, p place) (rig, error) {
	cfg := kafkapubsub.MinimalConfig()
	cfg.Producer.RequiredAcks = sarama.WaitForAll
	cfg.Consumer.Offsets.Initial = sarama.OffsetOldest
	t, err := kafkapubsub.OpenTopic(kafkaAddrs(), cfg, p.name, nil)
	if err != nil {
		return rig{}, err
	}
	return cdkRig(t, func() (*pubsub.Subscription, error) {
		return kafkapubsub.OpenSubscription(kafkaAddrs(), cfg, "g-"+broker.NewID(), []string{p.name}, nil)
	}), nil
}

// kafkaQueue is a queue as the broker declares it.
func kafkaQueue(ctx context.Context, _ int) (place, error) {
	b, err := kafka.Open(ctx, &kafka.Options{Brokers: kafkaAddrs()})
	if err != nil {
		return place{}, err
	}
	name := "bench-" + broker.NewID()
	if _, err := broker.DeclareQueue(ctx, b, name, broker.QueueConfig{}); err != nil {
		return place{}, errors.Join(err, b.Close())
	}
	return place{name: name, remove: func(ctx context.Context) error { return errors.Join(b.DeleteQueue(ctx, name), b.Close()) }}, nil
}

func rawShare(_ context.Context, p place) (rig, error) {
	var cl *kgo.Client
	return rig{
		read: func(ctx context.Context, got func([]byte) bool) (err error) {
			cl, err = kgo.NewClient(kgo.SeedBrokers(kafkaAddrs()...), kgo.ConsumeTopics(p.name), kgo.ShareGroup("queue-"+p.name))
			if err != nil {
				return err
			}
			for more := true; more; {
				fs := cl.PollRecords(ctx, 500)
				if err := fs.Err0(); err != nil {
					return unlessEnded(ctx, err)
				}
				fs.EachRecord(func(r *kgo.Record) {
					r.Ack(kgo.AckAccept)
					more = got(r.Value) && more
				})
			}
			return cl.FlushAcks(ctx)
		},
		stop: func() error {
			cl.Close()
			return nil
		},
	}, nil
}

func brokerShare(ctx context.Context, p place) (rig, error) {
	b, err := kafka.Open(ctx, &kafka.Options{Brokers: kafkaAddrs()})
	if err != nil {
		return rig{}, err
	}
	q, err := b.Queue(ctx, p.name, nil)
	return rig{send: sendTo(q), flood: floodTo(q, chunk), read: readFrom(q), stop: b.Close}, err
}
