// Package broker gives programs one [Queue] and one [Stream] over RabbitMQ,
// Kafka, SQS and an embedded in-memory broker.
//
// A Queue distributes work: one consumer at a time holds a message, and an
// acknowledged message is gone. A Stream keeps facts: a partitioned, retained
// log that every consumer group reads on its own. Adapters (adapters/memory,
// adapters/kafka, adapters/rabbitmq, adapters/sqs) implement the interfaces;
// programs call them, mostly through the loops [Worker] and [Processor].
//
// What holds everywhere:
//
//   - Nothing is dropped silently. A field, option or call that a handle cannot
//     honour returns [ErrUnsupported] before anything is sent.
//   - Publish returns once the message is durable. A time-out after sending is
//     [ErrUnknownOutcome], never "failed".
//   - Delivery is at least once. Nothing is acknowledged or committed on its own.
//   - The first verdict on a delivery settles it; later ones get [ErrSettled],
//     or [ErrLeaseLost] once the lease has passed.
//   - Within a GroupID there are never two deliveries at once, and within a
//     partition records keep their order.
//   - Methods are safe for concurrent use unless noted. A context bounds only
//     the call that it is passed to. A nil options pointer selects the defaults.
//
// The order to read in: broker.go, one adapter's queue.go, worker.go.
package broker
