package broker

import "context"

// epochs lets a flush wait for what was begun before it and for nothing that
// begins later. Its owner's mutex guards it; the zero value is empty.
type epochs struct {
	current *epoch
	old     []*epoch // closed to newcomers, and not empty
}

// An epoch is what was begun between two flushes.
type epoch struct {
	left int
	done chan struct{} // closed when left falls to 0 once it is old
}

func (e *epochs) enter() *epoch {
	if e.current == nil {
		e.current = &epoch{}
	}
	e.current.left++
	return e.current
}

func (e *epochs) leave(c *epoch) {
	if c.left--; c.left > 0 || c.done == nil {
		return
	}
	close(c.done)
	for i := range e.old {
		if e.old[i] == c {
			e.old = append(e.old[:i], e.old[i+1:]...)
			return
		}
	}
}

// all returns what to wait for: a channel for each epoch with something left.
func (e *epochs) all() []chan struct{} {
	if e.current != nil && e.current.left > 0 {
		e.current.done = make(chan struct{})
		e.old = append(e.old, e.current)
		e.current = nil
	}
	waits := make([]chan struct{}, len(e.old))
	for i, o := range e.old {
		waits[i] = o.done
	}
	return waits
}

// waitAll waits for all channels to be closed, or until ctx ends.
func waitAll(ctx context.Context, waits []chan struct{}) error {
	for _, w := range waits {
		select {
		case <-w:
		case <-ctx.Done():
			return ContextError(ctx)
		}
	}
	return nil
}
