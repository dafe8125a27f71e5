package kafka

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"slices"
	"time"

	"github.com/queuestream/broker"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"
)

// Options configure a Broker. Only Brokers is required; the zero value of
// every other field is its default.
type Options struct {
	// Brokers are the addresses to start from, host:port.
	Brokers []string
	// ClientID shows in the brokers' logs, quotas and metrics. Empty: "queuestream".
	ClientID string
	// TLS switches to TLS with this configuration. nil: plain TCP.
	TLS *tls.Config
	// SASL are the mechanisms to authenticate with, the first that the broker
	// knows wins: franz-go's sasl/plain, sasl/scram, sasl/oauth, sasl/aws.
	SASL []sasl.Mechanism
	// Dialer replaces the default dialer. It excludes TLS, which it would do itself.
	Dialer func(ctx context.Context, network, address string) (net.Conn, error)
	// DialTimeout bounds one connection attempt. Zero: 10 s.
	DialTimeout time.Duration
	// Rack is where this client runs, for fetching from the closest replica.
	Rack string
	// Logger gets what the client has to say, from warnings up to its own
	// level. nil: nothing.
	Logger *slog.Logger

	// Compression of what is published: "none", "gzip", "snappy", "lz4" or
	// "zstd". Empty: snappy.
	Compression string
	// Linger is how long a record waits for others to share its batch. Zero:
	// not at all; batches then form while earlier ones are in flight, also those
	// of a broker.AsyncAppender. (franz-go's own default is 10 ms.)
	Linger time.Duration
	// MaxBufferedRecords bounds the records being published; beyond it calls
	// wait. An AsyncAppender's stream holds up to twice as many more, at most
	// 2,048, that the client has no room for yet. Zero: 50,000.
	MaxBufferedRecords int
	// MaxBufferedBytes does the same in bytes of keys, values and headers.
	// Zero: 256 MiB.
	MaxBufferedBytes int

	// FetchMaxWait is how long a broker may hold a fetch that finds nothing.
	// Partitions that a member gains, resumes or seeks in meanwhile wait for
	// its end. Zero: 500 ms.
	FetchMaxWait time.Duration
	// FetchMinBytes is how much a fetch waits for. Zero: 1.
	FetchMinBytes int
	// FetchMaxBytes bounds one fetch of one broker. A group's member holds what
	// it hands out, what is fetched meanwhile, and of paused partitions about as
	// much again, or some times that where they are paused one after the other.
	// Zero: 50 MiB.
	FetchMaxBytes int
	// FetchMaxPartitionBytes bounds the part of one partition. Zero: 1 MiB.
	FetchMaxPartitionBytes int

	// SessionTimeout is how long a group's member may be silent before its
	// partitions go to others. Zero: 45 s. Ignored with ServerSideGroups,
	// where it is the group's setting.
	SessionTimeout time.Duration
	// HeartbeatInterval: zero: 3 s, or less if SessionTimeout needs it.
	HeartbeatInterval time.Duration
	// RebalanceTimeout bounds OnRevoked. Zero: 60 s.
	RebalanceTimeout time.Duration
	// InstanceID makes a group's member static (KIP-345): a restart within
	// the session time-out moves no partitions. At most one member of a group
	// may use it at a time.
	InstanceID string
	// ServerSideGroups uses the group protocol of KIP-848, where the broker
	// assigns partitions. It needs Kafka 4.0.
	ServerSideGroups bool
	// TransactionTimeout is when the broker aborts a transaction that is left
	// open. Zero: 40 s.
	TransactionTimeout time.Duration

	// Client options of franz-go, applied last: hooks, versions and what else
	// has no field above. They apply to every client that the Broker makes.
	// A pool of decompressed bytes (kgo.PoolDecompressBytes) is refused.
	Client []kgo.Opt
}

var compressions = map[string]kgo.CompressionCodec{
	"none":   kgo.NoCompression(),
	"gzip":   kgo.GzipCompression(),
	"snappy": kgo.SnappyCompression(),
	"lz4":    kgo.Lz4Compression(),
	"zstd":   kgo.ZstdCompression(),
}

// check returns o with its defaults filled in, as a copy.
func (o *Options) check() (*Options, error) {
	if o == nil || len(o.Brokers) == 0 {
		return nil, broker.Invalid("Brokers: want at least one address, host:port")
	}
	c := *o
	c.Brokers = slices.Clone(o.Brokers)
	for i, address := range c.Brokers {
		host, port, err := net.SplitHostPort(address)
		if err != nil || host == "" || port == "" {
			return nil, broker.Invalid("Brokers[%d] %q: want host:port", i, address)
		}
	}
	if _, ok := compressions[c.Compression]; c.Compression != "" && !ok {
		return nil, broker.Invalid("Compression %q: want none, gzip, snappy, lz4 or zstd", c.Compression)
	}
	if c.TLS != nil && c.Dialer != nil {
		return nil, broker.Invalid("TLS and Dialer: want one of them")
	}
	for _, d := range []struct {
		name  string
		value *time.Duration
		zero  time.Duration
	}{
		{"DialTimeout", &c.DialTimeout, 10 * time.Second},
		{"Linger", &c.Linger, 0},
		{"FetchMaxWait", &c.FetchMaxWait, 500 * time.Millisecond},
		{"SessionTimeout", &c.SessionTimeout, 45 * time.Second},
		{"RebalanceTimeout", &c.RebalanceTimeout, time.Minute},
		{"HeartbeatInterval", &c.HeartbeatInterval, 0},
		{"TransactionTimeout", &c.TransactionTimeout, 40 * time.Second},
	} {
		if *d.value < 0 || *d.value > broker.MaxDuration {
			return nil, broker.Invalid("%s %v: want 0 to %v", d.name, *d.value, broker.MaxDuration)
		}
		if *d.value == 0 {
			*d.value = d.zero
		}
	}
	if c.HeartbeatInterval == 0 {
		c.HeartbeatInterval = min(3*time.Second, c.SessionTimeout/3)
	}
	for _, n := range []struct {
		name  string
		value *int
		zero  int
	}{
		{"MaxBufferedRecords", &c.MaxBufferedRecords, 50_000},
		{"MaxBufferedBytes", &c.MaxBufferedBytes, 256 << 20},
		{"FetchMinBytes", &c.FetchMinBytes, 1},
		{"FetchMaxBytes", &c.FetchMaxBytes, 50 << 20},
		{"FetchMaxPartitionBytes", &c.FetchMaxPartitionBytes, 1 << 20},
	} {
		if *n.value < 0 || *n.value > 1<<31-1 {
			return nil, broker.Invalid("%s %d: want 0 to %d", n.name, *n.value, 1<<31-1)
		}
		if *n.value == 0 {
			*n.value = n.zero
		}
	}
	if c.ClientID == "" {
		c.ClientID = "queuestream"
	}
	return &c, nil
}

// client returns the options that every client shares.
func (o *Options) client() []kgo.Opt {
	opts := []kgo.Opt{
		kgo.SeedBrokers(o.Brokers...),
		kgo.ClientID(o.ClientID),
		kgo.DialTimeout(o.DialTimeout),
		kgo.MetadataMinAge(metadataMinAge),
		kgo.RetryTimeout(retryTimeout),
		kgo.Rack(o.Rack),
	}
	if o.TLS != nil {
		opts = append(opts, kgo.DialTLSConfig(o.TLS))
	}
	if o.Dialer != nil {
		opts = append(opts, kgo.Dialer(o.Dialer))
	}
	if len(o.SASL) > 0 {
		opts = append(opts, kgo.SASL(o.SASL...))
	}
	if o.Logger != nil {
		opts = append(opts, kgo.WithLogger(logger{o.Logger}))
	}
	return opts
}

const (
	// metadataMinAge is how soon after a load metadata may be asked for again:
	// how fast a moved leader or a new topic is found.
	metadataMinAge = 250 * time.Millisecond
	// retryTimeout is how long a request without a deadline is retried.
	retryTimeout = 30 * time.Second
)

// producer returns the options of a client that publishes.
func (o *Options) producer(maxBytes func(topic string) int32, met *metTopics) []kgo.Opt {
	opts := append(o.client(),
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.ProducerLinger(o.Linger),
		kgo.MaxBufferedRecords(o.MaxBufferedRecords),
		kgo.MaxBufferedBytes(o.MaxBufferedBytes),
		kgo.ProducerBatchMaxBytesFn(maxBytes),
		kgo.RecordPartitioner(newPartitioner(met)),
		kgo.UnknownTopicRetries(2),
	)
	if o.Compression != "" {
		opts = append(opts, kgo.ProducerBatchCompression(compressions[o.Compression], kgo.NoCompression()))
	}
	return append(opts, o.Client...)
}

// hasRoom tells whether a client that publishes takes size bytes more at once.
func (o *Options) hasRoom(client *kgo.Client, size int) bool {
	return client.BufferedProduceRecords() < int64(o.MaxBufferedRecords) &&
		(size > o.MaxBufferedBytes || client.BufferedProduceBytes()+int64(size) <= int64(o.MaxBufferedBytes))
}

// consumer returns the options of a client that is a group's member.
func (o *Options) consumer(more ...kgo.Opt) []kgo.Opt {
	opts := append(o.client(),
		kgo.FetchMaxWait(o.FetchMaxWait),
		kgo.FetchMinBytes(int32(o.FetchMinBytes)),                   //nolint:gosec // checked by Options.check
		kgo.FetchMaxBytes(int32(o.FetchMaxBytes)),                   //nolint:gosec // checked by Options.check
		kgo.FetchMaxPartitionBytes(int32(o.FetchMaxPartitionBytes)), //nolint:gosec // checked by Options.check
		kgo.SessionTimeout(o.SessionTimeout),
		kgo.HeartbeatInterval(o.HeartbeatInterval),
		kgo.RebalanceTimeout(o.RebalanceTimeout),
		kgo.DisableAutoCommit(),
	)
	if o.InstanceID != "" {
		opts = append(opts, kgo.InstanceID(o.InstanceID))
	}
	if o.ServerSideGroups {
		opts = append(opts, kgo.ServerSideBalancer())
	} else {
		opts = append(opts, kgo.Balancers(kgo.CooperativeStickyBalancer()))
	}
	opts = append(opts, more...)
	return append(opts, o.Client...)
}

// logger hands what franz-go says to slog.
type logger struct{ l *slog.Logger }

func (l logger) Level() kgo.LogLevel {
	ctx := context.Background()
	switch {
	case l.l.Enabled(ctx, slog.LevelDebug):
		return kgo.LogLevelDebug
	case l.l.Enabled(ctx, slog.LevelInfo):
		return kgo.LogLevelInfo
	case l.l.Enabled(ctx, slog.LevelWarn):
		return kgo.LogLevelWarn
	default:
		return kgo.LogLevelError
	}
}

func (l logger) Log(level kgo.LogLevel, msg string, keyvals ...any) {
	to := slog.LevelDebug
	switch level {
	case kgo.LogLevelError:
		to = slog.LevelError
	case kgo.LogLevelWarn:
		to = slog.LevelWarn
	case kgo.LogLevelInfo:
		to = slog.LevelInfo
	case kgo.LogLevelNone, kgo.LogLevelDebug:
	}
	l.l.Log(context.Background(), to, msg, keyvals...)
}
