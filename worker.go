package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// A Handler handles one delivery. Its result is the verdict: nil acks,
// [Reject] dead-letters, [RetryAfter] and [Snooze] redeliver, another error
// redelivers by the retry policy, and so does a panic, or the end of its
// goroutine (a test's FailNow). A handler that settled its delivery itself has
// decided.
type Handler func(ctx context.Context, d *Delivery) error

// A Worker runs Handler over a Queue as http.Server runs one over a listener.
// It keeps leases alive, settles behind the handler in batches, keeps groups in
// order, recovers panics and drains. Set the fields before Run and leave them
// alone; the methods may be called from any goroutine.
//
// The handler's ctx outlives Run's: it ends when the handler returns, and
// before that with a cause: [ErrShutdown] once DrainTimeout has passed,
// [ErrLeaseLost] once another worker may hold the delivery.
type Worker struct {
	Queue   Queue
	Handler Handler // this or BatchHandler
	// BatchHandler handles up to MaxBatch deliveries at once. A *BatchError
	// with an entry for each is a verdict for each; any other result is the
	// verdict for all. Its ctx ends with ErrLeaseLost once all of them are lost.
	BatchHandler func(ctx context.Context, ds []*Delivery) error
	MaxBatch     int           // of BatchHandler; 0: 100
	MaxWait      time.Duration // for a batch to fill after its first delivery; 0: takes what is there
	// Middleware is around each delivery; the first is the outermost. A
	// BatchHandler's ctx ends with the first that they make, without its values,
	// and all of its batch are inside at once: one that holds a lock around next
	// would wait for ever.
	Middleware []Middleware

	Concurrency int             // handlers at once; 0: 8
	RateLimit   float64         // handlers started a second (deliveries in a batch count as one); 0: no limit
	Timeout     time.Duration   // of a handler's ctx, with cause context.DeadlineExceeded; 0: none
	Consumer    ConsumerOptions // prefetch and lease
	Retry       RetryPolicy
	// DrainTimeout is for what was received; 0: 30 s. Handlers still running then
	// are told so and have 5 s more, and what was not begun goes back.
	DrainTimeout time.Duration
	Logger       *slog.Logger // nil: slog.Default()
	// Observe is told what happens, also lease losses and settle errors. It is
	// called from many goroutines and must not block; a panic in it is logged.
	Observe func(context.Context, Observation)

	loop     loop
	counters workerCounters
}

const (
	defaultConcurrency  = 8
	defaultMaxBatch     = 100
	defaultDrainTimeout = 30 * time.Second
	graceTimeout        = 5 * time.Second // after the drain: for handlers that were told to stop, for settling
)

type workerCounters struct {
	running, received, handled, acked, retried, rejected, snoozed       atomic.Int64
	panics, leaseLost, settleErrors, receiveErrors, handlerErrors, held atomic.Int64
}

// WorkerStats are a Worker's numbers, summed over all its runs.
type WorkerStats struct {
	Running, Paused bool
	Handlers        int // running now
	Held            int // deliveries not settled yet, those of the handlers included
	Received        int64
	Handled         int64 // handlers that returned, once for each delivery
	HandlerErrors   int64 // of those, with an error
	Panics          int64
	Acked           int64
	Retried         int64
	Snoozed         int64
	Rejected        int64
	LeaseLost       int64
	SettleErrors    int64
	ReceiveErrors   int64
}

// Stats returns the numbers as of now.
func (w *Worker) Stats() WorkerStats {
	c := &w.counters
	running, paused := w.loop.isPaused()
	return WorkerStats{
		Running: running, Paused: paused,
		Handlers: int(c.running.Load()), Held: int(c.held.Load()),
		Received: c.received.Load(), Handled: c.handled.Load(), HandlerErrors: c.handlerErrors.Load(),
		Panics: c.panics.Load(), Acked: c.acked.Load(), Retried: c.retried.Load(), Snoozed: c.snoozed.Load(),
		Rejected: c.rejected.Load(), LeaseLost: c.leaseLost.Load(),
		SettleErrors: c.settleErrors.Load(), ReceiveErrors: c.receiveErrors.Load(),
	}
}

// Ready returns nil while the worker runs and can receive (a paused one is
// ready), otherwise the reason: for readiness probes. A failure to receive is
// over once something came, or a call has waited for something for 10 s.
func (w *Worker) Ready() error { return w.loop.ready() }

// Pause stops receiving; handlers go on. It lasts until Resume, also over runs.
func (w *Worker) Pause() { w.loop.setPaused(true) }

// Resume undoes Pause.
func (w *Worker) Resume() { w.loop.setPaused(false) }

func (w *Worker) validate() error {
	switch {
	case w.Queue == nil:
		return Invalid("Queue is nil")
	case !(w.RateLimit >= 0) || math.IsInf(w.RateLimit, 0):
		return Invalid("RateLimit %v: want 0 or more a second", w.RateLimit)
	}
	if err := validHandlers(w.Handler != nil, w.BatchHandler != nil, w.Concurrency, w.MaxBatch, w.MaxWait); err != nil {
		return err
	}
	if err := validDurations(setting{"Timeout", w.Timeout}, setting{"DrainTimeout", w.DrainTimeout}); err != nil {
		return err
	}
	if err := w.Retry.validate(); err != nil {
		return err
	}
	caps := w.Queue.Capabilities()
	if w.Retry.MaxAttempts > 0 && !caps.Reject {
		return Invalid("Retry.MaxAttempts %d without a dead-letter target: set QueueOptions.DeadLetter", w.Retry.MaxAttempts)
	}
	if n := caps.MaxAttempts; n > 0 && caps.Reject && w.Retry.MaxAttempts > n {
		return Invalid("Retry.MaxAttempts %d: the queue dead-letters after %d", w.Retry.MaxAttempts, n)
	}
	return ValidateConsumer(&w.Consumer, &caps)
}

// Run works until ctx ends, then drains and returns nil. It returns an error
// when the worker is misconfigured (before anything is received), when
// receiving fails for good, or when handlers did not end in time. Temporary
// failures to receive are tried again with back-off.
func (w *Worker) Run(ctx context.Context) error {
	name := ""
	if w.Queue != nil {
		name = w.Queue.Name()
	}
	fail := func(err error) error { return &Error{Op: "run worker", Name: name, Err: err} }
	if err := w.validate(); err != nil {
		return fail(err)
	}
	if err := w.loop.begin(); err != nil {
		return fail(err)
	}
	defer w.loop.end()
	r := newWorkerRun(ctx, w)
	opts := w.Consumer
	var err error
	for attempt := 1; ; attempt++ {
		if r.consumer, err = w.Queue.Consumer(ctx, &opts); err == nil {
			break
		}
		if ctx.Err() != nil {
			return nil
		}
		if !IsTemporary(err) {
			return fail(err)
		}
		r.receiveFailed(ctx, err)
		if !sleep(ctx, connectionRetry.After(attempt, err)) {
			return nil
		}
	}
	w.loop.setProblem(nil)
	for range r.lanes {
		r.wg.Go(r.lane)
	}
	err = r.fetch(ctx)
	w.loop.setProblem(ErrShutdown)
	if err = errors.Join(err, r.drain()); err != nil {
		return fail(err)
	}
	return nil
}

// A workerRun is one Run of a Worker.
type workerRun struct {
	w        *Worker
	consumer Consumer
	caps     QueueCapabilities
	observer observer
	chain    HandlerFunc
	lanes    int
	maxBatch int // 0: one by one
	limiter  *rate.Limiter
	// lastAttempt is the one whose failure is final, by the worker's or the
	// queue's limit; rejecting it tells the dead letter why. 0: none.
	lastAttempt int

	base    context.Context // of handlers; outlives Run's
	cancel  context.CancelCauseFunc
	settler settleQueue
	keeper  leaseKeeper

	work  chan []*job
	wg    sync.WaitGroup // lanes
	mu    sync.Mutex
	idle  int           // lanes without work; negative: work waits for lanes
	freed chan struct{} // a token when idle has grown
	took  atomic.Int64  // moving average of a handler's ns
}

func newWorkerRun(ctx context.Context, w *Worker) *workerRun {
	r := &workerRun{
		w: w, caps: w.Queue.Capabilities(),
		observer: newObserver(w.Queue.Name(), "", w.Observe, w.Logger),
		lanes:    w.Concurrency,
		freed:    make(chan struct{}, 1),
	}
	if r.lanes == 0 {
		r.lanes = defaultConcurrency
	}
	if w.BatchHandler != nil {
		if r.maxBatch = w.MaxBatch; r.maxBatch == 0 {
			r.maxBatch = defaultMaxBatch
		}
	}
	if w.RateLimit > 0 {
		r.limiter = newLimiter(w.RateLimit)
	}
	r.lastAttempt = w.Retry.MaxAttempts
	if r.lastAttempt == 0 && r.caps.Reject {
		r.lastAttempt = r.caps.MaxAttempts
	}
	r.chain = func(ctx context.Context, in Incoming) error { return w.Handler(ctx, in.(*Delivery)) }
	if len(w.Middleware) > 0 {
		r.chain = restoring(Chain(r.chain, w.Middleware...))
	}
	r.base, r.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	r.took.Store(int64(time.Second))
	r.work = make(chan []*job, r.lanes*(1+maxAhead))
	r.idle = r.lanes
	r.keeper.init(r)
	r.settler.init(r)
	return r
}

// A job is a delivery in the worker's hands, from Receive until it is settled.
type job struct {
	d     *Delivery
	tries int     // of settling
	alone running // what running points to unless it is in a batch

	// Guarded by the keeper's mutex.
	lease     time.Duration // left when it was extended last; 0: none, or it cannot be extended
	extended  time.Time     // when that was
	extending bool
	running   *running // while a handler has it
	lost      bool
	prev      *job // in the keeper's list
	next      *job
}

// running is one call of a handler.
type running struct {
	cancel context.CancelCauseFunc
	live   int // deliveries whose lease holds; guarded by the keeper's mutex
}

// fetch receives for free lanes until ctx ends or receiving fails for good.
func (r *workerRun) fetch(ctx context.Context) error {
	failures, tokens := 0, 0
	for {
		fetch := r.w.loop.fetchContext(ctx)
		if fetch == nil {
			return nil
		}
		lanes := r.takeLanes(fetch)
		if lanes == 0 {
			continue
		}
		if tokens = r.takeTokens(fetch, tokens, lanes); tokens == 0 {
			r.freeLanes(lanes)
			continue
		}
		if tokens < lanes {
			r.freeLanes(lanes - tokens)
			lanes = tokens
		}
		used, err := r.receive(fetch, lanes)
		if r.limiter != nil {
			tokens -= used
		}
		r.freeLanes(lanes - used)
		switch {
		case err == nil && used > 0:
			failures = 0
			continue
		case fetch.Err() != nil:
			continue
		case err != nil && !IsTemporary(err):
			return err
		case err != nil:
			r.receiveFailed(ctx, err)
		}
		failures++
		sleep(fetch, connectionRetry.After(failures, err))
	}
}

func (r *workerRun) receiveFailed(ctx context.Context, err error) {
	r.w.loop.setProblem(err)
	r.w.counters.receiveErrors.Add(1)
	r.observer.observe(ctx, Observation{Kind: ObservedReceiveError, Err: err})
}

const maxAhead = 16

// ahead returns how many deliveries to hold for each lane ahead of time: none,
// since another worker could begin them meanwhile, unless handlers are so
// quick that fetching for each costs more than they do.
func (r *workerRun) ahead() int {
	if r.limiter != nil {
		return 0
	}
	return int(min(int64(time.Millisecond)/max(1, r.took.Load()), maxAhead))
}

// takeLanes waits for a free lane and takes all that are free, with what may
// be held ahead, or one in batch mode. It returns 0 once ctx has ended.
func (r *workerRun) takeLanes(ctx context.Context) int {
	for {
		r.mu.Lock()
		n := r.idle
		if r.maxBatch > 0 {
			n = min(n, 1)
		} else {
			n += r.lanes * r.ahead()
		}
		n = max(n, 0)
		r.idle -= n
		r.mu.Unlock()
		if n > 0 {
			return n
		}
		select {
		case <-ctx.Done():
			return 0
		case <-r.freed:
		}
	}
}

func (r *workerRun) freeLanes(n int) {
	if n == 0 {
		return
	}
	r.mu.Lock()
	r.idle += n
	r.mu.Unlock()
	select {
	case r.freed <- struct{}{}:
	default:
	}
}

// takeTokens waits until the rate limit lets at least one handler start and
// returns how many may, at most want, those of before included; 0 once ctx has
// ended.
func (r *workerRun) takeTokens(ctx context.Context, have, want int) int {
	if r.limiter == nil {
		return want
	}
	if have == 0 {
		if r.limiter.Wait(ctx) != nil { // at once where the next turn is beyond ctx's deadline
			<-ctx.Done()
			return 0
		}
		have = 1
	}
	for have < want && r.limiter.Allow() {
		have++
	}
	return have
}

// receive hands what it receives to lanes and returns how many lanes it used.
func (r *workerRun) receive(ctx context.Context, lanes int) (int, error) {
	want := lanes
	if r.maxBatch > 0 {
		want = r.maxBatch
	}
	received := r.w.loop.receiving()
	ds, err := r.consumer.Receive(ctx, want)
	received(err == nil && len(ds) > 0)
	if len(ds) == 0 {
		return 0, err
	}
	jobs := r.take(make([]*job, 0, len(ds)), ds)
	if r.maxBatch == 0 {
		for i := range jobs {
			r.work <- jobs[i : i+1 : i+1]
		}
		return len(jobs), nil
	}
	if r.w.MaxWait > 0 && len(jobs) < want {
		jobs = r.fill(ctx, jobs, want)
	}
	r.work <- jobs
	return 1, nil
}

// fill adds to a batch until it is full or MaxWait has passed. What Receive
// has against it comes up again at the next call.
func (r *workerRun) fill(ctx context.Context, jobs []*job, want int) []*job {
	ctx, cancel := context.WithTimeout(ctx, r.w.MaxWait)
	defer cancel()
	for len(jobs) < want {
		ds, err := r.consumer.Receive(ctx, want-len(jobs))
		jobs = r.take(jobs, ds)
		if err != nil || len(ds) == 0 {
			break
		}
	}
	return jobs
}

// jobSlab is how many jobs share an allocation, and are kept by one of them.
const jobSlab = 16

func (r *workerRun) take(jobs []*job, ds []*Delivery) []*job {
	now := time.Now()
	var slab []job
	for i, d := range ds {
		if len(slab) == 0 {
			slab = make([]job, min(jobSlab, len(ds)-i))
		}
		j := &slab[0]
		slab = slab[1:]
		j.d, j.extended = d, now
		if t := d.LeaseExpires(); !t.IsZero() {
			j.lease = max(t.Sub(now), time.Millisecond)
		}
		jobs = append(jobs, j)
	}
	r.w.counters.received.Add(int64(len(ds)))
	r.keeper.add(jobs[len(jobs)-len(ds):])
	return jobs
}

// drain lets the handlers finish, settles what they decided and gives the rest
// back, all within bounds.
func (r *workerRun) drain() error {
	var errs []error
	timeout := r.w.DrainTimeout
	if timeout == 0 {
		timeout = defaultDrainTimeout
	}
	close(r.work)
	lanes := make(chan struct{})
	go func() { r.wg.Wait(); close(lanes) }()
	done := lanes
	if !waitFor(lanes, timeout) {
		r.cancel(ErrShutdown)
		done = make(chan struct{})
		go func() {
			defer close(done)
			for jobs := range r.work { // no handler begins any more
				r.handBack(jobs)
			}
			<-lanes
		}()
		waitFor(done, graceTimeout)
		if n := r.w.counters.running.Load(); n > 0 {
			errs = append(errs, fmt.Errorf("%w: %d handlers did not end within %v and %v more",
				ErrShutdown, n, timeout, graceTimeout))
		}
	}
	r.settler.close()
	if len(errs) == 0 { // lanes that waited for room to settle are free now
		waitFor(done, graceTimeout)
	}
	r.cancel(ErrShutdown)
	if err := r.consumer.Close(); err != nil && !errors.Is(err, ErrClosed) {
		errs = append(errs, err)
	}
	r.keeper.close()
	return errors.Join(errs...)
}
