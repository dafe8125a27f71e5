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
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kgo"
	"gocloud.dev/pubsub"
	"gocloud.dev/pubsub/kafkapubsub"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/kafka"
)

const (
	kafkaEnv        = "BROKER_TEST_KAFKA"
	kafkaPartitions = 6
	chunk           = 1000
	goroutines      = 64
)

func kafkaScenarios() []scenario {
	return []scenario{
		{
			name:     "kafka publish, 1 goroutine",
			what:     "acks=all, idempotent. The raw client pipelines Produce; the broker gets batches of 1,000; the peers have a blocking call only.",
			messages: 300_000, needs: kafkaEnv,
			contenders: []contender{
				{name: "raw franz-go", open: onTopic(rawProduce)},
				{name: "broker", open: onTopic(brokerPublishBatch)},
				{name: "Watermill", open: onTopic(watermillPublish(1)), fraction: 0.02},
				{name: "Go CDK", open: onTopic(cdkPublish(1)), fraction: 0.02},
			},
			targets: []target{{of: "broker", over: "raw franz-go", atLeast: 0.95}, {of: "broker", over: "raw franz-go", maxCPU: 1.15}},
		},
		{
			name:     "kafka publish, 64 goroutines",
			what:     "A blocking call for each message from 64 goroutines.",
			messages: 100_000, needs: kafkaEnv,
			contenders: []contender{
				{name: "raw franz-go, blocking", open: onTopic(rawProduceSync)},
				{name: "broker", open: onTopic(brokerPublish(goroutines))},
				{name: "Watermill", open: onTopic(watermillPublish(goroutines)), fraction: 0.5},
				{name: "Go CDK", open: onTopic(cdkPublish(goroutines)), fraction: 0.5},
			},
			targets: []target{{of: "broker", over: "raw franz-go, blocking", atLeast: 0.95}},
		},
		{
			name:     "kafka consume and commit",
			what:     "A group's only member reads all and commits.",
			messages: 600_000, needs: kafkaEnv,
			contenders: []contender{
				{name: "raw franz-go", open: onFilledTopic(rawConsume)},
				{name: "broker", open: onFilledTopic(brokerConsume)},
				{name: "Watermill", open: onFilledTopic(watermillConsume), fraction: 0.3},
				{name: "Go CDK", open: onFilledTopic(cdkConsume), fraction: 0.05},
			},
			targets: []target{
				{of: "broker", over: "raw franz-go", atLeast: 0.95},
				{of: "broker", over: "Watermill", atLeast: 5},
				{of: "broker", over: "Go CDK", atLeast: 5},
			},
		},
		{
			name:     "kafka processing with per-key order",
			what:     "A Processor with 8 lanes and a handler that does nothing, 5,000 keys, beside raw consumption.",
			messages: 600_000, needs: kafkaEnv,
			contenders: []contender{
				{name: "raw franz-go", open: onFilledTopic(rawConsume)},
				{name: "broker Processor", open: onFilledTopic(brokerProcess)},
			},
			targets: []target{{of: "broker Processor", over: "raw franz-go", atLeast: 0.9}},
		},
		{
			name:     "kafka queue (share group), receive and ack",
			what:     "One consumer of a share group; each message acknowledged on its own.",
			messages: 50_000, needs: kafkaEnv,
			contenders: []contender{
				{name: "kgo share group", open: onFilledQueue(rawShare)},
				{name: "broker", open: onFilledQueue(brokerShare)},
			},
			targets: []target{{of: "broker", over: "kgo share group", atLeast: 1}},
		},
	}
}

func kafkaAddrs() []string {
	return strings.Split(strings.TrimPrefix(os.Getenv(kafkaEnv), "kafka://"), ",")
}

// A topicRun does the work on a topic of its own; n messages are published or
// waiting.
type topicRun func(ctx context.Context, topic string, n int) (work func() error, done func() error, err error)

// onTopic gives each run a fresh topic, deleted afterwards.
func onTopic(run topicRun) opener {
	return func(ctx context.Context, n int) (func() error, func() error, error) {
		b, err := kafka.Open(ctx, &kafka.Options{Brokers: kafkaAddrs()})
		if err != nil {
			return nil, nil, err
		}
		topic := "bench-" + broker.NewID()
		if err := b.DeclareStream(ctx, topic, broker.StreamConfig{Partitions: kafkaPartitions}); err != nil {
			return nil, nil, err
		}
		work, done, err := run(ctx, topic, n)
		if err != nil {
			return nil, nil, err
		}
		return work, func() error {
			return errors.Join(done(), b.DeleteStream(ctx, topic), b.Close())
		}, nil
	}
}

// onFilledTopic puts n messages of 5,000 keys there first.
func onFilledTopic(run topicRun) opener {
	return onTopic(func(ctx context.Context, topic string, n int) (func() error, func() error, error) {
		if err := fillTopic(ctx, topic, n); err != nil {
			return nil, nil, err
		}
		return run(ctx, topic, n)
	})
}

func fillTopic(ctx context.Context, topic string, n int) error {
	cl, err := kgo.NewClient(kgo.SeedBrokers(kafkaAddrs()...), kgo.DefaultProduceTopic(topic), kgo.MaxBufferedRecords(100_000))
	if err != nil {
		return err
	}
	defer cl.Close()
	var failed atomic.Pointer[error]
	keys := make([][]byte, 5000)
	for i := range keys {
		keys[i] = fmt.Appendf(nil, "key-%d", i)
	}
	for i := range n {
		cl.Produce(ctx, &kgo.Record{Key: keys[i%len(keys)], Value: payload()}, func(_ *kgo.Record, err error) {
			if err != nil {
				failed.Store(&err)
			}
		})
	}
	if err := cl.Flush(ctx); err != nil {
		return err
	}
	if err := failed.Load(); err != nil {
		return *err
	}
	return nil
}

func rawProduce(_ context.Context, topic string, n int) (func() error, func() error, error) {
	cl, err := kgo.NewClient(kgo.SeedBrokers(kafkaAddrs()...), kgo.DefaultProduceTopic(topic), kgo.MaxBufferedRecords(50_000))
	if err != nil {
		return nil, nil, err
	}
	body := payload()
	return func() error {
		var acked atomic.Int64
		for range n {
			cl.Produce(context.Background(), &kgo.Record{Value: body}, func(_ *kgo.Record, err error) {
				if err == nil {
					acked.Add(1)
				}
			})
		}
		if err := cl.Flush(context.Background()); err != nil {
			return err
		}
		return counted(acked.Load(), n)
	}, func() error { cl.Close(); return nil }, nil
}

func counted(got int64, n int) error {
	if got != int64(n) {
		return fmt.Errorf("%d of %d went through", got, n)
	}
	return nil
}

func rawProduceSync(ctx context.Context, topic string, n int) (func() error, func() error, error) {
	cl, err := kgo.NewClient(kgo.SeedBrokers(kafkaAddrs()...), kgo.DefaultProduceTopic(topic), kgo.ProducerLinger(0))
	if err != nil {
		return nil, nil, err
	}
	body := payload()
	return func() error {
		return parallel(goroutines, n, func() error {
			return cl.ProduceSync(ctx, &kgo.Record{Value: body}).FirstErr()
		})
	}, func() error { cl.Close(); return nil }, nil
}

// parallel calls f n times from several goroutines.
func parallel(goroutines, n int, f func() error) error {
	var left atomic.Int64
	left.Store(int64(n))
	errs := make(chan error, goroutines)
	var wg sync.WaitGroup
	for range goroutines {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				if err := f(); err != nil {
					errs <- err
					return
				}
			}
			errs <- nil
		})
	}
	wg.Wait()
	close(errs)
	var all error
	for err := range errs {
		all = errors.Join(all, err)
	}
	return all
}

func openStream(ctx context.Context, topic string) (*kafka.Broker, broker.Stream, error) {
	b, err := kafka.Open(ctx, &kafka.Options{Brokers: kafkaAddrs()})
	if err != nil {
		return nil, nil, err
	}
	s, err := b.Stream(ctx, topic, nil)
	return b, s, err
}

func brokerPublishBatch(ctx context.Context, topic string, n int) (func() error, func() error, error) {
	b, s, err := openStream(ctx, topic)
	if err != nil {
		return nil, nil, err
	}
	body := payload()
	return func() error {
		// Two batches are under way at once, as a pipelining program has it.
		errs, slots := make(chan error, n/chunk+2), make(chan struct{}, 8)
		batches := 0
		for left := n; left > 0; left -= chunk {
			rs := make([]broker.Record, min(chunk, left))
			for i := range rs {
				rs[i].Value = body
			}
			slots <- struct{}{}
			batches++
			go func() {
				receipts, err := s.PublishBatch(ctx, rs)
				if err == nil {
					err = counted(int64(len(receipts)), len(rs))
				}
				errs <- err
				<-slots
			}()
		}
		for range batches {
			if err := <-errs; err != nil {
				return err
			}
		}
		return nil
	}, b.Close, nil
}

func brokerPublish(goroutines int) topicRun {
	return func(ctx context.Context, topic string, n int) (func() error, func() error, error) {
		b, s, err := openStream(ctx, topic)
		if err != nil {
			return nil, nil, err
		}
		body := payload()
		return func() error {
			return parallel(goroutines, n, func() error {
				_, err := s.Publish(ctx, broker.Record{Value: body})
				return err
			})
		}, b.Close, nil
	}
}

func watermillPublish(goroutines int) topicRun {
	return func(_ context.Context, topic string, n int) (func() error, func() error, error) {
		cfg := wkafka.DefaultSaramaSyncPublisherConfig()
		cfg.Producer.RequiredAcks = sarama.WaitForAll
		p, err := wkafka.NewPublisher(wkafka.PublisherConfig{
			Brokers: kafkaAddrs(), Marshaler: wkafka.DefaultMarshaler{}, OverwriteSaramaConfig: cfg,
		}, watermill.NopLogger{})
		if err != nil {
			return nil, nil, err
		}
		body := payload()
		return func() error {
			return parallel(goroutines, n, func() error {
				return p.Publish(topic, message.NewMessage(watermill.NewUUID(), body))
			})
		}, p.Close, nil
	}
}

func cdkPublish(goroutines int) topicRun {
	return func(ctx context.Context, topic string, n int) (func() error, func() error, error) {
		cfg := kafkapubsub.MinimalConfig()
		cfg.Producer.RequiredAcks = sarama.WaitForAll
		t, err := kafkapubsub.OpenTopic(kafkaAddrs(), cfg, topic, nil)
		if err != nil {
			return nil, nil, err
		}
		return cdkSend(ctx, t, goroutines, n)
	}
}

func cdkSend(ctx context.Context, t *pubsub.Topic, goroutines, n int) (func() error, func() error, error) {
	body := payload()
	return func() error {
		return parallel(goroutines, n, func() error { return t.Send(ctx, &pubsub.Message{Body: body}) })
	}, func() error { return t.Shutdown(ctx) }, nil
}

func rawConsume(ctx context.Context, topic string, n int) (func() error, func() error, error) {
	cl, err := kgo.NewClient(kgo.SeedBrokers(kafkaAddrs()...), kgo.ConsumeTopics(topic), kgo.ConsumerGroup("g-"+topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.DisableAutoCommit())
	if err != nil {
		return nil, nil, err
	}
	return func() error {
		got, since := 0, 0
		var last []*kgo.Record
		for got < n {
			fs := cl.PollRecords(ctx, 5000)
			if err := fs.Err0(); err != nil {
				return err
			}
			fs.EachPartition(func(p kgo.FetchTopicPartition) {
				got += len(p.Records)
				since += len(p.Records)
				if k := len(p.Records); k > 0 {
					last = append(last, p.Records[k-1])
				}
			})
			if since >= 50_000 || got >= n {
				if err := cl.CommitRecords(ctx, last...); err != nil {
					return err
				}
				last, since = last[:0], 0
			}
		}
		return counted(int64(got), n)
	}, func() error { cl.Close(); return nil }, nil
}

func brokerConsume(ctx context.Context, topic string, n int) (func() error, func() error, error) {
	b, s, err := openStream(ctx, topic)
	if err != nil {
		return nil, nil, err
	}
	c, err := s.Consumer(ctx, "g-"+topic, nil)
	if err != nil {
		return nil, nil, err
	}
	return func() error {
		got, since := 0, 0
		last := map[int32]*broker.Record{}
		for got < n {
			rs, err := c.Receive(ctx, 5000)
			if err != nil {
				return err
			}
			got += len(rs)
			since += len(rs)
			for _, r := range rs {
				last[r.Partition] = r
			}
			if since >= 50_000 || got >= n {
				var commit []*broker.Record
				for _, r := range last {
					commit = append(commit, r)
				}
				if err := c.Commit(ctx, commit...); err != nil {
					return err
				}
				since = 0
			}
		}
		return counted(int64(got), n)
	}, func() error { return errors.Join(c.Close(), b.Close()) }, nil
}

func brokerProcess(ctx context.Context, topic string, n int) (func() error, func() error, error) {
	b, s, err := openStream(ctx, topic)
	if err != nil {
		return nil, nil, err
	}
	return func() error {
		var got atomic.Int64
		p := &broker.Processor{
			Stream: s, Group: "g-" + topic, Until: broker.Now(), MaxWindow: 50_000,
			Handler: func(context.Context, *broker.Record) error { got.Add(1); return nil },
		}
		if err := p.Run(ctx); err != nil {
			return err
		}
		return counted(got.Load(), n)
	}, b.Close, nil
}

func watermillConsume(ctx context.Context, topic string, n int) (func() error, func() error, error) {
	cfg := wkafka.DefaultSaramaSubscriberConfig()
	cfg.Consumer.Offsets.Initial = sarama.OffsetOldest
	sub, err := wkafka.NewSubscriber(wkafka.SubscriberConfig{
		Brokers: kafkaAddrs(), Unmarshaler: wkafka.DefaultMarshaler{}, ConsumerGroup: "g-" + topic, OverwriteSaramaConfig: cfg,
	}, watermill.NopLogger{})
	if err != nil {
		return nil, nil, err
	}
	return func() error {
		in, err := sub.Subscribe(ctx, topic)
		if err != nil {
			return err
		}
		for range n {
			select {
			case m := <-in:
				m.Ack()
			case <-time.After(time.Minute):
				return errors.New("nothing for a minute")
			}
		}
		return nil
	}, sub.Close, nil
}

func cdkConsume(ctx context.Context, topic string, n int) (func() error, func() error, error) {
	cfg := kafkapubsub.MinimalConfig()
	cfg.Consumer.Offsets.Initial = sarama.OffsetOldest
	sub, err := kafkapubsub.OpenSubscription(kafkaAddrs(), cfg, "g-"+topic, []string{topic}, nil)
	if err != nil {
		return nil, nil, err
	}
	return cdkReceive(ctx, sub, n)
}

func cdkReceive(ctx context.Context, sub *pubsub.Subscription, n int) (func() error, func() error, error) {
	return func() error {
			for range n {
				m, err := sub.Receive(ctx)
				if err != nil {
					return err
				}
				m.Ack()
			}
			return nil
		}, func() error {
			stop, cancel := context.WithTimeout(ctx, 30*time.Second)
			defer cancel()
			return sub.Shutdown(stop)
		}, nil
}

// onFilledQueue declares a queue with n messages of the broker's own.
func onFilledQueue(run topicRun) opener {
	return func(ctx context.Context, n int) (func() error, func() error, error) {
		b, err := kafka.Open(ctx, &kafka.Options{Brokers: kafkaAddrs()})
		if err != nil {
			return nil, nil, err
		}
		topic := "bench-" + broker.NewID()
		q, err := broker.DeclareQueue(ctx, b, topic, broker.QueueConfig{})
		if err != nil {
			return nil, nil, err
		}
		body := payload()
		for left := n; left > 0; left -= chunk {
			ms := make([]broker.Message, min(chunk, left))
			for i := range ms {
				ms[i].Body = body
			}
			if _, err := q.PublishBatch(ctx, ms); err != nil {
				return nil, nil, err
			}
		}
		work, done, err := run(ctx, topic, n)
		if err != nil {
			return nil, nil, err
		}
		return work, func() error { return errors.Join(done(), b.DeleteQueue(ctx, topic), b.Close()) }, nil
	}
}

func rawShare(ctx context.Context, topic string, n int) (func() error, func() error, error) {
	cl, err := kgo.NewClient(kgo.SeedBrokers(kafkaAddrs()...), kgo.ConsumeTopics(topic), kgo.ShareGroup("queue-"+topic))
	if err != nil {
		return nil, nil, err
	}
	return func() error {
		for got := 0; got < n; {
			fs := cl.PollRecords(ctx, 500)
			if err := fs.Err0(); err != nil {
				return err
			}
			fs.EachRecord(func(r *kgo.Record) {
				r.Ack(kgo.AckAccept)
				got++
			})
		}
		return cl.FlushAcks(ctx)
	}, func() error { cl.Close(); return nil }, nil
}

func brokerShare(ctx context.Context, topic string, n int) (func() error, func() error, error) {
	b, err := kafka.Open(ctx, &kafka.Options{Brokers: kafkaAddrs()})
	if err != nil {
		return nil, nil, err
	}
	q, err := b.Queue(ctx, topic, nil)
	if err != nil {
		return nil, nil, err
	}
	return queueConsume(ctx, q, n, b.Close)
}

// queueConsume receives and acknowledges n messages, many at a time.
func queueConsume(ctx context.Context, q broker.Queue, n int, closeAll func() error) (func() error, func() error, error) {
	c, err := q.Consumer(ctx, &broker.ConsumerOptions{Prefetch: 1000})
	if err != nil {
		return nil, nil, err
	}
	return func() error {
		for got := 0; got < n; {
			ds, err := c.Receive(ctx, 500)
			if err != nil {
				return err
			}
			if err := broker.AckAll(ctx, ds...); err != nil {
				return err
			}
			got += len(ds)
		}
		return nil
	}, func() error { return errors.Join(c.Close(), closeAll()) }, nil
}
