// Package bridge turns every event of a stream into one task on a queue; Kafka
// to SQS is what it is made for, and any [broker.Stream] and [broker.Queue] do.
//
// What holds, for each [Route]:
//
//   - No loss. An offset is committed only when everything up to it has been
//     enqueued, filtered on purpose, or confirmed in the dead-letter queue. A
//     dead-letter queue that is down blocks; it never drops.
//   - A crash sends the uncommitted window again. A FIFO queue suppresses what
//     it accepted less than 5 minutes ago, a standard queue sees duplicates.
//     Window and MaxAge bound the window.
//   - Identity. A task's ID and dedup id are a hash of the record's coordinates
//     (cluster, stream, its incarnation, partition, offset), so that it is the
//     same however often the record is read. Every task carries the
//     coordinates in its headers (x-source-…), so that workers can be
//     idempotent beyond 5 minutes.
//   - Order per key on first delivery: one record of a key is in flight at a
//     time, different keys go in parallel, and after a failure a key's
//     successors wait. BatchSameGroup gives that up for throughput. A queue
//     without any order (standard SQS) gets several of a key in one request.
//   - An ambiguous send (a time-out) is repeated with the same ids, and its key
//     waits for it.
//   - A planned rebalance or the end of Run's context stops fetching, drains,
//     commits and releases: no duplicate. A lost partition is never committed.
//
// Not promised: exactly-once across both systems; order across partitions;
// the order of a key after one of its records was parked.
package bridge
