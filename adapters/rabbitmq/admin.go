package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"strconv"
	"strings"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/queuestream/broker"
)

// Arguments that the broker keeps and ignores; the management API shows them.
const (
	argMaxAttempts = "x-broker-max-attempts"
	argShards      = "x-broker-shards"
)

// argDeliveryLimit is the broker's own limit of attempts.
const argDeliveryLimit = "x-delivery-limit"

// temporaryExpires is how long a temporary queue outlives its last use.
const temporaryExpires = 5 * time.Minute

// DeclareQueue implements [broker.Admin]. Ordered makes Shards (8 by default,
// 64 at most) queues. Lease, Dedup, Delay, MaxBytes and Tags are unsupported,
// MaxPriority needs a classic queue.
func (b *Broker) DeclareQueue(ctx context.Context, name string, cfg broker.QueueConfig) error {
	return fail("declare queue", name, b.declareQueue(ctx, name, cfg))
}

func (b *Broker) declareQueue(ctx context.Context, name string, cfg broker.QueueConfig) error {
	if err := checkName(name); err != nil {
		return err
	}
	info, args, err := queueArguments(name, cfg, b.control.version)
	if err != nil {
		return err
	}
	if cfg.DeadLetter != "" {
		dead, err := b.describe(ctx, cfg.DeadLetter)
		if err != nil {
			return fmt.Errorf("dead-letter queue %q: %w", cfg.DeadLetter, err)
		}
		// The broker itself dead-letters what expires. It does not know shards:
		// the slot's header finds the one.
		args["x-dead-letter-routing-key"] = dead.queues()[0]
		if dead.shards > 0 {
			args["x-dead-letter-exchange"] = shardExchange(cfg.DeadLetter)
			delete(args, "x-dead-letter-routing-key")
		}
	}
	if err := b.checkDeclared(ctx, info, args); err != nil {
		return err
	}
	err = b.channel(ctx, func(ch *amqp.Channel) error {
		for _, n := range info.queues() {
			if _, err := ch.QueueDeclare(n, true, false, false, false, info.arguments(n, args)); err != nil {
				return err
			}
		}
		if info.shards == 0 {
			return nil
		}
		return declareShardExchange(ch, info)
	})
	_, own := cfg.Options[argDeliveryLimit]
	if errors.Is(err, broker.ErrConflict) && !own && strings.Contains(err.Error(), argDeliveryLimit) {
		return fmt.Errorf("%w (a queue made by RabbitMQ 3.13, or by others, has the broker's limit: leave the argument out "+
			"with Options[%q] = \"\", and set the policy delivery-limit to -1)", err, argDeliveryLimit)
	}
	if err != nil {
		return err
	}
	b.topo.addQueue(info, args)
	if info.shards > 0 {
		b.topo.addExchange(shardExchange(name), amqp.ExchangeHeaders)
		for _, s := range slotBindings(info) {
			b.topo.addBinding(s)
		}
	}
	return nil
}

func declareShardExchange(ch *amqp.Channel, info queueInfo) error {
	if err := ch.ExchangeDeclare(shardExchange(info.name), amqp.ExchangeHeaders, true, false, false, false, nil); err != nil {
		return err
	}
	for _, s := range slotBindings(info) {
		// Without waiting; the exchange's declaration below reports failures.
		if err := ch.QueueBind(s.to, s.key, s.from, true, s.args); err != nil {
			return err
		}
	}
	return ch.ExchangeDeclarePassive(shardExchange(info.name), amqp.ExchangeHeaders, true, false, false, false, nil)
}

// slotBindings route each slot to its shard, and what has no group to the queue
// of such messages. Matches of x- headers need -with-x.
func slotBindings(info queueInfo) []binding {
	bind := func(to, slot string) binding {
		return binding{
			to: to, from: shardExchange(info.name),
			args: amqp.Table{"x-match": "all-with-x", headerSlot: slot},
		}
	}
	bs := []binding{bind(looseName(info.name), noSlot)}
	for slot := range slots {
		bs = append(bs, bind(shardName(info.name, slot%info.shards), strconv.Itoa(slot)))
	}
	return bs
}

// queueArguments translates cfg. It depends on the broker's version: before 4.0
// the delivery limit cannot be switched off, and is off by default.
func queueArguments(name string, cfg broker.QueueConfig, version func() (major, minor int)) (queueInfo, amqp.Table, error) {
	info := queueInfo{
		name: name, maxAttempts: cfg.MaxAttempts, deadLetter: cfg.DeadLetter,
		maxPriority: cfg.MaxPriority, bounded: cfg.MaxLength > 0,
	}
	if err := checkConfig(&cfg); err != nil {
		return info, nil, err
	}
	args := amqp.Table{amqp.QueueTypeArg: amqp.QueueTypeQuorum}
	for k, v := range cfg.Options {
		if !strings.HasPrefix(k, "x-") {
			return info, nil, broker.Unsupported("Options[%q]: want the name of a queue argument, which begins with x-", k)
		}
		args[k] = argument(v)
	}
	switch args[amqp.QueueTypeArg] {
	case amqp.QueueTypeQuorum:
	case amqp.QueueTypeClassic:
		info.classic = true
	default:
		return info, nil, broker.Unsupported("Options[x-queue-type] %v: want quorum or classic", args[amqp.QueueTypeArg])
	}
	if cfg.MaxPriority > 0 {
		if !info.classic {
			return info, nil, broker.Unsupported("MaxPriority: quorum queues do not order by priority; set Options[%q] to %q",
				amqp.QueueTypeArg, amqp.QueueTypeClassic)
		}
		args["x-max-priority"] = int64(cfg.MaxPriority)
	}
	if cfg.TTL > 0 {
		if cfg.TTL > maxTTL {
			return info, nil, broker.Unsupported("TTL %v: the longest is %v", cfg.TTL, maxTTL)
		}
		args[amqp.QueueMessageTTLArg] = max(1, cfg.TTL.Milliseconds())
	}
	if cfg.MaxLength > 0 {
		args[amqp.QueueMaxLenArg] = int64(cfg.MaxLength)
		args[amqp.QueueOverflowArg] = amqp.QueueOverflowRejectPublish
	}
	if cfg.Temporary {
		args[amqp.QueueTTLArg] = temporaryExpires.Milliseconds()
	}
	if cfg.MaxAttempts > 0 {
		args[argMaxAttempts] = int64(cfg.MaxAttempts)
	}
	if cfg.DeadLetter != "" {
		args["x-dead-letter-exchange"] = ""
		if !info.classic {
			args["x-dead-letter-strategy"] = "at-least-once"
			args[amqp.QueueOverflowArg] = amqp.QueueOverflowRejectPublish
		}
	}
	if !info.classic {
		// The SDK counts and dead-letters: a limit of the broker's own would
		// drop messages behind its back. 4.0 made 20 the default; what counts
		// changed in 4.3 (see acker), the argument did not.
		// https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling
		if major, _ := version(); major >= 4 {
			if _, set := args[argDeliveryLimit]; !set {
				args[argDeliveryLimit] = int64(-1)
			}
		}
	}
	if args[argDeliveryLimit] == "" {
		delete(args, argDeliveryLimit)
	}
	if cfg.Ordered {
		info.shards = cfg.Shards
		if info.shards == 0 {
			info.shards = defaultShards
		}
		args[amqp.SingleActiveConsumerArg] = true
		args[argShards] = int64(info.shards)
		if info.classic {
			return info, nil, broker.Unsupported("Ordered with a classic queue: shards are quorum queues")
		}
		if n := len(shardName(name, slots)); n > maxShortString {
			return info, nil, broker.Invalid("name of %d bytes: an ordered queue's has at most %d", len(name), maxShortString-(n-len(name)))
		}
	}
	return info, args, nil
}

func checkConfig(cfg *broker.QueueConfig) error {
	switch {
	case cfg.MaxAttempts < 0 || cfg.MaxLength < 0 || cfg.MaxPriority < 0 || cfg.MaxBytes < 0 || cfg.Shards < 0 ||
		cfg.Lease < 0 || cfg.Delay < 0 || cfg.TTL < 0:
		return broker.Invalid("a number of QueueConfig is negative")
	case cfg.Dedup || cfg.ContentDedup || cfg.DedupPerGroup:
		return broker.Unsupported("Dedup: RabbitMQ queues do not deduplicate")
	case cfg.Lease > 0:
		return broker.Unsupported("Lease: AMQP deliveries have none")
	case cfg.Delay > 0:
		return broker.Unsupported("Delay: queues have no default delay; set Message.Delay")
	case cfg.MaxBytes > 0:
		return broker.Unsupported("MaxBytes: the limit is the broker's max_message_size; see Options.MaxMessageBytes")
	case len(cfg.Tags) > 0:
		return broker.Unsupported("Tags: queues have none")
	case cfg.MaxPriority > math.MaxUint8:
		return broker.Invalid("MaxPriority %d: at most 255", cfg.MaxPriority)
	case cfg.MaxAttempts > 0 && cfg.DeadLetter == "":
		return broker.Invalid("MaxAttempts without DeadLetter")
	case cfg.Shards > slots:
		return broker.Invalid("Shards %d: at most %d", cfg.Shards, slots)
	case cfg.Shards > 0 && !cfg.Ordered:
		return broker.Invalid("Shards without Ordered")
	}
	return nil
}

// argument reads the text of an option as the type that the broker expects.
func argument(v string) any {
	if n, err := strconv.ParseInt(v, 10, 64); err == nil {
		return n
	}
	switch v {
	case "true":
		return true
	case "false":
		return false
	}
	return v
}

// version returns the version of the broker that was connected last.
func (l *link) version() (major, minor int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return parseVersion(l.server)
}

// parseVersion returns 4.0 where the broker does not tell.
func parseVersion(v string) (major, minor int) {
	if n, err := fmt.Sscanf(v, "%d.%d", &major, &minor); err != nil || n != 2 {
		return 4, 0
	}
	return major, minor
}

// checkDeclared finds conflicts that the broker does not see.
func (b *Broker) checkDeclared(ctx context.Context, info queueInfo, args amqp.Table) error {
	known, err := b.describe(ctx, info.name)
	if errors.Is(err, broker.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if known.shards != info.shards {
		return fmt.Errorf("%w: Ordered and Shards: %d shards exist, declared with %d", broker.ErrConflict, known.shards, info.shards)
	}
	if had := b.topo.arguments(info.queues()[0]); had != nil && !maps.Equal(had, args) {
		for _, k := range []string{argMaxAttempts, "x-dead-letter-routing-key"} {
			if had[k] != args[k] {
				return fmt.Errorf("%w: %s is %v, declared with %v", broker.ErrConflict, k, had[k], args[k])
			}
		}
	} else if had == nil && b.manage != nil && known.maxAttempts != info.maxAttempts {
		return fmt.Errorf("%w: MaxAttempts is %d, declared with %d", broker.ErrConflict, known.maxAttempts, info.maxAttempts)
	}
	return nil
}

func (t *topology) arguments(queue string) amqp.Table {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.declared[queue]
}

// DeleteQueue implements [broker.Admin].
func (b *Broker) DeleteQueue(ctx context.Context, name string) error {
	return fail("delete queue", name, b.deleteQueue(ctx, name))
}

func (b *Broker) deleteQueue(ctx context.Context, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	info, err := b.describe(ctx, name)
	gone := errors.Is(err, broker.ErrNotFound)
	if known, ok := b.topo.queue(name); gone && ok {
		info = known
	} else if gone {
		return nil
	} else if err != nil {
		return err
	}
	b.topo.removeQueue(info)
	if info.shards > 0 {
		b.topo.removeExchange(shardExchange(name))
	}
	for _, n := range info.queues() {
		b.ladder.forget(n)
	}
	return b.channel(ctx, func(ch *amqp.Channel) error {
		if info.shards > 0 {
			if err := ch.ExchangeDelete(shardExchange(name), false, false); err != nil {
				return err
			}
		}
		for _, n := range info.queues() { // deleting what is not there is no error
			if _, err := ch.QueueDelete(n, false, false, false); err != nil {
				return err
			}
		}
		return nil
	})
}

// Purge implements [broker.Admin].
func (b *Broker) Purge(ctx context.Context, queue string) error {
	return fail("purge", queue, b.onQueue(ctx, queue, func(ch *amqp.Channel, n string) error {
		_, err := ch.QueuePurge(n, false)
		return err
	}))
}

// onQueue runs fn for each of a queue's names in the broker.
func (b *Broker) onQueue(ctx context.Context, queue string, fn func(*amqp.Channel, string) error) error {
	if err := checkName(queue); err != nil {
		return err
	}
	info, err := b.describe(ctx, queue)
	if err != nil {
		return err
	}
	return b.channel(ctx, func(ch *amqp.Channel) error {
		for _, n := range info.queues() {
			if err := fn(ch, n); err != nil {
				return err
			}
		}
		return nil
	})
}

// QueueStats implements [broker.Admin]. Without Options.Management only Ready
// and Consumers are known. Delayed and OldestAge are never known.
func (b *Broker) QueueStats(ctx context.Context, queue string) (broker.QueueStats, error) {
	s, err := b.queueStats(ctx, queue)
	return s, fail("queue stats", queue, err)
}

func (b *Broker) queueStats(ctx context.Context, queue string) (broker.QueueStats, error) {
	unknown := broker.QueueStats{
		Ready: broker.Unknown, InFlight: broker.Unknown, Delayed: broker.Unknown,
		Consumers: broker.Unknown, OldestAge: broker.Unknown,
	}
	if err := checkName(queue); err != nil {
		return unknown, err
	}
	info, err := b.describe(ctx, queue)
	if err != nil {
		return unknown, err
	}
	names := info.queues()
	seen := make([]amqp.Queue, len(names))
	err = b.channel(ctx, func(ch *amqp.Channel) (err error) {
		for i, n := range names {
			if seen[i], err = ch.QueueDeclarePassive(n, true, false, false, false, nil); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil { // after ctx ended, seen may still be written to
		return unknown, err
	}
	s := unknown
	s.Ready, s.Consumers = 0, 0
	for _, q := range seen {
		s.Ready += int64(q.Messages)
		s.Consumers = max(s.Consumers, int64(q.Consumers)) // each consumes from all shards
	}
	if b.manage == nil {
		return s, nil
	}
	open, errs := make([]int64, len(names)), make([]error, len(names))
	var wg sync.WaitGroup
	for i, n := range names {
		wg.Go(func() {
			q, err := b.manage.queue(ctx, n)
			open[i], errs[i] = q.Unacknowledged, err
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return unknown, err
	}
	s.InFlight = 0
	for _, n := range open {
		s.InFlight += n
	}
	return s, nil
}
