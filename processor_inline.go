package broker

import (
	"sync/atomic"
	"time"
)

const (
	// inlinePatience is how long one handler may hold up what was received with
	// its record before lanes and another goroutine take over.
	inlinePatience = time.Millisecond
	// inlinePause is how long lanes do all after handlers that were not quick.
	inlinePause = 50 * time.Millisecond
	// Handlers of n records are quick within inlineBase and n times inlineEach:
	// about what it costs to hand them to lanes.
	inlineBase = 20 * time.Microsecond
	inlineEach = time.Microsecond
	// lanesEach is how long lanes may take for a record, on average, where it
	// may be quicker without them.
	lanesEach = 4 * time.Microsecond
)

// An inlineRun is records that the fetching goroutine handles itself, one after
// the other, when nothing else is in hand: handing a record to a lane costs more
// than a quick handler. They are in no window meanwhile. Whoever looks at the
// windows takes over first, and so does a timer when a handler is not quick:
// then all but the record under way go to lanes, and another goroutine fetches.
type inlineRun struct {
	at      time.Time // of receipt
	began   time.Time
	records []*Record
	spans   []inlineSpan // of records, in order
	// claimed is how many of records were begun; more than there are: all have
	// been handled, or they were taken over.
	claimed atomic.Int64

	running  *task // once taken over: the one under way then, if any; guarded by mu, as is what follows
	relieved bool  // another goroutine fetches
	ended    bool
}

// An inlineSpan is records of one partition, from the end of the span before
// to end.
type inlineSpan struct {
	part *partition
	end  int
}

// taken is beyond what claimed can be.
const taken = 1 << 62

// mayInline tells whether what was just received may be handled inline. Only
// the fetching goroutine asks, which alone puts more in hand.
func (r *processorRun) mayInline(now time.Time) bool {
	if r.p.Handler == nil || r.p.OrderBy != nil {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.empty() || now.Before(r.inlineFrom):
	case r.hiccup || r.lanesAreQuick(now):
		r.awaitEmpty()
	default:
		r.pauseInline(inlinePause)
	}
	r.hiccup = false
	return r.empty() && !now.Before(r.inlineFrom)
}

// lanesAreQuick tells whether the handlers were, since all was left to lanes.
// r.mu is held.
func (r *processorRun) lanesAreQuick(now time.Time) bool {
	n := r.p.counters.handled.Load() - r.handledThen
	return now.Sub(r.lanesSince) <= time.Duration(n)*lanesEach
}

// empty tells whether nothing is in hand; what is lost is not in hand, and may
// be under way. r.mu is held.
func (r *processorRun) empty() bool { return r.inHand == 0 && r.busy == 0 }

// awaitEmpty waits for lanes to have done what is in hand, as long as they are
// quick; otherwise all is left to them for a while, the longer the more often
// that was so. Without the wait lanes would go on with quick handlers for good,
// since something would always be in hand. r.mu is held, but not while it waits.
func (r *processorRun) awaitEmpty() {
	emptied := make(chan struct{})
	r.emptied = emptied
	for {
		before := r.inHand
		r.mu.Unlock()
		ok := waitFor(emptied, inlinePatience)
		r.mu.Lock()
		if ok {
			r.inVain = 0
			return
		}
		if time.Duration(before-r.inHand)*lanesEach < inlinePatience {
			break
		}
	}
	r.emptied = nil
	r.pauseInline(inlinePause << r.inVain)
	r.inVain = min(r.inVain+1, 5)
}

// pauseInline leaves all to lanes for d. r.mu is held.
func (r *processorRun) pauseInline(d time.Duration) {
	r.lanesSince = time.Now()
	r.inlineFrom = r.lanesSince.Add(d)
	r.handledThen = r.p.counters.handled.Load()
}

// tellEmpty ends the wait for nothing to be in hand. r.mu is held.
func (r *processorRun) tellEmpty() {
	if r.emptied != nil && r.empty() {
		close(r.emptied)
		r.emptied = nil
	}
}

// dispatchInline is dispatch where all may be handled inline; what ends a
// partition is not, since others look for that in the windows.
func (r *processorRun) dispatchInline(rs []*Record, now time.Time) (relieved bool) {
	in := &inlineRun{at: now, began: time.Now(), records: rs[:0]}
	a := admission{run: r}
	r.mu.Lock()
	for _, rec := range rs {
		pt := a.admit(rec)
		if pt == nil {
			continue
		}
		in.records = append(in.records, rec)
		if n := len(in.spans); n == 0 || in.spans[n-1].part != pt {
			in.spans = append(in.spans, inlineSpan{part: pt})
		}
		in.spans[len(in.spans)-1].end = len(in.records)
	}
	r.inHand += len(in.records)
	if a.reached || len(in.records) == 0 {
		for _, t := range in.tasks(r, 0) {
			r.push(t)
		}
		r.pauseFull(now)
		r.wakeLanes()
		r.hiccup = true
		r.mu.Unlock()
		r.tellPauses()
		return false
	}
	in.claimed.Store(1) // the first
	r.inline = in
	r.mu.Unlock()
	return r.runInline(in)
}

// tasks makes tasks of the records from index from on.
func (in *inlineRun) tasks(r *processorRun, from int) []*task {
	slab := make([]task, len(in.records)-from)
	tasks := make([]*task, len(slab))
	span := 0
	for i := range slab {
		for in.spans[span].end <= from+i {
			span++
		}
		t := &slab[i]
		t.r, t.part, t.at = in.records[from+i], in.spans[span].part, in.at
		t.hash, t.keyed = r.orderOf(t.r)
		tasks[i] = t
	}
	return tasks
}

// runInline handles the records of in until it is taken over. It reports
// whether another goroutine fetches meanwhile.
func (r *processorRun) runInline(in *inlineRun) (relieved bool) {
	patience := time.AfterFunc(inlinePatience, func() { r.relieve(in) })
	c := &r.p.counters
	c.running.Add(1)
	var (
		rec     *Record // the one under way
		pt      *partition
		began   time.Time
		ran     bool
		calling bool // its handler
		through bool // nothing has ended the goroutine
		res     = taskResult{done: true}
	)
	defer func() {
		c.running.Add(-1)
		patience.Stop()
		if relieved = r.endInline(in, ran, through, &res); !relieved && !through {
			r.wg.Go(r.fetcher)
		}
	}()
	defer func() {
		if calling {
			r.handledInline(in, pt, rec, began, errGoexit, &res)
		}
	}()
	for i, s := 0, 0; i < len(in.records); i = int(in.claimed.Add(1)) - 1 {
		for in.spans[s].end <= i {
			s++
		}
		rec, pt = in.records[i], in.spans[s].part
		if ran = !pt.assignment.Ended(); ran {
			began, calling = r.observer.now(), true
			err := r.callOne(pt.ctx, rec, 1)
			calling = false
			if err == nil && r.observer.fn == nil {
				continue
			}
			r.handledInline(in, pt, rec, began, err, &res)
		} else {
			r.mu.Lock()
			r.drop(pt, ErrFenced)
			r.mu.Unlock()
			res = taskResult{left: true}
		}
		if !res.done {
			break
		}
	}
	through = true
	return relieved
}

// endInline ends what runInline has begun: ran tells whether the last record's
// handler was called, through whether nothing has ended the goroutine.
func (r *processorRun) endInline(in *inlineRun, ran, through bool, res *taskResult) (relieved bool) {
	r.mu.Lock()
	if r.inline == in && !through {
		r.takeOver()
	}
	in.ended = true
	pause := false
	if r.inline == in {
		r.inline = nil
		r.pass(in, len(in.records))
		pause = r.pauseFull(in.at)
	} else if in.running != nil {
		if ran {
			r.p.counters.handled.Add(1)
		}
		r.conclude(in.running, res)
		r.busy--
		r.signal()
		r.tellEmpty()
	}
	if !in.relieved {
		r.judge(in)
	}
	relieved = in.relieved
	r.mu.Unlock()
	if pause {
		r.tellPauses()
	}
	return relieved
}

// judge counts what tells that handlers are not quick. r.mu is held.
func (r *processorRun) judge(in *inlineRun) {
	if time.Since(in.began) <= inlineBase+time.Duration(len(in.records))*inlineEach {
		r.slow = 0
	} else {
		r.wasSlow()
	}
}

// wasSlow leaves all to lanes for a while when handlers are not quick. Once may
// have been a pause of the garbage collector's, or the machine's. r.mu is held.
func (r *processorRun) wasSlow() {
	if r.slow++; r.slow > 1 {
		r.pauseInline(inlinePause)
	}
}

// handledInline is handled for a record that is no task yet. When it is not
// simply done lanes take over first, so that what follows, a dead letter say,
// holds up nothing.
func (r *processorRun) handledInline(in *inlineRun, pt *partition, rec *Record, began time.Time, err error, res *taskResult) {
	if err == nil {
		r.handled(pt.ctx, &task{r: rec, part: pt}, began, nil, res)
		return
	}
	r.mu.Lock()
	if r.inline == in {
		r.takeOver()
	}
	r.mu.Unlock()
	r.handled(pt.ctx, in.running, began, err, res)
}

// takeOver puts what is handled inline into the windows: those behind the one
// under way go to lanes. r.mu is held.
func (r *processorRun) takeOver() {
	in := r.inline
	if in == nil {
		return
	}
	r.inline, r.hiccup = nil, true
	done := min(int(in.claimed.Swap(taken))-1, len(in.records))
	r.pass(in, done)
	for i, t := range in.tasks(r, done) {
		if i > 0 {
			r.push(t)
			continue
		}
		in.running = t
		r.busy++
		t.state = taskRunning
		t.part.active++
		t.part.add(t)
		if t.keyed {
			t.part.tails[t.hash] = t
		}
	}
	r.wakeLanes()
}

// pass notes that the first n records of in are done. r.mu is held.
func (r *processorRun) pass(in *inlineRun, n int) {
	r.inHand -= n
	r.p.counters.handled.Add(int64(n))
	from := 0
	for _, s := range in.spans {
		if end := min(s.end, n); end > from {
			s.part.advance(end-from, in.records[end-1], in.at)
			r.scheduleCommit(s.part)
			from = end
		}
	}
}

// relieve takes over from a handler that is not quick, and has another
// goroutine fetch.
func (r *processorRun) relieve(in *inlineRun) {
	r.mu.Lock()
	if r.inline == in {
		r.takeOver()
	}
	in.relieved = !in.ended && in.running != nil
	relieved := in.relieved
	if relieved {
		r.wasSlow()
		r.hiccup = r.slow == 1
	}
	r.mu.Unlock()
	if relieved {
		r.wg.Go(r.fetcher)
	}
}
