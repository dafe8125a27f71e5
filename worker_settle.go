package broker

import (
	"context"
	"errors"
	"sync"
	"time"
)

const (
	maxSettleTries = 10  // about a minute; then the lease lapses and the message is redelivered
	settleBatch    = 256 // outcomes in one call
	settleQueued   = 1024
)

// A settleQueue carries verdicts out behind the lanes: a batch leaves when it
// is full or when nothing is in flight, so that a lane never waits for a round
// trip and a lone verdict never waits for company.
type settleQueue struct {
	r       *workerRun
	batcher *Batcher[settlement, struct{}]
	ctx     context.Context // ends the waiting for room when the worker is done
	cancel  context.CancelFunc

	mu      sync.Mutex
	pending int           // put and not finished, those that wait for another try included
	empty   chan struct{} // closed when pending falls to 0, if someone waits
	closed  bool
	again   sync.WaitGroup // tries after the first
}

type settlement struct {
	j *job
	v Verdict
}

func (q *settleQueue) init(r *workerRun) {
	q.r = r
	q.ctx, q.cancel = context.WithCancel(context.WithoutCancel(r.base))
	q.batcher = NewBatcher(BatcherOptions[settlement, struct{}]{
		Send: q.send, MaxItems: settleBatch, MaxInFlight: 4, MaxQueued: max(settleQueued, 2*r.lanes),
	})
}

// put has v carried out on j; it waits only while too much is queued.
func (q *settleQueue) put(j *job, v Verdict) {
	q.mu.Lock()
	q.pending++
	q.mu.Unlock()
	q.try(j, v)
}

func (q *settleQueue) try(j *job, v Verdict) {
	if err := q.batcher.Go(q.ctx, settlement{j, v}, nil); err != nil {
		q.giveUp(j, v, err)
	}
}

func (q *settleQueue) send(ctx context.Context, items []settlement, _ []Result[struct{}]) {
	batch := make([]Outcome, len(items))
	for i, s := range items {
		batch[i] = Outcome{Delivery: s.j.d, Verdict: s.v}
	}
	_ = SettleAll(ctx, batch) // each outcome carries its own error
	for i := range batch {
		q.settled(ctx, items[i].j, items[i].v, batch[i].Err)
	}
}

// settled looks at what became of a verdict: done, lost, or to be tried again.
func (q *settleQueue) settled(ctx context.Context, j *job, v Verdict, err error) {
	r, c := q.r, &q.r.w.counters
	switch {
	case err == nil:
		switch {
		case v.Kind == VerdictAck:
			c.acked.Add(1)
		case v.Kind == VerdictReject:
			c.rejected.Add(1)
		case v.Snooze:
			c.snoozed.Add(1)
		default:
			c.retried.Add(1)
		}
		r.observer.observe(ctx, Observation{Kind: ObservedSettled, Incoming: j.d, Verdict: v, Count: 1})
		q.finish(j)
	case errors.Is(err, ErrLeaseLost):
		r.keeper.lose(j, err)
		q.finish(j)
	case errors.Is(err, ErrSettled): // by a goroutine that the handler left behind
		q.finish(j)
	default:
		lesser, ok := lesserVerdict(v)
		unsupported := errors.Is(err, ErrUnsupported)
		if j.tries++; j.tries >= maxSettleTries || unsupported && !ok || errors.Is(err, ErrClosed) {
			q.giveUp(j, v, err)
			return
		}
		kind, next, wait := ObservedSettleError, v, connectionRetry.After(j.tries, err)
		if unsupported {
			kind, next = ObservedUnsupported, lesser
		} else {
			c.settleErrors.Add(1)
		}
		r.observer.observe(ctx, Observation{Kind: kind, Incoming: j.d, Verdict: v, Count: 1, Err: err})
		time.AfterFunc(wait, func() { q.retry(j, next) })
	}
}

// retry tries again, unless the worker is done and j given up with it.
func (q *settleQueue) retry(j *job, v Verdict) {
	q.mu.Lock()
	closed := q.closed
	if !closed {
		q.again.Add(1)
	}
	q.mu.Unlock()
	if closed {
		return
	}
	defer q.again.Done()
	q.try(j, v)
}

// lesserVerdict returns what to do where a queue refuses v after all.
func lesserVerdict(v Verdict) (Verdict, bool) {
	switch {
	case v.Kind == VerdictNack && v.Snooze:
		return Verdict{Kind: VerdictNack, Delay: v.Delay}, true
	case v.Kind == VerdictNack && v.Delay > 0, v.Kind == VerdictReject:
		return Verdict{Kind: VerdictNack}, true
	}
	return v, false
}

func (q *settleQueue) giveUp(j *job, v Verdict, err error) {
	q.r.w.counters.settleErrors.Add(1)
	q.r.observer.observe(q.r.base, Observation{
		Kind: ObservedSettleError, Incoming: j.d, Verdict: v, Count: 1, GivenUp: true, Err: err,
	})
	q.finish(j)
}

func (q *settleQueue) finish(j *job) {
	q.r.keeper.finish(j)
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.pending--; q.pending == 0 && q.empty != nil {
		close(q.empty)
		q.empty = nil
	}
}

// close waits a bounded time until all verdicts are carried out; the rest is
// given up.
func (q *settleQueue) close() {
	q.mu.Lock()
	empty := q.empty
	if q.pending > 0 && empty == nil {
		empty = make(chan struct{})
		q.empty = empty
	}
	q.mu.Unlock()
	if empty != nil {
		waitFor(empty, graceTimeout)
	}
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.cancel()
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // nothing more to wait for: what is left is failed
	_ = q.batcher.Close(ctx)
	q.again.Wait()
}
