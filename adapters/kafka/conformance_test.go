package kafka_test

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/kafka"
	"github.com/queuestream/broker/conformance"
	"github.com/twmb/franz-go/pkg/kfake"
)

// TestConformance runs the suite on the real broker and on the fake one.
func TestConformance(t *testing.T) {
	for _, c := range []struct {
		name  string
		kinds conformance.Kind
	}{
		{"Kafka topic", conformance.Stream},
		{"Kafka share group", conformance.Queue},
	} {
		t.Run("real/"+c.name, func(t *testing.T) {
			h := harness(c.name, realOptions(t), c.kinds)
			h.Version = "4.3.1"
			conformance.Run(t, h)
		})
		t.Run("fake/"+c.name, func(t *testing.T) {
			cluster := fake(t, kfake.BrokerConfigs(map[string]string{
				"share.record.lock.sweep.interval.ms": "100",
				"log.cleaner.backoff.ms":              "200", // how often it applies retention
			}))
			h := harness(c.name+" (kfake)", &kafka.Options{Brokers: cluster.ListenAddrs()}, c.kinds)
			conformance.Run(t, h)
		})
	}
}

func harness(name string, o *kafka.Options, kinds conformance.Kind) conformance.Harness {
	// Every cut costs a share group's records an attempt, and the broker drops
	// a record after ten: queues get fewer cuts.
	every := 50 * time.Millisecond
	if kinds == conformance.Queue {
		every = 200 * time.Millisecond
	}
	cuts := &cutter{conns: map[net.Conn]struct{}{}, every: every}
	return conformance.Harness{
		Name: name, Kinds: kinds,
		Open: func(ctx context.Context) (broker.Broker, error) {
			own := *o
			own.Dialer = cuts.dial
			own.SessionTimeout, own.HeartbeatInterval = 6*time.Second, 500*time.Millisecond
			return kafka.Open(ctx, &own)
		},
		StreamConfig: func(cfg *broker.StreamConfig) error {
			if cfg.Compact { // the cleaner spares what is written to, and waits for enough to do
				cfg.Options = map[string]string{"segment.ms": "500", "min.cleanable.dirty.ratio": "0.01", "delete.retention.ms": "500"}
			}
			return nil
		},
		Lease: 2 * time.Second,
		Delay: time.Second,
		Faults: map[conformance.FaultKind]func(context.Context) (conformance.Injection, error){
			conformance.FaultConnectionCut: cuts.inject,
		},
	}
}

// A cutter cuts all connections now and then.
type cutter struct {
	mu    sync.Mutex
	conns map[net.Conn]struct{}
	every time.Duration
}

func (c *cutter) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	own := &cutConn{Conn: conn, c: c}
	c.conns[own] = struct{}{}
	return own, nil
}

type cutConn struct {
	net.Conn
	c *cutter
}

func (c *cutConn) Close() error {
	c.c.mu.Lock()
	delete(c.c.conns, c)
	c.c.mu.Unlock()
	return c.Conn.Close()
}

func (c *cutter) cut() int64 {
	c.mu.Lock()
	conns := make([]net.Conn, 0, len(c.conns))
	for conn := range c.conns {
		conns = append(conns, conn)
	}
	c.mu.Unlock()
	n := int64(0)
	for _, conn := range conns {
		if conn.Close() == nil {
			n++
		}
	}
	return n
}

func (c *cutter) inject(context.Context) (conformance.Injection, error) {
	ctx, cancel := context.WithCancel(context.Background())
	var bites atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(c.every)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				bites.Add(c.cut())
			case <-ctx.Done():
				return
			}
		}
	}()
	return conformance.Injection{
		Stop: func(context.Context) error {
			cancel()
			<-done
			return nil
		},
		Bites: bites.Load,
	}, nil
}
