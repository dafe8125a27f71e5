package conformance

const (
	srcBroker  = "package broker"
	srcPublish = "broker.Publisher"
	srcReceive = "broker.Consumer"
	srcSettle  = "broker.Delivery"
	srcMessage = "broker.Message"
	srcQCaps   = "broker.QueueCapabilities"
	srcStream  = "broker.Stream"
	srcGroup   = "broker.GroupConsumer"
	srcSCaps   = "broker.StreamCapabilities"
	srcTx      = "broker.Tx"
	srcAdmin   = "broker.Admin"
	srcRoute   = "broker.Exchange"
	srcErrors  = "broker.Error"
	srcLife    = "broker.Broker"
)

// table has every case; Cases adds what runs them.
var table = []Case{
	{ID: 1, Name: "AckedNotLost", Kind: Both, Group: "delivery", Source: srcPublish, Rule: "Whatever Publish accepted is delivered until it is acknowledged (read by every group of a stream)."},
	{ID: 2, Name: "NoPhantom", Kind: Both, Group: "delivery", Source: srcReceive, Rule: "Only what was published is delivered."},
	{ID: 3, Name: "BytesExact", Kind: Both, Group: "delivery", Source: srcMessage, Rule: "Bodies come back byte for byte: empty, NUL, invalid UTF-8, the largest allowed."},
	{ID: 4, Name: "HeadersExact", Kind: Both, Group: "delivery", Source: srcMessage, Rule: "Headers keep order, duplicates and binary values, or are refused."},
	{ID: 5, Name: "BatchPartialFailure", Kind: Both, Group: "delivery", Source: srcPublish, Rule: "A batch names each failure and stores the rest; there is a receipt for each."},
	{ID: 6, Name: "PublishedIsDurable", Kind: Both, Group: "delivery", Source: srcQCaps + ".Durable", Rule: "What Publish accepted survives a restart of the broker."},
	{ID: 7, Name: "UnackedReturns", Kind: Queue, Group: "delivery", Source: srcReceive, Rule: "A delivery that nobody settled comes back when its consumer closes or its lease ends."},
	{ID: 8, Name: "AckIsFinal", Kind: Queue, Group: "delivery", Source: srcSettle, Rule: "An acknowledged message is never delivered again and leaves the queue."},
	{ID: 9, Name: "NackRequeues", Kind: Queue, Group: "delivery", Source: srcSettle, Rule: "A nacked message is delivered again, unchanged and soon."},
	{ID: 10, Name: "SettleOnce", Kind: Queue, Group: "delivery", Source: srcSettle, Rule: "The first verdict settles; later ones get ErrSettled and change nothing."},
	{ID: 11, Name: "CompetingConsumers", Kind: Queue, Group: "delivery", Source: srcReceive, Rule: "Consumers share the work: each message is held by one of them at a time."},
	{ID: 12, Name: "FanOut", Kind: Stream, Group: "delivery", Source: srcStream, Rule: "Every group reads every record."},

	{ID: 13, Name: "FIFOSingle", Kind: Queue, Group: "ordering", Source: srcQCaps + ".FIFO", Rule: "One consumer receives all messages in the order published."},
	{ID: 14, Name: "GroupFIFO", Kind: Queue, Group: "ordering", Source: srcQCaps + ".Groups", Rule: "Messages of a group are first delivered in the order in which they were accepted."},
	{ID: 15, Name: "GroupExclusive", Kind: Queue, Group: "ordering", Source: srcQCaps + ".Groups", Rule: "No two deliveries of a group are open at once, over all consumers."},
	{ID: 16, Name: "GroupHeadBlocks", Kind: Queue, Group: "ordering", Source: srcQCaps + ".Groups", Rule: "A redelivery comes before its successors in the group."},
	{ID: 17, Name: "GroupsIndependent", Kind: Queue, Group: "ordering", Source: srcQCaps + ".Groups", Rule: "A held group does not hold up others."},
	{ID: 18, Name: "NoGroupStarves", Kind: Queue, Group: "ordering", Source: srcQCaps + ".Groups", Rule: "A group with a long backlog does not keep others from being served."},
	{ID: 19, Name: "PartitionOrder", Kind: Stream, Group: "ordering", Source: srcStream, Rule: "Records of a partition are read in the order of their offsets, which is the order published."},
	{ID: 20, Name: "KeyAffinity", Kind: Stream, Group: "ordering", Source: srcStream, Rule: "Equal keys share a partition."},
	{ID: 21, Name: "SendOrder", Kind: Stream, Group: "ordering", Source: srcStream, Rule: "Retries do not reorder what one producer sent."},
	{ID: 22, Name: "RequeuePosition", Kind: Queue, Group: "ordering", Source: srcQCaps + ".Requeue", Rule: "A nacked message goes where the queue declares."},

	{ID: 23, Name: "FromEarliest", Kind: Stream, Group: "replay", Source: srcStream, Rule: "A new group that starts at the earliest record reads everything retained."},
	{ID: 24, Name: "FromLatest", Kind: Stream, Group: "replay", Source: srcStream, Rule: "A group that starts at the latest reads only what is published after it joined."},
	{ID: 25, Name: "SeekOffset", Kind: Stream, Group: "replay", Source: srcGroup, Rule: "After Seek to an offset the next record is the one at it."},
	{ID: 26, Name: "SeekTime", Kind: Stream, Group: "replay", Source: srcSCaps + ".SeekTime", Rule: "After Seek to a time the next record is the first at or after it."},
	{ID: 27, Name: "ReplayIdentical", Kind: Stream, Group: "replay", Source: srcStream, Rule: "Reading a range again yields the same records."},
	{ID: 28, Name: "ResumeCommitted", Kind: Stream, Group: "replay", Source: srcGroup, Rule: "A member continues where the group's commit is, with no record skipped."},
	{ID: 29, Name: "CommitBounds", Kind: Stream, Group: "replay", Source: srcGroup, Rule: "Commit stores the position after the record and never moves back."},
	{ID: 30, Name: "SeekIsolation", Kind: Stream, Group: "replay", Source: srcGroup, Rule: "Seek of one group leaves others alone."},
	{ID: 31, Name: "OffsetOutOfRange", Kind: Stream, Group: "replay", Source: srcGroup, Rule: "A position outside the log is ErrOutOfRange."},

	{ID: 32, Name: "DedupWindow", Kind: Queue, Group: "dedup", Source: srcQCaps + ".Dedup", Rule: "A DedupID is stored once within the window."},
	{ID: 33, Name: "DedupAfterAck", Kind: Queue, Group: "dedup", Source: srcQCaps + ".Dedup", Rule: "It stays so after the message was acknowledged."},
	{ID: 34, Name: "DedupExpires", Kind: Queue, Group: "dedup", Source: srcQCaps + ".DedupWindow", Rule: "After the window the same DedupID is stored again."},
	{ID: 35, Name: "DedupScope", Kind: Queue, Group: "dedup", Source: "broker.QueueConfig.DedupPerGroup", Rule: "The scope of a DedupID is the queue, or the group where so declared."},
	{ID: 36, Name: "ContentDedup", Kind: Queue, Group: "dedup", Source: srcQCaps + ".ContentDedup", Rule: "Equal bodies are stored once within the window, different ones are all stored."},
	{ID: 37, Name: "RetryDedup", Kind: Both, Group: "dedup", Source: srcQCaps + ".Idempotent", Rule: "A publish repeated after a lost answer stores one copy."},
	{ID: 38, Name: "DedupReceipt", Kind: Both, Group: "dedup", Source: "broker.Receipt", Rule: "Receipts carry the message's ID; that of a duplicate names the first copy and never looks like another message."},

	{ID: 39, Name: "DelayNeverEarly", Kind: Queue, Group: "delay", Source: srcMessage + ".Delay", Rule: "A delayed message is never delivered before its time."},
	{ID: 40, Name: "DelayNotLate", Kind: Queue, Group: "delay", Source: srcMessage + ".Delay", Rule: "It is delivered soon after its time."},
	{ID: 41, Name: "DelayMixed", Kind: Queue, Group: "delay", Source: srcMessage + ".Delay", Rule: "A long delay does not hold up a shorter one behind it."},
	{ID: 42, Name: "InvisibleWhileHeld", Kind: Queue, Group: "lease", Source: srcReceive, Rule: "A message that is held is not delivered to anybody else."},
	{ID: 43, Name: "LeaseExpires", Kind: Queue, Group: "lease", Source: srcQCaps + ".Lease", Rule: "When the lease ends the message is delivered again, not before and soon after."},
	{ID: 44, Name: "ExtendLease", Kind: Queue, Group: "lease", Source: srcSettle + ".Extend", Rule: "An extended lease counts from the extension."},
	{ID: 45, Name: "ReleaseNow", Kind: Queue, Group: "lease", Source: srcSettle + ".Nack", Rule: "Nack releases at once or after its delay, and not after the lease."},
	{ID: 46, Name: "StaleReceipt", Kind: Queue, Group: "lease", Source: srcSettle, Rule: "A verdict after the lease is ErrLeaseLost and never settles the new holder's delivery."},
	{ID: 47, Name: "AttemptCount", Kind: Queue, Group: "dead letters", Source: srcSettle + ".Attempt", Rule: "Attempts count deliveries from 1."},
	{ID: 48, Name: "DeadLetterAfterN", Kind: Queue, Group: "dead letters", Source: "broker.QueueConfig.MaxAttempts", Rule: "After N deliveries the message is dead-lettered, once."},
	{ID: 49, Name: "DeadLetterKeeps", Kind: Queue, Group: "dead letters", Source: "broker.DeadLetterMessage", Rule: "A dead letter keeps body, headers and ids, and says why, where and after how many attempts."},
	{ID: 50, Name: "Redrive", Kind: Queue, Group: "dead letters", Source: srcAdmin + ".Redrive", Rule: "Dead letters go back as they were published; none is lost or doubled."},
	{ID: 51, Name: "PoisonDoesNotBlock", Kind: Queue, Group: "dead letters", Source: "broker.QueueConfig.MaxAttempts", Rule: "A message that always fails does not keep others from being done."},

	{ID: 52, Name: "SingleOwner", Kind: Stream, Group: "groups", Source: srcGroup, Rule: "A partition belongs to one member of a group at a time."},
	{ID: 53, Name: "JoinLeave", Kind: Stream, Group: "groups", Source: srcGroup, Rule: "Members that join and leave take over partitions; nothing is skipped."},
	{ID: 54, Name: "RebalanceStorm", Kind: Stream, Group: "groups", Source: srcGroup, Rule: "Thirty joins and leaves lose nothing."},
	{ID: 55, Name: "RevokeBeforeAssign", Kind: Stream, Group: "groups", Source: "broker.GroupOptions.OnRevoked", Rule: "A partition is revoked, and commits inside OnRevoked are done, before it is assigned again."},
	{ID: 56, Name: "ZombieFenced", Kind: Stream, Group: "groups", Source: srcGroup + ".Commit", Rule: "A former owner's commit is ErrFenced and changes nothing."},
	{ID: 57, Name: "IdleMember", Kind: Stream, Group: "groups", Source: srcGroup, Rule: "A member beyond the number of partitions is idle and takes over when one leaves."},
	{ID: 58, Name: "PartitionGrowth", Kind: Stream, Group: "groups", Source: srcSCaps + ".Growth", Rule: "Partitions added later are assigned and read from their beginning."},

	{ID: 59, Name: "RetentionExpires", Kind: Both, Group: "retention", Source: "broker.QueueConfig.TTL, broker.StreamConfig.Retention", Rule: "What is older than its time to live or the retention is gone, and not before."},
	{ID: 60, Name: "RetentionKeepsOffsets", Kind: Stream, Group: "retention", Source: srcStream, Rule: "Retention moves the first offset and renumbers nothing."},
	{ID: 61, Name: "CompactionKeepsLatest", Kind: Stream, Group: "retention", Source: srcSCaps + ".Compaction", Rule: "Compaction keeps the latest record of each key."},
	{ID: 62, Name: "Tombstone", Kind: Stream, Group: "retention", Source: srcSCaps + ".Tombstones", Rule: "A tombstone is told apart from an empty value and deletes its key."},

	{ID: 63, Name: "AbortInvisible", Kind: Stream, Group: "transactions", Source: srcTx, Rule: "Readers of committed records never see an aborted one."},
	{ID: 64, Name: "AtomicVisibility", Kind: Stream, Group: "transactions", Source: srcTx, Rule: "A transaction's records become visible together or not at all."},
	{ID: 65, Name: "NoOwnUncommittedRead", Kind: Stream, Group: "transactions", Source: srcTx, Rule: "Not even its own writer reads an uncommitted record with ReadCommitted."},
	{ID: 66, Name: "ConsumeTransformProduce", Kind: Stream, Group: "transactions", Source: srcTx, Rule: "Copying in transactions is exactly once while copiers are killed."},
	{ID: 67, Name: "ProducerFenced", Kind: Stream, Group: "transactions", Source: "broker.Transactional", Rule: "A later holder of a transactional id fences the earlier one."},

	{ID: 68, Name: "PrefetchBound", Kind: Both, Group: "back-pressure", Source: "broker.ConsumerOptions.Prefetch", Rule: "A consumer holds no more than its prefetch ahead of Receive; Receive returns no more than max."},
	{ID: 69, Name: "PublishBlocks", Kind: Both, Group: "back-pressure", Source: srcPublish, Rule: "Many concurrent publishes are all answered, and memory stays bounded."},
	{ID: 70, Name: "QueueFull", Kind: Queue, Group: "back-pressure", Source: srcQCaps + ".Bounded", Rule: "At its length limit the queue refuses with ErrFull and drops nothing."},
	{ID: 71, Name: "SlowConsumer", Kind: Both, Group: "back-pressure", Source: srcReceive, Rule: "A consumer that does not receive keeps nobody else from it."},
	{ID: 72, Name: "Throttled", Kind: Both, Group: "back-pressure", Source: srcErrors, Rule: "Throttling by the broker slows calls down, or is a temporary error; nothing is lost."},

	{ID: 73, Name: "ContextCancel", Kind: Both, Group: "life cycle", Source: srcBroker, Rule: "Each call returns promptly when its context ends; with an ended one nothing is sent or taken, and nothing is lost."},
	{ID: 74, Name: "CloseTwice", Kind: Both, Group: "life cycle", Source: srcLife, Rule: "Close may be called again, also concurrently."},
	{ID: 75, Name: "CloseFlushes", Kind: Both, Group: "life cycle", Source: srcLife, Rule: "What a call answered with success before Close or Shutdown is done."},
	{ID: 76, Name: "UseAfterClose", Kind: Both, Group: "life cycle", Source: srcLife, Rule: "Every call on a closed handle is ErrClosed."},
	{ID: 77, Name: "ConcurrentUse", Kind: Both, Group: "life cycle", Source: srcBroker, Rule: "Methods are safe for concurrent use."},
	{ID: 78, Name: "NoLeaks", Kind: Both, Group: "life cycle", Source: srcLife, Rule: "After Close no goroutine is left."},
	{ID: 79, Name: "CloseWithUnread", Kind: Both, Group: "life cycle", Source: srcLife, Rule: "Unread messages make Close neither hang nor lose them."},
	{ID: 80, Name: "CloseWhileDown", Kind: Both, Group: "life cycle", Source: srcLife, Rule: "While the broker is down Close is bounded, and each call returns when its context ends."},

	{ID: 81, Name: "Oversize", Kind: Both, Group: "bad input", Source: srcQCaps + ".MaxBytes", Rule: "A message above the limit is ErrTooLarge; its neighbours in the batch are unharmed."},
	{ID: 82, Name: "BadName", Kind: Both, Group: "bad input", Source: srcErrors, Rule: "Bad names, missing queues and bad credentials are typed errors at once, not retried."},
	{ID: 83, Name: "UnsupportedRefused", Kind: Both, Group: "bad input", Source: srcBroker, Rule: "Every field and option that is not claimed is ErrUnsupported and stores nothing; what is never allowed is ErrInvalid."},

	{ID: 84, Name: "Direct", Kind: Queue, Group: "routing", Source: "broker.ExchangeDirect", Rule: "A direct exchange routes to the queues bound with that key."},
	{ID: 85, Name: "Fanout", Kind: Queue, Group: "routing", Source: "broker.ExchangeFanout", Rule: "A fanout exchange routes to every bound queue, once."},
	{ID: 86, Name: "Topic", Kind: Queue, Group: "routing", Source: "broker.ExchangeTopic", Rule: "In a topic pattern * is one word and # any number."},
	{ID: 87, Name: "HeadersMatch", Kind: Queue, Group: "routing", Source: "broker.ExchangeHeaders", Rule: "A headers exchange matches all entries of a binding, or any with MatchAny."},
	{ID: 88, Name: "Unroutable", Kind: Queue, Group: "routing", Source: "broker.ExchangeCapabilities.Unroutable", Rule: "Publishing what no queue takes is ErrNotFound."},
	{ID: 89, Name: "RequestReply", Kind: Queue, Group: "routing", Source: "broker.ReplyQueuer", Rule: "Replies come to the caller's reply queue with its correlation id, and the queue is gone after Close."},

	{ID: 90, Name: "ConnectionCut", Kind: Both, Group: "faults", Source: srcBroker, Rule: "Cut connections lose nothing and break no order."},
	{ID: 91, Name: "AnswerLost", Kind: Both, Group: "faults", Source: srcPublish, Rule: "A lost answer is an unknown outcome, never a failure or a loss."},
	{ID: 92, Name: "BrokerKill", Kind: Both, Group: "faults", Source: srcQCaps + ".Durable", Rule: "A killed and restarted broker loses nothing that it accepted."},
	{ID: 93, Name: "BrokerPause", Kind: Both, Group: "faults", Source: srcBroker, Rule: "A stalled broker loses nothing and breaks no order."},
	{ID: 94, Name: "BlackHole", Kind: Both, Group: "faults", Source: srcBroker, Rule: "A silent network is noticed, and nothing is lost."},
	{ID: 95, Name: "SlowLink", Kind: Both, Group: "faults", Source: srcBroker, Rule: "A slow network loses nothing and breaks no order."},
	{ID: 96, Name: "ConsumerKill", Kind: Both, Group: "faults", Source: srcReceive, Rule: "What a killed consumer held is delivered to others."},

	{ID: 97, Name: "Million", Kind: Both, Group: "scale", Source: srcBroker, Rule: "A million messages go through, none lost or invented."},
	{ID: 98, Name: "TenThousandGroups", Kind: Queue, Group: "scale", Source: srcQCaps + ".Groups", Rule: "Ten thousand groups keep their order, and each is served."},
}
