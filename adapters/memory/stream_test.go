package memory

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/queuestream/broker"
)

func declareStream(t *testing.T, b *Broker, cfg broker.StreamConfig) *Stream {
	t.Helper()
	check(t, b.DeclareStream(t.Context(), "s", cfg))
	s, err := b.Stream(t.Context(), "s", nil)
	check(t, err)
	return s.(*Stream)
}

func rec(key, value string) broker.Record {
	return broker.Record{Key: []byte(key), Value: []byte(value)}
}

func appendTo(t *testing.T, s broker.Stream, rs ...broker.Record) {
	t.Helper()
	_, err := s.PublishBatch(t.Context(), rs)
	check(t, err)
}

// read returns the values of a range, with a tombstone as "-".
func read(t *testing.T, s broker.Stream, r broker.Range) string {
	t.Helper()
	var out []string
	for r, err := range s.Read(t.Context(), r) {
		check(t, err)
		v := string(r.Value)
		if r.Tombstone {
			v = "-"
		}
		out = append(out, v)
	}
	return strings.Join(out, " ")
}

func join(t *testing.T, s broker.Stream, group string, o *broker.GroupOptions) *GroupConsumer {
	t.Helper()
	m, err := s.Consumer(t.Context(), group, o)
	check(t, err)
	return m.(*GroupConsumer)
}

// take receives exactly n records.
func take(t *testing.T, m broker.GroupConsumer, n int) []*broker.Record {
	t.Helper()
	var rs []*broker.Record
	for len(rs) < n {
		got, err := m.Receive(t.Context(), n-len(rs))
		check(t, err)
		rs = append(rs, got...)
	}
	return rs
}

func values(rs []*broker.Record) string {
	var out []string
	for _, r := range rs {
		out = append(out, string(r.Value))
	}
	return strings.Join(out, " ")
}

// nothing checks that no record comes for a second.
func nothing(t *testing.T, m broker.GroupConsumer) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if rs, err := m.Receive(ctx, 10); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("received %q, %v", values(rs), err)
	}
}

func TestStreamPositions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		b := open(t, nil)
		s := declareStream(t, b, broker.StreamConfig{})
		start := time.Now()
		for i := range 5 {
			appendTo(t, s, rec("k", fmt.Sprint(i)))
			<-time.After(time.Second)
		}
		at := func(n int64) broker.Position { return broker.AtOffset(broker.NewOffset(n)) }
		for _, c := range []struct {
			from, until broker.Position
			want        string
		}{
			{broker.Position{}, broker.Position{}, "0 1 2 3 4"},
			{broker.Earliest(), broker.Now(), "0 1 2 3 4"},
			{broker.Latest(), broker.Position{}, ""},
			{at(2), broker.Position{}, "2 3 4"},
			{at(5), broker.Position{}, ""},
			{at(1), at(3), "1 2"},
			{at(1), at(99), "1 2 3 4"},
			{broker.AtTime(start.Add(1500 * time.Millisecond)), broker.Position{}, "2 3 4"},
			{broker.AtTime(start.Add(time.Second)), broker.AtTime(start.Add(3 * time.Second)), "1 2"},
			{broker.AtTime(start.Add(time.Hour)), broker.Position{}, ""},
		} {
			if got := read(t, s, broker.Range{From: c.from, Until: c.until}); got != c.want {
				t.Errorf("%v to %v: %q, want %q", c.from, c.until, got, c.want)
			}
		}
		big, err := broker.ParseOffset(strings.Repeat("9", 30))
		check(t, err)
		for _, c := range []struct {
			r    broker.Range
			want error
		}{
			{broker.Range{From: at(6)}, broker.ErrOutOfRange},
			{broker.Range{From: broker.AtOffset(big)}, broker.ErrOutOfRange},
			{broker.Range{From: broker.Committed()}, broker.ErrInvalid},
			{broker.Range{Until: broker.Committed()}, broker.ErrInvalid},
			{broker.Range{Partitions: []int32{1}}, broker.ErrNotFound},
		} {
			n := 0
			for r, err := range s.Read(ctx, c.r) {
				wantErr(t, err, c.want)
				if n++; r != nil {
					t.Fatal("a record with an error")
				}
			}
			if n != 1 {
				t.Fatalf("%d pairs", n)
			}
		}
		for _, err := range s.Read(ctx, broker.Range{}) {
			check(t, err)
			break
		}
		// A member that starts somewhere.
		for _, c := range []struct {
			start broker.Position
			want  string
		}{
			{broker.Position{}, "0"}, {at(3), "3"}, {at(77), "0"}, {broker.AtTime(start.Add(2 * time.Second)), "2"},
		} {
			m := join(t, s, "g"+c.start.String(), &broker.GroupOptions{Start: c.start})
			if got := values(take(t, m, 1)); got != c.want {
				t.Errorf("start %v: %q, want %q", c.start, got, c.want)
			}
			check(t, m.Close())
		}
		m := join(t, s, "latest", &broker.GroupOptions{Start: broker.Latest()})
		nothing(t, m)
		appendTo(t, s, rec("k", "5"), rec("k", "6"))
		rs := take(t, m, 2)
		// Another member goes on from there, not from the latest.
		m2 := join(t, s, "latest", &broker.GroupOptions{Start: broker.Latest()})
		check(t, m.Close())
		if got := values(take(t, m2, 2)); got != "5 6" {
			t.Fatalf("received %q", got)
		}
		wantErr(t, m.Commit(ctx, rs...), broker.ErrClosed)
		_, err = s.Consumer(ctx, "g", &broker.GroupOptions{Start: broker.Committed()})
		wantErr(t, err, broker.ErrInvalid)
		_, err = s.Consumer(ctx, "", nil)
		wantErr(t, err, broker.ErrInvalid)
	})
}

func TestSeekAndCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		b := open(t, nil)
		s := declareStream(t, b, broker.StreamConfig{})
		for i := range 10 {
			appendTo(t, s, rec("", fmt.Sprint(i)))
		}
		committed := func(group string) string {
			ls, err := s.Lag(ctx, group)
			check(t, err)
			if !ls[0].HasCommit {
				return fmt.Sprintf("none, lag %d", ls[0].Lag)
			}
			return fmt.Sprintf("%v, lag %d", ls[0].Committed, ls[0].Lag)
		}
		expect := func(want string) {
			t.Helper()
			if got := committed("g"); got != want {
				t.Fatalf("committed %s, want %s", got, want)
			}
		}
		expect("none, lag 10")
		m := join(t, s, "g", nil)
		rs := take(t, m, 6)
		check(t, m.Commit(ctx, rs[5], rs[2]))
		expect("6, lag 4")
		check(t, m.Commit(ctx, rs[0]))
		expect("6, lag 4") // never back
		check(t, m.Seek(ctx, 0, broker.Earliest()))
		wantErr(t, m.Commit(ctx, rs[5]), broker.ErrFenced)
		again := take(t, m, 2)
		expect("6, lag 4") // until a commit
		check(t, m.Commit(ctx, again[0]))
		expect("1, lag 9")
		check(t, m.Seek(ctx, 0, broker.Committed()))
		if got := values(take(t, m, 1)); got != "1" {
			t.Fatal(got)
		}
		wantErr(t, m.Seek(ctx, 0, broker.AtOffset(broker.NewOffset(11))), broker.ErrOutOfRange)
		wantErr(t, m.Seek(ctx, 1, broker.Earliest()), broker.ErrNotFound)
		check(t, m.Seek(ctx, 0, broker.Latest()))
		nothing(t, m)
		for r, err := range s.Read(ctx, broker.Range{}) {
			check(t, err)
			wantErr(t, m.Commit(ctx, r), broker.ErrInvalid)
			break
		}
		ended, cancel := context.WithCancel(ctx)
		cancel()
		wantErr(t, m.Commit(ended), context.Canceled)
		wantErr(t, m.Seek(ended, 0, broker.Earliest()), context.Canceled)
		_, err := m.Receive(ended, 1)
		wantErr(t, err, context.Canceled)
		_, err = m.Receive(ctx, 0)
		wantErr(t, err, broker.ErrInvalid)

		wantErr(t, b.ResetGroup(ctx, "s", "g", broker.Earliest()), broker.ErrConflict)
		check(t, m.Close())
		check(t, b.ResetGroup(ctx, "s", "g", broker.AtOffset(broker.NewOffset(8))))
		expect("8, lag 2")
		wantErr(t, b.ResetGroup(ctx, "s", "g", broker.AtOffset(broker.NewOffset(11))), broker.ErrOutOfRange)
		wantErr(t, b.ResetGroup(ctx, "none", "g", broker.Earliest()), broker.ErrNotFound)
		check(t, b.ResetGroup(ctx, "s", "new", broker.Latest()))
		if got := committed("new"); got != "10, lag 0" {
			t.Fatal(got)
		}
	})
}

func TestPauseResume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, nil)
		s := declareStream(t, b, broker.StreamConfig{Partitions: 2})
		m := join(t, s, "g", nil)
		m.Pause(0)
		for p := range int32(2) {
			appendTo(t, s, broker.Record{Value: fmt.Append(nil, p), Pin: true, Partition: p})
		}
		if got := values(take(t, m, 1)); got != "1" {
			t.Fatal(got)
		}
		got := make(chan string)
		go func() {
			rs, err := m.Receive(t.Context(), 5)
			if err != nil {
				t.Error(err)
			}
			got <- values(rs)
		}()
		synctest.Wait()
		m.Resume(0)
		if v := <-got; v != "0" {
			t.Fatal(v)
		}
	})
}

func TestRetention(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		b := open(t, &Options{MaxPartitionBytes: 4000})
		s := declareStream(t, b, broker.StreamConfig{Retention: time.Hour})
		for i := range 600 {
			appendTo(t, s, broker.Record{Value: fmt.Append(nil, i)})
		}
		ps, err := s.Partitions(ctx)
		check(t, err)
		first, _ := ps[0].First.Int64()
		if next, _ := ps[0].Next.Int64(); next != 600 || first < 570 || first > 590 {
			t.Fatalf("%+v", ps)
		}
		if got := read(t, s, broker.Range{}); !strings.HasSuffix(got, "598 599") || !strings.HasPrefix(got, fmt.Sprint(first)) {
			t.Fatal(got)
		}
		m := join(t, s, "g", nil)
		rs := take(t, m, 1)
		check(t, m.Commit(ctx, rs...))
		<-time.After(30 * time.Minute)
		appendTo(t, s, rec("", "new"))
		<-time.After(45 * time.Minute)
		if got := read(t, s, broker.Range{}); got != "new" {
			t.Fatal(got)
		}
		if got := values(take(t, m, 1)); got != "new" { // goes on with what is there
			t.Fatal(got)
		}
		ls, err := s.Lag(ctx, "g")
		check(t, err)
		if ls[0].Lag != 1 {
			t.Fatalf("%+v", ls)
		}
		wantErr(t, m.Seek(ctx, 0, broker.AtOffset(broker.NewOffset(0))), broker.ErrOutOfRange)
		<-time.After(time.Hour)
		r, err := s.Publish(ctx, rec("", "after"))
		check(t, err)
		if r.Offset != broker.NewOffset(601) { // offsets are never used again
			t.Fatal(r.Offset)
		}
	})
}

func TestCompaction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		b := open(t, nil)
		s := declareStream(t, b, broker.StreamConfig{Compact: true, Options: map[string]string{OptionTombstoneRetention: "1h"}})
		for i := range 2000 {
			appendTo(t, s, rec(fmt.Sprint("k", i%3), fmt.Sprint(i)))
		}
		appendTo(t, s, broker.Record{Key: []byte("k0"), Tombstone: true})
		if got := read(t, s, broker.Range{}); got != "1997 1999 -" {
			t.Fatal(got)
		}
		n := 0
		for r, err := range s.Read(ctx, broker.Range{From: broker.AtOffset(broker.NewOffset(5))}) {
			check(t, err)
			if n++; string(r.Key) == "k0" && !r.Tombstone {
				t.Fatalf("%s came back", r.Value)
			}
		}
		if n != 3 {
			t.Fatalf("%d records", n)
		}
		ls, err := s.Lag(ctx, "g")
		check(t, err)
		if ls[0].Lag != 3 {
			t.Fatalf("%+v", ls)
		}
		<-time.After(61 * time.Minute)
		appendTo(t, s, rec("k1", "last"))
		if got := read(t, s, broker.Range{}); got != "1997 last" {
			t.Fatal(got)
		}
		if p := s.s.parts[0]; p.records != 2 || len(p.latest) != 2 || len(p.tombstones) != 0 {
			t.Fatalf("%d records, %v, %v", p.records, p.latest, p.tombstones)
		}
	})
}

func TestStreamErrors(t *testing.T) {
	ctx := t.Context()
	b := open(t, nil)
	for _, c := range []struct {
		cfg  broker.StreamConfig
		want error
	}{
		{broker.StreamConfig{Partitions: -1}, broker.ErrInvalid},
		{broker.StreamConfig{Partitions: maxPartitions + 1}, broker.ErrInvalid},
		{broker.StreamConfig{Replicas: -1}, broker.ErrInvalid},
		{broker.StreamConfig{Replicas: 3}, broker.ErrUnsupported},
		{broker.StreamConfig{Retention: -1}, broker.ErrInvalid},
		{broker.StreamConfig{RetentionBytes: -1}, broker.ErrInvalid},
		{broker.StreamConfig{MaxBytes: -1}, broker.ErrInvalid},
		{broker.StreamConfig{Options: map[string]string{"x": ""}}, broker.ErrUnsupported},
		{broker.StreamConfig{Options: map[string]string{OptionTombstoneRetention: "x"}}, broker.ErrInvalid},
	} {
		wantErr(t, b.DeclareStream(ctx, "s", c.cfg), c.want)
	}
	wantErr(t, b.DeclareStream(ctx, "", broker.StreamConfig{}), broker.ErrInvalid)
	_, err := b.Stream(ctx, "s", nil)
	wantErr(t, err, broker.ErrNotFound)
	s := declareStream(t, b, broker.StreamConfig{Partitions: 2, MaxBytes: 10})
	check(t, b.DeclareStream(ctx, "s", broker.StreamConfig{Partitions: 2, MaxBytes: 10}))
	for _, cfg := range []broker.StreamConfig{
		{Partitions: 1, MaxBytes: 10}, {Partitions: 2}, {Partitions: 2, MaxBytes: 10, Compact: true},
		{Partitions: 2, MaxBytes: 10, Retention: time.Hour}, {Partitions: 2, MaxBytes: 10, RetentionBytes: 1},
	} {
		wantErr(t, b.DeclareStream(ctx, "s", cfg), broker.ErrConflict)
	}
	named, err := b.Stream(ctx, "s", &broker.StreamOptions{Producer: "p"})
	check(t, err)
	check(t, named.Close())
	asKafka := open(t, &Options{Profile: KafkaTopic})
	check(t, asKafka.DeclareStream(ctx, "s", broker.StreamConfig{}))
	_, err = asKafka.Stream(ctx, "s", &broker.StreamOptions{Producer: "p"})
	wantErr(t, err, broker.ErrUnsupported)
	_, err = b.Stream(ctx, "s", &broker.StreamOptions{Require: broker.StreamCapabilities{Durable: true}})
	wantErr(t, err, broker.ErrUnsupported)
	rs, err := s.PublishBatch(ctx, []broker.Record{
		rec("k", "v"), {Value: make([]byte, 11)}, {Pin: true, Partition: 2}, {Tombstone: true}, rec("k", "w"),
	})
	for i, want := range []error{nil, broker.ErrTooLarge, broker.ErrNotFound, broker.ErrInvalid, nil} {
		if e := broker.ErrorAt(err, i); !errors.Is(e, want) {
			t.Fatalf("%d: %v", i, e)
		}
	}
	if len(rs) != 5 || rs[0].Partition != rs[4].Partition || rs[4].Offset != broker.NewOffset(1) {
		t.Fatalf("%+v", rs)
	}
	m := join(t, s, "g", nil)
	errs := make(chan error)
	go func() {
		for {
			if _, err := m.Receive(ctx, 10); err != nil {
				errs <- err
				return
			}
		}
	}()
	check(t, b.DeleteStream(ctx, "s"))
	wantErr(t, <-errs, broker.ErrNotFound)
	_, err = s.Publish(ctx, rec("", ""))
	wantErr(t, err, broker.ErrNotFound)
	_, err = s.Partitions(ctx)
	wantErr(t, err, broker.ErrNotFound)
	_, err = s.Lag(ctx, "g")
	wantErr(t, err, broker.ErrNotFound)
	_, err = s.Consumer(ctx, "g", nil)
	wantErr(t, err, broker.ErrNotFound)
	for _, err := range s.Read(ctx, broker.Range{}) {
		wantErr(t, err, broker.ErrNotFound)
	}
}

func TestStreamCopies(t *testing.T) {
	ctx := t.Context()
	s := declareStream(t, open(t, nil), broker.StreamConfig{})
	r := rec("key", "value")
	r.Headers = broker.Headers{{Key: "k", Value: "v"}}
	stamp := time.UnixMilli(123456)
	r.SetTime(stamp)
	appendTo(t, s, r, r)
	clear(r.Value)
	r.Headers[0].Value = "x"
	for range 2 {
		for r, err := range s.Read(ctx, broker.Range{}) {
			check(t, err)
			if string(r.Key) != "key" || string(r.Value) != "value" || r.Headers.Get("k") != "v" || !r.Time().Equal(stamp) {
				t.Fatalf("%+v", r)
			}
			clear(r.Key)
			_ = append(r.Value, "overwritten"...)
			r.Headers[0].Value = "changed"
		}
	}
}

// TestMurmur2 has the values of Kafka's own test of its default partitioner.
func TestMurmur2(t *testing.T) {
	for s, want := range map[string]int32{
		"21": -973932308, "foobar": -790332482, "a-little-bit-long-string": -985981536,
		"a-little-bit-longer-string": -1486304829, "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
	} {
		if got := int32(murmur2([]byte(s))); got != want {
			t.Errorf("murmur2(%q) = %d, want %d", s, got, want)
		}
	}
}

func TestGrowth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, nil)
		s := declareStream(t, b, broker.StreamConfig{})
		var added []int32
		m := join(t, s, "g", &broker.GroupOptions{OnAssigned: func(ps []int32) { added = append(added, ps...) }})
		check(t, b.DeclareStream(t.Context(), "s", broker.StreamConfig{Partitions: 3}))
		appendTo(t, s, broker.Record{Pin: true, Partition: 2, Value: []byte("x")})
		if got := values(take(t, m, 1)); got != "x" {
			t.Fatal(got)
		}
		if !slices.Equal(added, []int32{0, 1, 2}) {
			t.Fatal(added)
		}
	})
}
