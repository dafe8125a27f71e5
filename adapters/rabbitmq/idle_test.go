package rabbitmq

import (
	"fmt"
	"testing"
	"time"

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

// What comes while an idle consumer leaves its shards, which takes long on a slow
// network, costs no attempt and is delivered to the next Receive.
func TestNothingIsSpentWhileShardsAreLeft(t *testing.T) {
	b := testBroker(t, nil)
	q := testQueue(t, b, broker.QueueConfig{Ordered: true, Shards: 8})
	p, through := testProxy(t, testURL(t))
	defer p.SlowLink()()
	slow := openQueue(t, testBroker(t, proxied(through)), q.Name())
	c := testConsumer(t, slow, nil)
	for i := range 5 {
		publish(t, q, broker.Message{Body: []byte("first")})
		ack(t, receive(t, c))
		receiveNone(t, c, 50*time.Millisecond) // it leaves
		publish(t, q, broker.Message{ID: fmt.Sprint(i), Body: []byte("x")})
		d := receive(t, c)
		if d.ID != fmt.Sprint(i) || d.Attempt != 1 {
			t.Errorf("%+v, attempt %d, want 1", d.Message, d.Attempt)
		}
		ack(t, d)
	}
}

// What comes while an idle consumer cancels stays with it, for the next Receive.
func TestComesWhileIdleConsumerCancels(t *testing.T) {
	direct := testBroker(t, nil)
	plain := testQueue(t, direct, broker.QueueConfig{Ordered: true, Shards: 1})
	var s silence
	q := openQueue(t, testBroker(t, func(o *Options) { o.Dial = s.dial }), plain.Name())
	c := testConsumer(t, q, nil)
	publish(t, plain, broker.Message{Body: []byte("1")})
	ack(t, receive(t, c))
	s.begin(looseName(q.Name()))
	publish(t, plain, broker.Message{Body: []byte("2")})
	eventually(t, "the idle consumer cancels", func() bool { return s.asked(basicCancel) })
	s.end(t)
	loose := c.(*consumer).lanes[1]
	eventually(t, "it has cancelled", func() bool { return !loose.subscribed() })
	d := receive(t, c)
	if ack(t, d); string(d.Body) != "2" || d.Attempt != 1 {
		t.Errorf("%s, attempt %d, want 2 at the first", d.Body, d.Attempt)
	}
}
