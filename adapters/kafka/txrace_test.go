package kafka_test

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/kafka"
)

// Of several Begins at once one gets the transaction, and the others leave it
// as it is.
func TestBeginOnce(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	b := open(t, &kafka.Options{Brokers: fake(t).ListenAddrs()})
	s := declare(t, b, broker.StreamConfig{Partitions: 1})
	x := transactor(t, b, "id")
	const rounds, callers = 20, 4
	for range rounds {
		var began atomic.Pointer[broker.Tx]
		var wg sync.WaitGroup
		for range callers {
			wg.Go(func() {
				tx, err := x.Begin(ctx)
				switch {
				case errors.Is(err, broker.ErrInvalid):
				case err != nil:
					t.Error(err)
				case !began.CompareAndSwap(nil, &tx):
					t.Error("two transactions are open")
				default:
					if err := tx.Publish(ctx, s, broker.Record{Value: []byte("kept")}); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		if t.Failed() {
			return
		}
		if err := (*began.Load()).Commit(ctx); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "a record of each transaction", func() bool { return len(values(t, s, true)) == rounds })
}

// A Publish that meets Commit is in the transaction, or fails.
func TestPublishAmidCommit(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	b := open(t, &kafka.Options{Brokers: fake(t).ListenAddrs()})
	s := declare(t, b, broker.StreamConfig{Partitions: 1})
	x := transactor(t, b, "id")
	const batch = 50
	published := 0
	for range 50 {
		tx := begin(t, x)
		if err := tx.Publish(ctx, s, broker.Record{Value: []byte("first")}); err != nil {
			t.Fatal(err)
		}
		published++
		var wg sync.WaitGroup
		var n atomic.Int64
		under := make(chan struct{}, 3)
		for range 3 {
			wg.Go(func() {
				var err error
				for ; err == nil; n.Add(batch) {
					select {
					case under <- struct{}{}:
					default:
					}
					err = tx.Publish(ctx, s, texts(batch)...)
				}
				n.Add(-batch)
				if !errors.Is(err, broker.ErrInvalid) {
					t.Error(err)
				}
			})
		}
		<-under
		if err := tx.Commit(ctx); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		published += int(n.Load())
	}
	var got int
	eventually(t, "all that Publish has taken", func() bool {
		got = len(values(t, s, true))
		return got >= published
	})
	if got != published {
		t.Errorf("%d records, want the %d that Publish has taken", got, published)
	}
}
