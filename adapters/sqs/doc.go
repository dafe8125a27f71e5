// Package sqs implements broker.Queue on Amazon SQS, standard and FIFO, and
// exchanges on Amazon SNS. It has no Stream.
//
//	b, err := sqs.Open(ctx, &sqs.Options{Region: "eu-central-1"})
//	q, err := b.Queue(ctx, "orders.fifo", nil)
//	_, err = q.Publish(ctx, broker.Message{Body: body, GroupID: customer})
//
// # Delivery
//
// Delivery is at least once, on FIFO queues too: a lease that passes
// redelivers. Standard queues may deliver a message twice and in any order
// without a fault. FIFO queues (names that end in .fifo) keep the order of a
// GroupID and store a DedupID once within 5 minutes; without a DedupID the
// message's ID is used, or, where the queue has ContentDedup, the body. So a
// Publish repeated with the same ID after ErrUnknownOutcome stores one copy
// there, and may store two on a standard queue.
//
// A FIFO message without a GroupID gets a group of its own. While a message of
// a group is open its successors wait: in the consumer where SQS handed out
// several at once, which keeps their leases alive meanwhile. A Nack gives those
// back too, since the nacked one comes first, and SQS counts that as an attempt
// of theirs; polls then ask for one message each until that one is settled, so
// that a message that fails time and again does not use up its successors'
// attempts. A standard
// queue refuses GroupID, or takes it as the tenant of fair queues
// (Options.FairGroups), without order.
//
// Publish and PublishBatch share batches of 10 messages and 1 MiB; concurrent
// calls of Publish coalesce. An entry that SQS fails for a passing reason
// (throttling, internal errors, a lost answer) is sent again until the call's
// context ends. Of a FIFO group one message is under way at a time, so that
// none overtakes one that failed; see Options.BatchGroups for what is faster.
//
// Acknowledgements, redeliveries and extensions are batches too. Attempts are
// SQS's ApproximateReceiveCount, which also counts deliveries that were
// buffered and given back: what was fetched ahead for a program that takes 40 a
// second or more, and of a FIFO group what came together with a message that is
// nacked. With ConsumerOptions.Prefetch 1 there is neither, and a request for
// each message. A receipt holds for 12 h in all: Extend and, on a
// FIFO queue, Nack cannot go beyond (ErrUnsupported); a standard queue stores
// a copy for later instead. A Nack whose answer is lost is not repeated, since
// that could take the message from its next holder: it is ErrUnknownOutcome and
// ErrLeaseLost, and the message returns when its lease ends at the latest.
//
// Close gives back what is unsettled. A long poll that is under way goes on
// until it ends, and what it brings goes back at once, at an attempt; Close
// waits for those that end within 3 s. A Broker's Close cuts off the others. Of
// a FIFO queue it then asks for what such a poll may have taken, by its
// ReceiveRequestAttemptId; from a standard queue that returns when its lease
// ends. AWS notices the closed connection, emulators may not: set PollWait to
// 1 or 2 s there.
//
// Reject sends to the dead-letter queue (of QueueOptions, else of the queue's
// redrive policy) and then deletes. A Nack at the last attempt does the same,
// so that the dead letter says why; the redrive policy does it without this
// package's help when a program crashes, and then reason and origin are read
// from DeadLetterQueueSourceArn.
//
// Delays are whole seconds, rounded up. Up to 15 minutes SQS keeps them; longer
// ones go in hops: a consumer that receives the message early sends it on. A
// consumer that does not use this package gets it early.
//
// # What a message looks like
//
// A body that is text (UTF-8 without control characters but tab, line feed and
// carriage return, not empty) is the body. Everything else is reversible:
//
//	qs-id           the message's ID
//	qs-encoding     "base64": the body is base64 (RFC 4648, padded); "empty":
//	                the body is empty, and SQS's is "-"
//	qs-meta         a JSON object with what is set of content_type,
//	                correlation_id, reply_to, group_id and dedup_id (where SQS's
//	                own is a hash), due and sent (milliseconds since 1970: not to
//	                be delivered before; first sent), attempts (made on earlier
//	                copies)
//	qs-order        names of headers, separated by commas, in their order, where
//	                that is not the alphabet's
//	qs-headers      a JSON array of [key, value], instead of attributes
//	qs-routing-key  the routing key, of messages that came through an exchange
//
// These are message attributes of type String. In their values (and in the
// strings inside their JSON) "base64:" begins what is not text, in base64, and
// text that itself begins so.
//
// A header is a message attribute of its name, of type String, or Binary where
// its value is not text. If one header of a message cannot be (a key that may
// not name an attribute or begins with "qs-", an empty value, a key that occurs
// twice) or there are more than SQS's 10 attributes hold, all are in qs-headers.
//
// A group or deduplication id that SQS does not take (1 to 128 printable ASCII
// characters) is sent as "qs-group:sha256:" or "qs-dedup:sha256:" and the hash
// in hexadecimal. "qs-none:" begins the group of a message without one,
// "qs-id:" the deduplication id made of a message's ID, "qs-moved:" that of a
// copy made by dead-lettering or redriving.
//
// Messages of others are read as they are: attributes are headers, SQS's
// MessageId is the ID. Options.Plain sends none of the qs- attributes but the
// routing key to exchanges that filter by it: what needs them is refused, the ID
// stays here. Options.UnwrapSNS reads SNS's JSON envelope as the message in it.
//
// # Sizes
//
// SQS counts body and attributes, as they are sent, up to 1 MiB or the queue's
// MaximumMessageSize. Capabilities.MaxBytes is that less the 47 bytes of the
// attribute qs-id (nothing in plain mode): the largest body that is text. Of
// other bytes three quarters of that less 17 fit, since base64 makes 4 of 3.
// What is larger as it would be sent is ErrTooLarge, and is not sent; its
// SizeError says how large.
//
// # Exchanges
//
// An exchange is an SNS topic, its kind a tag of the topic, a binding a tag of
// the queue. Bind subscribes with raw delivery, and merges a pair's bindings
// into the one filter policy that SNS has for a subscription: direct keys,
// headers (at most 5 names and 150 combinations in all), and of topic patterns
// "#", exact keys and "prefix.#". What a policy cannot say exactly is
// ErrUnsupported; so is publishing to a headers exchange with headers that
// cannot be attributes. Messages are limited to 256 KiB. SNS takes what no queue
// is bound for (Unroutable is not claimed), and AWS applies a changed policy
// within 15 minutes.
//
// # Declaring
//
// QueueConfig.Options are kms_key_id, kms_reuse_seconds, managed_sse,
// throughput_limit (perQueue, perMessageGroupId), receive_wait_seconds,
// redrive_allow_policy and policy, with the values of SQS's attributes.
// MaxPriority, MaxLength and Temporary are unsupported; Shards is not needed.
//
// # Permissions
//
// Publishing needs sqs:SendMessage, consuming sqs:ReceiveMessage,
// sqs:DeleteMessage and sqs:ChangeMessageVisibility, both sqs:GetQueueUrl and
// sqs:GetQueueAttributes, consuming those two and sqs:SendMessage on the
// dead-letter queue as well; the methods say what else they need. A queue
// encrypted by a KMS key of one's own needs kms:GenerateDataKey and kms:Decrypt
// to publish, kms:Decrypt to consume. What the key refuses is ErrUnauthorized.
package sqs
