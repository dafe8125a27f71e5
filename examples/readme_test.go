package examples_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/memory"
)

// The program on the README's first screen.
func Example_readme() {
	ctx, cancel := context.WithCancel(context.Background())
	send := func(_ context.Context, mail []byte) error {
		defer cancel() // one is enough here
		_, err := fmt.Printf("%s\n", mail)
		return err
	}
	must(readme(ctx, send))
	// Output: welcome, Ada
}

func readme(ctx context.Context, send func(context.Context, []byte) error) error {
	b, err := memory.Open(ctx, nil) // or kafka.Open, rabbitmq.Open, sqs.Open
	if err != nil {
		return err
	}
	defer b.Close()
	q, err := broker.DeclareQueue(ctx, b, "emails", broker.QueueConfig{MaxAttempts: 5})
	if err != nil {
		return err
	}
	if _, err := q.Publish(ctx, broker.Message{Body: []byte("welcome, Ada")}); err != nil {
		return err
	}
	w := &broker.Worker{Queue: q, Handler: func(ctx context.Context, d *broker.Delivery) error {
		return send(ctx, d.Body) // nil: done; an error: again, later; the fifth time: emails-dead
	}}
	return w.Run(ctx) // until ctx ends; then it drains
}

// What the README shows is what is compiled and run here.
func TestReadme(t *testing.T) {
	read := func(name string) string {
		b, err := os.ReadFile(name) //nolint:gosec // two names
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	between := func(text, from, to string) string {
		_, text, ok := strings.Cut(text, from)
		text, _, ok2 := strings.Cut(text, to)
		if !ok || !ok2 {
			t.Fatalf("nothing between %q and %q", from, to)
		}
		return text
	}
	shown := between(read("../README.md"), "```go\n", "```")
	run := between(read("readme_test.go"), "[]byte) error) error {\n", "\n}\n") + "\n"
	if run = strings.TrimPrefix(strings.ReplaceAll(run, "\n\t", "\n"), "\t"); shown != run {
		t.Errorf("the README shows\n%s\nand this is run:\n%s", shown, run)
	}
}
