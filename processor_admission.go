package broker

// An admission finds the partitions of records, which come in runs of one.
type admission struct {
	run     *processorRun
	pt      *partition
	end     bound
	reached bool // a partition has come to its end
}

// admit returns the partition that is to handle rec, or nil. r.mu is held.
func (a *admission) admit(rec *Record) *partition {
	if a.pt == nil || a.pt.id != rec.Partition || a.pt.assignment != rec.assignment {
		a.pt, a.end = a.run.partitionOf(rec), a.run.until.of(rec.Partition)
	}
	pt := a.pt
	if pt == nil {
		return nil
	}
	pt.arrivals++
	if pt.reached {
		return nil
	}
	if a.end.beyond(rec) {
		pt.reached, a.reached = true, true
		a.run.kickUntil()
		return nil
	}
	pt.received, pt.lastReceived = rec.offset, rec
	if a.end.last(rec) {
		pt.reached, a.reached = true, true
	}
	return pt
}
