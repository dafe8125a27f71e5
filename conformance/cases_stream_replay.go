package conformance

import (
	"bytes"
	"fmt"
	"slices"
	"time"

	"github.com/queuestream/broker"
)

var streamReplay = map[int]StreamCase{
	23: {Config: partitions(3), Run: streamFromEarliest},
	24: {Config: partitions(2), Run: streamFromLatest},
	25: {Config: partitions(2), Run: streamSeekOffset},
	26: {Needs: broker.StreamCapabilities{SeekTime: true}, Config: partitions(2), Run: streamSeekTime, Refuse: streamSeekTimeRefused},
	27: {Config: partitions(3), Run: streamReplayIdentical},
	31: {Config: partitions(2), Run: streamOffsetOutOfRange},
}

func streamFromEarliest(c *C, s broker.Stream) {
	r := newStreamRun(c, s)
	values := r.load("early")
	for _, start := range []broker.Position{{}, broker.Earliest()} {
		m := r.join(c.Name("group"), broker.GroupOptions{Start: start}, nil)
		r.sameSet(valuesOf(m.collect(len(values))), values, "a new group that starts at %v", start)
		m.nothing("everything was read")
	}
	for _, p := range r.partitionList() {
		all := r.read(broker.Range{Partitions: []int32{p.ID}})
		if len(all) > 0 && all[0].Offset() != p.First {
			c.Errorf("Read of partition %d begins at %v, the first offset is %v", p.ID, all[0].Offset(), p.First)
		}
	}
	r.judge()
}

func streamFromLatest(c *C, s broker.Stream) {
	r := newStreamRun(c, s)
	old := map[string]bool{}
	for _, p := range r.partitionList() {
		rs := r.pinned("old", 10, p.ID)
		r.sendBatch("p", rs)
		for _, v := range sentValues(rs) {
			old[v] = true
		}
	}
	m := r.join(c.Name("group"), broker.GroupOptions{Start: broker.Latest()}, nil)
	var got tally
	stop := m.work(c.Context(), func(rs []*broker.Record) {
		for _, rec := range rs {
			if old[string(rec.Value)] {
				c.Errorf("%q was published before the group joined", rec.Value)
			}
		}
		got.add(rs...)
	})
	m.assigned(len(r.partitionList()))
	// A broker may fix the place a moment after the assignment: from the first
	// record that comes on, everything must.
	var after []string
	for _, p := range r.partitionList() {
		var probes []string
		c.Eventually(fmt.Sprintf("a record published after joining comes from partition %d", p.ID), func() bool {
			probe := r.pinned("probe", 1, p.ID)
			r.send("p", probe...)
			probes = append(probes, string(probe[0].Value))
			return c.Until(c.Harness().Quiet, func() bool { return len(got.missing(probes)) < len(probes) })
		})
		rs := r.pinned("after", 10, p.ID)
		r.sendBatch("p", rs)
		after = append(after, sentValues(rs)...)
	}
	r.complete("what was published after joining", &got, after)
	stop()
	r.judge()
}

// twoFull publishes n records into each of the partitions 0 and 1.
func (r *streamRun) twoFull(n int) (zero, one []broker.Record) {
	zero, one = r.pinned("zero", n, 0), r.pinned("one", n, 1)
	r.sendBatch("p", zero)
	r.sendBatch("p", one)
	return zero, one
}

// of returns the records of one partition.
func of(rs []*broker.Record, partition int32) []*broker.Record {
	return slices.DeleteFunc(slices.Clone(rs), func(rec *broker.Record) bool { return rec.Partition != partition })
}

func streamSeekOffset(c *C, s broker.Stream) {
	r := newStreamRun(c, s)
	zero, _ := r.twoFull(20)
	m := r.join(c.Name("group"), broker.GroupOptions{}, nil)
	all := m.collect(40)
	recs := of(all, 0)
	if len(recs) != 20 {
		c.Fatalf("%d records of partition 0, want 20", len(recs))
	}
	for _, i := range []int{7, 3, 19, 0, 12} {
		m.seek(0, broker.AtOffset(recs[i].Offset()))
		want := sentValues(zero[i:])
		first := m.collect(1)
		r.sameValues(valuesOf(first), want[:1], "the first record after a seek to offset %v", recs[i].Offset())
		if len(want) > 3 {
			r.sameValues(valuesOf(m.collect(2)), want[1:3], "the next records after a seek to offset %v", recs[i].Offset())
		}
	}
	m.seek(0, broker.Earliest())
	r.sameValues(valuesOf(m.collect(20)), sentValues(zero), "after a seek to the earliest record")
	m.seek(0, broker.AtOffset(recs[4].Offset()))
	m.seek(0, broker.Latest())
	m.nothing("the member has sought the end")
	more := r.pinned("more", 3, 0)
	r.sendBatch("p", more)
	r.sameValues(valuesOf(m.collect(3)), sentValues(more), "after a seek to the end")
	m.seek(0, broker.AtOffset(r.partition(0).Next))
	m.nothing("the member has sought the next offset")
	m.seek(0, broker.AtOffset(recs[9].Offset()))
	m.commit(m.collect(1)...)
	m.seek(0, broker.Latest())
	m.seek(0, broker.Committed())
	r.sameValues(valuesOf(m.collect(13)), append(sentValues(zero[10:]), sentValues(more)...), "after a seek to the commit")
	r.judge()
}

func streamSeekTime(c *C, s broker.Stream) {
	r := newStreamRun(c, s)
	const n = 12
	rs := r.pinned("timed", n, 0)
	if s.Capabilities().Timestamps {
		base := time.Now().Add(-time.Hour).Truncate(time.Second)
		for i := range rs {
			rs[i].SetTime(base.Add(time.Duration(i) * 10 * time.Second))
		}
		r.sendBatch("p", rs)
	} else {
		for i := range rs { // the broker sets the time: a millisecond apart at least
			r.send("p", rs[i])
			c.Sleep(c.Harness().Tick + 2*time.Millisecond)
		}
	}
	all := r.read(broker.Range{Partitions: []int32{0}})
	if len(all) != n {
		c.Fatalf("%d records, want %d", len(all), n)
	}
	for i, rec := range all {
		if rec.Time().IsZero() || i > 0 && !rec.Time().After(all[i-1].Time()) {
			c.Fatalf("record %d has the time %v, the one before %v", i, rec.Time(), all[max(0, i-1)].Time())
		}
		if s.Capabilities().Timestamps && !rec.Time().Equal(rs[i].Time()) {
			c.Errorf("record %d was published with the time %v and read with %v", i, rs[i].Time(), rec.Time())
		}
	}
	m := r.join(c.Name("group"), broker.GroupOptions{}, nil)
	m.collect(n)
	values := sentValues(rs)
	try := func(what string, t time.Time, from int) {
		m.seek(0, broker.AtTime(t))
		if from == n {
			m.nothing("the member has sought " + what)
		} else {
			r.sameValues(valuesOf(m.collect(n-from)), values[from:], "after a seek to %s", what)
		}
		got := r.read(broker.Range{From: broker.AtTime(t), Partitions: []int32{0}})
		r.sameValues(valuesOf(got), values[from:], "Read from %s", what)
		got = r.read(broker.Range{Until: broker.AtTime(t), Partitions: []int32{0}})
		r.sameValues(valuesOf(got), values[:from], "Read until %s", what)
	}
	try("the zero time", time.Time{}, 0)
	try("1 ms before 1970", time.UnixMilli(-1), 0)
	try("the beginning of 1970", time.UnixMilli(0), 0)
	try("before all", all[0].Time().Add(-time.Minute), 0)
	try("the time of the first", all[0].Time(), 0)
	try("the time of record 5", all[5].Time(), 5)
	try("1 ms after record 5", all[5].Time().Add(time.Millisecond), 6)
	try("the time of the last", all[n-1].Time(), n-1)
	try("after all", all[n-1].Time().Add(time.Millisecond), n)
	r.judge()
}

func streamSeekTimeRefused(c *C, s broker.Stream) {
	for _, err := range s.Read(c.Context(), broker.Range{From: broker.AtTime(time.Now())}) {
		c.WantErr(err, broker.ErrUnsupported, "Read from a time")
		return
	}
	c.Errorf("Read from a time yields nothing, want %q", broker.ErrUnsupported)
}

func streamReplayIdentical(c *C, s broker.Stream) {
	r := newStreamRun(c, s)
	if got := r.readAll(); len(got) != 0 {
		c.Errorf("an empty stream yields %d records", len(got))
	}
	r.load("replay")
	caps := s.Capabilities()
	first := r.readAll()
	same := func(how string, got, want []*broker.Record) {
		r.sameSet(valuesOf(got), valuesOf(want), "%s", how)
		at := map[streamSlot]*broker.Record{}
		for _, rec := range want {
			at[streamSlot{rec.Partition, rec.Offset()}] = rec
		}
		for _, rec := range got {
			w := at[streamSlot{rec.Partition, rec.Offset()}]
			if w == nil || !bytes.Equal(rec.Key, w.Key) || !bytes.Equal(rec.Value, w.Value) ||
				!slices.Equal(rec.Headers, w.Headers) || !rec.Time().Equal(w.Time()) || rec.Tombstone != w.Tombstone {
				c.Errorf("%s: %d@%v is %+v, before it was %+v", how, rec.Partition, rec.Offset(), rec, w)
			}
		}
	}
	same("read again", r.readAll(), first)
	m := r.join(c.Name("group"), broker.GroupOptions{}, nil)
	same("receive", m.collect(len(first)), first)
	for _, p := range m.consumer().Partitions() {
		m.seek(p, broker.Earliest())
	}
	same("receive again after a seek", m.collect(len(first)), first)

	for _, p := range r.partitionList() {
		log := of(first, p.ID)
		if len(log) < 8 {
			continue
		}
		lo, hi := 2, len(log)-3
		got := r.read(broker.Range{
			From: broker.AtOffset(log[lo].Offset()), Until: broker.AtOffset(log[hi].Offset()), Partitions: []int32{p.ID},
		})
		r.sameValues(valuesOf(got), valuesOf(log[lo:hi]), "Read of partition %d from %v until %v", p.ID, log[lo].Offset(), log[hi].Offset())
		got = r.read(broker.Range{From: broker.AtOffset(log[lo].Offset()), Until: broker.AtOffset(log[lo].Offset()), Partitions: []int32{p.ID}})
		r.sameValues(valuesOf(got), nil, "Read of an empty range")
	}
	same("read until now", r.read(broker.Range{Until: broker.Now(), ReadCommitted: caps.Transactions}), first)
	if got := r.read(broker.Range{From: broker.Latest()}); len(got) != 0 {
		c.Errorf("Read from the end yields %d records", len(got))
	}

	// The end is as of the call, and break frees everything.
	n := 0
	ctx, cancel := c.Soon()
	defer cancel()
	for _, err := range s.Read(ctx, broker.Range{}) {
		c.Must(err, "read while records are added")
		if n++; n <= 10 {
			r.send("q", r.make("added", 1, 0)...)
		}
		if n > len(first) {
			c.Errorf("Read went beyond the end as of the call")
			break
		}
	}
	for _, err := range s.Read(ctx, broker.Range{}) {
		c.Must(err, "read and break")
		break
	}
	r.judge()
}

func streamOffsetOutOfRange(c *C, s broker.Stream) {
	r := newStreamRun(c, s)
	r.twoFull(5)
	m := r.join(c.Name("group"), broker.GroupOptions{}, nil)
	m.collect(10)
	next, ok := r.partition(0).Next.Int64()
	if !ok {
		c.Skip("offsets are no integers")
	}
	ctx, cancel := c.Soon()
	defer cancel()
	c.WantErr(m.trySeek(ctx, 0, broker.AtOffset(broker.NewOffset(next+1000))), broker.ErrOutOfRange, "seek beyond the end")
	if err := m.trySeek(ctx, 1000, broker.Earliest()); err == nil {
		c.Errorf("seek in a partition that is not assigned: nil")
	}
	// The member is unharmed.
	more := r.pinned("more", 2, 0)
	r.sendBatch("p", more)
	r.sameValues(valuesOf(m.collect(2)), sentValues(more), "after seeks that were refused")
	r.judge()
}
