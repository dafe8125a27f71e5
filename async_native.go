package broker

import (
	"context"
	"sync"
)

// nativeAsync bounds and counts what was handed to something that pipelines by
// itself.
type nativeAsync struct {
	limit, limitBytes int
	calls             sync.Pool // of *nativeCall

	mu      sync.Mutex
	n       int // handed over and not answered
	bytes   int // of them
	epochs  epochs
	closed  bool
	changed chan struct{} // closed and dropped when room is made, for those that wait for some
}

// A nativeCall is one record or message until it is answered.
type nativeCall struct {
	a      *nativeAsync
	done   func(Receipt, error)
	size   int
	epoch  *epoch
	answer func(Receipt, error) // answered, bound once for all uses of the call
}

func (a *nativeAsync) init(o AsyncOptions) {
	a.limit, a.limitBytes = o.MaxQueued, o.MaxBytes
	a.calls.New = func() any {
		c := &nativeCall{a: a}
		c.answer = c.answered
		return c
	}
}

// enter waits for room until ctx ends. With an error done is not called;
// otherwise it is by the call's answer, which is to be called once.
func (a *nativeAsync) enter(ctx context.Context, size int, done func(Receipt, error)) (*nativeCall, error) {
	for {
		if err := ContextError(ctx); err != nil {
			return nil, err
		}
		a.mu.Lock()
		if a.closed {
			a.mu.Unlock()
			return nil, ErrClosed
		}
		if a.n == 0 || a.n < a.limit && a.bytes+size <= a.limitBytes {
			break
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
	a.n++
	a.bytes += size
	e := a.epochs.enter()
	a.mu.Unlock()
	c := a.calls.Get().(*nativeCall)
	c.done, c.size, c.epoch = done, size, e
	return c, nil
}

func (c *nativeCall) answered(r Receipt, err error) {
	if c.done != nil {
		c.done(r, err)
	}
	c.leave()
}

// leave ends a call: it was answered, or refused when it was handed over.
func (c *nativeCall) leave() {
	a := c.a
	a.mu.Lock()
	a.n--
	a.bytes -= c.size
	a.epochs.leave(c.epoch)
	// Those that wait for room get a good deal of it at once: woken for each
	// answer, they would go back to sleep after each.
	if a.n <= a.limit/4*3 && a.bytes <= a.limitBytes/4*3 {
		a.wake()
	}
	a.mu.Unlock()
	c.done, c.epoch = nil, nil
	a.calls.Put(c)
}

func (a *nativeAsync) wake() {
	if a.changed != nil {
		close(a.changed)
		a.changed = nil
	}
}

func (a *nativeAsync) flush(ctx context.Context) error {
	a.mu.Lock()
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
