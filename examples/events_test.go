package examples_test

import (
	"context"
	"fmt"
	"sync"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/memory"
)

// Events between services: the types are shared, each service is a group of
// its own, and a RecordMux picks the handler by the type's name.
func Example_events() {
	ctx := context.Background()
	b, err := memory.Open(ctx, nil)
	must(err)
	defer b.Close() //nolint:errcheck // the example is over
	must(b.DeclareStream(ctx, "shop", broker.StreamConfig{Partitions: 3}))
	shop, err := b.Stream(ctx, "shop", nil)
	must(err)

	type OrderPlaced struct{ Item string }
	type OrderPaid struct{ Cents int }
	placed, paid := broker.NewType[OrderPlaced]("OrderPlaced"), broker.NewType[OrderPaid]("OrderPaid")

	_, err = placed.Append(ctx, shop, "order-1", OrderPlaced{"book"})
	must(err)
	_, err = paid.Append(ctx, shop, "order-1", OrderPaid{1999})
	must(err)

	var mu sync.Mutex
	say := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Printf(format+"\n", args...)
	}
	warehouse := broker.RecordMux{
		placed.Name: placed.RecordHandler(func(_ context.Context, e broker.Event[OrderPlaced]) error {
			say("warehouse: reserve a %s for %s", e.Value.Item, e.Key)
			return nil
		}),
		paid.Name: paid.RecordHandler(func(_ context.Context, e broker.Event[OrderPaid]) error {
			say("warehouse: ship %s", e.Key)
			return nil
		}),
	}
	accounting := broker.RecordMux{
		placed.Name: func(context.Context, *broker.Record) error { return nil },
		paid.Name: paid.RecordHandler(func(_ context.Context, e broker.Event[OrderPaid]) error {
			say("accounting: %d cents for %s", e.Value.Cents, e.Key)
			return nil
		}),
	}
	for group, mux := range map[string]broker.RecordMux{"warehouse": warehouse, "accounting": accounting} {
		p := &broker.Processor{Stream: shop, Group: group, Until: broker.Now(), Handler: mux.Handle, Logger: quiet}
		must(p.Run(ctx))
	}
	// Unordered output:
	// warehouse: reserve a book for order-1
	// warehouse: ship order-1
	// accounting: 1999 cents for order-1
}
