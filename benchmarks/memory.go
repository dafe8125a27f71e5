package main

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"
	"gocloud.dev/pubsub"
	"gocloud.dev/pubsub/mempubsub"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/memory"
)

const payloadSize = 256

// buffered is how many messages each contender holds before publishing waits:
// the embedded queue counts 800 bytes for one of them.
const buffered = 1024

func payload() []byte {
	b := make([]byte, payloadSize)
	for i := range b {
		b[i] = byte(i)
	}
	return b
}

func memoryScenarios() []scenario {
	var out []scenario
	for _, lanes := range []int{1, 4} {
		out = append(out, scenario{
			name:     fmt.Sprintf("memory queue %d×%d", lanes, lanes),
			what:     fmt.Sprintf("%d publishers and %d consumers of the embedded queue, one message a call: publish, receive, acknowledge. The raw channel copies 256 B; it, gochannel and the queue hold about 1024 messages before a publisher waits.", lanes, lanes),
			messages: 400_000,
			contenders: []contender{
				{name: "raw channel", open: rawChannel(lanes)},
				{name: "broker", open: memoryQueue(lanes)},
				{name: "Watermill gochannel", open: goChannel(lanes), fraction: 0.1},
				{name: "Go CDK mempubsub", open: memPubSub(lanes), fraction: 0.1},
			},
			targets: []target{
				{of: "broker", over: "raw channel", atLeast: 1.0 / 3},
				{of: "broker", over: "Watermill gochannel", atLeast: 10},
				{of: "broker", over: "Go CDK mempubsub", atLeast: 10},
				{of: "broker", maxAllocs: 2},
			},
		})
	}
	return append(out, scenario{
		name:     "memory queue, waking a parked receiver",
		what:     "One message at a time to a receiver that waits: the time from before Publish to Receive's return.",
		messages: 2000,
		contenders: []contender{
			{name: "raw channel", open: wakeRaw},
			{name: "broker", open: wakeMemory},
		},
		targets: []target{{of: "broker", maxP99: 20 * time.Microsecond}},
	})
}

type opener func(ctx context.Context, n int) (func() error, func() error, error)

func nothing() error { return nil }

// flow runs publishers and consumers, lanes of each, until n messages went
// through; consume is called with a function that counts one and tells whether
// it was the last.
func flow(lanes, n int, publish func(lane, count int) error, consume func(lane int, took func() bool) error) error {
	var got atomic.Int64
	errs := make(chan error, 2*lanes)
	took := func() bool { return got.Add(1) >= int64(n) }
	var wg sync.WaitGroup
	for lane := range lanes {
		count := n / lanes
		if lane == 0 {
			count += n % lanes
		}
		wg.Go(func() { errs <- publish(lane, count) })
		wg.Go(func() { errs <- consume(lane, took) })
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			return err
		}
	}
	if got.Load() < int64(n) {
		return fmt.Errorf("only %d of %d arrived", got.Load(), n)
	}
	return nil
}

func rawChannel(lanes int) opener {
	return func(_ context.Context, n int) (func() error, func() error, error) {
		ch := make(chan []byte, buffered)
		body := payload()
		end := make(chan struct{})
		return func() error {
			return flow(lanes, n, func(_, count int) error {
				for range count {
					ch <- append([]byte(nil), body...)
				}
				return nil
			}, func(_ int, took func() bool) error {
				for {
					select {
					case <-ch:
						if took() {
							close(end)
							return nil
						}
					case <-end:
						return nil
					}
				}
			})
		}, nothing, nil
	}
}

func memoryQueue(lanes int) opener {
	return func(ctx context.Context, n int) (func() error, func() error, error) {
		b, err := memory.Open(ctx, &memory.Options{MaxQueueBytes: buffered * 800})
		if err != nil {
			return nil, nil, err
		}
		q, err := broker.DeclareQueue(ctx, b, "q", broker.QueueConfig{})
		if err != nil {
			return nil, nil, err
		}
		c, err := q.Consumer(ctx, nil)
		if err != nil {
			return nil, nil, err
		}
		body := payload()
		return func() error {
			run, cancel := context.WithCancel(ctx)
			defer cancel()
			return flow(lanes, n, func(_, count int) error {
				for range count {
					if _, err := q.Publish(ctx, broker.Message{Body: body}); err != nil {
						return err
					}
				}
				return nil
			}, func(_ int, took func() bool) error {
				for {
					ds, err := c.Receive(run, 1)
					if err != nil {
						if run.Err() != nil {
							return nil
						}
						return err
					}
					if err := ds[0].Ack(ctx); err != nil {
						return err
					}
					if len(ds[0].Body) != payloadSize {
						return fmt.Errorf("a body of %d bytes", len(ds[0].Body))
					}
					if took() {
						cancel()
					}
				}
			})
		}, b.Close, nil
	}
}

func goChannel(lanes int) opener {
	return func(ctx context.Context, n int) (func() error, func() error, error) {
		ps := gochannel.NewGoChannel(gochannel.Config{OutputChannelBuffer: buffered}, watermill.NopLogger{})
		in, err := ps.Subscribe(ctx, "t")
		if err != nil {
			return nil, nil, err
		}
		body := payload()
		return func() error {
			end := make(chan struct{})
			return flow(lanes, n, func(_, count int) error {
				for range count {
					if err := ps.Publish("t", message.NewMessage(watermill.NewUUID(), body)); err != nil {
						return err
					}
				}
				return nil
			}, func(_ int, took func() bool) error {
				for {
					select {
					case m := <-in:
						m.Ack()
						if took() {
							close(end)
							return nil
						}
					case <-end:
						return nil
					}
				}
			})
		}, ps.Close, nil
	}
}

func memPubSub(lanes int) opener {
	return func(ctx context.Context, n int) (func() error, func() error, error) {
		topic := mempubsub.NewTopic()
		sub := mempubsub.NewSubscription(topic, time.Minute)
		return pubsubFlow(ctx, topic, sub, lanes, n)
	}
}

// pubsubFlow is publish, receive and acknowledge of Go CDK.
func pubsubFlow(ctx context.Context, topic *pubsub.Topic, sub *pubsub.Subscription, lanes, n int) (func() error, func() error, error) {
	body := payload()
	return func() error {
			run, cancel := context.WithCancel(ctx)
			defer cancel()
			return flow(lanes, n, func(_, count int) error {
				for range count {
					if err := topic.Send(ctx, &pubsub.Message{Body: body}); err != nil {
						return err
					}
				}
				return nil
			}, func(_ int, took func() bool) error {
				for {
					m, err := sub.Receive(run)
					if err != nil {
						if run.Err() != nil {
							return nil
						}
						return err
					}
					m.Ack()
					if took() {
						cancel()
					}
				}
			})
		}, func() error {
			stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
			defer cancel()
			if err := sub.Shutdown(stop); err != nil {
				return err
			}
			return topic.Shutdown(stop)
		}, nil
}

func wakeRaw(_ context.Context, n int) (func() error, func() error, error) {
	ch, back := make(chan time.Time), make(chan time.Duration)
	return func() error {
		go func() {
			for t := range ch {
				back <- time.Since(t)
			}
		}()
		for range n {
			<-time.After(100 * time.Microsecond) // the receiver parks
			ch <- time.Now()
			latencies = append(latencies, <-back)
		}
		close(ch)
		return nil
	}, nothing, nil
}

func wakeMemory(ctx context.Context, n int) (func() error, func() error, error) {
	b, err := memory.Open(ctx, nil)
	if err != nil {
		return nil, nil, err
	}
	q, err := broker.DeclareQueue(ctx, b, "q", broker.QueueConfig{})
	if err != nil {
		return nil, nil, err
	}
	c, err := q.Consumer(ctx, nil)
	if err != nil {
		return nil, nil, err
	}
	woken, errs := make(chan time.Time), make(chan error, 1)
	return func() error {
		go func() {
			for range n {
				ds, err := c.Receive(ctx, 1)
				if err == nil {
					woken <- time.Now()
					err = ds[0].Ack(ctx)
				}
				if err != nil {
					errs <- err
					return
				}
			}
			errs <- nil
		}()
		for range n {
			<-time.After(100 * time.Microsecond)
			start := time.Now()
			if _, err := q.Publish(ctx, broker.Message{}); err != nil {
				return err
			}
			select {
			case t := <-woken:
				latencies = append(latencies, t.Sub(start))
			case err := <-errs:
				return err
			}
		}
		return <-errs
	}, b.Close, nil
}
