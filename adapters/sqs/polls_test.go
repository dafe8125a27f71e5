package sqs

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/queuestream/broker"
)

// wantSoon receives the next delivery, which must be there within a second.
func wantSoon(t *testing.T, c broker.Consumer, body string, attempt int) *broker.Delivery {
	t.Helper()
	start := time.Now()
	d := receiveOne(t, c)
	if took := time.Since(start); took > time.Second || string(d.Body) != body || d.Attempt != attempt {
		t.Errorf("%q as attempt %d after %v, want %q as attempt %d at once", d.Body, d.Attempt, took, body, attempt)
	}
	return d
}

// giveUp receives nothing for a while, which leaves a long poll under way.
func giveUp(t *testing.T, c broker.Consumer) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if ds, err := c.Receive(ctx, 1); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(ds, err)
	}
}

// After Close a long poll goes on; what it brings goes back at once.
func TestCloseLeavesLongPollsToTheirEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openFake(t, newFake())
		q := openQueue(t, b, "q", nil)
		c := consume(t, q, nil)
		giveUp(t, c)
		start := time.Now()
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took > 0 {
			t.Errorf("Close took %v", took)
		}
		if _, err := q.Publish(t.Context(), broker.Message{Body: []byte("x")}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		d := wantSoon(t, consume(t, q, nil), "x", 2)
		if err := d.Ack(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// A Broker's Close does not wait for long polls; goroutines that stay fail the bubble.
func TestBrokerCloseCutsLongPolls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, queue := range []string{"q", "q.fifo"} {
			b := openFake(t, newFake())
			giveUp(t, consume(t, openQueue(t, b, queue, nil), nil))
			start := time.Now()
			if err := b.Close(); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(start); took > closeTimeout {
				t.Errorf("%s: Close took %v", queue, took)
			}
		}
	})
}

func TestCloseWaitsForShortPolls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openFake(t, newFake(), func(o *Options) { o.PollWait = 2 * time.Second })
		q := openQueue(t, b, "q", nil)
		c := consume(t, q, nil)
		giveUp(t, c)
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := q.Publish(t.Context(), broker.Message{Body: []byte("x")}); err != nil {
			t.Fatal(err)
		}
		wantSoon(t, consume(t, q, nil), "x", 1)
	})
}

// loseAnswer has the first answer to op cut, once until is closed.
func loseAnswer(f *fakeSQS, op string, until <-chan struct{}) (lost <-chan struct{}) {
	done := make(chan struct{})
	first := true
	f.fault = func(o string, _ map[string]any, answer any) (*http.Response, error) {
		f.mu.Lock()
		now := first && o == op && answer != nil
		first = first && !now
		f.mu.Unlock()
		if !now {
			return nil, nil
		}
		close(done)
		<-until
		return nil, errCut
	}
	return done
}

// A poll of a FIFO queue is repeated with its attempt's id, and brings what
// the lost answer held, at once and as the same attempt.
func TestLostAnswerOfAPollIsAskedForAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		q := openQueue(t, openFake(t, f), "q.fifo", nil)
		publishGroup(t, q, 3)
		now := make(chan struct{})
		close(now)
		loseAnswer(f, "ReceiveMessage", now)
		c := consume(t, q, nil)
		for _, body := range []string{"m0", "m1", "m2"} {
			if err := wantSoon(t, c, body, 1).Ack(t.Context()); err != nil {
				t.Error(err)
			}
		}
	})
}

// So it is at Close, which gives it back.
func TestCloseAsksForWhatALostAnswerHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		b := openFake(t, f)
		q := openQueue(t, b, "q.fifo", nil)
		publishGroup(t, q, 3)
		closing := make(chan struct{})
		lost := loseAnswer(f, "ReceiveMessage", closing)
		c := consume(t, q, nil)
		ctx, cancel := context.WithCancel(t.Context())
		go func() { <-lost; cancel() }()
		if _, err := c.Receive(ctx, 10); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		close(closing)
		synctest.Wait()
		wantSoon(t, consume(t, q, nil), "m0", 2)
	})
}

// What nobody asked for is not fetched: a program that takes one at a time and
// closes costs the others no attempt.
func TestSlowProgramsFetchNothingAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		q := openQueue(t, openFake(t, f), "q", nil)
		if _, err := q.PublishBatch(t.Context(), bodies(5, nil)); err != nil {
			t.Fatal(err)
		}
		c := consume(t, q, nil)
		for i := range 3 {
			d := receiveOne(t, c)
			synctest.Wait()
			received := 0
			for _, m := range f.queue("q").messages {
				received += m.receives
			}
			if received != i+1 {
				t.Errorf("%d receives for %d deliveries", received, i+1)
			}
			if err := d.Nack(t.Context(), time.Hour); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// What is fetched ahead comes in full batches, however the program takes it: a
// request costs the same for one message as for ten.
func TestPollsAheadAreFull(t *testing.T) {
	for _, prefetch := range []int{0, 10} {
		t.Run(strconv.Itoa(prefetch), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const messages = 1000
				f := newFake()
				q := openQueue(t, openFake(t, f), "q", nil)
				if _, err := q.PublishBatch(t.Context(), bodies(messages, nil)); err != nil {
					t.Fatal(err)
				}
				c := consume(t, q, &broker.ConsumerOptions{Prefetch: prefetch})
				tick := time.NewTicker(5 * time.Millisecond)
				defer tick.Stop()
				for range messages {
					if err := receiveOne(t, c).Ack(t.Context()); err != nil {
						t.Fatal(err)
					}
					<-tick.C
				}
				full := messages / batchEntries
				if prefetch > 0 {
					full *= 2 // there is room for half of it at a time
				}
				if n := f.requests("ReceiveMessage"); n > full*3/2 {
					t.Errorf("%d polls for %d messages, want about %d", n, messages, full)
				}
			})
		})
	}
}

// A program that stands still gives back what was fetched for it, and finds
// other messages afterwards.
func TestUnreadGoesBackAndReceiveGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		b := openFake(t, f)
		q := openQueue(t, b, "q", nil)
		c := consume(t, q, nil)
		publish := func(n int) {
			t.Helper()
			if _, err := q.PublishBatch(t.Context(), bodies(n, nil)); err != nil {
				t.Fatal(err)
			}
		}
		publish(400)
		for range 10 { // fast enough for pollers to fetch ahead
			ds, err := c.Receive(t.Context(), 20)
			if err != nil {
				t.Fatal(err)
			}
			if err := broker.AckAll(t.Context(), ds...); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		<-time.After(10 * time.Second)
		other, got := consume(t, openQueue(t, b, "q", nil), nil), 0
		for left := f.depth("q"); got < left; {
			ds, err := other.Receive(t.Context(), 100)
			if err != nil {
				t.Fatal(err)
			}
			got += len(ds)
			if err := broker.AckAll(t.Context(), ds...); err != nil {
				t.Fatal(err)
			}
		}
		if err := other.Close(); err != nil {
			t.Fatal(err)
		}
		publish(1)
		start := time.Now()
		wantNext(t, c, "m0", 2) // the other one's last poll may take it along
		if took := time.Since(start); took > time.Second {
			t.Errorf("received after %v", took)
		}
	})
}

// A delete whose answer is lost is repeated; that the receipt is no good any
// more tells that the first one was carried out, as long as the lease holds.
func TestAckWithoutAnAnswer(t *testing.T) {
	for name, test := range map[string]struct {
		after time.Duration // until the connection breaks
		want  error
	}{
		"at once":         {0, nil},
		"after the lease": {time.Hour, broker.ErrUnknownOutcome},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake()
				q := openQueue(t, openFake(t, f, func(o *Options) { o.RequestTimeout = 2 * time.Hour }), "q", nil)
				if _, err := q.Publish(t.Context(), broker.Message{Body: []byte("x")}); err != nil {
					t.Fatal(err)
				}
				d := receiveOne(t, consume(t, q, nil))
				broken := make(chan struct{})
				time.AfterFunc(test.after, func() { close(broken) })
				loseAnswer(f, "DeleteMessageBatch", broken)
				if err := d.Ack(t.Context()); !errors.Is(err, test.want) {
					t.Errorf("ack: %v, not %v", err, test.want)
				}
			})
		})
	}
}

// A nack whose answer is lost is not repeated; whether it was carried out is unknown.
func TestNackWithoutAnAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		q := openQueue(t, openFake(t, f), "q", nil)
		if _, err := q.Publish(t.Context(), broker.Message{Body: []byte("x")}); err != nil {
			t.Fatal(err)
		}
		c := consume(t, q, nil)
		d := receiveOne(t, c)
		now := make(chan struct{})
		close(now)
		loseAnswer(f, "ChangeMessageVisibilityBatch", now)
		if err := d.Nack(t.Context(), 0); !errors.Is(err, broker.ErrUnknownOutcome) || !errors.Is(err, broker.ErrLeaseLost) {
			t.Errorf("nack: %v", err)
		}
		if n := f.requests("ChangeMessageVisibilityBatch"); n != 1 {
			t.Errorf("%d requests", n)
		}
		if err := d.Ack(t.Context()); !errors.Is(err, broker.ErrLeaseLost) {
			t.Errorf("ack: %v", err)
		}
		wantSoon(t, c, "x", 2)
	})
}

// A poll that was refused is not repeated for as many as it asked for, but for
// as many as are wanted now.
func TestPollsAskForWhatIsWantedNow(t *testing.T) {
	for _, name := range []string{"q", "q.fifo"} {
		synctest.Test(t, func(t *testing.T) {
			f := newFake()
			q := openQueue(t, openFake(t, f), name, nil)
			var mu sync.Mutex
			var asked []int
			refuse := true
			f.fault = func(op string, in map[string]any, answer any) (*http.Response, error) {
				mu.Lock()
				defer mu.Unlock()
				if op != "ReceiveMessage" || answer != nil {
					return nil, nil
				}
				asked = append(asked, num(in["MaxNumberOfMessages"]))
				if refuse {
					return fakeError(400, "RequestThrottled"), nil
				}
				return nil, nil
			}
			c := consume(t, q, nil)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
			defer cancel()
			if _, err := c.Receive(ctx, 10); !errors.Is(err, context.DeadlineExceeded) {
				t.Fatal(err)
			}
			mu.Lock()
			refuse = false
			mu.Unlock()
			if _, err := q.Publish(t.Context(), broker.Message{Body: []byte("x")}); err != nil {
				t.Fatal(err)
			}
			receiveOne(t, c)
			mu.Lock()
			defer mu.Unlock()
			if asked[0] != 10 || asked[len(asked)-1] != 1 {
				t.Errorf("%s: asked for %v, want 10 first and 1 in the end", name, asked)
			}
		})
	}
}
