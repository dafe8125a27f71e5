package examples_test

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/memory"
)

// Request-reply: a call over a queue. Any number of servers share the
// requests; the reply comes to a queue of the caller's own.
func Example_requestReply() {
	ctx, cancel := context.WithCancel(context.Background())
	b, err := memory.Open(ctx, nil)
	must(err)
	defer b.Close() //nolint:errcheck // the example is over
	requests, err := broker.DeclareQueue(ctx, b, "upper", broker.QueueConfig{})
	must(err)

	server := &broker.Worker{Queue: requests, Logger: quiet, Handler: broker.Respond(b,
		func(_ context.Context, d *broker.Delivery) (broker.Message, error) {
			return broker.Message{Body: []byte(strings.ToUpper(string(d.Body)))}, nil
		})}
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()

	client := &broker.Requester{Broker: b, Target: requests}
	call, done := context.WithTimeout(ctx, 10*time.Second) // bounds the wait for the reply
	defer done()
	reply, err := client.Do(call, broker.Message{Body: []byte("hello")})
	must(err)
	fmt.Printf("%s\n", reply.Body)

	must(client.Close())
	cancel()
	must(<-ended)
	// Output: HELLO
}
