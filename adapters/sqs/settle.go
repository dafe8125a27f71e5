package sqs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	awssqs "github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/queuestream/broker"
)

// A settlement is an entry of a batch of deletes or of visibility changes.
type settlement struct {
	receipt string
	seconds int32
	// release: the message is given away. Done twice, it could take the message
	// from the next holder, so it is not tried again once it may have been done.
	release bool
	// after, if set, is closed when an earlier change has its answer, which
	// must not be carried out after this one.
	after <-chan struct{}
	// answered, if set, is closed when this one has its answer. It is tried
	// again only while wanted says so.
	answered chan struct{}
	wanted   func() bool
}

// end tells that there will be no other try.
func (s *settlement) end() {
	if s.answered != nil {
		close(s.answered)
	}
}

// again tells whether there may be another try.
func (s *settlement) again() bool { return s.wanted == nil || s.wanted() }

type none = struct{}

type settleBatcher = broker.Batcher[settlement, none]

// A settler coalesces deletes and visibility changes of one queue.
type settler struct {
	b       *Broker
	deletes *settleBatcher
	changes *settleBatcher
}

func newSettler(b *Broker, t *target) *settler {
	s := &settler{b: b}
	s.deletes = s.batcher(func(ctx context.Context, items []settlement) ([]types.BatchResultErrorEntry, int, error) {
		entries := make([]types.DeleteMessageBatchRequestEntry, len(items))
		for i := range items {
			entries[i] = types.DeleteMessageBatchRequestEntry{Id: &batchIDs[i], ReceiptHandle: &items[i].receipt}
		}
		out, err := b.sqs.DeleteMessageBatch(ctx, &awssqs.DeleteMessageBatchInput{QueueUrl: &t.url, Entries: entries})
		if err != nil {
			return nil, 0, err
		}
		return out.Failed, len(out.Successful), nil
	})
	s.changes = s.batcher(func(ctx context.Context, items []settlement) ([]types.BatchResultErrorEntry, int, error) {
		entries := make([]types.ChangeMessageVisibilityBatchRequestEntry, len(items))
		for i := range items {
			entries[i] = types.ChangeMessageVisibilityBatchRequestEntry{
				Id: &batchIDs[i], ReceiptHandle: &items[i].receipt, VisibilityTimeout: items[i].seconds,
			}
		}
		out, err := b.sqs.ChangeMessageVisibilityBatch(ctx,
			&awssqs.ChangeMessageVisibilityBatchInput{QueueUrl: &t.url, Entries: entries})
		if err != nil {
			return nil, 0, err
		}
		return out.Failed, len(out.Successful), nil
	})
	return s
}

func (s *settler) batcher(
	call func(ctx context.Context, items []settlement) (failed []types.BatchResultErrorEntry, ok int, err error),
) *settleBatcher {
	return broker.NewBatcher(broker.BatcherOptions[settlement, none]{
		MaxItems:    batchEntries,
		MaxInFlight: s.b.o.SendConcurrency,
		Send: func(ctx context.Context, items []settlement, results []broker.Result[none]) {
			rctx, cancel := context.WithTimeout(ctx, s.b.o.RequestTimeout)
			failed, ok, err := call(rctx, items)
			cancel()
			if err != nil {
				f := s.b.judge(ctx, err)
				for i := range results {
					results[i].Err = f
				}
				return
			}
			if ok+len(failed) != len(items) { // cannot tell which are done
				for i := range results {
					results[i].Err = unanswered
				}
			}
			for i := range failed {
				if j := batchIndex(failed[i].Id, len(items)); j >= 0 {
					results[j].Err = lost(judgeEntry(failed[i].Code, failed[i].Message, failed[i].SenderFault))
				}
			}
		},
	})
}

// lost reads a receipt handle's expiry, which SQS reports as an invalid
// parameter (DeleteMessage on FIFO queues, ChangeMessageVisibility): the
// handle is the only parameter here that can be wrong.
func lost(f *failure) *failure {
	if errors.Is(f.kind, broker.ErrInvalid) {
		f.kind = broker.ErrLeaseLost
	}
	return f
}

// many carries out settlements, those that fail for a passing reason again
// until ctx or their lease ends, and returns an error for each.
func (s *settler) many(ctx context.Context, to *settleBatcher, items []settlement, leases []time.Time) []error {
	errs := make([]error, len(items))
	var unsure map[int]bool // deletes that may have been carried out already
	index := make([]int, len(items))
	for i := range index {
		index[i] = i
		after := items[i].after
		if after == nil || slices.ContainsFunc(items, func(s settlement) bool { return s.answered == after }) {
			continue // two extensions of one delivery
		}
		select {
		case <-after:
		case <-ctx.Done():
		}
	}
	for try := 1; len(items) > 0; try++ {
		var again []settlement
		var at []int
		wait := backoff(try)
		var worst *failure
		for j, r := range to.DoAll(ctx, items) {
			i := index[j]
			errs[i] = r.Err
			f, ok := errors.AsType[*failure](r.Err)
			if !ok {
				if r.Err != nil && unsure[i] {
					errs[i] = broker.UnknownOutcome(r.Err)
				}
				items[j].end()
				continue
			}
			errs[i] = f.cause()
			if to == s.deletes && (f.maybe || unsure[i]) {
				if unsure == nil {
					unsure = make(map[int]bool)
				}
				unsure[i] = true
				errs[i] = broker.UnknownOutcome(errs[i])
				if errors.Is(f.kind, broker.ErrLeaseLost) && time.Now().Before(leases[i]) {
					errs[i] = nil // nobody else can have had it: it was deleted
				}
			}
			switch {
			case items[j].release && f.maybe:
				errs[i] = broker.UnknownOutcome(fmt.Errorf("%w: it returns when the lease ends, if not before: %w", broker.ErrLeaseLost, f.err))
			case f.retry && items[j].again() && time.Now().Add(wait).Before(leases[i]):
				again, at, worst = append(again, items[j]), append(at, i), f
				continue
			}
			items[j].end()
		}
		items, index = again, at
		if len(items) > 0 && !pause(ctx, wait) {
			for j, i := range index {
				errs[i] = gaveUp(ctx, worst, worst.maybe || unsure[i])
				items[j].end()
			}
			break
		}
	}
	return errs
}

func (s *settler) close(ctx context.Context) {
	_ = s.deletes.Close(ctx) // ctx's error: what was not sent failed with ErrClosed
	_ = s.changes.Close(ctx)
}
