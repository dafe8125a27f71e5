package broker_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/queuestream/broker"
)

// Calls that need much room get it, however many small ones want some, too.
func TestBatcherLetsLargeCallsIn(t *testing.T) {
	for name, large := range map[string]func(ctx context.Context, b *broker.Batcher[int, int]) error{
		"DoAll": func(ctx context.Context, b *broker.Batcher[int, int]) error {
			return b.DoAll(ctx, make([]int, 10))[9].Err
		},
		"GoAll, beyond the limit": func(ctx context.Context, b *broker.Batcher[int, int]) error {
			return b.GoAll(ctx, make([]int, 20), nil)
		},
		"Do, of many bytes": func(ctx context.Context, b *broker.Batcher[int, int]) error {
			_, err := b.Do(ctx, 60)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := broker.NewBatcher(broker.BatcherOptions[int, int]{
					MaxItems: 2, MaxQueued: 10, MaxPending: 100, Size: func(n int) int { return max(n, 10) },
					Send: func(context.Context, []int, []broker.Result[int]) { <-time.After(time.Millisecond) },
				})
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				var wg sync.WaitGroup
				for range 50 {
					wg.Go(func() {
						for ctx.Err() == nil {
							_, _ = b.Do(ctx, 1)
						}
					})
				}
				<-time.After(10 * time.Millisecond)
				given, giveUp := context.WithTimeout(ctx, 20*time.Millisecond) // one that gives up keeps nobody out
				defer giveUp()
				_ = large(given, b)
				if err := large(ctx, b); err != nil {
					t.Error(err)
				}
				cancel()
				wg.Wait()
				if err := b.Close(context.Background()); err != nil { //nolint:usetesting // in the bubble
					t.Error(err)
				}
			})
		})
	}
}

// hoarder answers what is appended to it a millisecond later, one at a time.
type hoarder struct {
	broker.Stream
	queue chan broker.Answer
}

func (h *hoarder) AsyncAppend(_ context.Context, _ broker.Record, answer broker.Answer) error {
	h.queue <- answer
	return nil
}

func TestAsyncAppenderLetsLargeRecordsIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &hoarder{queue: make(chan broker.Answer, 1000)}
		h.Stream = named{}
		a := broker.NewAsyncAppender(h, &broker.AsyncOptions{MaxBytes: 1000})
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			for answer := range h.queue {
				<-time.After(time.Millisecond)
				answer.Give(broker.Receipt{}, nil)
			}
		}()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				for ctx.Err() == nil {
					a.Publish(ctx, broker.Record{Value: make([]byte, 10)}, nil)
				}
			})
		}
		<-time.After(10 * time.Millisecond)
		large := make(chan error, 1)
		began := time.Now()
		a.Publish(ctx, broker.Record{Value: make([]byte, 900)}, func(_ broker.Receipt, err error) { large <- err })
		if err := <-large; err != nil || time.Since(began) > 5*time.Second {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
		cancel()
		wg.Wait()
		if err := errors.Join(a.Close(context.Background())); err != nil { //nolint:usetesting // in the bubble
			t.Error(err)
		}
		close(h.queue)
		<-ended
	})
}

// named is a stream with nothing but a name.
type named struct{ broker.Stream }

func (named) Name() string { return "named" }
