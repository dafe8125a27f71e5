package examples_test

import (
	"context"
	"fmt"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/memory"
)

// Delayed work: a message can wait before its first delivery, and a handler
// can put one off.
func Example_delayedWork() {
	ctx, cancel := context.WithCancel(context.Background())
	b, err := memory.Open(ctx, nil)
	must(err)
	defer b.Close() //nolint:errcheck // the example is over
	reminders, err := broker.DeclareQueue(ctx, b, "reminders", broker.QueueConfig{})
	must(err)

	start := time.Now()
	for text, delay := range map[string]time.Duration{"later": 40 * time.Millisecond, "soon": 10 * time.Millisecond} {
		_, err := reminders.Publish(ctx, broker.Message{Body: []byte(text), Delay: delay})
		must(err)
	}
	first := false
	w := &broker.Worker{Queue: reminders, Concurrency: 1, Logger: quiet, Handler: func(_ context.Context, d *broker.Delivery) error {
		if string(d.Body) == "later" && (!first || time.Since(start) < 60*time.Millisecond) {
			return broker.Snooze(30 * time.Millisecond) // not due after all; costs no attempt
		}
		fmt.Printf("%s, attempt %d\n", d.Body, d.Attempt)
		first = true
		if string(d.Body) == "later" {
			cancel()
		}
		return nil
	}}
	must(w.Run(ctx))
	// Output:
	// soon, attempt 1
	// later, attempt 1
}
