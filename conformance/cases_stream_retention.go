package conformance

import (
	"bytes"
	"time"

	"github.com/queuestream/broker"
)

var streamRetention = map[int]StreamCase{
	59: {Config: shortRetention, Run: streamRetentionExpires},
	60: {Config: func(_ *C, cfg *broker.StreamConfig) { cfg.RetentionBytes = 64 << 10 }, Run: streamRetentionKeepsOffsets},
	61: {Needs: broker.StreamCapabilities{Compaction: true}, Config: compacted, Run: streamCompactionKeepsLatest},
	62: {Needs: broker.StreamCapabilities{Tombstones: true}, Run: streamTombstone, Refuse: streamTombstoneRefused},
}

func compacted(_ *C, cfg *broker.StreamConfig) { cfg.Compact = true }

func shortRetention(c *C, cfg *broker.StreamConfig) { cfg.Retention = retention(c) }

// retention is the shortest that a case may use.
func retention(c *C) time.Duration { return max(c.Harness().Delay, time.Second) }

func streamRetentionExpires(c *C, s broker.Stream) {
	r := newStreamRun(c, s)
	r.hist.Sparse = true
	start := time.Now()
	rs := r.make("old", 5, 0)
	old := r.located(rs, r.send("p", rs...))
	n := len(r.readAll())
	if age := time.Since(start); age < retention(c)-c.Harness().Tick && n != len(old) {
		c.Errorf("%d of %d records are left after %v, the retention is %v", n, len(old), age, retention(c))
	}
	gone := func() bool { return len(r.readAll()) == 0 }
	if !r.patiently(retention(c)+c.Harness().Patience, gone) {
		c.Fatalf("%d records are still there %v after their retention of %v", len(r.readAll()), c.Harness().Patience, retention(c))
	}
	if age := time.Since(start); age < retention(c)-c.Harness().Tick {
		c.Errorf("everything was gone after %v, the retention is %v", age, retention(c))
	}
	c.Note("gone after", "%v", time.Since(start).Round(10*time.Millisecond))
	last := old[len(old)-1].Offset
	if p := r.partition(0); p.First.Compare(last) <= 0 {
		c.Errorf("the first offset is %v, and the record at %v is gone", p.First, last)
	}
	rs = r.make("new", 1, 0)
	next := r.located(rs, r.send("p", rs...))
	if next[0].Offset.Compare(last) <= 0 {
		c.Errorf("the next record got offset %v, an old one had %v", next[0].Offset, last)
	}
	r.Check(CheckStream(r.hist))
}

func streamRetentionKeepsOffsets(c *C, s broker.Stream) {
	r := newStreamRun(c, s)
	r.hist.Sparse = true
	at := map[streamSlot]string{}
	var first broker.Receipt
	padding := bytes.Repeat([]byte("x"), 4<<10)
	const most = 64 << 20 // bytes, by which any limit must have been applied
	sent := 0
	for sent < most && r.partition(0).First.Compare(first.Offset) <= 0 {
		rs := r.make("size", 8, 0)
		for i := range rs {
			rs[i].Value = append(append(rs[i].Value, ' '), padding...)
			sent += rs[i].Size()
		}
		for i, got := range r.located(rs, r.sendBatch("p", rs)) {
			if len(at) == 0 {
				first = got
			}
			at[streamSlot{got.Partition, got.Offset}] = string(rs[i].Value)
		}
	}
	moved := r.patiently(c.Harness().Patience, func() bool { return r.partition(0).First.Compare(first.Offset) > 0 })
	if !moved {
		c.Fatalf("%d bytes are stored and nothing is gone, the limit is 64 KiB", sent)
	}
	c.Note("published", "%d bytes until the limit was applied", sent)
	p := r.partition(0)
	all := r.readAll()
	if len(all) == 0 {
		c.Fatalf("nothing is left after retention by size")
	}
	if o := all[0].Offset(); o.Compare(p.First) < 0 {
		c.Errorf("Read begins at %v, the first offset was %v", o, p.First)
	}
	for _, rec := range all {
		if slot := (streamSlot{rec.Partition, rec.Offset()}); at[slot] != string(rec.Value) {
			c.Errorf("%v holds %.40q, it was published as %.40q", slot, rec.Value, at[slot])
		}
	}
	m := r.join(c.Name("group"), broker.GroupOptions{}, nil)
	if got := m.collect(1)[0].Offset(); got.Compare(p.First) < 0 {
		c.Errorf("a new group begins at %v, the first offset was %v", got, p.First)
	}
	ctx, cancel := c.Soon()
	defer cancel()
	c.WantErr(m.trySeek(ctx, 0, broker.AtOffset(first.Offset)), broker.ErrOutOfRange, "seek to an offset below the first")
	m.seek(0, broker.Earliest())
	last := all[len(all)-1]
	m.seek(0, broker.AtOffset(last.Offset()))
	r.sameValues(valuesOf(m.collect(1)), valuesOf(all[len(all)-1:]), "after a seek to the last offset")
	r.Check(CheckStream(r.hist))
}

// lastOfEach returns the last record of each key.
func lastOfEach(rs []*broker.Record) map[string]*broker.Record {
	out := map[string]*broker.Record{}
	for _, rec := range rs {
		out[string(rec.Key)] = rec
	}
	return out
}

// compact waits until the stream holds fewer than n records, publishing a
// little with a key of its own, since brokers compact what is closed by later
// records.
func (r *streamRun) compact(s broker.Stream, n int) []*broker.Record {
	var all []*broker.Record
	pushed := 0
	ok := r.patiently(r.C.h.Patience, func() bool {
		ctx, cancel := r.Soon()
		defer cancel()
		_, err := r.trySend(ctx, s, "filler", broker.Record{Key: []byte("filler"), Value: []byte(r.value("filler"))})
		r.Must(err, "publish")
		pushed++
		all, err = r.tryRead(ctx, s, broker.Range{})
		r.Must(err, "read")
		return len(all) < n+pushed
	})
	if !ok {
		r.Fatalf("nothing was compacted within %v", r.C.h.Patience)
	}
	return all
}

func streamCompactionKeepsLatest(c *C, s broker.Stream) {
	r := newStreamRun(c, s)
	r.hist.Sparse = true
	const keys, rounds = 10, 20
	rs := r.make("compact", keys*rounds, keys)
	at := map[streamSlot]string{}
	last := map[string]string{}
	for i, got := range r.located(rs, r.sendBatch("p", rs)) {
		at[streamSlot{got.Partition, got.Offset}] = string(rs[i].Value)
		last[string(rs[i].Key)] = string(rs[i].Value)
	}
	all := r.compact(s, len(rs))
	got := lastOfEach(all)
	for key, want := range last {
		switch rec := got[key]; {
		case rec == nil:
			c.Errorf("key %q is gone, its latest value was %q", key, want)
		case string(rec.Value) != want:
			c.Errorf("key %q holds %q, its latest value was %q", key, rec.Value, want)
		}
	}
	for _, rec := range all {
		slot := streamSlot{rec.Partition, rec.Offset()}
		if want, ok := at[slot]; ok && want != string(rec.Value) {
			c.Errorf("%v holds %q, it was published as %q", slot, rec.Value, want)
		}
	}
	// The place of a record that is gone is the next one's.
	for i := 1; i < len(all); i++ {
		before, _ := all[i-1].Offset().Int64()
		here, ok := all[i].Offset().Int64()
		if ok && here > before+1 {
			m := r.join(c.Name("group"), broker.GroupOptions{}, nil)
			m.collect(1)
			m.seek(0, broker.AtOffset(broker.NewOffset(here-1)))
			if got := m.collect(1)[0].Offset(); got.Compare(all[i].Offset()) < 0 {
				c.Errorf("a seek to offset %d, whose record is gone, led to %v", here-1, got)
			}
			break
		}
	}
	r.Check(CheckStream(r.hist))
}

func streamTombstone(c *C, s broker.Stream) {
	r := newStreamRun(c, s)
	sent := []broker.Record{
		{Key: []byte("a"), Value: []byte("1")},
		{Key: []byte("a"), Tombstone: true},
		{Key: []byte("b"), Value: []byte{}},
		{Key: []byte("c")},
		{Key: []byte("d"), Tombstone: true},
		{Key: []byte("e"), Value: []byte("2")},
	}
	ctx, cancel := c.Soon()
	defer cancel()
	for i := range sent[:3] {
		_, err := s.Publish(ctx, sent[i])
		c.Must(err, "publish record %d", i)
	}
	_, err := s.PublishBatch(ctx, sent[3:])
	c.Must(err, "publish a batch with a tombstone")
	check := func(how string, rs []*broker.Record) {
		if len(rs) != len(sent) {
			c.Errorf("%s: %d records, want %d", how, len(rs), len(sent))
			return
		}
		for i, rec := range rs {
			if rec.Tombstone != sent[i].Tombstone || !bytes.Equal(rec.Value, sent[i].Value) || !bytes.Equal(rec.Key, sent[i].Key) {
				c.Errorf("%s: record %d has key %q, value %q, tombstone %t; published were %q, %q, %t", how, i,
					rec.Key, rec.Value, rec.Tombstone, sent[i].Key, sent[i].Value, sent[i].Tombstone)
			}
		}
	}
	check("read", r.readAll())
	check("receive", r.join(c.Name("group"), broker.GroupOptions{}, nil).collect(len(sent)))
	_, err = s.Publish(ctx, broker.Record{Tombstone: true})
	c.WantErr(err, broker.ErrInvalid, "a tombstone without a key")
	if s.Capabilities().Compaction {
		streamTombstoneDeletes(c)
	}
}

func streamTombstoneDeletes(c *C) {
	s := c.DeclareStream(compacted)
	r := newStreamRun(c, s)
	r.hist.Sparse = true
	rs := r.make("value", 40, 4)
	r.sendBatch("p", rs)
	deleted := rs[0].Key
	_, err := s.Publish(c.Context(), broker.Record{Key: deleted, Tombstone: true})
	c.Must(err, "publish a tombstone")
	all := r.compact(s, len(rs)+1)
	r.patiently(c.Harness().Patience, func() bool { // the values of the key, at the latest
		n := 0
		for _, rec := range all {
			if bytes.Equal(rec.Key, deleted) && !rec.Tombstone {
				n++
			}
		}
		if n > 0 {
			all = r.readAll()
		}
		return n == 0
	})
	for _, rec := range all {
		if bytes.Equal(rec.Key, deleted) && !rec.Tombstone {
			c.Errorf("%q of a deleted key is still there after compaction", rec.Value)
		}
	}
	got := lastOfEach(all)
	for i := 1; i < 4; i++ {
		key, want := string(rs[36+i].Key), string(rs[36+i].Value)
		if rec := got[key]; rec == nil || string(rec.Value) != want {
			c.Errorf("key %q, which was not deleted, holds %+v, want %q", key, rec, want)
		}
	}
}

func streamTombstoneRefused(c *C, s broker.Stream) {
	refuseRecord(c, s, "a tombstone", broker.Record{Key: []byte("k"), Tombstone: true})
}
