package rabbitmq

import (
	"fmt"
	"testing"

	"github.com/queuestream/broker"
)

// A consumer that has prefetched messages and does not come for them passes
// them on, at the cost of no attempt.
func TestIdleConsumerPassesOn(t *testing.T) {
	for _, tt := range []struct {
		name string
		cfg  broker.QueueConfig
	}{
		{"quorum", broker.QueueConfig{}},
		{"classic", broker.QueueConfig{Options: map[string]string{"x-queue-type": "classic"}}},
		{"groups", broker.QueueConfig{Ordered: true, Shards: 2}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := testBroker(t, nil)
			q := testQueue(t, b, tt.cfg)
			const n = 20
			for i := range n {
				m := broker.Message{ID: fmt.Sprint(i), Body: []byte("x"), Headers: broker.Headers{{Key: "k", Value: "v"}}}
				if q.Capabilities().Groups {
					m.GroupID = fmt.Sprint("g", i%4)
				}
				publish(t, q, m)
			}
			idle := testConsumer(t, q, nil)
			ack(t, receive(t, idle))
			other := testConsumer(t, q, nil)
			seen := map[string]bool{}
			for range n - 1 {
				d := receive(t, other)
				if seen[d.ID] || d.Headers.Get("k") != "v" || q.Capabilities().Attempts && d.Attempt != 1 {
					t.Fatalf("%+v, attempt %d; seen: %v", d.Message, d.Attempt, seen)
				}
				seen[d.ID] = true
				ack(t, d)
			}
			publish(t, q, broker.Message{Body: []byte("one more")})
			if err := other.Close(); err != nil {
				t.Fatal(err)
			}
			ack(t, receive(t, idle))
		})
	}
}
