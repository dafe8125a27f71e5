package conformance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/queuestream/broker"
)

type copyFate int

const (
	copierCommits copyFate = iota
	copierRollsBack
	copierDies
)

// A streamCopier is one life of a program that copies in transactions.
type streamCopier struct {
	source, out *streamRun
	id          string // transactional id, which outlives it
	group, name string
}

// run copies until ctx ends, the copier is fenced, or it dies: then it leaves
// its transaction open.
func (k *streamCopier) run(ctx context.Context, fate func() copyFate) {
	r := k.source
	b, from, to := r.Broker(), r.stream, k.out.stream
	if !r.Harness().Embedded {
		b = r.OpenBroker() // a process of its own
		from, to = r.reopen(b, from), r.reopen(b, to)
	}
	tr := r.transactorOf(b, k.id)
	m := r.joinStream(from, k.group, readCommitted, nil)
	defer func() {
		if err := m.closeErr(); err != nil {
			r.Errorf("%s: leave: %v", k.name, err)
		}
	}()
	for ctx.Err() == nil {
		rs, err := k.poll(ctx, m)
		if err != nil {
			if ctx.Err() == nil {
				r.Errorf("%s: receive: %v", k.name, err)
			}
			return
		}
		done, err := k.copy(tr, m, to, rs, fate())
		switch {
		case err == nil && !done:
			return // dead
		case errors.Is(err, broker.ErrFenced):
			return
		case err != nil && !errors.Is(err, broker.ErrTxAborted):
			r.Errorf("%s: %v", k.name, err)
			return
		}
	}
}

// poll receives without writing polls into the history: transactions rewind
// the member, which the checker takes for a fault.
func (k *streamCopier) poll(ctx context.Context, m *streamMember) ([]*broker.Record, error) {
	return m.consumer().Receive(ctx, 10)
}

// copy handles one batch. It reports false if the copier dies.
func (k *streamCopier) copy(tr broker.Transactor, m *streamMember, to broker.Stream, rs []*broker.Record, fate copyFate) (bool, error) {
	r := k.source
	ctx, cancel := r.Soon()
	defer cancel()
	tx, err := tr.Begin(ctx)
	if err != nil {
		return true, err
	}
	if err = tx.CommitOffsets(ctx, m.consumer(), rs...); err != nil {
		return true, k.abort(ctx, tx, err)
	}
	if fate == copierDies && r.Rand().IntN(2) == 0 {
		return false, nil
	}
	for _, rec := range rs {
		if err = tx.Publish(ctx, to, broker.Record{Key: rec.Key, Value: append([]byte("copy of "), rec.Value...)}); err != nil {
			return true, k.abort(ctx, tx, err)
		}
	}
	switch fate {
	case copierDies:
		return false, nil
	case copierRollsBack:
		return true, tx.Rollback(ctx)
	}
	m.processed(rs...)
	if err = tx.Commit(ctx); err != nil {
		return true, k.abort(ctx, tx, err)
	}
	return true, nil
}

// abort rolls back after cause. A partition that moved in the middle is no
// fault: the work is done again by its owner.
func (k *streamCopier) abort(ctx context.Context, tx broker.Tx, cause error) error {
	if err := tx.Rollback(ctx); err != nil && !errors.Is(err, broker.ErrFenced) && !errors.Is(err, broker.ErrTxAborted) {
		return fmt.Errorf("roll back after %w: %w", cause, err)
	}
	return cause
}

// transform copies as a Transformer until ctx ends, or it dies.
func (k *streamCopier) transform(ctx context.Context, fate func() copyFate) {
	r := k.source
	b, kill := r.victim()
	from, to := r.stream, k.out.stream
	if b != r.Broker() {
		from, to = r.reopen(b, from), r.reopen(b, to)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	dead := false
	die := func() error {
		dead = true
		cancel()
		kill(io.NopCloser(nil))
		return errors.New("dead")
	}
	t := &broker.Transformer{
		Broker: b, Source: from, Group: k.group, ID: k.id, MaxBatch: 10, DrainTimeout: time.Second,
		Logger: slog.New(slog.DiscardHandler),
	}
	t.Handler = func(_ context.Context, in []*broker.Record, emit func(broker.Stream, ...broker.Record) error) error {
		what, half := fate(), r.Rand().IntN(2) == 0
		for i, rec := range in {
			if what == copierDies && half && i >= len(in)/2 {
				return die()
			}
			if err := emit(to, broker.Record{Key: rec.Key, Value: append([]byte("copy of "), rec.Value...)}); err != nil {
				return err
			}
		}
		switch what {
		case copierDies:
			return die()
		case copierRollsBack:
			return broker.RetryAfter(0, errors.New("rolled back"))
		}
		r.hist.Add(StreamEvent{Op: StreamProcess, Who: k.name, Group: k.group, Entries: entriesOf(in)})
		return nil
	}
	if err := t.Run(ctx); err != nil && !dead && !errors.Is(err, broker.ErrFenced) {
		r.Errorf("%s: %v", k.name, err)
	}
}

// reopen opens the same stream through another client.
func (r *streamRun) reopen(b broker.Broker, s broker.Stream) broker.Stream {
	ctx, cancel := r.Soon()
	defer cancel()
	again, err := b.Stream(ctx, s.Name(), nil)
	r.Must(err, "open the stream %s again", s.Name())
	r.track("stream", again.Close)
	return again
}
