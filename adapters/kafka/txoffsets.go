package kafka

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/queuestream/broker"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// sendOffsets adds a member's positions to the transaction. The broker refuses
// them (ILLEGAL_GENERATION, UNKNOWN_MEMBER_ID, STALE_MEMBER_EPOCH) unless the
// member is the one that its group knows.
func (x *Tx) sendOffsets(ctx context.Context, c *GroupConsumer, targets map[int32]target) error {
	// The generation is read before the holds are looked at: a hold that ends
	// later ends in a later generation.
	memberID, generation := c.client.GroupMetadata()
	if err := c.prune(targets); err != nil || len(targets) == 0 {
		return err
	}
	id, epoch, err := x.client.ProducerID(ctx)
	if err != nil {
		return err
	}
	if x.t.explicit {
		if err := x.addGroup(ctx, c.group, id, epoch); err != nil {
			return err
		}
	}
	req := kmsg.NewPtrTxnOffsetCommitRequest()
	req.TransactionalID, req.Group = x.t.id, c.group
	req.ProducerID, req.ProducerEpoch = id, epoch
	req.MemberID, req.Generation = memberID, generation
	if instance := c.s.b.opts.InstanceID; instance != "" {
		req.InstanceID = &instance
	}
	topic := kmsg.NewTxnOffsetCommitRequestTopic()
	topic.Topic, topic.TopicID = c.s.topic.name, c.s.topic.id
	for p, t := range targets {
		rp := kmsg.NewTxnOffsetCommitRequestTopicPartition()
		rp.Partition, rp.Offset, rp.Metadata = p, t.next, c.metadata()
		topic.Partitions = append(topic.Partitions, rp)
	}
	req.Topics = append(req.Topics, topic)
	return concurrent(ctx, func() error {
		resp, err := req.RequestWith(ctx, x.client)
		if err != nil {
			return err
		}
		for _, t := range resp.Topics {
			for _, p := range t.Partitions {
				if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
					return fmt.Errorf("offsets of group %q in partition %d: %w", c.group, p.Partition, err)
				}
			}
		}
		return nil
	})
}

func (x *Tx) addGroup(ctx context.Context, group string, id int64, epoch int16) error {
	req := kmsg.NewPtrAddOffsetsToTxnRequest()
	req.TransactionalID, req.Group = x.t.id, group
	req.ProducerID, req.ProducerEpoch = id, epoch
	return concurrent(ctx, func() error {
		resp, err := req.RequestWith(ctx, x.client)
		if err != nil {
			return err
		}
		return kerr.ErrorForCode(resp.ErrorCode)
	})
}

// concurrent tries again while the broker still completes a transaction, or
// looks for its coordinator.
func concurrent(ctx context.Context, try func() error) error {
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		err := try()
		if !errors.Is(err, kerr.ConcurrentTransactions) && !errors.Is(err, kerr.CoordinatorLoadInProgress) &&
			!errors.Is(err, kerr.CoordinatorNotAvailable) && !errors.Is(err, kerr.NotCoordinator) {
			return bounded(ctx, err)
		}
		if sleep(ctx, wait) != nil {
			return bounded(ctx, err)
		}
	}
}

// storeTargets commits outside a transaction, with Commit's rules.
func (c *GroupConsumer) storeTargets(ctx context.Context, targets map[int32]target) error {
	select {
	case c.commits <- struct{}{}:
		defer func() { <-c.commits }()
	case <-ctx.Done():
		return broker.ContextError(ctx)
	}
	return c.store(ctx, targets)
}

// forget drops what is known to be committed: the broker is asked.
func (c *GroupConsumer) forget(h *hold) {
	c.mu.Lock()
	defer c.mu.Unlock()
	h.base, h.committed = -1, -1
}

// rewind makes the next Receive begin at what is committed, in every partition
// where more was handed out.
func (c *GroupConsumer) rewind() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for p, h := range c.holds {
		if h.next < 0 || h.next == h.base {
			continue
		}
		c.drop(h)
		h.start, h.moved = h.base, math.MaxUint64
		c.retry = append(c.retry, p)
		c.awake()
	}
}
