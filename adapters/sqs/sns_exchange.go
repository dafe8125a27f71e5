package sqs

import (
	"context"
	"strings"
	"sync"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sns"
	snstypes "github.com/aws/aws-sdk-go-v2/service/sns/types"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/queuestream/broker"
)

var (
	_ broker.Exchanger = (*Broker)(nil)
	_ broker.Exchange  = (*Exchange)(nil)
)

// maxSNSBatch is the most bytes of a message and of a batch to SNS.
const maxSNSBatch = 256 << 10

// An Exchange is a handle on an SNS topic. Queues are bound to it by
// [Broker.Bind]; a message that no queue takes is dropped by SNS without a word.
type Exchange struct {
	b     *Broker
	name  string
	kind  broker.ExchangeKind
	caps  broker.QueueCapabilities
	sends *sender
	close sync.Once
}

// Exchange opens an exchange. It needs sns:GetTopicAttributes,
// sns:ListTagsForResource and, without Options.AccountID, sts:GetCallerIdentity.
func (b *Broker) Exchange(ctx context.Context, name string) (broker.Exchange, error) {
	var e *Exchange
	err := b.admin(ctx, "open exchange", name, func() error {
		topic, kind, err := b.topic(ctx, name)
		if err != nil {
			return err
		}
		fifo := strings.HasSuffix(name, fifoSuffix)
		e = &Exchange{b: b, name: name, kind: kind, caps: broker.QueueCapabilities{
			Headers: true, MaxBytes: largest(maxSNSBatch, &b.o), Durable: true,
			Groups: fifo, Dedup: fifo, Idempotent: fifo,
		}}
		if fifo {
			e.caps.DedupWindow = dedupWindow
		}
		e.sends = b.topicSender(topic, fifo)
		return b.add(e)
	})
	if err != nil {
		return nil, err
	}
	return e, nil
}

// Name returns the exchange's name.
func (e *Exchange) Name() string { return e.name }

// Capabilities returns what the exchange honours.
func (e *Exchange) Capabilities() broker.ExchangeCapabilities {
	return broker.ExchangeCapabilities{Kind: e.kind, MatchAny: true, Queue: e.caps}
}

// RouteTo returns a Publisher with that routing key.
func (e *Exchange) RouteTo(routingKey string) broker.Publisher { return &route{e: e, key: routingKey} }

func (e *Exchange) drain(ctx context.Context) error {
	return fail("shutdown", e.name, e.sends.drain(ctx))
}

// Close waits up to 3 s for what is being sent.
func (e *Exchange) Close() error {
	e.close.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		_ = e.sends.close(ctx) // ctx's error: what was not sent failed with ErrClosed
		e.b.remove(e)
	})
	return nil
}

// A route publishes to an exchange with one routing key.
type route struct {
	e   *Exchange
	key string
}

// Publish does what [broker.Publisher] says; to SNS, accepted is enough, a
// queue need not have it yet.
func (r *route) Publish(ctx context.Context, m broker.Message) (broker.Receipt, error) {
	if m.ID == "" {
		m.ID = broker.NewID()
	}
	receipt := broker.Receipt{ID: m.ID}
	w, err := r.prepare(&m)
	if err == nil {
		err = broker.ContextError(ctx)
	}
	if err == nil {
		receipt.Sequence, err = r.e.sends.one(ctx, w)
	}
	return receipt, fail("publish", r.e.name, err)
}

// PublishBatch does what [Queue.PublishBatch] does, in batches of 256 KiB.
func (r *route) PublishBatch(ctx context.Context, ms []broker.Message) ([]broker.Receipt, error) {
	return publishBatch(ctx, r.e.sends, r.e.name, ms, r.prepare)
}

func (r *route) prepare(m *broker.Message) (wire, error) {
	e := r.e
	if err := broker.ValidateMessage(m, &e.caps); err != nil {
		return wire{}, err
	}
	c := codec{fifo: e.caps.Groups, plain: e.b.o.Plain}
	switch e.kind {
	case broker.ExchangeDirect, broker.ExchangeTopic:
		if !isText(r.key) || len(r.key) > 256 {
			return wire{}, broker.Unsupported("routing key %.64q: SNS filters on 1 to 256 bytes of text", r.key)
		}
		c.routingKey = r.key
	case broker.ExchangeHeaders:
		c.native = true
	}
	w, err := c.encode(m, extra{})
	if err == nil && w.size > maxSNSBatch {
		err = &broker.SizeError{Size: w.size, Limit: maxSNSBatch}
	}
	return w, err
}

// topicSender returns a sender to a topic.
func (b *Broker) topicSender(topic string, fifo bool) *sender {
	return newSender(b, topic, maxSNSBatch, fifo, func(ctx context.Context, items []outgoing, results []sent) error {
		entries := make([]snstypes.PublishBatchRequestEntry, len(items))
		for i := range items {
			w := items[i].wire
			attrs := make(map[string]snstypes.MessageAttributeValue, len(w.attrs))
			for j := range w.attrs {
				a := &w.attrs[j]
				v := snstypes.MessageAttributeValue{DataType: a.dataType()}
				if a.binary {
					v.BinaryValue = []byte(a.value)
				} else {
					v.StringValue = &a.value
				}
				attrs[a.name] = v
			}
			entries[i] = snstypes.PublishBatchRequestEntry{
				Id:                     &batchIDs[i],
				Message:                &w.body,
				MessageAttributes:      attrs,
				MessageGroupId:         optional(w.group),
				MessageDeduplicationId: optional(w.dedup),
			}
		}
		out, err := b.sns.PublishBatch(ctx, &sns.PublishBatchInput{TopicArn: &topic, PublishBatchRequestEntries: entries})
		if err != nil {
			return err
		}
		a := newAnswer(results)
		for i := range out.Successful {
			e := &out.Successful[i]
			a.accepted(e.Id, e.MessageId, e.SequenceNumber)
		}
		for i := range out.Failed {
			e := &out.Failed[i]
			a.refused(e.Id, e.Code, e.Message, e.SenderFault)
		}
		return nil
	})
}

// topicARN returns the ARN of a topic of this account.
func (b *Broker) topicARN(ctx context.Context, name string) (string, error) {
	if err := validateTopic(name); err != nil {
		return "", err
	}
	b.mu.Lock()
	account := b.account
	b.mu.Unlock()
	if account == "" {
		account = b.o.AccountID
	}
	if account == "" {
		out, err := control(ctx, b, func(ctx context.Context) (*sts.GetCallerIdentityOutput, error) {
			return b.sts.GetCallerIdentity(ctx, nil)
		})
		if err != nil {
			return "", err
		}
		account = aws.ToString(out.Account)
	}
	b.mu.Lock()
	b.account = account
	b.mu.Unlock()
	partition := "aws"
	switch {
	case strings.HasPrefix(b.cfg.Region, "cn-"):
		partition = "aws-cn"
	case strings.HasPrefix(b.cfg.Region, "us-gov-"):
		partition = "aws-us-gov"
	}
	return strings.Join([]string{"arn", partition, "sns", b.cfg.Region, account, name}, ":"), nil
}

// topic finds an exchange: its ARN and its kind, which is a tag. A topic
// without that is fanout.
func (b *Broker) topic(ctx context.Context, name string) (string, broker.ExchangeKind, error) {
	topic, err := b.topicARN(ctx, name)
	if err != nil {
		return "", 0, err
	}
	if _, err = control(ctx, b, func(ctx context.Context) (*sns.GetTopicAttributesOutput, error) {
		return b.sns.GetTopicAttributes(ctx, &sns.GetTopicAttributesInput{TopicArn: &topic})
	}); err != nil {
		return "", 0, err
	}
	out, err := control(ctx, b, func(ctx context.Context) (*sns.ListTagsForResourceOutput, error) {
		return b.sns.ListTagsForResource(ctx, &sns.ListTagsForResourceInput{ResourceArn: &topic})
	})
	if err != nil {
		return "", 0, err
	}
	for _, tag := range out.Tags {
		if aws.ToString(tag.Key) != tagKind {
			continue
		}
		for kind := broker.ExchangeDirect; kind <= broker.ExchangeHeaders; kind++ {
			if kind.String() == aws.ToString(tag.Value) {
				return topic, kind, nil
			}
		}
	}
	return topic, broker.ExchangeFanout, nil
}

// validateTopic checks CreateTopic's rule: 1 to 256 of A-Z a-z 0-9 _ -, where a
// FIFO topic's name ends in ".fifo".
func validateTopic(name string) error {
	if base := strings.TrimSuffix(name, fifoSuffix); len(name) <= 256 && base != "" &&
		strings.IndexFunc(base, func(r rune) bool {
			return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '_' && r != '-'
		}) < 0 {
		return nil
	}
	return broker.Invalid("name %.100q: want 1 to 256 of A-Z a-z 0-9 _ -, and .fifo at the end for FIFO", name)
}
