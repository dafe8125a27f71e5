package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// A Transformer consumes records, transforms them and produces others exactly
// once: what Handler emits and the position of what it was given are stored in
// one transaction. It needs a broker that is [Transactional] (Kafka, memory);
// what it emits must go to streams of that broker, and readers see it once, if
// they read committed. Effects outside of emit are at least once.
//
// Set the fields before Run and leave them alone.
type Transformer struct {
	Broker Broker
	Source Stream // of Broker
	Group  string
	ID     string // transactional id: one for each instance; a later holder fences the earlier
	// Handler is given up to MaxBatch records, those of a partition in order,
	// and emits what follows from them, from any goroutine until it returns. An
	// error, a panic or the end of its goroutine rolls the transaction back and
	// the same records come again by Retry; Reject(err) ends Run with err.
	Handler  func(ctx context.Context, in []*Record, emit func(to Stream, rs ...Record) error) error
	MaxBatch int      // 0: 500
	Start    Position // where the group has no offset yet; zero: Earliest
	Retry    RetryPolicy
	// DrainTimeout is how long the transaction under way may take to end once
	// Run's ctx has; 0: 30 s. A handler that still runs then can emit nothing any
	// more; 10 s later Run returns without it.
	DrainTimeout time.Duration
	Logger       *slog.Logger // nil: slog.Default()
	Observe      func(context.Context, Observation)

	loop    loop
	batches atomic.Int64
	records atomic.Int64
	aborts  atomic.Int64
}

// TransformerStats are a Transformer's numbers, summed over all its runs.
type TransformerStats struct {
	Running, Paused bool
	Committed       int64 // transactions, and plain commits where nothing was emitted
	Records         int64 // consumed by those
	Aborted         int64 // tries that were rolled back
}

// Stats returns the numbers as of now.
func (t *Transformer) Stats() TransformerStats {
	running, paused := t.loop.isPaused()
	return TransformerStats{running, paused, t.batches.Load(), t.records.Load(), t.aborts.Load()}
}

// Ready returns nil while the transformer runs and can receive, otherwise the
// reason, which may be the handler's error. A failure to receive is over once
// something came, or a call has waited for something for 10 s.
func (t *Transformer) Ready() error { return t.loop.ready() }

// Pause stops receiving until Resume.
func (t *Transformer) Pause() { t.loop.setPaused(true) }

// Resume undoes Pause.
func (t *Transformer) Resume() { t.loop.setPaused(false) }

func (t *Transformer) validate() error {
	switch {
	case t.Broker == nil:
		return Invalid("Broker is nil")
	case t.Source == nil:
		return Invalid("Source is nil")
	case t.Group == "":
		return Invalid("Group is empty")
	case t.ID == "":
		return Invalid("ID is empty: want a transactional id, one for each instance")
	case t.Handler == nil:
		return Invalid("Handler is nil")
	case t.MaxBatch < 0:
		return Invalid("MaxBatch %d: must not be negative", t.MaxBatch)
	case t.Retry.MaxAttempts != 0:
		return Invalid("Retry.MaxAttempts %d: a Transformer has no dead letters; emit to a stream instead", t.Retry.MaxAttempts)
	}
	if err := validDuration("DrainTimeout", t.DrainTimeout); err != nil {
		return err
	}
	return t.Retry.validate()
}

// Run works until ctx ends, then ends the transaction under way and returns
// nil. It returns an error when the transformer is misconfigured, when another
// instance took over its ID (ErrFenced), when the handler rejects or does not
// end in time, or when the broker fails for good.
func (t *Transformer) Run(ctx context.Context) error {
	name := ""
	if t.Source != nil {
		name = t.Source.Name()
	}
	fail := func(err error) error { return &Error{Op: "run transformer", Name: name, Err: err} }
	if err := t.validate(); err != nil {
		return fail(err)
	}
	x, ok := As[Transactional](t.Broker)
	if !ok {
		return fail(Unsupported("the broker has no transactions"))
	}
	if err := t.loop.begin(); err != nil {
		return fail(err)
	}
	defer t.loop.end()
	r := &transformerRun{
		t: t, broker: x, busy: make(chan struct{}, 1),
		observer: newObserver(name, t.Group, t.Observe, t.Logger),
	}
	if err := r.bounded(ctx); err != nil {
		return fail(err)
	}
	return nil
}

type transformerRun struct {
	t        *Transformer
	broker   Transactional
	observer observer
	busy     chan struct{} // holds a token while a transaction is under way

	mu         sync.Mutex // of what follows: release may come at any time
	transactor Transactor
	consumer   GroupConsumer
}

// bounded runs until ctx ends, and then as long as the drain and what comes
// after it may take.
func (r *transformerRun) bounded(ctx context.Context) error {
	drain := r.t.DrainTimeout
	if drain == 0 {
		drain = defaultDrainTimeout
	}
	// The work under way outlives ctx by the drain timeout.
	work, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	done, overdue := make(chan struct{}), make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		if !sleep(work, drain) {
			return
		}
		cancel(ErrShutdown)
		if !waitFor(done, 2*graceTimeout) { // a rollback has the first half
			close(overdue)
		}
	})
	defer stop()
	var err error
	go func() {
		defer close(done)
		err = errGoexit
		err = r.run(ctx, work)
	}()
	select {
	case <-done:
		return errors.Join(err, r.release())
	case <-overdue: // others can have the partitions and the transactional id
		return errors.Join(fmt.Errorf("%w: the handler did not end within %v and %v more",
			ErrShutdown, drain, 2*graceTimeout), r.release())
	}
}

// release leaves the group and ends the transactor; the next open makes new ones.
func (r *transformerRun) release() error {
	r.mu.Lock()
	c, x := r.consumer, r.transactor
	r.consumer, r.transactor = nil, nil
	r.mu.Unlock()
	var errs []error
	if x != nil {
		errs = append(errs, x.Close())
	}
	if c != nil {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// handles returns what open made; both are nil once release was called.
func (r *transformerRun) handles() (Transactor, GroupConsumer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.transactor, r.consumer
}

func (r *transformerRun) run(ctx, work context.Context) error {
	var pending []*Record
	attempt := 0
	for {
		progress, err := r.step(ctx, work, &pending, attempt+1)
		switch {
		case err == nil:
			attempt = 0
			r.t.loop.setProblem(nil)
			if progress {
				continue
			}
			return nil // ctx has ended
		case ctx.Err() != nil && (work.Err() != nil || errors.Is(err, ctx.Err())):
			return nil //nolint:nilerr // cut off by the end of ctx
		case !r.again(err):
			return err
		}
		attempt++
		r.t.loop.setProblem(err)
		if !sleep(ctx, r.wait(ctx, attempt, err)) {
			return nil
		}
	}
}

// handlerError is an error of the handler, as opposed to one of the broker.
type handlerError struct{ err error }

func (e *handlerError) Error() string { return e.err.Error() }
func (e *handlerError) Unwrap() error { return e.err }

// again tells whether to go on after err.
func (r *transformerRun) again(err error) bool {
	if h, ok := errors.AsType[*handlerError](err); ok {
		v, ok := VerdictOf(h.err)
		return !ok || v.Kind != VerdictReject
	}
	return errors.Is(err, ErrTxAborted) || errors.Is(err, ErrUnknownOutcome) || IsTemporary(err)
}

func (r *transformerRun) wait(ctx context.Context, attempt int, err error) time.Duration {
	h, ok := errors.AsType[*handlerError](err)
	if !ok {
		return connectionRetry.After(attempt, err)
	}
	if v, ok := VerdictOf(h.err); ok {
		return v.Delay
	}
	return r.observer.retryAfter(ctx, &r.t.Retry, nil, attempt, h.err)
}

// step receives one batch and carries it through a transaction. Records that
// were received and had no transaction yet stay in pending for the next try. It
// reports false once ctx has ended.
func (r *transformerRun) step(ctx, work context.Context, pending *[]*Record, attempt int) (bool, error) {
	if ctx.Err() != nil {
		return false, nil
	}
	x, c, err := r.open(ctx)
	if err != nil {
		return false, err
	}
	if len(*pending) == 0 {
		fetch := r.t.loop.fetchContext(ctx)
		if fetch == nil {
			return false, nil
		}
		n := r.t.MaxBatch
		if n == 0 {
			n = 500
		}
		received := r.t.loop.receiving()
		rs, err := c.Receive(fetch, n)
		received(false) // a transaction may fail yet
		if err != nil {
			if fetch.Err() != nil {
				return ctx.Err() == nil, nil
			}
			return false, err
		}
		*pending = rs
	}
	r.busy <- struct{}{}
	defer func() { <-r.busy }()
	rs := slices.DeleteFunc(*pending, func(rec *Record) bool { return rec.Assignment().Ended() })
	*pending = rs
	if len(rs) == 0 {
		return true, nil
	}
	for _, rec := range rs {
		rec.attempt = uint16(min(attempt, 1<<16-1)) //nolint:gosec // bounded
	}
	return true, r.transform(work, x, c, rs, pending)
}

// open makes what an earlier failure has taken away.
func (r *transformerRun) open(ctx context.Context) (Transactor, GroupConsumer, error) {
	x, c := r.handles()
	if x != nil && c != nil {
		return x, c, nil
	}
	var err error
	if x == nil {
		if x, err = r.broker.Transactor(ctx, r.t.ID); err != nil {
			return nil, nil, err
		}
		r.mu.Lock()
		r.transactor = x
		r.mu.Unlock()
	}
	if c == nil {
		c, err = r.t.Source.Consumer(ctx, r.t.Group, &GroupOptions{
			Start: r.t.Start, ReadCommitted: true,
			OnRevoked: func(ctx context.Context, partitions []int32) {
				select { // the transaction under way ends first
				case r.busy <- struct{}{}:
					<-r.busy
				case <-ctx.Done():
				}
				for _, p := range partitions {
					r.observer.observe(ctx, Observation{Kind: ObservedRevoked, Partition: p, Count: 1})
				}
			},
			OnLost: func(partitions []int32) {
				for _, p := range partitions {
					r.observer.observe(context.WithoutCancel(ctx), Observation{Kind: ObservedLost, Partition: p, Count: 1})
				}
			},
		})
		if err != nil {
			return nil, nil, err
		}
		r.mu.Lock()
		r.consumer = c
		r.mu.Unlock()
	}
	r.t.loop.setProblem(nil)
	return x, c, nil
}

// transform runs the handler over rs. The transaction begins with the first
// emit, and with the position: from then on both its ends rewind the consumer,
// whatever the handler does. With no emit the position is committed plainly.
func (r *transformerRun) transform(ctx context.Context, x Transactor, c GroupConsumer, rs []*Record, pending *[]*Record) error {
	e := &emitter{ctx: ctx, x: x, c: c, rs: rs}
	began := r.observer.now()
	err := r.call(ctx, rs, e.emit)
	tx, emitErr := e.end()
	r.observer.observe(ctx, Observation{Kind: ObservedHandled, Incoming: rs[0], Count: len(rs), Duration: since(began), Err: err})
	switch {
	case emitErr != nil:
		err = emitErr
	case err != nil:
		err = &handlerError{err}
	}
	if tx == nil {
		if err != nil {
			return err
		}
		err = c.Commit(ctx, lastOfEach(rs)...)
		if errors.Is(err, ErrFenced) { // another member has the records now
			*pending = nil
			return nil
		}
		if err != nil {
			return err
		}
		*pending = nil
		r.committed(ctx, rs)
		return nil
	}
	*pending = nil // both ends of a transaction rewind the consumer to what did commit
	if err == nil {
		err = tx.Commit(ctx)
	}
	if err == nil {
		r.committed(ctx, rs)
		return nil
	}
	return r.rollback(ctx, tx, err)
}

// An emitter is one handler's way into a transaction.
type emitter struct {
	ctx context.Context
	x   Transactor
	c   GroupConsumer
	rs  []*Record

	mu    sync.Mutex
	tx    Tx
	err   error // of the broker, also if the handler drops it
	ended bool
}

func (e *emitter) emit(to Stream, out ...Record) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.ended:
		return &Error{Op: "emit", Name: to.Name(), Err: fmt.Errorf("%w: the handler has returned", ErrClosed)}
	case e.err == nil:
		e.err = e.publish(to, out)
	}
	return e.err
}

func (e *emitter) publish(to Stream, out []Record) (err error) {
	if e.tx == nil {
		if e.tx, err = e.x.Begin(e.ctx); err != nil {
			e.tx = nil
			return err
		}
		if err = e.tx.CommitOffsets(e.ctx, e.c, lastOfEach(e.rs)...); err != nil {
			return err
		}
	}
	return e.tx.Publish(e.ctx, to, out...)
}

// end returns the transaction, if there is one, and what the broker had against
// it. Nothing enters it any more.
func (e *emitter) end() (Tx, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ended = true
	return e.tx, e.err
}

func (r *transformerRun) committed(ctx context.Context, rs []*Record) {
	r.t.batches.Add(1)
	r.t.records.Add(int64(len(rs)))
	r.observer.observe(ctx, Observation{Kind: ObservedCommitted, Count: len(rs)})
}

// rollback ends a failed transaction. Where that fails too, or it is not known
// what became of the commit, a new transactor settles it, since it fences the
// old one, and a new member begins at what did commit.
func (r *transformerRun) rollback(ctx context.Context, tx Tx, cause error) error {
	r.t.aborts.Add(1)
	r.observer.observe(ctx, Observation{Kind: ObservedCommitError, Count: 1, Err: cause})
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), graceTimeout)
	defer cancel()
	err := tx.Rollback(ctx)
	switch {
	case errors.Is(cause, ErrUnknownOutcome):
	case err == nil || errors.Is(err, ErrTxAborted):
		if errors.Is(cause, ErrFenced) {
			// Partitions were handed over meanwhile. Had another instance
			// taken the ID, Rollback would have said so.
			return fmt.Errorf("%w: %w", ErrTxAborted, cause)
		}
		return cause
	case errors.Is(err, ErrFenced):
		return errors.Join(cause, err)
	}
	return UnknownOutcome(errors.Join(cause, err, r.release()))
}

// call runs the handler in a goroutine that is its own to end.
func (r *transformerRun) call(ctx context.Context, rs []*Record, emit func(Stream, ...Record) error) error {
	done := make(chan error, 1)
	go func() {
		err := errGoexit
		defer func() { done <- err }()
		defer recovered(&err)
		err = r.t.Handler(ctx, rs, emit)
	}()
	return <-done
}

// lastOfEach returns the last record of each partition.
func lastOfEach(rs []*Record) []*Record {
	last := map[int32]*Record{}
	for _, rec := range rs {
		last[rec.Partition] = rec
	}
	out := make([]*Record, 0, len(last))
	for _, rec := range last {
		out = append(out, rec)
	}
	return out
}
