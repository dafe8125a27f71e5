package kafka

import (
	"context"
	"strconv"
	"strings"

	"github.com/queuestream/broker"
	"github.com/twmb/franz-go/pkg/kadm"
)

// A topic is what was read of a topic when its handle was opened.
type topic struct {
	name       string
	id         kadm.TopicID
	cluster    string // id
	partitions int
	maxBytes   int  // max.message.bytes: of a batch, as the broker counts it
	ownTime    bool // the broker stamps records itself
}

const (
	defaultMaxMessageBytes = 1_048_588 // the broker's own default of max.message.bytes
	// recordOverhead is what a record alone in its batch takes besides key,
	// value and headers: 61 bytes of batch, up to 40 of record, and room for
	// the lengths of a few headers.
	recordOverhead = 160
)

// validateName checks Kafka's rules for topics (Topic.validate in Kafka).
func validateName(name string) error {
	if name == "" || len(name) > 249 || name == "." || name == ".." {
		return broker.Invalid("name %q: want 1 to 249 characters, and not . or ..", name)
	}
	for i := range len(name) {
		switch c := name[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '_', c == '-':
		default:
			return broker.Invalid("name %q: character %q at byte %d: want letters, digits, '.', '_' and '-'", name, c, i)
		}
	}
	return nil
}

func validateGroup(group string) error {
	if group == "" || len(group) > 249 {
		return broker.Invalid("group of %d bytes: want 1 to 249", len(group))
	}
	return nil
}

// describe reads a topic's partitions and configuration.
func (b *Broker) describe(ctx context.Context, name string) (*topic, error) {
	if err := validateName(name); err != nil {
		return nil, err
	}
	m, err := b.admin.Metadata(ctx, name)
	if err != nil {
		return nil, bounded(ctx, authError(err))
	}
	d := m.Topics[name]
	if d.Err != nil {
		return nil, d.Err
	}
	t := &topic{name: name, id: d.ID, cluster: m.Cluster, partitions: len(d.Partitions), maxBytes: defaultMaxMessageBytes}
	configs, err := b.topicConfigs(ctx, name)
	if err != nil {
		return nil, err
	}
	if n, err := strconv.Atoi(configs["max.message.bytes"]); err == nil {
		t.maxBytes = n
	}
	t.ownTime = strings.EqualFold(configs["message.timestamp.type"], "LogAppendTime")
	b.maxBytes.Store(name, int32(min(t.maxBytes, 1<<30))) //nolint:gosec // bounded here
	return t, nil
}

// identity tells the topic with an id apart from one of the same name in
// another cluster, or deleted and created again.
func (t *topic) identity(id kadm.TopicID) string { return t.cluster + "/" + id.String() }

// topicConfigs returns a topic's configuration, empty if reading it is not allowed.
func (b *Broker) topicConfigs(ctx context.Context, name string) (map[string]string, error) {
	resources, err := b.admin.DescribeTopicConfigs(ctx, name)
	if err == nil {
		var r kadm.ResourceConfig
		if r, err = resources.On(name, nil); err == nil {
			err = r.Err
		}
		if err == nil {
			out := make(map[string]string, len(r.Configs))
			for _, c := range r.Configs {
				out[c.Key] = c.MaybeValue()
			}
			return out, nil
		}
	}
	if err = classify(authError(err)); isUnauthorized(err) {
		return map[string]string{}, nil
	}
	return nil, bounded(ctx, err)
}

// batchMaxBytes tells the client how large a batch of a topic may be.
func (b *Broker) batchMaxBytes(name string) int32 {
	if n, ok := b.maxBytes.Load(name); ok {
		if n, ok := n.(int32); ok {
			return n
		}
	}
	return defaultMaxMessageBytes
}

func (t *topic) streamCapabilities() broker.StreamCapabilities {
	return broker.StreamCapabilities{
		Headers:      true,
		Tombstones:   true,
		Compaction:   true,
		Timestamps:   !t.ownTime,
		SeekTime:     true,
		Transactions: true,
		Fencing:      true,
		GroupReset:   true,
		Growth:       true,
		Offsets:      true,
		MaxBytes:     max(0, t.maxBytes-recordOverhead),
		Durable:      true,
		Idempotent:   true,
	}
}
