package memory

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/queuestream/broker"
)

var (
	_ broker.Transactor = (*Transactor)(nil)
	_ broker.Tx         = (*Tx)(nil)
)

// Transactor takes over a transactional id: earlier holders are fenced, and a
// transaction that one has open aborts.
func (b *Broker) Transactor(ctx context.Context, id string) (broker.Transactor, error) {
	t, err := b.transactor(ctx, id)
	if err != nil {
		return nil, opError("transactor", id, err)
	}
	return t, nil
}

func (b *Broker) transactor(ctx context.Context, id string) (*Transactor, error) {
	if err := b.check(ctx); err != nil {
		return nil, err
	}
	if !b.srv.rules.stream.Transactions {
		return nil, broker.Unsupported("the profile %q has no transactions", b.srv.opts.Profile)
	}
	if err := broker.ValidateDeclaredName(id); err != nil {
		return nil, err
	}
	b.srv.mu.Lock()
	b.srv.expire(now())
	p := b.srv.producer(id)
	p.mu.Lock() // before it can be forgotten
	b.srv.mu.Unlock()
	defer p.mu.Unlock()
	t := &Transactor{b: b, p: p, id: id}
	if err := b.handles.Add(t); err != nil {
		return nil, err
	}
	p.abort()
	p.owner, p.used = t, now()
	return t, nil
}

// A Transactor begins transactions. It is safe for concurrent use.
type Transactor struct {
	b      *Broker
	p      *producer
	id     string
	closed bool // guarded by p.mu
}

// check returns the error that keeps an operation from starting. p.mu is held.
func (t *Transactor) check(ctx context.Context) error {
	switch {
	case ctx.Err() != nil:
		return broker.ContextError(ctx)
	case t.closed:
		return broker.ErrClosed
	case t.p.owner == nil:
		return fmt.Errorf("%w: the transactional id %q was not used for %v", broker.ErrFenced, t.id, idExpiry)
	case t.p.owner != t:
		return fmt.Errorf("%w: a later holder of the transactional id %q", broker.ErrFenced, t.id)
	}
	return nil
}

func (t *Transactor) connection() *Broker { return t.b }

func (t *Transactor) ended() error {
	t.p.mu.Lock()
	defer t.p.mu.Unlock()
	if t.closed {
		return broker.ErrClosed
	}
	return nil
}

// reach waits as faults demand; p.mu is not held meanwhile.
func (t *Transactor) reach(ctx context.Context) error {
	if err := broker.ContextError(ctx); err != nil {
		return err
	}
	if f := t.b.srv.faults.Load(); f != nil {
		return f.reach(ctx, t)
	}
	return nil
}

// Begin begins a transaction. While one is open it returns ErrConflict.
func (t *Transactor) Begin(ctx context.Context) (broker.Tx, error) {
	if err := t.reach(ctx); err != nil {
		return nil, opError("begin", t.id, err)
	}
	t.p.mu.Lock()
	defer t.p.mu.Unlock()
	if err := t.check(ctx); err != nil {
		return nil, opError("begin", t.id, err)
	}
	if t.p.open != nil {
		return nil, opError("begin", t.id, fmt.Errorf("%w: a transaction is open", broker.ErrConflict))
	}
	tx := &Tx{t: t, state: &txState{deadline: now() + int64(t.b.srv.opts.TransactionTimeout)}}
	t.p.open, t.p.used = tx, now()
	return tx, nil
}

// Close aborts the open transaction. It may be called again.
func (t *Transactor) Close() error {
	t.p.mu.Lock()
	if !t.closed {
		t.closed = true
		if t.p.owner == t {
			t.p.abort()
		}
	}
	t.p.mu.Unlock()
	t.b.srv.release(t)
	t.b.handles.Remove(t)
	t.b.srv.wake()
	return nil
}

func (t *Transactor) disconnect() {
	t.p.mu.Lock()
	defer t.p.mu.Unlock()
	if t.p.owner == t {
		t.p.abort()
	}
}

// A Tx is one transaction. It is safe for concurrent use.
type Tx struct {
	t     *Transactor
	state *txState

	// Guarded by t.p.mu.
	streams []*stream // with records or offsets
	offsets []txOffsets
	done    bool
}

// txOffsets are what a transaction will store for one member of a group.
type txOffsets struct {
	m  *GroupConsumer
	rs []*broker.Record
}

// begin checks that the transaction is open. t.p.mu is held.
func (tx *Tx) begin(ctx context.Context) error {
	if err := tx.t.check(ctx); err != nil {
		return err
	}
	tx.state.expire(now())
	switch {
	case tx.state.state.Load() == txAborted:
		return broker.ErrTxAborted
	case tx.done:
		return fmt.Errorf("%w: the transaction has ended", broker.ErrClosed)
	}
	return nil
}

func (tx *Tx) touch(s *stream) {
	if !slices.Contains(tx.streams, s) {
		tx.streams = append(tx.streams, s)
	}
}

// Publish appends copies of rs, all or none.
func (tx *Tx) Publish(ctx context.Context, s broker.Stream, rs ...broker.Record) error {
	return opError("publish", s.Name(), tx.publish(ctx, s, rs))
}

func (tx *Tx) publish(ctx context.Context, s broker.Stream, rs []broker.Record) error {
	if err := tx.t.reach(ctx); err != nil {
		return err
	}
	tx.t.p.mu.Lock()
	defer tx.t.p.mu.Unlock()
	if err := tx.begin(ctx); err != nil {
		return err
	}
	h, ok := broker.As[interface{ memory() *Stream }](s)
	if !ok || h.memory().s.srv != tx.t.b.srv {
		return broker.Invalid("stream %q is not one of this broker", s.Name())
	}
	st := h.memory()
	if err := st.check(ctx); err != nil {
		return err
	}
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	for i := range rs {
		if err := broker.ValidateRecord(&rs[i], &st.caps); err != nil {
			return fmt.Errorf("record %d: %w", i, err)
		}
		if r := rs[i]; r.Pin {
			if _, err := st.s.partitionOf(&r); err != nil {
				return fmt.Errorf("record %d: %w", i, err)
			}
		}
	}
	tx.touch(st.s)
	for _, r := range rs {
		if _, err := st.s.store(&r, tx.state); err != nil {
			return err
		}
	}
	return nil
}

func (h *Stream) memory() *Stream { return h }

// CommitOffsets notes the position after each record, to be stored by Commit.
func (tx *Tx) CommitOffsets(ctx context.Context, c broker.GroupConsumer, rs ...*broker.Record) error {
	return opError("commit offsets", tx.t.id, tx.commitOffsets(ctx, c, rs))
}

func (tx *Tx) commitOffsets(ctx context.Context, c broker.GroupConsumer, rs []*broker.Record) error {
	if err := tx.t.reach(ctx); err != nil {
		return err
	}
	tx.t.p.mu.Lock()
	defer tx.t.p.mu.Unlock()
	if err := tx.begin(ctx); err != nil {
		return err
	}
	h, ok := broker.As[interface{ member() *GroupConsumer }](c)
	if !ok || h.member().s.srv != tx.t.b.srv {
		return broker.Invalid("the group consumer is not one of this broker")
	}
	m := h.member()
	m.s.mu.Lock()
	defer m.s.mu.Unlock()
	if m.err != nil {
		return m.err
	}
	m.g.evict(now())
	_, err := m.positions(rs)
	if err != nil {
		rs = nil // m is to be rewound all the same
	}
	m.seen = now()
	tx.touch(m.s)
	tx.offsets = append(tx.offsets, txOffsets{m, slices.Clone(rs)})
	return err
}

func (m *GroupConsumer) member() *GroupConsumer { return m }

// Commit makes the records visible and stores the offsets, at once. If a
// member has lost a partition by now, or the transaction timed out, nothing
// happens and it returns ErrTxAborted (and ErrFenced).
func (tx *Tx) Commit(ctx context.Context) error {
	if err := tx.t.reach(ctx); err != nil {
		return opError("commit transaction", tx.t.id, err)
	}
	tx.t.p.mu.Lock()
	defer tx.t.p.mu.Unlock()
	if err := tx.begin(ctx); err != nil {
		if errors.Is(err, broker.ErrTxAborted) && !tx.done { // it was open for too long
			tx.t.p.open = nil
			_ = tx.end(txAborted) // which cannot fail
		}
		return opError("commit transaction", tx.t.id, err)
	}
	tx.t.p.open = nil
	return opError("commit transaction", tx.t.id, tx.end(txCommitted))
}

// Rollback undoes the transaction; of one that aborted by itself it returns
// nil too.
func (tx *Tx) Rollback(ctx context.Context) error {
	if err := tx.t.reach(ctx); err != nil {
		return opError("rollback", tx.t.id, err)
	}
	tx.t.p.mu.Lock()
	defer tx.t.p.mu.Unlock()
	if err := tx.t.check(ctx); err != nil {
		return opError("rollback", tx.t.id, err)
	}
	if tx.done {
		if tx.state.state.Load() == txAborted {
			return nil
		}
		return opError("rollback", tx.t.id, fmt.Errorf("%w: the transaction has ended", broker.ErrClosed))
	}
	tx.t.p.open = nil
	return opError("rollback", tx.t.id, tx.end(txAborted))
}

// end carries out the end of a transaction: all its streams are locked, in
// order. t.p.mu is held.
func (tx *Tx) end(state int32) error {
	tx.done = true
	tx.t.p.used = now()
	slices.SortFunc(tx.streams, func(a, b *stream) int { return a.id - b.id })
	for _, s := range tx.streams {
		s.mu.Lock()
		defer s.mu.Unlock()
	}
	var err error
	commits := make([]map[*hold]int64, len(tx.offsets))
	if state == txCommitted {
		for i, o := range tx.offsets {
			o.m.g.evict(now())
			if commits[i], err = o.m.positions(o.rs); err == nil {
				err = o.m.err
			}
			if err != nil {
				state, err = txAborted, fmt.Errorf("%w: %w", broker.ErrTxAborted, err)
				break
			}
		}
	}
	if !tx.state.state.CompareAndSwap(txOpen, state) && state == txCommitted {
		state, err = txAborted, fmt.Errorf("%w: it was open for too long", broker.ErrTxAborted)
	}
	for i, o := range tx.offsets {
		if state == txCommitted {
			for h, n := range commits[i] {
				o.m.g.commit(h, n)
			}
		}
	}
	for _, o := range tx.offsets {
		o.m.rewind()
	}
	t := now()
	for _, s := range tx.streams {
		for _, p := range s.parts {
			p.settle(t)
		}
		for _, g := range slices.Backward(s.waiting) { // since it leaves when it wakes
			for _, m := range g.members {
				m.wake()
			}
		}
	}
	return err
}

// rewind goes back to what is stored, or where Seek went since, wherever m was
// handed more. s.mu is held.
func (m *GroupConsumer) rewind() {
	for _, h := range m.g.holds {
		if h.m == m && h.handed > h.base {
			h.moveTo(h.base)
		}
	}
}
