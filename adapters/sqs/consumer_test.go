package sqs

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/queuestream/broker"
)

func TestIdleConsumerMakesOneLongPollAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		b := openFake(t, f)
		q := openQueue(t, b, "idle", nil)
		c := consume(t, q, nil)
		// A busy time first, so that there are several pollers.
		if _, err := q.PublishBatch(t.Context(), bodies(500, nil)); err != nil {
			t.Fatal(err)
		}
		for n := 0; n < 500; {
			ds, err := c.Receive(t.Context(), 100)
			if err != nil {
				t.Fatal(err)
			}
			if err := broker.AckAll(t.Context(), ds...); err != nil {
				t.Fatal(err)
			}
			n += len(ds)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		// The first poll after the busy time may still be one of several.
		before := f.requests("ReceiveMessage")
		if _, err := c.Receive(ctx, 10); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		if n := f.requests("ReceiveMessage") - before; n < 29 || n > 30+defaultMaxPollers {
			t.Errorf("%d polls in 10 min of nothing, want about 30", n)
		}
	})
}

func TestNobodyReceivingMeansNoRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		q := openQueue(t, openFake(t, f), "unused", nil)
		consume(t, q, nil)
		<-time.After(time.Hour)
		if n := f.requests("ReceiveMessage"); n != 0 {
			t.Errorf("%d polls before the first Receive", n)
		}
	})
}

func TestErrorsBackOffAndReachReceive(t *testing.T) {
	for code, want := range map[string]error{
		"AccessDenied":      broker.ErrUnauthorized,
		"ExpiredToken":      broker.ErrUnauthorized,
		"QueueDoesNotExist": broker.ErrNotFound,
	} {
		synctest.Test(t, func(t *testing.T) {
			f := newFake()
			q := openQueue(t, openFake(t, f), "broken", nil)
			f.fault = func(op string, _ map[string]any, answer any) (*http.Response, error) {
				if op == "ReceiveMessage" && answer == nil {
					return fakeError(403, code), nil
				}
				return nil, nil
			}
			c := consume(t, q, nil)
			_, err := c.Receive(t.Context(), 1)
			var e *broker.Error
			if !errors.Is(err, want) || !errors.As(err, &e) || e.Op != "receive" || e.Name != "broken" || e.Adapter != "sqs" {
				t.Errorf("%s: %v", code, err)
			}
			before := f.requests("ReceiveMessage")
			<-time.After(time.Minute)
			if n := f.requests("ReceiveMessage") - before; n > 60 {
				t.Errorf("%s: %d polls in a minute of refusals", code, n)
			}
			f.mu.Lock()
			f.fault = nil
			f.mu.Unlock()
			if _, err := q.Publish(t.Context(), broker.Message{Body: []byte("x")}); err != nil {
				t.Fatal(err)
			}
			for { // until the poller has seen that it works again
				ds, err := c.Receive(t.Context(), 1)
				if err == nil {
					if err := ds[0].Ack(t.Context()); err != nil {
						t.Error(err)
					}
					return
				}
				<-time.After(time.Second)
			}
		})
	}
}

func TestCloseGivesBackBufferedAndUnsettled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		q := openQueue(t, openFake(t, f), "close", nil)
		if _, err := q.PublishBatch(t.Context(), bodies(30, nil)); err != nil {
			t.Fatal(err)
		}
		a := consume(t, q, nil)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		held, err := a.Receive(ctx, 10)
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		if err := held[0].Ack(t.Context()); !errors.Is(err, broker.ErrLeaseLost) {
			t.Errorf("ack after Close: %v", err)
		}
		if _, err := a.Receive(t.Context(), 1); !errors.Is(err, broker.ErrClosed) {
			t.Errorf("receive after Close: %v", err)
		}
		start := time.Now()
		c := consume(t, q, nil)
		seen := map[string]bool{}
		for len(seen) < 30 {
			ds, err := c.Receive(t.Context(), 10)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range ds {
				seen[string(d.Body)] = true
			}
			if err := broker.AckAll(t.Context(), ds...); err != nil {
				t.Fatal(err)
			}
		}
		if d := time.Since(start); d > time.Second {
			t.Errorf("the messages were back only after %v", d)
		}
	})
}

func TestDelayBeyondFifteenMinutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		q := openQueue(t, openFake(t, f), "later", nil)
		c := consume(t, q, nil)
		start := time.Now()
		const delay = 40*time.Minute + 10*time.Second
		m := broker.Message{ID: "id1", Body: []byte("\x00later"), Delay: delay, Headers: broker.Headers{{Key: "k", Value: ""}}}
		if _, err := q.Publish(t.Context(), m); err != nil {
			t.Fatal(err)
		}
		ds, err := c.Receive(t.Context(), 1)
		if err != nil {
			t.Fatal(err)
		}
		d := ds[0]
		if age := time.Since(start); age < delay || age > delay+5*time.Second {
			t.Errorf("delivered after %v, want %v", age, delay)
		}
		if d.Attempt != 1 || d.ID != "id1" || string(d.Body) != "\x00later" || len(d.Headers) != 1 || !d.Time.Equal(start.Truncate(time.Millisecond)) {
			t.Errorf("delivered %+v", d.Message)
		}
		// A nack beyond the 12 h of visibility: the attempts go on counting.
		nacked := time.Now()
		if err := d.Nack(t.Context(), 13*time.Hour); err != nil {
			t.Fatal(err)
		}
		if ds, err = c.Receive(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		if age := time.Since(nacked); age < 13*time.Hour || ds[0].Attempt != 2 {
			t.Errorf("redelivered after %v as attempt %d", age, ds[0].Attempt)
		}
		if err := ds[0].Ack(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := f.depth("later"); n != 0 {
			t.Errorf("%d messages are left", n)
		}
	})
}

func TestLeaseIsTwelveHoursInAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := openQueue(t, openFake(t, newFake()), "lease.fifo", nil)
		c := consume(t, q, nil)
		if _, err := q.Publish(t.Context(), broker.Message{Body: []byte("x"), GroupID: "g"}); err != nil {
			t.Fatal(err)
		}
		ds, err := c.Receive(t.Context(), 1)
		if err != nil {
			t.Fatal(err)
		}
		d := ds[0]
		for range 11 {
			if err := d.Extend(t.Context(), time.Hour+time.Second); err != nil {
				t.Fatal(err)
			}
			<-time.After(time.Hour)
		}
		if err := d.Extend(t.Context(), 2*time.Hour); !errors.Is(err, broker.ErrUnsupported) {
			t.Errorf("extend beyond 12 h: %v", err)
		}
		if err := d.Extend(t.Context(), 0); err != nil {
			t.Errorf("extend by the consumer's lease: %v", err)
		}
		if got := time.Until(d.LeaseExpires()); got != defaultLease {
			t.Errorf("the lease is %v from now", got)
		}
		<-time.After(31 * time.Second)
		if err := d.Ack(t.Context()); !errors.Is(err, broker.ErrLeaseLost) {
			t.Errorf("ack after the lease: %v", err)
		}
	})
}

func TestRejectStoresBeforeItDeletes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		b := openFake(t, f)
		q := openQueue(t, b, "work.fifo", &broker.QueueOptions{DeadLetter: "dead.fifo", MaxAttempts: 2})
		c := consume(t, q, nil)
		m := broker.Message{ID: "i", Body: []byte("bad\xff"), GroupID: "g\x00", DedupID: "d d", Headers: broker.Headers{{Key: "b", Value: "1"}, {Key: "a", Value: "\xff"}}}
		if _, err := q.Publish(t.Context(), m); err != nil {
			t.Fatal(err)
		}
		ds, err := c.Receive(t.Context(), 1)
		if err != nil {
			t.Fatal(err)
		}
		// The dead-letter queue refuses: nothing is lost, the delivery stays open.
		f.fault = func(op string, in map[string]any, answer any) (*http.Response, error) {
			if op == "SendMessageBatch" && strings.Contains(fmt.Sprint(in["QueueUrl"]), "dead") && answer == nil {
				return fakeError(403, "AccessDenied"), nil
			}
			return nil, nil
		}
		if err := ds[0].Reject(t.Context(), "why"); !errors.Is(err, broker.ErrUnauthorized) {
			t.Errorf("reject: %v", err)
		}
		f.mu.Lock()
		f.fault = nil
		f.mu.Unlock()
		if n := f.depth("work.fifo"); n != 1 {
			t.Fatalf("%d messages are left", n)
		}
		if err := ds[0].Reject(t.Context(), "why"); err != nil {
			t.Fatal(err)
		}
		if n := f.depth("work.fifo"); n != 0 {
			t.Errorf("%d messages are left", n)
		}
		got := receiveOne(t, consume(t, openQueue(t, b, "dead.fifo", nil), nil))
		why, ok := broker.DeadLetterOf(&got.Message)
		if !ok || why.Reason != "why" || why.Queue != "work.fifo" || why.Attempts != 1 {
			t.Errorf("why: %+v", why)
		}
		back := broker.RedriveMessage(got.Message)
		if !reflect.DeepEqual(back, m) {
			t.Errorf("dead letter %+v, want %+v", back, m)
		}
	})
}

func TestLastAttemptIsDeadLetteredByTheSDK(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		q := openQueue(t, openFake(t, f), "poison", &broker.QueueOptions{DeadLetter: "poison-dead", MaxAttempts: 2})
		c := consume(t, q, &broker.ConsumerOptions{Lease: 5 * time.Second})
		if _, err := q.PublishBatch(t.Context(), bodies(2, nil)); err != nil {
			t.Fatal(err)
		}
		for range 2 { // one is nacked twice, the other one's lease passes twice
			ds := []*broker.Delivery{receiveOne(t, c), receiveOne(t, c)}
			for _, d := range ds {
				if string(d.Body) == "m0" {
					if err := d.Nack(t.Context(), 6*time.Second); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if ds, err := c.Receive(ctx, 1); err == nil {
			t.Errorf("delivered a third time: %q, attempt %d", ds[0].Body, ds[0].Attempt)
		}
		if n, dead := f.depth("poison"), f.depth("poison-dead"); n != 0 || dead != 2 {
			t.Errorf("%d messages are left and %d dead letters, want 0 and 2", n, dead)
		}
	})
}

// refuseSends makes every send to a queue fail for a reason that may pass.
func refuseSends(f *fakeSQS, queue string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fault = func(op string, in map[string]any, answer any) (*http.Response, error) {
		if op == "SendMessageBatch" && answer == nil && strings.HasSuffix(str(in["QueueUrl"]), "/"+queue) {
			return fakeError(503, "ServiceUnavailable"), nil
		}
		return nil, nil
	}
}

// A dead-letter queue that takes nothing holds up no other message.
func TestDeadLetterQueueDownHoldsUpNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		q := openQueue(t, openFake(t, f), "q", &broker.QueueOptions{DeadLetter: "q-dead", MaxAttempts: 1})
		if _, err := q.PublishBatch(t.Context(), bodies(2, nil)); err != nil {
			t.Fatal(err)
		}
		f.queue("q").messages[0].receives = 1 // delivered often enough
		refuseSends(f, "q-dead")
		c := consume(t, q, nil)
		d := wantSoon(t, c, "m1", 1)
		if err := d.Ack(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := q.Publish(t.Context(), broker.Message{Body: []byte("m2")}); err != nil {
			t.Fatal(err)
		}
		if d = receiveOne(t, c); string(d.Body) != "m2" {
			t.Errorf("received %q", d.Body)
		}
		if n := f.depth("q"); n != 2 {
			t.Errorf("%d messages are left, want the spent one and m2", n)
		}
	})
}

// A Reject that the dead-letter queue does not take ends with the lease at the
// latest, since another consumer has the message then.
func TestRejectEndsWithTheLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		q := openQueue(t, openFake(t, f), "q", &broker.QueueOptions{DeadLetter: "q-dead"})
		if _, err := q.Publish(t.Context(), broker.Message{Body: []byte("x")}); err != nil {
			t.Fatal(err)
		}
		c := consume(t, q, &broker.ConsumerOptions{Lease: 20 * time.Second})
		d := receiveOne(t, c)
		refuseSends(f, "q-dead")
		start := time.Now()
		err := d.Reject(t.Context(), "why")
		if took := time.Since(start); !errors.Is(err, broker.ErrLeaseLost) || took > 20*time.Second {
			t.Errorf("reject: %v after %v", err, took)
		}
		wantSoon(t, c, "x", 2)
	})
}

// What is expected back is forgotten in the end, whoever asks for how many.
func TestNacksLeaveNothingBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := openQueue(t, openFake(t, newFake()), "q.fifo", nil)
		c := consume(t, q, &broker.ConsumerOptions{Prefetch: 1}).(*Consumer)
		const n = 50
		if _, err := q.PublishBatch(t.Context(), bodies(n, func(i int, m *broker.Message) { m.GroupID = fmt.Sprint(i) })); err != nil {
			t.Fatal(err)
		}
		for range n {
			if err := receiveOne(t, c).Nack(t.Context(), 0); err != nil {
				t.Fatal(err)
			}
		}
		for range n {
			if err := receiveOne(t, c).Ack(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		<-time.After(time.Hour)
		giveUp(t, c)
		c.mu.Lock()
		defer c.mu.Unlock()
		if len(c.again) > 0 {
			t.Errorf("%d groups are still expected", len(c.again))
		}
	})
}
