package kafka

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/queuestream/broker"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// A target is a position to store.
type target struct {
	hold *hold
	next int64
}

// Commit does what broker.GroupConsumer promises. The broker refuses the
// commit of a former owner: it names the generation of the group that the
// member believes in.
func (c *GroupConsumer) Commit(ctx context.Context, rs ...*broker.Record) error {
	return fail("commit", c.s.topic.name, c.commit(ctx, rs))
}

func (c *GroupConsumer) commit(ctx context.Context, rs []*broker.Record) error {
	if c.closed.Load() {
		return broker.ErrClosed
	}
	select {
	case c.commits <- struct{}{}:
		defer func() { <-c.commits }()
	case <-ctx.Done():
		return broker.ContextError(ctx)
	}
	if err := broker.ContextError(ctx); err != nil {
		return err
	}
	targets, err := c.targets(rs)
	if err != nil && !errors.Is(err, broker.ErrFenced) {
		return err
	}
	return errors.Join(err, c.store(ctx, targets))
}

// targets returns the highest position for each partition of rs, and
// broker.ErrFenced if some are of holds that are gone.
func (c *GroupConsumer) targets(rs []*broker.Record) (map[int32]target, error) {
	targets := make(map[int32]target, 1)
	var fenced error
	for _, r := range rs {
		h, err := c.holdOf(r)
		if err != nil {
			return nil, err
		}
		if h.a.Ended() {
			fenced = gone(r.Partition)
			continue
		}
		n, ok := r.Offset().Int64()
		if !ok {
			return nil, broker.Invalid("offset %v: Kafka's offsets are below 2^63", r.Offset())
		}
		if t, ok := targets[r.Partition]; !ok || n+1 > t.next {
			targets[r.Partition] = target{h, n + 1}
		}
	}
	return targets, fenced
}

func (c *GroupConsumer) holdOf(r *broker.Record) (*hold, error) {
	if r == nil {
		return nil, broker.Invalid("a record is nil")
	}
	a := r.Assignment()
	if a == nil {
		return nil, broker.Invalid("a record of partition %d was not received by a group", r.Partition)
	}
	h, ok := a.State.(*hold)
	if !ok || h.c != c {
		return nil, broker.Invalid("a record of partition %d was received by another consumer", r.Partition)
	}
	return h, nil
}

func gone(partition int32) error {
	return fmt.Errorf("%w: partition %d is no longer assigned to this member", broker.ErrFenced, partition)
}

// store commits the targets that are ahead of what is stored. A group in the
// middle of a rebalance refuses commits for a moment: those are tried again
// for as long as the hold lasts.
func (c *GroupConsumer) store(ctx context.Context, targets map[int32]target) error {
	deadline := time.Now().Add(c.s.b.opts.RebalanceTimeout)
	var fenced error
	for wait := 20 * time.Millisecond; ; wait = min(2*wait, 500*time.Millisecond) {
		fenced = errors.Join(fenced, c.prune(targets))
		if len(targets) == 0 {
			return fenced
		}
		codes, err := c.send(ctx, targets)
		if err != nil {
			return errors.Join(fenced, err)
		}
		var later error
		for p, t := range targets {
			code, answered := codes[p]
			err := kerr.ErrorForCode(code)
			switch {
			case !answered:
				continue // its hold ended as the request was made: prune says so
			case err == nil:
				c.stored(t)
			case inRebalance(err):
				later = err
				continue
			default:
				return errors.Join(fenced, err)
			}
			delete(targets, p)
		}
		if len(targets) == 0 {
			return fenced
		}
		if later != nil && time.Now().After(deadline) {
			return errors.Join(fenced, later)
		}
		if err := sleep(ctx, wait); err != nil {
			return errors.Join(fenced, err)
		}
	}
}

// inRebalance tells the refusals that pass once the group is stable, unless
// the partition was lost by then.
func inRebalance(err error) bool {
	return errors.Is(err, kerr.RebalanceInProgress) || errors.Is(err, kerr.IllegalGeneration) ||
		errors.Is(err, kerr.StaleMemberEpoch) ||
		errors.Is(err, kerr.CoordinatorLoadInProgress) || errors.Is(err, kerr.CoordinatorNotAvailable) ||
		errors.Is(err, kerr.NotCoordinator)
}

// prune drops what is stored already and what is lost.
func (c *GroupConsumer) prune(targets map[int32]target) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var fenced error
	for p, t := range targets {
		if t.hold.a.Ended() {
			fenced = gone(p)
			delete(targets, p)
		} else if t.next <= t.hold.committed {
			delete(targets, p)
		}
	}
	if c.closed.Load() {
		return broker.ErrClosed
	}
	return fenced
}

func (c *GroupConsumer) stored(t target) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t.hold.committed = max(t.hold.committed, t.next)
	t.hold.base = t.hold.committed
}

// send commits once and returns the answer for each partition.
func (c *GroupConsumer) send(ctx context.Context, targets map[int32]target) (map[int32]int16, error) {
	offsets := make(map[int32]kgo.EpochOffset, len(targets))
	for p, t := range targets {
		offsets[p] = kgo.EpochOffset{Epoch: -1, Offset: t.next}
	}
	// The client calls this with the generation already in the request. A hold
	// that ended before is dropped here; one that ends later ends in a later
	// generation, so the broker refuses it.
	check := func(req *kmsg.OffsetCommitRequest) error {
		for i := range req.Topics {
			req.Topics[i].Partitions = slices.DeleteFunc(req.Topics[i].Partitions, func(p kmsg.OffsetCommitRequestTopicPartition) bool {
				return targets[p.Partition].hold.a.Ended()
			})
			for j := range req.Topics[i].Partitions {
				req.Topics[i].Partitions[j].Metadata = c.metadata()
			}
		}
		req.Topics = slices.DeleteFunc(req.Topics, func(t kmsg.OffsetCommitRequestTopic) bool { return len(t.Partitions) == 0 })
		return nil
	}
	codes := make(map[int32]int16, len(targets))
	var failure error
	c.client.CommitOffsetsSync(kgo.PreCommitFnContext(ctx, check),
		map[string]map[int32]kgo.EpochOffset{c.s.topic.name: offsets},
		func(_ *kgo.Client, _ *kmsg.OffsetCommitRequest, resp *kmsg.OffsetCommitResponse, err error) {
			if failure = err; err != nil || resp == nil {
				return
			}
			for _, t := range resp.Topics {
				for _, p := range t.Partitions {
					codes[p.Partition] = p.ErrorCode
				}
			}
		})
	if failure != nil && c.closed.Load() && ctx.Err() == nil { // whatever a client tells that is cut off
		return nil, fmt.Errorf("%w: %w", broker.ErrClosed, failure)
	}
	return codes, bounded(ctx, failure)
}

func (c *GroupConsumer) metadata() *string {
	s := ""
	if c.opts.ReadCommitted {
		s = committedReader
	}
	return &s
}

// sleep waits for d, or until ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return broker.ContextError(ctx)
	}
}

// sorted returns the keys of m, ascending.
func sorted[V any](m map[int32]V) []int32 { return slices.Sorted(maps.Keys(m)) }
