package broker

import (
	"context"
	"io"
	"time"
)

// An Admin declares, describes and deletes. Every method is idempotent where
// that makes sense: declaring what exists with the same configuration is nil,
// with another one [ErrConflict] naming the first setting that differs;
// deleting what does not exist is nil. A setting that the broker has not is
// [ErrUnsupported].
type Admin interface {
	DeclareQueue(ctx context.Context, name string, cfg QueueConfig) error
	DeclareStream(ctx context.Context, name string, cfg StreamConfig) error
	DeclareExchange(ctx context.Context, name string, kind ExchangeKind) error
	// Bind makes exchange route to queue what b matches; several bindings of
	// the same pair add up. [ErrNotFound] if either is missing.
	Bind(ctx context.Context, queue, exchange string, b Binding) error
	Unbind(ctx context.Context, queue, exchange string, b Binding) error
	DeleteQueue(ctx context.Context, name string) error
	DeleteStream(ctx context.Context, name string) error
	DeleteExchange(ctx context.Context, name string) error
	// Purge removes every message that no consumer holds.
	Purge(ctx context.Context, queue string) error
	QueueStats(ctx context.Context, queue string) (QueueStats, error)
	// Peek returns up to max messages from the front of the queue and leaves
	// them there; the brokers that can only receive and give back count an
	// attempt for it.
	Peek(ctx context.Context, queue string, max int) ([]Message, error)
	// Redrive moves up to max messages (0: all) of a dead-letter queue to the
	// queue to, or to where each came from if to is empty, and returns how
	// many. A message is stored at its target before it leaves its source.
	Redrive(ctx context.Context, deadLetterQueue, to string, max int) (int, error)
	// ResetGroup sets the stored offsets of a group without members;
	// [ErrConflict] while it has some.
	ResetGroup(ctx context.Context, stream, group string, to Position) error
}

// An Identifier is a [Stream] that tells its identity as of now, the same as
// [Assignment].Identity of what a group reads of it.
type Identifier interface {
	Identity(ctx context.Context) (string, error)
}

// A QueueConfig is what a queue is declared with. The zero value is a durable
// queue with the broker's defaults.
type QueueConfig struct {
	Ordered       bool          // groups keep order (an SQS FIFO queue, shards on RabbitMQ)
	Dedup         bool          // honour Message.DedupID
	ContentDedup  bool          // and where it is empty the body's hash
	DedupPerGroup bool          // the scope of dedup is the group; otherwise the queue
	MaxAttempts   int           // deliveries before a message moves to DeadLetter; 0: no limit
	DeadLetter    string        // must exist; the function DeclareQueue makes one
	Lease         time.Duration // default lease; 0: the broker's
	Delay         time.Duration // of every message without one
	TTL           time.Duration // of every message without one; 0: the broker's retention
	MaxPriority   int           // highest Message.Priority; 0: none
	MaxLength     int           // messages; 0: no limit. At it Publish returns ErrFull
	MaxBytes      int           // largest message; 0: the broker's
	Shards        int           // parallelism of groups where the broker needs shards; 0: the adapter's default
	Temporary     bool          // gone when unused, or swept by the adapter
	Tags          map[string]string
	// Options are the adapter's own settings, named as its doc.go says.
	Options map[string]string
}

// A StreamConfig is what a stream is declared with. The zero value has one
// partition and the broker's retention.
type StreamConfig struct {
	Partitions     int           // 0: 1. Declaring more than there are adds them, where the capability Growth is claimed
	Replicas       int           // 0: the broker's default
	Retention      time.Duration // 0: the broker's default
	RetentionBytes int64         // for each partition; 0: no limit
	Compact        bool          // keep the latest record of each key
	MaxBytes       int           // largest record; 0: the broker's
	Options        map[string]string
}

// Unknown marks a number of QueueStats that the broker does not tell.
const Unknown = -1

// QueueStats are a queue's numbers as of the call, approximate where the
// broker is distributed. A number may be Unknown (-1), which is not zero.
type QueueStats struct {
	Ready     int64 // can be received now
	InFlight  int64 // held by consumers
	Delayed   int64 // not due yet
	Consumers int64
	OldestAge time.Duration // of the oldest ready message; 0 if there is none
}

// An ExchangeKind tells how an exchange routes.
type ExchangeKind uint8

// The kinds of exchange, as AMQP defines them.
const (
	ExchangeDirect  ExchangeKind = iota + 1 // routing key equals the binding's
	ExchangeFanout                          // to every bound queue
	ExchangeTopic                           // words separated by dots; * is one word, # any number
	ExchangeHeaders                         // headers equal the binding's
)

// String returns the kind in AMQP's words.
func (k ExchangeKind) String() string {
	switch k {
	case ExchangeDirect:
		return "direct"
	case ExchangeFanout:
		return "fanout"
	case ExchangeTopic:
		return "topic"
	case ExchangeHeaders:
		return "headers"
	}
	return "unknown"
}

// A Binding tells which messages an exchange routes to a queue.
type Binding struct {
	RoutingKey string  // direct: the key; topic: the pattern
	Headers    Headers // headers exchange: what must match
	MatchAny   bool    // one match is enough; otherwise all must match
}

// An Exchanger opens exchanges. A missing one is [ErrNotFound].
type Exchanger interface {
	Exchange(ctx context.Context, name string) (Exchange, error)
}

// An Exchange routes messages to the queues that are bound to it.
type Exchange interface {
	Name() string
	Capabilities() ExchangeCapabilities
	// RouteTo returns a Publisher with that routing key ("" for fanout and
	// headers). It costs nothing and needs no closing.
	RouteTo(routingKey string) Publisher
	io.Closer
}

// A ReplyQueuer makes the queue that replies come to: its Name goes into
// Message.ReplyTo, Close removes it, and leftovers of crashed programs go by
// themselves or are swept.
type ReplyQueuer interface {
	ReplyQueue(ctx context.Context) (Queue, error)
}

// Transactional belongs to the broker: a transactional id is one producer
// with one open transaction, over any of its streams.
type Transactional interface {
	// Transactor fences every earlier holder of id.
	Transactor(ctx context.Context, id string) (Transactor, error)
}

// A Transactor begins transactions, one at a time. Fenced by a later holder
// of its id, every call returns [ErrFenced].
type Transactor interface {
	Begin(ctx context.Context) (Tx, error)
	io.Closer
}

// A Tx ends with Commit or Rollback; both rewind the group's members to what
// did commit, or to where Seek moved them since. [ErrTxAborted]: nothing
// happened, do the work again.
type Tx interface {
	// Publish appends records that readers with ReadCommitted see only once
	// Commit has returned nil.
	Publish(ctx context.Context, s Stream, rs ...Record) error
	// CommitOffsets stores the position after each record with the
	// transaction, and makes c one of the members that its end rewinds, also
	// when it fails. Call it before anything that may fail: what a rolled back
	// transaction has read and named no position of does not come again.
	CommitOffsets(ctx context.Context, c GroupConsumer, rs ...*Record) error
	Commit(ctx context.Context) error
	Rollback(ctx context.Context) error
}
