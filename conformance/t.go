package conformance

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strconv"
	"sync"
)

// T is what the suite needs of a test; *testing.T satisfies it.
type T interface {
	Helper()
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Skipf(format string, args ...any)
	Failed() bool
	Name() string
	Context() context.Context
	Cleanup(f func())
}

// programT is the T of a program without package testing.
type programT struct {
	name   string
	ctx    context.Context // ends with the test, as testing.T's does
	cancel context.CancelFunc
	parent *programT
	out    *lockedWriter

	mu      sync.Mutex
	failed  bool
	cleanup []func()
}

type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (w *lockedWriter) printf(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, _ = fmt.Fprintf(w.w, format, args...) // a log that cannot be written must not end the run
}

func newProgramT(ctx context.Context, name string, out *lockedWriter) *programT {
	ctx, cancel := context.WithCancel(ctx)
	return &programT{name: name, ctx: ctx, cancel: cancel, out: out}
}

func (t *programT) Helper()                  {}
func (t *programT) Name() string             { return t.name }
func (t *programT) Context() context.Context { return t.ctx }

func (t *programT) Logf(format string, args ...any) {
	t.out.printf("    %s: %s\n", t.name, fmt.Sprintf(format, args...))
}

func (t *programT) Errorf(format string, args ...any) {
	t.Logf(format, args...)
	for p := t; p != nil; p = p.parent {
		p.mu.Lock()
		p.failed = true
		p.mu.Unlock()
	}
}

func (t *programT) Fatalf(format string, args ...any) {
	t.Errorf(format, args...)
	runtime.Goexit()
}

func (t *programT) Skipf(format string, args ...any) {
	t.Logf("skipped: "+format, args...)
	runtime.Goexit()
}

func (t *programT) Failed() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.failed
}

func (t *programT) Cleanup(f func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cleanup = append(t.cleanup, f)
}

// Run runs f as a part of t, as testing.T's Run does.
func (t *programT) Run(name string, f func(*programT)) bool {
	sub := newProgramT(t.ctx, t.name+"/"+name, t.out)
	sub.parent = t
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer sub.finish()
		f(sub)
	}()
	<-done
	return !sub.Failed()
}

func (t *programT) finish() {
	if p := recover(); p != nil {
		t.Errorf("panic: %v\n%s", p, stack())
	}
	t.cancel()
	t.mu.Lock()
	cleanup := slices.Clone(t.cleanup)
	t.mu.Unlock()
	for _, f := range slices.Backward(cleanup) {
		f()
	}
}

func stack() prose {
	buf := make([]byte, 64<<10)
	return prose(buf[:runtime.Stack(buf, false)])
}

func itoa(n int) string { return strconv.Itoa(n) }
