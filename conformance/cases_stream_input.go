package conformance

import (
	"bytes"
	"errors"
	"strings"
	"time"

	"github.com/queuestream/broker"
)

var streamInput = map[int]StreamCase{
	81: {Run: streamOversize},
	82: {Run: streamBadName},
	83: {Config: partitions(2), Run: streamUnsupportedRefused},
}

func streamOversize(c *C, s broker.Stream) {
	if s.Capabilities().MaxBytes == 0 { // not known, or there is none: declare one
		limited, err := c.declareStream(func(_ *C, cfg *broker.StreamConfig) { cfg.MaxBytes = 64 << 10 })
		if errors.Is(err, broker.ErrUnsupported) {
			c.Skip("the stream claims no limit, and takes none (%v)", err)
		}
		c.Must(err, "declare a stream with MaxBytes")
		s = limited
	}
	limit := s.Capabilities().MaxBytes
	if limit > 64<<20 {
		c.Skip("the limit of %d bytes is beyond what a test sends", limit)
	}
	r := newStreamRun(c, s)
	tooLarge := func(err error, what string) {
		c.WantErr(err, broker.ErrTooLarge, "publish %s above the limit of %d bytes", what, limit)
		if e, ok := errors.AsType[*broker.SizeError](err); ok && e.Limit != 0 && e.Size <= e.Limit {
			c.Errorf("the error says %d of %d bytes", e.Size, e.Limit)
		}
	}
	ctx, cancel := c.Soon()
	defer cancel()
	over := broker.Record{Value: bytes.Repeat([]byte("x"), limit+1)}
	_, err := s.Publish(ctx, over)
	tooLarge(err, "a value")
	_, err = s.Publish(ctx, broker.Record{Key: bytes.Repeat([]byte("k"), limit/2+1), Value: bytes.Repeat([]byte("x"), limit/2+1)})
	tooLarge(err, "a key and a value together")
	if s.Capabilities().Headers {
		_, err = s.Publish(ctx, broker.Record{Value: []byte("x"), Headers: broker.Headers{{Key: "h", Value: strings.Repeat("v", limit)}}})
		tooLarge(err, "headers")
	}
	good := r.make("good", 4, 0)
	got, err := s.PublishBatch(ctx, []broker.Record{good[0], good[1], over, good[2], good[3]})
	if len(got) != 5 {
		c.Errorf("publish a batch of 5: %d receipts", len(got))
	}
	for i := range 5 {
		if i == 2 {
			tooLarge(broker.ErrorAt(err, i), "one of a batch")
		} else if e := broker.ErrorAt(err, i); e != nil {
			c.Errorf("record %d beside an oversized one: %v", i, e)
		}
	}
	most := r.make("most", 1, 0) // multi-byte characters: bytes count
	most[0].Value = append(most[0].Value, bytes.Repeat([]byte("é"), (limit-len(most[0].Value))/2)...)
	_, err = s.Publish(ctx, most[0])
	c.Must(err, "publish %d bytes, the limit is %d", len(most[0].Value), limit)
	r.sameSet(valuesOf(r.readAll()), append(sentValues(good), string(most[0].Value)), "what was not too large")
}

func streamBadName(c *C, s broker.Stream) {
	r := newStreamRun(c, s)
	admin := c.Admin()
	ctx, cancel := c.Soon()
	defer cancel()
	for _, name := range []string{"", strings.Repeat("n", 256), "line\nbreak", "nul\x00"} {
		err := r.promptly("DeclareStream with a bad name", func() error { return admin.DeclareStream(ctx, name, broker.StreamConfig{}) })
		c.WantErr(err, broker.ErrInvalid, "declare a stream named %.20q", name)
		err = r.promptly("Stream with a bad name", func() error {
			got, err := c.Broker().Stream(ctx, name, nil)
			if err == nil {
				c.track("stream", got.Close)
			}
			return err
		})
		c.WantErr(err, broker.ErrInvalid, "open a stream named %.20q", name)
	}
	for _, cfg := range []broker.StreamConfig{{Partitions: -1}, {Retention: -time.Second}, {RetentionBytes: -1}, {MaxBytes: -1}} {
		err := r.promptly("DeclareStream", func() error { return admin.DeclareStream(ctx, c.Name("stream"), cfg) })
		c.WantErr(err, broker.ErrInvalid, "declare a stream with %+v", cfg)
	}
	err := r.promptly("Consumer of a group without a name", func() error {
		gc, err := s.Consumer(ctx, "", nil)
		if err == nil {
			c.track("member", gc.Close)
		}
		return err
	})
	c.WantErr(err, broker.ErrInvalid, "join a group without a name")

	// A stream that is missing: at open, or at the first call.
	missing := c.Name("stream")
	err = r.promptly("the use of a missing stream", func() error {
		got, err := c.Broker().Stream(ctx, missing, nil)
		if err != nil {
			return err
		}
		c.track("stream", got.Close)
		_, err = got.Partitions(ctx)
		if err == nil {
			return nil
		}
		_, publish := got.Publish(ctx, broker.Record{Value: []byte("never")})
		c.WantErr(publish, broker.ErrNotFound, "publish to a missing stream")
		c.WantErr(firstErr(ctx, got, broker.Range{}), broker.ErrNotFound, "read a missing stream")
		return err
	})
	c.WantErr(err, broker.ErrNotFound, "use a missing stream")
	if err = admin.DeleteStream(ctx, missing); err != nil {
		c.Errorf("delete a missing stream: %v, want nil", err)
	}
	if open := c.Harness().OpenBad; open != nil {
		err = r.promptly("the use of bad credentials", func() error {
			b, err := open(ctx)
			if err != nil {
				return err
			}
			c.track("broker", b.Close)
			return b.Ping(ctx)
		})
		c.WantErr(err, broker.ErrUnauthorized, "connect with wrong credentials")
	}
}

func streamUnsupportedRefused(c *C, s broker.Stream) {
	r := newStreamRun(c, s)
	caps := s.Capabilities()
	ctx, cancel := c.Soon()
	defer cancel()
	if !caps.Headers {
		streamHeadersRefused(c, s)
	}
	if !caps.Tombstones {
		streamTombstoneRefused(c, s)
	}
	if !caps.Timestamps {
		var rec broker.Record
		rec.SetTime(time.Now())
		refuseRecord(c, s, "a time", rec)
	}
	if !caps.SeekTime {
		streamSeekTimeRefused(c, s)
	}
	if !caps.Transactions {
		streamTransactionsRefused(c, s)
	}
	if !caps.Compaction {
		err := c.Admin().DeclareStream(ctx, c.Name("stream"), broker.StreamConfig{Compact: true})
		c.WantErr(err, broker.ErrUnsupported, "declare a stream with Compact")
	}
	if !caps.Growth {
		streamGrowthRefused(c, s)
	}
	if !caps.GroupReset {
		err := c.Admin().ResetGroup(ctx, s.Name(), c.Name("group"), broker.Earliest())
		c.WantErr(err, broker.ErrUnsupported, "ResetGroup")
	} else {
		streamGroupReset(r)
	}
	if !caps.Dedup {
		got, err := c.Broker().Stream(ctx, s.Name(), &broker.StreamOptions{Producer: "producer"})
		if err == nil {
			c.track("stream", got.Close)
		}
		c.WantErr(err, broker.ErrUnsupported, "open with a Producer")
	}
	err := c.Admin().DeclareStream(ctx, c.Name("stream"), broker.StreamConfig{Options: map[string]string{"no.such.option": "x"}})
	if !errors.Is(err, broker.ErrUnsupported) && !errors.Is(err, broker.ErrInvalid) {
		c.Errorf("declare a stream with an option that does not exist: %v, want ErrUnsupported or ErrInvalid", err)
	}

	// What is never allowed, and what cannot be.
	before := len(r.readAll())
	for what, rec := range map[string]broker.Record{
		"a tombstone with a value": {Key: []byte("k"), Value: []byte("never"), Tombstone: true},
		"a negative partition":     {Value: []byte("never"), Pin: true, Partition: -1},
		"a header without a key":   {Value: []byte("never"), Headers: broker.Headers{{Value: "v"}}},
	} {
		_, err := s.Publish(ctx, rec)
		if !errors.Is(err, broker.ErrInvalid) && !errors.Is(err, broker.ErrUnsupported) {
			c.Errorf("publish %s: %v, want ErrInvalid", what, err)
		}
	}
	if _, err := s.Publish(ctx, broker.Record{Value: []byte("never"), Pin: true, Partition: 4000}); err == nil {
		c.Errorf("publish to a partition that is missing: nil")
	}
	if err := firstErr(ctx, s, broker.Range{Partitions: []int32{4000}}); err == nil {
		c.Errorf("read a partition that is missing: nil")
	}
	if err := firstErr(ctx, s, broker.Range{From: broker.Committed()}); !errors.Is(err, broker.ErrInvalid) {
		c.Errorf("read from the commit, without a group: %v, want ErrInvalid", err)
	}
	if n := len(r.readAll()); n != before {
		c.Errorf("%d records were stored by calls that were refused", n-before)
	}
}

// streamGroupReset: ResetGroup sets the stored offsets of a group without
// members, and is refused while it has some.
func streamGroupReset(r *streamRun) {
	before := r.readAll() // what the other refusals left
	zero, _ := r.twoFull(10)
	group := r.Name("group")
	ctx, cancel := r.Soon()
	defer cancel()
	reset := func(to broker.Position) error {
		return r.Admin().ResetGroup(ctx, r.stream.Name(), group, to)
	}
	m := r.join(group, broker.GroupOptions{}, nil)
	all := m.collect(len(before) + 20)
	m.done(all...)
	r.WantErr(reset(broker.Earliest()), broker.ErrConflict, "ResetGroup while the group has a member")
	m.close()
	r.Must(reset(broker.Earliest()), "ResetGroup to the earliest record")
	m = r.join(group, broker.GroupOptions{Start: broker.Latest()}, nil)
	want := append(valuesOf(of(before, 0)), sentValues(zero)...)
	r.sameValues(valuesOf(of(m.collect(len(before)+20), 0)), want, "after ResetGroup to the earliest record")
	m.close()
	r.Must(reset(broker.Latest()), "ResetGroup to the end")
	m = r.join(group, broker.GroupOptions{}, nil)
	m.nothing("the group was reset to the end")
	m.close()
}
