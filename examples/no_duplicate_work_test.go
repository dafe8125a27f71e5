package examples_test

import (
	"context"
	"fmt"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/memory"
)

// No duplicate work: a message with the same DedupID is stored once within
// the queue's window, so that a client that retries makes no second job.
func Example_noDuplicateWork() {
	ctx := context.Background()
	b, err := memory.Open(ctx, nil)
	must(err)
	defer b.Close() //nolint:errcheck // the example is over
	invoices, err := broker.DeclareQueue(ctx, b, "invoices", broker.QueueConfig{Dedup: true})
	must(err)

	for range 3 {
		r, err := invoices.Publish(ctx, broker.Message{Body: []byte("invoice 7"), DedupID: "invoice-7"})
		must(err)
		fmt.Println("duplicate:", r.Duplicate)
	}
	stats, err := b.QueueStats(ctx, "invoices")
	must(err)
	fmt.Println("stored:", stats.Ready)
	// Output:
	// duplicate: false
	// duplicate: true
	// duplicate: true
	// stored: 1
}
