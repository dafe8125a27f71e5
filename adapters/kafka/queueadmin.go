package kafka

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"

	"github.com/queuestream/broker"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
)

var _ broker.Admin = (*Broker)(nil)

// deliveryLimit is what a queue's group is given: the most that Kafka allows
// by default. Before the broker drops a record for it, a copy takes its place.
const deliveryLimit = 10

// DeclareQueue does what broker.Admin promises: the topic, its retry topic,
// the share group's configuration and, for MaxAttempts and DeadLetter, an
// entry in the topic queuestream.queues. Options are topic configurations by
// Kafka's names, and "partitions" (default 1) and "replication.factor"
// (default: the cluster's). Lease is the group's lock, which the cluster
// bounds (15 to 60 s unless configured otherwise).
func (b *Broker) DeclareQueue(ctx context.Context, name string, cfg broker.QueueConfig) error {
	return fail("declare queue", name, b.declareQueue(ctx, name, cfg))
}

func (b *Broker) declareQueue(ctx context.Context, name string, cfg broker.QueueConfig) error {
	if err := b.usable(); err != nil {
		return err
	}
	if err := validateName(name); err != nil {
		return err
	}
	if err := validateName(name + retrySuffix); err != nil {
		return err
	}
	if err := checkQueueConfig(&cfg); err != nil {
		return err
	}
	partitions, err := intOption(cfg.Options, "partitions", 100_000)
	if err != nil {
		return err
	}
	replicas, err := intOption(cfg.Options, "replication.factor", 1<<15-1)
	if err != nil {
		return err
	}
	if _, err := b.shareGroups(ctx); err != nil {
		return err
	}
	if cfg.DeadLetter != "" {
		if ok, err := b.exists(ctx, cfg.DeadLetter); err != nil || !ok {
			return errors.Join(fmt.Errorf("%w: dead-letter queue %q", broker.ErrNotFound, cfg.DeadLetter), err)
		}
	}
	want := maps.Clone(cfg.Options)
	if want == nil {
		want = map[string]string{}
	}
	delete(want, "partitions")
	delete(want, "replication.factor")
	if cfg.MaxBytes > 0 {
		want["max.message.bytes"] = strconv.Itoa(cfg.MaxBytes + recordOverhead + queueOverhead)
	}
	existed, err := b.exists(ctx, name)
	if err != nil {
		return err
	}
	if existed {
		if err := b.compareQueue(ctx, name, &cfg); err != nil {
			return err
		}
	}
	if err := b.declareTopic(ctx, name, partitions, replicas, want); err != nil {
		return err
	}
	if err := b.declareTopic(ctx, name+retrySuffix, retryPartitions, replicas, want); err != nil {
		return fmt.Errorf("retry topic: %w", err)
	}
	if err := b.declareGroup(ctx, name, &cfg); err != nil {
		return err
	}
	if existed && cfg.MaxAttempts == 0 && cfg.DeadLetter == "" {
		return nil
	}
	return b.setEntry(ctx, name, queueEntry{MaxAttempts: cfg.MaxAttempts, DeadLetter: cfg.DeadLetter})
}

// compareQueue compares what is not a topic's configuration.
func (b *Broker) compareQueue(ctx context.Context, name string, cfg *broker.QueueConfig) error {
	e, err := b.entry(ctx, name)
	if err != nil && !isUnauthorized(err) { // what may not be read agrees, unless it is asked for
		return err
	}
	if e.MaxAttempts != cfg.MaxAttempts {
		return fmt.Errorf("%w: MaxAttempts is %d, not %d", broker.ErrConflict, e.MaxAttempts, cfg.MaxAttempts)
	}
	if e.DeadLetter != cfg.DeadLetter {
		return fmt.Errorf("%w: DeadLetter is %q, not %q", broker.ErrConflict, e.DeadLetter, cfg.DeadLetter)
	}
	if cfg.Lease == 0 {
		return nil
	}
	configs, err := b.groupConfigs(ctx, shareGroup(name))
	if err != nil {
		return err
	}
	if want := strconv.FormatInt(cfg.Lease.Milliseconds(), 10); configs[configLock] != want {
		return fmt.Errorf("%w: %s is %s, not %s", broker.ErrConflict, configLock, configs[configLock], want)
	}
	return nil
}

func (b *Broker) declareGroup(ctx context.Context, name string, cfg *broker.QueueConfig) error {
	has, err := b.groupConfigs(ctx, shareGroup(name))
	if err != nil {
		return err
	}
	want := map[string]string{configReset: "earliest", configIsolation: "read_committed"}
	if _, ok := has[configLimit]; ok {
		want[configLimit] = strconv.Itoa(deliveryLimit)
	}
	if cfg.Lease > 0 {
		want[configLock] = strconv.FormatInt(cfg.Lease.Milliseconds(), 10)
	}
	err = b.setGroupConfigs(ctx, shareGroup(name), want)
	if errors.Is(err, kerr.InvalidConfig) && want[configLimit] != "" {
		// The cluster may allow fewer deliveries than its own default.
		delete(want, configLimit)
		err = b.setGroupConfigs(ctx, shareGroup(name), want)
	}
	return err
}

// checkQueueConfig refuses what a queue on Kafka has not.
func checkQueueConfig(cfg *broker.QueueConfig) error {
	switch {
	case cfg.Ordered:
		return broker.Unsupported("Ordered: a share group keeps no order; use a stream, whose keys keep it")
	case cfg.Dedup || cfg.ContentDedup || cfg.DedupPerGroup:
		return broker.Unsupported("Dedup: Kafka dedups the client's own retries alone")
	case cfg.Delay != 0:
		return broker.Unsupported("Delay: set it on each message")
	case cfg.TTL != 0:
		return broker.Unsupported("TTL: a topic's retention is by segment; set Options[\"retention.ms\"]")
	case cfg.MaxPriority != 0:
		return broker.Unsupported("MaxPriority: Kafka has no priorities")
	case cfg.MaxLength != 0:
		return broker.Unsupported("MaxLength: a topic has no limit that refuses")
	case cfg.Shards != 0:
		return broker.Unsupported("Shards: there are no groups; set Options[\"partitions\"] for parallelism")
	case cfg.Temporary:
		return broker.Unsupported("Temporary: Kafka keeps topics until they are deleted")
	case len(cfg.Tags) > 0:
		return broker.Unsupported("Tags: topics have none")
	case cfg.MaxAttempts < 0:
		return broker.Invalid("MaxAttempts %d: must not be negative", cfg.MaxAttempts)
	case cfg.MaxAttempts > 0 && cfg.DeadLetter == "":
		return broker.Invalid("MaxAttempts %d without a DeadLetter queue", cfg.MaxAttempts)
	case cfg.Lease < 0 || cfg.Lease > broker.MaxDuration:
		return broker.Invalid("Lease %v: want 0 to %v", cfg.Lease, broker.MaxDuration)
	case cfg.Lease > 0 && cfg.Lease < time.Second:
		return broker.Unsupported("Lease %v: Kafka's locks last at least a second", cfg.Lease)
	case cfg.MaxBytes < 0 || cfg.MaxBytes > 1<<30:
		return broker.Invalid("MaxBytes %d: want 0 to %d", cfg.MaxBytes, 1<<30)
	}
	for k := range cfg.Options {
		if strings.HasPrefix(k, "share.") || k == "cleanup.policy" {
			return broker.Unsupported("Options[%q]: the adapter sets it", k)
		}
	}
	return nil
}

func intOption(options map[string]string, key string, most int) (int, error) {
	s, ok := options[key]
	if !ok {
		return 0, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > most {
		return 0, broker.Invalid("Options[%q] %q: want 1 to %d", key, s, most)
	}
	return n, nil
}

// DeleteQueue deletes the queue's topics, its share group and its entry.
func (b *Broker) DeleteQueue(ctx context.Context, name string) error {
	return fail("delete queue", name, b.deleteQueue(ctx, name))
}

func (b *Broker) deleteQueue(ctx context.Context, name string) error {
	if err := b.deleteTopics(ctx, name, name+retrySuffix); err != nil {
		return err
	}
	// A group with members goes when they do, as its topics are gone.
	err := repeat(ctx, func() error {
		_, err := b.admin.DeleteGroup(ctx, shareGroup(name))
		return authError(err)
	})
	if err != nil && !errors.Is(err, kerr.GroupIDNotFound) && !errors.Is(err, kerr.NonEmptyGroup) {
		return err
	}
	return b.setEntry(ctx, name, queueEntry{})
}

// Purge deletes all records of the queue, delayed ones too. What consumers
// hold is deleted as well: settling it then is broker.ErrLeaseLost or nil.
func (b *Broker) Purge(ctx context.Context, queue string) error {
	return fail("purge", queue, b.purge(ctx, queue))
}

func (b *Broker) purge(ctx context.Context, queue string) error {
	t, err := b.describe(ctx, queue)
	if err != nil {
		return err
	}
	if err := b.deleteRecords(ctx, queue, everything(t.partitions)); err != nil {
		return err
	}
	if t, err = b.describe(ctx, queue+retrySuffix); err != nil {
		if errors.Is(classify(err), broker.ErrNotFound) {
			return nil
		}
		return err
	}
	return b.deleteRecords(ctx, queue+retrySuffix, everything(t.partitions))
}

func everything(partitions int) map[int32]int64 {
	out := make(map[int32]int64, partitions)
	for p := range partitions {
		out[int32(p)] = -1 //nolint:gosec // a number of partitions
	}
	return out
}

// backlog returns, for each partition of one of a queue's topics, where the
// share group is and the end, and the sum of what is not settled yet.
func (b *Broker) backlog(ctx context.Context, queue, name string) (s *Stream, from, to map[int32]int64, sum int64, err error) {
	t, err := b.describe(ctx, name)
	if err != nil {
		return nil, nil, nil, 0, err
	}
	s = &Stream{b: b, topic: t}
	if from, to, err = s.bounds(ctx, true); err != nil {
		return nil, nil, nil, 0, err
	}
	var group kadm.DescribedShareGroupOffsets
	err = repeat(ctx, func() error {
		described, err := b.admin.DescribeShareGroupOffsets(ctx, shareGroup(queue))
		if group = described[shareGroup(queue)]; err == nil {
			err = group.Err
		}
		return authError(err)
	})
	if err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
		return nil, nil, nil, 0, err
	}
	for p := range to {
		lag := max(0, to[p]-from[p])
		if o, ok := group.Offsets[name][p]; ok && o.Err == nil && o.StartOffset >= 0 {
			from[p] = max(from[p], o.StartOffset)
			if lag = max(0, to[p]-from[p]); o.Lag >= 0 {
				lag = min(lag, o.Lag)
			}
		}
		sum += lag
	}
	return s, from, to, sum, nil
}

// QueueStats tells how much is unsettled: Kafka does not tell what consumers
// hold, so Ready includes that and InFlight is broker.Unknown.
func (b *Broker) QueueStats(ctx context.Context, queue string) (broker.QueueStats, error) {
	stats, err := b.queueStats(ctx, queue)
	return stats, fail("queue stats", queue, err)
}

func (b *Broker) queueStats(ctx context.Context, queue string) (broker.QueueStats, error) {
	unknown := broker.QueueStats{Ready: broker.Unknown, InFlight: broker.Unknown, Delayed: broker.Unknown, Consumers: broker.Unknown, OldestAge: broker.Unknown}
	if err := b.usable(); err != nil {
		return unknown, err
	}
	stats := broker.QueueStats{InFlight: broker.Unknown}
	s, from, to, ready, err := b.backlog(ctx, queue, queue)
	if err != nil {
		return unknown, err
	}
	stats.Ready = ready
	switch _, _, _, delayed, err := b.backlog(ctx, queue, queue+retrySuffix); {
	case err == nil:
		stats.Delayed = delayed
	case !errors.Is(classify(err), broker.ErrNotFound):
		return unknown, err
	}
	err = repeat(ctx, func() error {
		groups, err := b.admin.DescribeShareGroups(ctx, shareGroup(queue))
		stats.Consumers = int64(len(groups[shareGroup(queue)].Members))
		return authError(err)
	})
	if err != nil {
		return unknown, err
	}
	if ready == 0 {
		return stats, nil
	}
	oldest := time.Time{}
	for p := range to {
		records, err := s.front(ctx, p, from[p], to[p], 1)
		if err != nil {
			return unknown, err
		}
		if len(records) > 0 && (oldest.IsZero() || records[0].Time().Before(oldest)) {
			oldest = records[0].Time()
		}
	}
	if !oldest.IsZero() {
		stats.OldestAge = max(0, time.Since(oldest))
	}
	return stats, nil
}

// front reads up to max committed records of a partition, from an offset on.
func (s *Stream) front(ctx context.Context, partition int32, from, to int64, max int) ([]*broker.Record, error) {
	if from >= to {
		return nil, nil
	}
	f := &fetcher{s: s, committed: true}
	spans := []*span{{partition, from, to}}
	var out []*broker.Record
	for len(spans) > 0 && len(out) < max {
		p := f.page(ctx, spans)
		if p.err != nil {
			return nil, p.err
		}
		out, spans = append(out, p.records...), p.rest
	}
	return out[:min(len(out), max)], nil
}
