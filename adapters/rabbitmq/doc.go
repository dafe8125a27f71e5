// Package rabbitmq runs queues, exchanges, request-reply and streams on
// RabbitMQ (4.x and 3.13).
//
//	b, err := rabbitmq.OpenURL(ctx, "amqp://user:password@host:5672/vhost")
//	if err != nil { … }
//	defer b.Close()
//	err = b.DeclareQueue(ctx, "orders", broker.QueueConfig{DeadLetter: "orders.dead", MaxAttempts: 5})
//	q, err := b.Queue(ctx, "orders", nil)
//
// # Connections
//
// A supervisor keeps one connection for consuming and declaring and one for
// publishing, over several endpoints, with jittered back-off. What a connection
// delivered dies with it: a late verdict gets [broker.ErrLeaseLost] and never
// settles another message. Publishers wait for the next connection until their
// context ends; what was not confirmed by then is published again with the same
// id, so a message may be stored twice when a connection breaks.
//
// Each queue in the broker is consumed from over a channel of its own, so that one
// that does not answer (a quorum queue without a leader) holds up no other: of a
// queue with groups there are as many as shards and one more, and a connection has
// 2047 channels. RabbitMQ gives up after 65 seconds and closes the connection that
// asked; from then on that queue is asked over a third one.
//
// # Queues
//
// Queues are quorum queues (Options "x-queue-type": "classic" selects another).
// Publish is persistent, mandatory and confirmed: nil means stored, and a
// missing queue is [broker.ErrNotFound].
//
//   - AMQP has no lease: Extend and ConsumerOptions.Lease are unsupported. The
//     broker ends a channel that holds a delivery too long (consumer_timeout,
//     30 minutes by default, https://www.rabbitmq.com/docs/consumers).
//   - AMQP answers no acknowledgement: nil from Ack means that it is on its way.
//     Those that follow soon after another gather for 5 ms at most, since each
//     frame is an entry in a quorum queue's log; if the connection breaks, or the
//     program is killed, before they arrive, the broker delivers again.
//   - Attempts are counted by the quorum queue (x-delivery-count) and, across a
//     delay, by a header. Before RabbitMQ 4.3 a prefetched message that was
//     given back unread counts as an attempt: keep Prefetch low where
//     MaxAttempts is small. The broker's own delivery limit is switched off.
//   - A consumer keeps what it has prefetched from others while the program
//     calls Receive or holds a delivery. Two seconds after neither is so (a
//     paused Worker) it puts the rest back: into a plain queue as copies that
//     keep their attempts, at its end; a queue with groups gets them back in
//     order.
//   - AMQP cannot tell what a queue was declared with. A Broker knows what it
//     declared itself; for others set [Options.Management] or
//     QueueOptions.DeadLetter and MaxAttempts.
//   - Reject writes to the dead-letter queue, waits for the confirm and then
//     acknowledges: a crash in between leaves two copies, never none.
//   - Delays use a ladder of delay queues shared by the virtual host
//     ("broker.delay…", made at first use, see [Broker.RemoveDelayQueues]);
//     their unit is 16 ms, the longest delay is [MaxDelay].
//
// # Groups
//
// A queue declared Ordered is spread over shard queues ("name.shards.0", …),
// each with a single active consumer; a group always uses the same shard.
// Messages without a group are in a queue beside them ("name.shards.none"), which
// all consumers share.
// Consumers take over from each other when one ends, in order: the next gets what
// the former had not settled, then what follows. Shutdown keeps a shard until what
// is in hand is settled. Random consumer priorities spread the shards over the
// consumers (RabbitMQ 4.0 and later). A group's redelivery is kept by its
// holder: a crash shortens its delay and forgets the attempts counted there.
// Messages published through an exchange reach the shards when this package
// publishes them, since a header carries the hash.
//
// # Request and reply
//
// [Broker.ReplyQueue] makes a temporary classic queue, whose replies survive a
// broken connection. [Options.DirectReplies] selects RabbitMQ's direct reply-to
// instead (https://www.rabbitmq.com/docs/direct-reply-to): nothing is declared,
// and replies are at most once. The broker tells neither that a reply was
// dropped nor that it arrived: publishing one to a caller that has gone since
// its name was opened succeeds.
//
// # Streams
//
// Streams need the plugin rabbitmq_stream (port 5552). Each stored offset takes
// an offset itself, so lag is an upper bound. Time is the publisher's; a seek by
// time skips what is earlier in its chunk.
//
// What was not confirmed when a connection broke is published again with the same
// number, and the broker stores it once. It knows numbers by the producer's name,
// and confirms, but drops, one that is not above the last of that name, so that
// two producers of one name would lose each other's records
// (https://www.rabbitmq.com/blog/2021/07/28/rabbitmq-streams-message-deduplication).
// Therefore each handle publishes under a name of its own: StreamOptions.Producer,
// a dot and an ID. Any number of handles, in one program or in several, may have
// the same Producer.
//
// The broker stores a group's offset unconfirmed and from anyone. Here a commit
// goes over the connection that makes a member the active one, is confirmed by
// a query, and ends before the member answers that it gives the partition up: a
// member that lost a partition cannot move its successor's offset. A program
// that stores offsets by other means can, so Fencing is not claimed.
//
// The broker gives partition i of a super stream to the i-th member in the order
// of joining, partition by partition
// (https://www.rabbitmq.com/docs/streams#single-active-consumer-for-super-streams).
// Members of one Broker join one after the other; where two programs join in the
// same moment, one of them may get fewer partitions than its share.
//
// RabbitMQ up to 4.1.0, and later versions in rarer cases, can leave a partition
// of a super stream without an active member when a connection breaks during a
// hand-over. Members see that, by the lack of commits and of the signs of life
// that slow members store as offsets of "amq.alive." and the group's name, and
// heal it within 23 seconds: they leave that partition's group together, by
// their clocks, and join it again (docs/adr/0008-stream-groups-heal.md).
//
// # Options of QueueConfig
//
// Keys that begin with "x-" are passed on as queue arguments: "true" and
// "false" as booleans, digits as integers, the rest as text.
//
// From RabbitMQ 4.0 on, quorum queues are declared with "x-delivery-limit" -1,
// since the broker's own limit, 20 by default, drops or dead-letters behind this
// package's back. A queue made by 3.13, or by others, has no such argument, and
// declaring it with one is [broker.ErrConflict]: "x-delivery-limit" set to ""
// leaves it out; then the policy delivery-limit should be -1.
package rabbitmq
