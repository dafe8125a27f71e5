package conformance

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/queuestream/broker"
)

var streamDelivery = map[int]StreamCase{
	1:  {Config: partitions(4), Run: streamAckedNotLost},
	2:  {Config: partitions(2), Run: streamNoPhantom},
	3:  {Run: streamBytesExact},
	4:  {Needs: broker.StreamCapabilities{Headers: true}, Run: streamHeadersExact, Refuse: streamHeadersRefused},
	5:  {Config: partitions(2), Run: streamBatchPartialFailure},
	6:  {Needs: broker.StreamCapabilities{Durable: true}, Config: partitions(2), Run: streamPublishedIsDurable},
	12: {Config: partitions(2), Run: streamFanOut},
}

func streamAckedNotLost(c *C, s broker.Stream) {
	r := newStreamRun(c, s)
	group := c.Name("group")
	var got tally
	_, stop := r.share(group, 2, &got)
	values := r.load("load")
	r.complete("the group", &got, values)
	stop()
	r.stored(group)
	r.judge()
}

// load publishes Harness.Messages records from Harness.Workers producers, one
// by one and in batches, and returns their values.
func (r *streamRun) load(tag string) []string {
	n := r.C.h.Messages
	rs := r.make(tag, n, 16)
	chunks := slices.Collect(slices.Chunk(rs, max(1, n/(4*r.C.h.Workers))))
	r.parallel(r.C.h.Workers, func(w int) {
		who := "producer " + itoa(w)
		for i := w; i < len(chunks); i += r.C.h.Workers {
			if i%2 == 0 {
				r.sendBatch(who, chunks[i])
			} else {
				r.send(who, chunks[i]...)
			}
		}
	})
	return sentValues(rs)
}

func streamNoPhantom(c *C, s broker.Stream) {
	r := newStreamRun(c, s)
	values := sentValues(r.make("good", 20, 4))
	never := r.make("never", 4, 4)
	ended, cancel := context.WithCancel(c.Context())
	cancel()
	for i, v := range values {
		if i%5 == 0 {
			never[0].Tombstone = true // with a value: refused
			_, err := r.trySend(c.Context(), s, "p", never[0])
			c.WantErr(err, broker.ErrInvalid, "publish a tombstone with a value")
			if _, err = r.trySend(ended, s, "p", never[1]); !errors.Is(err, context.Canceled) {
				c.Errorf("publish with an ended context: %v, want context.Canceled", err)
			}
			if _, err = r.trySendBatch(ended, s, "p", never[2:]); !errors.Is(err, context.Canceled) {
				c.Errorf("publish a batch with an ended context: %v, want context.Canceled", err)
			}
		}
		r.send("p", broker.Record{Key: []byte{byte(i % 4)}, Value: []byte(v)})
	}
	m := r.join(c.Name("group"), broker.GroupOptions{}, nil)
	r.sameSet(valuesOf(m.collect(len(values))), values, "what a group got")
	m.nothing("everything was read")
	r.sameSet(valuesOf(r.judge()), values, "what a reader got")
}

func streamBytesExact(c *C, s broker.Stream) {
	r := newStreamRun(c, s)
	every := make([]byte, 256)
	for i := range every {
		every[i] = byte(i)
	}
	large := 300 << 10
	if limit := s.Capabilities().MaxBytes; limit > 0 && limit <= 4<<20 {
		large = limit
	}
	rs := []broker.Record{
		{},
		{Value: []byte{}, Key: []byte("k")},
		{Value: []byte{0}},
		{Value: []byte("a\x00b\x00"), Key: []byte("\x00")},
		{Value: []byte("\xff\xfe invalid UTF-8 \xc3\x28"), Key: []byte("\xff\xc3\x28")},
		{Value: []byte("Grüße, 世界, 🎉"), Key: []byte("schlüssel")},
		{Value: every, Key: every},
		{Value: bytes.Repeat([]byte("0123456789abcdef"), 4097)}, // 16 above 64 KiB
		{Value: bytes.Repeat(every, 300<<10/256)},
		{Value: bytes.Repeat([]byte{0xa5}, large)},
	}
	want := map[streamSlot]broker.Record{}
	inOrder := map[int32][]broker.Record{} // of a partition, where receipts have no offsets
	ctx, cancel := c.Soon()
	defer cancel()
	for i := range rs {
		sent := broker.Record{Key: bytes.Clone(rs[i].Key), Value: bytes.Clone(rs[i].Value)}
		got, err := s.Publish(ctx, sent)
		c.Must(err, "publish %d bytes", rs[i].Size())
		if !bytes.Equal(sent.Value, rs[i].Value) || !bytes.Equal(sent.Key, rs[i].Key) {
			c.Errorf("Publish changed the record")
		}
		clear(sent.Value) // the caller's again: nothing stored may change
		clear(sent.Key)
		want[streamSlot{got.Partition, got.Offset}] = rs[i]
		inOrder[got.Partition] = append(inOrder[got.Partition], rs[i])
	}
	check := func(how string, all []*broker.Record) {
		if len(all) != len(rs) {
			c.Errorf("%s: %d records, want %d", how, len(all), len(rs))
		}
		next := map[int32]int{}
		for _, rec := range all {
			slot := streamSlot{rec.Partition, rec.Offset()}
			w, ok := want[slot]
			if !r.offsets {
				i := next[rec.Partition]
				if ok = i < len(inOrder[rec.Partition]); ok {
					w = inOrder[rec.Partition][i]
				}
				next[rec.Partition]++
			}
			switch {
			case !ok:
				c.Errorf("%s: a record at %v, which no receipt names", how, slot)
			case !bytes.Equal(rec.Value, w.Value):
				c.Errorf("%s: %v holds %d bytes %q, want %d bytes %q", how, slot, len(rec.Value), clip(rec.Value), len(w.Value), clip(w.Value))
			case !bytes.Equal(rec.Key, w.Key):
				c.Errorf("%s: the key at %v is %q, want %q", how, slot, rec.Key, w.Key)
			case rec.Tombstone:
				c.Errorf("%s: %v is a tombstone, want a value of %d bytes", how, slot, len(w.Value))
			case len(rec.Headers) > 0:
				c.Errorf("%s: %v has headers %q, want none", how, slot, rec.Headers)
			}
			clear(rec.Value) // the reader's own: others must not see it
			clear(rec.Key)
		}
	}
	check("read", r.readAll())
	m := r.join(c.Name("group"), broker.GroupOptions{}, nil)
	check("receive", m.collect(len(rs)))
	check("read again", r.readAll())
}

func streamHeadersExact(c *C, s broker.Stream) {
	r := newStreamRun(c, s)
	sets := []broker.Headers{
		{{Key: "one", Value: "1"}},
		{{Key: "b", Value: "1"}, {Key: "a", Value: "2"}, {Key: "b", Value: "3"}, {Key: "B", Value: "4"}},
		{{Key: "empty", Value: ""}, {Key: "nul", Value: "\x00"}, {Key: "binary", Value: "\xff\xfe\xc3\x28"}},
		{{Key: "ключ", Value: "値"}, {Key: "with space", Value: "x"}, {Key: "x-y.z_1", Value: "dots"}},
		{{Key: "long", Value: strings.Repeat("v", 8<<10)}},
	}
	many := make(broker.Headers, 40)
	for i := range many {
		many[i] = broker.Header{Key: "h" + itoa(39-i), Value: itoa(i)}
	}
	sets = append(sets, many, nil)
	want := map[string]broker.Headers{}
	for _, h := range sets {
		rec := r.make("headers", 1, 0)[0]
		rec.Headers = slices.Clone(h)
		want[string(rec.Value)] = h
		r.send("p", rec)
		if !slices.Equal(rec.Headers, h) {
			c.Errorf("Publish changed the headers to %q", rec.Headers)
		}
	}
	check := func(how string, all []*broker.Record) {
		for _, rec := range all {
			if h := want[string(rec.Value)]; !slices.Equal(rec.Headers, h) {
				c.Errorf("%s: headers %.200q, want %.200q", how, rec.Headers, h)
			}
		}
	}
	m := r.join(c.Name("group"), broker.GroupOptions{}, nil)
	check("receive", m.collect(len(sets)))
	check("read", r.judge())
	_, err := r.trySend(c.Context(), s, "p", broker.Record{Value: []byte(r.value("never")), Headers: broker.Headers{{Value: "no key"}}})
	c.WantErr(err, broker.ErrInvalid, "publish a header without a key")
}

func streamHeadersRefused(c *C, s broker.Stream) {
	refuseRecord(c, s, "headers", broker.Record{Headers: broker.Headers{{Key: "k", Value: "v"}}})
}

// refuseRecord wants rec to be ErrUnsupported, alone and in a batch, and
// nothing of it to be stored.
func refuseRecord(c *C, s broker.Stream, what string, rec broker.Record) {
	r := newStreamRun(c, s)
	if !rec.Tombstone {
		rec.Value = []byte(r.value("never"))
	}
	_, err := s.Publish(c.Context(), rec)
	c.WantErr(err, broker.ErrUnsupported, "publish with %s, which is not claimed", what)
	good := r.make("good", 2, 0)
	got, err := s.PublishBatch(c.Context(), []broker.Record{good[0], rec, good[1]})
	if len(got) != 3 {
		c.Errorf("publish a batch of 3: %d receipts", len(got))
	}
	c.WantErr(broker.ErrorAt(err, 1), broker.ErrUnsupported, "publish a batch with %s in its middle", what)
	for _, i := range []int{0, 2} {
		c.Must(broker.ErrorAt(err, i), "publish the neighbour %d of what is refused", i)
	}
	r.sameSet(valuesOf(r.readAll()), sentValues(good), "after %s was refused", what)
}

func streamBatchPartialFailure(c *C, s broker.Stream) {
	r := newStreamRun(c, s)
	good := r.make("good", 8, 2)
	bad := map[int]error{1: broker.ErrInvalid, 4: broker.ErrInvalid, 6: nil}
	tombstone := broker.Record{Key: []byte("k"), Value: []byte(r.value("never")), Tombstone: true}
	negative := broker.Record{Value: []byte(r.value("never")), Pin: true, Partition: -1}
	missing := broker.Record{Value: []byte(r.value("never")), Pin: true, Partition: 1000}
	batch := []broker.Record{good[0], tombstone, good[1], good[2], negative, good[3], missing, good[4]}
	if limit := s.Capabilities().MaxBytes; limit > 0 && limit <= 64<<20 {
		bad[len(batch)] = broker.ErrTooLarge
		batch = append(batch, broker.Record{Value: bytes.Repeat([]byte("never"), limit/5+1)})
	}
	batch = append(batch, good[5:]...)
	ctx, cancel := c.Soon()
	defer cancel()
	got, err := s.PublishBatch(ctx, batch)
	if _, ok := errors.AsType[*broker.BatchError](err); !ok {
		c.Fatalf("a batch with failures: %v (%T), want a *broker.BatchError", err, err)
	}
	if len(got) != len(batch) {
		c.Fatalf("a batch of %d: %d receipts", len(batch), len(got))
	}
	want := map[streamSlot]string{}
	for i := range batch {
		switch target, isBad := bad[i]; {
		case !isBad:
			c.Must(broker.ErrorAt(err, i), "record %d of the batch, which is good", i)
			want[streamSlot{got[i].Partition, got[i].Offset}] = string(batch[i].Value)
		case target != nil:
			c.WantErr(broker.ErrorAt(err, i), target, "record %d of the batch", i)
		case broker.ErrorAt(err, i) == nil:
			c.Errorf("record %d of the batch, for a partition that is missing: nil", i)
		}
	}
	all := r.readAll()
	r.sameSet(valuesOf(all), sentValues(good), "what the batch stored")
	for _, rec := range all {
		if slot := (streamSlot{rec.Partition, rec.Offset()}); r.offsets && want[slot] != string(rec.Value) {
			c.Errorf("%v holds %q, the receipt says %q", slot, rec.Value, want[slot])
		}
	}
	got, err = s.PublishBatch(ctx, nil)
	if err != nil || len(got) != 0 {
		c.Errorf("an empty batch: %d receipts and %v, want none", len(got), err)
	}
}

func streamPublishedIsDurable(c *C, s broker.Stream) {
	if c.Harness().Restart == nil {
		c.Skip("the harness cannot restart the broker")
	}
	r := newStreamRun(c, s)
	before := r.load("before")
	group := c.Name("group")
	m := r.join(group, broker.GroupOptions{}, nil)
	first := m.collect(len(before) / 2)
	m.done(first...)
	m.close()
	c.Must(c.Harness().Restart(c.Context()), "restart the broker")
	m = r.join(group, broker.GroupOptions{}, nil)
	rest := m.collect(len(before) - len(first))
	r.sameSet(append(valuesOf(first), valuesOf(rest)...), before, "before and after the restart")
	r.load("after")
	r.judge()
}

func streamFanOut(c *C, s broker.Stream) {
	r := newStreamRun(c, s)
	n := c.Harness().Messages
	values := sentValues(r.make("fan", n, 8))
	groups := []string{c.Name("group"), c.Name("group"), c.Name("group")}
	early := r.join(groups[0], broker.GroupOptions{}, nil)
	for i, v := range values {
		r.send("p", broker.Record{Key: []byte{byte(i % 8)}, Value: []byte(v)})
	}
	got := early.collect(n)
	r.sameSet(valuesOf(got), values, "the group that joined before")
	early.commit(got...)

	var shared tally
	members, stop := r.share(groups[1], 2, &shared)
	r.complete("the group of two that joined after", &shared, values)
	stop()
	for _, m := range members {
		m.close()
	}

	late := r.join(groups[2], broker.GroupOptions{}, nil)
	r.sameSet(valuesOf(late.collect(n)), values, "the group that joined when others had committed")
	early.nothing("the group has read everything")
	late.nothing("the group has read everything")
	for p, l := range r.stored(groups[2]) {
		if l.HasCommit {
			c.Errorf("a group that committed nothing has %v stored for partition %d: others committed", l.Committed, p)
		}
	}
	r.judge()
}
