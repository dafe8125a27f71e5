package sqs

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awssqs "github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/queuestream/broker"
)

var _ broker.ReplyQueuer = (*Broker)(nil)

const (
	replyPrefix = "qs-reply-"
	tagAlive    = "qs-alive" // of a reply queue: when its owner last said so, in seconds since 1970

	replyAlive     = 10 * time.Minute // how often its owner says so
	replyLeftover  = time.Hour        // after which nobody does
	replySweep     = time.Hour        // how often a broker looks for leftovers
	replyRetention = time.Hour
)

// ReplyQueue makes a standard queue for replies; its Close deletes it. It
// carries a tag with a time, which is renewed while it is open; queues whose
// tag is an hour old are leftovers of programs that crashed, and deleted when
// any program makes a reply queue (at most once an hour), or by
// [Broker.SweepReplyQueues]. It needs what DeclareQueue needs, and
// sqs:DeleteQueue, sqs:ListQueues, sqs:TagQueue and sqs:ListQueueTags.
func (b *Broker) ReplyQueue(ctx context.Context) (broker.Queue, error) {
	name := replyPrefix + broker.NewID()
	err := b.admin(ctx, "open reply queue", name, func() error {
		return b.createQueue(ctx, name, []setting{
			{attr: types.QueueAttributeNameMessageRetentionPeriod, value: attrDuration(replyRetention)},
		}, aliveTag())
	})
	if err != nil {
		return nil, err
	}
	q, err := b.openQueue(ctx, name, nil)
	if err != nil {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()
		return nil, fail("open reply queue", name, errors.Join(err, b.DeleteQueue(clean, name)))
	}
	q.onClose = b.keepAlive(q)
	b.sweepNow()
	return q, nil
}

func aliveTag() map[string]string {
	return map[string]string{tagAlive: strconv.FormatInt(time.Now().Unix(), 10)}
}

// keepAlive renews the queue's tag until the function that it returns is
// called, which deletes the queue.
func (b *Broker) keepAlive(q *Queue) func(ctx context.Context) error {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for pause(ctx, replyAlive) {
			if _, err := control(ctx, b, func(ctx context.Context) (*awssqs.TagQueueOutput, error) {
				return b.sqs.TagQueue(ctx, &awssqs.TagQueueInput{QueueUrl: &q.t.url, Tags: aliveTag()})
			}); err != nil && ctx.Err() == nil {
				b.log.WarnContext(ctx, "sqs: renewing a reply queue's tag failed", "queue", q.t.name, "error", err)
			}
		}
	})
	return func(end context.Context) error {
		cancel()
		wg.Wait()
		return b.deleteURL(end, q.t.url)
	}
}

// sweepNow looks for leftovers unless that was done within the hour. It is
// bounded and runs before ReplyQueue returns, so that nothing stays behind.
func (b *Broker) sweepNow() {
	b.mu.Lock()
	due := time.Since(b.swept) >= replySweep
	if due {
		b.swept = time.Now()
	}
	b.mu.Unlock()
	if !due {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	if n, err := b.SweepReplyQueues(ctx); err != nil {
		b.log.WarnContext(ctx, "sqs: sweeping reply queues failed", "deleted", n, "error", err)
	}
}

// SweepReplyQueues deletes reply queues whose owners have been gone for an
// hour, and returns how many.
func (b *Broker) SweepReplyQueues(ctx context.Context) (int, error) {
	n := 0
	err := b.admin(ctx, "sweep reply queues", "", func() error {
		in := &awssqs.ListQueuesInput{QueueNamePrefix: aws.String(replyPrefix), MaxResults: aws.Int32(100)}
		for {
			out, err := control(ctx, b, func(ctx context.Context) (*awssqs.ListQueuesOutput, error) {
				return b.sqs.ListQueues(ctx, in)
			})
			if err != nil {
				return err
			}
			for _, url := range out.QueueUrls {
				tags, err := b.tags(ctx, url)
				if errors.Is(err, broker.ErrNotFound) {
					continue // gone meanwhile
				}
				if err != nil {
					return err
				}
				alive, err := strconv.ParseInt(tags[tagAlive], 10, 64)
				if err != nil || time.Since(time.Unix(alive, 0)) < replyLeftover {
					continue // not ours, or in use
				}
				if err := b.deleteURL(ctx, url); err != nil {
					return err
				}
				n++
			}
			if in.NextToken = out.NextToken; aws.ToString(out.NextToken) == "" {
				return nil
			}
		}
	})
	return n, err
}
