package kafka

import (
	"context"

	"github.com/queuestream/broker"
)

// Queue opens the queue that the topic name holds.
func (b *Broker) Queue(_ context.Context, name string, _ *broker.QueueOptions) (broker.Queue, error) {
	return nil, fail("open queue", name, broker.Unsupported("queues"))
}
