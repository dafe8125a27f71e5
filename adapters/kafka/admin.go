package kafka

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/queuestream/broker"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
)

// DeclareStream does what broker.Admin promises. Options are topic
// configurations by Kafka's names (segment.bytes, min.insync.replicas, …). A
// number or option left at zero agrees with whatever exists.
func (b *Broker) DeclareStream(ctx context.Context, name string, cfg broker.StreamConfig) error {
	return fail("declare stream", name, b.declareStream(ctx, name, cfg))
}

func (b *Broker) declareStream(ctx context.Context, name string, cfg broker.StreamConfig) error {
	if err := b.usable(); err != nil {
		return err
	}
	if err := validateName(name); err != nil {
		return err
	}
	want, err := streamConfigs(&cfg)
	if err != nil {
		return err
	}
	return b.declareTopic(ctx, name, cfg.Partitions, cfg.Replicas, want)
}

// streamConfigs translates a StreamConfig to topic configurations.
func streamConfigs(cfg *broker.StreamConfig) (map[string]string, error) {
	switch {
	case cfg.Partitions < 0 || cfg.Partitions > 100_000:
		return nil, broker.Invalid("Partitions %d: want 0 to 100000", cfg.Partitions)
	case cfg.Replicas < 0 || cfg.Replicas > 1<<15-1:
		return nil, broker.Invalid("Replicas %d: want 0 to %d", cfg.Replicas, 1<<15-1)
	case cfg.Retention < 0 || cfg.Retention > broker.MaxDuration:
		return nil, broker.Invalid("Retention %v: want 0 to %v", cfg.Retention, broker.MaxDuration)
	case cfg.RetentionBytes < 0:
		return nil, broker.Invalid("RetentionBytes %d: must not be negative", cfg.RetentionBytes)
	case cfg.MaxBytes < 0 || cfg.MaxBytes > 1<<30:
		return nil, broker.Invalid("MaxBytes %d: want 0 to %d", cfg.MaxBytes, 1<<30)
	}
	want := map[string]string{"cleanup.policy": "delete"}
	if cfg.Compact {
		want["cleanup.policy"] = "compact"
		if cfg.Retention > 0 || cfg.RetentionBytes > 0 {
			want["cleanup.policy"] = "compact,delete"
		}
	}
	// Retention deletes whole segments, and never the one being written: they
	// are made small enough for what is asked.
	if cfg.Retention > 0 {
		want["segment.ms"] = strconv.FormatInt(min(max(1000, cfg.Retention.Milliseconds()/4), maxSegmentMillis), 10)
		want["retention.ms"] = strconv.FormatInt(max(1, cfg.Retention.Milliseconds()), 10)
	}
	if cfg.RetentionBytes > 0 {
		want["segment.bytes"] = strconv.FormatInt(min(max(1<<20, cfg.RetentionBytes/4), 1<<30), 10)
		want["retention.bytes"] = strconv.FormatInt(cfg.RetentionBytes, 10)
	}
	if cfg.MaxBytes > 0 {
		want["max.message.bytes"] = strconv.Itoa(cfg.MaxBytes + recordOverhead)
	}
	for k, v := range cfg.Options {
		if has, ok := want[k]; ok && k != "cleanup.policy" && !strings.HasPrefix(k, "segment.") && has != v {
			return nil, broker.Invalid("Options[%q] is %s, and the field for it says %s", k, v, has)
		}
		want[k] = v
	}
	return want, nil
}

// maxSegmentMillis is Kafka's own default of segment.ms, a week.
const maxSegmentMillis = 7 * 24 * 3600 * 1000

// declareTopic creates a topic, or compares the one that exists.
func (b *Broker) declareTopic(ctx context.Context, name string, partitions, replicas int, want map[string]string) error {
	configs := make(map[string]*string, len(want))
	for k, v := range want {
		configs[k] = kadm.StringPtr(v)
	}
	factor := int16(-1)
	if replicas > 0 {
		factor = int16(replicas) //nolint:gosec // checked by streamConfigs
	}
	resp, err := b.admin.CreateTopic(ctx, int32(max(1, partitions)), factor, configs, name) //nolint:gosec // checked by streamConfigs
	switch {
	case err == nil:
		return b.awaitTopic(ctx, name, max(1, partitions))
	case !errors.Is(err, kerr.TopicAlreadyExists):
		if resp.ErrMessage != "" {
			err = fmt.Errorf("%w: %s", err, resp.ErrMessage)
		}
		return bounded(ctx, authError(err))
	}
	return b.compareTopic(ctx, name, partitions, replicas, want)
}

// awaitTopic waits until the brokers know what the controller has decided.
func (b *Broker) awaitTopic(ctx context.Context, name string, partitions int) error {
	return await(ctx, func() (bool, error) {
		details, err := b.admin.ListTopics(ctx, name)
		if err != nil {
			return false, authError(err)
		}
		d := details[name]
		if errors.Is(d.Err, kerr.UnknownTopicOrPartition) {
			return false, nil
		}
		ready := len(d.Partitions) >= partitions
		for _, p := range d.Partitions {
			ready = ready && p.Leader >= 0
		}
		return ready, d.Err
	})
}

// await asks until yes, an error that lasts, or the end of ctx.
func await(ctx context.Context, ask func() (bool, error)) error {
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 250*time.Millisecond) {
		ok, err := ask()
		if err != nil && !passing(err) {
			return bounded(ctx, err)
		}
		if ok {
			return nil
		}
		if end := sleep(ctx, wait); err != nil && end != nil {
			return bounded(ctx, err)
		} else if end != nil {
			return end
		}
	}
}

// repeat asks until it is answered, an error lasts, ctx ends, or retryTimeout
// has passed. The client repeats most requests itself, but not the search for
// a coordinator that some begin with.
func repeat(ctx context.Context, ask func() error) error {
	within, cancel := context.WithTimeout(ctx, retryTimeout)
	defer cancel()
	err := await(within, func() (bool, error) {
		err := ask()
		return err == nil, err
	})
	if err != nil && within.Err() != nil && ctx.Err() == nil {
		return fmt.Errorf("%w for %v: %w", broker.ErrUnavailable, retryTimeout, err)
	}
	return err
}

func (b *Broker) compareTopic(ctx context.Context, name string, partitions, replicas int, want map[string]string) error {
	details, err := b.admin.ListTopics(ctx, name)
	if err != nil {
		return bounded(ctx, authError(err))
	}
	d := details[name]
	if d.Err != nil {
		return d.Err
	}
	have := len(d.Partitions)
	if partitions > 0 && have > partitions {
		return fmt.Errorf("%w: Partitions is %d, not %d, and cannot shrink", broker.ErrConflict, have, partitions)
	}
	if n := len(d.Partitions[0].Replicas); replicas > 0 && n != replicas {
		return fmt.Errorf("%w: Replicas is %d, not %d", broker.ErrConflict, n, replicas)
	}
	configs, err := b.topicConfigs(ctx, name)
	if err != nil {
		return err
	}
	for _, k := range slices.Sorted(maps.Keys(want)) {
		if has, ok := configs[k]; ok && has != want[k] {
			return fmt.Errorf("%w: %s is %s, not %s", broker.ErrConflict, k, has, want[k])
		}
	}
	if partitions <= have {
		return nil
	}
	grown, err := b.admin.UpdatePartitions(ctx, partitions, name)
	if err == nil {
		err = grown.Error()
	}
	if err != nil {
		return bounded(ctx, authError(err))
	}
	return b.awaitTopic(ctx, name, partitions)
}

// DeleteStream deletes the topic; one that does not exist is no error.
func (b *Broker) DeleteStream(ctx context.Context, name string) error {
	return fail("delete stream", name, b.deleteTopics(ctx, name))
}

func (b *Broker) deleteTopics(ctx context.Context, names ...string) error {
	if err := b.usable(); err != nil {
		return err
	}
	for _, name := range names {
		if err := validateName(name); err != nil {
			return err
		}
		if _, err := b.admin.DeleteTopic(ctx, name); err != nil && !errors.Is(err, kerr.UnknownTopicOrPartition) {
			return bounded(ctx, authError(err))
		}
		// What is known of the topic belongs to the one that is gone.
		b.met.of(name).known.Store(false) // first: the client asks for its partitioner anew
		b.client.PurgeTopicsFromProducing(name)
		err := await(ctx, func() (bool, error) {
			details, err := b.admin.ListTopics(ctx, name)
			if err != nil {
				return false, authError(err)
			}
			return errors.Is(details[name].Err, kerr.UnknownTopicOrPartition), nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// ResetGroup does what broker.Admin promises.
func (b *Broker) ResetGroup(ctx context.Context, stream, group string, to broker.Position) error {
	return fail("reset group", group, b.resetGroup(ctx, stream, group, to))
}

func (b *Broker) resetGroup(ctx context.Context, stream, group string, to broker.Position) error {
	if err := b.usable(); err != nil {
		return err
	}
	if err := validateGroup(group); err != nil {
		return err
	}
	t, err := b.describe(ctx, stream)
	if err != nil {
		return err
	}
	s := &Stream{b: b, topic: t}
	positions, err := s.resolve(ctx, to, false)
	if err != nil {
		return err
	}
	var offsets kadm.Offsets
	for p, n := range positions {
		if n < 0 {
			return outOfRange(to, p)
		}
		offsets.AddOffset(stream, p, n, -1)
	}
	resp, err := b.admin.CommitOffsets(ctx, group, offsets)
	if err == nil {
		err = resp.Error()
	}
	// The broker takes an offset from nobody in particular only for a group
	// without members.
	for _, refused := range []error{kerr.UnknownMemberID, kerr.IllegalGeneration, kerr.StaleMemberEpoch, kerr.RebalanceInProgress} {
		if errors.Is(err, refused) {
			return fmt.Errorf("%w: the group has members: %w", broker.ErrConflict, err)
		}
	}
	return bounded(ctx, authError(err))
}

// DeleteRecords deletes all records before the given offset of each
// partition; a negative offset deletes all that there are.
func (b *Broker) DeleteRecords(ctx context.Context, stream string, before map[int32]int64) error {
	return fail("delete records", stream, b.deleteRecords(ctx, stream, before))
}

func (b *Broker) deleteRecords(ctx context.Context, stream string, before map[int32]int64) error {
	if err := b.usable(); err != nil {
		return err
	}
	if err := validateName(stream); err != nil {
		return err
	}
	var offsets kadm.Offsets
	for p, n := range before {
		offsets.AddOffset(stream, p, max(-1, n), -1)
	}
	resp, err := b.admin.DeleteRecords(ctx, offsets)
	if err == nil {
		err = resp.Error()
	}
	return bounded(ctx, authError(err))
}

func noExchange() error {
	return broker.Unsupported("Kafka has no exchanges; every group of a stream gets every record")
}

// DeclareExchange is not supported: Kafka has no exchanges.
func (b *Broker) DeclareExchange(_ context.Context, name string, _ broker.ExchangeKind) error {
	return fail("declare exchange", name, noExchange())
}

// DeleteExchange is not supported: Kafka has no exchanges.
func (b *Broker) DeleteExchange(_ context.Context, name string) error {
	return fail("delete exchange", name, noExchange())
}

// Bind is not supported: Kafka has no exchanges.
func (b *Broker) Bind(_ context.Context, _, exchange string, _ broker.Binding) error {
	return fail("bind", exchange, noExchange())
}

// Unbind is not supported: Kafka has no exchanges.
func (b *Broker) Unbind(_ context.Context, _, exchange string, _ broker.Binding) error {
	return fail("unbind", exchange, noExchange())
}
