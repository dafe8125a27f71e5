package broker

import (
	"context"
	"errors"
	"time"
)

// lane handles one piece of work after the other.
func (r *workerRun) lane() {
	through := false
	defer func() {
		if !through { // a handler has ended the goroutine; another goes on
			r.freeLanes(1)
			r.wg.Go(r.lane)
		}
	}()
	for jobs := range r.work {
		r.handle(jobs)
		clear(jobs) // a slice of all that were received together: a slow one keeps no other
		r.freeLanes(1)
	}
	through = true
}

// handBack returns at once what was received and not begun before the drain
// was over, for others.
func (r *workerRun) handBack(jobs []*job) {
	for _, j := range jobs {
		r.settler.put(j, Verdict{Kind: VerdictNack, Snooze: r.caps.Snooze})
	}
}

func (r *workerRun) handle(jobs []*job) {
	if r.base.Err() != nil {
		r.handBack(jobs)
		return
	}
	ctx, cancel := context.WithCancelCause(r.base)
	defer cancel(nil)
	if r.w.Timeout > 0 {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeout(ctx, r.w.Timeout)
		defer stop()
	}
	run := &jobs[0].alone
	run.cancel = cancel
	if jobs = r.keeper.start(jobs, run); len(jobs) == 0 {
		return
	}
	r.w.counters.running.Add(1)
	began, err := time.Now(), errGoexit
	defer func() { r.handled(ctx, jobs, time.Since(began), err) }()
	err = r.call(ctx, jobs)
}

// handled has carried out what follows from a handler's error.
func (r *workerRun) handled(ctx context.Context, jobs []*job, took time.Duration, err error) {
	c := &r.w.counters
	average := r.took.Load()
	r.took.Store(average + (int64(took)-average)/8) // a race loses one sample
	c.running.Add(-1)
	r.keeper.stop(jobs)
	var waited time.Duration
	for i, j := range jobs {
		verdictErr := err
		if r.maxBatch > 0 {
			verdictErr = errorOf(err, i, len(jobs))
		}
		c.handled.Add(1)
		if verdictErr != nil {
			c.handlerErrors.Add(1)
		}
		handled := Observation{Kind: ObservedHandled, Incoming: j.d, Count: 1, Duration: took, Err: verdictErr}
		if p, ok := errors.AsType[*PanicError](verdictErr); ok {
			c.panics.Add(1)
			r.observer.observe(ctx, Observation{Kind: ObservedPanic, Incoming: j.d, Count: 1, Err: p})
			r.observer.tell(ctx, handled) // the log has it
		} else {
			r.observer.observe(ctx, handled)
		}
		r.decide(ctx, j, verdictErr, &waited)
	}
}

// call runs the handler and turns a panic into an error.
func (r *workerRun) call(ctx context.Context, jobs []*job) (err error) {
	defer recovered(&err)
	if r.maxBatch == 0 {
		return r.chain(ctx, jobs[0].d)
	}
	ds := make([]*Delivery, len(jobs))
	for i, j := range jobs {
		ds[i] = j.d
	}
	if len(r.w.Middleware) == 0 {
		return r.w.BatchHandler(ctx, ds)
	}
	ins := make([]Incoming, len(ds))
	for i, d := range ds {
		ins[i] = d
	}
	return batchChain(ctx, r.w.Middleware, ins, func(ctx context.Context, index []int) error {
		picked := make([]*Delivery, len(index))
		for i, k := range index {
			picked[i] = ds[k]
		}
		return r.w.BatchHandler(ctx, picked)
	})
}

// decide turns a handler's error into a verdict and has it carried out. waited
// tells how long the lane has waited before it gave something of its batch back.
func (r *workerRun) decide(ctx context.Context, j *job, err error, waited *time.Duration) {
	if j.d.Settled() { // by the handler, or the lease is lost
		r.keeper.finish(j)
		return
	}
	v, ok := VerdictOf(err)
	switch {
	case err != nil && errors.Is(context.Cause(ctx), ErrShutdown) && (!ok || v.Kind != VerdictReject):
		r.handBack([]*job{j}) // cut off by the shutdown: at once, elsewhere
		return
	case !ok && r.lastAttempt > 0 && j.d.Attempt >= r.lastAttempt:
		v = Verdict{Kind: VerdictReject, Reason: err.Error()}
	case !ok:
		v = Verdict{Kind: VerdictNack, Delay: r.observer.retryAfter(ctx, &r.w.Retry, j.d, j.d.Attempt, err)}
	}
	r.settler.put(j, r.possible(ctx, j, v, err, waited))
}

// possible returns v, or what comes closest to it where the queue cannot do it.
func (r *workerRun) possible(ctx context.Context, j *job, v Verdict, err error, waited *time.Duration) Verdict {
	asked := v
	if v.Kind == VerdictReject && !r.caps.Reject {
		v = Verdict{Kind: VerdictNack, Delay: r.observer.retryAfter(ctx, &r.w.Retry, j.d, j.d.Attempt, err)}
	}
	if v.Kind == VerdictNack {
		if v.Snooze && !r.caps.Snooze {
			v.Snooze = false
		}
		if v.Delay > 0 && !r.caps.NackDelay {
			// No delay to be had: the lane waits a little, so that a failing
			// message does not spin.
			if d := min(v.Delay, time.Second); d > *waited {
				sleep(ctx, d-*waited)
				*waited = d
			}
			v.Delay = 0
		} else if longest := r.caps.MaxNackDelay; longest > 0 && v.Delay > longest {
			v.Delay = longest
		}
	}
	if v != asked {
		r.observer.observe(ctx, Observation{
			Kind: ObservedUnsupported, Incoming: j.d, Verdict: asked, Count: 1, Err: ValidateVerdict(&asked, &r.caps),
		})
	}
	return v
}
