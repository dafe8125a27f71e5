package broker

import (
	"context"
	"slices"
	"sync"
)

// batchChain runs each of ins through mw, in a goroutine each, and inner once
// for all that come out at the far end; index tells which, ascending. It
// returns a *BatchError or nil.
func batchChain(ctx context.Context, mw []Middleware, ins []Incoming, inner func(ctx context.Context, index []int) error) error {
	var (
		mu      sync.Mutex
		left    = len(ins) // neither arrived nor returned
		arrived []int
		ready   = make(chan struct{})
		done    = make(chan struct{})
		errs    = make([]error, len(ins)) // of inner
		results = make([]error, len(ins)) // of the chains
		wg      sync.WaitGroup
	)
	call := func(index []int) (err error) {
		defer recovered(&err)
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
		chain := restoring(Chain(func(context.Context, Incoming) error {
			if used { // a middleware that tries again does so for this one alone
				return ErrorAt(call([]int{i}), 0)
			}
			used = true
			count(true)
			<-done
			return errs[i]
		}, mw...))
		wg.Go(func() {
			defer count(false)
			defer recovered(&results[i])
			results[i] = chain(ctx, in)
		})
	}
	<-ready
	slices.Sort(arrived)
	if len(arrived) > 0 {
		err := call(arrived)
		for k, i := range arrived {
			errs[i] = ErrorAt(err, k)
		}
	}
	close(done)
	wg.Wait()
	return NewBatchError(results)
}
