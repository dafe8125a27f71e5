package memory

import (
	"slices"
	"strings"
	"time"

	"github.com/queuestream/broker"
)

// A Profile makes a Broker honour what a real one honours, and refuse the rest.
type Profile string

// The profiles. See the package documentation for how they differ.
const (
	Default        Profile = ""
	SQSStandard    Profile = "sqs-standard"
	SQSFIFO        Profile = "sqs-fifo"
	RabbitMQQuorum Profile = "rabbitmq-quorum"
	KafkaTopic     Profile = "kafka-topic"
)

// rules are what a profile consists of.
type rules struct {
	caps       broker.QueueCapabilities // of a queue declared with everything that the profile has
	settings   broker.QueueConfig       // a non-zero field: may be declared. Numbers are the largest
	ordered    bool                     // groups need Ordered
	alwaysFIFO bool                     // every queue is Ordered, with Dedup by id
	suffix     string                   // that every queue's name has
	name       func(string) error

	lease       time.Duration // default
	retention   time.Duration // of messages without TTL; 0: for ever
	maxInFlight int64
	maxAttempts int // highest that may be asked for; 0: any
	reorders    bool
	delaysApart bool // a message that is published with a delay joins its group when it is due
	noReplies   bool

	streams      bool
	stream       broker.StreamCapabilities
	exchanges    []broker.ExchangeKind
	exchange     broker.ExchangeCapabilities
	exchangesNow bool // exchanges take no Delay
}

const (
	// What an adapter promises: the broker's limit (1 MiB, Kafka's 12 more)
	// without what it adds itself.
	sqsBytes          = 1<<20 - 47
	kafkaBytes        = 1<<20 + 12 - 160
	kafkaQueueBytes   = kafkaBytes - 2048
	rabbitStreamBytes = 1<<20 - 4096

	dedupTime  = 5 * time.Minute
	anySetting = 1<<31 - 1
	// rabbitDelay is what the adapter's ladder of delay queues reaches.
	rabbitDelay = (1<<28 - 1) * 16 * time.Millisecond
)

var allKinds = []broker.ExchangeKind{
	broker.ExchangeDirect, broker.ExchangeFanout, broker.ExchangeTopic, broker.ExchangeHeaders,
}

var anyExchange = broker.ExchangeCapabilities{Unroutable: true, TopicWords: true, MatchAny: true}

var fullStream = broker.StreamCapabilities{
	Headers: true, Tombstones: true, Compaction: true, Timestamps: true, SeekTime: true,
	Transactions: true, Fencing: true, ExactLag: true, GroupReset: true, Growth: true, Offsets: true,
	Dedup: true, Idempotent: true, // no answer is lost on the way, so nothing is sent again
}

var profiles = map[Profile]*rules{
	Default: {
		caps: broker.QueueCapabilities{
			Groups: true, Dedup: true, ContentDedup: true, DedupWindow: dedupTime,
			Delay: true, TTL: true, MaxPriority: 255, Headers: true,
			FIFO: true, Lease: true, NackDelay: true, Snooze: true, Attempts: true, Prefetch: true,
			Requeue: broker.RequeueFront,
		},
		settings: broker.QueueConfig{
			Ordered: true, Dedup: true, ContentDedup: true, DedupPerGroup: true, MaxAttempts: anySetting,
			DeadLetter: "any", Lease: broker.MaxDuration, Delay: broker.MaxDuration, TTL: broker.MaxDuration,
			MaxPriority: 255, MaxLength: anySetting, MaxBytes: anySetting, Shards: anySetting, Temporary: true,
		},
		name:      broker.ValidateDeclaredName,
		lease:     30 * time.Second,
		streams:   true,
		stream:    fullStream,
		exchanges: allKinds,
		exchange:  anyExchange,
	},
	SQSStandard: {
		caps: broker.QueueCapabilities{
			Delay: true, Headers: true, MaxBytes: sqsBytes,
			Lease: true, MaxLease: 12 * time.Hour, NackDelay: true,
			Attempts: true, Prefetch: true,
		},
		settings: broker.QueueConfig{
			MaxAttempts: 1000, DeadLetter: "any", Lease: 12 * time.Hour, Delay: 15 * time.Minute,
			TTL: 14 * 24 * time.Hour, MaxBytes: sqsBytes, Temporary: true,
		},
		name:        sqsName(""),
		lease:       30 * time.Second,
		retention:   4 * 24 * time.Hour,
		maxInFlight: 120_000,
		maxAttempts: 1000,
		reorders:    true,
		exchanges:   allKinds,
		// SNS: it drops what no queue takes, and filters by prefixes alone.
		exchange:     broker.ExchangeCapabilities{MatchAny: true},
		exchangesNow: true,
	},
	SQSFIFO: {
		caps: broker.QueueCapabilities{
			Groups: true, Dedup: true, ContentDedup: true, DedupWindow: dedupTime,
			Headers: true, MaxBytes: sqsBytes,
			Lease: true, MaxLease: 12 * time.Hour, NackDelay: true, MaxNackDelay: 12 * time.Hour,
			Attempts: true, Prefetch: true, Idempotent: true,
		},
		settings: broker.QueueConfig{
			Ordered: true, Dedup: true, ContentDedup: true, DedupPerGroup: true,
			MaxAttempts: 1000, DeadLetter: "any", Lease: 12 * time.Hour, Delay: 15 * time.Minute,
			TTL: 14 * 24 * time.Hour, MaxBytes: sqsBytes, Temporary: true,
		},
		alwaysFIFO:  true,
		suffix:      ".fifo",
		name:        sqsName(".fifo"),
		lease:       30 * time.Second,
		retention:   4 * 24 * time.Hour,
		maxInFlight: 120_000,
		maxAttempts: 1000,
		exchanges:   allKinds,
		// SNS: it drops what no queue takes, and filters by prefixes alone.
		exchange:     broker.ExchangeCapabilities{MatchAny: true},
		exchangesNow: true,
	},
	RabbitMQQuorum: {
		caps: broker.QueueCapabilities{
			Groups: true, Delay: true, MaxDelay: rabbitDelay, TTL: true, Headers: true,
			MaxBytes: 16 << 20, FIFO: true, NackDelay: true, MaxNackDelay: rabbitDelay, Snooze: true, Attempts: true, Prefetch: true,
		},
		settings: broker.QueueConfig{
			Ordered: true, MaxAttempts: anySetting, DeadLetter: "any",
			TTL: broker.MaxDuration, MaxLength: anySetting, MaxBytes: 16 << 20,
			Shards: anySetting, Temporary: true,
		},
		ordered:     true,
		delaysApart: true, // in the ladder of delay queues
		name:        rabbitName,
		streams:     true,
		stream: broker.StreamCapabilities{
			Headers: true, Timestamps: true, SeekTime: true, GroupReset: true, MaxBytes: rabbitStreamBytes,
			Dedup: true, Idempotent: true,
		},
		exchanges: allKinds,
		exchange: broker.ExchangeCapabilities{
			Unroutable: true, TopicWords: true, MatchAny: true, Queue: broker.QueueCapabilities{Groups: true},
		},
		exchangesNow: true,
	},
	KafkaTopic: {
		caps: broker.QueueCapabilities{
			Headers: true, MaxBytes: kafkaQueueBytes,
			Lease: true, NackDelay: true, Snooze: true, Attempts: true, Prefetch: true,
			Delay: true, Requeue: broker.RequeueFront,
		},
		settings: broker.QueueConfig{
			MaxAttempts: 10, DeadLetter: "any", Lease: time.Minute,
			MaxBytes: kafkaQueueBytes, Shards: anySetting, Temporary: true,
		},
		name:        kafkaName,
		lease:       30 * time.Second,
		retention:   7 * 24 * time.Hour,
		maxAttempts: 10,
		noReplies:   true,
		streams:     true,
		stream: broker.StreamCapabilities{
			Headers: true, Tombstones: true, Compaction: true, Timestamps: true, SeekTime: true,
			Transactions: true, Fencing: true, GroupReset: true, Growth: true, Offsets: true, MaxBytes: kafkaBytes,
			Idempotent: true,
		},
	},
}

// profileNames lists the profiles, for errors.
func profileNames() string {
	var names []string
	for p := range profiles {
		names = append(names, `"`+string(p)+`"`)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// queueCapabilities returns what a queue declared with cfg honours, but for
// its dead letters.
func (r *rules) queueCapabilities(cfg *broker.QueueConfig) broker.QueueCapabilities {
	c := r.caps
	c.Groups = c.Groups && (!r.ordered || cfg.Ordered)
	if r.ordered && cfg.Ordered { // shards
		c.MaxNackDelay, c.FIFO, c.Attempts, c.Prefetch = 15*time.Minute, false, false, false
	}
	c.Dedup = c.Dedup && (cfg.Dedup || r.alwaysFIFO)
	c.ContentDedup = cfg.ContentDedup
	if !c.Dedup && !c.ContentDedup {
		c.DedupWindow = 0
	}
	c.MaxPriority = cfg.MaxPriority
	if cfg.MaxBytes > 0 {
		c.MaxBytes = cfg.MaxBytes
	}
	c.Bounded = cfg.MaxLength > 0
	if cfg.MaxPriority > 0 {
		c.FIFO = false
	}
	return c
}

// queueConfig checks what a queue is declared with.
func (r *rules) queueConfig(cfg *broker.QueueConfig) error {
	s := &r.settings
	for _, f := range []struct {
		name      string
		want, has bool
	}{
		{"Ordered", cfg.Ordered, s.Ordered},
		{"Dedup", cfg.Dedup, s.Dedup},
		{"ContentDedup", cfg.ContentDedup, s.ContentDedup},
		{"DedupPerGroup", cfg.DedupPerGroup, s.DedupPerGroup},
		{"DeadLetter", cfg.DeadLetter != "", s.DeadLetter != ""},
		{"Temporary", cfg.Temporary, s.Temporary},
	} {
		if f.want && !f.has {
			return broker.Unsupported("%s", f.name)
		}
	}
	for _, f := range []struct {
		name      string
		want, max int64
	}{
		{"MaxAttempts", int64(cfg.MaxAttempts), int64(s.MaxAttempts)},
		{"Lease", int64(cfg.Lease), int64(s.Lease)},
		{"Delay", int64(cfg.Delay), int64(s.Delay)},
		{"TTL", int64(cfg.TTL), int64(s.TTL)},
		{"MaxPriority", int64(cfg.MaxPriority), int64(s.MaxPriority)},
		{"MaxLength", int64(cfg.MaxLength), int64(s.MaxLength)},
		{"MaxBytes", int64(cfg.MaxBytes), int64(s.MaxBytes)},
		{"Shards", int64(cfg.Shards), int64(s.Shards)},
	} {
		show := func(n int64) any {
			switch f.name {
			case "Lease", "Delay", "TTL":
				return time.Duration(n)
			}
			return n
		}
		switch {
		case f.want < 0:
			return broker.Invalid("%s %v: must not be negative", f.name, show(f.want))
		case f.want > 0 && f.max == 0:
			return broker.Unsupported("%s", f.name)
		case f.want > f.max:
			return broker.Unsupported("%s %v: at most %v", f.name, show(f.want), show(f.max))
		}
	}
	switch {
	case cfg.MaxAttempts > 0 && cfg.DeadLetter == "":
		return broker.Invalid("MaxAttempts %d without a DeadLetter queue", cfg.MaxAttempts)
	case cfg.DedupPerGroup && !cfg.Dedup && !cfg.ContentDedup && !r.alwaysFIFO:
		return broker.Invalid("DedupPerGroup without Dedup or ContentDedup")
	case len(cfg.Options) > 0:
		return broker.Unsupported("Options: there are none")
	}
	return nil
}

// queueName checks a queue's name.
func (r *rules) queueName(name string) error {
	if err := broker.ValidateDeclaredName(name); err != nil {
		return err
	}
	return r.name(name)
}

const alphanumeric = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"

// sqsName checks the rules of "Amazon SQS quotas: queue name".
func sqsName(suffix string) func(string) error {
	return func(name string) error {
		base := strings.TrimSuffix(name, suffix)
		if len(name) > 80 || base == "" || strings.Trim(base, alphanumeric+"-_") != "" ||
			suffix != "" && base == name {
			return broker.Invalid("name %q: want 1 to 80 letters, digits, - and _%s", name, orNothing(", ending in ", suffix))
		}
		return nil
	}
}

func orNothing(prefix, s string) string {
	if s == "" {
		return ""
	}
	return prefix + s
}

// rabbitName checks the rules of AMQP 0-9-1: 255 bytes, and amq. is reserved.
func rabbitName(name string) error {
	if strings.HasPrefix(name, "amq.") {
		return broker.Invalid("name %q: amq. is reserved", name)
	}
	return nil
}

// kafkaName checks the rules of org.apache.kafka.common.internals.Topic.
func kafkaName(name string) error {
	if len(name) > 249 || name == "." || name == ".." || strings.Trim(name, alphanumeric+"._-") != "" {
		return broker.Invalid("name %q: want 1 to 249 letters, digits, ., _ and -", name)
	}
	return nil
}
