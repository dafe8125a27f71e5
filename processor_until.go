package broker

import (
	"context"
	"time"
)

const untilInterval = 500 * time.Millisecond

// bounds are where a Processor with Until ends.
type bounds struct {
	offsets map[int32]Offset // exclusive, of each partition; nil: there are none
	byTime  bool             // or the first record at or after time
	time    time.Time
	all     []int32 // partitions
	empty   bool    // there was no record in any of them
}

// resolveUntil fixes the end as of now.
func (r *processorRun) resolveUntil(ctx context.Context) error {
	if r.p.Until.IsZero() {
		return nil
	}
	parts, err := r.p.Stream.Partitions(ctx)
	if err != nil {
		return err
	}
	r.until = bounds{empty: true}
	for _, p := range parts {
		r.until.all = append(r.until.all, p.ID)
		r.until.empty = r.until.empty && p.First.Compare(p.Next) >= 0
	}
	switch r.p.Until.Kind() {
	case PositionTime:
		r.until.byTime, r.until.time = true, r.p.Until.Time()
	default:
		r.until.offsets = map[int32]Offset{}
		for _, p := range parts {
			r.until.offsets[p.ID] = p.Next
			if r.p.Until.Kind() == PositionOffset {
				r.until.offsets[p.ID] = r.p.Until.Offset()
			}
		}
	}
	return nil
}

// A bound is where one partition ends.
type bound struct {
	end    Offset // exclusive
	known  bool   // end is meant
	none   bool   // there is no end
	byTime bool   // time is meant
	time   time.Time
}

func (b *bounds) of(partition int32) bound {
	end, known := b.offsets[partition]
	return bound{end: end, known: known, none: b.offsets == nil && !b.byTime, byTime: b.byTime, time: b.time}
}

// beyond tells whether rec is at or after the end.
func (b *bound) beyond(rec *Record) bool {
	switch {
	case b.none:
		return false
	case b.byTime:
		return !rec.Time().Before(b.time)
	}
	return !b.known || rec.offset.Compare(b.end) >= 0 // a partition added since has nothing before the end
}

// last tells whether rec is known to be the last one before the end.
func (b *bound) last(rec *Record) bool {
	if !b.known {
		return false
	}
	e, ok1 := b.end.Int64()
	n, ok2 := rec.offset.Int64()
	return ok1 && ok2 && n+1 >= e
}

// position returns the end of a partition for Read.
func (b *bounds) position(partition int32) Position {
	if b.byTime {
		return AtTime(b.time)
	}
	return AtOffset(b.offsets[partition])
}

func (r *processorRun) kickUntil() {
	select {
	case r.check <- struct{}{}:
	default:
	}
}

// untilLoop ends the run once the group has come to the end everywhere: here,
// where the window of a partition that reached it is empty, or by the commits
// of other members. The end itself may hold no record (it was compacted away,
// or is a transaction's marker), so where no record arrives it looks ahead.
// That costs as much as receiving, so not before records had time to arrive.
func (r *processorRun) untilLoop() {
	arrivals := map[int32]int64{}
	for look := r.until.empty; r.ctx.Err() == nil; look = true {
		var done bool
		var err error
		if look {
			done, err = r.allReached(arrivals)
		}
		switch {
		case err != nil && r.ctx.Err() == nil && !IsTemporary(err):
			r.fail(err)
			return
		case err != nil: // which says nothing of the receiving
			r.p.counters.receiveErrors.Add(1)
			r.observer.observe(r.ctx, Observation{Kind: ObservedReceiveError, Err: err})
		case done:
			r.stop(errReached)
			return
		}
		timer := time.NewTimer(untilInterval)
		select {
		case <-r.ctx.Done():
		case <-r.check:
		case <-timer.C:
		}
		timer.Stop()
	}
}

func (r *processorRun) allReached(arrivals map[int32]int64) (bool, error) {
	var ask []int32
	from := map[int32]*Record{}
	r.mu.Lock()
	busy := r.inline != nil
	for _, id := range r.until.all {
		pt := r.parts[id]
		switch {
		case pt == nil || pt.gone:
			ask = append(ask, id)
		case pt.window.len() > 0:
			busy = true
		case pt.reached:
		case arrivals[id] != pt.arrivals:
			busy = true
		default:
			ask = append(ask, id)
			from[id] = pt.lastReceived
		}
		if pt != nil {
			arrivals[id] = pt.arrivals
		}
	}
	r.mu.Unlock()
	if busy || len(ask) == 0 {
		return !busy, nil
	}
	lags, err := r.p.Stream.Lag(r.ctx, r.p.Group)
	if err != nil {
		return false, err
	}
	committed := map[int32]Offset{}
	for _, l := range lags {
		if l.HasCommit {
			committed[l.Partition] = l.Committed
		}
	}
	for _, id := range ask {
		start, after := r.p.Start, from[id]
		switch c, ok := committed[id]; {
		case after != nil:
			start = AtOffset(after.offset)
		case ok:
			start = AtOffset(c)
		}
		if reached, err := r.nothingLeft(r.ctx, id, start, after); err != nil || !reached {
			return false, err
		}
	}
	return true, nil
}

// nothingLeft reads ahead, at most two records, to see whether there is one
// after the record after and before the end.
func (r *processorRun) nothingLeft(ctx context.Context, id int32, start Position, after *Record) (bool, error) {
	for rec, err := range r.p.Stream.Read(ctx, Range{
		From: start, Until: r.until.position(id), Partitions: []int32{id}, ReadCommitted: r.p.ReadCommitted,
	}) {
		if err != nil {
			return false, err
		}
		if after == nil || rec.offset.Compare(after.offset) > 0 {
			return false, nil
		}
	}
	return true, nil
}
