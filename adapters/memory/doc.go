// Package memory is an embedded broker with queues, streams and exchanges: the
// default for programs that need no other, the reference for the semantics of
// package broker, and a simulator of the real brokers for tests.
//
//	b, err := memory.Open(ctx, nil)
//	q, err := broker.DeclareQueue(ctx, b, "orders", broker.QueueConfig{MaxAttempts: 5})
//	_, err = q.Publish(ctx, broker.Message{Body: body})
//
// [Open] makes an empty broker; [Broker.Connect] makes a second connection to
// the same one, as another process would. What is stored lives in memory and
// nowhere else: the capability Durable is never claimed.
//
// # Queues
//
//   - Messages are received by priority, then in the order published. A delayed
//     one takes its place when it becomes due. One that is given back takes its
//     old place, before later ones.
//   - Of a GroupID one delivery is held at a time, and the group's head blocks
//     the rest: while it is delayed, held or waiting for its redelivery, none
//     of the group comes. A delay of a message therefore delays its successors.
//   - A delivery is leased for QueueConfig.Lease or ConsumerOptions.Lease, 30 s
//     by default. At the lease's end it goes back at once, also while nobody looks:
//     a receiver of the dead-letter queue sees it arrive in time.
//   - Every delivery counts as an attempt, but for those snoozed. After
//     MaxAttempts deliveries a message moves to the dead-letter queue instead
//     of being delivered again.
//   - DedupID, or with ContentDedup the SHA-256 of the body, is remembered for
//     5 minutes from the first message, acknowledged or not; memory grows with
//     the keys of a window. The Receipt tells of a duplicate.
//   - Bodies and headers are copied in and out: neither side sees what the
//     other changes, and every attempt is what was published.
//   - Prefetch is accepted and has nothing to bound, since nothing is handed
//     out ahead of Receive.
//
// # Streams
//
//   - Equal keys share a partition: murmur2 of the key as in Kafka's clients.
//     Records without a key take turns.
//   - Partitions of a group are spread evenly over its members, and stay where
//     they are if they can. One that moves is given on once OnRevoked has returned,
//     or after Options.RebalanceTimeout. Callbacks run one at a time, in a
//     goroutine that lives as long as they do. Records of a new partition come
//     after OnAssigned.
//   - A commit for a hold that has ended, or for a record fetched before a Seek or
//     a Rollback, is ErrFenced. With Options.SessionTimeout a member that calls
//     nothing for so long is evicted; it joins again at its next Receive.
//   - Retention by time goes by the records' times, retention by bytes counts
//     160 on top of each. A group that falls behind goes on with the oldest record.
//   - With Compact only the latest record of each key stays, at once. A
//     tombstone stays for 24 h (option [OptionTombstoneRetention]).
//   - A transaction's records become visible, and its offsets stored, by one
//     step over all its streams. It holds back readers with ReadCommitted
//     behind it, and aborts after Options.TransactionTimeout or when another
//     takes its transactional id.
//   - A transactional id is forgotten when its holder closes, or a week after its
//     last transaction as on Kafka; a holder that did not close gets ErrFenced.
//
// # Bounds
//
// A queue holds at most Options.MaxQueueBytes (256 MiB by default). There
// Publish waits for room, first come, first served, or, as Options.WhenFull
// says, returns ErrFull. At a declared MaxLength it always returns ErrFull. A
// dead letter is stored in any case. Deliveries of small messages share
// memory: one that a program keeps may keep 6 KiB. A partition of a stream
// drops its oldest records beyond RetentionBytes, or Options.MaxPartitionBytes.
//
// # Time
//
// Time comes from package time alone, so in a bubble of testing/synctest leases,
// delays and retention run in virtual time. There is no goroutine and no timer
// for a message: a queue has one timer, set while somebody waits. A Broker and
// what is opened from it belong to one bubble.
//
// # Profiles
//
// [Options.Profile] makes the broker honour what the SDK's adapter honours on
// a real one, and refuse the rest with ErrUnsupported:
//
//	                  Default   SQSStandard  SQSFIFO      RabbitMQQuorum    KafkaTopic
//	GroupID           yes       no           yes          if Ordered        no
//	DedupID           if Dedup  no           yes          no                no
//	ContentDedup      yes       no           yes          no                no
//	Delay             any       any          of the queue 49 days           any
//	... in a group    blocks it -            blocks it    joins when due    -
//	TTL               yes       of the queue of the queue yes               no
//	MaxPriority       255       no           no           no                no
//	largest message   any       1 MiB        1 MiB        16 MiB            1 MiB
//	lease             30 s      30 s to 12 h 30 s to 12 h no                30 s
//	retention         none      4 days       4 days       none              7 days
//	MaxAttempts       any       1,000        1,000        any               10
//	MaxLength         yes       no           no           yes               no
//	order             strict    at random    in groups    strict, or groups unspecified
//	in flight         any       120,000      120,000      any               any
//	snooze            yes       no           no           yes               yes
//	exchanges         all       as SNS       as SNS       all               no
//	reply queues      yes       yes          yes          yes               no
//	streams           yes       no           no           no compaction,    yes
//	                                                      no transactions
//	names             any       80, a-z0-9-_ and .fifo    no amq.           249, a-z0-9._-
//
// What a profile does not imitate: durability, throughput, latency, the time
// that AWS takes to apply a change, transaction markers that take an offset,
// and compaction that comes late. SQSStandard takes one of the first ten
// messages, by Options.Seed; duplicates are for Options.Faults.
//
// # Faults
//
// [Options.Faults] drops acknowledgements, loses answers, fails, throttles,
// duplicates, delays, disconnects and fails parts of batches, each with a
// probability, from Options.Seed, and makes every call slower.
// [Broker.SetFaults] changes them while the broker runs. [Broker.Disconnect]
// breaks the connection, and [Broker.Pause] stalls the broker, at a chosen
// moment; both together are a network that swallows what is sent.
// [Broker.Injected] counts what was hit.
package memory
