package examples_test

import (
	"context"
	"fmt"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/memory"
)

// Fan-out of work: an exchange copies each message to every queue bound to it;
// a topic exchange chooses by pattern. (Fan-out of facts is what groups of a
// stream are for.)
func Example_fanOut() {
	ctx := context.Background()
	b, err := memory.Open(ctx, nil)
	must(err)
	defer b.Close() //nolint:errcheck // the example is over
	must(b.DeclareExchange(ctx, "shop", broker.ExchangeTopic))
	for queue, pattern := range map[string]string{"billing": "order.#", "shipping": "order.paid", "audit": "#"} {
		_, err := broker.DeclareQueue(ctx, b, queue, broker.QueueConfig{})
		must(err)
		must(b.Bind(ctx, queue, "shop", broker.Binding{RoutingKey: pattern}))
	}
	shop, err := b.Exchange(ctx, "shop")
	must(err)
	for _, key := range []string{"order.created", "order.paid", "user.created"} {
		_, err := shop.RouteTo(key).Publish(ctx, broker.Message{Body: []byte(key)})
		must(err)
	}
	for _, queue := range []string{"billing", "shipping", "audit"} {
		s, err := b.QueueStats(ctx, queue)
		must(err)
		fmt.Println(queue, s.Ready)
	}
	// Output:
	// billing 2
	// shipping 1
	// audit 3
}
