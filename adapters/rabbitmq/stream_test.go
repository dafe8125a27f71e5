package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/rabbitmq/internal/streamwire"
)

func testStream(t *testing.T, b *Broker, cfg broker.StreamConfig) *Stream {
	t.Helper()
	name := testName(t, "s")
	if err := b.DeclareStream(testContext(t), name, cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.DeleteStream(testContextDetached(t), name); err != nil {
			t.Error(err)
		}
	})
	s, err := b.Stream(testContext(t), name, nil)
	if err != nil {
		t.Fatal(err)
	}
	return s.(*Stream)
}

func streamOptions(o *Options) {
	if u := os.Getenv("BROKER_TEST_RABBITMQ_STREAM"); u != "" {
		o.StreamURLs = []string{u}
	}
}

func TestStreamPublishRead(t *testing.T) {
	b := testBroker(t, streamOptions)
	s := testStream(t, b, broker.StreamConfig{Partitions: 2})
	var rs []broker.Record
	for i := range 2000 {
		rs = append(rs, broker.Record{Key: fmt.Append(nil, "k", i%7), Value: fmt.Append(nil, i), Headers: broker.Headers{{Key: "h", Value: "\xff"}, {Key: "a", Value: "b"}}})
	}
	start := time.Now()
	if _, err := s.PublishBatch(testContext(t), rs); err != nil {
		t.Fatal(err)
	}
	t.Log("published", time.Since(start))
	ps, err := s.Partitions(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Log(ps)
	last := map[string]int{}
	n := 0
	for r, err := range s.Read(testContext(t), broker.Range{}) {
		if err != nil {
			t.Fatal(err)
		}
		var v int
		if _, err := fmt.Sscan(string(r.Value), &v); err != nil {
			t.Fatal(err)
		}
		if l, ok := last[string(r.Key)]; ok && v <= l {
			t.Fatalf("key %s: %d after %d", r.Key, v, l)
		}
		last[string(r.Key)] = v
		if !slices.Equal(r.Headers, rs[0].Headers) || r.Time().IsZero() {
			t.Fatalf("headers %q", r.Headers)
		}
		n++
	}
	if n != len(rs) {
		t.Fatalf("read %d of %d", n, len(rs))
	}
}

func TestStreamGroup(t *testing.T) {
	b := testBroker(t, streamOptions)
	s := testStream(t, b, broker.StreamConfig{Partitions: 2})
	for i := range 100 {
		if _, err := s.Publish(testContext(t), broker.Record{Key: fmt.Append(nil, i), Value: fmt.Append(nil, i)}); err != nil {
			t.Fatal(err)
		}
	}
	group := testName(t, "g")
	c, err := s.Consumer(testContext(t), group, nil)
	if err != nil {
		t.Fatal(err)
	}
	var got []*broker.Record
	for len(got) < 100 {
		rs, err := c.Receive(testContext(t), 10)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, rs...)
	}
	if err := c.Commit(testContext(t), got[:60]...); err != nil {
		t.Fatal(err)
	}
	ls, err := s.Lag(testContext(t), group)
	if err != nil {
		t.Fatal(err)
	}
	t.Log(ls, c.Partitions())
	if err := c.Seek(testContext(t), 0, broker.Earliest()); err != nil {
		t.Fatal(err)
	}
	rs, err := c.Receive(testContext(t), 1)
	if err != nil || rs[0].Partition != 0 || rs[0].Offset() != broker.NewOffset(0) {
		t.Fatalf("after seek: %v %v", rs, err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := c.Commit(testContext(t), got[99]); !errors.Is(err, broker.ErrFenced) {
		t.Fatalf("commit after close: %v", err)
	}
	if err := b.ResetGroup(testContext(t), s.Name(), group, broker.Earliest()); err != nil {
		t.Fatal(err)
	}
	c, err = s.Consumer(testContext(t), group, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for n := 0; n < 100; {
		rs, err := c.Receive(testContext(t), 1000)
		if err != nil {
			t.Fatal(err)
		}
		n += len(rs)
	}
}

// TestStreamPublishEnded: with an ended context nothing is stored.
func TestStreamPublishEnded(t *testing.T) {
	b := testBroker(t, streamOptions)
	s := testStream(t, b, broker.StreamConfig{})
	if _, err := s.Publish(testContext(t), broker.Record{Value: []byte("first")}); err != nil {
		t.Fatal(err) // the producer is up from here on
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for range 50 {
		if _, err := s.Publish(ended, broker.Record{Value: []byte("never")}); !errors.Is(err, context.Canceled) || errors.Is(err, broker.ErrUnknownOutcome) {
			t.Fatal(err)
		}
	}
	n := 0
	for _, err := range s.Read(testContext(t), broker.Range{}) {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	if n != 1 {
		t.Errorf("%d records, want 1", n)
	}
}

// TestStreamBoundsBehindOffsets: stored offsets take offsets of a stream, but
// they are no records: the ends stay those of the records, without waiting.
func TestStreamBoundsBehindOffsets(t *testing.T) {
	b := testBroker(t, streamOptions)
	s := testStream(t, b, broker.StreamConfig{})
	check := func(want int64) {
		t.Helper()
		for range 20 {
			ps, err := s.Partitions(testContext(t))
			if err != nil {
				t.Fatal(err)
			}
			if ps[0].First != broker.NewOffset(0) || ps[0].Next != broker.NewOffset(want) {
				t.Fatalf("%v to %v, want 0 to %d", ps[0].First, ps[0].Next, want)
			}
		}
	}
	store := func() {
		t.Helper()
		for i := range 5 { // each is a chunk without records
			if err := s.store(testContext(t), "g", 0, int64(i+1)); err != nil {
				t.Fatal(err)
			}
		}
	}
	check(0)
	store()
	check(0)
	n := int64(0)
	for range 3 {
		ps, err := s.Partitions(testContext(t))
		if err != nil {
			t.Fatal(err)
		}
		for range 10 {
			if _, err := s.Publish(testContext(t), broker.Record{Value: []byte("v")}); err != nil {
				t.Fatal(err)
			}
		}
		store()
		after, err := s.Partitions(testContext(t))
		if err != nil {
			t.Fatal(err)
		}
		from, _ := ps[0].Next.Int64()
		next, _ := after[0].Next.Int64()
		if next < from+10 {
			t.Fatalf("%d after %d and 10 records", next, from)
		}
		read := 0
		for _, err := range s.Read(testContext(t), broker.Range{}) {
			if err != nil {
				t.Fatal(err)
			}
			read++
		}
		if n += 10; int64(read) != n {
			t.Fatalf("read %d of %d", read, n)
		}
	}
}

// TestStreamBadInput: typed errors, and the connection stays for others.
func TestStreamBadInput(t *testing.T) {
	t.Parallel()
	b := testBroker(t, streamOptions)
	if len(b.o.StreamURLs) == 0 {
		t.Skip("BROKER_TEST_RABBITMQ_STREAM is not set")
	}
	s := testStream(t, b, broker.StreamConfig{})
	ctx := testContext(t)
	u, err := url.Parse(b.o.StreamURLs[0])
	if err != nil {
		t.Fatal(err)
	}
	bad := func(edit func(*url.URL)) error {
		t.Helper()
		v := *u
		edit(&v)
		_, err := testBroker(t, func(o *Options) { o.StreamURLs = []string{v.String()} }).Stream(ctx, s.Name(), nil)
		if err == nil || broker.IsTemporary(err) || strings.Contains(err.Error(), "wrong-password") {
			t.Errorf("%v", err)
		}
		return err
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := bad(func(u *url.URL) { u.Host = closed }); !errors.Is(err, broker.ErrUnsupported) || !strings.Contains(err.Error(), "rabbitmq_stream") {
		t.Errorf("without the plugin: %v", err)
	}
	if err := bad(func(u *url.URL) { u.User = url.UserPassword("nobody", "wrong-password") }); !errors.Is(err, broker.ErrUnauthorized) {
		t.Errorf("wrong credentials: %v", err)
	}
	if err := bad(func(u *url.URL) { u.Path = "/no-such-vhost" }); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("missing virtual host: %v", err)
	}
	if _, err := b.Stream(ctx, testName(t, "missing"), nil); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("missing stream: %v", err)
	}
	if err := b.DeclareStream(ctx, s.Name(), broker.StreamConfig{Partitions: 3}); !errors.Is(err, broker.ErrConflict) || !strings.Contains(err.Error(), "Partitions") {
		t.Errorf("declared differently: %v", err)
	}
	if _, err := s.Publish(ctx, broker.Record{Value: make([]byte, 1<<20)}); !errors.Is(err, broker.ErrTooLarge) {
		t.Errorf("oversize: %v", err)
	}
	if _, err := s.Publish(ctx, broker.Record{Headers: broker.Headers{{Key: "k", Value: strings.Repeat("x", 1<<17)}}}); !errors.Is(err, broker.ErrTooLarge) {
		t.Errorf("headers: %v", err)
	}
	if _, err := s.Consumer(ctx, "", nil); !errors.Is(err, broker.ErrInvalid) {
		t.Errorf("a group without a name: %v", err)
	}
	largest := broker.Record{Value: make([]byte, s.Capabilities().MaxBytes)}
	if _, err := s.Publish(ctx, largest); err != nil {
		t.Errorf("the largest: %v", err)
	}
}

// TestStreamGroupOfDeletedStream: who waits for records of a stream that is
// deleted is told so, and goes on when it is there again.
func TestStreamGroupOfDeletedStream(t *testing.T) {
	t.Parallel()
	s := groupStream(t)
	c, err := s.Consumer(testContext(t), testName(t, "g"), nil)
	if err != nil {
		t.Fatal(err)
	}
	rs, err := c.Receive(testContext(t), 10)
	for err == nil && len(rs) < 2 {
		var more []*broker.Record
		more, err = c.Receive(testContext(t), 10)
		rs = append(rs, more...)
	}
	if err != nil {
		t.Fatal(err)
	}
	deleted := make(chan error, 1)
	go func() { deleted <- s.b.DeleteStream(testContext(t), s.Name()) }()
	for range 2 {
		var be *broker.Error
		if rs, err = c.Receive(testContext(t), 10); !errors.Is(err, broker.ErrNotFound) || !errors.As(err, &be) || be.Op != "receive" {
			t.Fatalf("%d records of a deleted stream, and %v", len(rs), err)
		}
	}
	if err := <-deleted; err != nil {
		t.Fatal(err)
	}
	if err := s.b.DeclareStream(testContext(t), s.Name(), broker.StreamConfig{Partitions: 2}); err != nil {
		t.Fatal(err)
	}
	publishTo(t, s, 0, "anew")
	for len(rs) == 0 {
		if rs, err = c.Receive(testContext(t), 10); err != nil && !errors.Is(err, broker.ErrNotFound) {
			t.Fatal(err)
		}
	}
	if string(rs[0].Value) != "anew" {
		t.Errorf("received %q", rs[0].Value)
	}
}

// TestStreamUnreadable: a record that another client wrote, and that is no AMQP
// 1.0, is an error that names its offset: Read does not try for ever, and a group
// is told and goes on behind it.
func TestStreamUnreadable(t *testing.T) {
	t.Parallel()
	b := testBroker(t, streamOptions)
	s := testStream(t, b, broker.StreamConfig{})
	before, err := encodeRecord(&broker.Record{Value: []byte("before")})
	if err != nil {
		t.Fatal(err)
	}
	k, err := b.streams.leader(testContext(t), rolePublish, s.partitions[0])
	if err != nil {
		t.Fatal(err)
	}
	stored := make(chan streamwire.CodeError, 2)
	p, _, err := k.DeclarePublisher(testContext(t), "raw", s.partitions[0], func(_ []int64, code streamwire.CodeError) { stored <- code })
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	// In one chunk.
	if err := p.Send([]streamwire.Entry{{ID: 1, Message: before}, {ID: 2, Message: []byte("neither a section nor a value")}}); err != nil {
		t.Fatal(err)
	}
	if code := <-stored; code != streamwire.OK {
		t.Fatal(code)
	}
	publishTo(t, s, 0, "behind")

	n := 0
	for _, err = range s.Read(testContext(t), broker.Range{}) {
		n++
	}
	if n != 2 || !errors.Is(err, broker.ErrUnsupported) || broker.IsTemporary(err) || !strings.Contains(err.Error(), "offset 1") {
		t.Errorf("%d pairs, the last is %v", n, err)
	}
	c, err := s.Consumer(testContext(t), testName(t, "g"), nil)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for len(got) < 2 {
		rs, err := c.Receive(testContext(t), 10)
		switch {
		case errors.Is(err, broker.ErrUnsupported):
			if err := c.Seek(testContext(t), 0, broker.AtOffset(broker.NewOffset(2))); err != nil {
				t.Fatal(err)
			}
		case err != nil:
			t.Fatal(err)
		}
		for _, r := range rs {
			got = append(got, string(r.Value))
		}
	}
	if !slices.Equal(got, []string{"before", "behind"}) {
		t.Errorf("received %q", got)
	}
}

// TestStreamCredentialsRefreshed: connections get new secrets and stay.
func TestStreamCredentialsRefreshed(t *testing.T) {
	t.Parallel()
	asked := make(chan struct{}, 1000)
	b := testBroker(t, func(o *Options) {
		streamOptions(o)
		uri, err := amqp.ParseURI(o.URLs[0])
		if err != nil {
			t.Fatal(err)
		}
		o.RefreshCredentials = 50 * time.Millisecond
		o.Credentials = func(context.Context) (user, password string, err error) {
			asked <- struct{}{}
			return uri.Username, uri.Password, nil
		}
	})
	s := testStream(t, b, broker.StreamConfig{})
	k, err := b.streams.conn(testContext(t), roleControl, "")
	if err != nil {
		t.Fatal(err)
	}
	for range 30 {
		<-asked
	}
	publishTo(t, s, 0, "fresh")
	if err := k.Err(); err != nil {
		t.Errorf("the first connection: %v", err)
	}
	if err := k.Authenticate(testContext(t), "guest", "not the password"); !errors.Is(err, streamwire.ErrAuthenticationFailure) && !errors.Is(err, streamwire.ErrClosed) {
		t.Errorf("a wrong secret: %v", err)
	}
	if again, err := b.streams.conn(testContext(t), rolePublish, ""); err != nil || again.Err() != nil {
		t.Errorf("%v", err)
	}
}
