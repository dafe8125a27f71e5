package rabbitmq

import (
	"context"

	"github.com/queuestream/broker"
)

// ReplyQueue implements [broker.ReplyQueuer]: a queue of its own, which Close
// deletes and which goes by itself 5 minutes after its last use; or direct
// reply-to, see [Options.DirectReplies].
func (b *Broker) ReplyQueue(ctx context.Context) (broker.Queue, error) {
	open := b.replyQueue
	if b.o.DirectReplies {
		open = b.directReplies
	}
	q, err := open(ctx)
	if err != nil {
		return nil, fail("reply queue", "", err)
	}
	return q, nil
}

func (b *Broker) replyQueue(ctx context.Context) (broker.Queue, error) {
	name := "broker.reply." + broker.NewID()
	cfg := broker.QueueConfig{Temporary: true, Options: map[string]string{"x-queue-type": "classic"}}
	if err := b.declareQueue(ctx, name, cfg); err != nil {
		return nil, err
	}
	q, err := b.openQueue(ctx, name, nil)
	if err != nil {
		return nil, err
	}
	return &replyQueue{q}, nil
}

type replyQueue struct{ *Queue }

// Close closes the queue and deletes it.
func (q *replyQueue) Close() error {
	err := q.Queue.Close()
	q.b.topo.removeQueue(q.info) // so that no later connection declares it again
	ctx, cancel := context.WithTimeout(context.Background(), q.b.o.CloseTimeout)
	defer cancel()
	if derr := q.b.deleteQueue(ctx, q.Name()); err == nil && derr != nil && !q.b.isClosed() {
		err = fail("close", q.Name(), derr)
	}
	return err
}
