package broker

import (
	"context"
	"io"
	"iter"
	"time"
)

// A Broker opens queues and streams by name; opening declares nothing and is
// cheap. It may also be an [Admin], an [Exchanger], a [ReplyQueuer] and
// [Transactional]: ask with [As].
type Broker interface {
	// Queue opens a queue. A missing queue is [ErrNotFound], here or at the
	// first call where the broker cannot tell earlier.
	Queue(ctx context.Context, name string, opts *QueueOptions) (Queue, error)
	// Stream opens a stream, with the same rules as Queue. A broker without
	// streams returns [ErrUnsupported].
	Stream(ctx context.Context, name string, opts *StreamOptions) (Stream, error)
	// Ping makes one round trip to the broker.
	Ping(ctx context.Context) error
	// Shutdown stops fetching, waits until what is in hand is settled and what
	// is being published is answered, or until ctx ends, then closes. What was
	// not settled by then is redelivered; Shutdown then returns ctx's error.
	Shutdown(ctx context.Context) error
	// Close closes every handle at once. It is bounded (a few seconds at most,
	// also while the broker is down) and may be called again; so is Close on
	// every handle.
	io.Closer
}

// A Publisher is all that an HTTP handler, an outbox or a bridge needs of a
// queue, or of an exchange with a routing key ([Exchange.RouteTo]).
type Publisher interface {
	// Publish returns once the broker has durably accepted m. It neither keeps
	// nor changes m. When ctx ends after m may have been sent the outcome is
	// unknown ([ErrUnknownOutcome]); the Receipt carries the ID for a retry
	// even then.
	Publish(ctx context.Context, m Message) (Receipt, error)
	// PublishBatch publishes ms, pipelined as the broker allows, and keeps
	// order within a group for what is accepted. It always returns len(ms)
	// receipts and, unless all went well, a [*BatchError] that names the
	// failures. After a partial failure later messages of the same group may
	// be stored already.
	PublishBatch(ctx context.Context, ms []Message) ([]Receipt, error)
}

// A Queue distributes work: one consumer at a time holds a message, and an
// acknowledged message is gone.
type Queue interface {
	Publisher
	Name() string
	// Capabilities are those of this queue, not of the product: an SQS FIFO
	// queue refuses a delay per message, a standard one takes it.
	Capabilities() QueueCapabilities
	// Consumer opens a consumer that competes with all others of the queue.
	Consumer(ctx context.Context, opts *ConsumerOptions) (Consumer, error)
	io.Closer
}

// A Consumer receives from a Queue, competing with others.
type Consumer interface {
	// Receive blocks for a first delivery and returns at most max, which must
	// be positive. It never waits for, nor settles, earlier deliveries; while
	// one of a group is open it returns no other of that group; with an ended
	// ctx it takes nothing. After Close it returns [ErrClosed].
	Receive(ctx context.Context, max int) ([]*Delivery, error)
	Settler
	// Close gives back what is unsettled, so that others receive it at once
	// where the broker allows that. Deliveries settled later get [ErrLeaseLost].
	io.Closer
}

// A Settler is the seam under Delivery's methods: adapters implement it, a
// decorator wraps it ([Delivery.Wrap]). Programs settle through Delivery.
type Settler interface {
	// SettleOne carries out v on d and returns nil once the broker has
	// applied it (RabbitMQ answers no ack: there nil means handed to the
	// connection that d came on). [ErrLeaseLost] is final. Any other error
	// leaves d open, and the verdict may be tried again.
	SettleOne(ctx context.Context, d *Delivery, v Verdict) error
	// Settle does the same for many in as few round trips as the broker
	// allows, and sets Err of each outcome.
	Settle(ctx context.Context, batch []Outcome)
}

// A Stream is a partitioned, retained, append-only log.
type Stream interface {
	// Publish appends r and returns its partition and, where the capability
	// Offsets is claimed, its offset; for the rest it promises what
	// [Publisher].Publish promises. Equal keys share a partition; an empty key
	// selects any.
	Publish(ctx context.Context, r Record) (Receipt, error)
	// PublishBatch promises what [Publisher].PublishBatch promises, with order
	// kept within a partition.
	PublishBatch(ctx context.Context, rs []Record) ([]Receipt, error)
	Name() string
	Capabilities() StreamCapabilities
	// Consumer joins a group as one more member; each group has offsets of its
	// own. It returns before partitions are assigned.
	Consumer(ctx context.Context, group string, opts *GroupOptions) (GroupConsumer, error)
	// Partitions returns every partition with its first and next offset.
	Partitions(ctx context.Context) ([]Partition, error)
	// Read yields r.From up to, not including, r.Until (zero: the end as of
	// the call), without a group. Records of a partition come in order,
	// partitions may interleave. An error is the last pair; break frees all.
	// A yielded record belongs to the caller.
	Read(ctx context.Context, r Range) iter.Seq2[*Record, error]
	// Lag returns how far the group's commits are behind the end, for each
	// partition.
	Lag(ctx context.Context, group string) ([]PartitionLag, error)
	io.Closer
}

// A GroupConsumer is one member of a group. One goroutine calls Receive and
// Seek; the rest may be called from any, also while Receive blocks.
type GroupConsumer interface {
	// Receive blocks for a first record and returns at most max, which must be
	// positive. Records of one partition come in order. It commits nothing.
	Receive(ctx context.Context, max int) ([]*Record, error)
	// Commit stores the position after each record and never moves it back
	// (until Seek). [ErrFenced]: another member owns the partition by now, and
	// nothing was stored for it.
	Commit(ctx context.Context, rs ...*Record) error
	// Seek moves this member's position in a partition assigned to it;
	// records fetched before are dropped. The stored offset moves with the
	// next Commit, also backwards. A position outside the log is
	// [ErrOutOfRange].
	Seek(ctx context.Context, partition int32, to Position) error
	// Partitions returns those assigned to this member, ascending.
	Partitions() []int32
	// Pause stops Receive from returning records of the partitions until
	// Resume, or until this member loses them: the assignment stays, and one
	// that comes back is not paused.
	Pause(partitions ...int32)
	Resume(partitions ...int32)
	// Close leaves the group at once; it commits nothing.
	io.Closer
}

// GroupOptions are the options of a group's member. The zero value starts at
// the earliest record and reads committed and open transactions alike.
type GroupOptions struct {
	Start         Position // where the group has no offset yet; zero: Earliest
	ReadCommitted bool     // hide records of open and aborted transactions

	// OnAssigned runs after partitions were added to this member, and before
	// Receive returns records of them.
	OnAssigned func(partitions []int32)
	// OnRevoked runs before the hand-over, which waits for it (until ctx ends,
	// set by the broker's rebalance time-out); Commit works inside.
	OnRevoked func(ctx context.Context, partitions []int32)
	// OnLost runs when it is too late for that: another member may own the
	// partitions already, and Commit returns ErrFenced.
	OnLost func(partitions []int32)
}

// QueueOptions are checked when a queue is opened.
type QueueOptions struct {
	// Require makes Queue fail with ErrUnsupported unless the queue has every
	// capability that is set here: flags must be true, numbers at least as large.
	Require QueueCapabilities
	// MaxAttempts is the number of deliveries after which a message moves to
	// DeadLetter instead of being delivered again. Zero: what the queue itself
	// is configured with, else no limit.
	MaxAttempts int
	// DeadLetter names the queue that Reject and MaxAttempts move messages to.
	// Empty: what the queue itself is configured with, else Reject returns
	// ErrUnsupported.
	DeadLetter string
}

// StreamOptions are checked when a stream is opened.
type StreamOptions struct {
	Require StreamCapabilities // as QueueOptions.Require
	// Producer names this producer where the broker dedups by producer name
	// and sequence (RabbitMQ streams). Empty: unnamed.
	Producer string
}

// ConsumerOptions are the options of a queue's consumer.
type ConsumerOptions struct {
	// Prefetch bounds the deliveries that this consumer holds ahead of
	// Receive. Zero: the adapter's default. AMQP counts what Receive has
	// returned and nobody settled, too: there a Worker has no more handlers at
	// once than Prefetch, and no larger batches.
	Prefetch int
	// Lease is how long a delivery is held before it returns to the queue
	// unless extended (the visibility timeout). Zero: the queue's own. Where
	// the capability Lease is missing, a non-zero Lease is ErrUnsupported.
	Lease time.Duration
}

// A Partition is one of a stream's logs.
type Partition struct {
	ID    int32
	First Offset // of the oldest retained record
	Next  Offset // that the next record will get
}

// A PartitionLag tells how far a group is behind in one partition.
type PartitionLag struct {
	Partition int32
	Committed Offset // the next offset to read; meaningful if HasCommit
	HasCommit bool
	Next      Offset // the end of the log for this reader
	Lag       int64  // records between the two; an upper bound where the capability ExactLag is missing
	Exact     bool   // Lag is exact in this answer, though the capability ExactLag may be missing
}

// A Range is what [Stream].Read reads.
type Range struct {
	From          Position // zero: Earliest
	Until         Position // exclusive; zero: Now
	Partitions    []int32  // nil: all
	ReadCommitted bool
}
