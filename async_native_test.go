package broker_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/brokertest"
)

// nativeStream appends by itself, one record after the other, 1 ms for each.
type nativeStream struct {
	*brokertest.Stream
	todo chan func()
}

func newNativeStream(t *testing.T, partitions int) *nativeStream {
	s := &nativeStream{brokertest.NewStream("s", partitions), make(chan func(), 1000)}
	t.Cleanup(func() { close(s.todo) })
	go func() {
		for do := range s.todo {
			spend(time.Millisecond)
			do()
		}
	}()
	return s
}

func (s *nativeStream) AsyncAppend(ctx context.Context, r broker.Record, answer broker.Answer) error {
	if string(r.Value) == "bad" {
		return &broker.Error{Op: "publish", Adapter: "test", Name: "s", Err: broker.ErrInvalid}
	}
	s.todo <- func() { answer.Give(s.Publish(context.WithoutCancel(ctx), r)) }
	return nil
}

func TestAsyncAppenderNative(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newNativeStream(t, 1)
		a := broker.NewAsyncAppender(s, &broker.AsyncOptions{MaxQueued: 8, MaxBytes: 100})
		var asked atomic.Int64
		waiting := int64(0)
		for i := range 200 {
			ctx, cancel := context.WithCancel(t.Context())
			r := broker.Record{Value: fmt.Appendf(nil, "%d", i)}
			switch i {
			case 50:
				r.Value = make([]byte, 60)
			case 51:
				r.Value = make([]byte, 1000) // more than MaxBytes: alone
			}
			asked.Add(1)
			if i == 199 {
				a.Publish(ctx, r, nil)
			} else {
				a.Publish(ctx, r, func(rc broker.Receipt, err error) {
					asked.Add(-1)
					if err != nil || rc.Offset != broker.NewOffset(int64(i)) {
						t.Errorf("record %d: %+v, %v", i, rc, err)
					}
				})
			}
			cancel()
			n := asked.Load()
			if waiting = max(waiting, n); n > 8 || i == 51 && n != 1 {
				t.Fatalf("record %d: %d on their way", i, n)
			}
		}
		if waiting != 8 {
			t.Errorf("at most %d on their way, want 8", waiting)
		}
		if err := a.Flush(t.Context()); err != nil || asked.Load() != 1 {
			t.Errorf("Flush: %v with %d to be answered, want the one that asked for no answer", err, asked.Load())
		}
		if end, err := s.Partitions(t.Context()); err != nil || end[0].Next != broker.NewOffset(200) {
			t.Errorf("%+v, %v", end, err)
		}
	})
}

// What is refused is reported at once and leaves its room to others; who waits
// for room does so until its context ends; Close lets nobody wait.
func TestAsyncAppenderNativeRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newNativeStream(t, 1)
		a := broker.NewAsyncAppender(s, &broker.AsyncOptions{MaxQueued: 1})
		for range 3 {
			told := false
			a.Publish(t.Context(), broker.Record{Value: []byte("bad")}, func(_ broker.Receipt, err error) {
				told = true
				if e, ok := errors.AsType[*broker.Error](err); !ok || e.Adapter != "test" || !errors.Is(err, broker.ErrInvalid) {
					t.Errorf("refused: %v", err)
				}
			})
			if !told {
				t.Error("not told at once")
			}
		}
		ok := func(_ broker.Receipt, err error) {
			if err != nil {
				t.Error(err)
			}
		}
		fails := func(want error) func(broker.Receipt, error) {
			return func(_ broker.Receipt, err error) {
				if e, ok := errors.AsType[*broker.Error](err); !ok || e.Op != "publish" || !errors.Is(err, want) {
					t.Errorf("%v, want %v", err, want)
				}
			}
		}
		a.Publish(t.Context(), broker.Record{}, ok)
		short, cancel := context.WithTimeout(t.Context(), time.Microsecond)
		defer cancel()
		a.Publish(short, broker.Record{}, fails(context.DeadlineExceeded))
		if err := a.Flush(short); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Flush: %v", err)
		}
		returned := make(chan struct{})
		go func() {
			defer close(returned)
			a.Publish(t.Context(), broker.Record{}, fails(broker.ErrClosed))
		}()
		synctest.Wait()
		if err := a.Close(t.Context()); err != nil {
			t.Error(err)
		}
		<-returned
		a.Publish(t.Context(), broker.Record{}, fails(broker.ErrClosed))
		if err := a.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// A stream behind hooks keeps the way to append by itself to itself, since
// that would lead past them.
func TestUseHidesAsyncAppending(t *testing.T) {
	var seen int
	b := broker.Use(nativeBroker{openMemory(t), newNativeStream(t, 1)}, func(context.Context, string, broker.Outgoing) (func(broker.Receipt, error), error) {
		seen++
		return nil, nil
	})
	s, err := b.Stream(t.Context(), "s", nil)
	if err != nil {
		t.Fatal(err)
	}
	a := broker.NewAsyncAppender(s, nil)
	a.Publish(t.Context(), broker.Record{Value: []byte("v")}, nil)
	if err := a.Close(t.Context()); err != nil || seen != 1 {
		t.Errorf("%v, %d records seen by the hook", err, seen)
	}
}

type nativeBroker struct {
	broker.Broker
	s *nativeStream
}

func (b nativeBroker) Stream(context.Context, string, *broker.StreamOptions) (broker.Stream, error) {
	return b.s, nil
}

// Who waits for room gets it once what is ahead of it is answered, though
// others have taken some meanwhile and then send no more.
func TestAsyncAppenderNativeWaitsForAnswersAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &heldStream{brokertest.NewStream("s", 1), make(chan func(), 3)}
		a := broker.NewAsyncAppender(s, &broker.AsyncOptions{MaxBytes: 100})
		publish := func(size int) { a.Publish(t.Context(), broker.Record{Value: make([]byte, size)}, nil) }
		publish(10)
		waits := make(chan struct{})
		go func() {
			defer close(waits)
			publish(95)
		}()
		synctest.Wait()
		publish(80)
		for range 2 {
			(<-s.answers)()
		}
		select {
		case <-waits:
		case <-time.After(time.Hour):
			t.Fatal("everything was answered, and it still waits for room")
		}
		(<-s.answers)()
		if err := a.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// heldStream answers when it is told to.
type heldStream struct {
	*brokertest.Stream
	answers chan func()
}

func (s *heldStream) AsyncAppend(ctx context.Context, r broker.Record, answer broker.Answer) error {
	s.answers <- func() { answer.Give(s.Publish(context.WithoutCancel(ctx), r)) }
	return nil
}
