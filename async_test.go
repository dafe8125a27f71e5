package broker_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/brokertest"
)

func TestAsyncPublisher(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, native := range []bool{false, true} {
			q := brokertest.NewQueue("q")
			var p broker.Publisher = slowPublisher{q}
			if native {
				p = &nativePublisher{slowPublisher: slowPublisher{q}}
			}
			a := broker.NewAsyncPublisher(p, &broker.AsyncOptions{MaxBatch: 10, MaxQueued: 50})
			began := time.Now()
			last := map[string]int{}
			var mu sync.Mutex
			answers := 0
			for i, m := range messages(500) {
				m.GroupID = fmt.Sprint(i % 40)
				a.Publish(t.Context(), m, func(r broker.Receipt, err error) {
					mu.Lock()
					defer mu.Unlock()
					answers++
					if err != nil || r.ID != m.ID {
						t.Errorf("%+v, %v", r, err)
					}
					if i < last[m.GroupID] {
						t.Errorf("group %s: %d after %d", m.GroupID, i, last[m.GroupID])
					}
					last[m.GroupID] = i
				})
			}
			a.Publish(t.Context(), broker.Message{}, nil)
			if err := a.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			if answers != 500 || len(q.Waiting()) != 501 {
				t.Errorf("%d answers, %d stored", answers, len(q.Waiting()))
			}
			if took := time.Since(began); took > 200*time.Millisecond {
				t.Errorf("native %v: 501 messages at 5 ms a batch took %v", native, took)
			}
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			a.Publish(ctx, broker.Message{ID: "x"}, func(r broker.Receipt, err error) {
				if !errors.Is(err, context.Canceled) || r.ID != "x" {
					t.Errorf("an ended ctx: %+v, %v", r, err)
				}
			})
			if err := errors.Join(a.Close(t.Context()), a.Close(t.Context())); err != nil {
				t.Error(err)
			}
			a.Publish(t.Context(), broker.Message{}, func(_ broker.Receipt, err error) {
				if !errors.Is(err, broker.ErrClosed) {
					t.Errorf("after Close: %v", err)
				}
			})
		}
	})
}

func TestAsyncAppender(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := brokertest.NewStream("s", 2)
		a := broker.NewAsyncAppender(s, nil)
		var answers atomic.Int64
		for i := range 100 {
			r := broker.Record{Key: fmt.Appendf(nil, "k%d", i%5), Value: fmt.Appendf(nil, "%d", i)}
			switch i % 10 {
			case 0:
				r.Key = nil
			case 1:
				r.Pin, r.Partition = true, 1
			}
			a.Publish(t.Context(), r, func(_ broker.Receipt, err error) {
				if err != nil {
					t.Error(err)
				}
				answers.Add(1)
			})
		}
		if err := errors.Join(a.Flush(t.Context()), a.Close(t.Context())); err != nil || answers.Load() != 100 {
			t.Errorf("%v, %d answers", err, answers.Load())
		}
		a.Publish(t.Context(), broker.Record{}, func(_ broker.Receipt, err error) {
			if !errors.Is(err, broker.ErrClosed) {
				t.Errorf("after Close: %v", err)
			}
		})
	})
}

type slowPublisher struct{ *brokertest.Queue }

func (p slowPublisher) PublishBatch(ctx context.Context, ms []broker.Message) ([]broker.Receipt, error) {
	spend(5 * time.Millisecond)
	return p.Queue.PublishBatch(ctx, ms)
}

type nativePublisher struct {
	slowPublisher
	mu   sync.Mutex
	last chan struct{}
}

func (p *nativePublisher) AsyncPublish(ctx context.Context, m broker.Message, done func(broker.Receipt, error)) {
	p.mu.Lock()
	before, mine := p.last, make(chan struct{})
	p.last = mine
	p.mu.Unlock()
	go func() {
		spend(5 * time.Millisecond)
		if before != nil {
			<-before
		}
		done(p.Publish(ctx, m))
		close(mine)
	}()
}

// deafPublisher answers once its context ends.
type deafPublisher struct{ *brokertest.Queue }

func (p deafPublisher) PublishBatch(ctx context.Context, ms []broker.Message) ([]broker.Receipt, error) {
	<-ctx.Done()
	receipts, errs := make([]broker.Receipt, len(ms)), make([]error, len(ms))
	for i, m := range ms {
		receipts[i].ID, errs[i] = m.ID, broker.UnknownOutcome(ctx.Err())
	}
	return receipts, broker.NewBatchError(errs)
}

// What never got into the queue is reported with the names of the queue and of
// the adapter.
func TestAsyncErrorsNameWhere(t *testing.T) {
	s := brokertest.NewStream("events", 1)
	q, a := broker.NewAsyncPublisher(brokertest.NewQueue("jobs"), nil), broker.NewAsyncAppender(s, nil)
	n := broker.NewAsyncAppender(&heldStream{Stream: s}, nil)
	if err := errors.Join(q.Close(t.Context()), a.Close(t.Context()), n.Close(t.Context())); err != nil {
		t.Fatal(err)
	}
	want := func(name string) func(broker.Receipt, error) {
		return func(_ broker.Receipt, err error) {
			e, ok := errors.AsType[*broker.Error](err)
			if !ok || e.Op != "publish" || e.Name != name || e.Adapter != "brokertest" || !errors.Is(e, broker.ErrClosed) {
				t.Errorf("%v, want brokertest: publish %q: closed", err, name)
			}
		}
	}
	q.Publish(t.Context(), broker.Message{}, want("jobs"))
	a.Publish(t.Context(), broker.Record{}, want("events"))
	n.Publish(t.Context(), broker.Record{}, want("events"))
}

// What Close gives up says what it was and why, as every publish does.
func TestAsyncPublisherCloseTellsWhatWasNotSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := broker.NewAsyncPublisher(deafPublisher{brokertest.NewQueue("q")}, &broker.AsyncOptions{MaxBatch: 1, MaxInFlight: 1})
		got := map[string]error{}
		for _, m := range messages(3) {
			a.Publish(t.Context(), m, func(r broker.Receipt, err error) { got[r.ID] = err })
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := a.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Close: %v", err)
		}
		if len(got) != 3 || !errors.Is(got["0"], broker.ErrUnknownOutcome) {
			t.Errorf("outcomes %v", got)
		}
		for _, id := range []string{"1", "2"} {
			e, ok := errors.AsType[*broker.Error](got[id])
			if !ok || e.Op != "publish" || e.Adapter != "brokertest" || !errors.Is(e, broker.ErrClosed) {
				t.Errorf("%s: %v", id, got[id])
			}
		}
	})
}
