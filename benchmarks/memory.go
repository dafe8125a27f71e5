package main

import (
	"context"
	"fmt"
	"runtime"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"
	"gocloud.dev/pubsub"
	"gocloud.dev/pubsub/mempubsub"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/memory"
)

// buffered is how many messages each contender holds before publishing waits.
const buffered = 1024

// bookkeeping is what the embedded queue counts for a message beside its body.
const bookkeeping = 544

func memoryScenarios() []scenario {
	contenders := func(work func(makeRig) opener) []contender {
		return []contender{
			{name: "raw channel", open: work(rawChannel)},
			{name: "broker", open: work(memoryQueue)},
			{name: "Watermill gochannel", open: work(goChannel), fraction: 0.1},
			{name: "Go CDK mempubsub", open: work(memPubSub), fraction: 0.1},
		}
	}
	var out []scenario
	for _, lanes := range []int{1, 4} {
		out = append(out, scenario{
			name:     fmt.Sprintf("memory queue %d×%d", lanes, lanes),
			what:     fmt.Sprintf("%d publishers and %d consumers of the embedded queue, one message a call: publish, receive, acknowledge. The raw channel copies each body; it, gochannel and the queue hold about %d messages before a publisher waits.", lanes, lanes, buffered),
			messages: 400_000,
			contenders: contenders(func(with makeRig) opener {
				return inMemory(with, func(ctx context.Context, r rig, n int) error { return flow(ctx, r, lanes, n) })
			}),
			targets: []target{
				{of: "broker", over: "raw channel", atLeast: 1.0 / 3},
				{of: "broker", over: "Watermill gochannel", atLeast: 10},
				{of: "broker", over: "Go CDK mempubsub", atLeast: 10},
				{of: "broker", maxAllocs: 2},
			},
		})
	}
	out = append(out,
		sized(out[0], "1 KiB", 1<<10, 400_000), sized(out[0], "64 KiB", 64<<10, 40_000),
		waking("memory queue, waking a parked receiver",
			"One message at a time, as soon as the receiver waits again: the time from before the call that publishes to the acknowledgement.",
			20_000, yield, target{of: "broker", maxP99: 20 * time.Microsecond}),
		waking("memory queue, waking a parked receiver and its processor",
			"The same after a pause of 100 µs, in which the processors fall asleep: the kernel's waking them is in both figures.",
			2000, func() { <-time.After(100 * time.Microsecond) }, target{of: "broker", over: "raw channel", maxP99Ratio: 2}),
		scenario{
			name: "memory queue, half load", what: halfLoadWhat, messages: 100_000,
			contenders: contenders(func(with makeRig) opener { return halfLoad(noPlace, with) }),
		},
	)
	return out
}

func noPlace(context.Context, int) (place, error) {
	return place{remove: func(context.Context) error { return nil }}, nil
}

func inMemory(with makeRig, work func(ctx context.Context, r rig, n int) error) opener {
	return func(ctx context.Context, n int) (func() error, func() error, error) {
		r, done, err := set(ctx, noPlace, with, n, 0)
		return func() error { return work(ctx, r, n) }, done, err
	}
}

func rawChannel(context.Context, place) (rig, error) {
	ch := make(chan []byte, buffered)
	return rig{
		send: func(_ context.Context, body []byte) error {
			ch <- append([]byte(nil), body...)
			return nil
		},
		read: func(ctx context.Context, got func([]byte) bool) error {
			for {
				select {
				case body := <-ch:
					if !got(body) {
						return nil
					}
				case <-ctx.Done():
					return nil
				}
			}
		},
		stop: nothing,
	}, nil
}

func memoryQueue(ctx context.Context, _ place) (rig, error) {
	b, err := memory.Open(ctx, &memory.Options{MaxQueueBytes: int64(buffered * (payloadSize + bookkeeping))})
	if err != nil {
		return rig{}, err
	}
	q, err := broker.DeclareQueue(ctx, b, "q", broker.QueueConfig{})
	if err != nil {
		return rig{}, err
	}
	c, err := q.Consumer(ctx, nil)
	if err != nil {
		return rig{}, err
	}
	return rig{
		send: func(ctx context.Context, body []byte) error {
			_, err := q.Publish(ctx, broker.Message{Body: body})
			return err
		},
		read: func(ctx context.Context, got func([]byte) bool) error {
			for {
				ds, err := c.Receive(ctx, 1)
				if err != nil {
					return unlessEnded(ctx, err)
				}
				if err := ds[0].Ack(ctx); err != nil {
					return unlessEnded(ctx, err)
				}
				if !got(ds[0].Body) {
					return nil
				}
			}
		},
		stop: b.Close,
	}, nil
}

func goChannel(ctx context.Context, _ place) (rig, error) {
	ps := gochannel.NewGoChannel(gochannel.Config{OutputChannelBuffer: buffered}, watermill.NopLogger{})
	in, err := ps.Subscribe(ctx, "t") // one for all readers: each subscription gets every message
	return rig{
		send: watermillSend(ps, "t"),
		read: func(ctx context.Context, got func([]byte) bool) error { return watermillDrain(ctx, in, got) },
		stop: ps.Close,
	}, err
}

func memPubSub(context.Context, place) (rig, error) {
	topic := mempubsub.NewTopic()
	sub := mempubsub.NewSubscription(topic, time.Minute)
	return cdkRig(topic, func() (*pubsub.Subscription, error) { return sub, nil }), nil
}

// yield lets others run for some microseconds: a receiver parks within one.
func yield() {
	for range 20 {
		runtime.Gosched()
	}
}

// waking is a scenario in which pause lets the receiver park before each message.
func waking(name, what string, messages int, pause func(), t target) scenario {
	work := func(ctx context.Context, r rig, n int) error { return wake(ctx, r, n, pause) }
	return scenario{
		name: name, what: what, messages: messages,
		contenders: []contender{
			{name: "raw channel", open: inMemory(rawChannel, work)},
			{name: "broker", open: inMemory(memoryQueue, work)},
		},
		targets: []target{t},
	}
}

// wake sends one message at a time to a reader that waits.
func wake(ctx context.Context, r rig, n int, pause func()) error {
	woken, ended := make(chan time.Time), make(chan error, 1)
	go func() {
		left := n
		ended <- r.read(ctx, func([]byte) bool {
			woken <- time.Now()
			left--
			return left > 0
		})
	}()
	body := payload()
	for range n {
		pause()
		start := time.Now()
		if err := r.send(ctx, body); err != nil {
			return err
		}
		select {
		case t := <-woken:
			latencies = append(latencies, t.Sub(start))
		case err := <-ended:
			return err
		}
	}
	return <-ended
}
