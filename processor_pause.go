package broker

import "time"

// count returns the records done or in hand beyond the commit.
func (pt *partition) count() int { return pt.window.len() + pt.uncommitted + pt.committing }

// oldest returns when the oldest of them was received; zero if there is none.
func (pt *partition) oldest() time.Time {
	switch {
	case pt.committing > 0:
		return pt.committingAt
	case pt.uncommitted > 0:
		return pt.since
	case pt.window.len() > 0:
		return pt.window.peek().at
	}
	return time.Time{}
}

// add puts a task at the end of the window.
func (pt *partition) add(t *task) {
	t.size = t.r.Size()
	pt.bytes += t.size
	pt.window.push(t)
}

// take takes the first task out of the window.
func (pt *partition) take() *task {
	t := pt.window.pop()
	pt.bytes -= t.size
	return t
}

// pauseFull marks the partitions whose window is full, and reports whether
// there are any. r.mu is held.
func (r *processorRun) pauseFull(now time.Time) (pause bool) {
	for _, pt := range r.parts {
		if !pt.gone && !pt.draining && !pt.paused && r.full(pt, now) {
			pt.paused, pause = true, true
		}
	}
	return pause
}

// full tells whether another Receive could overfill the window.
func (r *processorRun) full(pt *partition, now time.Time) bool {
	if pt.count()+r.receiveMax > r.maxWindow || pt.bytes > r.maxBytes/len(r.parts) {
		return true
	}
	return r.p.MaxAge > 0 && now.Sub(pt.oldest()) > r.p.MaxAge && pt.count() > 0
}

// tellPauses makes the consumer pause and resume as the windows ask. r.mu is
// not held while the consumer is called, so that its callbacks can run. What is
// lost meanwhile is resumed, since it would be paused when it comes back.
func (r *processorRun) tellPauses() {
	r.pausing.Lock()
	defer r.pausing.Unlock()
	var paused []*partition
	var pause, resume []int32
	r.mu.Lock()
	for _, pt := range r.parts {
		want := pt.paused || pt.reached
		if pt.gone || want == pt.told {
			continue
		}
		if pt.told = want; want {
			paused = append(paused, pt)
			pause = append(pause, pt.id)
		} else {
			resume = append(resume, pt.id)
		}
	}
	r.mu.Unlock()
	if len(pause) > 0 {
		r.consumer.Pause(pause...)
		r.mu.Lock()
		for _, pt := range paused {
			if pt.gone {
				resume = append(resume, pt.id)
			}
		}
		r.mu.Unlock()
	}
	if len(resume) > 0 {
		r.consumer.Resume(resume...)
	}
}
