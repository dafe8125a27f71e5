package memory

import (
	"context"
	"sync"

	"github.com/queuestream/broker"
)

// A waiter is one parked call. Its channel takes one token.
type waiter struct {
	token      chan struct{}
	prev, next *waiter // in a waitList
	queued     bool
	nextWoken  *waiter // between the end of the wait and its token
}

func newWaiter() *waiter { return &waiter{token: make(chan struct{}, 1)} }

// A waitList holds parked calls, the longest waiting first. The lock of what
// they wait for guards it.
type waitList struct {
	head, tail *waiter
	n          int
}

func (l *waitList) push(w *waiter) {
	w.prev, w.next, w.queued = l.tail, nil, true
	if l.tail == nil {
		l.head = w
	} else {
		l.tail.next = w
	}
	l.tail = w
	l.n++
}

func (l *waitList) pushFront(w *waiter) {
	w.prev, w.next, w.queued = nil, l.head, true
	if l.head == nil {
		l.tail = w
	} else {
		l.head.prev = w
	}
	l.head = w
	l.n++
}

func (l *waitList) remove(w *waiter) {
	if w.prev == nil {
		l.head = w.next
	} else {
		w.prev.next = w.next
	}
	if w.next == nil {
		l.tail = w.prev
	} else {
		w.next.prev = w.prev
	}
	w.prev, w.next, w.queued = nil, nil, false
	l.n--
}

func (l *waitList) pop() *waiter {
	w := l.head
	if w != nil {
		l.remove(w)
	}
	return w
}

// A gate belongs to a handle that publishes: it ends blocked calls at Close and
// lets Shutdown wait for them.
type gate struct {
	closed chan struct{} // closed by Close

	mu      sync.Mutex
	blocked int
	idle    chan struct{} // closed when blocked becomes 0, if somebody waits
}

func newGate() *gate { return &gate{closed: make(chan struct{})} }

func (g *gate) ended() bool {
	select {
	case <-g.closed:
		return true
	default:
		return false
	}
}

func (g *gate) enter() {
	g.mu.Lock()
	g.blocked++
	g.mu.Unlock()
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.blocked--; g.blocked == 0 && g.idle != nil {
		close(g.idle)
		g.idle = nil
	}
}

func (g *gate) wait(ctx context.Context) error {
	g.mu.Lock()
	if g.blocked == 0 {
		g.mu.Unlock()
		return nil
	}
	if g.idle == nil {
		g.idle = make(chan struct{})
	}
	idle := g.idle
	g.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return broker.ContextError(ctx)
	}
}
