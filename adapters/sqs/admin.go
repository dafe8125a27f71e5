package sqs

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awssqs "github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/queuestream/broker"
)

var _ broker.Admin = (*Broker)(nil)

// QueueName returns the name that a queue of this configuration must have:
// name, with .fifo at its end where the queue has to be FIFO.
func (b *Broker) QueueName(name string, cfg broker.QueueConfig) string {
	if wantsFIFO(&cfg) && !strings.HasSuffix(name, fifoSuffix) {
		return name + fifoSuffix
	}
	return name
}

// DeleteQueue deletes a queue with all that is in it. AWS takes up to 60 s for
// it, and for as long refuses to make one of the same name.
func (b *Broker) DeleteQueue(ctx context.Context, name string) error {
	return b.admin(ctx, "delete queue", name, func() error {
		url, err := b.queueURL(ctx, name, "")
		if errors.Is(err, broker.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		return b.deleteURL(ctx, url)
	})
}

func (b *Broker) deleteURL(ctx context.Context, url string) error {
	_, err := control(ctx, b, func(ctx context.Context) (*awssqs.DeleteQueueOutput, error) {
		return b.sqs.DeleteQueue(ctx, &awssqs.DeleteQueueInput{QueueUrl: &url})
	})
	if errors.Is(err, broker.ErrNotFound) {
		return nil
	}
	return err
}

// Purge deletes every message, those in flight included (SQS PurgeQueue). AWS
// takes up to 60 s and refuses a second purge within that time, which is a
// temporary ErrUnavailable.
func (b *Broker) Purge(ctx context.Context, queue string) error {
	return b.admin(ctx, "purge", queue, func() error {
		url, err := b.queueURL(ctx, queue, "")
		if err != nil {
			return err
		}
		_, err = control(ctx, b, func(ctx context.Context) (*awssqs.PurgeQueueOutput, error) {
			return b.sqs.PurgeQueue(ctx, &awssqs.PurgeQueueInput{QueueUrl: &url})
		})
		return err
	})
}

// QueueStats returns the approximate counts that SQS keeps. Consumers and
// OldestAge are Unknown: SQS knows no consumers, and tells the age to
// CloudWatch alone.
func (b *Broker) QueueStats(ctx context.Context, queue string) (broker.QueueStats, error) {
	stats := broker.QueueStats{Consumers: broker.Unknown, OldestAge: broker.Unknown}
	err := b.admin(ctx, "queue stats", queue, func() error {
		url, err := b.queueURL(ctx, queue, "")
		if err != nil {
			return err
		}
		attrs, err := b.attributes(ctx, url,
			types.QueueAttributeNameApproximateNumberOfMessages,
			types.QueueAttributeNameApproximateNumberOfMessagesNotVisible,
			types.QueueAttributeNameApproximateNumberOfMessagesDelayed)
		if err != nil {
			return err
		}
		stats.Ready = attrCount(attrs, types.QueueAttributeNameApproximateNumberOfMessages)
		stats.InFlight = attrCount(attrs, types.QueueAttributeNameApproximateNumberOfMessagesNotVisible)
		stats.Delayed = attrCount(attrs, types.QueueAttributeNameApproximateNumberOfMessagesDelayed)
		return nil
	})
	return stats, err
}

func attrCount(attrs map[string]string, name types.QueueAttributeName) int64 {
	n, err := strconv.ParseInt(attrs[string(name)], 10, 64)
	if err != nil {
		return broker.Unknown
	}
	return n
}

// peekLease is how long peeked and redriven messages are held.
const peekLease = time.Minute

// Peek receives and gives back, which counts an attempt. Of one FIFO group it
// sees no more than one receive returns, 10, and of any queue what it receives
// within half a minute: after that what came first would come again.
func (b *Broker) Peek(ctx context.Context, queue string, max int) ([]broker.Message, error) {
	var out []broker.Message
	err := b.admin(ctx, "peek", queue, func() error {
		if max <= 0 {
			return broker.Invalid("max %d: want at least 1", max)
		}
		t, err := b.resolve(ctx, queue)
		if err != nil {
			return err
		}
		var items []settlement
		var leases []time.Time
		for start := time.Now(); len(out) < max && err == nil && time.Since(start) < peekLease/2; {
			var ms []types.Message
			if ms, err = b.receiveSome(ctx, t, min(batchEntries, max-len(out))); len(ms) == 0 {
				break
			}
			until := time.Now().Add(peekLease)
			for i := range ms {
				r := decode(&ms[i], b.o.UnwrapSNS)
				origin(&r, t.name)
				out = append(out, r.Message)
				items = append(items, settlement{receipt: aws.ToString(ms[i].ReceiptHandle), release: true})
				leases = append(leases, until)
			}
		}
		s := newSettler(b, t)
		back, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()
		defer s.close(back)
		return errors.Join(err, broker.NewBatchError(s.many(back, s.changes, items, leases)))
	})
	return out, err
}

// receiveSome returns up to n messages held for peekLease, none if there are none.
func (b *Broker) receiveSome(ctx context.Context, t *target, n int) ([]types.Message, error) {
	out, err := control(ctx, b, func(ctx context.Context) (*awssqs.ReceiveMessageOutput, error) {
		return b.sqs.ReceiveMessage(ctx, &awssqs.ReceiveMessageInput{
			QueueUrl:            &t.url,
			MaxNumberOfMessages: int32(n),
			// A short poll asks some of the servers only and misses messages.
			WaitTimeSeconds:             1,
			VisibilityTimeout:           seconds(peekLease),
			MessageAttributeNames:       allAttributes,
			MessageSystemAttributeNames: systemAttributes,
		})
	})
	if err != nil {
		return nil, err
	}
	return out.Messages, nil
}

// DeclareStream returns ErrUnsupported: SQS has no streams.
func (b *Broker) DeclareStream(_ context.Context, name string, _ broker.StreamConfig) error {
	return noStreams("declare stream", name)
}

// DeleteStream returns ErrUnsupported: SQS has no streams.
func (b *Broker) DeleteStream(_ context.Context, name string) error {
	return noStreams("delete stream", name)
}

// ResetGroup returns ErrUnsupported: SQS has no streams.
func (b *Broker) ResetGroup(_ context.Context, stream, _ string, _ broker.Position) error {
	return noStreams("reset group", stream)
}

func noStreams(op, name string) error {
	return fail(op, name, broker.Unsupported("SQS has no streams"))
}

// admin runs an operation unless the broker is closed or ctx has ended.
func (b *Broker) admin(ctx context.Context, op, name string, do func() error) error {
	err := b.use()
	if err == nil {
		err = broker.ContextError(ctx)
	}
	if err == nil {
		err = do()
	}
	return fail(op, name, err)
}
