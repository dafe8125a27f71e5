package broker

import (
	"context"
	"slices"
	"sync"
)

// batchChain runs each of ins through mw, in a goroutine each, and inner once
// for all that come out at the far end; index tells which, ascending. Inner's
// ctx ends with the first that the middlewares made of base. It returns a
// *BatchError or nil.
func batchChain(base context.Context, mw []Middleware, ins []Incoming, inner func(ctx context.Context, index []int) error) error {
	var (
		mu      sync.Mutex
		left    = len(ins) // neither arrived nor returned
		arrived []int
		ready   = make(chan struct{})
		done    = make(chan struct{})
		ctxs    = make([]context.Context, len(ins)) // that came out
		errs    = make([]error, len(ins))           // of inner
		results = make([]error, len(ins))           // of the chains
		wg      sync.WaitGroup
	)
	finish := sync.OnceFunc(func() { close(done); wg.Wait() })
	defer finish() // also where inner ends the goroutine
	call := func(index []int) (err error) {
		defer recovered(&err)
		ctx, cancel := context.WithCancelCause(base)
		defer cancel(nil)
		for _, i := range index {
			if c := ctxs[i]; c.Done() != base.Done() {
				defer context.AfterFunc(c, func() { cancel(context.Cause(c)) })()
			}
		}
		return inner(ctx, index)
	}
	for i, in := range ins {
		counted := false
		count := func(arrives bool) {
			mu.Lock()
			defer mu.Unlock()
			if counted {
				return
			}
			counted = true
			if arrives {
				arrived = append(arrived, i)
			}
			if left--; left == 0 {
				close(ready)
			}
		}
		used := false
		chain := restoring(Chain(func(ctx context.Context, _ Incoming) error {
			ctxs[i] = ctx //nolint:fatcontext // a list of contexts, not one inside the other
			if used {     // a middleware that tries again does so for this one alone
				return errorOf(call([]int{i}), 0, 1)
			}
			used = true
			count(true)
			<-done
			return errs[i]
		}, mw...))
		wg.Go(func() {
			defer count(false)
			defer recovered(&results[i])
			results[i] = errGoexit
			results[i] = chain(base, in)
		})
	}
	<-ready
	slices.Sort(arrived)
	if len(arrived) > 0 {
		for _, i := range arrived {
			errs[i] = errGoexit
		}
		err := call(arrived)
		for k, i := range arrived {
			errs[i] = errorOf(err, k, len(arrived))
		}
	}
	finish()
	return NewBatchError(results)
}
