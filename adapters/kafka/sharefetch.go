package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/queuestream/broker"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	shareMaxBytes    = 50 << 20
	sharePartBytes   = 1 << 20
	shareMaxRecords  = 2000
	acquireByRecord  = 1
	slabOfDeliveries = 16
)

// carries tells whether a fetch may carry ops: those of partitions that the
// session has and keeps, and no renewals, which exclude fetching. c.mu is held.
func (n *shareNode) carries(ops []*ackOp) bool {
	if n.epoch == 0 || len(n.splits) > 0 {
		return false
	}
	for _, op := range ops {
		part := op.lock.part
		if op.kind == ackRenew || op.alone || !n.sent[part.key] || part.node != n || n.c.parts[part.key] != part {
			return false
		}
	}
	return true
}

// buildFetch returns the next fetch, which carries ops and then does not wait,
// or nil if nothing is wanted. c.mu is held.
func (n *shareNode) buildFetch(ops []*ackOp) *kmsg.ShareFetchRequest {
	demand := n.c.demand()
	if demand == 0 || n.assigned == 0 {
		return nil
	}
	req := kmsg.NewPtrShareFetchRequest()
	req.GroupID, req.MemberID, req.ShareSessionEpoch = n.group(), n.member(), n.epoch
	req.MaxWaitMillis = int32(n.wait() / time.Millisecond)
	req.MinBytes, req.MaxBytes = 1, shareMaxBytes
	req.MaxRecords = int32(min(demand, shareMaxRecords)) //nolint:gosec // bounded
	req.BatchSize = req.MaxRecords
	req.ShareAcquireMode = acquireByRecord
	wanted := map[topicPartition]bool{}
	for key, p := range n.c.parts {
		if p.node != n {
			continue
		}
		wanted[key] = true
		if n.epoch == 0 || !n.sent[key] {
			addPartition(req, key)
		}
	}
	if len(ops) > 0 {
		req.MaxWaitMillis = 0
		carry(req, ackTopics(ops))
	}
	for key := range n.sent {
		if !wanted[key] {
			f := kmsg.NewShareFetchRequestForgottenTopicsData()
			f.TopicID, f.Partitions = key.topic, []int32{key.partition}
			req.ForgottenTopicsData = append(req.ForgottenTopicsData, f)
		}
	}
	return req
}

// addPartition names a partition in a fetch.
func addPartition(req *kmsg.ShareFetchRequest, key topicPartition) *kmsg.ShareFetchRequestTopicPartition {
	p := kmsg.NewShareFetchRequestTopicPartition()
	p.Partition, p.PartitionMaxBytes = key.partition, sharePartBytes
	i := slices.IndexFunc(req.Topics, func(t kmsg.ShareFetchRequestTopic) bool { return t.TopicID == key.topic })
	if i < 0 {
		t := kmsg.NewShareFetchRequestTopic()
		t.TopicID = key.topic
		i = len(req.Topics)
		req.Topics = append(req.Topics, t)
	}
	t := &req.Topics[i]
	t.Partitions = append(t.Partitions, p)
	return &t.Partitions[len(t.Partitions)-1]
}

// carry adds acknowledgements to a fetch.
func carry(req *kmsg.ShareFetchRequest, acks []kmsg.ShareAcknowledgeRequestTopic) {
	for i := range acks {
		for j := range acks[i].Partitions {
			from := &acks[i].Partitions[j]
			to := addPartition(req, topicPartition{acks[i].TopicID, from.Partition})
			for k := range from.AcknowledgementBatches {
				to.AcknowledgementBatches = append(to.AcknowledgementBatches,
					kmsg.ShareFetchRequestTopicPartitionAcknowledgementBatch(from.AcknowledgementBatches[k]))
			}
		}
	}
}

// wait returns how long the broker may hold a fetch: not long while something
// is held that will have to be settled or renewed. c.mu is held.
func (n *shareNode) wait() time.Duration {
	if n.handed > 0 {
		return handedWait
	}
	// What comes has been held for up to as long already.
	wait := min(idleWait, n.c.lock/4, max(busyWait, time.Since(n.c.busy)/calmDown))
	if n.c.prefetch == 0 {
		// A fetch cannot be called off: the broker would acquire for it all the
		// same. So it ends with the last Receive that waits, if that can be known.
		wait = min(wait, max(time.Millisecond, time.Until(n.c.deadline)))
	}
	for _, l := range n.c.locks {
		if l.node == n {
			wait = min(wait, heldWait)
			break
		}
	}
	return wait
}

// fetch asks for records and hands on what came, after the results of the
// acknowledgements that it carries.
func (n *shareNode) fetch(ctx context.Context, req *kmsg.ShareFetchRequest, ops []*ackOp) error {
	asked := time.Now()
	kresp, err := n.request(ctx, req)
	if err != nil {
		n.completeAll(ops, broker.UnknownOutcome(err))
		return err
	}
	resp, ok := kresp.(*kmsg.ShareFetchResponse)
	if !ok {
		return fmt.Errorf("answer of type %T to a share fetch", kresp)
	}
	if err := n.answered(resp.ErrorCode, resp.ErrorMessage); err != nil {
		n.completeAll(ops, ackError(err))
		return err
	}
	var out sorting
	var errs []error
	n.c.mu.Lock()
	n.c.told(resp.AcquisitionLockTimeoutMillis)
	// The broker's locks began at some time after the question: from when the
	// answer came they might be counted too long.
	lease := asked.Add(n.c.lock)
	if len(ops) > 0 {
		n.appliedAll(ops, fetchCodes(resp))
	}
	for i := range req.Topics {
		for j := range req.Topics[i].Partitions {
			n.sent[topicPartition{req.Topics[i].TopicID, req.Topics[i].Partitions[j].Partition}] = true
		}
	}
	for _, f := range req.ForgottenTopicsData {
		delete(n.sent, topicPartition{f.TopicID, f.Partitions[0]})
	}
	if n.epoch > 0 && !n.c.closed {
		for i := range resp.Topics {
			for j := range resp.Topics[i].Partitions {
				if err := n.takePartition(resp.Topics[i].TopicID, &resp.Topics[i].Partitions[j], lease, &out); err != nil {
					errs = append(errs, err)
				}
			}
		}
	}
	if len(out.ready) > 0 && n.c.wanted == 0 {
		n.c.lookAt(time.Now().Add(unwantedAfter))
	}
	n.c.setTimer()
	n.c.mu.Unlock()
	n.c.deal(&out)
	if len(errs) == 0 {
		n.c.refuse(nil)
	}
	return errors.Join(errs...)
}

// told takes how long the broker's locks last by now. c.mu is held.
func (c *Consumer) told(lockMillis int32) {
	if lockMillis > 0 {
		c.lock = time.Duration(lockMillis) * time.Millisecond
	}
}

// fetchCodes returns what became of the acknowledgements that a fetch carried.
func fetchCodes(resp *kmsg.ShareFetchResponse) map[topicPartition]int16 {
	codes := map[topicPartition]int16{}
	for i := range resp.Topics {
		for j := range resp.Topics[i].Partitions {
			p := &resp.Topics[i].Partitions[j]
			codes[topicPartition{resp.Topics[i].TopicID, p.Partition}] = p.AcknowledgeErrorCode
		}
	}
	return codes
}

// takePartition takes what was acquired of a partition. c.mu is held.
func (n *shareNode) takePartition(topic [16]byte, rp *kmsg.ShareFetchResponseTopicPartition, lease time.Time, out *sorting) error {
	part := n.c.parts[topicPartition{topic, rp.Partition}]
	if err := kerr.ErrorForCode(rp.ErrorCode); err != nil {
		if part != nil && part.node == n && !isUnauthorized(classify(err)) {
			n.c.moved(part) // and the next fetch takes it out of the session
			n.c.member.lookAgain()
		}
		return fmt.Errorf("partition %d: %w", rp.Partition, err)
	}
	if len(rp.AcquiredRecords) == 0 || part == nil || part.node != n {
		return nil // without a hold on it, its lock ends by itself
	}
	n.c.busy = time.Now()
	in := kmsg.NewFetchResponseTopicPartition()
	in.Partition, in.RecordBatches = rp.Partition, rp.Records
	fp, _ := kgo.ProcessFetchPartition(kgo.ProcessFetchPartitionOpts{
		Offset: rp.AcquiredRecords[0].FirstOffset, Topic: part.name, Partition: rp.Partition,
	}, &in, kgo.DefaultDecompressor(), nil)
	if fp.Err != nil {
		n.c.logLocked(slog.LevelError, "kafka: records cannot be read", "partition", rp.Partition, "error", fp.Err)
	}
	records := fp.Records
	var slab []shareLock
	for _, a := range rp.AcquiredRecords {
		next := a.FirstOffset
		for len(records) > 0 && records[0].Offset <= a.LastOffset {
			r := records[0]
			records = records[1:]
			if r.Offset < a.FirstOffset {
				continue
			}
			n.gap(part, next, r.Offset-1)
			if next = r.Offset + 1; len(slab) == 0 {
				slab = make([]shareLock, min(slabOfDeliveries, len(records)+1))
			}
			n.c.arrived(part, n, r, &slab[0], int(a.DeliveryCount), lease, out)
			slab = slab[1:]
		}
		if fp.Err == nil {
			n.gap(part, next, a.LastOffset)
		}
	}
	return nil
}

// gap tells the broker that offsets it has handed out hold no record (markers,
// compaction), so that it goes on behind them. c.mu is held.
func (n *shareNode) gap(part *sharePart, first, last int64) {
	for o := first; o <= last; o++ {
		n.c.seq++
		l := &shareLock{part: part, node: n, offset: o, token: n.c.seq}
		n.c.locks[l.token], part.locks[o] = l, l
		n.c.enqueue(&ackOp{lock: l, kind: ackGap})
	}
}
