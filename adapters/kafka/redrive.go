package kafka

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/queuestream/broker"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Peek reads from where the share group is, and leaves everything as it is. It
// may show what is held, and, behind what is held, what is settled already.
func (b *Broker) Peek(ctx context.Context, queue string, max int) ([]broker.Message, error) {
	ms, err := b.peek(ctx, queue, max)
	return ms, fail("peek", queue, err)
}

func (b *Broker) peek(ctx context.Context, queue string, max int) ([]broker.Message, error) {
	if err := b.usable(); err != nil {
		return nil, err
	}
	if max <= 0 {
		return nil, broker.Invalid("max %d: want at least 1", max)
	}
	s, from, to, sum, err := b.backlog(ctx, queue, queue)
	if err != nil || sum == 0 {
		return nil, err
	}
	var out []broker.Message
	for _, p := range sorted(to) {
		records, err := s.front(ctx, p, from[p], to[p], max-len(out))
		if err != nil {
			return nil, err
		}
		for _, r := range records {
			out = append(out, decode(kafkaRecord(s.topic.name, r)).message)
		}
		if len(out) == max {
			break
		}
	}
	return out, nil
}

func kafkaRecord(topic string, r *broker.Record) *kgo.Record {
	n, _ := r.Offset().Int64()
	return &kgo.Record{
		Topic: topic, Partition: r.Partition, Offset: n,
		Key: r.Key, Value: r.Value, Headers: kafkaHeaders(r.Headers), Timestamp: r.Time(),
	}
}

// redriveWait is how long Redrive waits for another message before it takes
// the queue for empty: as long as a new member may have to wait for partitions.
const redriveWait = 3 * time.Second

// Redrive does what broker.Admin promises. It consumes the dead-letter queue
// as a worker would, so it moves nothing that another consumer holds.
func (b *Broker) Redrive(ctx context.Context, deadLetterQueue, to string, max int) (int, error) {
	n, err := b.redrive(ctx, deadLetterQueue, to, max)
	return n, fail("redrive", deadLetterQueue, err)
}

func (b *Broker) redrive(ctx context.Context, from, to string, max int) (moved int, err error) {
	if max < 0 {
		return 0, broker.Invalid("max %d: must not be negative", max)
	}
	_, _, _, left, err := b.backlog(ctx, from, from)
	if err != nil || left == 0 {
		return 0, err
	}
	if max > 0 {
		left = min(left, int64(max))
	}
	q, err := b.openQueue(ctx, from, nil)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, q.Close()) }()
	c, err := q.consumer(ctx, nil)
	if err != nil {
		return 0, err
	}
	for int64(moved) < left {
		ds, err := c.receiveWithin(ctx, redriveWait, int(min(left-int64(moved), 500)))
		if err != nil || len(ds) == 0 {
			return moved, err
		}
		n, err := b.redriveBatch(ctx, ds, to)
		moved += n
		if err != nil {
			return moved, err
		}
	}
	return moved, nil
}

// receiveWithin receives, and returns nothing if nothing comes in time.
func (c *Consumer) receiveWithin(ctx context.Context, d time.Duration, max int) ([]*broker.Delivery, error) {
	short, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	ds, err := c.Receive(short, max)
	if err != nil && short.Err() != nil && ctx.Err() == nil {
		return nil, nil
	}
	return ds, err
}

// redriveBatch moves deliveries: each is stored before it is acknowledged.
func (b *Broker) redriveBatch(ctx context.Context, ds []*broker.Delivery, to string) (int, error) {
	outs := make([]copyOut, 0, len(ds))
	msgs := make([]broker.Message, len(ds))
	sent := make([]*broker.Delivery, 0, len(ds))
	var errs []error
	for i, d := range ds {
		target := to
		if target == "" {
			why, ok := broker.DeadLetterOf(&d.Message)
			if !ok || why.Queue == "" {
				errs = append(errs, broker.Invalid("message %q does not tell where it came from: name a queue", d.ID))
				continue
			}
			target = why.Queue
		}
		msgs[i] = broker.RedriveMessage(d.Message)
		outs, sent = append(outs, copyOut{topic: target, message: &msgs[i], time: d.Time}), append(sent, d)
	}
	moved := 0
	for i, err := range b.send(ctx, outs) {
		if err != nil {
			errs = append(errs, fmt.Errorf("message %q to queue %q: %w", sent[i].ID, outs[i].topic, err))
			continue
		}
		moved++
		if err := sent[i].Ack(ctx); err != nil {
			errs = append(errs, err)
		}
	}
	return moved, errors.Join(errs...)
}
