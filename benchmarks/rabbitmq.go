package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/ThreeDotsLabs/watermill"
	wamqp "github.com/ThreeDotsLabs/watermill-amqp/v3/pkg/amqp"
	amqp "github.com/rabbitmq/amqp091-go"
	"gocloud.dev/pubsub"
	"gocloud.dev/pubsub/rabbitpubsub"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/rabbitmq"
)

const rabbitEnv = "BROKER_TEST_RABBITMQ"

func rabbitScenarios() []scenario {
	needs := []string{rabbitEnv}
	full := filled(rabbitQueue, rawRabbit)
	watermill1, watermill64 := watermillRabbit(1), watermillRabbit(goroutines)
	flood := scenario{
		name:     "rabbitmq confirmed publish, 1 goroutine",
		what:     "Quorum queue, persistent, mandatory, confirmed. The raw client pipelines 1,000 confirms; the broker gets batches of 1,000 (16 MiB at most); the peers have a blocking call only.",
		messages: 50_000, needs: needs,
		contenders: []contender{
			{name: "raw amqp091", open: flooding(rabbitQueue, rawRabbit)},
			{name: "broker", open: flooding(rabbitQueue, brokerRabbit)},
			{name: "Watermill", open: flooding(rabbitQueue, watermill1), fraction: 0.05},
			{name: "Go CDK", open: flooding(rabbitQueue, cdkRabbit), fraction: 0.05},
		},
		targets: []target{
			{of: "broker", over: "raw amqp091", atLeast: 0.95},
			{of: "broker", over: "raw amqp091", maxCPU: 1.15},
			{of: "broker", over: "Watermill", atLeast: 10},
		},
	}
	read := scenario{
		name:     "rabbitmq consume and ack",
		what:     "Quorum queue, prefetch 1,000. The raw client acknowledges 100 with one frame.",
		messages: 50_000, needs: needs,
		contenders: []contender{
			{name: "raw amqp091", open: reading(full, rawRabbit)},
			{name: "broker", open: reading(full, brokerRabbit)},
			{name: "Watermill", open: reading(full, watermill1)},
			{name: "Go CDK", open: reading(full, cdkRabbit)},
		},
		targets: []target{
			{of: "broker", over: "raw amqp091", atLeast: 0.95},
			{of: "broker", over: "raw amqp091", maxCPU: 1.15},
		},
	}
	return []scenario{
		flood,
		sized(flood, "1 KiB", 1<<10, 30_000), sized(flood, "64 KiB", 64<<10, 2000),
		{
			name:     "rabbitmq confirmed publish, 64 goroutines",
			what:     "A blocking call for each message from 64 goroutines; the raw client's share one channel.",
			messages: 50_000, needs: needs,
			contenders: []contender{
				{name: "raw amqp091, one shared channel", open: sending(rabbitQueue, rawRabbit)},
				{name: "broker", open: sending(rabbitQueue, brokerRabbit)},
				{name: "Watermill", open: sending(rabbitQueue, watermill64), fraction: 0.5},
				{name: "Go CDK", open: sending(rabbitQueue, cdkRabbit), fraction: 0.5},
			},
			targets: []target{{of: "broker", over: "raw amqp091, one shared channel", atLeast: 1}},
		},
		read,
		sized(read, "1 KiB", 1<<10, 30_000), sized(read, "64 KiB", 64<<10, 2000),
		{
			name: "rabbitmq queue, half load", what: halfLoadWhat, messages: 20_000, needs: needs,
			contenders: []contender{
				{name: "raw amqp091", open: halfLoad(rabbitQueue, rawRabbit)},
				{name: "broker", open: halfLoad(rabbitQueue, brokerRabbit)},
				{name: "Watermill", open: halfLoad(rabbitQueue, watermill64)},
				{name: "Go CDK", open: halfLoad(rabbitQueue, cdkRabbit)},
			},
		},
	}
}

var quorum = amqp.Table{amqp.QueueTypeArg: amqp.QueueTypeQuorum}

func rabbitQueue(context.Context, int) (place, error) {
	conn, ch, err := dialRabbit(false)
	if err != nil {
		return place{}, err
	}
	name := "bench-" + broker.NewID()
	if _, err = ch.QueueDeclare(name, true, false, false, false, quorum); err != nil {
		return place{}, errors.Join(err, conn.Close())
	}
	return place{
		name: name,
		held: func(context.Context) (int64, error) {
			q, err := ch.QueueDeclarePassive(name, true, false, false, false, quorum)
			return int64(q.Messages), err
		},
		remove: func(context.Context) error {
			_, err := ch.QueueDelete(name, false, false, false)
			return errors.Join(err, conn.Close())
		},
	}, nil
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

func rawRabbit(_ context.Context, p place) (rig, error) {
	conn, ch, err := dialRabbit(true)
	if err != nil {
		return rig{}, err
	}
	publish := func(ctx context.Context, body []byte) (*amqp.DeferredConfirmation, error) {
		return ch.PublishWithDeferredConfirmWithContext(ctx, "", p.name, true, false, amqp.Publishing{DeliveryMode: amqp.Persistent, Body: body})
	}
	return rig{
		send: func(ctx context.Context, body []byte) error {
			c, err := publish(ctx, body)
			if err != nil {
				return err
			}
			if ok, err := c.WaitContext(ctx); err != nil || !ok {
				return fmt.Errorf("confirmed %v: %w", ok, err)
			}
			return nil
		},
		flood: func(ctx context.Context, n int) error {
			window, acked := make(chan *amqp.DeferredConfirmation, 1000), 0
			var confirms sync.WaitGroup
			confirms.Go(func() {
				for c := range window {
					if c.Wait() {
						acked++
					}
				}
			})
			bodies := bodies()
			var err error
			for i := 0; i < n && err == nil; i++ {
				var c *amqp.DeferredConfirmation
				if c, err = publish(ctx, bodies[i%len(bodies)]); err == nil {
					window <- c
				}
			}
			close(window)
			confirms.Wait()
			return errors.Join(err, counted(int64(acked), n))
		},
		read: func(ctx context.Context, got func([]byte) bool) error { return readRabbit(ctx, conn, p.name, got) },
		stop: conn.Close,
	}, nil
}

// readRabbit acknowledges a hundred messages at a time.
func readRabbit(ctx context.Context, conn *amqp.Connection, queue string, got func([]byte) bool) error {
	ch, err := conn.Channel()
	if err != nil {
		return err
	}
	if err := ch.Qos(1000, 0, false); err != nil {
		return err
	}
	in, err := ch.Consume(queue, "", false, false, false, false, nil)
	if err != nil {
		return err
	}
	var last amqp.Delivery
	open := 0
	for more := true; more; {
		select {
		case last = <-in:
			more = got(last.Body)
			if open++; open == 100 {
				if err := last.Ack(true); err != nil {
					return err
				}
				open = 0
			}
		case <-ctx.Done():
			more = false
		}
	}
	if open > 0 {
		return last.Ack(true)
	}
	return nil
}

func brokerRabbit(ctx context.Context, p place) (rig, error) {
	b, err := rabbitmq.OpenURL(ctx, os.Getenv(rabbitEnv))
	if err != nil {
		return rig{}, err
	}
	q, err := b.Queue(ctx, p.name, nil)
	return rig{send: sendTo(q), flood: floodTo(q, chunk), read: readFrom(q), stop: b.Close}, err
}

func watermillRabbit(channels int) makeRig {
	return func(_ context.Context, p place) (rig, error) {
		cfg := wamqp.NewDurableQueueConfig(os.Getenv(rabbitEnv))
		cfg.Publish.ConfirmDelivery, cfg.Publish.Mandatory, cfg.Publish.ChannelPoolSize = true, true, channels
		cfg.Consume.Qos.PrefetchCount = 1000
		cfg.TopologyBuilder = &declared{}
		pub, err := wamqp.NewPublisher(cfg, watermill.NopLogger{})
		if err != nil {
			return rig{}, err
		}
		sub, err := wamqp.NewSubscriber(cfg, watermill.NopLogger{})
		if err != nil {
			return rig{}, errors.Join(err, pub.Close())
		}
		return rig{
			send: watermillSend(pub, p.name), read: watermillRead(sub, p.name),
			stop: func() error { return errors.Join(pub.Close(), sub.Close()) },
		}, nil
	}
}

// declared leaves the queue as it is.
type declared struct{ wamqp.DefaultTopologyBuilder }

func (declared) BuildTopology(*amqp.Channel, wamqp.BuildTopologyParams, wamqp.Config, watermill.LoggerAdapter) error {
	return nil
}

func cdkRabbit(_ context.Context, p place) (rig, error) {
	conn, ch, err := dialRabbit(false)
	if err != nil {
		return rig{}, err
	}
	exchange := p.name + "-x"
	if err := ch.ExchangeDeclare(exchange, amqp.ExchangeFanout, true, false, false, false, nil); err != nil {
		return rig{}, err
	}
	if err := ch.QueueBind(p.name, "", exchange, false, nil); err != nil {
		return rig{}, err
	}
	prefetch := 1000
	r := cdkRig(rabbitpubsub.OpenTopic(conn, exchange, nil), func() (*pubsub.Subscription, error) {
		return rabbitpubsub.OpenSubscription(conn, p.name, &rabbitpubsub.SubscriptionOptions{PrefetchCount: &prefetch}), nil
	})
	stop := r.stop
	r.stop = func() error {
		return errors.Join(stop(), ch.ExchangeDelete(exchange, false, false), conn.Close())
	}
	return r, nil
}
