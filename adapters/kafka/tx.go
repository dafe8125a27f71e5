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
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"
)

var (
	_ broker.Transactional = (*Broker)(nil)
	_ broker.Transactor    = (*Transactor)(nil)
	_ broker.Tx            = (*Tx)(nil)
)

// resolveTimeout bounds what has to be done about a transaction after its
// caller's context has ended.
const resolveTimeout = 5 * time.Second

// A Transactor is the producer of one transactional id. Its methods may be
// called from any goroutine; one transaction is open at a time.
type Transactor struct {
	b        *Broker
	id       string
	opts     []kgo.Opt // of its clients
	explicit bool      // TxnOffsetCommit needs AddOffsetsToTxn before it

	turn chan struct{} // holds a token while nobody talks to the client

	mu     sync.Mutex
	client *kgo.Client // replaced by renew alone, with the turn
	open   *Tx
	fenced error
	closed bool
}

// Transactor does what broker.Transactional promises.
func (b *Broker) Transactor(ctx context.Context, id string) (broker.Transactor, error) {
	t, err := b.transactor(ctx, id)
	if err != nil {
		return nil, fail("open transactor", id, err)
	}
	return t, nil
}

func (b *Broker) transactor(ctx context.Context, id string) (*Transactor, error) {
	if err := b.usable(); err != nil {
		return nil, err
	}
	if id == "" || len(id) > 249 {
		return nil, broker.Invalid("transactional id of %d bytes: want 1 to 249", len(id))
	}
	implicit, err := b.implicitOffsets(ctx)
	if err != nil {
		return nil, err
	}
	opts := b.opts.producer(b.batchMaxBytes)
	opts = append(opts, kgo.TransactionalID(id), kgo.TransactionTimeout(b.opts.TransactionTimeout))
	if !implicit {
		// From version 5 on the request begins a transaction by itself, which a
		// cluster without that feature does not accept.
		v := kversion.Stable()
		v.SetMaxKeyVersion(txnOffsetCommit, 4)
		opts = append(opts, kgo.MaxVersions(v))
	}
	t := &Transactor{b: b, id: id, opts: opts, explicit: !implicit, turn: make(chan struct{}, 1)}
	t.turn <- struct{}{}
	if t.client, err = t.connect(ctx); err != nil {
		return nil, err
	}
	if err := b.add(t); err != nil {
		t.client.Close()
		return nil, err
	}
	return t, nil
}

// connect returns a client that holds the id; earlier holders are fenced.
func (t *Transactor) connect(ctx context.Context) (*kgo.Client, error) {
	client, err := kgo.NewClient(t.opts...)
	if err != nil {
		return nil, broker.Invalid("%v", err)
	}
	if _, _, err := client.ProducerID(ctx); err != nil {
		client.Close()
		return nil, bounded(ctx, err)
	}
	return client, nil
}

// renew replaces the client. One that was refused once as the id's producer
// refuses for ever, also when it would be allowed again.
func (t *Transactor) renew(ctx context.Context) error {
	client, err := t.connect(ctx)
	if err != nil {
		return err
	}
	t.mu.Lock()
	old, closed := t.client, t.closed
	if closed {
		old = client
	} else {
		t.client = client
	}
	t.mu.Unlock()
	old.Close()
	if closed {
		return broker.ErrClosed
	}
	return nil
}

// current returns the client as it is now.
func (t *Transactor) current() *kgo.Client {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.client
}

// implicitOffsets tells whether the cluster has the transactions of KIP-890,
// where committing offsets needs no request before it.
func (b *Broker) implicitOffsets(ctx context.Context) (bool, error) {
	resp, err := kmsg.NewPtrApiVersionsRequest().RequestWith(ctx, b.client)
	if err != nil {
		return false, bounded(ctx, err)
	}
	var level, highest int16
	for _, f := range resp.FinalizedFeatures {
		if f.Name == "transaction.version" {
			level = f.MaxVersionLevel
		}
	}
	for _, k := range resp.ApiKeys {
		if k.ApiKey == txnOffsetCommit {
			highest = k.MaxVersion
		}
	}
	return level >= 2 && highest >= 5, nil
}

// txnOffsetCommit is the request's key in Kafka's protocol.
const txnOffsetCommit = 28

// take waits for the turn to talk to the client; give returns it.
func (t *Transactor) take(ctx context.Context) error {
	select {
	case <-t.turn:
		return nil
	case <-ctx.Done():
		return broker.ContextError(ctx)
	}
}

func (t *Transactor) give() { t.turn <- struct{}{} }

// Begin does what broker.Transactor promises. While a transaction is open it
// is an error.
func (t *Transactor) Begin(ctx context.Context) (broker.Tx, error) {
	tx, err := t.begin(ctx)
	if err != nil {
		return nil, fail("begin", t.id, err)
	}
	return tx, nil
}

func (t *Transactor) begin(ctx context.Context) (*Tx, error) {
	if err := broker.ContextError(ctx); err != nil {
		return nil, err
	}
	if err := t.usable(); err != nil {
		return nil, err
	}
	if err := t.take(ctx); err != nil {
		return nil, err
	}
	// The client takes no context here; it may have to reach the broker.
	began := make(chan error, 1)
	go func() {
		// What an earlier end left without an answer is aborted first.
		err := t.start(ctx)
		if isUnauthorized(classify(err)) {
			if err = t.renew(ctx); err == nil {
				err = t.start(ctx)
			}
		}
		began <- err
	}()
	select {
	case err := <-began:
		defer t.give()
		if err != nil {
			return nil, t.ended(err)
		}
	case <-ctx.Done():
		go func() {
			if err := <-began; err != nil {
				_ = t.ended(err) // whoever begins next is told
			}
			t.give()
		}()
		return nil, broker.ContextError(ctx)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	tx := &Tx{t: t, client: t.client, offsets: map[*GroupConsumer]map[int32]target{}}
	t.open = tx
	return tx, nil
}

func (t *Transactor) usable() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.closed:
		return broker.ErrClosed
	case t.fenced != nil:
		return t.fenced
	case t.open != nil:
		return broker.Invalid("a transaction is open; a transactional id has one at a time")
	}
	return nil
}

// start begins a transaction in the client, after the end of what is open.
func (t *Transactor) start(ctx context.Context) error {
	if err := t.abort(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	return t.current().BeginTransaction()
}

// abort ends whatever is open at the broker.
func (t *Transactor) abort(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	client := t.current()
	if err := client.AbortBufferedRecords(ctx); err != nil {
		return bounded(ctx, err)
	}
	return bounded(ctx, client.EndTransaction(ctx, kgo.TryAbort))
}

// ended remembers that another producer has taken the id over.
func (t *Transactor) ended(err error) error {
	err = classify(err)
	if errors.Is(err, broker.ErrFenced) {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.fenced = err
	}
	return err
}

// Close aborts an open transaction and frees the client.
func (t *Transactor) Close() error {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return nil
	}
	t.closed = true
	tx := t.open
	t.open = nil
	t.mu.Unlock()
	t.b.remove(t)
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout/2)
	defer cancel()
	var err error
	if tx != nil {
		if tx.finish() == nil {
			err = tx.rollback(ctx)
		}
		if errors.Is(err, broker.ErrFenced) {
			err = nil // the new holder has aborted it
		}
	}
	return fail("close", t.id, errors.Join(err, within(closeTimeout, t.current().Close)))
}

// A Tx is a transaction. It is safe for concurrent use.
type Tx struct {
	t      *Transactor
	client *kgo.Client

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
	f := newFlight(context.Background(), len(rs))
	s.fill(ctx, x.client, f, rs, &copyBody{make([]byte, 0, bodies(rs))})
	for i := range f.items {
		if f.items[i].err != nil {
			return fmt.Errorf("record %d: %w", i, f.items[i].err)
		}
	}
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
	for i := range f.items {
		if err := x.room(ctx, &rs[i]); err != nil {
			x.failed(nil, err)
			return aborted(err)
		}
		x.client.Produce(context.Background(), &f.items[i].rec, x.failed)
	}
	return nil
}

// room waits until the client has room for one more record.
func (x *Tx) room(ctx context.Context, r *broker.Record) error {
	o := x.t.b.opts
	if x.client.BufferedProduceRecords() < int64(o.MaxBufferedRecords) &&
		x.client.BufferedProduceBytes()+int64(r.Size()) < int64(o.MaxBufferedBytes) {
		return nil
	}
	return x.client.Flush(ctx)
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
	return nil
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
	if err := x.t.take(ctx); err != nil {
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
	if err := x.t.take(ctx); err != nil {
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
