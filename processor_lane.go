package broker

import (
	"context"
	"errors"
	"math"
	"time"
)

// lane handles one task, or one batch, after the other.
func (r *processorRun) lane() {
	tasks := make([]*task, 0, max(1, r.maxBatch))
	results := make([]taskResult, max(1, r.maxBatch))
	r.mu.Lock()
	for {
		var t *task
		if r.busy < r.lanes {
			t = r.begin()
		}
		if t == nil {
			if r.closing {
				r.mu.Unlock()
				return
			}
			r.waiting++
			r.cond.Wait()
			r.waiting--
			continue
		}
		r.busy++
		tasks = append(tasks[:0], t)
		if r.maxBatch > 0 {
			tasks = r.collect(tasks)
		}
		r.mu.Unlock()
		if r.maxBatch > 0 {
			r.handleBatch(tasks, results)
		} else {
			results[0] = r.handleOne(t)
		}
		r.mu.Lock()
		for i, t := range tasks {
			r.conclude(t, &results[i])
		}
		r.busy--
		r.tellEmpty()
		clear(tasks)
	}
}

// collect fills a batch with what is ready and what follows it by key, and
// waits for more up to MaxWait. r.mu is held.
func (r *processorRun) collect(tasks []*task) []*task {
	for i := 0; i < len(tasks) && len(tasks) < r.maxBatch; i++ {
		tasks = r.follow(tasks, tasks[i])
	}
	var timer *time.Timer
	expired := r.p.MaxWait == 0
	for {
		for len(tasks) < r.maxBatch {
			t := r.begin()
			if t == nil {
				break
			}
			tasks = r.follow(append(tasks, t), t)
		}
		if len(tasks) >= r.maxBatch || expired || r.hurry || r.closing {
			break
		}
		if timer == nil {
			timer = time.AfterFunc(r.p.MaxWait, func() {
				r.mu.Lock()
				defer r.mu.Unlock()
				expired = true
				r.cond.Broadcast()
			})
		}
		r.waiting++
		r.cond.Wait()
		r.waiting--
		tasks = r.follow(tasks, tasks[len(tasks)-1])
	}
	if timer != nil {
		timer.Stop()
	}
	if r.ready.len() > 0 {
		r.signal()
	}
	return tasks
}

// follow adds the tasks behind t of its key.
func (r *processorRun) follow(tasks []*task, t *task) []*task {
	for n := t.next; n != nil && n.state == taskWaiting && len(tasks) < r.maxBatch; n = n.next {
		n.state = taskRunning
		n.part.active++
		tasks = append(tasks, n)
	}
	return tasks
}

// A taskResult is what to do with a task after its handler.
type taskResult struct {
	done  bool
	delay time.Duration // if not done: run it again after this
	fail  error         // if not done: end the run with this
	left  bool          // if not done: leave it to the next owner
}

// conclude carries out a result. r.mu is held.
func (r *processorRun) conclude(t *task, res *taskResult) {
	switch {
	case t.state != taskRunning: // behind one of its key that failed: it comes again
	case res.done:
		r.finish(t)
	case res.fail != nil:
		if r.failure == nil {
			r.failure = res.fail
		}
		t.part.draining = true
		r.later(t, 0)
		r.stop(res.fail)
	case res.left:
		t.part.draining = t.part.draining || r.ctx.Err() != nil
		r.later(t, 0)
	default:
		r.later(t, res.delay)
	}
}

// handleOne runs the handler, or dead-letters what was rejected before.
func (r *processorRun) handleOne(t *task) taskResult {
	ctx := t.part.ctx
	if t.cause != nil {
		return r.deadLetter(ctx, t)
	}
	c := &r.p.counters
	c.running.Add(1)
	began := r.observer.now()
	err := r.callOne(ctx, t.r, t.attempt+1)
	c.running.Add(-1)
	c.handled.Add(1)
	return r.handled(ctx, t, began, err)
}

func (r *processorRun) callOne(ctx context.Context, rec *Record, attempt int) (err error) {
	defer recovered(&err)
	rec.attempt = uint16(min(attempt, math.MaxUint16)) //nolint:gosec // bounded
	if len(r.p.Middleware) == 0 {
		return r.p.Handler(ctx, rec)
	}
	return r.chain(ctx, rec)
}

// handleBatch runs the handler for all but those that were rejected before,
// which it dead-letters.
func (r *processorRun) handleBatch(tasks []*task, results []taskResult) {
	ctx := tasks[0].part.ctx
	todo := make([]*task, 0, len(tasks))
	for _, t := range tasks {
		if t.cause == nil {
			todo = append(todo, t)
		}
		if t.part != tasks[0].part { // the loss of one partition does not end the others' work
			ctx = r.base //nolint:fatcontext // another context, not one inside the other
		}
	}
	var err error
	began := r.observer.now()
	if len(todo) > 0 {
		c := &r.p.counters
		c.running.Add(1)
		err = r.callBatch(ctx, todo)
		c.running.Add(-1)
		c.handled.Add(int64(len(todo)))
	}
	k := 0
	for i, t := range tasks {
		if t.cause != nil {
			results[i] = r.deadLetter(ctx, t)
			continue
		}
		results[i] = r.handled(ctx, t, began, errorOf(err, k, len(todo)))
		k++
	}
}

func (r *processorRun) callBatch(ctx context.Context, tasks []*task) (err error) {
	defer recovered(&err)
	rs := make([]*Record, len(tasks))
	for i, t := range tasks {
		rs[i] = t.r
		t.r.attempt = uint16(min(t.attempt+1, math.MaxUint16)) //nolint:gosec // bounded
	}
	if len(r.p.Middleware) == 0 {
		return r.p.BatchHandler(ctx, rs)
	}
	ins := make([]Incoming, len(rs))
	for i, rec := range rs {
		ins[i] = rec
	}
	return batchChain(ctx, r.p.Middleware, ins, func(ctx context.Context, index []int) error {
		picked := make([]*Record, len(index))
		for i, k := range index {
			picked[i] = rs[k]
		}
		return r.p.BatchHandler(ctx, picked)
	})
}

// handled tells of a handler's result and decides what follows.
func (r *processorRun) handled(ctx context.Context, t *task, began time.Time, err error) taskResult {
	c := &r.p.counters
	if err != nil {
		c.handlerErrors.Add(1)
		if p, ok := errors.AsType[*PanicError](err); ok {
			c.panics.Add(1)
			r.observer.observe(ctx, Observation{Kind: ObservedPanic, Incoming: t.r, Count: 1, Err: p})
		}
	}
	if err != nil || r.observer.fn != nil {
		r.observer.observe(ctx, Observation{
			Kind: ObservedHandled, Incoming: t.r, Partition: t.part.id, Count: 1, Duration: since(began), Err: err,
		})
	}
	return r.decide(ctx, t, err)
}

// decide turns a handler's error into what to do with its task, which the lane
// owns.
func (r *processorRun) decide(ctx context.Context, t *task, err error) taskResult {
	if err == nil {
		return taskResult{done: true}
	}
	v, ok := VerdictOf(err)
	rejected := ok && v.Kind == VerdictReject
	if ctx.Err() != nil && !rejected { // cut off by the shutdown or the loss of the partition
		return taskResult{left: true}
	}
	if !v.Snooze {
		t.attempt++
	}
	switch {
	case rejected, !ok && r.p.Retry.MaxAttempts > 0 && t.attempt >= r.p.Retry.MaxAttempts:
		t.cause = err
		t.attempt = 0
		return r.deadLetter(ctx, t)
	case ok:
		r.p.counters.retried.Add(1)
		return taskResult{delay: v.Delay}
	}
	r.p.counters.retried.Add(1)
	return taskResult{delay: r.p.Retry.After(t.attempt, err)}
}

// deadLetter stores a rejected record; until it has, the record is not done.
func (r *processorRun) deadLetter(ctx context.Context, t *task) taskResult {
	if r.p.DeadLetter == nil {
		return taskResult{fail: &Error{
			Op: "handle", Name: t.r.Info().ID, Err: t.cause,
		}}
	}
	call := func() (err error) {
		defer recovered(&err)
		return r.p.DeadLetter(ctx, t.r, t.cause)
	}
	if err := call(); err != nil {
		r.observer.observe(ctx, Observation{
			Kind: ObservedDeadLetterError, Incoming: t.r, Partition: t.part.id, Count: 1, Err: err,
		})
		if ctx.Err() != nil {
			return taskResult{left: true}
		}
		t.attempt++
		return taskResult{delay: connectionRetry.After(t.attempt, err)}
	}
	r.p.counters.deadLettered.Add(1)
	r.observer.observe(ctx, Observation{
		Kind: ObservedDeadLettered, Incoming: t.r, Partition: t.part.id, Count: 1, Err: t.cause,
	})
	return taskResult{done: true}
}
