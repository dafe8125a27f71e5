package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/queuestream/broker"
)

func TestPublishReceiveAck(t *testing.T) {
	b := testBroker(t, nil)
	q := testQueue(t, b, broker.QueueConfig{})
	want := broker.Message{
		ID: "id-1", Body: []byte("\x00body\xff"), ContentType: "text/plain", CorrelationID: "c",
		ReplyTo: "r", Headers: broker.Headers{{Key: "b", Value: "1"}, {Key: "a", Value: "\x00\xff"}, {Key: "b", Value: "2"}, {Key: "CC", Value: "other"}},
	}
	before := time.Now().Add(-time.Second)
	if r := publish(t, q, want); r.ID != "id-1" {
		t.Fatalf("receipt %+v", r)
	}
	c := testConsumer(t, q, nil)
	d := receive(t, c)
	if d.ID != want.ID || string(d.Body) != string(want.Body) || d.ContentType != want.ContentType ||
		d.CorrelationID != "c" || d.ReplyTo != "r" || !slices.Equal(d.Headers, want.Headers) || d.Attempt != 1 || d.Time.Before(before) {
		t.Fatalf("got %+v", d.Message)
	}
	ack(t, d)
	if err := d.Ack(t.Context()); !errors.Is(err, broker.ErrSettled) {
		t.Fatalf("second ack: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := b.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	s, err := b.QueueStats(t.Context(), q.Name())
	if err != nil || s.Ready != 0 {
		t.Fatalf("stats %+v, %v", s, err)
	}
}

func TestAttemptsAndDeadLetter(t *testing.T) {
	for _, kind := range []string{"quorum", "classic"} {
		t.Run(kind, func(t *testing.T) {
			b := testBroker(t, nil)
			dead := testQueue(t, b, broker.QueueConfig{})
			q := testQueue(t, b, broker.QueueConfig{
				DeadLetter: dead.Name(), MaxAttempts: 3, Options: map[string]string{"x-queue-type": kind},
			})
			publish(t, q, broker.Message{ID: "poison", Body: []byte("x"), Headers: broker.Headers{{Key: "k", Value: "v"}}})
			c := testConsumer(t, q, nil)
			for i, delay := range []time.Duration{0, 100 * time.Millisecond, 0} {
				d := receive(t, c)
				if d.Attempt != i+1 {
					t.Fatalf("attempt %d, want %d", d.Attempt, i+1)
				}
				nack(t, d, delay)
			}
			receiveNone(t, c, 200*time.Millisecond)
			d := receive(t, testConsumer(t, dead, nil))
			why, ok := broker.DeadLetterOf(&d.Message)
			if !ok || why.Attempts != 3 || why.Queue != q.Name() || d.Headers.Get("k") != "v" || d.ID != "poison" {
				t.Fatalf("dead letter %+v of %+v", why, d.Message)
			}
			nack(t, d, 0)
			eventually(t, "the dead letter is back", func() bool {
				s, err := b.QueueStats(t.Context(), dead.Name())
				return err == nil && s.Ready+max(0, s.InFlight) == 1
			})
		})
	}
}

func TestReject(t *testing.T) {
	b := testBroker(t, nil)
	dead := testQueue(t, b, broker.QueueConfig{})
	q := testQueue(t, b, broker.QueueConfig{DeadLetter: dead.Name()})
	publish(t, q, broker.Message{Body: []byte("x")})
	c := testConsumer(t, q, nil)
	if err := receive(t, c).Reject(t.Context(), "because"); err != nil {
		t.Fatal(err)
	}
	if n, err := b.Redrive(t.Context(), dead.Name(), "", 0); err != nil || n != 1 {
		t.Fatalf("redrive: %d, %v", n, err)
	}
	d := receive(t, c)
	if _, dl := broker.DeadLetterOf(&d.Message); dl || d.Attempt != 1 {
		t.Fatalf("redriven: %+v attempt %d", d.Message, d.Attempt)
	}
	ack(t, d)
}

func TestDelays(t *testing.T) {
	b := testBroker(t, nil)
	q := testQueue(t, b, broker.QueueConfig{})
	c := testConsumer(t, q, nil)
	delays := []time.Duration{1500 * time.Millisecond, 50 * time.Millisecond, 700 * time.Millisecond}
	start := time.Now()
	for _, d := range delays {
		publish(t, q, broker.Message{Body: []byte(d.String()), Delay: d})
	}
	slices.Sort(delays)
	for _, want := range delays {
		d := receive(t, c)
		took := time.Since(start)
		if string(d.Body) != want.String() || took < want || took > want+2*time.Second || d.Attempt != 1 {
			t.Fatalf("%s after %v, attempt %d, want %v", d.Body, took, d.Attempt, want)
		}
		ack(t, d)
	}
}

func TestGroupsInOrder(t *testing.T) {
	b := testBroker(t, nil)
	q := testQueue(t, b, broker.QueueConfig{Ordered: true, Shards: 3})
	var ms []broker.Message
	const groups, each = 5, 20
	for i := range each {
		for g := range groups {
			ms = append(ms, broker.Message{GroupID: fmt.Sprint("g", g), Body: fmt.Append(nil, i)})
		}
	}
	if _, err := q.PublishBatch(testContext(t), ms); err != nil {
		t.Fatal(err)
	}
	c := testConsumer(t, q, nil)
	next := map[string]int{}
	nacked := map[string]bool{}
	for got := 0; got < groups*each; {
		d := receive(t, c)
		if string(d.Body) != fmt.Sprint(next[d.GroupID]) {
			t.Fatalf("group %s: %s, want %d", d.GroupID, d.Body, next[d.GroupID])
		}
		if id := d.ID; next[d.GroupID]%7 == 3 && !nacked[id] {
			nacked[id] = true
			nack(t, d, time.Duration(next[d.GroupID]%2)*20*time.Millisecond)
			continue
		} else if want := 1 + map[bool]int{true: 1}[nacked[id]]; d.Attempt != want {
			t.Fatalf("attempt %d, want %d", d.Attempt, want)
		}
		next[d.GroupID]++
		got++
		ack(t, d)
	}
}

// TestFailedPublishIsNeverNil: as many messages are stored as Publish and
// PublishBatch answered with nil, whatever the broker refused.
func TestFailedPublishIsNeverNil(t *testing.T) {
	b := testBroker(t, nil)
	q := testQueue(t, b, broker.QueueConfig{MaxLength: 5})
	stored := 0
	count := func(err error) {
		switch {
		case err == nil:
			stored++
		case !errors.Is(err, broker.ErrFull):
			t.Errorf("publish to a full queue: %v", err)
		}
	}
	for range 50 {
		_, err := q.Publish(testContext(t), broker.Message{Body: []byte("one")})
		count(err)
	}
	ms := make([]broker.Message, 100)
	_, err := q.PublishBatch(testContext(t), ms)
	for i := range ms {
		count(broker.ErrorAt(err, i))
	}
	if stored < 5 || stored > 100 {
		t.Fatalf("%d of 150 were accepted, the limit is 5", stored)
	}
	s, err := b.QueueStats(testContext(t), q.Name())
	if err != nil || s.Ready != int64(stored) {
		t.Fatalf("%d were accepted, %d are stored, %v", stored, s.Ready, err)
	}
	deleteQueue(t, b, q.Name())
	if _, err := q.Publish(testContext(t), broker.Message{Body: []byte("nowhere")}); !errors.Is(err, broker.ErrNotFound) {
		t.Fatalf("publish to a deleted queue: %v", err)
	}
}

// TestPublishEnds: a publisher whose context ends leaves at once, also while
// the connection lives, and what it had not sent is not sent.
func TestPublishEnds(t *testing.T) {
	b := testBroker(t, func(o *Options) { o.Window = 1 })
	q := testQueue(t, b, broker.QueueConfig{})
	publish(t, q, broker.Message{Body: []byte("first")})
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	answer := make(chan error, 1)
	go func() {
		_, err := q.PublishBatch(ended, make([]broker.Message, 2))
		answer <- err
	}()
	select {
	case err := <-answer:
		for i := range 2 {
			if err := broker.ErrorAt(err, i); !errors.Is(err, context.Canceled) || errors.Is(err, broker.ErrUnknownOutcome) {
				t.Errorf("message %d: %v", i, err)
			}
		}
	case <-testContext(t).Done():
		t.Error("PublishBatch goes on after its context's end")
	}
	if s, err := b.QueueStats(testContext(t), q.Name()); err != nil || s.Ready != 1 {
		t.Errorf("%d stored, want 1: %v", s.Ready, err)
	}
}

// TestExpiredToOrdered: what the broker itself dead-letters into an ordered
// queue arrives there, with a group and without.
func TestExpiredToOrdered(t *testing.T) {
	b := testBroker(t, nil)
	dead := testQueue(t, b, broker.QueueConfig{Ordered: true, Shards: 2})
	cfg := broker.QueueConfig{DeadLetter: dead.Name(), TTL: 50 * time.Millisecond}
	plain := openTestQueue(t, b, testName(t, "plain"), cfg)
	cfg.Ordered, cfg.Shards = true, 3
	grouped := openTestQueue(t, b, testName(t, "grouped"), cfg)
	want := map[string]bool{}
	for i := range 6 {
		for group, p := range map[string]*Queue{"": plain, fmt.Sprint("g", i): grouped} {
			m := broker.Message{Body: fmt.Append(nil, i, group), GroupID: group}
			publish(t, p, m)
			want[string(m.Body)] = true
		}
	}
	c := testConsumer(t, dead, nil)
	for len(want) > 0 {
		d := receive(t, c)
		if !want[string(d.Body)] {
			t.Fatalf("%q again", d.Body)
		}
		delete(want, string(d.Body))
		ack(t, d)
	}
}

// TestQueueOfAnOlderBroker has no delivery limit in its arguments: the conflict
// says what to do, and that does it.
func TestQueueOfAnOlderBroker(t *testing.T) {
	b := testBroker(t, nil)
	if major, _ := b.control.version(); major < 4 {
		t.Skip("RabbitMQ 3.13 does without the argument")
	}
	name := testName(t, "q")
	t.Cleanup(func() { deleteQueue(t, b, name) })
	err := b.channel(testContext(t), func(ch *amqp.Channel) error {
		_, err := ch.QueueDeclare(name, true, false, false, false, amqp.Table{amqp.QueueTypeArg: amqp.QueueTypeQuorum})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	err = b.DeclareQueue(testContext(t), name, broker.QueueConfig{})
	if !errors.Is(err, broker.ErrConflict) || !strings.Contains(err.Error(), `Options["x-delivery-limit"] = ""`) {
		t.Errorf("declared as ever: %v", err)
	}
	cfg := broker.QueueConfig{Options: map[string]string{"x-delivery-limit": ""}}
	if err := b.DeclareQueue(testContext(t), name, cfg); err != nil {
		t.Errorf("declared without a limit: %v", err)
	}
}

// TestDelayQueuesRemovedByOthers: the delay that finds them gone fails, and the
// next one works.
func TestDelayQueuesRemovedByOthers(t *testing.T) {
	direct := testBroker(t, nil)
	if direct.manage == nil {
		t.Skip("a virtual host of its own needs BROKER_TEST_RABBITMQ_MANAGEMENT")
	}
	uri, err := amqp.ParseURI(testURL(t))
	if err != nil {
		t.Fatal(err)
	}
	uri.Vhost = testName(t, "vhost")
	manage := func(ctx context.Context, method, path, body string) {
		t.Helper()
		r, err := http.NewRequestWithContext(ctx, method, direct.manage.base+"/api/"+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.SetBasicAuth(direct.manage.user, direct.manage.password)
		res, err := direct.manage.client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		if err := res.Body.Close(); err != nil || res.StatusCode >= http.StatusMultipleChoices {
			t.Fatal(method, path, res.Status, err)
		}
	}
	manage(t.Context(), http.MethodPut, "vhosts/"+uri.Vhost, "{}")
	t.Cleanup(func() { manage(testContextDetached(t), http.MethodDelete, "vhosts/"+uri.Vhost, "") })
	manage(t.Context(), http.MethodPut, "permissions/"+uri.Vhost+"/"+uri.Username, `{"configure":".*","write":".*","read":".*"}`)
	own := func(o *Options) { o.URLs, o.Management = []string{uri.String()}, "" }
	b, other := testBroker(t, own), testBroker(t, own)
	q := testQueue(t, b, broker.QueueConfig{})
	c := testConsumer(t, q, nil)
	publish(t, q, broker.Message{Delay: delayUnit})
	ack(t, receive(t, c))
	if err := other.RemoveDelayQueues(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := q.Publish(testContext(t), broker.Message{Delay: delayUnit}); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("the delay queues are gone: %v", err)
	}
	publish(t, q, broker.Message{Delay: delayUnit})
	ack(t, receive(t, c))
}
