package kafka

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/queuestream/broker"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"
)

var (
	_ broker.Transactional = (*Broker)(nil)
	_ broker.Transactor    = (*Transactor)(nil)
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
	opts := b.opts.producer(b.batchMaxBytes, &metTopics{})
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
	if err := t.usable(); err != nil { // somebody else has begun, or closed, meanwhile
		t.give()
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
	tx := &Tx{t: t, client: t.client, sending: make(chan struct{}, 1), offsets: map[*GroupConsumer]map[int32]target{}}
	tx.ending, tx.end = context.WithCancel(context.Background())
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
