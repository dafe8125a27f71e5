package broker_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/queuestream/broker"
)

func TestHeaders(t *testing.T) {
	h := broker.Headers{{"a", "1"}, {"b", "2"}, {"a", "3"}}
	if h.Get("a") != "1" || h.Get("c") != "" || !slices.Equal(h.Keys(), []string{"a", "b"}) || h.Size() != 6 {
		t.Errorf("%v: %q %v %d", h, h.Get("a"), h.Keys(), h.Size())
	}
	w1, w2 := h.With("x", "1"), h.With("y", "2")
	if w1.Get("y") != "" || w2.Get("x") != "" || len(h) != 3 {
		t.Errorf("With shares: %v %v", w1, w2)
	}
	c := h
	c.Set("a", "9")
	if !slices.Equal(c, broker.Headers{{"a", "9"}, {"b", "2"}}) || h.Get("a") != "1" {
		t.Errorf("Set: %v, original %v", c, h)
	}
	c.Set("n", "1")
	if c.Get("n") != "1" {
		t.Errorf("Set: %v", c)
	}
	none := h.Without(func(string) bool { return false })
	some := h.Without(func(k string) bool { return k == "a" })
	if len(none) != 3 || !slices.Equal(some, broker.Headers{{"b", "2"}}) || len(h) != 3 {
		t.Errorf("Without: %v %v %v", none, some, h)
	}
}

func TestNewID(t *testing.T) {
	seen := map[string]bool{}
	last := ""
	for range 1000 {
		id := broker.NewID()
		if len(id) != 36 || id[14] != '7' || !strings.ContainsRune("89ab", rune(id[19])) || seen[id] {
			t.Fatalf("id %q", id)
		}
		seen[id] = true
		if last != "" && id[:13] < last[:13] {
			t.Errorf("%s after %s", id, last)
		}
		last = id
	}
}

func FuzzParseOffset(f *testing.F) {
	for _, s := range []string{"0", "007", "12", "9223372036854775807", "9223372036854775808", "-1", "", "1a", strings.Repeat("9", 129)} {
		f.Add(s, "5")
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		o, err := broker.ParseOffset(a)
		if err != nil {
			if !errors.Is(err, broker.ErrInvalid) {
				t.Fatal(err)
			}
			return
		}
		if text, err := o.AppendText([]byte("at ")); err != nil || string(text) != "at "+o.String() {
			t.Errorf("AppendText: %q, %v", text, err)
		}
		if back, err := broker.ParseOffset(o.String()); err != nil || back != o {
			t.Fatalf("%q became %v, then %v, %v", a, o, back, err)
		}
		p, err := broker.ParseOffset(b)
		if err != nil {
			return
		}
		if o.Compare(p) != -p.Compare(o) || (o.Compare(p) == 0) != (o == p) {
			t.Fatalf("comparing %v and %v", o, p)
		}
	})
}

func TestOffsetOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func(name string) (string, broker.Offset) {
			s := strings.TrimLeft(rapid.StringMatching(`[0-9]{1,40}`).Draw(t, name), "0")
			if s == "" {
				s = "0"
			}
			o, err := broker.ParseOffset(s)
			if err != nil {
				t.Fatal(err)
			}
			return s, o
		}
		a, oa := draw("a")
		b, ob := draw("b")
		want := len(a) - len(b)
		if want == 0 {
			want = strings.Compare(a, b)
		}
		if got := oa.Compare(ob); got*want < 0 || (got == 0) != (want == 0) {
			t.Errorf("%s against %s: %d", a, b, got)
		}
		if n, ok := oa.Int64(); ok && broker.NewOffset(n) != oa {
			t.Errorf("%v is not %d", oa, n)
		}
	})
}

func TestPositions(t *testing.T) {
	at := time.UnixMilli(1700000000000)
	for want, p := range map[string]broker.Position{
		"default": {}, "earliest": broker.Earliest(), "latest": broker.Latest(), "now": broker.Now(),
		"committed": broker.Committed(), "offset 7": broker.AtOffset(broker.NewOffset(7)),
		"2023-11-14T22:13:20Z": broker.AtTime(at),
	} {
		if p.String() != want || p.IsZero() != (want == "default") {
			t.Errorf("%s: %v", want, p)
		}
	}
	if !broker.AtTime(at).Time().Equal(at) || broker.AtOffset(broker.NewOffset(7)).Offset() != broker.NewOffset(7) {
		t.Error("a position lost its value")
	}
}

func TestRecordTime(t *testing.T) {
	var r broker.Record
	if !r.Time().IsZero() {
		t.Error("a time from nowhere")
	}
	for _, at := range []time.Time{time.UnixMilli(0), time.UnixMilli(1700000000123), time.UnixMilli(-5)} {
		r.SetTime(at)
		if !r.Time().Equal(at) {
			t.Errorf("%v became %v", at, r.Time())
		}
	}
	r.SetTime(time.Time{})
	if !r.Time().IsZero() {
		t.Error("the time is still there")
	}
	a := &broker.Assignment{Stream: "s", Group: "g", Partition: 3}
	r.Key = []byte("k")
	r.Partition = 3
	r.Bind(broker.NewOffset(9), a)
	if i := r.Info(); i.ID != "s/3/9" || i.Source != "s" || i.Group != "g" || i.Key != "k" || !i.IsRecord {
		t.Errorf("info %+v", i)
	}
	a.End()
	a.End()
	if !r.Assignment().Ended() || (*broker.Assignment)(nil).Ended() {
		t.Error("Ended")
	}
}

func TestErrors(t *testing.T) {
	cause := errors.New("socket")
	err := fmt.Errorf("outer: %w", &broker.Error{Op: "publish", Adapter: "kafka", Name: "orders", Temporary: true, Err: broker.UnknownOutcome(cause)})
	if got := err.Error(); got != `outer: kafka: publish "orders": outcome unknown: socket` {
		t.Error(got)
	}
	if !errors.Is(err, broker.ErrUnknownOutcome) || !errors.Is(err, cause) || !broker.IsTemporary(err) {
		t.Error(err)
	}
	if broker.IsTemporary(cause) || !broker.IsTemporary(broker.ErrUnavailable) {
		t.Error("IsTemporary")
	}
	if broker.UnknownOutcome(nil) != nil || broker.UnknownOutcome(err) != err { //nolint:errorlint // the same value, not one that wraps it
		t.Error("UnknownOutcome wraps twice")
	}
	if err := broker.NewBatchError([]error{nil, nil}); err != nil {
		t.Error(err)
	}
	batch := broker.NewBatchError([]error{nil, cause, broker.ErrClosed})
	if batch.Error() != "2 of 3 failed, first at index 1: socket" || !errors.Is(batch, broker.ErrClosed) {
		t.Error(batch)
	}
	if (&broker.BatchError{}).Error() == "" {
		t.Error("an empty batch error")
	}
	if broker.ErrorAt(batch, 0) != nil || broker.ErrorAt(batch, 1) != cause || broker.ErrorAt(batch, 9) != batch || broker.ErrorAt(cause, 3) != cause { //nolint:errorlint // the same values
		t.Error("ErrorAt")
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	if broker.ContextError(ctx) != nil {
		t.Error("an error of a live context")
	}
	cancel(broker.ErrShutdown)
	if err := broker.ContextError(ctx); !errors.Is(err, context.Canceled) || !errors.Is(err, broker.ErrShutdown) {
		t.Error(err)
	}
}

func TestValidateMessage(t *testing.T) {
	all := broker.QueueCapabilities{Groups: true, Dedup: true, Delay: true, MaxDelay: time.Minute, TTL: true, MaxPriority: 5, Headers: true, MaxBytes: 100}
	for _, tc := range []struct {
		name       string
		m          broker.Message
		with, none error // with all capabilities, with none
	}{
		{"plain", broker.Message{Body: []byte("x")}, nil, nil},
		{"empty", broker.Message{}, nil, nil},
		{"group", broker.Message{GroupID: "g"}, nil, broker.ErrUnsupported},
		{"dedup", broker.Message{DedupID: "d"}, nil, broker.ErrUnsupported},
		{"delay", broker.Message{Delay: time.Second}, nil, broker.ErrUnsupported},
		{"long delay", broker.Message{Delay: time.Hour}, broker.ErrUnsupported, broker.ErrUnsupported},
		{"negative delay", broker.Message{Delay: -1}, broker.ErrInvalid, broker.ErrInvalid},
		{"huge delay", broker.Message{Delay: 1<<63 - 1}, broker.ErrInvalid, broker.ErrInvalid},
		{"ttl", broker.Message{TTL: time.Second}, nil, broker.ErrUnsupported},
		{"negative ttl", broker.Message{TTL: -1}, broker.ErrInvalid, broker.ErrInvalid},
		{"priority", broker.Message{Priority: 5}, nil, broker.ErrUnsupported},
		{"high priority", broker.Message{Priority: 6}, broker.ErrUnsupported, broker.ErrUnsupported},
		{"negative priority", broker.Message{Priority: -1}, broker.ErrInvalid, broker.ErrInvalid},
		{"headers", broker.Message{Headers: broker.Headers{{"k", "v"}}}, nil, broker.ErrUnsupported},
		{"empty header key", broker.Message{Headers: broker.Headers{{"", "v"}}}, broker.ErrInvalid, broker.ErrUnsupported},
		{"at the limit", broker.Message{Body: make([]byte, 90), ContentType: "12345", Headers: broker.Headers{{"12", "345"}}}, nil, broker.ErrUnsupported},
		{"over the limit", broker.Message{Body: make([]byte, 101)}, broker.ErrTooLarge, nil},
	} {
		if err := broker.ValidateMessage(&tc.m, &all); !errors.Is(err, tc.with) {
			t.Errorf("%s with all: %v, want %v", tc.name, err, tc.with)
		}
		if err := broker.ValidateMessage(&tc.m, &broker.QueueCapabilities{}); !errors.Is(err, tc.none) {
			t.Errorf("%s with none: %v, want %v", tc.name, err, tc.none)
		}
	}
	e, ok := errors.AsType[*broker.SizeError](broker.ValidateMessage(&broker.Message{Body: make([]byte, 101)}, &all))
	if !ok || e.Size != 101 || e.Limit != 100 || !strings.Contains(e.Error(), "at most 100") {
		t.Errorf("%+v", e)
	}
	if s := (&broker.SizeError{Size: 3}).Error(); !strings.Contains(s, "3 bytes") {
		t.Error(s)
	}
}

func TestValidateRecord(t *testing.T) {
	all := broker.StreamCapabilities{Headers: true, Tombstones: true, Timestamps: true, MaxBytes: 50}
	timed := broker.Record{}
	timed.SetTime(time.UnixMilli(5))
	for _, tc := range []struct {
		name       string
		r          broker.Record
		with, none error
	}{
		{"plain", broker.Record{Value: []byte("v")}, nil, nil},
		{"tombstone", broker.Record{Key: []byte("k"), Tombstone: true}, nil, broker.ErrUnsupported},
		{"tombstone without key", broker.Record{Tombstone: true}, broker.ErrInvalid, broker.ErrUnsupported},
		{"tombstone with value", broker.Record{Key: []byte("k"), Value: []byte("v"), Tombstone: true}, broker.ErrInvalid, broker.ErrInvalid},
		{"pin", broker.Record{Pin: true, Partition: -1}, broker.ErrInvalid, broker.ErrInvalid},
		{"time", timed, nil, broker.ErrUnsupported},
		{"headers", broker.Record{Headers: broker.Headers{{"k", "v"}}}, nil, broker.ErrUnsupported},
		{"bad header", broker.Record{Headers: broker.Headers{{"", ""}}}, broker.ErrInvalid, broker.ErrUnsupported},
		{"large", broker.Record{Value: make([]byte, 51)}, broker.ErrTooLarge, nil},
	} {
		if err := broker.ValidateRecord(&tc.r, &all); !errors.Is(err, tc.with) {
			t.Errorf("%s with all: %v, want %v", tc.name, err, tc.with)
		}
		if err := broker.ValidateRecord(&tc.r, &broker.StreamCapabilities{}); !errors.Is(err, tc.none) {
			t.Errorf("%s with none: %v, want %v", tc.name, err, tc.none)
		}
	}
}

func TestValidateTheRest(t *testing.T) {
	for _, name := range []string{"", strings.Repeat("x", 256), "a\nb", "a\x7f", "a\xff"} {
		if err := broker.ValidateDeclaredName(name); !errors.Is(err, broker.ErrInvalid) {
			t.Errorf("name %q: %v", name, err)
		}
	}
	if err := broker.ValidateDeclaredName("ö.fifo"); err != nil {
		t.Error(err)
	}
	lease := broker.QueueCapabilities{Lease: true, MaxLease: time.Hour, NackDelay: true, MaxNackDelay: time.Minute}
	for _, tc := range []struct {
		o    *broker.ConsumerOptions
		c    broker.QueueCapabilities
		want error
	}{
		{nil, lease, nil},
		{&broker.ConsumerOptions{Lease: time.Minute, Prefetch: 3}, lease, nil},
		{&broker.ConsumerOptions{Prefetch: -1}, lease, broker.ErrInvalid},
		{&broker.ConsumerOptions{Lease: -1}, lease, broker.ErrInvalid},
		{&broker.ConsumerOptions{Lease: 2 * time.Hour}, lease, broker.ErrUnsupported},
		{&broker.ConsumerOptions{Lease: 1}, broker.QueueCapabilities{}, broker.ErrUnsupported},
	} {
		if err := broker.ValidateConsumer(tc.o, &tc.c); !errors.Is(err, tc.want) {
			t.Errorf("%+v: %v, want %v", tc.o, err, tc.want)
		}
	}
	for _, tc := range []struct {
		v    broker.Verdict
		want error
	}{
		{broker.Verdict{Kind: broker.VerdictAck}, nil},
		{broker.Verdict{Kind: broker.VerdictNack, Delay: time.Minute}, nil},
		{broker.Verdict{Kind: broker.VerdictNack, Delay: time.Hour}, broker.ErrUnsupported},
		{broker.Verdict{Kind: broker.VerdictNack, Delay: -1}, broker.ErrInvalid},
		{broker.Verdict{Kind: broker.VerdictNack, Snooze: true}, broker.ErrUnsupported},
		{broker.Verdict{Kind: broker.VerdictReject}, broker.ErrUnsupported},
		{broker.Verdict{Kind: broker.VerdictExtend, Lease: time.Minute}, nil},
		{broker.Verdict{Kind: broker.VerdictExtend, Lease: 2 * time.Hour}, broker.ErrUnsupported},
		{broker.Verdict{Kind: broker.VerdictExtend, Lease: -1}, broker.ErrInvalid},
		{broker.Verdict{}, broker.ErrInvalid},
	} {
		if err := broker.ValidateVerdict(&tc.v, &lease); !errors.Is(err, tc.want) {
			t.Errorf("%+v: %v, want %v", tc.v, err, tc.want)
		}
	}
	none := broker.QueueCapabilities{}
	for _, v := range []broker.Verdict{{Kind: broker.VerdictExtend}, {Kind: broker.VerdictNack, Delay: 1}} {
		if err := broker.ValidateVerdict(&v, &none); !errors.Is(err, broker.ErrUnsupported) {
			t.Errorf("%+v: %v", v, err)
		}
	}
	for _, tc := range []struct {
		o    *broker.QueueOptions
		want error
	}{
		{nil, nil},
		{&broker.QueueOptions{MaxAttempts: -1}, broker.ErrInvalid},
		{&broker.QueueOptions{MaxAttempts: 3}, broker.ErrInvalid},
		{&broker.QueueOptions{Require: broker.QueueCapabilities{Lease: true, MaxLease: time.Minute}}, nil},
		{&broker.QueueOptions{Require: broker.QueueCapabilities{MaxLease: 2 * time.Hour}}, broker.ErrUnsupported},
		{&broker.QueueOptions{Require: broker.QueueCapabilities{Groups: true}}, broker.ErrUnsupported},
	} {
		if err := broker.ValidateQueueOptions(tc.o, lease); !errors.Is(err, tc.want) {
			t.Errorf("%+v: %v, want %v", tc.o, err, tc.want)
		}
	}
}

func TestSatisfies(t *testing.T) {
	have := broker.QueueCapabilities{Delay: true, MaxPriority: 5, MaxBytes: 100, Requeue: broker.RequeueFront}
	for _, tc := range []struct {
		want broker.QueueCapabilities
		ok   bool
	}{
		{broker.QueueCapabilities{}, true},
		{broker.QueueCapabilities{Delay: true, MaxDelay: time.Hour}, true}, // any delay
		{broker.QueueCapabilities{MaxNackDelay: time.Hour}, false},         // there is no delay at all
		{broker.QueueCapabilities{MaxLease: time.Hour}, false},
		{broker.QueueCapabilities{MaxPriority: 6}, false},
		{broker.QueueCapabilities{MaxBytes: 100}, true},
		{broker.QueueCapabilities{MaxBytes: 101}, false},
		{broker.QueueCapabilities{DedupWindow: time.Second}, false},
		{broker.QueueCapabilities{Requeue: broker.RequeueFront}, true},
		{broker.QueueCapabilities{Requeue: broker.RequeueBack}, false},
	} {
		if err := have.Satisfies(tc.want); (err == nil) != tc.ok || err != nil && !errors.Is(err, broker.ErrUnsupported) {
			t.Errorf("%+v: %v", tc.want, err)
		}
	}
	if err := (broker.StreamCapabilities{Fencing: true}).Satisfies(broker.StreamCapabilities{Compaction: true}); !errors.Is(err, broker.ErrUnsupported) {
		t.Error(err)
	}
}

func TestDeadLetterMessage(t *testing.T) {
	m := broker.Message{ID: "1", Body: []byte("b"), Headers: broker.Headers{{"k", "v"}}, Delay: 1, TTL: 2, GroupID: "g"}
	why := broker.DeadLetter{Reason: "because", Queue: "q", Attempts: 3, Time: time.UnixMilli(1700000000000).UTC()}
	dead := broker.DeadLetterMessage(m, why)
	dead = broker.DeadLetterMessage(dead, why) // again: the headers are replaced
	got, ok := broker.DeadLetterOf(&dead)
	if !ok || got != why || dead.Delay != 0 || dead.TTL != 0 || len(dead.Headers) != 5 || len(m.Headers) != 1 {
		t.Errorf("%+v from %+v", got, dead)
	}
	back := broker.RedriveMessage(dead)
	if back.ID != "1" || back.GroupID != "g" || !slices.Equal(back.Headers, m.Headers) {
		t.Errorf("%+v", back)
	}
	if _, ok := broker.DeadLetterOf(&m); ok {
		t.Error("not a dead letter")
	}
}

func TestVerdictErrors(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want string
		v    broker.Verdict
	}{
		{broker.Reject(nil), "rejected", broker.Verdict{Kind: broker.VerdictReject, Reason: "rejected"}},
		{broker.Reject(errBoom), "boom", broker.Verdict{Kind: broker.VerdictReject, Reason: "boom"}},
		{broker.RetryAfter(-1, nil), "retry after 0s", broker.Verdict{Kind: broker.VerdictNack}},
		{broker.RetryAfter(time.Second, errBoom), "boom (retry after 1s)", broker.Verdict{Kind: broker.VerdictNack, Delay: time.Second}},
		{broker.Snooze(time.Second), "snoozed for 1s", broker.Verdict{Kind: broker.VerdictNack, Delay: time.Second, Snooze: true}},
	} {
		v, ok := broker.VerdictOf(fmt.Errorf("%w", tc.err))
		if tc.err.Error() != tc.want || !ok || v != tc.v {
			t.Errorf("%v: %+v", tc.err, v)
		}
	}
	if v, ok := broker.VerdictOf(nil); !ok || v.Kind != broker.VerdictAck {
		t.Error("nil acks")
	}
	if _, ok := broker.VerdictOf(errBoom); ok {
		t.Error("a plain error is no verdict")
	}
	if !errors.Is(broker.Reject(errBoom), errBoom) {
		t.Error("Reject hides its cause")
	}
}

func TestRetryPolicy(t *testing.T) {
	zero := &broker.RetryPolicy{}
	for attempt, top := range map[int]time.Duration{1: time.Second, 2: 2 * time.Second, 5: 16 * time.Second, 60: 5 * time.Minute, 1 << 30: 5 * time.Minute} {
		for range 20 {
			if d := zero.After(attempt, errBoom); d < top/2 || d > top {
				t.Errorf("attempt %d: %v, want %v to %v", attempt, d, top/2, top)
			}
		}
	}
	short := &broker.RetryPolicy{Max: time.Millisecond}
	if d := short.After(1, nil); d > time.Millisecond {
		t.Errorf("%v over Max", d)
	}
	long := &broker.RetryPolicy{Min: time.Hour}
	if d := long.After(9, nil); d < time.Hour/2 || d > time.Hour {
		t.Errorf("%v with Min of an hour", d)
	}
	own := &broker.RetryPolicy{Delay: func(n int, _ error) time.Duration { return time.Duration(-n) }}
	if d := own.After(3, nil); d != 0 {
		t.Errorf("a negative delay: %v", d)
	}
}

type inner struct{ broker.Admin }

type wrapper struct{}

func (w wrapper) As(target any) bool {
	t, ok := target.(*broker.Admin)
	if ok {
		*t = inner{}
	}
	return ok
}

func TestAs(t *testing.T) {
	if _, ok := broker.As[broker.Admin](inner{}); !ok {
		t.Error("itself")
	}
	if a, ok := broker.As[broker.Admin](wrapper{}); !ok || a == nil {
		t.Error("what a wrapper passes on")
	}
	if _, ok := broker.As[broker.Exchanger](wrapper{}); ok {
		t.Error("what a wrapper does not pass on")
	}
	if _, ok := broker.As[broker.Admin](nil); ok {
		t.Error("nil")
	}
}

func TestNames(t *testing.T) {
	for want, got := range map[string]string{
		"direct": broker.ExchangeDirect.String(), "fanout": broker.ExchangeFanout.String(),
		"topic": broker.ExchangeTopic.String(), "headers": broker.ExchangeHeaders.String(),
		"unknown": broker.ExchangeKind(0).String(), "lease lost": broker.ObservedLeaseLost.String(),
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if broker.ObservationKind(200).String() != "unknown" {
		t.Error("an unknown observation")
	}
}

func TestCodecs(t *testing.T) {
	for _, v := range []any{[]byte("x"), "x"} {
		b, err := broker.Raw.Marshal(v)
		if err != nil || !bytes.Equal(b, []byte("x")) {
			t.Errorf("%q, %v", b, err)
		}
	}
	var s string
	var b []byte
	if broker.Raw.Unmarshal([]byte("y"), &s) != nil || s != "y" || broker.Raw.Unmarshal([]byte("z"), &b) != nil || string(b) != "z" {
		t.Error(s, b)
	}
	if _, err := broker.Raw.Marshal(1); !errors.Is(err, broker.ErrInvalid) {
		t.Error(err)
	}
	if err := broker.Raw.Unmarshal(nil, new(int)); !errors.Is(err, broker.ErrInvalid) {
		t.Error(err)
	}
	if broker.Raw.ContentType() == "" || broker.JSON.ContentType() != "application/json" {
		t.Error("content types")
	}
}
