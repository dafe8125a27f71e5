package broker

import (
	"cmp"
	"context"
	"fmt"
	"hash/maphash"
	"sync"
	"time"
)

// A processorRun is one Run of a Processor: a scheduler of records on lanes.
type processorRun struct {
	p          *Processor
	observer   observer
	chain      HandlerFunc
	lanes      int
	maxBatch   int // 0: one by one
	maxWindow  int // of a partition
	maxBytes   int // of all windows
	receiveMax int
	interval   time.Duration // of commits
	seed       maphash.Seed
	until      bounds

	ctx    context.Context // ends the fetching
	stop   context.CancelCauseFunc
	base   context.Context // of handlers; outlives Run's
	cancel context.CancelCauseFunc

	wg         sync.WaitGroup // lanes, and what fetches
	fetched    chan error     // the end of fetching
	background sync.WaitGroup
	wake       chan struct{} // a token for the commit loop
	check      chan struct{} // a token for the until loop
	commits    chan struct{} // holds a token while a commit runs

	pausing sync.Mutex // held while the consumer is told to pause or resume; taken before mu

	mu          sync.Mutex
	cond        *sync.Cond // something is ready, or the lanes are to end
	consumer    GroupConsumer
	parts       map[int32]*partition
	handed      map[int32]bool // partitions handed over and not assigned anew: what comes of them is the next member's
	ready       fifo[*task]
	inline      *inlineRun // what the fetching goroutine handles itself
	inHand      int        // tasks ready, running, waiting or in back-off
	waiting     int        // lanes that wait
	busy        int        // lanes, and goroutines that fetched, that handle something in a window
	hurry       bool       // batches do not wait to fill: something drains
	closing     bool
	failure     error
	slow        int           // in a row, of what was handled inline
	inlineFrom  time.Time     // when to try that again
	lanesSince  time.Time     // when all was last left to lanes
	handledThen int64         // how many were by then
	inVain      int           // waits in a row for lanes to have done all
	hiccup      bool          // lanes have something of handlers that may be quick all the same
	emptied     chan struct{} // closed once nothing is in hand; nil: nobody waits for that
	due         time.Time     // of the next commit; zero: none
	idle        bool          // due was moved up since nothing is in hand
}

// A partition is one assignment and the window of its records.
type partition struct {
	id         int32
	assignment *Assignment
	ctx        context.Context
	cancel     context.CancelCauseFunc
	window     fifo[*task]      // not done, or done behind one that is not; in order of offset
	bytes      int              // of window
	tails      map[uint64]*task // the last task of each key in hand
	active     int              // tasks ready or running

	last         *Record   // the end of the done prefix, to be committed
	uncommitted  int       // records of that prefix
	since        time.Time // when the first of them was received
	committing   int       // records of the commit that is under way
	committingAt time.Time // when the first of them was received
	committed    Offset
	hasCommitted bool
	received     Offset
	lastReceived *Record
	arrivals     int64

	paused   bool // the window is full
	told     bool // the consumer has been told to pause; guarded by pausing as well
	reached  bool // Until
	draining bool
	gone     bool          // revoked, lost or drained
	quiet    chan struct{} // closed when a draining partition has nothing active
}

// A task is a record in the window.
type task struct {
	r       *Record
	part    *partition
	at      time.Time
	next    *task // of the same key
	hash    uint64
	attempt int
	size    int // of r as it came
	keyed   bool
	state   taskState
	cause   error // it was rejected with: only the dead-lettering is left to do
	timer   *time.Timer
}

type taskState uint8

const (
	taskWaiting taskState = iota // behind another of its key
	taskReady
	taskRunning
	taskBackoff
	taskDone
	taskDropped // its partition is going, and it was not begun
)

func newProcessorRun(ctx context.Context, p *Processor) *processorRun {
	r := &processorRun{
		p: p, observer: newObserver(p.Stream.Name(), p.Group, p.Observe, p.Logger),
		lanes: p.Concurrency, maxWindow: p.MaxWindow, maxBytes: cmp.Or(p.MaxWindowBytes, defaultWindowBytes), interval: p.CommitInterval,
		seed: maphash.MakeSeed(), parts: map[int32]*partition{}, handed: map[int32]bool{},
		fetched: make(chan error, 1), wake: make(chan struct{}, 1), check: make(chan struct{}, 1), commits: make(chan struct{}, 1),
	}
	if r.lanes == 0 {
		r.lanes = defaultConcurrency
	}
	if r.maxWindow == 0 {
		r.maxWindow = max(defaultMaxWindow, p.MaxBatch)
	}
	if r.interval == 0 {
		r.interval = defaultCommitInterval
	}
	if p.BatchHandler != nil {
		if r.maxBatch = p.MaxBatch; r.maxBatch == 0 {
			r.maxBatch = min(defaultMaxBatch, r.maxWindow)
		}
	}
	r.receiveMax = min(maxReceive, max(1, r.maxWindow/4))
	r.chain = func(ctx context.Context, in Incoming) error { return p.Handler(ctx, in.(*Record)) }
	if len(p.Middleware) > 0 {
		r.chain = restoring(Chain(r.chain, p.Middleware...))
	}
	r.cond = sync.NewCond(&r.mu)
	r.ctx, r.stop = context.WithCancelCause(ctx)
	r.base, r.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	return r
}

// dispatch puts records in their partitions' windows and wakes lanes, or
// handles them here. It reports whether another goroutine fetches from now on.
func (r *processorRun) dispatch(rs []*Record) (relieved bool) {
	now := time.Now()
	r.p.counters.received.Add(int64(len(rs)))
	if r.mayInline(now) {
		return r.dispatchInline(rs, now)
	}
	tasks := make([]task, len(rs))
	for i, rec := range rs {
		tasks[i] = task{r: rec, at: now}
		tasks[i].hash, tasks[i].keyed = r.orderOf(rec)
	}
	a := admission{run: r}
	r.mu.Lock()
	for i := range tasks {
		if pt := a.admit(tasks[i].r); pt != nil {
			tasks[i].part = pt
			r.inHand++
			r.push(&tasks[i])
		}
	}
	pause := r.pauseFull(now)
	r.wakeLanes()
	r.mu.Unlock()
	if pause || a.reached {
		r.tellPauses()
	}
	return false
}

// push puts a task at the end of its partition's window, and in line. r.mu is
// held.
func (r *processorRun) push(t *task) {
	t.part.add(t)
	r.line(t)
}

// wakeLanes wakes as many as there is something ready for. r.mu is held.
func (r *processorRun) wakeLanes() {
	if n := min(r.waiting, r.ready.len()); n > 1 {
		r.cond.Broadcast()
	} else if n == 1 {
		r.cond.Signal()
	}
}

// orderOf returns what a record is ordered by, if anything.
func (r *processorRun) orderOf(rec *Record) (hash uint64, keyed bool) {
	if r.p.OrderBy == nil {
		if len(rec.Key) == 0 {
			return 0, false
		}
		return maphash.Bytes(r.seed, rec.Key), true
	}
	by := r.orderBy(rec)
	return maphash.String(r.seed, by), by != ""
}

// orderBy calls OrderBy; where that panics the key orders.
func (r *processorRun) orderBy(rec *Record) (by string) {
	done := false
	defer func() {
		switch {
		case done:
		case recover() != nil:
			by = string(rec.Key)
		default: // it has ended the goroutine, without which nothing is received
			r.fetched <- fmt.Errorf("OrderBy: %w", errGoexit)
		}
	}()
	by = r.p.OrderBy(rec)
	done = true
	return by
}

// partitionOf returns the partition that rec belongs to, or nil if the
// assignment that it was read for is gone.
func (r *processorRun) partitionOf(rec *Record) *partition {
	pt := r.parts[rec.Partition]
	if rec.assignment.Ended() {
		return nil
	}
	if pt != nil && pt.assignment == rec.assignment {
		if pt.gone || pt.draining {
			return nil
		}
		return pt
	}
	if r.handed[rec.Partition] { // received before, and looked at only now
		return nil
	}
	if r.hurry && r.ctx.Err() != nil { // the whole run drains
		return nil
	}
	if pt != nil { // assigned anew, and nobody told
		r.drop(pt, ErrFenced)
	}
	pt = &partition{id: rec.Partition, assignment: rec.assignment, tails: map[uint64]*task{}}
	pt.ctx, pt.cancel = context.WithCancelCause(r.base)
	r.parts[rec.Partition] = pt
	return pt
}

// line puts a new task in line behind the last one of its key.
func (r *processorRun) line(t *task) {
	if t.keyed {
		if tail := t.part.tails[t.hash]; tail != nil {
			tail.next = t
			t.part.tails[t.hash] = t
			return
		}
		t.part.tails[t.hash] = t
	}
	r.makeReady(t)
}

func (r *processorRun) makeReady(t *task) {
	t.state = taskReady
	t.part.active++
	r.ready.push(t)
}

// begin takes a ready task, or nil if there is none.
func (r *processorRun) begin() *task {
	for r.ready.len() > 0 {
		t := r.ready.pop()
		if t.state != taskReady {
			continue
		}
		if t.part.assignment.Ended() {
			r.drop(t.part, ErrFenced)
			continue
		}
		t.state = taskRunning
		return t
	}
	return nil
}

// finish notes that a running task is done and moves the prefix.
func (r *processorRun) finish(t *task) {
	pt := t.part
	r.leave(t)
	if pt.gone {
		return
	}
	t.state = taskDone
	r.inHand--
	if t.keyed {
		switch next := t.next; {
		case next == nil:
			if pt.tails[t.hash] == t {
				delete(pt.tails, t.hash)
			}
		case next.state == taskWaiting:
			r.makeReady(next)
			r.signal()
		}
	}
	for pt.window.len() > 0 && pt.window.peek().state == taskDone {
		d := pt.take()
		pt.advance(1, d.r, d.at)
	}
	r.quietIf(pt)
	if pt.uncommitted > 0 {
		r.scheduleCommit(pt)
	}
	if pt.reached && pt.window.len() == 0 {
		r.kickUntil()
	}
}

// advance adds n records, the last of them last, to the done prefix; the first
// of them was received at the time at.
func (pt *partition) advance(n int, last *Record, at time.Time) {
	if pt.uncommitted == 0 {
		pt.since = at
	}
	pt.last = last
	pt.uncommitted += n
}

// leave counts a task as neither ready nor running any more.
func (r *processorRun) leave(t *task) { t.part.active-- }

// later runs a task again after d; it blocks its key meanwhile.
func (r *processorRun) later(t *task, d time.Duration) {
	pt := t.part
	for n := t.next; n != nil && n.state == taskRunning; n = n.next {
		n.state = taskWaiting // of the same batch: they come after it again
		r.leave(n)
	}
	r.leave(t)
	if pt.gone {
		return
	}
	t.state = taskBackoff
	if !pt.draining {
		t.timer = time.AfterFunc(d, func() { r.again(t) })
	}
	r.quietIf(pt)
}

func (r *processorRun) again(t *task) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if t.state == taskBackoff && !t.part.gone && !t.part.draining {
		r.makeReady(t)
		r.signal()
	}
}

func (r *processorRun) signal() {
	if r.waiting > 0 {
		r.cond.Signal()
	}
}

// quiesce drops what was not begun, but for what lies before something begun
// or done: without that, it would be done again by the next owner. The channel
// is closed once nothing is active.
func (r *processorRun) quiesce(parts []*partition) <-chan struct{} {
	done := make(chan struct{})
	var waits []chan struct{}
	r.takeOver()
	r.hurry = true
	for _, pt := range parts {
		if pt.gone {
			continue
		}
		pt.draining = true
		tasks := pt.window.items[pt.window.head:]
		end := len(tasks)
		for end > 0 && tasks[end-1].state != taskDone && tasks[end-1].state != taskRunning {
			t := tasks[end-1]
			if t.state == taskReady {
				r.leave(t)
			}
			r.discard(t)
			pt.bytes -= t.size
			end--
		}
		clear(tasks[end:])
		pt.window.items = pt.window.items[:pt.window.head+end]
		if pt.quiet == nil {
			pt.quiet = make(chan struct{})
		}
		waits = append(waits, pt.quiet)
		r.quietIf(pt)
	}
	r.cond.Broadcast()
	go func() {
		for _, w := range waits {
			<-w
		}
		close(done)
	}()
	return done
}

func (r *processorRun) discard(t *task) {
	if t.state == taskDone || t.state == taskDropped {
		return
	}
	if t.timer != nil {
		t.timer.Stop()
	}
	if t.state != taskRunning {
		t.state = taskDropped
	}
	r.inHand--
}

// quietIf tells those that wait for a draining partition. What is in back-off,
// and what waits behind it, is left to the next owner.
func (r *processorRun) quietIf(pt *partition) {
	if pt.quiet != nil && pt.active == 0 {
		select {
		case <-pt.quiet:
		default:
			close(pt.quiet)
		}
	}
}

// drop forgets a partition; its handlers' contexts end with cause.
func (r *processorRun) drop(pt *partition, cause error) {
	if pt.gone {
		return
	}
	r.takeOver()
	pt.gone = true
	for pt.window.len() > 0 {
		t := pt.take()
		if t.state == taskReady {
			r.leave(t)
		}
		r.discard(t)
	}
	pt.tails, pt.last, pt.uncommitted, pt.committing, pt.lastReceived = nil, nil, 0, 0, nil
	pt.cancel(cause)
	pt.active = 0 // handlers still running count no more
	r.quietIf(pt)
}

func (r *processorRun) assigned(ids []int32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, id := range ids {
		delete(r.handed, id)
	}
}

// revoked hands partitions over: it drains them and commits.
func (r *processorRun) revoked(ctx context.Context, ids []int32) {
	r.mu.Lock()
	for _, id := range ids {
		r.handed[id] = true
	}
	parts := r.held(ids)
	quiet := r.quiesce(parts)
	r.mu.Unlock()
	timeout := r.p.DrainTimeout
	if timeout == 0 {
		timeout = defaultDrainTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	select {
	case <-quiet:
	case <-ctx.Done():
	}
	if err := r.commit(ctx, parts); err != nil {
		r.commitFailed(ctx, parts, err)
	}
	r.mu.Lock()
	for _, pt := range parts {
		r.drop(pt, ErrFenced)
	}
	r.hurry = r.ctx.Err() != nil
	r.mu.Unlock()
	r.p.counters.revoked.Add(int64(len(ids)))
	for _, id := range ids {
		r.observer.observe(ctx, Observation{Kind: ObservedRevoked, Partition: id, Count: 1})
	}
}

// lost gives partitions up: nothing can be committed any more.
func (r *processorRun) lost(ids []int32) {
	r.mu.Lock()
	for _, pt := range r.held(ids) {
		r.drop(pt, ErrFenced)
	}
	r.mu.Unlock()
	r.p.counters.lost.Add(int64(len(ids)))
	for _, id := range ids {
		r.observer.observe(r.base, Observation{Kind: ObservedLost, Partition: id, Count: 1})
	}
}

func (r *processorRun) held(ids []int32) []*partition {
	var parts []*partition
	for _, id := range ids {
		if pt := r.parts[id]; pt != nil && !pt.gone {
			parts = append(parts, pt)
		}
	}
	return parts
}
