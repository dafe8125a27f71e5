package broker

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

const maxLeaseTick = time.Second

// A leaseKeeper knows every delivery in the worker's hands. It extends each
// lease at a third of what there was of it, and ends the handler's ctx when a
// delivery is lost. Its timer runs only while something is in hand.
type leaseKeeper struct {
	r  *workerRun
	mu sync.Mutex
	// jobs is the head of a ring.
	jobs   job
	n      int
	tick   time.Duration // that the timer is set to, or will be
	timer  *time.Timer
	armed  bool
	closed bool
	wg     sync.WaitGroup // extensions
	ctx    context.Context
	cancel context.CancelFunc
}

func (k *leaseKeeper) init(r *workerRun) {
	k.r, k.tick = r, maxLeaseTick
	k.jobs.prev, k.jobs.next = &k.jobs, &k.jobs
	k.ctx, k.cancel = context.WithCancel(context.WithoutCancel(r.base))
}

func (k *leaseKeeper) add(jobs []*job) {
	k.mu.Lock()
	defer k.mu.Unlock()
	tick := maxLeaseTick
	for _, j := range jobs {
		j.prev, j.next = k.jobs.prev, &k.jobs
		j.prev.next, j.next.prev = j, j
		tick = min(tick, j.tick())
	}
	if tick < k.tick { // what was set for longer leases is too late for these
		k.tick, k.armed = tick, false
	}
	k.n += len(jobs)
	k.r.w.counters.held.Add(int64(len(jobs)))
	k.arm()
}

func (k *leaseKeeper) arm() {
	if k.armed || k.closed || k.n == 0 {
		return
	}
	k.armed = true
	if k.timer == nil {
		k.timer = time.AfterFunc(k.tick, k.scan)
		return
	}
	k.timer.Reset(k.tick)
}

// tick is how often a job is looked at.
func (j *job) tick() time.Duration {
	if j.lease == 0 {
		return maxLeaseTick
	}
	return min(max(j.lease/9, 5*time.Millisecond), maxLeaseTick)
}

// start notes that a handler runs for jobs and returns those that still are
// the worker's.
func (k *leaseKeeper) start(jobs []*job, run *running) []*job {
	k.mu.Lock()
	defer k.mu.Unlock()
	live := jobs[:0]
	for _, j := range jobs {
		if j.lost {
			k.remove(j)
			continue
		}
		j.running = run
		live = append(live, j)
	}
	run.live = len(live)
	return live
}

func (k *leaseKeeper) stop(jobs []*job) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, j := range jobs {
		j.running = nil
	}
}

// finish forgets j: it is settled, lost or given up.
func (k *leaseKeeper) finish(j *job) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.remove(j)
}

func (k *leaseKeeper) remove(j *job) {
	if j.next == nil {
		return
	}
	j.prev.next, j.next.prev = j.next, j.prev
	j.prev, j.next = nil, nil
	k.n--
	k.r.w.counters.held.Add(-1)
}

// lose tells that j is lost, once.
func (k *leaseKeeper) lose(j *job, err error) {
	k.mu.Lock()
	first := k.markLost(j)
	k.mu.Unlock()
	if first {
		k.report(j, err)
	}
}

func (k *leaseKeeper) markLost(j *job) bool {
	if j.lost {
		return false
	}
	j.lost = true
	if run := j.running; run != nil {
		if run.live--; run.live == 0 {
			run.cancel(ErrLeaseLost)
		}
	}
	return true
}

func (k *leaseKeeper) report(j *job, err error) {
	k.r.w.counters.leaseLost.Add(1)
	k.r.observer.observe(k.r.base, Observation{Kind: ObservedLeaseLost, Incoming: j.d, Count: 1, Err: err})
}

// scan finds what is lost and what is due for an extension.
func (k *leaseKeeper) scan() {
	now := time.Now()
	var lost, due []*job
	k.mu.Lock()
	k.armed, k.tick = false, maxLeaseTick
	if k.closed {
		k.mu.Unlock()
		return
	}
	for j := k.jobs.next; j != &k.jobs; j = j.next {
		k.tick = min(k.tick, j.tick())
		switch {
		case j.lost:
		case expired(j.d):
			if k.markLost(j) {
				lost = append(lost, j)
			}
		case j.lease > 0 && !j.extending && now.Sub(j.extended) >= j.lease/3 && !j.d.Settled():
			j.extending = true
			due = append(due, j)
		}
	}
	// What is left of a lease bounds its extension, so a short one goes apart.
	slices.SortFunc(due, func(a, b *job) int { return cmp.Compare(a.lease, b.lease) })
	for len(due) > 0 {
		n := 1
		for n < len(due) && due[n].lease/2 <= due[0].lease {
			n++
		}
		batch, shortest := due[:n:n], due[0].lease
		k.wg.Go(func() { k.extend(now, shortest, batch) })
		due = due[n:]
	}
	k.arm()
	k.mu.Unlock()
	for _, j := range lost {
		k.report(j, ErrLeaseLost)
	}
}

func (k *leaseKeeper) extend(now time.Time, shortest time.Duration, due []*job) {
	batch := make([]Outcome, len(due))
	for i, j := range due {
		batch[i] = Outcome{Delivery: j.d, Verdict: Verdict{Kind: VerdictExtend}}
	}
	ctx, cancel := context.WithTimeout(k.ctx, shortest/3)
	defer cancel()
	_ = SettleAll(ctx, batch) // each outcome carries its own error
	var lost []*job
	k.mu.Lock()
	for i, j := range due {
		j.extending = false
		switch err := batch[i].Err; {
		case err == nil:
			j.extended = now
			if t := j.d.LeaseExpires(); !t.IsZero() { // longer than what was left of it at first
				j.lease = max(t.Sub(now), time.Millisecond)
			}
		case errors.Is(err, ErrLeaseLost):
			// Unless a verdict has passed the extension, which then decides.
			if expired(j.d) && k.markLost(j) {
				lost = append(lost, j)
			}
		case errors.Is(err, ErrUnsupported):
			j.lease = 0 // it runs out; expired sees that
		}
	}
	k.mu.Unlock()
	for i, j := range due {
		switch err := batch[i].Err; {
		case err == nil, errors.Is(err, ErrLeaseLost), errors.Is(err, ErrSettled):
		default:
			k.r.observer.observe(k.r.base, Observation{Kind: ObservedExtendError, Incoming: j.d, Count: 1, Err: err})
		}
	}
	for _, j := range lost {
		k.report(j, ErrLeaseLost)
	}
}

// close stops the timer and what extends, and reports what was not settled.
func (k *leaseKeeper) close() {
	var left []*job
	k.mu.Lock()
	k.closed = true
	if k.timer != nil {
		k.timer.Stop()
	}
	for k.jobs.next != &k.jobs {
		left = append(left, k.jobs.next)
		k.remove(k.jobs.next)
	}
	k.mu.Unlock()
	for _, j := range left {
		k.r.w.counters.settleErrors.Add(1)
		k.r.observer.observe(k.r.base, Observation{
			Kind: ObservedSettleError, Incoming: j.d, Count: 1, GivenUp: true, Err: ErrShutdown,
		})
	}
	k.cancel()
	k.wg.Wait()
}
