package kafka_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/kafka"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/plain"
)

// A member that is stopped for longer than its session time-out loses its
// partitions; when it goes on, its commit is refused and moves nothing back.
func TestStoppedMemberIsFenced(t *testing.T) {
	onBrokers(t, func(t *testing.T, o *kafka.Options) {
		if testing.Short() {
			t.Skip("takes the 6 s of a session time-out: run it without -short")
		}
		ctx := testContext(t)
		s := declare(t, open(t, o), broker.StreamConfig{Partitions: 2})
		publish(t, s, 40)

		var f freezer
		t.Cleanup(f.thaw)
		own := *o
		own.Dialer, own.SessionTimeout, own.HeartbeatInterval = f.dial, 6*time.Second, 500*time.Millisecond
		mine, err := open(t, &own).Stream(ctx, s.Name(), nil)
		if err != nil {
			t.Fatal(err)
		}
		stopped := member(t, mine, mine.Name(), nil)
		first := receive(t, stopped, 20)
		if err := stopped.Commit(ctx, first[:10]...); err != nil {
			t.Fatal(err)
		}
		f.freeze()

		other := member(t, s, s.Name(), nil)
		rest := receive(t, other, 30)
		seen := map[string]int{}
		for _, r := range append(first[:10:10], rest...) {
			seen[string(r.Value)]++
		}
		if len(seen) != 40 {
			t.Errorf("%d of 40 records were read", len(seen))
		}
		if err := other.Commit(ctx, rest...); err != nil {
			t.Fatal(err)
		}
		f.thaw()
		if err := stopped.Commit(ctx, first...); !errors.Is(err, broker.ErrFenced) {
			t.Errorf("commit of the member that was stopped: %v, want ErrFenced", err)
		}
		lag, err := s.Lag(ctx, s.Name())
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range lag {
			if l.Lag != 0 {
				t.Errorf("lag %d of partition %d after everything was committed", l.Lag, l.Partition)
			}
		}
	})
}

func TestBrokerDownAtOpen(t *testing.T) {
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	start := time.Now()
	b, err := kafka.Open(ctx, &kafka.Options{Brokers: []string{address}})
	if err == nil {
		t.Fatalf("opened %v", b)
	}
	var e *broker.Error
	if !errors.As(err, &e) || e.Op != "open" || e.Adapter != "kafka" {
		t.Errorf("%#v, want a broker.Error of open", err)
	}
	if !errors.Is(err, broker.ErrUnavailable) && !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("open: %v, want ErrUnavailable or the context's end", err)
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("open took %v with a context of 500ms", d)
	}
}

// Calls on a broker that went away end with their context, and Close does not hang.
func TestBrokerDownLater(t *testing.T) {
	ctx := testContext(t)
	cluster := fake(t)
	b, s := openOn(t, cluster)
	publish(t, s, 1)
	c, err := s.Consumer(ctx, s.Name(), nil)
	if err != nil {
		t.Fatal(err)
	}
	rs := receive(t, c, 1)
	cluster.Close()

	for _, call := range []struct {
		name string
		do   func(ctx context.Context) error
		want []error
	}{
		{"publish", func(ctx context.Context) error {
			_, err := s.Publish(ctx, broker.Record{Value: []byte("x")})
			return err
		}, []error{broker.ErrUnknownOutcome, context.DeadlineExceeded, broker.ErrUnavailable}},
		{"commit", func(ctx context.Context) error { return c.Commit(ctx, rs...) },
			[]error{broker.ErrUnknownOutcome, context.DeadlineExceeded, broker.ErrUnavailable}},
		{"receive", func(ctx context.Context) error {
			_, err := c.Receive(ctx, 1)
			return err
		}, []error{context.DeadlineExceeded, broker.ErrUnavailable}},
		{"ping", b.Ping, []error{context.DeadlineExceeded, broker.ErrUnavailable}},
	} {
		ctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		start := time.Now()
		err := call.do(ctx)
		cancel()
		if !isOneOf(err, call.want...) {
			t.Errorf("%s: %v, want one of %v", call.name, err, call.want)
		}
		if d := time.Since(start); d > 3*time.Second {
			t.Errorf("%s took %v with a context of 200ms", call.name, d)
		}
	}
	start := time.Now()
	if err := b.Close(); err != nil {
		t.Logf("close: %v", err) // it may say that the group could not be told
	}
	if d := time.Since(start); d > 15*time.Second {
		t.Errorf("Close took %v", d)
	}
}

func isOneOf(err error, want ...error) bool {
	for _, w := range want {
		if errors.Is(err, w) {
			return true
		}
	}
	return false
}

func TestWrongPassword(t *testing.T) {
	cluster := fake(t, kfake.EnableSASL(), kfake.Superuser("PLAIN", "root", "secret"))
	o := &kafka.Options{Brokers: cluster.ListenAddrs(), SASL: []sasl.Mechanism{plain.Auth{User: "root", Pass: "secret"}.AsMechanism()}}
	open(t, o)
	// As Kafka does; kfake would cut the connection without a word.
	cluster.ControlKey(kmsg.SASLAuthenticate.Int16(), func(req kmsg.Request) (kmsg.Response, error, bool) { //nolint:revive // kfake's order
		cluster.KeepControl()
		resp, ok := req.ResponseKind().(*kmsg.SASLAuthenticateResponse)
		if ok {
			resp.ErrorCode = kerr.SaslAuthenticationFailed.Code
		}
		return resp, nil, ok
	})
	o.SASL = []sasl.Mechanism{plain.Auth{User: "root", Pass: "wrong"}.AsMechanism()}
	_, err := kafka.Open(testContext(t), o)
	if !errors.Is(err, broker.ErrUnauthorized) || broker.IsTemporary(err) {
		t.Errorf("open with a wrong password: %v (temporary %v), want ErrUnauthorized for good", err, broker.IsTemporary(err))
	}
	if err != nil && strings.Contains(err.Error(), "wrong") {
		t.Errorf("the error shows the password: %v", err)
	}
}

// A user without any right gets a typed error from everything, at once.
func TestUnauthorized(t *testing.T) {
	ctx := testContext(t)
	cluster := fake(t, kfake.EnableSASL(), kfake.EnableACLs(),
		kfake.Superuser("PLAIN", "root", "secret"), kfake.User("PLAIN", "guest", "guest"))
	as := func(user, pass string) *kafka.Broker {
		return open(t, &kafka.Options{Brokers: cluster.ListenAddrs(), SASL: []sasl.Mechanism{plain.Auth{User: user, Pass: pass}.AsMechanism()}})
	}
	root, guest := as("root", "secret"), as("guest", "guest")
	declare(t, root, broker.StreamConfig{})
	if err := root.DeclareStream(ctx, "s", broker.StreamConfig{}); err != nil {
		t.Fatal(err)
	}
	if _, err := guest.Stream(ctx, "s", nil); !errors.Is(err, broker.ErrUnauthorized) && !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("open a stream: %v, want ErrUnauthorized (or ErrNotFound, where the broker hides it)", err)
	}
	if err := guest.DeclareStream(ctx, "mine", broker.StreamConfig{}); !errors.Is(err, broker.ErrUnauthorized) {
		t.Errorf("declare a stream: %v, want ErrUnauthorized", err)
	}
	if err := guest.DeleteStream(ctx, "s"); !errors.Is(err, broker.ErrUnauthorized) && !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("delete a stream: %v, want ErrUnauthorized", err)
	}
}

// A record above the topic's limit is refused by name, and the next one is not.
func TestTooLarge(t *testing.T) {
	onBrokers(t, func(t *testing.T, o *kafka.Options) {
		ctx := testContext(t)
		own := *o
		own.Compression = "none" // the broker counts what it is sent
		b := open(t, &own)
		s := declare(t, b, broker.StreamConfig{Partitions: 1, Options: map[string]string{"max.message.bytes": "2000"}})
		small, large := broker.Record{Value: []byte("small")}, broker.Record{Value: make([]byte, 2500)}
		_, err := s.PublishBatch(ctx, []broker.Record{small, large, small})
		for i, want := range []error{nil, broker.ErrTooLarge, nil} {
			if got := broker.ErrorAt(err, i); !errors.Is(got, want) {
				t.Errorf("record %d: %v, want %v", i, got, want)
			}
		}
		if strings.HasSuffix(t.Name(), "/fake") {
			return // kfake takes records of any size: the first refusal is the client's
		}
		// The limit of the topic shrinks while the stream is open.
		middle := broker.Record{Value: make([]byte, 1200)}
		if _, err := s.Publish(ctx, middle); err != nil {
			t.Fatal(err)
		}
		limit := "600"
		changed, err := kadm.NewClient(b.Client()).AlterTopicConfigs(ctx, []kadm.AlterConfig{{Name: "max.message.bytes", Value: &limit}}, s.Name())
		if err != nil || changed[0].Err != nil {
			t.Fatal(err, changed)
		}
		eventually(t, "the broker refuses it too", func() bool {
			_, err := s.Publish(ctx, middle)
			if err != nil && !errors.Is(err, broker.ErrTooLarge) {
				t.Fatalf("publish above the broker's limit: %v, want ErrTooLarge", err)
			}
			return err != nil
		})
		if _, err := s.Publish(ctx, small); err != nil {
			t.Errorf("a small one after that: %v", err)
		}
	})
}

func TestInvalidAndUnknownNames(t *testing.T) {
	ctx := testContext(t)
	b := open(t, &kafka.Options{Brokers: fake(t).ListenAddrs()})
	for _, name := range []string{"", ".", "..", "a b", "a/b", "ä", "a\x00", strings.Repeat("x", 250)} {
		if err := b.DeclareStream(ctx, name, broker.StreamConfig{}); !errors.Is(err, broker.ErrInvalid) {
			t.Errorf("declare stream %.20q: %v, want ErrInvalid", name, err)
		}
		if err := b.DeclareQueue(ctx, name, broker.QueueConfig{}); !errors.Is(err, broker.ErrInvalid) {
			t.Errorf("declare queue %.20q: %v, want ErrInvalid", name, err)
		}
		if _, err := b.Stream(ctx, name, nil); !errors.Is(err, broker.ErrInvalid) {
			t.Errorf("open stream %.20q: %v, want ErrInvalid", name, err)
		}
		if _, err := b.Queue(ctx, name, nil); !errors.Is(err, broker.ErrInvalid) {
			t.Errorf("open queue %.20q: %v, want ErrInvalid", name, err)
		}
	}
	start := time.Now()
	if _, err := b.Stream(ctx, "nobody", nil); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("open an unknown stream: %v, want ErrNotFound", err)
	}
	if _, err := b.Queue(ctx, "nobody", nil); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("open an unknown queue: %v, want ErrNotFound", err)
	}
	if err := b.DeleteStream(ctx, "nobody"); err != nil && !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("delete an unknown stream: %v, want ErrNotFound", err)
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("unknown names took %v", d)
	}
}

// A topic that is deleted under its consumer and publisher is told, soon; both
// work when it is there again.
func TestTopicDeletedAndCreatedAgain(t *testing.T) {
	onBrokers(t, func(t *testing.T, o *kafka.Options) {
		if testing.Short() {
			t.Skip("takes the 5 s after which an idle member looks at its topic: run it without -short")
		}
		ctx := testContext(t)
		b := open(t, o)
		s := declare(t, b, broker.StreamConfig{Partitions: 1})
		publish(t, s, 3)
		c := member(t, s, s.Name(), nil)
		receive(t, c, 3)
		if err := b.DeleteStream(ctx, s.Name()); err != nil {
			t.Fatal(err)
		}
		if rs, err := c.Receive(ctx, 1); !errors.Is(err, broker.ErrNotFound) {
			t.Errorf("receive from a topic that was deleted: %d records and %v, want ErrNotFound", len(rs), err)
		}
		if err := b.DeclareStream(ctx, s.Name(), broker.StreamConfig{Partitions: 1}); err != nil {
			t.Fatal(err)
		}
		again, err := b.Stream(ctx, s.Name(), nil)
		if err != nil {
			t.Fatal(err)
		}
		publish(t, again, 2)
		if got := receive(t, member(t, again, "other", nil), 2); string(got[0].Value) != "v0" {
			t.Errorf("the new topic begins with %q", got[0].Value)
		}
	})
}

// A topic that is replaced by a new one of its name under a consumer that
// waits and a publisher that goes on: both are told, and nothing hangs or
// spins. What is opened then works on the new one, also with the same Broker.
func TestTopicReplaced(t *testing.T) {
	if testing.Short() {
		t.Skip("takes the 11 s after which a member is told: run it without -short")
	}
	onBrokers(t, func(t *testing.T, o *kafka.Options) {
		ctx := testContext(t)
		b := open(t, o)
		s := declare(t, b, broker.StreamConfig{Partitions: 1})
		publish(t, s, 3)
		c := member(t, s, s.Name(), nil)
		old := receive(t, c, 3)
		if err := c.Commit(ctx, old[0]); err != nil {
			t.Fatal(err)
		}
		told := make(chan error, 1)
		go func() {
			_, err := c.Receive(ctx, 1)
			told <- err
		}()
		if err := b.DeleteStream(ctx, s.Name()); err != nil {
			t.Fatal(err)
		}
		if err := b.DeclareStream(ctx, s.Name(), broker.StreamConfig{Partitions: 1}); err != nil {
			t.Fatal(err)
		}
		if err := <-told; !errors.Is(err, broker.ErrNotFound) {
			t.Errorf("receive from a topic that was replaced: %v, want ErrNotFound", err)
		}
		if _, err := s.Publish(ctx, broker.Record{Value: []byte("old handle")}); err != nil && !errors.Is(err, broker.ErrNotFound) {
			t.Errorf("publish with the old handle: %v, want nil or ErrNotFound", err)
		}
		again, err := b.Stream(ctx, s.Name(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := again.Publish(ctx, broker.Record{Value: []byte("new handle")}); err != nil {
			t.Errorf("publish with a new handle: %v", err)
		}
		if err := c.Commit(ctx, old...); !errors.Is(err, broker.ErrNotFound) && !errors.Is(err, broker.ErrFenced) {
			t.Errorf("commit of a record of the topic that was replaced: %v, want ErrNotFound or ErrFenced", err)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		next := member(t, again, again.Name(), nil)
		first := receive(t, next, 1)[0] // the group's offsets went with the old topic
		if first.Offset() != broker.NewOffset(0) {
			t.Errorf("the group begins at offset %v of the new topic", first.Offset())
		}
	})
}

// A queue whose topic is replaced goes on by itself.
func TestQueueReplaced(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for heartbeats of the share group: run it without -short")
	}
	onBrokers(t, func(t *testing.T, o *kafka.Options) {
		ctx := testContext(t)
		b := open(t, o)
		q := queue(t, b, broker.QueueConfig{})
		c := consumer(t, q)
		enqueue(t, q, 1)
		if err := take(t, c, 1)[0].Ack(ctx); err != nil {
			t.Fatal(err)
		}
		if err := b.DeleteQueue(ctx, q.Name()); err != nil {
			t.Fatal(err)
		}
		if err := b.DeclareQueue(ctx, q.Name(), broker.QueueConfig{}); err != nil {
			t.Fatal(err)
		}
		again, err := b.Queue(ctx, q.Name(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := again.Publish(ctx, broker.Message{Body: []byte("new")}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the running consumer receives of the new topic, told at most of the old one's end", func() bool {
			ds, err := c.Receive(ctx, 1)
			if err != nil && !errors.Is(err, broker.ErrNotFound) {
				t.Fatal(err)
			}
			for _, d := range ds {
				if err := d.Ack(ctx); err != nil {
					t.Error(err)
				}
			}
			return len(ds) > 0
		})
	})
}

// A connection that breaks while a group's coordinator is looked for, as one
// that was idle for too long does, is no error of what was asked.
func TestBrokenSearchForACoordinator(t *testing.T) {
	cluster := fake(t)
	ctx := testContext(t)
	for _, call := range []struct {
		name string
		do   func(b *kafka.Broker, s broker.Stream, queue string) error
	}{
		{"Lag", func(_ *kafka.Broker, s broker.Stream, _ string) error {
			_, err := s.Lag(ctx, "group-"+s.Name())
			return err
		}},
		{"QueueStats", func(b *kafka.Broker, _ broker.Stream, queue string) error {
			_, err := b.QueueStats(ctx, queue)
			return err
		}},
		{"DeleteQueue", func(b *kafka.Broker, _ broker.Stream, queue string) error { return b.DeleteQueue(ctx, queue) }},
	} {
		t.Run(call.name, func(t *testing.T) {
			b := open(t, &kafka.Options{Brokers: cluster.ListenAddrs()})
			s := declare(t, b, broker.StreamConfig{Partitions: 1})
			queue := name(t)
			declared := open(t, &kafka.Options{Brokers: cluster.ListenAddrs()}) // b knows no coordinator yet
			if err := declared.DeclareQueue(ctx, queue, broker.QueueConfig{}); err != nil {
				t.Fatal(err)
			}
			var broken atomic.Int32
			cluster.ControlKey(kmsg.FindCoordinator.Int16(), func(kmsg.Request) (kmsg.Response, error, bool) { //nolint:revive // kfake's order
				broken.Add(1)
				return nil, errors.New("the connection breaks"), true
			})
			if err := call.do(b, s, queue); err != nil {
				t.Error(err)
			}
			if broken.Load() == 0 {
				t.Error("no connection was broken: this test shows nothing")
			}
		})
	}
}
