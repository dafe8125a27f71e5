package kafka_test

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/kafka"
)

func TestStreamKeepsRecordsExactly(t *testing.T) {
	onBrokers(t, func(t *testing.T, o *kafka.Options) {
		ctx := testContext(t)
		s := declare(t, open(t, o), broker.StreamConfig{Partitions: 3})
		at := time.UnixMilli(time.Now().Add(-time.Minute).UnixMilli()) // younger than the topic's retention
		in := []broker.Record{
			{Key: []byte("k"), Value: []byte{0, 1, 0xff}, Headers: broker.Headers{{Key: "a", Value: "1"}, {Key: "a", Value: "\x00\xff"}, {Key: "b"}}},
			{Key: []byte("k"), Value: nil},
			{Key: []byte("k"), Tombstone: true},
			{Value: []byte("pinned"), Partition: 2, Pin: true},
		}
		in[0].SetTime(at)
		receipts, err := s.PublishBatch(ctx, in)
		if err != nil {
			t.Fatal(err)
		}
		if receipts[3].Partition != 2 {
			t.Errorf("pinned to partition %d, want 2", receipts[3].Partition)
		}
		var got []*broker.Record
		for r, err := range s.Read(ctx, broker.Range{}) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, r)
		}
		if len(got) != len(in) {
			t.Fatalf("read %d records, want %d", len(got), len(in))
		}
		for i, want := range in {
			j := slices.IndexFunc(got, func(r *broker.Record) bool {
				return r.Partition == receipts[i].Partition && r.Offset() == receipts[i].Offset
			})
			if j < 0 {
				t.Fatalf("record %d is not where its receipt says: %+v", i, receipts[i])
			}
			r := got[j]
			if !bytes.Equal(r.Key, want.Key) || !bytes.Equal(r.Value, want.Value) || r.Tombstone != want.Tombstone || !slices.Equal(r.Headers, want.Headers) {
				t.Errorf("record %d is %+v, want %+v", i, r, want)
			}
		}
		if !got[slices.IndexFunc(got, func(r *broker.Record) bool { return len(r.Headers) > 0 })].Time().Equal(at) {
			t.Errorf("the time was not kept")
		}
	})
}

func TestGroupReadsCommitsAndResumes(t *testing.T) {
	onBrokers(t, func(t *testing.T, o *kafka.Options) {
		ctx := testContext(t)
		s := declare(t, open(t, o), broker.StreamConfig{Partitions: 4})
		publish(t, s, 100)
		c := member(t, s, s.Name(), nil)
		rs := receive(t, c, 100)
		last := map[int32]broker.Offset{}
		for _, r := range rs {
			if o, ok := last[r.Partition]; ok && r.Offset().Compare(o) <= 0 {
				t.Fatalf("partition %d: %v after %v", r.Partition, r.Offset(), o)
			}
			last[r.Partition] = r.Offset()
		}
		if err := c.Commit(ctx, rs[:60]...); err != nil {
			t.Fatal(err)
		}
		if err := c.Commit(ctx, rs[:10]...); err != nil {
			t.Fatal(err)
		}
		lag, err := s.Lag(ctx, s.Name())
		if err != nil {
			t.Fatal(err)
		}
		var total int64
		for _, l := range lag {
			total += l.Lag
		}
		if total != 40 {
			t.Errorf("lag %d after 60 of 100, want 40: %+v", total, lag)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		if err := c.Commit(ctx, rs...); !errors.Is(err, broker.ErrClosed) {
			t.Errorf("commit after close: %v", err)
		}
		rest := receive(t, member(t, s, s.Name(), nil), 40)
		for _, r := range rest {
			if slices.ContainsFunc(rs[:60], func(q *broker.Record) bool { return q.Partition == r.Partition && q.Offset() == r.Offset() }) {
				t.Fatalf("partition %d offset %v came again", r.Partition, r.Offset())
			}
		}
	})
}

func TestSeekPauseAndResume(t *testing.T) {
	onBrokers(t, func(t *testing.T, o *kafka.Options) {
		ctx := testContext(t)
		s := declare(t, open(t, o), broker.StreamConfig{Partitions: 1})
		began := time.UnixMilli(time.Now().Add(-time.Minute).UnixMilli()) // younger than the topic's retention
		for i := range 3 {
			rs := texts(10)
			for j := range rs {
				rs[j].SetTime(began.Add(time.Duration(i) * time.Second))
			}
			if _, err := s.PublishBatch(ctx, rs); err != nil {
				t.Fatal(err)
			}
		}
		c := member(t, s, s.Name(), nil)
		receive(t, c, 30)
		for _, seek := range []struct {
			to   broker.Position
			want int64
		}{
			{broker.Earliest(), 0},
			{broker.AtOffset(broker.NewOffset(17)), 17},
			{broker.AtTime(began.Add(500 * time.Millisecond)), 10},
			{broker.Committed(), 0},
		} {
			if err := c.Seek(ctx, 0, seek.to); err != nil {
				t.Fatal(err)
			}
			if r := receive(t, c, 1)[0]; r.Offset() != broker.NewOffset(seek.want) {
				t.Errorf("seek to %v: got offset %v, want %d", seek.to, r.Offset(), seek.want)
			}
		}
		for _, n := range []int64{31, 1 << 40} {
			if err := c.Seek(ctx, 0, broker.AtOffset(broker.NewOffset(n))); !errors.Is(err, broker.ErrOutOfRange) {
				t.Errorf("seek to %d: %v, want ErrOutOfRange", n, err)
			}
		}
		c.Pause(0)
		if err := c.Seek(ctx, 0, broker.Earliest()); err != nil {
			t.Fatal(err)
		}
		short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		defer cancel()
		if rs, err := c.Receive(short, 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("received %d records of a paused partition, error %v", len(rs), err)
		}
		c.Resume(0)
		receive(t, c, 30)
	})
}

func TestReadBounds(t *testing.T) {
	onBrokers(t, func(t *testing.T, o *kafka.Options) {
		ctx := testContext(t)
		s := declare(t, open(t, o), broker.StreamConfig{Partitions: 1})
		publish(t, s, 20)
		read := func(r broker.Range) (n int, err error) {
			for _, err := range s.Read(ctx, r) {
				if err != nil {
					return n, err
				}
				n++
			}
			return n, nil
		}
		at := func(n int64) broker.Position { return broker.AtOffset(broker.NewOffset(n)) }
		for _, c := range []struct {
			r    broker.Range
			want int
			err  error
		}{
			{broker.Range{}, 20, nil},
			{broker.Range{From: at(5), Until: at(9)}, 4, nil},
			{broker.Range{From: broker.Latest()}, 0, nil},
			{broker.Range{From: at(20)}, 0, nil},
			{broker.Range{From: at(21)}, 0, broker.ErrOutOfRange},
			{broker.Range{Partitions: []int32{7}}, 0, broker.ErrInvalid},
			{broker.Range{Partitions: []int32{0, 0}}, 20, nil},
		} {
			n, err := read(c.r)
			if n != c.want || !errors.Is(err, c.err) {
				t.Errorf("%+v: %d records and %v, want %d and %v", c.r, n, err, c.want, c.err)
			}
		}
		for _, err := range s.Read(ctx, broker.Range{}) {
			if err != nil {
				t.Error(err)
			}
			break // must free everything: goleak looks
		}
	})
}

func TestTwoMembersShareAndHandOver(t *testing.T) {
	onBrokers(t, func(t *testing.T, o *kafka.Options) {
		ctx := testContext(t)
		s := declare(t, open(t, o), broker.StreamConfig{Partitions: 4})
		revoked := make(chan int, 100)
		a := member(t, s, s.Name(), &broker.GroupOptions{OnRevoked: func(_ context.Context, ps []int32) { revoked <- len(ps) }})
		publish(t, s, 40)
		rs := receive(t, a, 40)
		if err := a.Commit(ctx, rs...); err != nil {
			t.Fatal(err)
		}
		b := member(t, s, s.Name(), nil)
		receiving, stop := context.WithCancel(ctx)
		defer stop()
		done := make(chan error, 2)
		for _, c := range []broker.GroupConsumer{a, b} {
			go func() {
				_, err := c.Receive(receiving, 1)
				done <- err
			}()
		}
		eventually(t, "two partitions each", func() bool { return len(a.Partitions()) == 2 && len(b.Partitions()) == 2 })
		if n := <-revoked; n != 2 {
			t.Errorf("OnRevoked of %d partitions, want 2", n)
		}
		stop()
		for range 2 {
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Errorf("receive: %v", err)
			}
		}
		var lost *broker.Record
		for _, r := range rs {
			if !slices.Contains(a.Partitions(), r.Partition) {
				lost = r
			}
		}
		if err := a.Commit(ctx, lost); !errors.Is(err, broker.ErrFenced) {
			t.Errorf("commit of a partition that was handed over: %v, want ErrFenced", err)
		}
	})
}

func TestResetGroup(t *testing.T) {
	onBrokers(t, func(t *testing.T, o *kafka.Options) {
		ctx := testContext(t)
		b := open(t, o)
		s := declare(t, b, broker.StreamConfig{Partitions: 1})
		publish(t, s, 10)
		c := member(t, s, s.Name(), nil)
		rs := receive(t, c, 10)
		if err := c.Commit(ctx, rs...); err != nil {
			t.Fatal(err)
		}
		if err := b.ResetGroup(ctx, s.Name(), s.Name(), broker.Earliest()); !errors.Is(err, broker.ErrConflict) {
			t.Errorf("reset of a group with a member: %v, want ErrConflict", err)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		if err := b.ResetGroup(ctx, s.Name(), s.Name(), broker.AtOffset(broker.NewOffset(4))); err != nil {
			t.Fatal(err)
		}
		if r := receive(t, member(t, s, s.Name(), nil), 1)[0]; r.Offset() != broker.NewOffset(4) {
			t.Errorf("after the reset the group begins at %v, want 4", r.Offset())
		}
	})
}
