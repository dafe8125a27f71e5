package main

import (
	"context"
	"errors"
	"os"

	samqp "github.com/rabbitmq/rabbitmq-stream-go-client/pkg/amqp"
	"github.com/rabbitmq/rabbitmq-stream-go-client/pkg/stream"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/rabbitmq"
)

const rabbitStreamEnv = "BROKER_TEST_RABBITMQ_STREAM"

func rabbitStreamScenarios() []scenario {
	needs := []string{rabbitEnv, rabbitStreamEnv}
	flood := scenario{
		name:     "rabbitmq stream publish",
		what:     "One partition, every record confirmed. The raw client sends asynchronously and counts the confirms; the broker gets batches of 10,000.",
		messages: 500_000, needs: needs,
		contenders: []contender{
			{name: "raw stream client", open: flooding(rabbitStream, rawStream)},
			{name: "broker", open: flooding(rabbitStream, brokerStream)},
		},
		targets: []target{
			{of: "broker", over: "raw stream client", atLeast: 0.9},
			{of: "broker", over: "raw stream client", maxCPU: 1.15},
		},
	}
	begin, shared := share(filled(rabbitStream, brokerStream))
	read := scenario{
		name:     "rabbitmq stream consume",
		what:     "One partition, from the beginning; the broker in a group, which commits at the end.",
		messages: 1_000_000, needs: needs, begin: begin,
		contenders: []contender{
			{name: "raw stream client", open: reading(shared, rawStream)},
			{name: "broker", open: reading(shared, brokerStream)},
		},
		targets: []target{
			{of: "broker", over: "raw stream client", atLeast: 0.9},
			{of: "broker", over: "raw stream client", maxCPU: 1.15},
		},
	}
	return []scenario{
		flood, sized(flood, "1 KiB", 1<<10, 200_000), sized(flood, "64 KiB", 64<<10, 5000),
		read, sized(read, "1 KiB", 1<<10, 400_000), sized(read, "64 KiB", 64<<10, 5000),
	}
}

func openRabbitStreams(ctx context.Context) (*rabbitmq.Broker, error) {
	return rabbitmq.Open(ctx, &rabbitmq.Options{
		URLs: []string{os.Getenv(rabbitEnv)}, StreamURLs: []string{os.Getenv(rabbitStreamEnv)},
	})
}

func rabbitStream(ctx context.Context, _ int) (place, error) {
	b, err := openRabbitStreams(ctx)
	if err != nil {
		return place{}, err
	}
	name := "bench-" + broker.NewID()
	if err := b.DeclareStream(ctx, name, broker.StreamConfig{}); err != nil {
		return place{}, errors.Join(err, b.Close())
	}
	return streamPlace(b, b, name), nil
}

// A streamAdmin deletes streams.
type streamAdmin interface {
	DeleteStream(ctx context.Context, name string) error
}

// streamPlace is a stream that has been declared; to remove it closes b.
func streamPlace(b broker.Broker, admin streamAdmin, name string) place {
	return place{
		name: name, keeps: true,
		held: func(ctx context.Context) (int64, error) {
			s, err := b.Stream(ctx, name, nil)
			if err != nil {
				return 0, err
			}
			ps, err := s.Partitions(ctx)
			var held int64
			for _, p := range ps {
				first, _ := p.First.Int64()
				next, _ := p.Next.Int64()
				held += next - first
			}
			return held, errors.Join(err, s.Close())
		},
		remove: func(ctx context.Context) error { return errors.Join(admin.DeleteStream(ctx, name), b.Close()) },
	}
}

func rawStream(_ context.Context, p place) (rig, error) {
	env, err := stream.NewEnvironment(stream.NewEnvironmentOptions().SetUri(os.Getenv(rabbitStreamEnv)))
	if err != nil {
		return rig{}, err
	}
	only := p.name + "-0" // the partition
	producer, err := env.NewProducer(only, stream.NewProducerOptions().SetBatchSize(500))
	if err != nil {
		return rig{}, errors.Join(err, env.Close())
	}
	confirms := producer.NotifyPublishConfirmation()
	return rig{
		flood: func(_ context.Context, n int) error {
			stored := make(chan error, 1)
			go func() {
				acked := int64(0)
				for left := n; left > 0; {
					for _, c := range <-confirms {
						left--
						if c.IsConfirmed() {
							acked++
						}
					}
				}
				stored <- counted(acked, n)
			}()
			bodies := bodies()
			for i := range n {
				if err := producer.Send(samqp.NewMessage(bodies[i%len(bodies)])); err != nil {
					return err
				}
			}
			return <-stored
		},
		read: func(ctx context.Context, got func([]byte) bool) error {
			all, ended := make(chan struct{}), false
			c, err := env.NewConsumer(only, func(_ stream.ConsumerContext, m *samqp.Message) {
				if !ended && !got(m.GetData()) {
					ended = true
					close(all)
				}
			}, stream.NewConsumerOptions().SetOffset(stream.OffsetSpecification{}.First()))
			if err != nil {
				return err
			}
			select {
			case <-all:
			case <-ctx.Done():
			}
			return c.Close()
		},
		stop: env.Close,
	}, nil
}

func brokerStream(ctx context.Context, p place) (rig, error) {
	b, err := openRabbitStreams(ctx)
	if err != nil {
		return rig{}, err
	}
	s, err := b.Stream(ctx, p.name, nil)
	return rig{flood: floodStream(s, 10_000, 1, nil), read: readStream(s), stop: b.Close}, err
}
