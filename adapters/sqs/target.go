package sqs

import (
	"context"
	"encoding/json"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/arn"
	awssqs "github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/queuestream/broker"
)

const (
	fifoSuffix   = ".fifo"
	maxBatch     = 1 << 20        // bytes of a SendMessageBatch, and of a message
	maxLease     = 12 * time.Hour // of one receipt, in all
	dedupWindow  = 5 * time.Minute
	defaultLease = 30 * time.Second
)

// A target is what is known of a queue.
type target struct {
	name         string
	url          string
	arn          string
	fifo         bool
	contentDedup bool
	maxBytes     int
	lease        time.Duration
	delay        time.Duration
	maxAttempts  int
	deadLetter   string // its ARN
}

// queueURL asks SQS for the URL of a queue; account may be "".
func (b *Broker) queueURL(ctx context.Context, name, account string) (string, error) {
	if err := validateName(name); err != nil {
		return "", err
	}
	out, err := control(ctx, b, func(ctx context.Context) (*awssqs.GetQueueUrlOutput, error) {
		return b.sqs.GetQueueUrl(ctx, &awssqs.GetQueueUrlInput{QueueName: &name, QueueOwnerAWSAccountId: optional(account)})
	})
	if err != nil {
		return "", err
	}
	return aws.ToString(out.QueueUrl), nil
}

func (b *Broker) attributes(ctx context.Context, url string, names ...types.QueueAttributeName) (map[string]string, error) {
	out, err := control(ctx, b, func(ctx context.Context) (*awssqs.GetQueueAttributesOutput, error) {
		return b.sqs.GetQueueAttributes(ctx, &awssqs.GetQueueAttributesInput{QueueUrl: &url, AttributeNames: names})
	})
	if err != nil {
		return nil, err
	}
	return out.Attributes, nil
}

// resolve finds a queue and reads its configuration.
func (b *Broker) resolve(ctx context.Context, name string) (*target, error) {
	return b.resolveIn(ctx, name, "")
}

func (b *Broker) resolveIn(ctx context.Context, name, account string) (*target, error) {
	url, err := b.queueURL(ctx, name, account)
	if err != nil {
		return nil, err
	}
	attrs, err := b.attributes(ctx, url, types.QueueAttributeNameAll)
	if err != nil {
		return nil, err
	}
	t := &target{
		name:         name,
		url:          url,
		arn:          attrs[string(types.QueueAttributeNameQueueArn)],
		fifo:         strings.HasSuffix(name, fifoSuffix),
		contentDedup: attrs[string(types.QueueAttributeNameContentBasedDeduplication)] == "true",
		maxBytes:     maxBatch,
		lease:        defaultLease,
		delay:        attrSeconds(attrs, types.QueueAttributeNameDelaySeconds),
	}
	if n, err := strconv.Atoi(attrs[string(types.QueueAttributeNameMaximumMessageSize)]); err == nil && n > 0 {
		t.maxBytes = n
	}
	if _, ok := attrs[string(types.QueueAttributeNameVisibilityTimeout)]; ok {
		t.lease = attrSeconds(attrs, types.QueueAttributeNameVisibilityTimeout)
	}
	if r, ok := parseRedrive(attrs[string(types.QueueAttributeNameRedrivePolicy)]); ok {
		t.maxAttempts, t.deadLetter = r.MaxReceiveCount, r.TargetARN
	}
	return t, nil
}

// resolveARN finds the queue that an ARN names, of another account too.
func (b *Broker) resolveARN(ctx context.Context, queueARN string) (*target, error) {
	a, err := arn.Parse(queueARN)
	if err != nil {
		return nil, broker.Invalid("queue ARN %q: %w", queueARN, err)
	}
	return b.resolveIn(ctx, a.Resource, a.AccountID)
}

func attrSeconds(attrs map[string]string, name types.QueueAttributeName) time.Duration {
	n, err := strconv.Atoi(attrs[string(name)])
	if err != nil {
		return 0 // not told
	}
	return time.Duration(n) * time.Second
}

// A redrivePolicy is the attribute RedrivePolicy; maxReceiveCount comes as a
// number or as a string.
type redrivePolicy struct {
	TargetARN       string
	MaxReceiveCount int
}

func parseRedrive(s string) (redrivePolicy, bool) {
	var raw struct {
		TargetARN       string `json:"deadLetterTargetArn"`
		MaxReceiveCount any    `json:"maxReceiveCount"`
	}
	if s == "" || json.Unmarshal([]byte(s), &raw) != nil || raw.TargetARN == "" {
		return redrivePolicy{}, false
	}
	r := redrivePolicy{TargetARN: raw.TargetARN}
	switch n := raw.MaxReceiveCount.(type) {
	case float64:
		r.MaxReceiveCount = int(n)
	case string:
		r.MaxReceiveCount, _ = strconv.Atoi(n) // 0: not told
	}
	return r, true
}

// arnName returns the name of the queue or topic that an ARN names.
func arnName(s string) string { return s[strings.LastIndexByte(s, ':')+1:] }

// validateName checks CreateQueue's rule: 1 to 80 of A-Z a-z 0-9 _ -, where a
// FIFO queue's name ends in ".fifo".
func validateName(name string) error {
	base := strings.TrimSuffix(name, fifoSuffix)
	bad := base == "" || len(name) > 80
	for i := range len(base) {
		c := base[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '_', c == '-':
		default:
			bad = true
		}
	}
	if bad {
		return broker.Invalid("name %.100q: want 1 to 80 of A-Z a-z 0-9 _ -, and .fifo at the end for FIFO", name)
	}
	return nil
}
