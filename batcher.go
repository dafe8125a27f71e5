package broker

import (
	"context"
	"sync"
	"sync/atomic"
)

// BatcherOptions configure a Batcher. Send is required.
type BatcherOptions[T, R any] struct {
	// Send carries out one batch and sets a result for each item. Its ctx ends
	// when Close gives up waiting; callers' contexts do not reach it. Up to
	// MaxInFlight calls run at once.
	Send func(ctx context.Context, items []T, results []Result[R])

	MaxItems    int            // in a batch; 0: 100
	MaxBytes    int            // in a batch, summed by Size; 0: no limit. A larger item goes alone
	Size        func(T) int    // bytes of an item; nil: 0
	MaxInFlight int            // batches; 0: 1
	MaxQueued   int            // items not sent yet, beyond which calls wait; 0: no limit
	Key         func(T) string // nil or "": no order. Items of one key are in flight in one batch at a time, in order
	OnePerKey   bool           // and at most one of them in a batch
}

// A Result is what became of one item.
type Result[R any] struct {
	Value R
	Err   error
}

// A Batcher gathers concurrent calls into batches. A batch leaves when it is
// full, or when nothing is in flight, so that batching adds no latency at low
// load. It holds no goroutine while idle.
type Batcher[T, R any] struct {
	o      BatcherOptions[T, R]
	ctx    context.Context
	cancel context.CancelFunc

	mu       sync.Mutex
	queue    []*batchCall[T, R] // may be sent now
	bytes    int                // of queue
	pending  int                // queued, with those waiting for their key
	inFlight int                // batches
	keys     map[string]*batchKey[T, R]
	closed   bool
	changed  chan struct{} // closed and replaced when a batch ends
}

type batchKey[T, R any] struct{ waiting []*batchCall[T, R] } // present while in flight

type batchCall[T, R any] struct {
	item     T
	key      string
	size     int
	result   Result[R]
	state    uint8 // guarded by mu
	finished func(*batchCall[T, R])
}

const (
	callQueued uint8 = iota
	callSent
	callDone
	callCancelled
)

// NewBatcher returns a Batcher.
func NewBatcher[T, R any](o BatcherOptions[T, R]) *Batcher[T, R] {
	if o.MaxItems <= 0 {
		o.MaxItems = 100
	}
	if o.MaxInFlight <= 0 {
		o.MaxInFlight = 1
	}
	b := &Batcher[T, R]{o: o, keys: map[string]*batchKey[T, R]{}, changed: make(chan struct{})}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	return b
}

// Do sends one item and waits for its result. When ctx ends before the item
// was sent, nothing happened and ctx's error is returned; after that the error
// wraps ErrUnknownOutcome too.
func (b *Batcher[T, R]) Do(ctx context.Context, item T) (R, error) {
	done := make(chan struct{})
	c := &batchCall[T, R]{item: item, finished: func(*batchCall[T, R]) { close(done) }}
	if err := b.enqueue(ctx, c); err != nil {
		var zero R
		return zero, err
	}
	select {
	case <-done:
		return c.result.Value, c.result.Err
	case <-ctx.Done():
	}
	r := b.abandon(ctx, c)
	return r.Value, r.Err
}

// DoAll sends many items in order and waits for all results, with Do's rules
// for each.
func (b *Batcher[T, R]) DoAll(ctx context.Context, items []T) []Result[R] {
	var left atomic.Int64
	left.Store(int64(len(items)))
	done := make(chan struct{})
	finish := func(n int) {
		if left.Add(-int64(n)) == 0 {
			close(done)
		}
	}
	calls := make([]*batchCall[T, R], len(items))
	slab := make([]batchCall[T, R], len(items))
	for i := range items {
		calls[i] = &slab[i]
		slab[i] = batchCall[T, R]{item: items[i], finished: func(*batchCall[T, R]) { finish(1) }}
	}
	results := make([]Result[R], len(items))
	sent := len(calls)
	for len(calls) > 0 {
		n := len(calls)
		if b.o.MaxQueued > 0 {
			n = min(n, max(1, b.o.MaxQueued/2))
		}
		if err := b.enqueue(ctx, calls[:n]...); err != nil {
			sent -= len(calls)
			for i := sent; i < len(items); i++ {
				results[i].Err = err
			}
			finish(len(calls))
			break
		}
		calls = calls[n:]
	}
	if len(items) == 0 {
		return results
	}
	select {
	case <-done:
		for i := range sent {
			results[i] = slab[i].result
		}
	case <-ctx.Done():
		for i := range sent {
			results[i] = b.abandon(ctx, &slab[i])
		}
	}
	return results
}

// Go sends one item and calls done with its result, from a goroutine that
// sends: done must not block. ctx bounds only the wait for room in the queue;
// with an error Go has sent nothing and done is not called.
func (b *Batcher[T, R]) Go(ctx context.Context, item T, done func(R, error)) error {
	return b.enqueue(ctx, &batchCall[T, R]{item: item, finished: func(c *batchCall[T, R]) {
		done(c.result.Value, c.result.Err)
	}})
}

// Flush waits until everything enqueued before has its result, or until ctx ends.
func (b *Batcher[T, R]) Flush(ctx context.Context) error {
	for {
		b.mu.Lock()
		idle, changed := b.pending == 0 && b.inFlight == 0, b.changed
		b.mu.Unlock()
		if idle {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ContextError(ctx)
		}
	}
}

// Close refuses new items, waits for the rest until ctx ends, then fails what
// was not sent with ErrClosed and cancels what is in flight. It may be called
// again.
func (b *Batcher[T, R]) Close(ctx context.Context) error {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	err := b.Flush(ctx)
	b.mu.Lock()
	rest := b.queue
	for _, k := range b.keys {
		rest = append(rest, k.waiting...)
		k.waiting = nil
	}
	b.queue, b.bytes, b.pending = nil, 0, 0
	rest = claim(rest)
	b.mu.Unlock()
	b.cancel()
	for _, c := range rest {
		c.result.Err = ErrClosed
		c.finished(c)
	}
	return err
}

func (b *Batcher[T, R]) enqueue(ctx context.Context, calls ...*batchCall[T, R]) error {
	for {
		if err := ContextError(ctx); err != nil {
			return err
		}
		b.mu.Lock()
		if b.closed {
			b.mu.Unlock()
			return ErrClosed
		}
		if b.o.MaxQueued <= 0 || b.pending == 0 || b.pending+len(calls) <= b.o.MaxQueued {
			break
		}
		changed := b.changed
		b.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
	defer b.mu.Unlock()
	for _, c := range calls {
		if b.o.Size != nil {
			c.size = b.o.Size(c.item)
		}
		if b.o.Key != nil {
			c.key = b.o.Key(c.item)
		}
		b.pending++
		b.queue = append(b.queue, c)
		b.bytes += c.size
	}
	b.start()
	return nil
}

// start begins as many batches as may leave now. b.mu is held.
func (b *Batcher[T, R]) start() {
	for b.inFlight < b.o.MaxInFlight {
		batch := b.next()
		if batch == nil {
			return
		}
		b.inFlight++
		go b.run(batch)
	}
}

// next takes a batch that is full, or anything if nothing is in flight. b.mu is held.
func (b *Batcher[T, R]) next() []*batchCall[T, R] {
	if len(b.queue) == 0 || b.inFlight > 0 && !b.full(len(b.queue), b.bytes) {
		return nil
	}
	var batch []*batchCall[T, R]
	var mine map[string]bool
	size, i := 0, 0
	for ; i < len(b.queue) && len(batch) < b.o.MaxItems; i++ {
		c := b.queue[i]
		if c.state == callCancelled {
			b.bytes -= c.size
			continue
		}
		if k := b.keys[c.key]; k != nil && (!mine[c.key] || b.o.OnePerKey) {
			k.waiting = append(k.waiting, c)
			b.bytes -= c.size
			continue
		}
		if b.o.MaxBytes > 0 && len(batch) > 0 && size+c.size > b.o.MaxBytes {
			break
		}
		if c.key != "" && !mine[c.key] {
			b.keys[c.key] = &batchKey[T, R]{}
			if mine == nil {
				mine = map[string]bool{}
			}
			mine[c.key] = true
		}
		batch = append(batch, c)
		size += c.size
		b.bytes -= c.size
	}
	overflow := i < len(b.queue)
	rest := b.queue[i:]
	if len(batch) > 0 && b.inFlight > 0 && !overflow && !b.full(len(batch), size) {
		// Not full after all: those that wait for their key do not count.
		for key := range mine {
			rest = append(rest, b.keys[key].waiting...)
			delete(b.keys, key)
		}
		b.queue = append(batch, rest...)
		b.bytes = 0
		for _, c := range b.queue {
			b.bytes += c.size
		}
		return nil
	}
	clear(b.queue[:i])
	if b.queue = rest; len(rest) == 0 {
		b.queue = nil
	}
	for _, c := range batch {
		c.state = callSent
	}
	b.pending -= len(batch)
	return batch
}

func (b *Batcher[T, R]) full(items, bytes int) bool {
	return items >= b.o.MaxItems || b.o.MaxBytes > 0 && bytes >= b.o.MaxBytes
}

func (b *Batcher[T, R]) run(batch []*batchCall[T, R]) {
	for batch != nil {
		items := make([]T, len(batch))
		for i, c := range batch {
			items[i] = c.item
		}
		results := make([]Result[R], len(batch))
		b.o.Send(b.ctx, items, results)
		b.mu.Lock()
		for i, c := range batch {
			c.result, c.state = results[i], callDone
		}
		b.mu.Unlock()
		for _, c := range batch {
			c.finished(c)
		}
		b.mu.Lock()
		for _, c := range batch {
			if k := b.keys[c.key]; k != nil && c.key != "" {
				delete(b.keys, c.key)
				for _, w := range k.waiting {
					b.bytes += w.size
				}
				b.queue = append(k.waiting, b.queue...)
			}
		}
		b.inFlight--
		close(b.changed)
		b.changed = make(chan struct{})
		if batch = b.next(); batch != nil {
			b.inFlight++
		}
		b.start()
		b.mu.Unlock()
	}
}

// abandon gives up waiting for c because ctx ended.
func (b *Batcher[T, R]) abandon(ctx context.Context, c *batchCall[T, R]) Result[R] {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch c.state {
	case callQueued:
		c.state = callCancelled
		b.pending--
		return Result[R]{Err: ContextError(ctx)}
	case callDone:
		return c.result
	}
	return Result[R]{Err: UnknownOutcome(ContextError(ctx))}
}

// claim takes the calls that nobody has given up.
func claim[T, R any](calls []*batchCall[T, R]) []*batchCall[T, R] {
	var out []*batchCall[T, R]
	for _, c := range calls {
		if c.state == callQueued {
			c.state = callSent
			out = append(out, c)
		}
	}
	return out
}
