package kafka_test

import (
	"context"
	"errors"
	"math"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/kafka"
	"github.com/twmb/franz-go/pkg/kfake"
)

// A mortal dials until a broker is dead, which ends its connections too.
type mortal struct {
	mu    sync.Mutex
	dead  string
	conns map[net.Conn]string
}

func (m *mortal) dial(ctx context.Context, network, address string) (net.Conn, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if address == m.dead {
		return nil, &net.OpError{Op: "dial", Net: network, Err: errors.New("connection refused")}
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err == nil {
		m.conns[conn] = address
	}
	return conn, err
}

func (m *mortal) kill(address string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dead = address
	for conn, to := range m.conns {
		if to == address {
			_ = conn.Close()
		}
	}
}

// A queue's consumers follow the leaders of its partitions, whether the old
// leader says so or is gone for good, and lose no message over it.
func TestQueueFollowsLeaders(t *testing.T) {
	for _, dies := range []bool{false, true} {
		name := "moved"
		if dies {
			name = "died"
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cluster := fake(t, kfake.NumBrokers(3), kfake.BrokerConfigs(map[string]string{
				"group.share.record.lock.duration.ms": "2000", // it keeps locks as leaders move
				"share.record.lock.sweep.interval.ms": "100",
			}))
			m := &mortal{conns: map[net.Conn]string{}}
			b := open(t, &kafka.Options{Brokers: cluster.ListenAddrs(), Dialer: m.dial})
			q := queue(t, b, broker.QueueConfig{})
			move := func(node int32) {
				t.Helper()
				for _, topic := range []string{q.Name(), q.Name() + ".retry"} {
					for p := int32(0); cluster.LeaderFor(topic, p) >= 0; p++ {
						if err := cluster.MoveTopicPartition(topic, p, node); err != nil {
							t.Fatal(err)
						}
					}
				}
			}
			coordinator := cluster.CoordinatorFor("queue-" + q.Name())
			old, next := int32(0), int32(1) // 2 is the controller
			if coordinator == old {
				old, next = next, old
			}
			move(old)
			enqueue(t, q, 4)
			c := consumer(t, q)
			held := take(t, c, 2)
			if dies {
				t.Cleanup(func() { m.kill("") }) // it is back before the queue is deleted
				m.kill(cluster.ListenAddrs()[old])
			}
			move(next)
			enqueue(t, q, 3)

			ctx, left := testContext(t), 7
			for _, d := range held {
				if err := d.Ack(ctx); err == nil {
					left--
				} else if !errors.Is(err, broker.ErrLeaseLost) && !errors.Is(err, broker.ErrUnknownOutcome) {
					t.Error(err)
				}
			}
			for left > 0 {
				ds, err := c.Receive(ctx, math.MaxInt)
				if err != nil {
					t.Fatalf("%d of 7 messages are missing: %v", left, err)
				}
				for _, d := range ds {
					if err := d.Ack(ctx); err != nil {
						t.Error(err)
					}
					left--
				}
			}
			nothing(t, c, 100*time.Millisecond)
		})
	}
}

// A partition that has left a broker does not keep its consumers from the
// others there.
func TestQueueLeaderLeavesOthers(t *testing.T) {
	t.Parallel()
	cluster := fake(t, kfake.NumBrokers(2))
	ctx := testContext(t)
	b := open(t, &kafka.Options{Brokers: cluster.ListenAddrs()})
	q := queue(t, b, broker.QueueConfig{Options: map[string]string{"partitions": "2"}})
	s, err := b.Stream(ctx, q.Name(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for p := range int32(2) {
		if err := cluster.MoveTopicPartition(q.Name(), p, 0); err != nil {
			t.Fatal(err)
		}
	}
	c := consumer(t, q)
	pass := func(partition int32) {
		t.Helper()
		if _, err := s.Publish(ctx, broker.Record{Pin: true, Partition: partition, Value: []byte("x")}); err != nil {
			t.Fatal(err)
		}
		if err := take(t, c, 1)[0].Ack(ctx); err != nil {
			t.Fatal(err)
		}
	}
	pass(0)
	pass(1)
	began := time.Now()
	if err := cluster.MoveTopicPartition(q.Name(), 1, 1); err != nil {
		t.Fatal(err)
	}
	pass(1)
	for range 20 {
		pass(0)
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("21 messages took %v", took)
	}
}

// A queue that grows is read to its last partition by each of its consumers,
// also by those that the group gives nothing of it.
func TestQueueGrows(t *testing.T) {
	onBrokers(t, func(t *testing.T, o *kafka.Options) {
		ctx := testContext(t)
		b := open(t, o)
		q := queue(t, b, broker.QueueConfig{})
		consumers := []broker.Consumer{consumer(t, q), consumer(t, q), consumer(t, q)}
		if err := b.DeclareQueue(ctx, q.Name(), broker.QueueConfig{Options: map[string]string{"partitions": "2"}}); err != nil {
			t.Fatal(err)
		}
		s, err := b.Stream(ctx, q.Name(), nil)
		if err != nil {
			t.Fatal(err)
		}
		for i, c := range consumers { // one at a time: the others ask for nothing
			if _, err := s.Publish(ctx, broker.Record{Pin: true, Partition: 1, Value: []byte("x")}); err != nil {
				t.Fatal(err)
			}
			short, cancel := context.WithTimeout(ctx, 20*time.Second)
			ds, err := c.Receive(short, 1)
			cancel()
			if err != nil {
				t.Fatalf("consumer %d: %v", i, err)
			}
			if err := ds[0].Ack(ctx); err != nil {
				t.Error(err)
			}
		}
	})
}

// However much a Receive asks for, it gets what there is.
func TestQueueReceiveMaxInt(t *testing.T) {
	t.Parallel()
	b := open(t, &kafka.Options{Brokers: fake(t, kfake.NumBrokers(2)).ListenAddrs()})
	q := queue(t, b, broker.QueueConfig{Options: map[string]string{"partitions": "4"}})
	c, err := q.Consumer(testContext(t), &broker.ConsumerOptions{Prefetch: math.MaxInt})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}()
	enqueue(t, q, 10)
	ctx, cancel := context.WithTimeout(testContext(t), 10*time.Second)
	defer cancel()
	for got := 0; got < 10; {
		ds, err := c.Receive(ctx, math.MaxInt)
		if err != nil {
			t.Fatalf("after %d of 10 deliveries: %v", got, err)
		}
		if err := broker.AckAll(ctx, ds...); err != nil {
			t.Error(err)
		}
		got += len(ds)
	}
}
