package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	samqp "github.com/rabbitmq/rabbitmq-stream-go-client/pkg/amqp"
	"github.com/rabbitmq/rabbitmq-stream-go-client/pkg/stream"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/rabbitmq"
)

const rabbitStreamEnv = "BROKER_TEST_RABBITMQ_STREAM"

func rabbitStreamScenarios() []scenario {
	return []scenario{
		{
			name:     "rabbitmq stream publish",
			what:     "One partition, every record confirmed. The raw client sends asynchronously and counts the confirms; the broker gets batches of 10,000.",
			messages: 500_000, needs: rabbitStreamEnv,
			contenders: []contender{
				{name: "raw stream client", open: onRabbitStream(rawStreamPublish)},
				{name: "broker", open: onRabbitStream(brokerStreamPublish)},
			},
			targets: []target{
				{of: "broker", over: "raw stream client", atLeast: 0.9},
				{of: "broker", over: "raw stream client", maxCPU: 1.15},
			},
		},
		{
			name:     "rabbitmq stream consume",
			what:     "One partition, from the beginning; the broker in a group, which commits at the end.",
			messages: 500_000, needs: rabbitStreamEnv,
			contenders: []contender{
				{name: "raw stream client", open: onFilledRabbitStream(rawStreamConsume)},
				{name: "broker", open: onFilledRabbitStream(brokerStreamConsume)},
			},
			targets: []target{
				{of: "broker", over: "raw stream client", atLeast: 0.9},
				{of: "broker", over: "raw stream client", maxCPU: 1.15},
			},
		},
	}
}

func openRabbitStreams(ctx context.Context) (*rabbitmq.Broker, error) {
	return rabbitmq.Open(ctx, &rabbitmq.Options{
		URLs: []string{os.Getenv(rabbitEnv)}, StreamURLs: []string{os.Getenv(rabbitStreamEnv)},
	})
}

func onRabbitStream(run rabbitRun) opener {
	return func(ctx context.Context, n int) (func() error, func() error, error) {
		b, err := openRabbitStreams(ctx)
		if err != nil {
			return nil, nil, err
		}
		name := "bench-" + broker.NewID()
		if err := b.DeclareStream(ctx, name, broker.StreamConfig{}); err != nil {
			return nil, nil, err
		}
		work, done, err := run(ctx, name, n)
		if err != nil {
			return nil, nil, err
		}
		return work, func() error { return errors.Join(done(), b.DeleteStream(ctx, name), b.Close()) }, nil
	}
}

func onFilledRabbitStream(run rabbitRun) opener {
	return onRabbitStream(func(ctx context.Context, name string, n int) (func() error, func() error, error) {
		fill, done, err := brokerStreamPublish(ctx, name, n)
		if err != nil {
			return nil, nil, err
		}
		if err := errors.Join(fill(), done()); err != nil {
			return nil, nil, err
		}
		return run(ctx, name, n)
	})
}

func rawEnvironment() (*stream.Environment, error) {
	return stream.NewEnvironment(stream.NewEnvironmentOptions().SetUri(os.Getenv(rabbitStreamEnv)))
}

func rawStreamPublish(_ context.Context, name string, n int) (func() error, func() error, error) {
	env, err := rawEnvironment()
	if err != nil {
		return nil, nil, err
	}
	p, err := env.NewProducer(name+"-0", stream.NewProducerOptions().SetBatchSize(500))
	if err != nil {
		return nil, nil, err
	}
	confirms := p.NotifyPublishConfirmation()
	body := payload()
	return func() error {
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
		for range n {
			if err := p.Send(samqp.NewMessage(body)); err != nil {
				return err
			}
		}
		return <-stored
	}, env.Close, nil
}

func openRabbitStream(ctx context.Context, name string) (*rabbitmq.Broker, broker.Stream, error) {
	b, err := openRabbitStreams(ctx)
	if err != nil {
		return nil, nil, err
	}
	s, err := b.Stream(ctx, name, nil)
	return b, s, err
}

func brokerStreamPublish(ctx context.Context, name string, n int) (func() error, func() error, error) {
	b, s, err := openRabbitStream(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	body := payload()
	const batch = 10_000
	return func() error {
		for left := n; left > 0; left -= batch {
			rs := make([]broker.Record, min(batch, left))
			for i := range rs {
				rs[i].Value = body
			}
			if _, err := s.PublishBatch(ctx, rs); err != nil {
				return err
			}
		}
		return nil
	}, b.Close, nil
}

func rawStreamConsume(ctx context.Context, name string, n int) (func() error, func() error, error) {
	env, err := rawEnvironment()
	if err != nil {
		return nil, nil, err
	}
	return func() error {
		all := make(chan struct{})
		got, size := 0, 0
		_, err := env.NewConsumer(name+"-0", func(_ stream.ConsumerContext, m *samqp.Message) {
			size += len(m.GetData())
			if got++; got == n {
				close(all)
			}
		}, stream.NewConsumerOptions().SetOffset(stream.OffsetSpecification{}.First()))
		if err != nil {
			return err
		}
		select {
		case <-all:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}, env.Close, nil
}

func brokerStreamConsume(ctx context.Context, name string, n int) (func() error, func() error, error) {
	b, s, err := openRabbitStream(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	return func() error {
		c, err := s.Consumer(ctx, "bench", nil)
		if err != nil {
			return err
		}
		size := 0
		for got := 0; got < n; {
			rs, err := c.Receive(ctx, chunk)
			if err != nil {
				return err
			}
			for _, r := range rs {
				size += len(r.Value)
			}
			if got += len(rs); got == n {
				if err := c.Commit(ctx, rs...); err != nil {
					return err
				}
			}
		}
		if size != n*payloadSize {
			return fmt.Errorf("%d bytes of %d records", size, n)
		}
		return c.Close()
	}, b.Close, nil
}
