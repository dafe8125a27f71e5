package broker

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
)

// nativeAsync bounds and counts what was handed to something that pipelines by
// itself. It counts by runs of calls, so that those who publish and those who
// answer do not meet at each.
type nativeAsync struct {
	limit, limitBytes int
	runLen            int       // calls of a run
	runs              sync.Pool // of *nativeRun

	mu      sync.Mutex
	run     *nativeRun // which new calls join; nil: a new one
	n       int        // calls of all runs under way
	bytes   int        // of them
	epochs  epochs
	closed  bool
	changed chan struct{} // closed and dropped when room is made, for those that wait for some
	line    []*int        // calls that others have passed too often: they go first, in order
}

// maxRunLen is how many calls end together at most.
const maxRunLen = 32

// A nativeRun is some calls one after the other; it ends when all are answered.
type nativeRun struct {
	a     *nativeAsync
	left  atomic.Int32 // calls that are not answered, or not taken yet
	taken int          // guarded by a.mu, as is the rest
	bytes int
	epoch *epoch
}

// An Answer is what is owed for a record of [AsyncAppending]: one call of Give.
type Answer struct {
	done func(Receipt, error)
	run  *nativeRun
}

// Give reports the outcome.
func (a Answer) Give(r Receipt, err error) {
	if a.done != nil {
		a.done(r, err)
	}
	a.run.leave()
}

func (a *nativeAsync) init(o AsyncOptions) {
	a.limit, a.limitBytes = o.MaxQueued, o.MaxBytes
	a.runLen = min(max(1, o.MaxQueued/8), maxRunLen)
	a.runs.New = func() any { return &nativeRun{a: a} }
}

// enter waits for room until ctx ends. With an error done is not called;
// otherwise the answer calls it, or leaves.
func (a *nativeAsync) enter(ctx context.Context, size int, done func(Receipt, error)) (Answer, error) {
	if ctx.Err() != nil {
		return Answer{}, ContextError(ctx)
	}
	a.mu.Lock()
	if a.closed || len(a.line) > 0 || !a.room(size) {
		a.mu.Unlock()
		if err := a.await(ctx, size); err != nil {
			return Answer{}, err
		}
	}
	r := a.join(size)
	a.mu.Unlock()
	return Answer{done, r}, nil
}

// await waits until there is room, and it is this call's turn. It returns with
// a.mu held, unless with an error.
func (a *nativeAsync) await(ctx context.Context, size int) error {
	var me *int
	for passed := 0; ; passed++ {
		err := ContextError(ctx)
		a.mu.Lock()
		if err == nil && a.closed {
			err = ErrClosed
		}
		if err == nil && !a.room(size) {
			a.seal() // what is answered of it makes room once the rest is
		}
		place := slices.Index(a.line, me)
		room := a.room(size)
		enters := err == nil && room && (len(a.line) == 0 || place == 0)
		if place >= 0 && (enters || err != nil) {
			a.line = slices.Delete(a.line, place, place+1)
			a.wake()
		}
		if err != nil {
			a.mu.Unlock()
			return err
		}
		if enters {
			return nil
		}
		if place < 0 && !room && passed >= passedOver && size > muchMore*a.bytes/a.n {
			me = new(int)
			a.line = append(a.line, me)
		}
		if a.changed == nil {
			a.changed = make(chan struct{})
		}
		changed := a.changed
		a.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}

// join counts a call in a run. a.mu is held.
func (a *nativeAsync) join(size int) *nativeRun {
	r := a.run
	if r == nil {
		r = a.runs.Get().(*nativeRun)
		r.left.Store(int32(a.runLen)) //nolint:gosec // at most maxRunLen
		r.taken, r.bytes, r.epoch = 0, 0, a.epochs.enter()
		a.run = r
	}
	r.taken++
	r.bytes += size
	a.n++
	a.bytes += size
	switch {
	case r.taken == a.runLen:
		a.run = nil
	case a.changed != nil && r.bytes > a.limitBytes/4*3:
		// Somebody waits for room, and this run would keep it from him until more
		// calls have joined it.
		a.seal()
	}
	return r
}

func (a *nativeAsync) room(size int) bool {
	return a.n == 0 || a.n < a.limit && a.bytes+size <= a.limitBytes
}

// seal lets no more calls join the run. a.mu is held.
func (a *nativeAsync) seal() {
	r := a.run
	if r == nil {
		return
	}
	a.run = nil
	if r.left.Add(int32(r.taken-a.runLen)) == 0 { //nolint:gosec // at most maxRunLen
		a.end(r)
	}
}

// end takes a run off that is sealed and answered. a.mu is held.
func (a *nativeAsync) end(r *nativeRun) {
	a.n -= r.taken
	a.bytes -= r.bytes
	a.epochs.leave(r.epoch)
	// Those that wait for room get a good deal of it at once: woken for each
	// answer, they would go back to sleep after each.
	if a.n <= a.limit/4*3 && a.bytes <= a.limitBytes/4*3 {
		a.wake()
	}
	r.epoch = nil
	a.runs.Put(r)
}

// leave ends a call: it was answered, or refused when it was handed over.
func (r *nativeRun) leave() {
	if r.left.Add(-1) == 0 {
		r.a.mu.Lock()
		r.a.end(r)
		r.a.mu.Unlock()
	}
}

func (a *nativeAsync) wake() {
	if a.changed != nil {
		close(a.changed)
		a.changed = nil
	}
}

func (a *nativeAsync) flush(ctx context.Context) error {
	a.mu.Lock()
	a.seal()
	waits := a.epochs.all()
	a.mu.Unlock()
	return waitAll(ctx, waits)
}

func (a *nativeAsync) close(ctx context.Context) error {
	a.mu.Lock()
	a.closed = true
	a.wake()
	a.mu.Unlock()
	return a.flush(ctx)
}
