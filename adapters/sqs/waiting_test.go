package sqs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/queuestream/broker"
)

func publishGroup(t *testing.T, q *Queue, n int) {
	t.Helper()
	if _, err := q.PublishBatch(t.Context(), bodies(n, func(_ int, m *broker.Message) { m.GroupID = "g" })); err != nil {
		t.Fatal(err)
	}
}

func wantNext(t *testing.T, c broker.Consumer, body string, attempt int) {
	t.Helper()
	ds, err := c.Receive(t.Context(), 10)
	if err != nil {
		t.Fatal(err)
	}
	if len(ds) != 1 || string(ds[0].Body) != body || ds[0].Attempt > attempt {
		t.Errorf("received %d, %q as attempt %d, want %q as attempt %d at most", len(ds), ds[0].Body, ds[0].Attempt, body, attempt)
	}
	if err := broker.AckAll(t.Context(), ds...); err != nil {
		t.Error(err)
	}
}

func TestSuccessorsWaitWithoutLosingAnAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := openQueue(t, openFake(t, newFake()), "wait.fifo", nil)
		publishGroup(t, q, 5)
		c := consume(t, q, &broker.ConsumerOptions{Lease: 4 * time.Second})
		ds, err := c.Receive(t.Context(), 10)
		if err != nil {
			t.Fatal(err)
		}
		for range 60 { // the handler is slow, and the program does not receive meanwhile
			<-time.After(time.Second)
			if err := ds[0].Extend(t.Context(), 0); err != nil {
				t.Fatal(err)
			}
		}
		if err := broker.AckAll(t.Context(), ds...); err != nil {
			t.Fatal(err)
		}
		for i := range 4 {
			wantNext(t, c, fmt.Sprint("m", i+1), 1)
		}
	})
}

func TestSuccessorsAreFreeOnceTheirHolderIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		b := openFake(t, f)
		q := openQueue(t, b, "holder.fifo", nil)
		publishGroup(t, q, 3)
		c := consume(t, q, &broker.ConsumerOptions{Lease: 4 * time.Second})
		if _, err := c.Receive(t.Context(), 10); err != nil {
			t.Fatal(err)
		}
		<-time.After(4 * time.Second) // nobody extends, nobody settles
		before := f.requests("ChangeMessageVisibilityBatch")
		other := consume(t, openQueue(t, b, "holder.fifo", nil), nil)
		start := time.Now()
		for i := range 3 {
			wantNext(t, other, fmt.Sprint("m", i), 3) // the first consumer may take and give back once more
		}
		if d := time.Since(start); d > 5*time.Second {
			t.Errorf("the group was free only after %v", d)
		}
		<-time.After(time.Minute)
		if n := f.requests("ChangeMessageVisibilityBatch") - before; n > 3 {
			t.Errorf("%d changes of visibility after the holder was lost", n)
		}
	})
}

// A message that fails again and again must not take its successors along.
func TestNacksDoNotSpendTheSuccessorsAttempts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := openQueue(t, openFake(t, newFake()), "nacks.fifo", nil)
		publishGroup(t, q, 8)
		c := consume(t, q, nil)
		for i := range 6 {
			ds, err := c.Receive(t.Context(), 10)
			if err != nil {
				t.Fatal(err)
			}
			if len(ds) != 1 || string(ds[0].Body) != "m0" || ds[0].Attempt < i+1 {
				t.Fatalf("received %d, %q as attempt %d", len(ds), ds[0].Body, ds[0].Attempt)
			}
			if err := ds[0].Nack(t.Context(), time.Duration(i)*time.Minute); err != nil {
				t.Fatal(err)
			}
		}
		wantNext(t, c, "m0", 8)
		for i := range 7 {
			wantNext(t, c, fmt.Sprint("m", i+1), 3) // polls under way at the first nacks took them along
		}
	})
}

// slowExtensions carries the first extension out a second late.
type slowExtensions struct {
	next  http.RoundTripper
	once  sync.Once
	begun chan struct{}
}

func (s *slowExtensions) RoundTrip(r *http.Request) (*http.Response, error) {
	raw, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	r.Body = io.NopCloser(bytes.NewReader(raw))
	if bytes.Contains(raw, []byte(`"VisibilityTimeout":30`)) && bytes.Contains(raw, []byte("Entries")) {
		s.once.Do(func() {
			close(s.begun)
			<-time.After(time.Second)
		})
	}
	return s.next.RoundTrip(r)
}

// An extension under way is not carried out after the message was given back.
func TestCloseWaitsForAnExtension(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		q := openQueue(t, openFake(t, f), "late.fifo", nil)
		publishGroup(t, q, 3)
		slow := &slowExtensions{next: f, begun: make(chan struct{})}
		c := consume(t, openQueue(t, openFake(t, slow), "late.fifo", nil), nil)
		if _, err := c.Receive(t.Context(), 10); err != nil {
			t.Fatal(err)
		}
		<-slow.begun
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		k := consume(t, q, nil)
		ds, err := k.Receive(ctx, 1)
		if err != nil || string(ds[0].Body) != "m0" {
			t.Errorf("after Close: %v, %v", ds, err)
		}
		if errors.Is(err, context.DeadlineExceeded) {
			t.Error("the group is locked still")
		}
	})
}

// A verdict wins over an extension under way: it is carried out behind that,
// and one that was refused is not tried again.
func TestExtensionIsNotCarriedOutAfterANack(t *testing.T) {
	for name, end := range map[string]func(c broker.Consumer, ds []*broker.Delivery) error{
		"nack": func(_ broker.Consumer, ds []*broker.Delivery) error {
			batch := make([]broker.Outcome, len(ds))
			for i, d := range ds {
				batch[i] = broker.Outcome{Delivery: d, Verdict: broker.Verdict{Kind: broker.VerdictNack}}
			}
			return broker.SettleAll(context.Background(), batch)
		},
		"close": func(c broker.Consumer, _ []*broker.Delivery) error { return c.Close() },
	} {
		for _, refused := range []bool{false, true} {
			t.Run(fmt.Sprint(name, ", refused: ", refused), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f := newFake()
					q := openQueue(t, openFake(t, f), "q", nil)
					if _, err := q.PublishBatch(t.Context(), bodies(batchEntries, nil)); err != nil {
						t.Fatal(err)
					}
					slow := &slowExtensions{next: f, begun: make(chan struct{})}
					if refused {
						var refusals atomic.Int64
						f.fault = func(op string, _ map[string]any, answer any) (*http.Response, error) {
							if op == "ChangeMessageVisibilityBatch" && answer == nil && refusals.Add(1) == 1 {
								return fakeError(400, "RequestThrottled"), nil
							}
							return nil, nil
						}
					}
					c := consume(t, openQueue(t, openFake(t, slow), "q", nil), nil)
					ds := receiveAll(t, c, batchEntries)
					var wg sync.WaitGroup
					wg.Go(func() { _ = ds[0].Extend(context.Background(), 0) }) // whose outcome does not matter
					<-slow.begun
					if err := end(c, ds); err != nil {
						t.Error(err)
					}
					wg.Wait()
					start := time.Now()
					receiveAll(t, consume(t, q, nil), batchEntries)
					if took := time.Since(start); took > time.Second {
						t.Errorf("all came again after %v", took)
					}
				})
			})
		}
	}
}

// Several verdicts on one delivery in one batch hold up nobody: the first that
// settles it wins.
func TestBatchOfVerdictsOnOneDelivery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := openQueue(t, openFake(t, newFake()), "q", nil)
		if _, err := q.Publish(t.Context(), broker.Message{Body: []byte("x")}); err != nil {
			t.Fatal(err)
		}
		c := consume(t, q, nil)
		d := receiveOne(t, c)
		var batch []broker.Outcome
		for _, k := range []broker.VerdictKind{broker.VerdictExtend, broker.VerdictExtend, broker.VerdictNack, broker.VerdictExtend} {
			batch = append(batch, broker.Outcome{Delivery: d, Verdict: broker.Verdict{Kind: k}})
		}
		start := time.Now()
		_ = broker.SettleAll(t.Context(), batch) // each outcome carries its own error
		for i, want := range []error{nil, nil, nil, broker.ErrSettled} {
			if err := batch[i].Err; !errors.Is(err, want) {
				t.Errorf("verdict %d: %v, want %v", i, err, want)
			}
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("took %v", took)
		}
		wantSoon(t, c, "x", 2)
	})
}
