package broker

import (
	"context"
	"errors"
	"time"
)

// scheduleCommit sees to it that what is done is committed: at once when the
// window is half full or its partition paused, soon when nothing is in hand,
// otherwise within the interval. r.mu is held.
func (r *processorRun) scheduleCommit(pt *partition) {
	now := 2*pt.uncommitted >= r.maxWindow || pt.paused
	switch {
	case now && (r.due.IsZero() || !r.due.Equal(dueNow)):
		r.due = dueNow
	case r.due.IsZero():
		r.due = time.Now().Add(r.interval)
		if r.inHand == 0 {
			r.moveUp()
		}
	case r.inHand == 0 && !r.idle && !r.due.Equal(dueNow):
		r.moveUp()
	default:
		return
	}
	r.kickCommit()
}

func (r *processorRun) kickCommit() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

var dueNow = time.Unix(0, 1)

func (r *processorRun) moveUp() {
	r.idle = true
	if soon := time.Now().Add(min(idleCommitDelay, r.interval)); soon.Before(r.due) {
		r.due = soon
	}
}

// commitLoop commits when it is due, one commit at a time.
func (r *processorRun) commitLoop() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	failures := 0
	for {
		r.mu.Lock()
		due := r.due
		r.mu.Unlock()
		switch {
		case due.IsZero():
			timer.Stop()
		default:
			timer.Reset(time.Until(due))
		}
		select {
		case <-r.ctx.Done():
			return // drain commits
		case <-r.wake:
			continue
		case <-timer.C:
		}
		r.mu.Lock()
		r.due, r.idle = time.Time{}, false
		parts := make([]*partition, 0, len(r.parts))
		for _, pt := range r.parts {
			if pt.last != nil && !pt.gone && !pt.draining {
				parts = append(parts, pt)
			}
		}
		r.mu.Unlock()
		err := r.commit(r.ctx, parts)
		if err == nil || r.ctx.Err() != nil {
			failures = 0
			continue
		}
		r.commitFailed(r.ctx, parts, err)
		if !IsTemporary(err) && !errors.Is(err, ErrUnknownOutcome) {
			r.fail(err)
			return
		}
		failures++
		wait := connectionRetry.After(failures, err)
		if !sleep(r.ctx, wait) {
			return
		}
		r.mu.Lock()
		r.due = dueNow
		r.mu.Unlock()
		r.kickCommit()
	}
}

func (r *processorRun) commitFailed(ctx context.Context, parts []*partition, err error) {
	r.p.counters.commitErrors.Add(1)
	r.observer.observe(ctx, Observation{Kind: ObservedCommitError, Count: len(parts), Err: err})
}

// commit stores the done prefix of each partition. A partition that is fenced
// is dropped, which is no error. One commit runs at a time: a hand-over waits
// for the one under way, which would come too late behind it.
func (r *processorRun) commit(ctx context.Context, parts []*partition) error {
	select {
	case r.commits <- struct{}{}:
		defer func() { <-r.commits }()
	case <-ctx.Done():
		return ContextError(ctx)
	}
	type claim struct {
		pt    *partition
		rec   *Record
		count int
	}
	var claims []claim
	var recs []*Record
	r.mu.Lock()
	for _, pt := range parts {
		if pt.last == nil || pt.gone || pt.assignment.Ended() {
			continue
		}
		if pt.committing == 0 {
			pt.committingAt = pt.since
		}
		claims = append(claims, claim{pt, pt.last, pt.uncommitted})
		recs = append(recs, pt.last)
		pt.committing += pt.uncommitted
		pt.last, pt.uncommitted = nil, 0
	}
	consumer := r.consumer
	r.mu.Unlock()
	if len(claims) == 0 {
		return nil
	}
	err := consumer.Commit(ctx, recs...)
	errs := make([]error, len(claims))
	for i := range claims {
		errs[i] = ErrorAt(err, i)
	}
	if len(claims) > 1 && errors.Is(err, ErrFenced) { // find out which
		for i := range claims {
			errs[i] = consumer.Commit(ctx, recs[i])
		}
	}
	var fenced []int32
	resume := false
	var failed []error
	now := time.Now()
	r.mu.Lock()
	for i, cl := range claims {
		pt := cl.pt
		if pt.gone {
			continue
		}
		pt.committing = max(0, pt.committing-cl.count)
		switch {
		case errs[i] == nil:
			r.p.counters.committed.Add(int64(cl.count))
			if !pt.hasCommitted || pt.committed.Compare(cl.rec.offset) < 0 {
				pt.committed, pt.hasCommitted = cl.rec.offset, true
			}
		case errors.Is(errs[i], ErrFenced):
			r.drop(pt, ErrFenced)
			fenced = append(fenced, pt.id)
			continue
		default: // it counts as done and not committed again
			if pt.uncommitted == 0 || pt.committingAt.Before(pt.since) {
				pt.since = pt.committingAt
			}
			if pt.last == nil {
				pt.last = cl.rec
			}
			pt.uncommitted += cl.count
			failed = append(failed, errs[i])
			continue
		}
		if pt.paused && !pt.draining && !r.full(pt, now) {
			pt.paused, resume = false, true
		}
	}
	r.mu.Unlock()
	if resume {
		r.tellPauses()
	}
	if r.observer.fn != nil {
		for i, cl := range claims {
			if errs[i] == nil {
				r.observer.observe(ctx, Observation{Kind: ObservedCommitted, Partition: cl.pt.id, Count: cl.count})
			}
		}
	}
	for _, id := range fenced {
		r.p.counters.lost.Add(1)
		r.observer.observe(ctx, Observation{Kind: ObservedLost, Partition: id, Count: 1, Err: ErrFenced})
	}
	return errors.Join(failed...)
}
