package kafka_test

import (
	"context"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/kafka"
	"github.com/queuestream/broker/conformance"
	"github.com/twmb/franz-go/pkg/kfake"
)

// A suite is a column of the guarantee matrix.
type suite struct {
	name  string
	kinds conformance.Kind
	quick []int // cases that take the fake well below a second
	newer bool  // the group protocol of KIP-848
	only  []int // nil: all but noLeaks
}

var suites = []suite{
	{name: "Kafka share group", kinds: conformance.Queue, quick: []int{1, 3, 4, 5, 9, 74}},
	{name: "Kafka topic", kinds: conformance.Stream, quick: []int{
		1, 3, 4, 5, 19, 21, 23, 25, 26, 29, 31, 61, 63, 67, 74,
	}},
	// What concerns groups, with the other group protocol.
	{name: "Kafka topic (KIP-848 groups)", kinds: conformance.Stream, newer: true, quick: []int{1, 29}, only: []int{
		1, 2, 12, 19, 23, 24, 25, 26, 28, 29, 30, 52, 53, 54, 55, 56, 57, 58, 66, 73, 76, 79, 90, 96,
	}},
}

// noLeaks counts goroutines, so it runs apart from everything else.
const noLeaks = 78

// TestConformance runs the suite on the real broker and on the fake one. The
// fake runs all of it, without faults of the broker, where the environment
// names no real one and without -short; else the quick cases.
func TestConformance(t *testing.T) {
	for _, s := range suites {
		t.Run("real/"+s.name, func(t *testing.T) {
			o, version := realBroker(t)
			t.Parallel()
			h := s.harness(o)
			h.Version = version
			conformance.Run(t, h)
		})
	}
	for _, s := range suites {
		t.Run("fake/"+s.name, func(t *testing.T) {
			t.Parallel()
			h := s.fakeHarness(t)
			if testing.Short() || os.Getenv("BROKER_TEST_KAFKA") != "" {
				h.Only = ids(s.quick...)
				h.Messages = 50
			}
			conformance.Run(t, h)
		})
	}
}

// TestConformanceFaults runs the cases that break the network, or the broker,
// on one of its own behind a proxy.
func TestConformanceFaults(t *testing.T) {
	in, p := proxied(t)
	t.Parallel()
	for _, s := range suites {
		if s.only != nil {
			continue // faults make no difference between the group protocols
		}
		t.Run(s.name, func(t *testing.T) { // one after the other: a fault hits all
			h := s.harness(&kafka.Options{Brokers: []string{p.Addr()}})
			h.Version = in.Version()
			h.Only = ids(6, 80, 90, 91, 92, 93, 94, 95)
			h.Restart, h.Faults = in.Restart, faults(in, p)
			h.Soon, h.Quiet = 30*time.Second, 500*time.Millisecond
			conformance.Run(t, h)
		})
	}
}

// TestConformanceNoLeaks runs the case that nothing may disturb.
func TestConformanceNoLeaks(t *testing.T) {
	for _, s := range suites {
		if s.only != nil {
			continue
		}
		t.Run("real/"+s.name, func(t *testing.T) {
			o, version := realBroker(t)
			h := s.harness(o)
			h.Version, h.Only = version, ids(noLeaks)
			conformance.Run(t, h)
		})
		t.Run("fake/"+s.name, func(t *testing.T) {
			if testing.Short() {
				t.Skip("takes 5 s: run it without -short")
			}
			h := s.fakeHarness(t)
			h.Only = ids(noLeaks)
			conformance.Run(t, h)
		})
	}
}

func ids(numbers ...int) []string {
	out := make([]string, len(numbers))
	for i, n := range numbers {
		out[i] = strconv.Itoa(n)
	}
	return out
}

// except names all cases but one.
func except(id int) []string {
	var out []int
	for _, c := range conformance.Cases() {
		if c.ID != id {
			out = append(out, c.ID)
		}
	}
	return ids(out...)
}

func (s *suite) fakeHarness(t *testing.T) conformance.Harness {
	cluster := fake(t, kfake.BrokerConfigs(map[string]string{
		"share.record.lock.sweep.interval.ms": "100",
		"log.cleaner.backoff.ms":              "200", // how often it applies retention
		// Of KIP-848 groups, which have no timeout of the member's own: a killed one
		// is gone before the cases that kill have waited long enough.
		"group.consumer.session.timeout.ms": "6000",
	}))
	h := s.harness(&kafka.Options{Brokers: cluster.ListenAddrs()})
	h.Name += " (kfake)"
	h.Expected = map[int]string{
		83: "kfake takes topic options that do not exist (its CreateTopics checks no names); the real broker refuses them, and passes this case",
	}
	return h
}

func (s *suite) harness(o *kafka.Options) conformance.Harness {
	cuts := &cutter{conns: map[net.Conn]struct{}{}, every: 50 * time.Millisecond}
	only := except(noLeaks)
	if s.only != nil {
		only = ids(s.only...)
	}
	open := func(ctx context.Context, dial func(ctx context.Context, network, address string) (net.Conn, error)) (broker.Broker, error) {
		own := *o
		own.Dialer = dial
		own.SessionTimeout, own.HeartbeatInterval = session, 500*time.Millisecond
		own.ServerSideGroups = s.newer
		return kafka.Open(ctx, &own)
	}
	return conformance.Harness{
		Name: s.name, Kinds: s.kinds, Only: only,
		Open: func(ctx context.Context) (broker.Broker, error) { return open(ctx, cuts.dial) },
		Victim: func(ctx context.Context) (broker.Broker, func(), error) {
			l := new(conformance.Lifeline)
			b, err := open(ctx, l.DialContext)
			return b, l.Cut, err
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

// secondCut is how soon another cut follows the first, amid what a case does.
const secondCut = 2 * time.Millisecond

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
	bites.Add(c.cut()) // so that it bites however short the case is
	done := make(chan struct{})
	go func() {
		defer close(done)
		next := time.NewTimer(secondCut)
		defer next.Stop()
		for {
			select {
			case <-next.C:
				bites.Add(c.cut())
				next.Reset(c.every)
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
