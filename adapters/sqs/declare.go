package sqs

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	awssqs "github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/queuestream/broker"
)

// maxReceives is the largest maxReceiveCount of a redrive policy.
const maxReceives = 1000

// queueOptions are QueueConfig.Options, and the attributes that they set.
var queueOptions = map[string]types.QueueAttributeName{
	"kms_key_id":           types.QueueAttributeNameKmsMasterKeyId,
	"kms_reuse_seconds":    types.QueueAttributeNameKmsDataKeyReusePeriodSeconds,
	"managed_sse":          types.QueueAttributeNameSqsManagedSseEnabled,
	"throughput_limit":     types.QueueAttributeNameFifoThroughputLimit,
	"receive_wait_seconds": types.QueueAttributeNameReceiveMessageWaitTimeSeconds,
	"redrive_allow_policy": types.QueueAttributeNameRedriveAllowPolicy,
	"policy":               types.QueueAttributeNamePolicy,
}

// A setting is an attribute as it has to be.
type setting struct {
	attr  types.QueueAttributeName
	value string
	// none is what a queue answers that was declared without it; "" where SQS
	// has a default of its own, which is not compared.
	none string
}

// DeclareQueue makes a queue, FIFO if its name ends in .fifo. Of what exists,
// it compares what cfg sets, and where cfg sets no delay, dead-letter queue or
// dedup, that there is none; lease, retention, size and options that cfg
// leaves out are not compared. It needs sqs:CreateQueue, sqs:GetQueueUrl,
// sqs:GetQueueAttributes and, with tags, sqs:TagQueue and sqs:ListQueueTags.
func (b *Broker) DeclareQueue(ctx context.Context, name string, cfg broker.QueueConfig) error {
	return b.admin(ctx, "declare queue", name, func() error {
		if err := validateName(name); err != nil {
			return err
		}
		settings, err := b.settings(ctx, name, &cfg)
		if err != nil {
			return err
		}
		url, err := b.queueURL(ctx, name, "")
		if errors.Is(err, broker.ErrNotFound) {
			err = b.createQueue(ctx, name, settings, cfg.Tags)
			if !errors.Is(err, broker.ErrConflict) {
				return err
			}
			url, err = b.queueURL(ctx, name, "") // made by another one meanwhile
		}
		if err != nil {
			return err
		}
		return b.compare(ctx, url, settings, cfg.Tags)
	})
}

func (b *Broker) createQueue(ctx context.Context, name string, settings []setting, tags map[string]string) error {
	attrs := map[string]string{}
	for _, s := range settings {
		if s.value != "" {
			attrs[string(s.attr)] = s.value
		}
	}
	_, err := control(ctx, b, func(ctx context.Context) (*awssqs.CreateQueueOutput, error) {
		return b.sqs.CreateQueue(ctx, &awssqs.CreateQueueInput{QueueName: &name, Attributes: attrs, Tags: tags})
	})
	return err
}

// compare returns ErrConflict naming what differs.
func (b *Broker) compare(ctx context.Context, url string, settings []setting, tags map[string]string) error {
	attrs, err := b.attributes(ctx, url, types.QueueAttributeNameAll)
	if err != nil {
		return err
	}
	for _, s := range settings {
		want := cmp.Or(s.value, s.none)
		have, told := attrs[string(s.attr)]
		if want == "" || !told && (s.none == "" || want == s.none) {
			continue
		}
		if !told {
			have = s.none
		}
		if !equalAttribute(s.attr, want, have) {
			return fmt.Errorf("%w: attribute %s is %q, not %q", broker.ErrConflict, s.attr, have, want)
		}
	}
	if len(tags) == 0 {
		return nil
	}
	have, err := b.tags(ctx, url)
	if err != nil {
		return err
	}
	for _, key := range slices.Sorted(maps.Keys(tags)) {
		if v, ok := have[key]; !ok || v != tags[key] {
			return fmt.Errorf("%w: tag %s is %q, not %q", broker.ErrConflict, key, v, tags[key])
		}
	}
	return nil
}

func (b *Broker) tags(ctx context.Context, url string) (map[string]string, error) {
	out, err := control(ctx, b, func(ctx context.Context) (*awssqs.ListQueueTagsOutput, error) {
		return b.sqs.ListQueueTags(ctx, &awssqs.ListQueueTagsInput{QueueUrl: &url})
	})
	if err != nil {
		return nil, err
	}
	return out.Tags, nil
}

// equalAttribute compares JSON by its meaning, everything else as text.
func equalAttribute(name types.QueueAttributeName, a, b string) bool {
	if name == types.QueueAttributeNameRedrivePolicy {
		x, xok := parseRedrive(a)
		y, yok := parseRedrive(b)
		return xok == yok && x == y
	}
	if a == b || !strings.HasPrefix(a, "{") {
		return a == b
	}
	var x, y any
	if json.Unmarshal([]byte(a), &x) != nil || json.Unmarshal([]byte(b), &y) != nil {
		return false
	}
	return marshal(x) == marshal(y)
}

func wantsFIFO(cfg *broker.QueueConfig) bool {
	return cfg.Ordered || cfg.Dedup || cfg.ContentDedup || cfg.DedupPerGroup
}

// settings returns the attributes that cfg asks for, or why SQS has no such queue.
func (b *Broker) settings(ctx context.Context, name string, cfg *broker.QueueConfig) ([]setting, error) {
	fifo := strings.HasSuffix(name, fifoSuffix)
	switch {
	case wantsFIFO(cfg) && !fifo:
		return nil, broker.Unsupported("Ordered and dedup need a FIFO queue, whose name ends in .fifo: want %q", b.QueueName(name, *cfg))
	case cfg.MaxPriority < 0 || cfg.MaxLength < 0 || cfg.MaxBytes < 0:
		return nil, broker.Invalid("MaxPriority %d, MaxLength %d, MaxBytes %d: must not be negative",
			cfg.MaxPriority, cfg.MaxLength, cfg.MaxBytes)
	case cfg.MaxPriority > 0:
		return nil, broker.Unsupported("MaxPriority: SQS has no priorities")
	case cfg.MaxLength > 0:
		return nil, broker.Unsupported("MaxLength: SQS queues have no limit")
	case cfg.Temporary:
		return nil, broker.Unsupported("Temporary: SQS queues stay; see ReplyQueue for temporary ones")
	case cfg.MaxAttempts < 0 || cfg.MaxAttempts > maxReceives:
		return nil, broker.Unsupported("MaxAttempts %d: want 0 to %d", cfg.MaxAttempts, maxReceives)
	case cfg.MaxAttempts > 0 && cfg.DeadLetter == "":
		return nil, broker.Invalid("MaxAttempts %d without a DeadLetter queue", cfg.MaxAttempts)
	}
	if err := errors.Join(
		within("Lease", cfg.Lease, 0, maxLease),
		within("Delay", cfg.Delay, 0, maxDelay),
		within("TTL", cfg.TTL, time.Minute, 14*24*time.Hour),
	); err != nil {
		return nil, err
	}
	if cfg.MaxBytes != 0 && (cfg.MaxBytes < 1024 || cfg.MaxBytes > maxBatch) {
		return nil, broker.Unsupported("MaxBytes %d: want 1024 to %d", cfg.MaxBytes, maxBatch)
	}
	s := []setting{
		{attr: types.QueueAttributeNameVisibilityTimeout, value: attrDuration(cfg.Lease)},
		{attr: types.QueueAttributeNameDelaySeconds, value: attrDuration(cfg.Delay), none: "0"},
		{attr: types.QueueAttributeNameMessageRetentionPeriod, value: attrDuration(cfg.TTL)},
	}
	if cfg.MaxBytes > 0 {
		s = append(s, setting{attr: types.QueueAttributeNameMaximumMessageSize, value: strconv.Itoa(cfg.MaxBytes)})
	}
	if fifo {
		scope, content := "", ""
		if cfg.DedupPerGroup {
			scope = "messageGroup"
		}
		if cfg.ContentDedup {
			content = "true"
		}
		s = append(s,
			setting{attr: types.QueueAttributeNameFifoQueue, value: "true"},
			setting{attr: types.QueueAttributeNameContentBasedDeduplication, value: content, none: "false"},
			setting{attr: types.QueueAttributeNameDeduplicationScope, value: scope, none: "queue"})
	}
	redrive := setting{attr: types.QueueAttributeNameRedrivePolicy, none: "{}"}
	if cfg.DeadLetter != "" {
		dead, err := b.resolve(ctx, cfg.DeadLetter)
		if err != nil {
			return nil, fmt.Errorf("DeadLetter %q: %w", cfg.DeadLetter, err)
		}
		if dead.fifo != fifo {
			return nil, broker.Invalid("DeadLetter %q: a FIFO queue's must be FIFO, a standard queue's standard", dead.name)
		}
		n := cmp.Or(cfg.MaxAttempts, maxReceives)
		redrive.value = marshal(map[string]string{"deadLetterTargetArn": dead.arn, "maxReceiveCount": strconv.Itoa(n)})
	}
	return b.optionSettings(append(s, redrive), cfg.Options)
}

func (b *Broker) optionSettings(s []setting, options map[string]string) ([]setting, error) {
	for _, key := range slices.Sorted(maps.Keys(options)) {
		attr, ok := queueOptions[key]
		if !ok {
			return nil, broker.Unsupported("option %q: want one of %s", key,
				strings.Join(slices.Sorted(maps.Keys(queueOptions)), ", "))
		}
		if options[key] == "" {
			return nil, broker.Invalid("option %q is empty", key)
		}
		s = append(s, setting{attr: attr, value: options[key]})
	}
	return s, nil
}

func within(what string, d, lo, hi time.Duration) error {
	switch {
	case d == 0 || d >= lo && d <= hi && d%time.Second == 0:
		return nil
	case d%time.Second != 0:
		return broker.Invalid("%s %v: want whole seconds", what, d)
	}
	return broker.Unsupported("%s %v: want %v to %v", what, d, lo, hi)
}

func attrDuration(d time.Duration) string {
	if d == 0 {
		return ""
	}
	return strconv.Itoa(int(d / time.Second))
}
