package main

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"gocloud.dev/pubsub"

	"github.com/queuestream/broker"
)

// unlessEnded is err, or nil if ctx has ended, which ends what reads.
func unlessEnded(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// sendTo publishes to a queue of the broker.
func sendTo(q broker.Queue) func(context.Context, []byte) error {
	return func(ctx context.Context, body []byte) error {
		_, err := q.Publish(ctx, broker.Message{Body: body})
		return err
	}
}

// floodTo publishes batches, of up to 16 MiB, to a queue of the broker.
func floodTo(q broker.Queue, batch int) func(context.Context, int) error {
	return func(ctx context.Context, n int) error {
		bodies := bodies()
		batch := max(1, min(batch, 16<<20/payloadSize))
		for left := n; left > 0; left -= batch {
			ms := make([]broker.Message, min(batch, left))
			for i := range ms {
				ms[i].Body = bodies[(n-left+i)%len(bodies)]
			}
			if _, err := q.PublishBatch(ctx, ms); err != nil {
				return err
			}
		}
		return nil
	}
}

// readFrom receives from a queue of the broker and acknowledges, many at a
// time. The consumer closes with the broker, as those of the peers do.
func readFrom(q broker.Queue) func(context.Context, func([]byte) bool) error {
	return func(ctx context.Context, got func([]byte) bool) error {
		c, err := q.Consumer(ctx, &broker.ConsumerOptions{Prefetch: 1000})
		if err != nil {
			return err
		}
		for more := true; more; {
			ds, err := c.Receive(ctx, 500)
			if err == nil {
				err = broker.AckAll(ctx, ds...)
			}
			if err != nil {
				return unlessEnded(ctx, err)
			}
			for _, d := range ds {
				more = got(d.Body)
			}
		}
		return nil
	}
}

func watermillSend(p message.Publisher, topic string) func(context.Context, []byte) error {
	return func(_ context.Context, body []byte) error {
		return p.Publish(topic, message.NewMessage(watermill.NewUUID(), body))
	}
}

// watermillRead subscribes and reads. It goes on to acknowledge when this
// returns, until the subscriber is closed.
func watermillRead(s message.Subscriber, topic string) func(context.Context, func([]byte) bool) error {
	return func(ctx context.Context, got func([]byte) bool) error {
		in, err := s.Subscribe(ctx, topic)
		if err != nil {
			return err
		}
		return watermillDrain(ctx, in, got)
	}
}

func watermillDrain(ctx context.Context, in <-chan *message.Message, got func([]byte) bool) error {
	for {
		select {
		case m, ok := <-in:
			if !ok {
				return nil
			}
			m.Ack()
			if !got(m.Payload) {
				return nil
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// cdkRig is Go CDK's; its one subscription is opened by what reads first.
func cdkRig(t *pubsub.Topic, open func() (*pubsub.Subscription, error)) rig {
	var opened atomic.Pointer[pubsub.Subscription]
	subscription := sync.OnceValues(func() (*pubsub.Subscription, error) {
		sub, err := open()
		opened.Store(sub)
		return sub, err
	})
	return rig{
		send: func(ctx context.Context, body []byte) error { return t.Send(ctx, &pubsub.Message{Body: body}) },
		read: func(ctx context.Context, got func([]byte) bool) error {
			sub, err := subscription()
			if err != nil {
				return err
			}
			for {
				m, err := sub.Receive(ctx)
				if err != nil {
					return unlessEnded(ctx, err)
				}
				m.Ack()
				if !got(m.Body) {
					return nil
				}
			}
		},
		stop: func() error {
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			err := t.Shutdown(ctx)
			if sub := opened.Load(); sub != nil {
				err = errors.Join(err, sub.Shutdown(ctx))
			}
			return err
		},
	}
}
