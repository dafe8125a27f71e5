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
	through := false
	r.mu.Lock()
	defer func() {
		r.mu.Unlock()
		if !through { // a handler has ended the goroutine; another goes on
			r.wg.Go(r.lane)
		}
	}()
	for {
		var t *task
		if r.busy < r.lanes {
			t = r.begin()
		}
		if t == nil {
			if r.closing {
				through = true
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
		r.handle(tasks, results)
		clear(tasks)
	}
}

// handle handles tasks and concludes them, also where a handler ends the
// goroutine: what is not decided on by then comes again. r.mu is held, but not
// while it handles.
func (r *processorRun) handle(tasks []*task, results []taskResult) {
	clear(results)
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		for i, t := range tasks {
			r.conclude(t, &results[i])
		}
		r.busy--
		r.tellEmpty()
	}()
	if r.maxBatch > 0 {
		r.handleBatch(tasks, results)
	} else {
		r.handleOne(tasks[0], &results[0])
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
func (r *processorRun) handleOne(t *task, res *taskResult) {
	ctx := t.part.ctx
	if t.cause != nil {
		r.deadLetter(ctx, t, res)
		return
	}
	c := &r.p.counters
	c.running.Add(1)
	began, err := r.observer.now(), errGoexit
	defer func() {
		c.running.Add(-1)
		c.handled.Add(1)
		r.handled(ctx, t, began, err, res)
	}()
	err = r.callOne(ctx, t.r, t.attempt+1)
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
	if len(todo) == 0 {
		r.handledBatch(ctx, tasks, results, 0, time.Time{}, nil)
		return
	}
	c := &r.p.counters
	c.running.Add(1)
	began, err := r.observer.now(), errGoexit
	defer func() {
		c.running.Add(-1)
		c.handled.Add(int64(len(todo)))
		r.handledBatch(ctx, tasks, results, len(todo), began, err)
	}()
	err = r.callBatch(ctx, todo)
}

// A line is what is handled in order: a key, or a result of OrderBy, of a partition.
type line struct {
	part *partition
	hash uint64
}

// handledBatch is handled for a batch, n of which the handler was given, and
// dead-letters the rest. What it says of one behind another of its line that is
// not done has no effect: that one comes again, after the other.
func (r *processorRun) handledBatch(ctx context.Context, tasks []*task, results []taskResult, n int, began time.Time, err error) {
	var open map[line]bool
	k := 0
	for i, t := range tasks {
		res, l := &results[i], line{t.part, t.hash}
		behind := t.keyed && open[l]
		switch {
		case t.cause != nil: // which is the first of its line
			r.deadLetter(ctx, t, res)
		case behind:
			r.tell(ctx, t, began, errorOf(err, k, n), false)
			k++
		default:
			r.handled(ctx, t, began, errorOf(err, k, n), res)
			k++
		}
		if t.keyed && !behind && !res.done {
			if open == nil {
				open = map[line]bool{}
			}
			open[l] = true
		}
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

// handled tells of a handler's result and carries out what follows.
func (r *processorRun) handled(ctx context.Context, t *task, began time.Time, err error, res *taskResult) {
	var final bool
	*res, final = r.decide(ctx, t, err)
	r.tell(ctx, t, began, err, final && r.p.DeadLetter != nil)
	if final {
		t.cause, t.attempt = err, 0
		r.deadLetter(ctx, t, res)
	}
}

// tell tells of a handler's result. logged: another line says it.
func (r *processorRun) tell(ctx context.Context, t *task, began time.Time, err error, logged bool) {
	if err == nil && r.observer.fn == nil {
		return
	}
	if err != nil {
		c := &r.p.counters
		c.handlerErrors.Add(1)
		if p, ok := errors.AsType[*PanicError](err); ok {
			c.panics.Add(1)
			r.observer.observe(ctx, Observation{Kind: ObservedPanic, Incoming: t.r, Count: 1, Err: p})
			logged = true
		}
	}
	o := Observation{
		Kind: ObservedHandled, Incoming: t.r, Partition: t.part.id, Count: 1, Duration: since(began), Err: err,
	}
	if logged {
		r.observer.tell(ctx, o)
	} else {
		r.observer.observe(ctx, o)
	}
}

// decide turns a handler's error into what to do with its task, which the lane
// owns. final: dead-letter it.
func (r *processorRun) decide(ctx context.Context, t *task, err error) (res taskResult, final bool) {
	if err == nil {
		return taskResult{done: true}, false
	}
	v, ok := VerdictOf(err)
	rejected := ok && v.Kind == VerdictReject
	if ctx.Err() != nil && !rejected { // cut off by the shutdown or the loss of the partition
		return taskResult{left: true}, false
	}
	if !v.Snooze {
		t.attempt++
	}
	switch {
	case rejected, !ok && r.p.Retry.MaxAttempts > 0 && t.attempt >= r.p.Retry.MaxAttempts:
		return taskResult{}, true
	case !ok:
		v.Delay = r.observer.retryAfter(ctx, &r.p.Retry, t.r, t.attempt, err)
	}
	r.p.counters.retried.Add(1)
	return taskResult{delay: v.Delay}, false
}

// deadLetter stores a rejected record; until it has, the record is not done.
func (r *processorRun) deadLetter(ctx context.Context, t *task, res *taskResult) {
	if r.p.DeadLetter == nil {
		*res = taskResult{fail: &Error{
			Op: "handle", Name: t.r.Info().ID, Err: t.cause,
		}}
		return
	}
	err := errGoexit
	defer func() { *res = r.deadLettered(ctx, t, err) }()
	err = r.callDeadLetter(ctx, t)
}

func (r *processorRun) callDeadLetter(ctx context.Context, t *task) (err error) {
	defer recovered(&err)
	return r.p.DeadLetter(ctx, t.r, t.cause)
}

// deadLettered tells of a DeadLetterFunc's result and decides what follows.
func (r *processorRun) deadLettered(ctx context.Context, t *task, err error) taskResult {
	if err != nil {
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
