package kafka

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/queuestream/broker"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

var _ broker.Tx = (*Tx)(nil)

// A Tx is a transaction. It is safe for concurrent use.
type Tx struct {
	t       *Transactor
	client  *kgo.Client
	sending chan struct{}      // holds a token while a Publish hands its records to the client
	ending  context.Context    //nolint:containedctx // the transaction's own: ends as its end begins
	end     context.CancelFunc // of ending

	mu       sync.Mutex
	offsets  map[*GroupConsumer]map[int32]target
	produced bool
	err      error // the first record that failed: the transaction can only be aborted
	done     bool
}

// Publish hands the records to the client and returns; Commit waits for them,
// and fails if one of them did. Records that are not valid fail here, together
// with their whole call.
func (x *Tx) Publish(ctx context.Context, s broker.Stream, rs ...broker.Record) error {
	return fail("publish", s.Name(), x.publish(ctx, s, rs))
}

func (x *Tx) publish(ctx context.Context, to broker.Stream, rs []broker.Record) error {
	if err := broker.ContextError(ctx); err != nil {
		return err
	}
	s, ok := broker.As[*Stream](to)
	if !ok {
		return broker.Unsupported("a stream of type %T in a transaction of Kafka", to)
	}
	if err := s.usable(); err != nil {
		return err
	}
	items, cp, now := make([]sending, len(rs)), &copies{needed: bodies(rs)}, time.Now()
	for i := range items {
		items[i].begin(context.Background(), nil, i, now)
		if err := s.encode(ctx, x.client, &items[i].item, &rs[i], cp); err != nil {
			return fmt.Errorf("record %d: %w", i, err)
		}
	}
	if err := x.quiet(ctx); err != nil {
		return err
	}
	defer func() { <-x.sending }()
	x.mu.Lock()
	switch {
	case x.done:
		x.mu.Unlock()
		return errTxDone
	case x.err != nil:
		x.mu.Unlock()
		return aborted(x.err)
	}
	x.produced = x.produced || len(rs) > 0
	x.mu.Unlock()
	// The records outlive this call and its context; only the wait for room
	// is bounded by it.
	for i := range items {
		if err := x.room(ctx, &rs[i]); err != nil {
			x.failed(nil, err)
			return aborted(err)
		}
		x.client.Produce(context.Background(), &items[i].rec, x.failed)
	}
	return nil
}

// quiet waits for the Publish under way, and takes its token.
func (x *Tx) quiet(ctx context.Context) error {
	select {
	case x.sending <- struct{}{}:
		return nil
	case <-ctx.Done():
		return broker.ContextError(ctx)
	}
}

// room waits until the client has room for one more record, but not beyond the
// end of the transaction.
func (x *Tx) room(ctx context.Context, r *broker.Record) error {
	if x.t.b.opts.hasRoom(x.client, r.Size()) {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(x.ending, cancel)()
	err := x.client.Flush(ctx)
	if x.ending.Err() != nil {
		return errTxDone
	}
	return err
}

func (x *Tx) failed(_ *kgo.Record, err error) {
	if err == nil {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.err == nil {
		x.err = err
	}
}

var errTxDone = broker.Invalid("the transaction has ended")

// aborted says that nothing happened, and why.
func aborted(cause error) error {
	return fmt.Errorf("%w: %w", broker.ErrTxAborted, classify(cause))
}

// CommitOffsets adds the positions after rs to the transaction; they are sent
// with Commit. broker.ErrFenced: a partition is another member's by now.
func (x *Tx) CommitOffsets(ctx context.Context, c broker.GroupConsumer, rs ...*broker.Record) error {
	return fail("commit offsets", x.t.id, x.commitOffsets(ctx, c, rs))
}

func (x *Tx) commitOffsets(ctx context.Context, from broker.GroupConsumer, rs []*broker.Record) error {
	if err := broker.ContextError(ctx); err != nil {
		return err
	}
	c, ok := broker.As[*GroupConsumer](from)
	if !ok {
		return broker.Unsupported("offsets of a consumer of type %T in a transaction of Kafka", from)
	}
	if c.closed.Load() {
		return broker.ErrClosed
	}
	targets, err := c.targets(rs)
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.done {
		return errTxDone
	}
	mine := x.offsets[c]
	if mine == nil { // also when it fails: this consumer is to be rewound
		mine = map[int32]target{}
		x.offsets[c] = mine
	}
	if err != nil {
		return err
	}
	for p, t := range targets {
		if has, ok := mine[p]; !ok || t.next > has.next || t.hold != has.hold {
			mine[p] = t
		}
	}
	return nil
}

// finish claims the right to end the transaction.
func (x *Tx) finish() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.done {
		return errTxDone
	}
	x.done = true
	x.end()
	return nil
}

// last waits for the Publish under way, after which there is none, and for the
// turn to talk to the client.
func (x *Tx) last(ctx context.Context) error {
	if err := x.quiet(ctx); err != nil {
		return err
	}
	defer func() { <-x.sending }()
	return x.t.take(ctx)
}

func (x *Tx) leave() {
	x.t.mu.Lock()
	defer x.t.mu.Unlock()
	if x.t.open == x {
		x.t.open = nil
	}
}

// Commit does what broker.Tx promises. broker.ErrUnknownOutcome: the answer
// was lost; the members are rewound to what the broker then says.
func (x *Tx) Commit(ctx context.Context) error {
	if err := x.finish(); err != nil {
		return fail("commit", x.t.id, err)
	}
	defer x.leave()
	return fail("commit", x.t.id, x.commit(ctx))
}

func (x *Tx) commit(ctx context.Context) error {
	if err := x.last(ctx); err != nil {
		x.rewind()
		return aborted(err)
	}
	defer x.t.give()
	err := x.client.Flush(ctx)
	x.mu.Lock()
	if x.err != nil {
		err = x.err
	}
	produced := x.produced
	x.mu.Unlock()
	if err == nil && !produced {
		return x.commitPlain(ctx)
	}
	for c, targets := range x.offsets {
		if err == nil {
			err = x.sendOffsets(ctx, c, targets)
		}
	}
	if err != nil {
		return x.abandon(ctx, err)
	}
	if err := x.client.EndTransaction(ctx, kgo.TryCommit); err != nil {
		return x.unconfirmed(ctx, err)
	}
	for c, targets := range x.offsets {
		for _, t := range targets {
			c.stored(t)
		}
	}
	x.rewind()
	return nil
}

// commitPlain commits the offsets of a transaction that published nothing:
// then there is none as far as the broker knows.
func (x *Tx) commitPlain(ctx context.Context) error {
	var errs []error
	for c, targets := range x.offsets {
		if err := c.storeTargets(ctx, targets); err != nil {
			errs = append(errs, err)
		}
	}
	x.rewind()
	errs = append(errs, x.t.ended(x.t.abort(ctx)))
	return errors.Join(errs...)
}

// abandon aborts after a failure, and says what the failure was.
func (x *Tx) abandon(ctx context.Context, cause error) error {
	x.rewind()
	err := x.t.ended(x.t.abort(context.WithoutCancel(ctx)))
	if errors.Is(err, broker.ErrFenced) {
		return err
	}
	if producerGone(cause) {
		return x.t.ended(cause)
	}
	// Without an answer to the abort, Begin aborts again, and the broker does
	// after the transaction's time-out.
	return aborted(bounded(ctx, cause))
}

// producerGone tells the refusals after which the producer cannot go on:
// another one has its id, or the broker does not know it any more.
func producerGone(err error) bool {
	return errors.Is(err, kerr.ProducerFenced) || errors.Is(err, kerr.InvalidTxnState) || errors.Is(err, kerr.InvalidProducerIDMapping)
}

// unconfirmed deals with a commit that got no, or no good, answer.
func (x *Tx) unconfirmed(ctx context.Context, cause error) error {
	var ke *kerr.Error
	refused := errors.As(cause, &ke) && !ke.Retriable && !errors.Is(cause, kerr.UnknownServerError)
	if refused {
		return x.abandon(ctx, cause)
	}
	for c, targets := range x.offsets {
		for _, t := range targets {
			c.forget(t.hold)
		}
	}
	x.rewind()
	err := x.t.ended(x.t.abort(context.WithoutCancel(ctx)))
	if errors.Is(err, broker.ErrFenced) {
		return err
	}
	return broker.UnknownOutcome(bounded(ctx, cause))
}

// Rollback does what broker.Tx promises.
func (x *Tx) Rollback(ctx context.Context) error {
	if err := x.finish(); err != nil {
		return fail("rollback", x.t.id, err)
	}
	defer x.leave()
	return fail("rollback", x.t.id, x.rollback(ctx))
}

func (x *Tx) rollback(ctx context.Context) error {
	x.rewind()
	if err := x.last(ctx); err != nil {
		return err
	}
	defer x.t.give()
	return x.t.ended(x.t.abort(ctx))
}

// rewind moves the members whose offsets were part of the transaction to what
// is committed.
func (x *Tx) rewind() {
	x.mu.Lock()
	defer x.mu.Unlock()
	for c := range x.offsets {
		c.rewind()
	}
}
