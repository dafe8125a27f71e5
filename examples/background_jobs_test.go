package examples_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/memory"
)

// Background jobs: workers share a queue. A job that fails is tried again
// later; one that fails too often goes to the dead-letter queue.
func Example_backgroundJobs() {
	ctx, cancel := context.WithCancel(context.Background())
	b, err := memory.Open(ctx, nil)
	must(err)
	defer b.Close() //nolint:errcheck // the example is over

	jobs, err := broker.DeclareQueue(ctx, b, "thumbnails", broker.QueueConfig{MaxAttempts: 3})
	must(err)
	for _, name := range []string{"cat.png", "broken.png"} {
		_, err := jobs.Publish(ctx, broker.Message{Body: []byte(name)})
		must(err)
	}

	w := &broker.Worker{
		Queue: jobs, Concurrency: 1, Logger: quiet,
		Retry: broker.RetryPolicy{Min: time.Millisecond, Max: 2 * time.Millisecond},
		Handler: func(_ context.Context, d *broker.Delivery) error {
			fmt.Printf("%s, attempt %d\n", d.Body, d.Attempt)
			if string(d.Body) == "broken.png" {
				if d.Attempt == 3 {
					defer cancel()
				}
				return errors.New("not an image")
			}
			return nil
		},
	}
	must(w.Run(ctx))

	dead, err := b.Peek(context.Background(), broker.DeadLetterName("thumbnails"), 10)
	must(err)
	why, _ := broker.DeadLetterOf(&dead[0])
	fmt.Printf("dead: %s after %d attempts: %s\n", dead[0].Body, why.Attempts, why.Reason)
	// Unordered output:
	// cat.png, attempt 1
	// broken.png, attempt 1
	// broken.png, attempt 2
	// broken.png, attempt 3
	// dead: broken.png after 3 attempts: not an image
}
