package conformance

import (
	"github.com/queuestream/broker"
)

var streamCommit = map[int]StreamCase{
	28: {Config: partitions(2), Run: streamResumeCommitted},
	29: {Config: partitions(2), Run: streamCommitBounds},
	30: {Config: partitions(2), Run: streamSeekIsolation},
}

func streamResumeCommitted(c *C, s broker.Stream) {
	r := newStreamRun(c, s)
	zero, one := r.twoFull(30)
	group := c.Name("group")
	m := r.join(group, broker.GroupOptions{}, nil)
	all := m.collect(60)
	// Partition 0 up to record 9; partition 1 not at all.
	m.processed(of(all, 0)[:10]...)
	m.commit(of(all, 0)[:10]...)
	m.close()
	for round, from := range []int{10, 17, 30} {
		m = r.join(group, broker.GroupOptions{Start: broker.Latest()}, nil)
		if round == 0 {
			// Nothing is stored for partition 1: Start decides, where the group has no offset.
			rest := m.collect(20)
			r.sameValues(valuesOf(of(rest, 0)), sentValues(zero[10:]), "resumed behind the commit")
			r.sameValues(valuesOf(of(rest, 1)), nil, "a partition without a commit starts at Latest, as the options say")
			m.processed(rest[:7]...)
			m.commit(rest[:7]...)
		} else if from < 30 {
			rest := m.collect(30 - from)
			r.sameValues(valuesOf(rest), sentValues(zero[from:]), "resumed behind the second commit")
			m.processed(rest...)
			m.commit(rest...)
		} else {
			m.nothing("everything is committed, or Start hides it")
		}
		if r.stored(group)[1].HasCommit {
			c.Errorf("a position is stored for partition 1, where nobody committed")
		}
		m.close()
	}
	lag := r.stored(group)[0]
	if !lag.HasCommit || lag.Lag != 0 && (lag.Exact || s.Capabilities().ExactLag) {
		c.Errorf("everything of partition 0 is committed, Lag says %+v", lag)
	}
	m = r.join(group, broker.GroupOptions{}, nil)
	r.sameValues(valuesOf(m.collect(30)), sentValues(one), "what was read and never committed comes again")
	r.judge()
}

// storedAt waits until the group's stored position in partition 0 is right
// behind rec, and before next unless that is nil.
func (r *streamRun) storedAt(group, when string, rec, next *broker.Record) {
	var l broker.PartitionLag
	ok := r.Until(r.C.h.Quiet, func() bool {
		l = r.stored(group)[rec.Partition]
		return l.HasCommit && l.Committed.Compare(rec.Offset()) > 0 && (next == nil || l.Committed.Compare(next.Offset()) <= 0)
	})
	if !ok {
		r.Errorf("%s: stored is %v (%t), want right behind %v", when, l.Committed, l.HasCommit, rec.Offset())
	}
}

func streamCommitBounds(c *C, s broker.Stream) {
	r := newStreamRun(c, s)
	r.twoFull(20)
	group := c.Name("group")
	m := r.join(group, broker.GroupOptions{}, nil)
	all := m.collect(40)
	log := of(all, 0)
	for p, l := range r.stored(group) {
		if l.HasCommit {
			c.Errorf("%v is stored for partition %d before any commit: Receive commits nothing", l.Committed, p)
		}
		if l.Lag < 20 || (l.Exact || s.Capabilities().ExactLag) && l.Lag != 20 {
			c.Errorf("the lag of partition %d is %d before any commit, want 20", p, l.Lag)
		}
	}
	m.processed(all...)
	m.commit()
	m.commit(log[9])
	r.storedAt(group, "after a commit of record 9", log[9], log[10])
	if l := r.stored(group)[0]; l.Lag < 10 || (l.Exact || s.Capabilities().ExactLag) && l.Lag != 10 {
		c.Errorf("the lag behind record 9 of 20 is %d, want 10", l.Lag)
	}
	m.commit(log[4], log[2])
	r.storedAt(group, "after a commit of earlier records: never moved back", log[9], log[10])
	m.commit(log[14], log[11], log[12])
	r.storedAt(group, "after a commit of 14, 11 and 12", log[14], log[15])
	if r.stored(group)[1].HasCommit {
		c.Errorf("a commit for partition 0 stored one for partition 1")
	}
	m.commit(log[14])
	r.storedAt(group, "after the same commit again", log[14], log[15])

	// A seek lets the next commit go back.
	m.seek(0, broker.AtOffset(log[3].Offset()))
	r.storedAt(group, "a seek alone stores nothing", log[14], log[15])
	again := m.collect(1)
	m.commit(again...)
	r.storedAt(group, "after a seek to record 3 and its commit", log[3], log[4])
	m.close()
	m = r.join(group, broker.GroupOptions{}, nil)
	got := m.collect(36)
	r.sameValues(valuesOf(of(got, 0)), valuesOf(log[4:]), "a new member continues behind the commit that followed a seek")
	r.judge()
}

func streamSeekIsolation(c *C, s broker.Stream) {
	r := newStreamRun(c, s)
	zero, one := r.twoFull(20)
	a, b := c.Name("group"), c.Name("group")
	ma, mb := r.join(a, broker.GroupOptions{}, nil), r.join(b, broker.GroupOptions{}, nil)
	gotA, gotB := ma.collect(40), mb.collect(40)
	ma.done(gotA...)
	mb.done(gotB...)
	before := r.stored(b)
	for _, p := range ma.consumer().Partitions() {
		ma.seek(p, broker.Earliest())
	}
	mb.nothing("only the other group sought the beginning")
	replay := ma.collect(40)
	r.sameValues(valuesOf(of(replay, 0)), sentValues(zero), "the replay of partition 0")
	r.sameValues(valuesOf(of(replay, 1)), sentValues(one), "the replay of partition 1")
	ma.commit(of(replay, 0)[4], of(replay, 1)[4])
	for p, l := range r.stored(b) {
		if l.Committed != before[p].Committed || l.HasCommit != before[p].HasCommit {
			c.Errorf("a seek and commit of another group moved partition %d from %v to %v", p, before[p].Committed, l.Committed)
		}
	}
	mb.close()
	mb = r.join(b, broker.GroupOptions{}, nil)
	more := r.pinned("more", 3, 1)
	r.sendBatch("p", more)
	r.sameValues(valuesOf(mb.collect(3)), sentValues(more), "the other group continues where it was")
	r.judge()
}
