package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"pgregory.net/rapid"

	"github.com/queuestream/broker"
)

// TestDelayKey: the bits of a key add up to the delay, rounded up to the unit.
func TestDelayKey(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := time.Duration(rapid.Int64Range(1, int64(MaxDelay)).Draw(t, "delay"))
		key, top := delayKey("target", d)
		words := strings.Split(key, ".")
		if len(words) != delayLevels+1 || words[delayLevels] != delayHash("target") || len(key) > maxShortString {
			t.Fatalf("key %q", key)
		}
		var sum time.Duration
		highest := -1
		for i, w := range words[:delayLevels] {
			if level := delayLevels - 1 - i; w == "1" {
				sum += delayUnit << level
				highest = max(highest, level)
			}
		}
		if sum < d || sum-d >= delayUnit || highest != top {
			t.Fatalf("%v became %v, top %d, want %d", d, sum, top, highest)
		}
	})
	if ms := (delayUnit << (delayLevels - 1)).Milliseconds(); ms >= 1<<32 {
		t.Fatalf("the highest level waits %d ms, beyond what the broker takes", ms)
	}
}

// TestDelayTarget: a binding of as many words as there are levels matches its
// queue alone, whatever its name.
func TestDelayTarget(t *testing.T) {
	for _, name := range []string{"a", "a.b", "*.#", strings.Repeat("x", 255)} {
		if got := strings.Count(delayTarget(name), "."); got != delayLevels || strings.ContainsAny(delayHash(name), ".*#") {
			t.Fatalf("%q: %q", name, delayTarget(name))
		}
	}
}

func TestSlots(t *testing.T) {
	seen := map[int]bool{}
	for i := range 2000 {
		g := fmt.Sprint("group", i)
		s := slotOf(g)
		if s != slotOf(g) || s < 0 || s >= slots {
			t.Fatalf("slot %d", s)
		}
		seen[s] = true
	}
	if len(seen) != slots {
		t.Fatalf("%d of %d slots are used", len(seen), slots)
	}
	for in, want := range map[string]string{"q.shards.3": "q", "q.shards.x": "q.shards.x", "q": "q", ".shards.1": ".shards.1"} {
		if got := unshard(in); got != want {
			t.Errorf("unshard(%q) = %q, want %q", in, got, want)
		}
	}
}

func drawHeaders(t *rapid.T) broker.Headers {
	key := rapid.OneOf(rapid.StringN(1, 6, 300), rapid.SampledFrom([]string{"CC", "a", "b", "x-death", "x-broker-group", "\xff"}))
	var h broker.Headers
	for range rapid.IntRange(0, 6).Draw(t, "n") {
		k := key.Draw(t, "key")
		if k != "" {
			h = append(h, broker.Header{Key: k, Value: string(rapid.SliceOf(rapid.Byte()).Draw(t, "value"))})
		}
	}
	return h
}

// TestHeadersSurvive: order, duplicates, binary values and reserved keys.
func TestHeadersSurvive(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := drawHeaders(t)
		table := amqp.Table{headerTime: int64(1)}
		encodeHeaders(h, table)
		if got := decodeHeaders(table); !slices.Equal(got, h) {
			t.Fatalf("%q became %q", h, got)
		}
		for k := range table {
			if k == "CC" || k == "BCC" || len(k) > maxHeaderKey {
				t.Fatalf("the table has %q", k)
			}
		}
	})
}

func FuzzHeaderList(f *testing.F) {
	f.Add(encodeHeaderList(broker.Headers{{Key: "a", Value: "1"}, {Key: "a", Value: "2"}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, ok := decodeHeaderList(b, func(string) (string, bool) { return "table", true })
		if !ok {
			return
		}
		again, ok := decodeHeaderList(encodeHeaderList(h), func(k string) (string, bool) { return h.Get(k), true })
		if !ok || !slices.Equal(again, h) {
			t.Fatalf("%q became %q", h, again)
		}
	})
}

func TestForeignDelivery(t *testing.T) {
	a := amqp.Delivery{Redelivered: true, MessageId: "m", Body: []byte("b"), Headers: amqp.Table{
		"n": int32(7), "b": true, "nil": nil, "t": time.Unix(1, 0), "x-delivery-count": int64(4), headerAttempt: int64(3),
		"x-death": []any{amqp.Table{"queue": "orders", "reason": "expired", "time": time.Unix(9, 0)}},
	}}
	var d broker.Delivery
	decode(&a, &d)
	if d.Attempt != 8 || d.Headers.Get("n") != "7" || d.Headers.Get("b") != "true" || d.Headers.Get("t") != "1970-01-01T00:00:01Z" {
		t.Fatalf("%+v", d.Message)
	}
	why, ok := broker.DeadLetterOf(&d.Message)
	if !ok || why.Queue != "orders" || why.Reason != "expired" {
		t.Fatalf("%+v", why)
	}
}

func TestOptions(t *testing.T) {
	for name, o := range map[string]*Options{
		"none":       nil,
		"no URL":     {},
		"scheme":     {URLs: []string{"http://host/"}},
		"prefetch":   {URLs: []string{"amqp://h/"}, Prefetch: 70000},
		"negative":   {URLs: []string{"amqp://h/"}, Window: -1},
		"heartbeat":  {URLs: []string{"amqp://h/"}, Heartbeat: time.Millisecond},
		"silence":    {URLs: []string{"amqp://h/"}, Heartbeat: 65536 * time.Second},
		"backoff":    {URLs: []string{"amqp://h/"}, MinBackoff: 1<<63 - 1},
		"dialing":    {URLs: []string{"amqp://h/"}, DialTimeout: -1},
		"management": {URLs: []string{"amqp://h/"}, Management: "host:15672"},
	} {
		_, err := Open(t.Context(), o)
		e, ok := errors.AsType[*broker.Error](err)
		if !ok || !errors.Is(err, broker.ErrInvalid) || e.Adapter != adapterName || e.Op != "open" {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, u := range []string{
		"amqp://user:secret@host:port/", "amqp://user:secret\"%zz@host/", "amqp://user:secret/2@host/", "amqp://user:secret\x7f@host/",
		"amqp://secret:12/2@host/", "amqp://secret:12?2@host/", "amqp://host/#vhost",
		"amqp://host/?heartbeat=5;prefetch=3", "amqp://host/?prefetch=3", "amqp://host/?management=http://h:1&verify=verify_none",
		"amqp://host/?connection_timeout=-1", "amqp://host/?heartbeat=%zz",
	} {
		if _, err := OpenURL(t.Context(), u); !errors.Is(err, broker.ErrInvalid) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", u, err)
		}
	}
	uris, err := streamURLs(&Options{URLs: []string{"amqps://u:p@host/v", "amqp://host"}})
	if err != nil || uris[0].String() != "rabbitmq-stream+tls://u:p@host:5551/v" || uris[1].String() != "rabbitmq-stream://guest:guest@host:5552/%2f" {
		t.Errorf("%v, %v", uris, err)
	}
}

// TestDeliveryLimit: what a quorum queue is declared with, by the version that
// the broker tells. 3.13 has no limit unless one is set, and refuses -1.
func TestDeliveryLimit(t *testing.T) {
	for _, c := range []struct {
		version string
		want    any
	}{
		{"3.13.7", nil}, {"3.12.0-rc.1", nil}, {"4.0.5", int64(-1)}, {"4.1.0-beta.2", int64(-1)},
		{"4.3.0", int64(-1)}, {"5.0.0", int64(-1)}, {"", int64(-1)}, {"latest", int64(-1)},
	} {
		l := &link{server: c.version}
		_, args, err := queueArguments("q", broker.QueueConfig{MaxAttempts: 3, DeadLetter: "d"}, l.version)
		if err != nil || args["x-delivery-limit"] != c.want {
			t.Errorf("%q: %v, want %v, %v", c.version, args["x-delivery-limit"], c.want, err)
		}
		cfg := broker.QueueConfig{Options: map[string]string{"x-delivery-limit": "7"}}
		if _, args, err = queueArguments("q", cfg, l.version); err != nil || args["x-delivery-limit"] != int64(7) {
			t.Errorf("%q: a limit of the program's own became %v, %v", c.version, args["x-delivery-limit"], err)
		}
		cfg.Options = map[string]string{"x-delivery-limit": ""}
		if _, args, err = queueArguments("q", cfg, l.version); err != nil || args["x-delivery-limit"] != nil {
			t.Errorf("%q: left out, it is %v, %v", c.version, args["x-delivery-limit"], err)
		}
		cfg.Options = map[string]string{"x-queue-type": "classic"}
		if _, args, err = queueArguments("q", cfg, l.version); err != nil || args["x-delivery-limit"] != nil {
			t.Errorf("%q: a classic queue got %v, %v", c.version, args["x-delivery-limit"], err)
		}
	}
}

// TestAttempts: what a delivery counts as, by what the broker says. 4.3 tells
// x-acquired-count as well, which counts what was prefetched and never seen.
func TestAttempts(t *testing.T) {
	for _, c := range []struct {
		name string
		a    amqp.Delivery
		want int
	}{
		{"new", amqp.Delivery{}, 1},
		{"classic, again", amqp.Delivery{Redelivered: true}, 2},
		{"rejected twice", amqp.Delivery{Redelivered: true, Headers: amqp.Table{"x-delivery-count": int64(2)}}, 3},
		{"prefetched twice, rejected once", amqp.Delivery{Redelivered: true, Headers: amqp.Table{
			"x-delivery-count": int64(1), "x-acquired-count": int64(3)}}, 2},
		{"nacked by another client on 4.3", amqp.Delivery{Redelivered: true, Headers: amqp.Table{
			"x-delivery-count": int64(0), "x-acquired-count": int64(2)}}, 1},
		{"delayed after three, then rejected", amqp.Delivery{Redelivered: true, Headers: amqp.Table{
			"x-delivery-count": int64(1), headerAttempt: int64(3)}}, 5},
		{"nonsense", amqp.Delivery{Headers: amqp.Table{"x-delivery-count": int64(math.MaxInt64), headerAttempt: int64(math.MaxInt64)}}, 2*math.MaxInt32 + 1},
	} {
		var d broker.Delivery
		if decode(&c.a, &d); d.Attempt != c.want {
			t.Errorf("%s: attempt %d, want %d", c.name, d.Attempt, c.want)
		}
	}
}

// TestTimeToLiveSurvives delays: of the message and of each redelivery.
func TestTimeToLiveSurvives(t *testing.T) {
	c := &consumer{q: &Queue{info: queueInfo{name: "q"}}}
	now := time.Now().Truncate(time.Millisecond)
	m := broker.Message{ID: "id", TTL: time.Hour, Delay: time.Minute}
	p := encode(&m, 0, time.Time{}, now)
	for range 3 {
		var d broker.Delivery
		r := decode(&amqp.Delivery{Headers: p.Headers, Expiration: p.Expiration, MessageId: p.MessageId}, &d)
		if want := now.Add(m.Delay + m.TTL); !r.expires.Equal(want) || !d.Time.Add(d.TTL).Equal(want) {
			t.Fatalf("attempt %d expires at %v, %v after %v; want %v", d.Attempt, r.expires, d.TTL, d.Time, want)
		}
		cp, ok := c.copyFor(&d, &broker.Verdict{Kind: broker.VerdictNack, Delay: time.Second})
		if !ok {
			t.Fatal("no copy")
		}
		p = encode(&cp.m, cp.attempt, cp.expires, cp.now)
	}
}

// TestOutcomeOfTheSecondSending: what a broken connection left undecided may be
// stored, whatever becomes of the copy that the next one carried.
func TestOutcomeOfTheSecondSending(t *testing.T) {
	for _, before := range []bool{false, true} {
		cc := &confirmChannel{dead: make(chan struct{}), waiting: map[returnKey]*returnSlot{}}
		close(cc.dead)
		lost := cc.expect(returnKey{id: "returned"})
		lost.reason = &amqp.Error{Code: amqp.NoRoute}
		b := &flightBatch{cc: cc, errs: make([]error, 3), sent: make([]bool, 3), flights: []flight{
			{index: 0, before: before, state: nacked, key: returnKey{id: "nacked"}, slot: cc.expect(returnKey{id: "nacked"})},
			{index: 1, before: before, state: acked, key: returnKey{id: "returned"}, slot: lost},
			{index: 2, before: before, state: acked, key: returnKey{id: "stored"}, slot: cc.expect(returnKey{id: "stored"})},
		}}
		if again := b.finish(); len(again) > 0 || b.errs[2] != nil {
			t.Errorf("again %v, errors %v", again, b.errs)
		}
		for i, want := range []error{errNacked, broker.ErrNotFound} {
			if !errors.Is(b.errs[i], want) || errors.Is(b.errs[i], broker.ErrUnknownOutcome) != before {
				t.Errorf("sent before: %v; %v", before, b.errs[i])
			}
		}
	}
	for err, want := range map[error]bool{io.ErrClosedPipe: true, net.ErrClosed: true, os.ErrDeadlineExceeded: true, amqp.ErrSyntax: false} {
		if broken(err) != want {
			t.Errorf("%v: the connection broke: %v", err, !want)
		}
	}
}

// TestBadNames are refused before anything is sent.
func TestBadNames(t *testing.T) {
	for _, name := range []string{"", "amq.x", strings.Repeat("x", 256), "new\nline", "\xff"} {
		if err := checkName(name); !errors.Is(err, broker.ErrInvalid) {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{"a", "a.b-c_d", strings.Repeat("x", 255), "größe"} {
		if err := checkName(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestQueueArguments(t *testing.T) {
	v := func(major int) func() (int, int) { return func() (int, int) { return major, 0 } }
	_, args, err := queueArguments("q", broker.QueueConfig{MaxAttempts: 3, DeadLetter: "d", MaxLength: 5, TTL: time.Second}, v(4))
	if err != nil || args["x-delivery-limit"] != int64(-1) || args["x-dead-letter-strategy"] != "at-least-once" ||
		args["x-overflow"] != "reject-publish" || args["x-message-ttl"] != int64(1000) {
		t.Fatalf("%v, %v", args, err)
	}
	if _, args, err = queueArguments("q", broker.QueueConfig{}, v(3)); err != nil || args["x-delivery-limit"] != nil {
		t.Fatalf("3.13: %v, %v", args, err)
	}
	for name, cfg := range map[string]broker.QueueConfig{
		"Dedup":    {Dedup: true},
		"Lease":    {Lease: time.Second},
		"Delay":    {Delay: time.Second},
		"MaxBytes": {MaxBytes: 1},
		"Tags":     {Tags: map[string]string{"a": "b"}},
		"Options":  {Options: map[string]string{"ttl": "1"}},
		"Priority": {MaxPriority: 5},
	} {
		if _, _, err := queueArguments("q", cfg, v(4)); !errors.Is(err, broker.ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, cfg := range map[string]broker.QueueConfig{
		"negative":    {MaxLength: -1},
		"attempts":    {MaxAttempts: 1},
		"shards":      {Ordered: true, Shards: 65},
		"not ordered": {Shards: 2},
	} {
		if _, _, err := queueArguments("q", cfg, v(4)); !errors.Is(err, broker.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCheckMessage(t *testing.T) {
	long := strings.Repeat("x", 256)
	for name, m := range map[string]broker.Message{
		"ID": {ID: long}, "ContentType": {ContentType: long}, "CorrelationID": {CorrelationID: long},
		"ReplyTo": {ReplyTo: long}, "GroupID": {GroupID: long},
	} {
		if err := checkMessage(&m); !errors.Is(err, broker.ErrInvalid) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	big := broker.Message{Headers: broker.Headers{{Key: "k", Value: strings.Repeat("x", 1<<17)}}}
	if err := checkMessage(&big); !errors.Is(err, broker.ErrTooLarge) {
		t.Errorf("headers: %v", err)
	}
}

// TestCallReturnsWithItsContext: whatever the connection does.
func TestCallReturnsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	release, late := make(chan struct{}), make(chan int)
	_, err := call(ctx, func() (int, error) { cancel(); <-release; return 7, nil }, func(v int) { late <- v })
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	close(release)
	if v := <-late; v != 7 {
		t.Fatal(v)
	}
}

// TestRefusedConnection: a typed, temporary error, within the first round.
func TestRefusedConnection(t *testing.T) {
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = Open(t.Context(), &Options{URLs: []string{"amqp://" + addr + "/"}})
	if !errors.Is(err, broker.ErrUnavailable) || !broker.IsTemporary(err) {
		t.Fatal(err)
	}
}

// TestSilentServer: a server that accepts and says nothing ends with DialTimeout,
// the URL's connection_timeout or the context, in the same error whoever saw it first, and leaves nothing
// behind.
func TestSilentServer(t *testing.T) {
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	const wait = 20 * time.Millisecond
	check := func(err error) {
		t.Helper()
		if !errors.Is(err, broker.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) || !broker.IsTemporary(err) {
			t.Fatal(err)
		}
	}
	for range 10 {
		o := &Options{URLs: []string{"amqp://" + l.Addr().String() + "/"}}
		ctx, cancel := context.WithTimeout(t.Context(), wait)
		_, err = Open(ctx, o)
		check(err)
		cancel()
		o.DialTimeout = wait
		_, err = Open(t.Context(), o)
		check(err)
		o.URLs[0], o.DialTimeout = o.URLs[0]+"?connection_timeout=20", 0
		_, err = Open(t.Context(), o)
		check(err)
	}
}

// TestKeyHash: the values are those of the murmur3 that RabbitMQ's Go and Java
// clients use.
func TestKeyHash(t *testing.T) {
	for key, want := range map[string]uint32{
		"": 3329588566, "a": 1086686554, "ab": 398604456, "abc": 3409700625, "abcd": 3421720556,
		"invoice-42": 692942112, "\xff\x00\xfe": 687305704,
	} {
		if got := keyHash([]byte(key)); got != want {
			t.Errorf("keyHash(%q) = %d, want %d", key, got, want)
		}
	}
}

func TestSegmentSize(t *testing.T) {
	for _, c := range []struct {
		cfg  broker.StreamConfig
		want int64
		err  error
	}{
		{broker.StreamConfig{}, 0, nil},
		{broker.StreamConfig{RetentionBytes: 1 << 20}, 1 << 18, nil},
		{broker.StreamConfig{RetentionBytes: 100}, minSegment, nil},
		{broker.StreamConfig{RetentionBytes: 1 << 20, Options: map[string]string{optSegment: "8192"}}, 8192, nil},
		{broker.StreamConfig{Options: map[string]string{optSegment: "1"}}, 0, broker.ErrInvalid},
		{broker.StreamConfig{Options: map[string]string{optSegment: "much"}}, 0, broker.ErrInvalid},
		{broker.StreamConfig{Options: map[string]string{"x-other": "1"}}, 0, broker.ErrUnsupported},
	} {
		if got, err := segmentSize(c.cfg); got != c.want || !errors.Is(err, c.err) {
			t.Errorf("%+v: %d, %v; want %d, %v", c.cfg, got, err, c.want, c.err)
		}
	}
}

// TestNilLogger: without a logger everything that logs still works.
func TestNilLogger(t *testing.T) {
	o, err := (&Options{URLs: []string{"amqp://host/"}}).withDefaults()
	if err != nil || o.Logger == nil {
		t.Fatalf("%v, logger %v", err, o)
	}
	o.Logger.Error("nowhere")
}
