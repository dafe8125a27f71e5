package examples_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/memory"
)

// Exactly once: a stream is copied in transactions, by a copier that is
// replaced while it works. A replacement takes the transactional id over, so
// what its predecessor had not committed never happened. examples/copy is the
// same as a program for Kafka.
func Example_exactlyOnce() {
	ctx := context.Background()
	b, err := memory.Open(ctx, nil)
	must(err)
	defer b.Close() //nolint:errcheck // the example is over
	must(b.DeclareStream(ctx, "orders", broker.StreamConfig{Partitions: 4}))
	must(b.DeclareStream(ctx, "copy", broker.StreamConfig{Partitions: 4}))
	orders, err := b.Stream(ctx, "orders", nil)
	must(err)
	target, err := b.Stream(ctx, "copy", nil)
	must(err)
	const n = 2000
	rs := make([]broker.Record, n)
	for i := range rs {
		rs[i] = broker.Record{Key: fmt.Appendf(nil, "order-%d", i), Value: fmt.Appendf(nil, "%d", i)}
	}
	_, err = orders.PublishBatch(ctx, rs)
	must(err)

	// A copier that is to be replaced does not end its first transaction: it goes
	// on copying until it is told that another has its id.
	copier := func(replaced bool) (work func(context.Context) error, amid chan struct{}) {
		amid = make(chan struct{}, 1)
		t := &broker.Transformer{
			Broker: b, Source: orders, Group: "copiers", ID: "copier", MaxBatch: 20, Logger: quiet,
			Handler: func(_ context.Context, in []*broker.Record, emit func(broker.Stream, ...broker.Record) error) error {
				for _, r := range in {
					if err := emit(target, broker.Record{Key: r.Key, Value: r.Value}); err != nil {
						return err
					}
				}
				select {
				case amid <- struct{}{}: // copied, and not committed
				default:
				}
				for replaced {
					if err := emit(target, broker.Record{Key: in[0].Key, Value: in[0].Value}); err != nil {
						return err
					}
					<-time.After(time.Millisecond)
				}
				return nil
			},
		}
		return t.Run, amid
	}
	ctx, stop := context.WithCancel(ctx)
	ended := make(chan error, 6)
	for i := range 5 { // each takes over from the one before, amid its work
		run, amid := copier(i < 4)
		go func() { ended <- run(ctx) }()
		<-amid
	}
	fenced := 0
	for range 4 {
		if errors.Is(<-ended, broker.ErrFenced) {
			fenced++
		}
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for lag := int64(1); lag > 0; <-tick.C {
		lag = 0
		parts, err := orders.Lag(ctx, "copiers")
		must(err)
		for _, p := range parts {
			lag += p.Lag
		}
	}
	stop()
	must(<-ended)

	times := map[string]int{}
	for r, err := range target.Read(context.Background(), broker.Range{From: broker.Earliest(), ReadCommitted: true}) {
		must(err)
		times[string(r.Value)]++
	}
	twice := 0
	for _, n := range times {
		if n > 1 {
			twice++
		}
	}
	fmt.Println(fenced, "copiers were replaced amid their work")
	fmt.Println(len(times), "of", n, "orders copied,", twice, "of them twice")
	// Output:
	// 4 copiers were replaced amid their work
	// 2000 of 2000 orders copied, 0 of them twice
}
