package conformance

import (
	"github.com/queuestream/broker"
)

var queueDelivery = map[int]QueueCase{
	8: {Run: func(c *C, q broker.Queue) {
		k := c.Consumer(q, nil)
		c.Publish(q, broker.Message{Body: []byte("once")})
		c.Ack(c.ReceiveOne(k))
		c.Nothing(k, "the only message was acknowledged")
		c.Nothing(c.Consumer(q, nil), "the only message was acknowledged, for other consumers too")
	}},
}
