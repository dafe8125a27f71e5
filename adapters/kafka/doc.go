// Package kafka implements the streams and queues of package broker on Apache
// Kafka, with franz-go:
//
//	b, err := kafka.Open(ctx, &kafka.Options{Brokers: []string{"localhost:9092"}})
//
// # Streams
//
// A [Stream] is a topic. Publishing is idempotent with acks=all; a call whose
// context ends while its record is on the way returns broker.ErrUnknownOutcome;
// the record stays on its way, also while the cluster is away, until it is
// stored, refused or the Broker is closed: taken back, it would take with it
// what others have published to the partition. So a call whose context can end
// copies keys and values, and is at most about 16 MiB of them ahead of the
// broker's answers, unless records linger. A broker.AsyncAppender uses the
// client's own pipeline, without copies.
// Groups are consumer groups (cooperative-sticky, or KIP-848 with
// Options.ServerSideGroups). A commit names the generation that the member
// believes in, so the broker refuses that of a former owner. A stored position
// that retention has overtaken goes on at the oldest record. A commit of a
// transaction becomes visible to readers a moment after it has returned.
// Lag counts up to 16 MiB of what lies behind the commits, and is exact there,
// markers and compaction taken into account; beyond, which PartitionLag.Exact
// tells, it is an upper bound.
// Kafka's null header value becomes an empty one.
// A transaction's markers carry the broker's time: where they stand between
// records with earlier times of their own, AtTime may begin at a marker, before
// the first record of that time. What a transaction rolls back may never have
// been stored; readers without ReadCommitted may see it or not.
//
// A topic that is deleted, or replaced by a new one of its name, ends its
// members within about ten seconds: Receive and Commit return
// broker.ErrNotFound, nothing is committed to the new topic, and a new Consumer
// reads it from the group's start. A queue's consumers go on by themselves.
//
// # Queues
//
// A [Queue] is a topic consumed by the share group "queue-" + its name
// (KIP-932), with a share session of the adapter's own: nothing is accepted
// but by Ack. It needs Kafka 4.1, and 4.2 for leases that can be extended.
// There is no order, no dedup and no priority.
//
//   - Every consumer fetches all partitions, whatever the group assigns, so
//     that a slow one keeps nobody from a message.
//   - A lease may have any length: the adapter renews the broker's lock while
//     it lasts, and releases the record when it ends. A consumer that dies
//     gives its records back as soon as its connection is gone, at the latest
//     when the lock ends.
//   - The broker mostly does not wake a fetch that waits for what another
//     consumer gives back: it is seen within 50 ms while there is work, and
//     within half a second on a queue that was quiet.
//   - A delayed message waits in the topic name + ".retry" and is moved, once
//     due, to the queue's topic: stored there before it is removed, so a crash
//     in between delivers it twice. This takes a consumer that is open.
//   - Reject and MaxAttempts write to the dead-letter queue, confirmed, before
//     the record is removed. MaxAttempts and DeadLetter of DeclareQueue are kept
//     in the compacted topic "queuestream.queues".
//   - The broker drops a record that was acquired ten times (the group's
//     share.delivery.count.limit) without an answer. The adapter replaces it by
//     a copy before that; a handler that kills its process each time, or
//     connections cut as often before the answer arrives, can still reach it.
//   - Retention applies to queues too: what is not consumed in time expires.
//     Set it with the option "retention.ms".
//   - Purge deletes what consumers hold as well; QueueStats counts it as ready.
//
// # Rights
//
// Where the cluster has ACLs, what is not allowed is broker.ErrUnauthorized
// from each call that needs it. Rights given later, or given back, count for
// the same handles, within seconds.
//
//   - Opening a stream or a queue: Describe on its topics, which Read and Write
//     imply. A queue has two: its name, and that with ".retry".
//   - Publishing: Write on the topic; to a queue with a delay, on ".retry".
//   - Consuming a stream: Read on the topic and on the group. Lag: Read on the
//     topic, and Describe on the group.
//   - Consuming a queue: Read on its topics, on the group "queue-" + its name,
//     and on the topic queuestream.queues (or set QueueOptions.DeadLetter);
//     Write on its topics and on its dead-letter queue's, where messages are
//     moved to.
//   - Transactions: Write on the transactional id, and what the calls in them need.
//   - DescribeConfigs on topics and share groups is asked for and can be
//     missing: limits and locks then count as Kafka's defaults.
package kafka
