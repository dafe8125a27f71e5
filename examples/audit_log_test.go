package examples_test

import (
	"context"
	"fmt"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/memory"
)

// Audit log: a stream keeps every change. A balance that got lost, or a new
// question about the past, is answered by replay.
func Example_auditLog() {
	ctx := context.Background()
	b, err := memory.Open(ctx, nil)
	must(err)
	defer b.Close() //nolint:errcheck // the example is over
	must(b.DeclareStream(ctx, "ledger", broker.StreamConfig{Partitions: 2}))
	ledger, err := b.Stream(ctx, "ledger", nil)
	must(err)

	type Booked struct{ Cents int }
	booked := broker.NewType[Booked]("Booked")
	for i, cents := range []int{500, -120, 300} {
		account := []string{"ada", "ada", "bob"}[i]
		_, err := booked.Append(ctx, ledger, account, Booked{cents})
		must(err)
	}

	balance := map[string]int{}
	rebuild := &broker.Processor{
		Stream: ledger, Group: "balance", Logger: quiet, Concurrency: 1,
		Start: broker.Earliest(), Until: broker.Now(), // ends at the end
		Handler: booked.RecordHandler(func(_ context.Context, e broker.Event[Booked]) error {
			balance[string(e.Key)] += e.Value.Cents
			return nil
		}),
	}
	must(rebuild.Run(ctx))
	fmt.Println("balances:", balance)

	// Reading needs no group at all.
	n := 0
	for _, err := range ledger.Read(ctx, broker.Range{}) {
		must(err)
		n++
	}
	fmt.Println("entries:", n)
	// Output:
	// balances: map[ada:380 bob:300]
	// entries: 3
}
