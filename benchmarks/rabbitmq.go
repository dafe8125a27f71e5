package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	wamqp "github.com/ThreeDotsLabs/watermill-amqp/v3/pkg/amqp"
	"github.com/ThreeDotsLabs/watermill/message"
	amqp "github.com/rabbitmq/amqp091-go"
	"gocloud.dev/pubsub/rabbitpubsub"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/rabbitmq"
)

const rabbitEnv = "BROKER_TEST_RABBITMQ"

func rabbitScenarios() []scenario {
	return []scenario{
		{
			name:     "rabbitmq confirmed publish, 1 goroutine",
			what:     "Quorum queue, persistent, mandatory, confirmed. The raw client pipelines 1,000 confirms; the broker gets batches of 1,000; the peers have a blocking call only.",
			messages: 50_000, needs: rabbitEnv,
			contenders: []contender{
				{name: "raw amqp091", open: onRabbit(rawConfirm)},
				{name: "broker", open: onRabbit(brokerRabbitBatch)},
				{name: "Watermill", open: onRabbit(watermillAMQP(1)), fraction: 0.05},
				{name: "Go CDK", open: onRabbit(cdkAMQP(1)), fraction: 0.05},
			},
			targets: []target{
				{of: "broker", over: "raw amqp091", atLeast: 0.95},
				{of: "broker", over: "raw amqp091", maxCPU: 1.15},
				{of: "broker", over: "Watermill", atLeast: 10},
			},
		},
		{
			name:     "rabbitmq confirmed publish, 64 goroutines",
			what:     "A blocking call for each message from 64 goroutines; the raw client's share one channel.",
			messages: 50_000, needs: rabbitEnv,
			contenders: []contender{
				{name: "raw amqp091, one shared channel", open: onRabbit(rawShared)},
				{name: "broker", open: onRabbit(brokerRabbitPublish)},
				{name: "Watermill", open: onRabbit(watermillAMQP(goroutines)), fraction: 0.5},
				{name: "Go CDK", open: onRabbit(cdkAMQP(goroutines)), fraction: 0.5},
			},
			targets: []target{{of: "broker", over: "raw amqp091, one shared channel", atLeast: 1}},
		},
		{
			name:     "rabbitmq consume and ack",
			what:     "Quorum queue, prefetch 1,000. The raw client acknowledges 100 with one frame.",
			messages: 50_000, needs: rabbitEnv,
			contenders: []contender{
				{name: "raw amqp091", open: onFilledRabbit(rawAMQPConsume)},
				{name: "broker", open: onFilledRabbit(brokerRabbitConsume)},
				{name: "Watermill", open: onFilledRabbit(watermillAMQPConsume)},
				{name: "Go CDK", open: onFilledRabbit(cdkAMQPConsume)},
			},
			targets: []target{{of: "broker", over: "raw amqp091", atLeast: 0.95}},
		},
	}
}

// A rabbitRun does the work on a queue of its own.
type rabbitRun func(ctx context.Context, queue string, n int) (work func() error, done func() error, err error)

var quorum = amqp.Table{"x-queue-type": "quorum"}

func onRabbit(run rabbitRun) opener {
	return func(ctx context.Context, n int) (func() error, func() error, error) {
		b, err := rabbitmq.OpenURL(ctx, os.Getenv(rabbitEnv))
		if err != nil {
			return nil, nil, err
		}
		name := "bench-" + broker.NewID()
		if _, err := broker.DeclareQueue(ctx, b, name, broker.QueueConfig{}); err != nil {
			return nil, nil, err
		}
		admin, _ := broker.As[broker.Admin](b)
		work, done, err := run(ctx, name, n)
		if err != nil {
			return nil, nil, err
		}
		return work, func() error { return errors.Join(done(), admin.DeleteQueue(ctx, name), b.Close()) }, nil
	}
}

func onFilledRabbit(run rabbitRun) opener {
	return onRabbit(func(ctx context.Context, queue string, n int) (func() error, func() error, error) {
		fill, done, err := rawConfirm(ctx, queue, n)
		if err != nil {
			return nil, nil, err
		}
		if err := errors.Join(fill(), done()); err != nil {
			return nil, nil, err
		}
		return run(ctx, queue, n)
	})
}

func dialRabbit(confirm bool) (*amqp.Connection, *amqp.Channel, error) {
	conn, err := amqp.Dial(os.Getenv(rabbitEnv))
	if err != nil {
		return nil, nil, err
	}
	ch, err := conn.Channel()
	if err == nil && confirm {
		err = ch.Confirm(false)
	}
	return conn, ch, err
}

func publishing(body []byte) amqp.Publishing {
	return amqp.Publishing{DeliveryMode: amqp.Persistent, Body: body}
}

func rawConfirm(ctx context.Context, queue string, n int) (func() error, func() error, error) {
	conn, ch, err := dialRabbit(true)
	if err != nil {
		return nil, nil, err
	}
	body := payload()
	return func() error {
		window := make(chan *amqp.DeferredConfirmation, 1000)
		errs := make(chan error, 1)
		go func() {
			acked := 0
			for c := range window {
				if c.Wait() {
					acked++
				}
			}
			errs <- counted(int64(acked), n)
		}()
		for range n {
			c, err := ch.PublishWithDeferredConfirm("", queue, true, false, publishing(body))
			if err != nil {
				return err
			}
			window <- c
		}
		close(window)
		return <-errs
	}, conn.Close, nil
}

func rawShared(ctx context.Context, queue string, n int) (func() error, func() error, error) {
	conn, ch, err := dialRabbit(true)
	if err != nil {
		return nil, nil, err
	}
	body := payload()
	return func() error {
		return parallel(goroutines, n, func() error {
			c, err := ch.PublishWithDeferredConfirmWithContext(ctx, "", queue, true, false, publishing(body))
			if err != nil {
				return err
			}
			if ok, err := c.WaitContext(ctx); err != nil || !ok {
				return fmt.Errorf("confirmed %v: %w", ok, err)
			}
			return nil
		})
	}, conn.Close, nil
}

func openRabbit(ctx context.Context, queue string) (broker.Broker, broker.Queue, error) {
	b, err := rabbitmq.OpenURL(ctx, os.Getenv(rabbitEnv))
	if err != nil {
		return nil, nil, err
	}
	q, err := b.Queue(ctx, queue, nil)
	return b, q, err
}

func brokerRabbitBatch(ctx context.Context, queue string, n int) (func() error, func() error, error) {
	b, q, err := openRabbit(ctx, queue)
	if err != nil {
		return nil, nil, err
	}
	body := payload()
	return func() error {
		for left := n; left > 0; left -= chunk {
			ms := make([]broker.Message, min(chunk, left))
			for i := range ms {
				ms[i].Body = body
			}
			if _, err := q.PublishBatch(ctx, ms); err != nil {
				return err
			}
		}
		return nil
	}, b.Close, nil
}

func brokerRabbitPublish(ctx context.Context, queue string, n int) (func() error, func() error, error) {
	b, q, err := openRabbit(ctx, queue)
	if err != nil {
		return nil, nil, err
	}
	body := payload()
	return func() error {
		return parallel(goroutines, n, func() error {
			_, err := q.Publish(ctx, broker.Message{Body: body})
			return err
		})
	}, b.Close, nil
}

func brokerRabbitConsume(ctx context.Context, queue string, n int) (func() error, func() error, error) {
	b, q, err := openRabbit(ctx, queue)
	if err != nil {
		return nil, nil, err
	}
	return queueConsume(ctx, q, n, b.Close)
}

func watermillConfig() wamqp.Config {
	c := wamqp.NewDurableQueueConfig(os.Getenv(rabbitEnv))
	c.Publish.ConfirmDelivery = true
	c.Queue.Arguments = quorum
	c.Consume.Qos.PrefetchCount = 1000
	return c
}

func watermillAMQP(goroutines int) rabbitRun {
	return func(_ context.Context, queue string, n int) (func() error, func() error, error) {
		cfg := watermillConfig()
		cfg.Publish.ChannelPoolSize = goroutines
		p, err := wamqp.NewPublisher(cfg, watermill.NopLogger{})
		if err != nil {
			return nil, nil, err
		}
		own := queue + "-w" // it declares queues in its own way
		body := payload()
		return func() error {
			return parallel(goroutines, n, func() error {
				return p.Publish(own, message.NewMessage(watermill.NewUUID(), body))
			})
		}, func() error { return errors.Join(p.Close(), deleteRabbit(own)) }, nil
	}
}

func deleteRabbit(queue string) error {
	conn, ch, err := dialRabbit(false)
	if err != nil {
		return err
	}
	_, err = ch.QueueDelete(queue, false, false, false)
	return errors.Join(err, conn.Close())
}

func cdkAMQP(goroutines int) rabbitRun {
	return func(ctx context.Context, queue string, n int) (func() error, func() error, error) {
		conn, ch, err := dialRabbit(false)
		if err != nil {
			return nil, nil, err
		}
		exchange := queue + "-x"
		if err := ch.ExchangeDeclare(exchange, "fanout", true, false, false, false, nil); err != nil {
			return nil, nil, err
		}
		if err := ch.QueueBind(queue, "", exchange, false, nil); err != nil {
			return nil, nil, err
		}
		work, done, err := cdkSend(ctx, rabbitpubsub.OpenTopic(conn, exchange, nil), goroutines, n)
		return work, func() error {
			return errors.Join(done(), ch.ExchangeDelete(exchange, false, false), conn.Close())
		}, err
	}
}

func rawAMQPConsume(_ context.Context, queue string, n int) (func() error, func() error, error) {
	conn, ch, err := dialRabbit(false)
	if err != nil {
		return nil, nil, err
	}
	if err := ch.Qos(1000, 0, false); err != nil {
		return nil, nil, err
	}
	return func() error {
		in, err := ch.Consume(queue, "", false, false, false, false, nil)
		if err != nil {
			return err
		}
		for i := range n {
			d := <-in
			if (i+1)%100 == 0 || i+1 == n {
				if err := d.Ack(true); err != nil {
					return err
				}
			}
		}
		return nil
	}, conn.Close, nil
}

func watermillAMQPConsume(ctx context.Context, queue string, n int) (func() error, func() error, error) {
	cfg := watermillConfig()
	cfg.TopologyBuilder = declared{}
	sub, err := wamqp.NewSubscriber(cfg, watermill.NopLogger{})
	if err != nil {
		return nil, nil, err
	}
	return func() error {
		in, err := sub.Subscribe(ctx, queue)
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

// declared leaves the queue as it is.
type declared struct{}

func (declared) BuildTopology(*amqp.Channel, wamqp.BuildTopologyParams, wamqp.Config, watermill.LoggerAdapter) error {
	return nil
}

func (declared) ExchangeDeclare(*amqp.Channel, string, wamqp.Config) error { return nil }

func cdkAMQPConsume(ctx context.Context, queue string, n int) (func() error, func() error, error) {
	conn, _, err := dialRabbit(false)
	if err != nil {
		return nil, nil, err
	}
	prefetch := 1000
	work, done, err := cdkReceive(ctx, rabbitpubsub.OpenSubscription(conn, queue, &rabbitpubsub.SubscriptionOptions{PrefetchCount: &prefetch}), n)
	return work, func() error { return errors.Join(done(), conn.Close()) }, err
}
