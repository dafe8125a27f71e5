package conformance

import (
	"context"
	"errors"

	"github.com/queuestream/broker"
)

// DeclareQueue declares and opens a queue of its own for the case, deleted
// after it. config edits the harness' default; nil: as it is.
func (c *C) DeclareQueue(config func(c *C, cfg *broker.QueueConfig)) broker.Queue {
	return c.DeclareQueueOn(c.broker, config)
}

// DeclareQueueOn does what DeclareQueue does on another broker.
func (c *C) DeclareQueueOn(b broker.Broker, config func(c *C, cfg *broker.QueueConfig)) broker.Queue {
	q, err := c.declareQueue(b, config)
	c.Must(err, "declare a queue")
	return q
}

func (c *C) declareQueue(b broker.Broker, config func(c *C, cfg *broker.QueueConfig)) (broker.Queue, error) {
	admin, ok := broker.As[broker.Admin](b)
	if !ok {
		c.Skip("the broker has no broker.Admin, which the suite declares its queues with")
	}
	var cfg broker.QueueConfig
	if config != nil {
		config(c, &cfg)
	}
	if c.h.QueueConfig != nil {
		if err := c.h.QueueConfig(&cfg); err != nil {
			return nil, err
		}
	}
	kind := "queue"
	if cfg.Ordered {
		kind = "ordered"
	}
	name := c.Name(kind)
	ctx, cancel := c.Soon()
	defer cancel()
	if err := admin.DeclareQueue(ctx, name, cfg); err != nil {
		return nil, err
	}
	c.Cleanup(c.deletion(admin, name))
	return c.openQueue(ctx, b, name, nil)
}

func (c *C) openQueue(ctx context.Context, b broker.Broker, name string, opts *broker.QueueOptions) (broker.Queue, error) {
	q, err := b.Queue(ctx, name, opts)
	if err != nil {
		return nil, err
	}
	c.track("queue", q.Close)
	return q, nil
}

// OpenQueue opens a queue again, through another client or with other options.
func (c *C) OpenQueue(b broker.Broker, name string, opts *broker.QueueOptions) broker.Queue {
	ctx, cancel := c.Soon()
	defer cancel()
	q, err := c.openQueue(ctx, b, name, opts)
	c.Must(err, "open the queue %s", name)
	return q
}

// Consumer opens a consumer of q, closed after the case.
func (c *C) Consumer(q broker.Queue, opts *broker.ConsumerOptions) broker.Consumer {
	ctx, cancel := c.Soon()
	defer cancel()
	k, err := q.Consumer(ctx, opts)
	c.Must(err, "open a consumer")
	c.track("consumer", k.Close)
	return k
}

// DeclareStream declares and opens a stream of its own for the case, deleted
// after it. config edits the harness' default; nil: as it is.
func (c *C) DeclareStream(config func(c *C, cfg *broker.StreamConfig)) broker.Stream {
	s, err := c.declareStream(config)
	c.Must(err, "declare a stream")
	return s
}

func (c *C) declareStream(config func(c *C, cfg *broker.StreamConfig)) (broker.Stream, error) {
	var cfg broker.StreamConfig
	if config != nil {
		config(c, &cfg)
	}
	if c.h.StreamConfig != nil {
		if err := c.h.StreamConfig(&cfg); err != nil {
			return nil, err
		}
	}
	name := c.Name("stream")
	ctx, cancel := c.Soon()
	defer cancel()
	admin := c.Admin()
	if err := admin.DeclareStream(ctx, name, cfg); err != nil {
		return nil, err
	}
	c.Cleanup(func(ctx context.Context) error { return admin.DeleteStream(ctx, name) })
	s, err := c.broker.Stream(ctx, name, nil)
	if err != nil {
		return nil, err
	}
	c.track("stream", s.Close)
	return s, nil
}

// Member joins a group of s, and leaves it after the case.
func (c *C) Member(s broker.Stream, group string, opts *broker.GroupOptions) broker.GroupConsumer {
	ctx, cancel := c.Soon()
	defer cancel()
	m, err := s.Consumer(ctx, group, opts)
	c.Must(err, "join the group %s", group)
	c.track("member", m.Close)
	return m
}

// drained empties the queue with a fresh client and fails unless the broker
// then reports it as empty.
func (c *C) drained(name string) {
	c.stopFaults(c.ctx)
	c.closeHandles(false)
	b := c.Fresh()
	admin, ok := broker.As[broker.Admin](b)
	if !ok {
		return
	}
	ctx, cancel := c.Soon()
	defer cancel()
	stats, err := admin.QueueStats(ctx, name)
	if errors.Is(err, broker.ErrUnsupported) || errors.Is(err, broker.ErrNotFound) {
		return
	}
	c.Must(err, "statistics of the queue")
	left := func() int64 { return max(stats.Ready, 0) + max(stats.InFlight, 0) }
	if left() == 0 {
		return
	}
	q, err := b.Queue(ctx, name, nil)
	c.Must(err, "open the queue to drain it")
	c.track("queue", q.Close)
	k := c.Consumer(q, nil)
	empty := c.Until(c.h.Soon+c.h.Lease, func() bool {
		for _, d := range c.TryReceive(k, 100, c.h.Quiet) {
			if err := d.Ack(c.ctx); err != nil && !errors.Is(err, broker.ErrLeaseLost) {
				c.Errorf("acknowledge while draining: %v", err)
			}
		}
		if stats, err = admin.QueueStats(c.ctx, name); err != nil {
			c.Fatalf("statistics of the queue: %v", err)
		}
		return left() == 0
	})
	if !empty {
		c.Errorf("the queue cannot be drained: %+v", stats)
	}
}

// deletion returns a clean-up that deletes a queue.
func (c *C) deletion(admin broker.Admin, name string) func(context.Context) error {
	return func(ctx context.Context) error {
		if err := admin.DeleteQueue(ctx, name); !errors.Is(err, broker.ErrClosed) {
			return err
		}
		return nil // an embedded broker that the case has closed
	}
}
