package rabbitmq

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/queuestream/broker"
)

// TestGroupHandOver: when the consumer of a shard goes, in whatever way, another
// gets what is left of a group in order, and nothing of it while a delivery of
// the group is in the hands of the first.
func TestGroupHandOver(t *testing.T) {
	for _, c := range []struct {
		name  string
		leave func(t *testing.T, b *Broker, c broker.Consumer, d *broker.Delivery)
		want  []string // by the other consumer
	}{
		{"Shutdown, settled meanwhile", func(t *testing.T, b *Broker, _ broker.Consumer, d *broker.Delivery) {
			done := shutdown(t, b)
			eventually(t, "the broker drains", func() bool {
				select {
				case err := <-done:
					t.Errorf("Shutdown did not wait for what is in hand: %v", err)
					return true
				default:
				}
				return draining(b)
			})
			notYet(t, done)
			ack(t, d)
			if err := <-done; err != nil {
				t.Errorf("Shutdown: %v", err)
			}
		}, []string{"2", "3", "4"}},
		{"Shutdown, a redelivery is due later", func(t *testing.T, b *Broker, _ broker.Consumer, d *broker.Delivery) {
			nack(t, d, 10*time.Minute)
			if err := <-shutdown(t, b); err != nil {
				t.Errorf("Shutdown: %v", err)
			}
		}, []string{"1", "2", "3", "4"}},
		{"Shutdown, a redelivery becomes due", func(t *testing.T, b *Broker, _ broker.Consumer, d *broker.Delivery) {
			done := shutdown(t, b)
			eventually(t, "the broker drains", func() bool { return draining(b) })
			nack(t, d, 0)
			if err := <-done; err != nil {
				t.Errorf("Shutdown: %v", err)
			}
		}, []string{"1", "2", "3", "4"}},
		{"Close", func(t *testing.T, _ *Broker, c broker.Consumer, _ *broker.Delivery) {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}, []string{"1", "2", "3", "4"}},
		{"Close, nothing open", func(t *testing.T, _ *Broker, c broker.Consumer, d *broker.Delivery) {
			ack(t, d)
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}, []string{"2", "3", "4"}},
		{"idle", func(t *testing.T, _ *Broker, _ broker.Consumer, d *broker.Delivery) { ack(t, d) }, []string{"2", "3", "4"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b, other := testBroker(t, nil), testBroker(t, nil)
			q := testQueue(t, b, broker.QueueConfig{Ordered: true, Shards: 1})
			first := testConsumer(t, q, &broker.ConsumerOptions{Prefetch: 2}) // 3 and 4 stay in the queue
			first.(*consumer).lanes[0].priority = 1000                        // it is not asked to step down
			for _, body := range []string{"1", "2", "3", "4"} {
				publish(t, q, broker.Message{GroupID: "g", Body: []byte(body)})
			}
			d := receive(t, first)
			second := testConsumer(t, openQueue(t, other, q.Name()), nil)
			got := make(chan string, 10)
			ctx, cancel := context.WithCancel(testContext(t))
			gone := make(chan struct{})
			go func() {
				defer close(gone)
				for {
					ds, err := second.Receive(ctx, 10)
					if err != nil {
						return
					}
					for _, d := range ds {
						got <- string(d.Body)
						if err := d.Ack(ctx); err != nil {
							t.Error(err)
						}
					}
				}
			}()
			defer func() { cancel(); <-gone }()
			eventually(t, "the other consumer waits", func() bool { return subscribed(second.(*consumer)) })
			early := len(got)
			c.leave(t, b, first, d)
			if early > 0 {
				t.Errorf("%d deliveries beside the first consumer", early)
			}
			var order []string
			for len(order) == 0 || order[len(order)-1] != "4" {
				select {
				case body := <-got:
					order = append(order, body)
				case <-ctx.Done():
					t.Fatalf("got %v, want %v", order, c.want)
				}
			}
			if !slices.Equal(order, c.want) {
				t.Errorf("got %v, want %v", order, c.want)
			}
		})
	}
}

func openQueue(t *testing.T, b *Broker, name string) *Queue {
	t.Helper()
	q, err := b.Queue(testContext(t), name, nil)
	if err != nil {
		t.Fatal(err)
	}
	return q.(*Queue)
}

// subscribed tells whether the broker knows of a consumer's lanes.
func subscribed(c *consumer) bool {
	return !slices.ContainsFunc(c.lanes, func(l *lane) bool { return !l.subscribed() })
}

func (l *lane) subscribed() bool {
	l.mu.Lock()
	s := l.session
	l.mu.Unlock()
	s.rpc.Lock()
	defer s.rpc.Unlock()
	return s.tag != ""
}

func shutdown(t *testing.T, b *Broker) <-chan error {
	done := make(chan error, 1)
	ctx := testContext(t)
	go func() { done <- b.Shutdown(ctx) }()
	return done
}

// draining tells whether every consumer has stopped receiving, and has said so
// to the broker.
func draining(b *Broker) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for h := range b.handles {
		q, ok := h.(*Queue)
		if !ok {
			continue
		}
		q.mu.Lock()
		for c := range q.consumers {
			c.mu.Lock()
			drains := c.draining
			c.mu.Unlock()
			if !drains {
				q.mu.Unlock()
				return false
			}
		}
		q.mu.Unlock()
	}
	return true
}

// notYet gives a wrong hand-over the time to show.
func notYet(t *testing.T, done <-chan error) {
	t.Helper()
	wait := time.NewTimer(time.Second)
	defer wait.Stop()
	select {
	case err := <-done:
		t.Errorf("ended early: %v", err)
	case <-wait.C:
	}
}
