package broker

import (
	"context"
	"sync"
	"time"
)

// loop is what Worker and Processor share: one run at a time, pausing and
// readiness. The zero value is ready to use.
type loop struct {
	mu      sync.Mutex
	running bool
	paused  bool
	problem error              // why nothing is received; nil while all is well
	told    int                // how often problem was set
	fetch   context.Context    // the current fetch's; replaced by each pause
	stop    context.CancelFunc // of fetch
	changed chan struct{}      // closed and replaced when paused changes
}

var errNotRunning = Invalid("not running")

// begin claims the loop for one run.
func (l *loop) begin() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.running {
		return Invalid("it is running already")
	}
	l.running, l.problem = true, errNotStarted
	return nil
}

var errNotStarted = Invalid("still starting")

func (l *loop) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.running = false
	if l.stop != nil {
		l.stop()
		l.fetch, l.stop = nil, nil
	}
}

// setProblem notes why nothing is received, or with nil that all is well.
func (l *loop) setProblem(err error) {
	l.mu.Lock()
	l.problem = err
	l.told++
	l.mu.Unlock()
}

// backAfter is how long a call has to wait for something to receive before what
// failed earlier counts as over: where nothing comes, nothing else tells.
const backAfter = 10 * time.Second

// receiving is called before a call that may wait so, and what it returns
// after, with whether that tells that all is well.
func (l *loop) receiving() (received func(well bool)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.problem == nil {
		return func(bool) {}
	}
	told := l.told
	back := time.AfterFunc(backAfter, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.told == told {
			l.problem = nil
		}
	})
	return func(well bool) {
		back.Stop()
		if well {
			l.setProblem(nil)
		}
	}
}

// ready returns nil while the loop runs and receives (or is paused on purpose).
func (l *loop) ready() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case !l.running:
		return errNotRunning
	case l.paused && l.problem != errNotStarted && l.problem != ErrShutdown: //nolint:errorlint // as they were set
		return nil
	}
	return l.problem
}

func (l *loop) setPaused(paused bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.paused == paused {
		return
	}
	l.paused = paused
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
	if paused && l.stop != nil {
		l.stop()
		l.fetch, l.stop = nil, nil
	}
}

func (l *loop) isPaused() (running, paused bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.running, l.paused
}

// fetchContext waits while the loop is paused and returns the context to fetch
// with: it ends with ctx, and with the next pause. It returns nil once ctx has
// ended.
func (l *loop) fetchContext(ctx context.Context) context.Context {
	for ctx.Err() == nil {
		l.mu.Lock()
		if !l.paused {
			if l.fetch == nil {
				l.fetch, l.stop = context.WithCancel(ctx) //nolint:fatcontext // kept over the iterations, made once a pause
			}
			c := l.fetch
			l.mu.Unlock()
			return c
		}
		if l.changed == nil {
			l.changed = make(chan struct{})
		}
		changed := l.changed
		l.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-changed:
		}
	}
	return nil
}

// sleep waits for d or until ctx ends, and reports whether d has passed.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// waitFor waits until done is closed or d has passed, and reports
// whether done was closed.
func waitFor(done <-chan struct{}, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-done:
		return true
	case <-t.C:
		select {
		case <-done:
			return true
		default:
			return false
		}
	}
}
