package kafka

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/queuestream/broker"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// The kinds of acknowledgement in Kafka's protocol.
const (
	ackGap     int8 = 0
	ackAccept  int8 = 1
	ackRelease int8 = 2
	ackReject  int8 = 3
	ackRenew   int8 = 4
)

// An ackOp is one acknowledgement on its way. Guarded by Consumer.mu.
type ackOp struct {
	lock *shareLock
	kind int8
	call *ackCall // who waits for it; nil: nobody
	err  error
	done bool
	sent bool
	// alone: refused together with others once, so not with a fetch again
	alone bool

	at    time.Time     // of a renewal: when it was asked for
	lease time.Duration // of a renewal: for how long
}

// An ackCall waits for its operations.
type ackCall struct {
	left int
	done chan struct{}
}

// enqueue sends an operation with the session's next request. c.mu is held.
func (c *Consumer) enqueue(op *ackOp) {
	if op.lock.gone {
		op.complete(lost(errGivenBack))
		return
	}
	n := op.lock.node
	op.at = time.Now()
	n.acks = append(n.acks, op)
	n.signal()
}

// complete sets the result. c.mu is held.
func (op *ackOp) complete(err error) {
	if op.done {
		return
	}
	op.err, op.done = err, true
	if op.call == nil {
		return
	}
	if op.call.left--; op.call.left == 0 {
		close(op.call.done)
	}
}

// maxAcks bounds the operations of one request.
const maxAcks = 5000

// takeAcks takes what fits into the next request: an offset once, and of a
// partition whose request was refused one part. c.mu is held.
func (n *shareNode) takeAcks() []*ackOp {
	var out []*ackOp
	if len(n.splits) > 0 {
		out, n.splits = n.splits[0], n.splits[1:]
		for _, op := range out {
			op.sent, op.alone = true, true
		}
		return out
	}
	used := map[*shareLock]bool{}
	rest := n.acks[:0]
	for _, op := range n.acks {
		switch {
		case op.done: // nobody waits any more
		case op.lock.gone:
			op.complete(lost(errGivenBack))
		case len(out) >= maxAcks, used[op.lock]:
			rest = append(rest, op)
			used[op.lock] = true
		default:
			op.sent = true
			used[op.lock] = true
			out = append(out, op)
		}
	}
	clear(n.acks[len(rest):])
	n.acks = rest
	return out
}

// failAll completes what waits with a lost lease. c.mu is held.
func (n *shareNode) failAll(cause error) {
	for _, op := range n.acks {
		op.complete(lost(cause))
	}
	for _, ops := range n.splits {
		for _, op := range ops {
			op.complete(lost(cause))
		}
	}
	n.acks, n.splits = nil, nil
}

func (n *shareNode) failLock(l *shareLock, cause error) {
	for _, op := range n.acks {
		if op.lock == l {
			op.complete(lost(cause))
		}
	}
}

// acknowledge sends operations and sets their results.
func (n *shareNode) acknowledge(ctx context.Context, ops []*ackOp) error {
	n.c.mu.Lock()
	epoch := n.epoch
	n.c.mu.Unlock()
	if epoch == 0 {
		n.completeAll(ops, lost(errors.New("the share session has ended")))
		return nil
	}
	req := kmsg.NewPtrShareAcknowledgeRequest()
	req.GroupID, req.MemberID, req.ShareSessionEpoch = n.group(), n.member(), epoch
	req.Topics = ackTopics(ops)
	for _, op := range ops {
		req.IsRenewAck = req.IsRenewAck || op.kind == ackRenew
	}
	kresp, err := n.request(ctx, req)
	if err != nil {
		n.completeAll(ops, broker.UnknownOutcome(err))
		return err
	}
	resp, ok := kresp.(*kmsg.ShareAcknowledgeResponse)
	if !ok {
		return fmt.Errorf("answer of type %T to a share acknowledge", kresp)
	}
	if err := n.answered(resp.ErrorCode, resp.ErrorMessage); err != nil {
		n.completeAll(ops, ackError(err))
		return err
	}
	codes := map[topicPartition]int16{}
	for i := range resp.Topics {
		for _, p := range resp.Topics[i].Partitions {
			codes[topicPartition{resp.Topics[i].TopicID, p.Partition}] = p.ErrorCode
		}
	}
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	n.c.told(resp.AcquisitionLockTimeoutMillis)
	n.appliedAll(ops, codes)
	return nil
}

// appliedAll sets the results by partition. c.mu is held.
func (n *shareNode) appliedAll(ops []*ackOp, codes map[topicPartition]int16) {
	byPart := map[*sharePart][]*ackOp{}
	for _, op := range ops {
		byPart[op.lock.part] = append(byPart[op.lock.part], op)
	}
	for part, ops := range byPart {
		n.applied(ops, kerr.ErrorForCode(codes[part.key]))
	}
}

// applied sets the results of one partition. c.mu is held.
func (n *shareNode) applied(ops []*ackOp, err error) {
	if errors.Is(err, kerr.InvalidRecordState) && len(ops) > 1 {
		// One of them is not ours any more, and all were refused: halves.
		n.splits = append(n.splits, ops[:len(ops)/2], ops[len(ops)/2:])
		return
	}
	if err != nil {
		err = ackError(err)
	}
	for _, op := range ops {
		n.finish(op, err)
	}
}

// ackError tells the refusals after which the record is not ours.
func ackError(err error) error {
	switch {
	case errors.Is(err, kerr.InvalidRecordState), errors.Is(err, kerr.NotLeaderForPartition),
		errors.Is(err, kerr.FencedLeaderEpoch), errors.Is(err, kerr.UnknownTopicOrPartition),
		errors.Is(err, kerr.UnknownTopicID), errors.Is(err, kerr.ShareSessionNotFound),
		errors.Is(err, kerr.InvalidShareSessionEpoch):
		return lost(err)
	}
	return err
}

func (n *shareNode) finish(op *ackOp, err error) {
	l := op.lock
	if op.kind == ackRenew && op.call == nil {
		l.renewing = false
	}
	switch {
	case errors.Is(err, broker.ErrLeaseLost):
		n.c.lose(l)
	case err != nil:
		if op.call == nil && op.kind != ackRenew && !l.gone {
			n.acks = append(n.acks, &ackOp{lock: l, kind: op.kind}) // nobody else will try again
		}
	case op.kind == ackRenew:
		l.locked = op.at.Add(n.c.lock)
		switch {
		case !l.handed:
			l.d.SetLease(l.locked)
		case op.call != nil: // the program asked
			l.d.SetLease(n.c.leaseFrom(op.at, op.lease, l))
			n.c.lookAt(l.d.LeaseExpires())
		}
	default:
		n.c.forget(l)
	}
	op.complete(err)
}

func (n *shareNode) completeAll(ops []*ackOp, err error) {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	for _, op := range ops {
		n.finish(op, err)
	}
}

// ackTopics groups operations into ranges of equal kind, in order of offsets.
func ackTopics(ops []*ackOp) []kmsg.ShareAcknowledgeRequestTopic {
	slices.SortFunc(ops, func(a, b *ackOp) int {
		p, q := &a.lock.part.key, &b.lock.part.key
		return cmp.Or(slices.Compare(p.topic[:], q.topic[:]), cmp.Compare(p.partition, q.partition), cmp.Compare(a.lock.offset, b.lock.offset))
	})
	var topics []kmsg.ShareAcknowledgeRequestTopic
	var before *ackOp
	for _, op := range ops {
		key := op.lock.part.key
		if before == nil || before.lock.part.key.topic != key.topic {
			t := kmsg.NewShareAcknowledgeRequestTopic()
			t.TopicID = key.topic
			topics = append(topics, t)
			before = nil
		}
		t := &topics[len(topics)-1]
		if before == nil || before.lock.part.key != key {
			p := kmsg.NewShareAcknowledgeRequestTopicPartition()
			p.Partition = key.partition
			t.Partitions = append(t.Partitions, p)
			before = nil
		}
		p := &t.Partitions[len(t.Partitions)-1]
		if before != nil && before.kind == op.kind && before.lock.offset+1 == op.lock.offset {
			p.AcknowledgementBatches[len(p.AcknowledgementBatches)-1].LastOffset = op.lock.offset
		} else {
			b := kmsg.NewShareAcknowledgeRequestTopicPartitionAcknowledgementBatch()
			b.FirstOffset, b.LastOffset, b.AcknowledgeTypes = op.lock.offset, op.lock.offset, []int8{op.kind}
			p.AcknowledgementBatches = append(p.AcknowledgementBatches, b)
		}
		before = op
	}
	return topics
}
