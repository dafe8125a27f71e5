package broker

import (
	"context"
	"slices"
	"sync"
	"time"
)

// BatcherOptions configure a Batcher. Send is required.
type BatcherOptions[T, R any] struct {
	// Send carries out one batch and sets a result for each item; it owns both
	// slices until it returns. Its ctx ends when Close gives up waiting, and
	// Send must then return; callers' contexts do not reach it. Up to
	// MaxInFlight calls run at once.
	Send func(ctx context.Context, items []T, results []Result[R])

	// Unsent, unless nil, returns the result of an item that Close gives up with err.
	Unsent func(item T, err error) Result[R]

	MaxItems    int            // in a batch; 0: 100
	MaxBytes    int            // in a batch, summed by Size; 0: no limit. A larger item goes alone
	Size        func(T) int    // bytes of an item; nil: 0
	MaxInFlight int            // batches; 0: 1
	MaxQueued   int            // items not sent yet, beyond which calls wait; 0: no limit
	MaxPending  int            // their bytes, beyond which calls wait; 0: no limit
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
// load. It holds no goroutine while idle, and its cost for each item does not
// depend on how many are queued.
type Batcher[T, R any] struct {
	o      BatcherOptions[T, R]
	ctx    context.Context // of Send
	cancel context.CancelFunc
	calls  sync.Pool // of Do

	mu           sync.Mutex
	ready        fifo[batchLine[T, R]] // what may be sent now
	items        int                   // that ready stands for; those given up may still count
	bytes        int                   // of them
	pending      int                   // queued and not given up, those behind their key included
	inFlight     int                   // batches
	keys         map[string]*batchKey[T, R]
	pendingBytes int               // of pending
	slab         []batchCall[T, R] // for Go
	epochs       epochs
	closed       bool
	idle         chan struct{}      // closed and dropped when nothing is in flight, if Close waits
	changed      chan struct{}      // closed and replaced when room is made, for those that wait for some
	line         []*batchCall[T, R] // the first item of each call that others have passed too often: they go first, in order
}

// A batchLine is a place in the queue: of a key with all its items, or of one
// item without a key.
type batchLine[T, R any] struct {
	key  *batchKey[T, R]
	call *batchCall[T, R]
}

// A batchKey is present while items of the key are queued or in flight.
type batchKey[T, R any] struct {
	name     string
	calls    fifo[*batchCall[T, R]]
	bytes    int // of calls
	inFlight bool
}

type batchCall[T, R any] struct {
	item   T
	size   int
	result Result[R]
	state  uint8 // guarded by mu
	key    *batchKey[T, R]
	epoch  *epoch
	done   chan struct{}               // Do: gets a token
	all    *batchAll                   // DoAll
	notify func(R, error)              // Go
	each   func(i int, r R, err error) // GoAll, with index
	index  int
}

// A batchAll is one DoAll; left is guarded by mu.
type batchAll struct {
	left int
	done chan struct{}
}

const (
	callQueued uint8 = iota
	callSent
	callDone
	callGivenUp
)

// goSlab is how many calls of Go share an allocation.
const goSlab = 16

// batcherCloseWait is how long Close waits for a cancelled Send to return.
const batcherCloseWait = 2 * time.Second

// NewBatcher returns a Batcher.
func NewBatcher[T, R any](o BatcherOptions[T, R]) *Batcher[T, R] {
	if o.MaxItems <= 0 {
		o.MaxItems = 100
	}
	if o.MaxInFlight <= 0 {
		o.MaxInFlight = 1
	}
	b := &Batcher[T, R]{o: o, keys: map[string]*batchKey[T, R]{}}
	b.calls.New = func() any { return &batchCall[T, R]{done: make(chan struct{}, 1)} }
	b.ctx, b.cancel = context.WithCancel(context.Background()) //nolint:gosec // Close cancels it
	return b
}

// Do sends one item and waits for its result. When ctx ends before the item
// was sent, nothing happened and ctx's error is returned; after that the error
// wraps ErrUnknownOutcome too.
func (b *Batcher[T, R]) Do(ctx context.Context, item T) (R, error) {
	c := b.calls.Get().(*batchCall[T, R])
	c.item, c.state = item, callQueued
	err := b.enqueue(ctx, c)
	if err == nil {
		select {
		case <-c.done:
		case <-ctx.Done():
			r, answered := b.abandon(ctx, c)
			if !answered {
				return r.Value, r.Err // whoever holds c still writes to it
			}
			<-c.done
		}
	}
	r := c.result
	if err != nil {
		r.Err = err
	}
	*c = batchCall[T, R]{done: c.done}
	b.calls.Put(c)
	return r.Value, r.Err
}

// DoAll sends many items in order and waits for all results, with Do's rules
// for each.
func (b *Batcher[T, R]) DoAll(ctx context.Context, items []T) []Result[R] {
	results := make([]Result[R], len(items))
	if len(items) == 0 {
		return results
	}
	all := &batchAll{left: len(items), done: make(chan struct{})}
	slab := make([]batchCall[T, R], len(items))
	calls := make([]*batchCall[T, R], len(items))
	for i := range items {
		slab[i] = batchCall[T, R]{item: items[i], all: all}
		calls[i] = &slab[i]
	}
	sent := 0
	for sent < len(calls) {
		n := len(calls) - sent
		if b.o.MaxQueued > 0 {
			n = min(n, max(1, b.o.MaxQueued/2))
		}
		if err := b.enqueue(ctx, calls[sent:sent+n]...); err != nil {
			for i := sent; i < len(items); i++ {
				results[i].Err = err
			}
			b.mu.Lock()
			if all.left -= len(calls) - sent; all.left == 0 {
				close(all.done)
			}
			b.mu.Unlock()
			break
		}
		sent += n
	}
	select {
	case <-all.done:
		for i := range sent {
			results[i] = slab[i].result
		}
	case <-ctx.Done():
		for i := range sent {
			results[i], _ = b.abandon(ctx, &slab[i])
		}
	}
	return results
}

// Go sends one item and calls done, unless nil, with its result, from a
// goroutine that sends: done must not block. ctx bounds only the wait for room
// in the queue; with an error Go has sent nothing and done is not called.
func (b *Batcher[T, R]) Go(ctx context.Context, item T, done func(R, error)) error {
	b.mu.Lock()
	if len(b.slab) == 0 {
		b.slab = make([]batchCall[T, R], goSlab)
	}
	c := &b.slab[0]
	b.slab = b.slab[1:]
	b.mu.Unlock()
	c.item, c.notify = item, done
	return b.enqueue(ctx, c)
}

// GoAll sends many items in order as one, so that they fill batches from the
// first on, and calls done with the index of each, with Go's rules.
func (b *Batcher[T, R]) GoAll(ctx context.Context, items []T, done func(i int, r R, err error)) error {
	slab := make([]batchCall[T, R], len(items))
	calls := make([]*batchCall[T, R], len(items))
	for i := range items {
		slab[i].item, slab[i].each, slab[i].index = items[i], done, i
		calls[i] = &slab[i]
	}
	return b.enqueue(ctx, calls...)
}

// Flush waits until everything enqueued before has its result (and its done
// was called), or until ctx ends. What is enqueued later it does not wait for.
func (b *Batcher[T, R]) Flush(ctx context.Context) error {
	b.mu.Lock()
	waits := b.epochs.all()
	b.mu.Unlock()
	return waitAll(ctx, waits)
}

// Close refuses new items, waits for the rest until ctx ends, then fails what
// was not sent with ErrClosed, cancels what is in flight and waits a moment for
// it. It may be called again.
func (b *Batcher[T, R]) Close(ctx context.Context) error {
	b.mu.Lock()
	b.closed = true
	b.wake()
	b.mu.Unlock()
	err := b.Flush(ctx)
	b.mu.Lock()
	var rest []*batchCall[T, R]
	for b.ready.len() > 0 {
		if l := b.ready.pop(); l.call != nil {
			rest = append(rest, l.call)
		}
	}
	for _, k := range b.keys {
		for k.calls.len() > 0 {
			rest = append(rest, k.calls.pop())
		}
		k.bytes = 0
	}
	b.items, b.bytes = 0, 0
	failed := rest[:0]
	for _, c := range rest {
		if c.state == callQueued {
			c.state = callSent
			failed = append(failed, c)
		}
	}
	b.pending, b.pendingBytes = 0, 0
	var idle chan struct{}
	if b.inFlight > 0 {
		if b.idle == nil {
			b.idle = make(chan struct{})
		}
		idle = b.idle
	}
	b.mu.Unlock()
	b.cancel()
	if idle != nil { // what is in flight is answered first; a Send that does not return is left behind
		waitFor(idle, batcherCloseWait)
	}
	for _, c := range failed {
		if c.result.Err = ErrClosed; b.o.Unsent != nil {
			c.result = b.o.Unsent(c.item, ErrClosed)
		}
	}
	notify(failed)
	b.mu.Lock()
	b.answered(failed)
	b.mu.Unlock()
	release(failed)
	return err
}

// enqueue takes all of calls or none.
func (b *Batcher[T, R]) enqueue(ctx context.Context, calls ...*batchCall[T, R]) error {
	size := 0
	if b.o.Size != nil {
		for _, c := range calls {
			c.size = b.o.Size(c.item)
			size += c.size
		}
	}
	for passed := 0; ; passed++ {
		err := ContextError(ctx)
		b.mu.Lock()
		if err == nil && b.closed {
			err = ErrClosed
		}
		place := slices.Index(b.line, calls[0])
		room := b.room(len(calls), size)
		enters := err == nil && room && (len(b.line) == 0 || place == 0)
		if place >= 0 && (enters || err != nil) {
			b.line = slices.Delete(b.line, place, place+1)
			b.wake()
		}
		if err != nil {
			b.mu.Unlock()
			return err
		}
		if enters {
			break
		}
		if place < 0 && !room && passed >= passedOver && (len(calls) > b.o.MaxItems || size > muchMore*b.pendingBytes/b.pending) {
			b.line = append(b.line, calls[0])
		}
		if b.changed == nil {
			b.changed = make(chan struct{})
		}
		changed := b.changed
		b.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
	defer b.mu.Unlock()
	b.pending += len(calls)
	for _, c := range calls {
		b.add(c)
	}
	b.start()
	return nil
}

// A call that needs far more room than others do is let in after those have
// taken what there was passedOver times; alike ones need no line.
const (
	passedOver = 16
	muchMore   = 4 // times the bytes of what is queued on average
)

// room tells whether n items of so many bytes may be queued. b.mu is held.
func (b *Batcher[T, R]) room(n, size int) bool {
	return b.pending == 0 || (b.o.MaxQueued <= 0 || b.pending+n <= b.o.MaxQueued) &&
		(b.o.MaxPending <= 0 || b.pendingBytes+size <= b.o.MaxPending)
}

func (b *Batcher[T, R]) add(c *batchCall[T, R]) {
	c.epoch = b.epochs.enter()
	b.pendingBytes += c.size
	name := ""
	if b.o.Key != nil {
		name = b.o.Key(c.item)
	}
	if name == "" {
		b.ready.push(batchLine[T, R]{call: c})
		b.items++
		b.bytes += c.size
		return
	}
	k := b.keys[name]
	if k == nil {
		k = &batchKey[T, R]{name: name}
		b.keys[name] = k
	}
	c.key = k
	k.calls.push(c)
	k.bytes += c.size
	switch {
	case k.inFlight:
	case k.calls.len() == 1:
		b.lineUp(k)
	case !b.o.OnePerKey:
		b.items++
		b.bytes += c.size
	}
}

// lineUp puts a key with items in the queue.
func (b *Batcher[T, R]) lineUp(k *batchKey[T, R]) {
	b.ready.push(batchLine[T, R]{key: k})
	items, bytes := b.stands(k)
	b.items += items
	b.bytes += bytes
}

// stands returns what a line of k stands for.
func (b *Batcher[T, R]) stands(k *batchKey[T, R]) (items, bytes int) {
	if b.o.OnePerKey {
		return 1, k.calls.peek().size
	}
	return k.calls.len(), k.bytes
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

// next takes a batch that is full, or anything if nothing is in flight. b.mu
// is held.
func (b *Batcher[T, R]) next() []*batchCall[T, R] {
	full := b.items >= b.o.MaxItems || b.o.MaxBytes > 0 && b.bytes >= b.o.MaxBytes
	if b.ready.len() == 0 || b.inFlight > 0 && !full {
		return nil
	}
	batch := make([]*batchCall[T, R], 0, min(b.items, b.o.MaxItems))
	size := 0
	fits := func(c *batchCall[T, R]) bool {
		return len(batch) == 0 || len(batch) < b.o.MaxItems && (b.o.MaxBytes <= 0 || size+c.size <= b.o.MaxBytes)
	}
	take := func(c *batchCall[T, R]) {
		c.state = callSent
		batch = append(batch, c)
		size += c.size
		b.pendingBytes -= c.size
	}
	for b.ready.len() > 0 && len(batch) < b.o.MaxItems {
		l := b.ready.peek()
		if c := l.call; c != nil {
			if c.state == callQueued {
				if !fits(c) {
					break
				}
				take(c)
			}
			b.ready.pop()
			b.items--
			b.bytes -= c.size
			continue
		}
		k := l.key
		b.dropGivenUp(k)
		if k.calls.len() == 0 {
			b.ready.pop()
			delete(b.keys, k.name)
			continue
		}
		if !fits(k.calls.peek()) {
			break
		}
		b.ready.pop()
		items, bytes := b.stands(k)
		b.items -= items
		b.bytes -= bytes
		k.inFlight = true
		for k.calls.len() > 0 && fits(k.calls.peek()) {
			c := k.calls.pop()
			k.bytes -= c.size
			if c.state == callQueued {
				take(c)
				if b.o.OnePerKey {
					break
				}
			}
		}
	}
	b.pending -= len(batch)
	if len(batch) == 0 {
		return nil
	}
	b.wake()
	return batch
}

// dropGivenUp drops the items given up at the head of a key's line.
func (b *Batcher[T, R]) dropGivenUp(k *batchKey[T, R]) {
	for k.calls.len() > 0 && k.calls.peek().state != callQueued {
		items, bytes := b.stands(k)
		k.bytes -= k.calls.pop().size
		b.items -= items
		b.bytes -= bytes
		if k.calls.len() > 0 {
			items, bytes = b.stands(k)
			b.items += items
			b.bytes += bytes
		}
	}
}

func (b *Batcher[T, R]) run(batch []*batchCall[T, R]) {
	for batch != nil {
		items := make([]T, len(batch))
		var zero T
		for i, c := range batch {
			items[i], c.item = c.item, zero // a slab must not keep it
		}
		results := make([]Result[R], len(batch))
		b.o.Send(b.ctx, items, results)
		for i, c := range batch {
			c.result = results[i]
		}
		notify(batch) // before the next of their keys can be sent, so that done is called in order
		b.mu.Lock()
		b.answered(batch)
		for _, c := range batch {
			if k := c.key; k != nil && k.inFlight {
				k.inFlight = false
				if k.calls.len() > 0 {
					b.lineUp(k)
				} else {
					delete(b.keys, k.name)
				}
			}
		}
		b.inFlight--
		next := b.next()
		if next != nil {
			b.inFlight++
		}
		b.start()
		if b.inFlight == 0 && b.idle != nil {
			close(b.idle)
			b.idle = nil
		}
		b.mu.Unlock()
		release(batch)
		batch = next
	}
}

func notify[T, R any](calls []*batchCall[T, R]) {
	for _, c := range calls {
		switch {
		case c.notify != nil:
			c.notify(c.result.Value, c.result.Err)
		case c.each != nil:
			c.each(c.index, c.result.Value, c.result.Err)
		}
	}
}

// answered notes that calls have their results. b.mu is held.
func (b *Batcher[T, R]) answered(calls []*batchCall[T, R]) {
	for _, c := range calls {
		c.state = callDone
		b.epochs.leave(c.epoch)
		if c.all != nil {
			if c.all.left--; c.all.left == 0 {
				close(c.all.done)
			}
		}
	}
}

// release wakes the callers of Do. Those may use their calls anew.
func release[T, R any](calls []*batchCall[T, R]) {
	for _, c := range calls {
		if c.done != nil {
			c.done <- struct{}{}
		}
	}
}

// wake lets those look again who wait for room.
func (b *Batcher[T, R]) wake() {
	if b.changed != nil {
		close(b.changed)
		b.changed = nil
	}
}

// abandon gives up waiting for c because ctx ended. It reports whether c was
// answered all the same.
func (b *Batcher[T, R]) abandon(ctx context.Context, c *batchCall[T, R]) (Result[R], bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch c.state {
	case callQueued:
		c.state = callGivenUp
		b.pending--
		b.pendingBytes -= c.size
		b.epochs.leave(c.epoch)
		b.wake()
		return Result[R]{Err: ContextError(ctx)}, false
	case callDone:
		return c.result, true
	}
	return Result[R]{Err: UnknownOutcome(ContextError(ctx))}, false
}
