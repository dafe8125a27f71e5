package sqs

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sns"
	snstypes "github.com/aws/aws-sdk-go-v2/service/sns/types"
	awssqs "github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/queuestream/broker"
)

// Tags of this package. SNS has one subscription for a queue with one policy,
// from which its bindings cannot be told apart: each is a tag of the queue.
const (
	tagKind = "qs-exchange-kind" // of a topic
	tagBind = "qs-bind."         // of a queue: and hashes of the exchange and of the binding
	maxTags = 50
)

// DeclareExchange makes an SNS topic, FIFO if its name ends in .fifo. Its kind
// is a tag. It needs sns:CreateTopic, sns:TagResource and what Exchange needs.
func (b *Broker) DeclareExchange(ctx context.Context, name string, kind broker.ExchangeKind) error {
	return b.admin(ctx, "declare exchange", name, func() error {
		if kind < broker.ExchangeDirect || kind > broker.ExchangeHeaders {
			return broker.Invalid("exchange kind %d", kind)
		}
		_, have, err := b.topic(ctx, name)
		if errors.Is(err, broker.ErrNotFound) {
			in := &sns.CreateTopicInput{
				Name: &name,
				Tags: []snstypes.Tag{{Key: aws.String(tagKind), Value: aws.String(kind.String())}},
			}
			if strings.HasSuffix(name, fifoSuffix) {
				in.Attributes = map[string]string{"FifoTopic": "true"}
			}
			_, err = control(ctx, b, func(ctx context.Context) (*sns.CreateTopicOutput, error) {
				return b.sns.CreateTopic(ctx, in)
			})
			return err
		}
		if err == nil && have != kind {
			err = fmt.Errorf("%w: kind is %v, not %v", broker.ErrConflict, have, kind)
		}
		return err
	})
}

// DeleteExchange deletes a topic with its subscriptions. Tags on the queues
// that were bound to it stay.
func (b *Broker) DeleteExchange(ctx context.Context, name string) error {
	return b.admin(ctx, "delete exchange", name, func() error {
		topic, err := b.topicARN(ctx, name)
		if err != nil {
			return err
		}
		_, err = control(ctx, b, func(ctx context.Context) (*sns.DeleteTopicOutput, error) {
			return b.sns.DeleteTopic(ctx, &sns.DeleteTopicInput{TopicArn: &topic})
		})
		if errors.Is(err, broker.ErrNotFound) {
			return nil
		}
		return err
	})
}

// Bind subscribes a queue to a topic with raw delivery, lets the topic send to
// it (the queue's policy), and merges the binding with the others of the pair
// into the subscription's filter policy. AWS takes up to 15 minutes until a
// filter policy holds. It needs sns:Subscribe, sns:ListSubscriptionsByTopic,
// sns:SetSubscriptionAttributes, sqs:SetQueueAttributes, sqs:TagQueue and
// sqs:ListQueueTags. Bindings of one pair must not be changed by two programs
// at a time.
func (b *Broker) Bind(ctx context.Context, queue, exchange string, binding broker.Binding) error {
	return b.admin(ctx, "bind", queue+" to "+exchange, func() error {
		topic, kind, t, err := b.pair(ctx, queue, exchange)
		if err != nil {
			return err
		}
		if t.fifo && !strings.HasSuffix(exchange, fifoSuffix) {
			return broker.Unsupported("a FIFO queue takes messages of FIFO topics only")
		}
		key, value := bindingTag(exchange, kind, &binding)
		if len(value) > 256 {
			return broker.Unsupported("the binding takes %d bytes as a tag of the queue, which holds 256", len(value))
		}
		tags, err := b.tags(ctx, t.url)
		if err != nil {
			return err
		}
		if _, ok := tags[key]; !ok && len(tags) >= maxTags {
			return broker.Unsupported("the queue has %d tags, the most that SQS allows, and each binding is one", len(tags))
		}
		if tags == nil {
			tags = map[string]string{}
		}
		tags[key] = value
		policy, err := filterPolicy(kind, bindingsOf(exchange, tags))
		if err != nil {
			return err
		}
		if err := b.allow(ctx, t, topic, true); err != nil {
			return err
		}
		if _, err := control(ctx, b, func(ctx context.Context) (*awssqs.TagQueueOutput, error) {
			return b.sqs.TagQueue(ctx, &awssqs.TagQueueInput{QueueUrl: &t.url, Tags: map[string]string{key: value}})
		}); err != nil {
			return err
		}
		return b.subscribe(ctx, topic, t.arn, policy)
	})
}

// Unbind undoes Bind; the last binding of a pair ends its subscription.
func (b *Broker) Unbind(ctx context.Context, queue, exchange string, binding broker.Binding) error {
	return b.admin(ctx, "unbind", queue+" from "+exchange, func() error {
		topic, kind, t, err := b.pair(ctx, queue, exchange)
		if err != nil {
			return err
		}
		tags, err := b.tags(ctx, t.url)
		if err != nil {
			return err
		}
		key, _ := bindingTag(exchange, kind, &binding)
		if _, ok := tags[key]; !ok {
			return nil
		}
		delete(tags, key)
		if left := bindingsOf(exchange, tags); len(left) > 0 {
			policy, err := filterPolicy(kind, left)
			if err != nil {
				return err
			}
			if err := b.subscribe(ctx, topic, t.arn, policy); err != nil {
				return err
			}
		} else if err := b.unsubscribe(ctx, topic, t); err != nil {
			return err
		}
		_, err = control(ctx, b, func(ctx context.Context) (*awssqs.UntagQueueOutput, error) {
			return b.sqs.UntagQueue(ctx, &awssqs.UntagQueueInput{QueueUrl: &t.url, TagKeys: []string{key}})
		})
		return err
	})
}

func (b *Broker) pair(ctx context.Context, queue, exchange string) (string, broker.ExchangeKind, *target, error) {
	topic, kind, err := b.topic(ctx, exchange)
	if err != nil {
		return "", 0, nil, fmt.Errorf("exchange %q: %w", exchange, err)
	}
	t, err := b.resolve(ctx, queue)
	if err != nil {
		return "", 0, nil, fmt.Errorf("queue %q: %w", queue, err)
	}
	return topic, kind, t, nil
}

// subscribe makes the subscription or gives it the policy.
func (b *Broker) subscribe(ctx context.Context, topic, queue, policy string) error {
	sub, err := b.subscription(ctx, topic, queue)
	if err != nil {
		return err
	}
	if sub == "" {
		_, err = control(ctx, b, func(ctx context.Context) (*sns.SubscribeOutput, error) {
			return b.sns.Subscribe(ctx, &sns.SubscribeInput{
				TopicArn: &topic, Protocol: aws.String("sqs"), Endpoint: &queue, ReturnSubscriptionArn: true,
				Attributes: map[string]string{"RawMessageDelivery": "true", "FilterPolicy": policy},
			})
		})
		return err
	}
	for _, attr := range [][2]string{{"RawMessageDelivery", "true"}, {"FilterPolicy", policy}} {
		if _, err = control(ctx, b, func(ctx context.Context) (*sns.SetSubscriptionAttributesOutput, error) {
			return b.sns.SetSubscriptionAttributes(ctx, &sns.SetSubscriptionAttributesInput{
				SubscriptionArn: &sub, AttributeName: &attr[0], AttributeValue: &attr[1],
			})
		}); err != nil {
			return err
		}
	}
	return nil
}

func (b *Broker) unsubscribe(ctx context.Context, topic string, t *target) error {
	sub, err := b.subscription(ctx, topic, t.arn)
	if err != nil {
		return err
	}
	if sub != "" {
		if _, err = control(ctx, b, func(ctx context.Context) (*sns.UnsubscribeOutput, error) {
			return b.sns.Unsubscribe(ctx, &sns.UnsubscribeInput{SubscriptionArn: &sub})
		}); err != nil {
			return err
		}
	}
	return b.allow(ctx, t, topic, false)
}

// subscription returns the ARN of a queue's subscription, or "".
func (b *Broker) subscription(ctx context.Context, topic, queue string) (string, error) {
	in := &sns.ListSubscriptionsByTopicInput{TopicArn: &topic}
	for {
		out, err := control(ctx, b, func(ctx context.Context) (*sns.ListSubscriptionsByTopicOutput, error) {
			return b.sns.ListSubscriptionsByTopic(ctx, in)
		})
		if err != nil {
			return "", err
		}
		for _, s := range out.Subscriptions {
			if aws.ToString(s.Protocol) == "sqs" && aws.ToString(s.Endpoint) == queue {
				return aws.ToString(s.SubscriptionArn), nil
			}
		}
		if in.NextToken = out.NextToken; aws.ToString(out.NextToken) == "" {
			return "", nil
		}
	}
}

// allow adds to, or takes from, the queue's policy the statement that lets a
// topic send to it. Other statements stay as they are.
func (b *Broker) allow(ctx context.Context, t *target, topic string, allowed bool) error {
	attrs, err := b.attributes(ctx, t.url, types.QueueAttributeNamePolicy)
	if err != nil {
		return err
	}
	policy := map[string]any{"Version": "2012-10-17"}
	if s := attrs[string(types.QueueAttributeNamePolicy)]; s != "" {
		if err := json.Unmarshal([]byte(s), &policy); err != nil {
			return broker.Invalid("the queue's policy is not JSON: %w", err)
		}
	}
	var statements []any
	switch s := policy["Statement"].(type) {
	case []any:
		statements = s
	case map[string]any: // a single one may stand alone
		statements = []any{s}
	}
	sid := "qs" + shortHash(topic)
	mine := func(s any) bool {
		m, ok := s.(map[string]any)
		return ok && m["Sid"] == sid
	}
	if slices.ContainsFunc(statements, mine) == allowed {
		return nil
	}
	if allowed {
		statements = append(statements, map[string]any{
			"Sid":       sid,
			"Effect":    "Allow",
			"Principal": map[string]any{"Service": "sns.amazonaws.com"},
			"Action":    "sqs:SendMessage",
			"Resource":  t.arn,
			"Condition": map[string]any{"ArnEquals": map[string]any{"aws:SourceArn": topic}},
		})
	} else {
		statements = slices.DeleteFunc(statements, mine)
	}
	value := "" // no policy: a policy without statements is refused
	if len(statements) > 0 {
		policy["Statement"] = statements
		value = marshal(policy)
	}
	_, err = control(ctx, b, func(ctx context.Context) (*awssqs.SetQueueAttributesOutput, error) {
		return b.sqs.SetQueueAttributes(ctx, &awssqs.SetQueueAttributesInput{
			QueueUrl: &t.url, Attributes: map[string]string{string(types.QueueAttributeNamePolicy): value},
		})
	})
	return err
}

// A bound is a binding as its tag holds it.
type bound struct {
	Key     string      `json:"k,omitempty"`
	Headers [][2]string `json:"h,omitempty"`
	Any     bool        `json:"any,omitempty"`
}

// bindingTag returns the tag of a binding: what its kind of exchange looks at,
// in base64url, since tags allow few characters.
func bindingTag(exchange string, kind broker.ExchangeKind, binding *broker.Binding) (key, value string) {
	var e bound
	switch kind {
	case broker.ExchangeDirect, broker.ExchangeTopic:
		e.Key = safe(binding.RoutingKey)
	case broker.ExchangeHeaders:
		for _, h := range binding.Headers {
			e.Headers = append(e.Headers, [2]string{safe(h.Key), safe(h.Value)})
		}
		slices.SortFunc(e.Headers, func(a, b [2]string) int { return strings.Compare(a[0], b[0]) })
		e.Any = binding.MatchAny
	}
	s := marshal(e)
	return tagBind + shortHash(exchange) + "." + shortHash(s), base64.RawURLEncoding.EncodeToString([]byte(s))
}

// bindingsOf reads the tags of one exchange's bindings.
func bindingsOf(exchange string, tags map[string]string) []broker.Binding {
	var out []broker.Binding
	prefix := tagBind + shortHash(exchange) + "."
	for _, key := range slices.Sorted(maps.Keys(tags)) {
		if !strings.HasPrefix(key, prefix) {
			continue
		}
		raw, err := base64.RawURLEncoding.DecodeString(tags[key])
		var e bound
		if err != nil || json.Unmarshal(raw, &e) != nil {
			continue // not ours after all
		}
		binding := broker.Binding{RoutingKey: restore(e.Key), MatchAny: e.Any}
		for _, h := range e.Headers {
			binding.Headers = append(binding.Headers, broker.Header{Key: restore(h[0]), Value: restore(h[1])})
		}
		out = append(out, binding)
	}
	return out
}

func shortHash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:8])
}
