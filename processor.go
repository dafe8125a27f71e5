package broker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"
)

// A RecordHandler handles one record. Its result is the verdict: nil is done,
// [Reject] dead-letters, [RetryAfter] and [Snooze] run it again later (Snooze
// counts no attempt), another error runs it again by the retry policy, and so
// does a panic, or the end of its goroutine (a test's FailNow). The record must
// not be kept or changed after it returned.
type RecordHandler func(ctx context.Context, r *Record) error

// A DeadLetterFunc stores a record that failed for good, with what it failed
// with. Only once it has returned nil the record counts as done; until then it
// is called again with back-off.
type DeadLetterFunc func(ctx context.Context, r *Record, cause error) error

// A Processor runs Handler over a group of a Stream: records of equal key (or
// OrderBy) one at a time and in order, different keys, and records without a key, in
// parallel. It commits the contiguous prefix of what is done. A record that is
// retried blocks its key, not its partition; a partition whose window is full
// is paused, and the others go on. Handlers that return at once run one after
// the other where that is quicker: what was received together then waits at most
// a millisecond for one of them.
//
// Set the fields before Run and leave them alone; the methods may be called
// from any goroutine. The handler's ctx outlives Run's and ends with a cause:
// [ErrShutdown] once DrainTimeout has passed, [ErrFenced] when the partition
// went to another member without notice.
type Processor struct {
	Stream        Stream
	Group         string
	Start         Position // where the group has no offset yet; zero: Earliest
	Until         Position // Run returns nil when the group has come here: Now, AtTime or AtOffset; zero: never
	ReadCommitted bool
	// OrderBy tells what orders records of a partition: those of an equal result
	// run one at a time and in order, those with an empty one freely. nil: by
	// the record's key, and so where it panics. It is called once for each
	// record, one at a time, and holds up all receiving; Run ends with an error
	// where it ends its goroutine.
	OrderBy func(r *Record) string
	Handler RecordHandler // this or BatchHandler
	// BatchHandler handles up to MaxBatch records at once, those of one key in
	// order. A *BatchError with an entry for each is a verdict for each; any
	// other result is the verdict for all. When a record fails, those of its key
	// behind it in the batch are handled again after it: the verdicts on them have
	// no effect and count no attempt.
	BatchHandler func(ctx context.Context, rs []*Record) error
	MaxBatch     int           // 0: 100
	MaxWait      time.Duration // for a batch to fill after its first record; 0: takes what is there
	Middleware   []Middleware  // as those of Worker, around each record

	Concurrency int           // handlers at once; 0: 8
	MaxWindow   int           // of each partition: records done or in hand beyond the commit; 0: 8192
	MaxAge      time.Duration // of the oldest of them, beyond which its partition is paused; 0: no limit
	// MaxWindowBytes bounds the keys, values and headers of what is in hand, or
	// done behind something in hand: a partition with more than an even share of
	// it is paused. What one Receive returns may come on top. 0: 64 MiB.
	MaxWindowBytes int
	CommitInterval time.Duration // 0: 1 s; sooner when the window is half full or nothing is in hand
	// Retry runs a record again in place. Without DeadLetter that goes on for
	// ever; Retry.MaxAttempts needs one. Reject without DeadLetter ends Run
	// with the error.
	Retry        RetryPolicy
	DeadLetter   DeadLetterFunc // see DeadLetterTo and DeadLetterStream
	DrainTimeout time.Duration  // 0: 30 s, for handlers and the last commit. Handlers still running then are told so, and have 5 s more
	Logger       *slog.Logger   // nil: slog.Default()
	// Observe is told what happens. It is called from many goroutines and must
	// not block; a panic in it is logged.
	Observe func(context.Context, Observation)

	loop     loop
	counters processorCounters
	run      atomic.Pointer[processorRun]
}

const (
	defaultMaxWindow      = 8192
	defaultWindowBytes    = 64 << 20
	defaultCommitInterval = time.Second
	idleCommitDelay       = 50 * time.Millisecond
	maxReceive            = 512
)

type processorCounters struct {
	running, received, handled, handlerErrors, panics, retried atomic.Int64
	deadLettered, committed, commitErrors, receiveErrors       atomic.Int64
	revoked, lost                                              atomic.Int64
}

// ProcessorStats are a Processor's numbers, summed over all its runs.
type ProcessorStats struct {
	Running, Paused bool
	Handlers        int // running now
	Received        int64
	Handled         int64 // handlers that returned, once for each record
	HandlerErrors   int64
	Panics          int64
	Retried         int64
	DeadLettered    int64
	Committed       int64 // records
	CommitErrors    int64
	ReceiveErrors   int64
	Revoked, Lost   int64            // partitions
	Partitions      []PartitionStats // that this member works on, ascending
}

// PartitionStats are a Processor's numbers of one partition.
type PartitionStats struct {
	Partition    int32
	Window       int           // records done or in hand beyond the commit
	InHand       int           // of those, not done yet
	OldestAge    time.Duration // of the oldest in the window; 0: it is empty
	Received     Offset        // of the latest record received
	Committed    Offset        // of the latest record committed here; meaningful if HasCommitted
	HasCommitted bool
	Paused       bool // the window is full, or Until is reached
}

// Stats returns the numbers as of now. With Stream.Lag they tell how far the
// group is behind.
func (p *Processor) Stats() ProcessorStats {
	c := &p.counters
	running, paused := p.loop.isPaused()
	s := ProcessorStats{
		Running: running, Paused: paused, Handlers: int(c.running.Load()),
		Received: c.received.Load(), Handled: c.handled.Load(), HandlerErrors: c.handlerErrors.Load(),
		Panics: c.panics.Load(), Retried: c.retried.Load(), DeadLettered: c.deadLettered.Load(),
		Committed: c.committed.Load(), CommitErrors: c.commitErrors.Load(), ReceiveErrors: c.receiveErrors.Load(),
		Revoked: c.revoked.Load(), Lost: c.lost.Load(),
	}
	if r := p.run.Load(); r != nil {
		s.Partitions = r.partitionStats()
	}
	return s
}

// Ready returns nil while the processor runs and can receive (a paused one is
// ready, and so is one without partitions), otherwise the reason. A failure to
// receive is over once something came, or a call has waited for something for
// 10 s.
func (p *Processor) Ready() error { return p.loop.ready() }

// Pause stops receiving; handlers and commits go on. It lasts until Resume,
// also over runs.
func (p *Processor) Pause() { p.loop.setPaused(true) }

// Resume undoes Pause.
func (p *Processor) Resume() { p.loop.setPaused(false) }

func (p *Processor) validate() error {
	switch {
	case p.Stream == nil:
		return Invalid("Stream is nil")
	case p.Group == "":
		return Invalid("Group is empty")
	case p.MaxWindow < 0:
		return Invalid("MaxWindow %d: must not be negative", p.MaxWindow)
	case p.MaxWindowBytes < 0:
		return Invalid("MaxWindowBytes %d: must not be negative", p.MaxWindowBytes)
	case p.MaxWindow > 0 && p.MaxBatch > p.MaxWindow:
		return Invalid("MaxBatch %d is larger than MaxWindow %d", p.MaxBatch, p.MaxWindow)
	case p.Retry.MaxAttempts > 0 && p.DeadLetter == nil:
		return Invalid("Retry.MaxAttempts %d without DeadLetter", p.Retry.MaxAttempts)
	}
	if err := validHandlers(p.Handler != nil, p.BatchHandler != nil, p.Concurrency, p.MaxBatch, p.MaxWait); err != nil {
		return err
	}
	if err := validDurations(setting{"MaxAge", p.MaxAge}, setting{"CommitInterval", p.CommitInterval}, setting{"DrainTimeout", p.DrainTimeout}); err != nil {
		return err
	}
	switch k := p.Start.Kind(); k {
	case PositionDefault, PositionEarliest, PositionLatest, PositionTime, PositionOffset:
	default:
		return Invalid("Start %v: want Earliest, Latest, AtTime or AtOffset", p.Start)
	}
	switch k := p.Until.Kind(); k {
	case PositionDefault, PositionNow, PositionLatest, PositionTime, PositionOffset:
	default:
		return Invalid("Until %v: want Now, AtTime or AtOffset", p.Until)
	}
	return p.Retry.validate()
}

// errReached ends the fetching of a Processor with Until.
var errReached = errors.New("reached the end")

// Run works until ctx ends or Until is reached, then drains, commits and
// returns nil. It returns an error when the processor is misconfigured (before
// anything is received), when receiving or committing fails for good, when a
// record is rejected without DeadLetter, or when handlers did not end in time.
func (p *Processor) Run(ctx context.Context) error {
	name := ""
	if p.Stream != nil {
		name = p.Stream.Name()
	}
	fail := func(err error) error { return &Error{Op: "run processor", Name: name, Err: err} }
	if err := p.validate(); err != nil {
		return fail(err)
	}
	if err := p.loop.begin(); err != nil {
		return fail(err)
	}
	defer p.loop.end()
	r := newProcessorRun(ctx, p)
	for attempt := 1; ; attempt++ {
		err := r.open(ctx)
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return nil
		}
		if !IsTemporary(err) {
			return fail(err)
		}
		r.receiveFailed(ctx, err)
		if !sleep(ctx, connectionRetry.After(attempt, err)) {
			return nil
		}
	}
	p.run.Store(r)
	defer p.run.Store(nil)
	p.loop.setProblem(nil)
	err := r.work()
	if err != nil {
		return fail(err)
	}
	return nil
}

func (r *processorRun) open(ctx context.Context) error {
	if err := r.resolveUntil(ctx); err != nil {
		return err
	}
	c, err := r.p.Stream.Consumer(ctx, r.p.Group, &GroupOptions{
		Start: r.p.Start, ReadCommitted: r.p.ReadCommitted,
		OnAssigned: r.assigned, OnRevoked: r.revoked, OnLost: r.lost,
	})
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.consumer = c
	r.mu.Unlock()
	return nil
}

// work fetches until there is a reason to stop, and drains.
func (r *processorRun) work() error {
	for range r.lanes {
		r.wg.Go(r.lane)
	}
	r.background.Go(r.commitLoop)
	if !r.p.Until.IsZero() {
		r.background.Go(r.untilLoop)
	}
	r.wg.Go(r.fetcher)
	err := <-r.fetched
	r.stop(err)
	r.p.loop.setProblem(ErrShutdown)
	err = errors.Join(err, r.drain())
	r.mu.Lock()
	defer r.mu.Unlock()
	return errors.Join(r.failure, err)
}

// fetcher fetches until that ends, or another goroutine does.
func (r *processorRun) fetcher() {
	if relieved, err := r.fetch(); !relieved {
		r.fetched <- err
	}
}

// fetch receives until the run is stopped, receiving fails for good, or
// another goroutine does it.
func (r *processorRun) fetch() (relieved bool, err error) {
	failures := 0
	for {
		fetch := r.p.loop.fetchContext(r.ctx)
		if fetch == nil {
			return false, nil
		}
		received := r.p.loop.receiving()
		rs, err := r.consumer.Receive(fetch, r.receiveMax)
		received(err == nil && len(rs) > 0)
		if len(rs) > 0 && r.dispatch(rs) {
			return true, nil
		}
		switch {
		case err == nil && len(rs) > 0:
			failures = 0
			continue
		case fetch.Err() != nil:
			continue
		case err != nil && !IsTemporary(err):
			return false, err
		case err != nil:
			r.receiveFailed(r.ctx, err)
		}
		failures++
		sleep(fetch, connectionRetry.After(failures, err))
	}
}

func (r *processorRun) receiveFailed(ctx context.Context, err error) {
	r.p.loop.setProblem(err)
	r.p.counters.receiveErrors.Add(1)
	r.observer.observe(ctx, Observation{Kind: ObservedReceiveError, Err: err})
}

// drain finishes what must be finished so that nothing done is done again,
// commits and leaves the group, all within bounds.
func (r *processorRun) drain() error {
	timeout := r.p.DrainTimeout
	if timeout == 0 {
		timeout = defaultDrainTimeout
	}
	var errs []error
	stuck := false
	deadline := time.Now().Add(timeout)
	r.mu.Lock()
	parts := make([]*partition, 0, len(r.parts))
	for _, pt := range r.parts {
		parts = append(parts, pt)
	}
	quiet := r.quiesce(parts)
	r.mu.Unlock()
	if !waitFor(quiet, timeout) {
		r.cancel(ErrShutdown)
		if !waitFor(quiet, graceTimeout) {
			stuck = true
			errs = append(errs, fmt.Errorf("%w: %d handlers did not end within %v and %v more",
				ErrShutdown, r.p.counters.running.Load(), timeout, graceTimeout))
		}
	}
	// A commit may have to wait for a rebalance; without it what is done would
	// be done again.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.ctx), max(time.Until(deadline), graceTimeout))
	defer cancel()
	if err := r.commit(ctx, parts); err != nil {
		errs = append(errs, err)
	}
	r.mu.Lock()
	for _, pt := range parts {
		r.drop(pt, ErrShutdown)
	}
	r.closing = true
	r.cond.Broadcast()
	r.mu.Unlock()
	r.cancel(ErrShutdown)
	r.background.Wait()
	if !stuck {
		r.wg.Wait()
	}
	if err := r.consumer.Close(); err != nil && !errors.Is(err, ErrClosed) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// fail ends the run with err; the first failure counts.
func (r *processorRun) fail(err error) {
	r.mu.Lock()
	if r.failure == nil {
		r.failure = err
	}
	r.mu.Unlock()
	r.stop(err)
}

func (r *processorRun) partitionStats() []PartitionStats {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.takeOver()
	var out []PartitionStats
	for _, pt := range r.parts {
		if pt.gone {
			continue
		}
		s := PartitionStats{
			Partition: pt.id, Window: pt.count(), InHand: pt.window.len(), Paused: pt.paused || pt.reached,
			Received: pt.received, Committed: pt.committed, HasCommitted: pt.hasCommitted,
		}
		if oldest := pt.oldest(); !oldest.IsZero() {
			s.OldestAge = now.Sub(oldest)
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b PartitionStats) int { return cmp.Compare(a.Partition, b.Partition) })
	return out
}
