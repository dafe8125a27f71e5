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

func bodies(ms []broker.Message) string {
	var out []string
	for i := range ms {
		out = append(out, string(ms[i].Body))
	}
	return strings.Join(out, " ")
}

func TestDeclareConflicts(t *testing.T) {
	b := open(t, nil)
	ctx := t.Context()
	check(t, b.DeclareQueue(ctx, "dead", broker.QueueConfig{}))
	cfg := broker.QueueConfig{MaxAttempts: 2, DeadLetter: "dead", Lease: time.Second, Tags: map[string]string{"a": "b"}}
	check(t, b.DeclareQueue(ctx, "q", cfg))
	cfg.Tags = nil
	check(t, b.DeclareQueue(ctx, "q", cfg))
	for _, change := range []func(*broker.QueueConfig){
		func(c *broker.QueueConfig) { c.Ordered = true },
		func(c *broker.QueueConfig) { c.Dedup = true },
		func(c *broker.QueueConfig) { c.ContentDedup = true },
		func(c *broker.QueueConfig) { c.MaxAttempts = 3 },
		func(c *broker.QueueConfig) { c.MaxAttempts, c.DeadLetter = 0, "" },
		func(c *broker.QueueConfig) { c.Lease = time.Minute },
		func(c *broker.QueueConfig) { c.Delay = time.Minute },
		func(c *broker.QueueConfig) { c.TTL = time.Minute },
		func(c *broker.QueueConfig) { c.MaxPriority = 1 },
		func(c *broker.QueueConfig) { c.MaxLength = 1 },
		func(c *broker.QueueConfig) { c.MaxBytes = 1 },
		func(c *broker.QueueConfig) { c.Shards = 1 },
		func(c *broker.QueueConfig) { c.Temporary = true },
	} {
		other := cfg
		change(&other)
		wantErr(t, b.DeclareQueue(ctx, "q", other), broker.ErrConflict)
	}
	for _, bad := range []struct {
		cfg  broker.QueueConfig
		want error
	}{
		{broker.QueueConfig{MaxAttempts: -1}, broker.ErrInvalid},
		{broker.QueueConfig{MaxAttempts: 1}, broker.ErrInvalid},
		{broker.QueueConfig{DeadLetter: "missing"}, broker.ErrNotFound},
		{broker.QueueConfig{TTL: 200 * 365 * 24 * time.Hour}, broker.ErrUnsupported},
		{broker.QueueConfig{MaxPriority: 256}, broker.ErrUnsupported},
		{broker.QueueConfig{DedupPerGroup: true}, broker.ErrInvalid},
		{broker.QueueConfig{Options: map[string]string{"x": "y"}}, broker.ErrUnsupported},
	} {
		wantErr(t, b.DeclareQueue(ctx, "other", bad.cfg), bad.want)
	}
	wantErr(t, b.DeclareQueue(ctx, "", broker.QueueConfig{}), broker.ErrInvalid)
	_, err := b.Queue(ctx, "missing", nil)
	wantErr(t, err, broker.ErrNotFound)
	_, err = b.Queue(ctx, "q", &broker.QueueOptions{DeadLetter: "missing"})
	wantErr(t, err, broker.ErrNotFound)
	_, err = b.Queue(ctx, "dead", &broker.QueueOptions{MaxAttempts: 3})
	wantErr(t, err, broker.ErrInvalid)
	_, err = b.Queue(ctx, "dead", &broker.QueueOptions{Require: broker.QueueCapabilities{Durable: true}})
	wantErr(t, err, broker.ErrUnsupported)
	check(t, b.DeleteQueue(ctx, "missing"))
	check(t, b.DeleteStream(ctx, "missing"))
	check(t, b.DeleteExchange(ctx, "missing"))
}

func TestPeekPurgeStats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, nil)
		ctx := t.Context()
		q := declare(t, b, "q", broker.QueueConfig{MaxPriority: 9})
		send(t, q, body("a"), broker.Message{Body: []byte("b"), Priority: 5}, broker.Message{Body: []byte("c"), GroupID: "g"},
			broker.Message{Body: []byte("d"), GroupID: "g"}, broker.Message{Body: []byte("late"), Delay: time.Hour},
			broker.Message{Body: []byte("later"), Delay: 2 * time.Hour})
		<-time.After(time.Minute)
		ms, err := b.Peek(ctx, "q", 10)
		check(t, err)
		if got := bodies(ms); got != "b a c d late later" {
			t.Fatalf("peeked %s", got)
		}
		ms[0].Body[0] = 'x' // a copy
		c := consume(t, q, nil)
		one(t, c, "b")
		st, err := b.QueueStats(ctx, "q")
		check(t, err)
		if want := (broker.QueueStats{Ready: 3, InFlight: 1, Delayed: 2, Consumers: 1, OldestAge: time.Minute}); st != want {
			t.Fatalf("stats %+v, want %+v", st, want)
		}
		check(t, b.Purge(ctx, "q"))
		st, err = b.QueueStats(ctx, "q")
		check(t, err)
		if want := (broker.QueueStats{InFlight: 1, Consumers: 1}); st != want {
			t.Fatalf("stats %+v, want %+v", st, want)
		}
		_, err = b.Peek(ctx, "q", 0)
		wantErr(t, err, broker.ErrInvalid)
		_, err = b.Peek(ctx, "none", 1)
		wantErr(t, err, broker.ErrNotFound)
		wantErr(t, b.Purge(ctx, "none"), broker.ErrNotFound)
		_, err = b.QueueStats(ctx, "none")
		wantErr(t, err, broker.ErrNotFound)
	})
}

func TestRedrive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, nil)
		ctx := t.Context()
		dead := declare(t, b, "dead", broker.QueueConfig{})
		q := declare(t, b, "q", broker.QueueConfig{DeadLetter: "dead"})
		small := declare(t, b, "small", broker.QueueConfig{MaxLength: 1})
		c := consume(t, q, nil)
		for i := range 4 {
			send(t, q, broker.Message{
				ID: fmt.Sprint("id", i), Body: fmt.Append(nil, i), Headers: broker.Headers{{Key: "k", Value: "v"}},
				GroupID: "g", CorrelationID: "c", ReplyTo: "r", ContentType: "text/plain",
			})
			check(t, one(t, c, fmt.Sprint(i)).Reject(ctx, "broken"))
		}
		ms, err := b.Peek(ctx, "dead", 1)
		check(t, err)
		if why, _ := broker.DeadLetterOf(&ms[0]); why.Reason != "broken" || why.Attempts != 1 || why.Queue != "q" {
			t.Fatalf("%+v", why)
		}
		n, err := b.Redrive(ctx, "dead", "small", 0)
		wantErr(t, err, broker.ErrFull)
		if n != 1 || !broker.IsTemporary(err) {
			t.Fatalf("redrove %d", n)
		}
		n, err = b.Redrive(ctx, "dead", "", 2)
		check(t, err)
		if n != 2 {
			t.Fatalf("redrove %d", n)
		}
		d := one(t, c, "1")
		if d.ID != "id1" || d.Attempt != 1 || !slices.Equal(d.Headers, broker.Headers{{Key: "k", Value: "v"}}) ||
			d.GroupID != "g" || d.CorrelationID != "c" || d.ReplyTo != "r" || d.ContentType != "text/plain" {
			t.Fatalf("redriven %+v", &d.Message)
		}
		one(t, consume(t, dead, nil), "3")
		one(t, consume(t, small, nil), "0")
		for _, bad := range []struct {
			from, to string
			max      int
			want     error
		}{
			{"none", "", 0, broker.ErrNotFound}, {"dead", "none", 0, broker.ErrNotFound},
			{"dead", "dead", 0, broker.ErrInvalid}, {"dead", "", -1, broker.ErrInvalid},
		} {
			_, err := b.Redrive(ctx, bad.from, bad.to, bad.max)
			wantErr(t, err, bad.want)
		}
		send(t, dead, body("stray"))
		_, err = b.Redrive(ctx, "dead", "", 0)
		wantErr(t, err, broker.ErrNotFound)
		ms, err = b.Peek(ctx, "dead", 5)
		check(t, err)
		if got := bodies(ms); got != "stray" {
			t.Fatalf("left %q", got)
		}
	})
}

func TestHandlesOverrideDeadLetters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, nil)
		ctx := t.Context()
		plain := declare(t, b, "q", broker.QueueConfig{})
		declare(t, b, "dead", broker.QueueConfig{})
		h, err := b.Queue(ctx, "q", &broker.QueueOptions{DeadLetter: "dead", MaxAttempts: 1})
		check(t, err)
		if c := h.Capabilities(); !c.Reject || c.MaxAttempts != 1 {
			t.Fatalf("%+v", c)
		}
		send(t, h, body("a"), body("b"))
		d := one(t, consume(t, plain, nil), "a")
		wantErr(t, d.Reject(ctx, "x"), broker.ErrUnsupported)
		check(t, d.Ack(ctx)) // the refused verdict left it open
		check(t, one(t, consume(t, h, nil), "b").Nack(ctx, 0))
		st, err := b.QueueStats(ctx, "dead")
		check(t, err)
		if st.Ready != 1 {
			t.Fatalf("%+v", st)
		}
		send(t, h, body("c"))
		d = one(t, consume(t, h, nil), "c")
		check(t, b.DeleteQueue(ctx, "dead"))
		wantErr(t, d.Reject(ctx, "x"), broker.ErrNotFound)
		check(t, d.Nack(ctx, 0)) // rather again than lost
		one(t, consume(t, h, nil), "c")
	})
}

func TestDeleteQueueEndsCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, nil)
		ctx := t.Context()
		q := declare(t, b, "q", broker.QueueConfig{})
		send(t, q, body("a"), body("b"))
		c := consume(t, q, nil)
		d := one(t, c, "a")
		c2 := consume(t, q, nil)
		one(t, c2, "b")
		errs := make(chan error)
		go func() {
			_, err := c.Receive(ctx, 1)
			errs <- err
		}()
		synctest.Wait()
		check(t, b.DeleteQueue(ctx, "q"))
		wantErr(t, <-errs, broker.ErrNotFound)
		wantErr(t, d.Ack(ctx), broker.ErrLeaseLost)
		_, err := q.Publish(ctx, body("x"))
		wantErr(t, err, broker.ErrNotFound)
		_, err = q.Consumer(ctx, nil)
		wantErr(t, err, broker.ErrNotFound)
	})
}

func TestDeletedQueuesLeaveNothing(t *testing.T) {
	b := open(t, nil)
	ctx := t.Context()
	dead := declare(t, b, "dead", broker.QueueConfig{})
	for range 3 {
		q := declare(t, b, "q", broker.QueueConfig{DeadLetter: "dead"})
		send(t, q, body("x"))
		check(t, one(t, consume(t, q, nil), "x").Reject(ctx, "no"))
		check(t, b.DeleteQueue(ctx, "q"))
	}
	if n := len(dead.q.feeders); n != 0 || dead.q.fed.Load() {
		t.Fatalf("%d deleted queues are still known", n)
	}
	q := declare(t, b, "q", broker.QueueConfig{DeadLetter: "dead"})
	check(t, b.DeleteQueue(ctx, "dead"))
	if n := len(q.q.targets); n != 0 {
		t.Fatalf("%d deleted queues are still known", n)
	}
}

func TestReplyQueue(t *testing.T) {
	b := open(t, nil)
	r, err := b.ReplyQueue(t.Context())
	check(t, err)
	send(t, r, body("x"))
	one(t, consume(t, r, nil), "x")
	check(t, r.Close())
	_, err = b.Queue(t.Context(), r.Name(), nil)
	wantErr(t, err, broker.ErrNotFound)
	_, err = open(t, &Options{Profile: KafkaTopic}).ReplyQueue(t.Context())
	wantErr(t, err, broker.ErrUnsupported)
	r, err = open(t, &Options{Profile: SQSFIFO}).ReplyQueue(t.Context())
	check(t, err)
	if !strings.HasSuffix(r.Name(), ".fifo") {
		t.Fatal(r.Name())
	}
}

func TestTopicMatches(t *testing.T) {
	for _, c := range []struct {
		pattern, key string
		want         bool
	}{
		{"#", "", true}, {"#", "a.b", true}, {"*", "a", true}, {"*", "", false}, {"*", "a.b", false},
		{"a.#", "a", true}, {"a.#", "a.b.c", true}, {"a.#", "b", false}, {"#.c", "a.b.c", true}, {"#.c", "c", true},
		{"a.*.c", "a.b.c", true}, {"a.*.c", "a.c", false}, {"a.#.c", "a.c", true}, {"a.#.c", "a.b.b.c", true},
		{"#.b.#", "a.b.c", true}, {"#.b.#", "b", true}, {"#.b.#", "a.c", false}, {"*.#", "a", true}, {"*.#", "", false},
		{"a.b", "a.b", true}, {"a.b", "a.bc", false}, {"", "", true}, {"", "a", false}, {"#.*", "a.b", true},
	} {
		if got := topicMatches(c.pattern, c.key); got != c.want {
			t.Errorf("topicMatches(%q, %q) = %v", c.pattern, c.key, got)
		}
	}
}

func TestExchanges(t *testing.T) {
	b := open(t, nil)
	ctx := t.Context()
	for _, q := range []string{"q1", "q2"} {
		declare(t, b, q, broker.QueueConfig{})
	}
	h := func(kv ...string) broker.Headers {
		var h broker.Headers
		for i := 0; i < len(kv); i += 2 {
			h = h.With(kv[i], kv[i+1])
		}
		return h
	}
	for _, c := range []struct {
		kind    broker.ExchangeKind
		b1, b2  broker.Binding
		key     string
		headers broker.Headers
		want    string // queues that get it
	}{
		{broker.ExchangeDirect, broker.Binding{RoutingKey: "a"}, broker.Binding{RoutingKey: "b"}, "a", nil, "q1"},
		{broker.ExchangeDirect, broker.Binding{RoutingKey: "a"}, broker.Binding{RoutingKey: "a"}, "a", nil, "q1 q2"},
		{broker.ExchangeDirect, broker.Binding{RoutingKey: "a"}, broker.Binding{RoutingKey: "b"}, "c", nil, ""},
		{broker.ExchangeFanout, broker.Binding{}, broker.Binding{}, "", nil, "q1 q2"},
		{broker.ExchangeTopic, broker.Binding{RoutingKey: "a.*"}, broker.Binding{RoutingKey: "#"}, "a.b", nil, "q1 q2"},
		{broker.ExchangeTopic, broker.Binding{RoutingKey: "a.*"}, broker.Binding{RoutingKey: "b"}, "a", nil, ""},
		{broker.ExchangeHeaders, broker.Binding{Headers: h("x", "1", "y", "2")},
			broker.Binding{Headers: h("x", "1", "y", "2"), MatchAny: true}, "", h("x", "1"), "q2"},
		{broker.ExchangeHeaders, broker.Binding{Headers: h("x", "1", "y", "2")},
			broker.Binding{Headers: h("z", "1"), MatchAny: true}, "", h("y", "2", "x", "1"), "q1"},
		{broker.ExchangeHeaders, broker.Binding{Headers: h("x", "1")}, broker.Binding{MatchAny: true}, "", nil, ""},
	} {
		check(t, b.DeclareExchange(ctx, "x", c.kind))
		check(t, b.DeclareExchange(ctx, "x", c.kind))
		check(t, b.Bind(ctx, "q1", "x", c.b1))
		check(t, b.Bind(ctx, "q1", "x", c.b1))
		check(t, b.Bind(ctx, "q2", "x", c.b2))
		x, err := b.Exchange(ctx, "x")
		check(t, err)
		if caps := x.Capabilities(); caps.Kind != c.kind || !caps.Unroutable {
			t.Fatalf("%+v", caps)
		}
		r, err := x.RouteTo(c.key).Publish(ctx, broker.Message{Headers: c.headers})
		if r.ID == "" {
			t.Fatal("no ID")
		}
		var got []string
		for _, q := range []string{"q1", "q2"} {
			ms, err := b.Peek(ctx, q, 2)
			check(t, err)
			for range ms {
				got = append(got, q)
			}
			check(t, b.Purge(ctx, q))
		}
		if g := strings.Join(got, " "); g != c.want || (err != nil) != (c.want == "") {
			t.Errorf("%v %+v: %q got it, want %q (%v)", c.kind, c.b1, g, c.want, err)
		}
		if c.want == "" {
			wantErr(t, err, broker.ErrNotFound)
		}
		check(t, b.Unbind(ctx, "q1", "x", c.b1))
		check(t, b.Unbind(ctx, "q2", "x", c.b2))
		_, err = x.RouteTo(c.key).Publish(ctx, broker.Message{Headers: c.headers})
		wantErr(t, err, broker.ErrNotFound)
		check(t, b.DeleteExchange(ctx, "x"))
		_, err = x.RouteTo("").Publish(ctx, broker.Message{})
		wantErr(t, err, broker.ErrNotFound)
		check(t, x.Close())
		check(t, x.Close())
		_, err = x.RouteTo("").Publish(ctx, broker.Message{})
		wantErr(t, err, broker.ErrClosed)
	}
}

func TestExchangeErrors(t *testing.T) {
	b := open(t, nil)
	ctx := t.Context()
	wantErr(t, b.DeclareExchange(ctx, "x", 0), broker.ErrInvalid)
	wantErr(t, b.DeclareExchange(ctx, "", broker.ExchangeFanout), broker.ErrInvalid)
	check(t, b.DeclareExchange(ctx, "x", broker.ExchangeFanout))
	wantErr(t, b.DeclareExchange(ctx, "x", broker.ExchangeTopic), broker.ErrConflict)
	wantErr(t, b.Bind(ctx, "q", "x", broker.Binding{}), broker.ErrNotFound)
	wantErr(t, b.Bind(ctx, "q", "none", broker.Binding{}), broker.ErrNotFound)
	q := declare(t, b, "q", broker.QueueConfig{MaxLength: 1})
	wantErr(t, b.Bind(ctx, "q", "x", broker.Binding{RoutingKey: "a"}), broker.ErrUnsupported)
	wantErr(t, b.Bind(ctx, "q", "x", broker.Binding{MatchAny: true}), broker.ErrUnsupported)
	check(t, b.Bind(ctx, "q", "x", broker.Binding{}))
	_, err := b.Exchange(ctx, "none")
	wantErr(t, err, broker.ErrNotFound)
	x, err := b.Exchange(ctx, "x")
	check(t, err)
	p := x.RouteTo("")
	_, err = p.Publish(ctx, broker.Message{DedupID: "d"})
	wantErr(t, err, broker.ErrUnsupported)
	_, err = p.Publish(ctx, broker.Message{Delay: -1})
	wantErr(t, err, broker.ErrInvalid)
	rs, err := p.PublishBatch(ctx, []broker.Message{body("a"), body("b")})
	var be *broker.BatchError
	if !errors.As(err, &be) || be.Errs[0] != nil || !errors.Is(be.Errs[1], broker.ErrFull) || len(rs) != 2 {
		t.Fatalf("%v %v", rs, err)
	}
	// A second queue that has room stores, then the full one fails: unknown.
	declare(t, b, "a", broker.QueueConfig{})
	check(t, b.Unbind(ctx, "q", "x", broker.Binding{}))
	check(t, b.Bind(ctx, "a", "x", broker.Binding{}))
	check(t, b.Bind(ctx, "q", "x", broker.Binding{}))
	_, err = p.Publish(ctx, body("c"))
	wantErr(t, err, broker.ErrUnknownOutcome)
	one(t, consume(t, q, nil), "a")
	ended, cancel := context.WithCancel(ctx)
	cancel()
	_, err = p.Publish(ended, body("c"))
	wantErr(t, err, context.Canceled)
	check(t, b.DeleteQueue(ctx, "a"))
	check(t, b.DeleteQueue(ctx, "q"))
	_, err = p.Publish(ctx, body("d"))
	wantErr(t, err, broker.ErrNotFound)
	_, err = open(t, &Options{Profile: KafkaTopic}).Exchange(ctx, "x")
	wantErr(t, err, broker.ErrUnsupported)
}

// TestProfileExchanges checks that exchanges refuse what the brokers' do.
func TestProfileExchanges(t *testing.T) {
	ctx := t.Context()
	for _, c := range []struct {
		p     Profile
		group error
		delay error
		words error
		lost  error // nobody takes the message
	}{
		{Default, nil, nil, nil, broker.ErrNotFound},
		{RabbitMQQuorum, nil, broker.ErrUnsupported, nil, broker.ErrNotFound},
		{SQSStandard, broker.ErrUnsupported, broker.ErrUnsupported, broker.ErrUnsupported, nil},
		{SQSFIFO, nil, broker.ErrUnsupported, broker.ErrUnsupported, nil},
	} {
		b := open(t, &Options{Profile: c.p})
		check(t, b.DeclareExchange(ctx, "x", broker.ExchangeTopic))
		q, err := broker.DeclareQueue(ctx, b, "q", broker.QueueConfig{})
		check(t, err)
		check(t, b.Bind(ctx, q.Name(), "x", broker.Binding{RoutingKey: "a.#"}))
		if err := b.Bind(ctx, q.Name(), "x", broker.Binding{RoutingKey: "*.a"}); !errors.Is(err, c.words) {
			t.Errorf("%s: bind words: %v", c.p, err)
		}
		x, err := b.Exchange(ctx, "x")
		check(t, err)
		for _, m := range []struct {
			key  string
			m    broker.Message
			want error
		}{
			{"a.b", broker.Message{}, nil}, {"a.b", broker.Message{GroupID: "g"}, c.group},
			{"a.b", broker.Message{Delay: 1}, c.delay}, {"b", broker.Message{}, c.lost},
		} {
			if _, err := x.RouteTo(m.key).Publish(ctx, m.m); !errors.Is(err, m.want) {
				t.Errorf("%s %s %+v: %v, want %v", c.p, m.key, m.m, err, m.want)
			}
		}
	}
}
