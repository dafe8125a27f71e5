package examples_test

import (
	"context"
	"fmt"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/memory"
)

// Throttling: a queue takes bursts as they come; RateLimit starts handlers at
// the pace that the service behind them bears.
func Example_throttling() {
	ctx, cancel := context.WithCancel(context.Background())
	b, err := memory.Open(ctx, nil)
	must(err)
	defer b.Close() //nolint:errcheck // the example is over

	calls, err := broker.DeclareQueue(ctx, b, "api-calls", broker.QueueConfig{})
	must(err)
	burst := make([]broker.Message, 11)
	_, err = calls.PublishBatch(ctx, burst)
	must(err)

	done := 0
	start := time.Now()
	w := &broker.Worker{
		Queue: calls, Concurrency: 1, RateLimit: 200, Logger: quiet,
		Handler: func(context.Context, *broker.Delivery) error {
			if done++; done == len(burst) {
				cancel()
			}
			return nil
		},
	}
	must(w.Run(ctx))
	// 200 a second are 5 ms apart.
	fmt.Println(done, "calls, took at least 45 ms:", time.Since(start) >= 45*time.Millisecond)
	// Output: 11 calls, took at least 45 ms: true
}
