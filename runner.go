package broker

import (
	"context"
	"errors"
	"sync"
)

// A Runner runs until ctx ends, drains, and returns nil. [Worker], [Processor],
// [Transformer] and the bridge are Runners.
type Runner interface {
	Run(ctx context.Context) error
}

// A RunnerFunc is a function as a Runner.
type RunnerFunc func(ctx context.Context) error

// Run calls f.
func (f RunnerFunc) Run(ctx context.Context) error { return f(ctx) }

// Run runs all runners and waits for all of them. The first that fails ends the
// ctx of the rest, which drain; its error is returned, joined with what the
// others returned after it. A Runner that ends without an error leaves the rest
// running. A panic in a Runner counts as its failure.
func Run(ctx context.Context, runners ...Runner) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		errs []error
	)
	for _, r := range runners {
		wg.Go(func() {
			if err := runOne(ctx, r); err != nil {
				mu.Lock()
				errs = append(errs, err)
				mu.Unlock()
				cancel(err)
			}
		})
	}
	wg.Wait()
	if len(errs) == 1 {
		return errs[0]
	}
	return errors.Join(errs...)
}

func runOne(ctx context.Context, r Runner) (err error) {
	defer recovered(&err)
	return r.Run(ctx)
}
