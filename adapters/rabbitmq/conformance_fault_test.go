package rabbitmq

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/conformance"
	"github.com/queuestream/broker/conformance/containers"
	"github.com/queuestream/broker/conformance/faultproxy"
)

// TestConformanceFaults runs the fault cases with a network that breaks.
func TestConformanceFaults(t *testing.T) {
	in := containers.NeedRabbitMQ(t)
	var all sync.WaitGroup
	for _, s := range suites {
		all.Go(func() {
			t.Run(s.name, func(t *testing.T) {
				h := s.harness(t, in, "80", "90", "91", "94", "95")
				o := Options{MinBackoff: 10 * time.Millisecond, MaxBackoff: 200 * time.Millisecond, Heartbeat: 2 * time.Second}
				p, through := testProxy(t, in.URL)
				o.URLs, h.Faults = []string{through}, faultproxy.Faults(p)
				if s.kinds == conformance.Stream {
					sp, through := testProxy(t, in.StreamURL)
					o.StreamURLs, o.StreamDirect = []string{through}, true
					h.Faults = faultproxy.Faults(p, sp)
				}
				h.Open = opener(o)
				conformance.Run(t, h)
			})
		})
	}
	all.Wait()
}

// TestConformanceBroken runs the cases that stop a broker, on one of its own.
func TestConformanceBroken(t *testing.T) {
	in := containers.OwnRabbitMQ(t)
	for _, s := range suites {
		t.Run(s.name, func(t *testing.T) {
			h := s.harness(t, in, "6", "92", "93")
			h.OpenBad = nil
			o := Options{URLs: []string{in.URL}, MaxBackoff: 500 * time.Millisecond, Heartbeat: 2 * time.Second}
			if s.kinds == conformance.Stream {
				o.StreamURLs = []string{in.StreamURL}
			}
			h.Open = opener(o)
			h.Restart = in.Restart
			var mu sync.Mutex
			var last string
			h.NewName = func(kind string) string {
				name := "qs-" + kind + "-" + broker.NewID()
				if kind == "queue" || kind == "ordered" {
					mu.Lock()
					defer mu.Unlock()
					last = name
				}
				return name
			}
			kill := func(ctx context.Context) error {
				mu.Lock()
				queue := last
				mu.Unlock()
				wait, cancel := context.WithTimeout(ctx, 10*time.Second)
				defer cancel()
				if queue != "" && strings.Contains(s.name, "classic") {
					if err := in.AwaitDeclarationOnDisk(wait, queue); err != nil {
						return err
					}
				}
				for _, q := range s.quorumQueues(queue) {
					if err := in.AwaitQueueOnDisk(wait, q); err != nil {
						return err
					}
				}
				return in.Kill(ctx)
			}
			h.Faults = map[conformance.FaultKind]faultproxy.Inject{
				conformance.FaultKill:  faultproxy.Away(kill, time.Second, in.Start),
				conformance.FaultPause: faultproxy.Away(in.Pause, 6*time.Second, in.Resume),
			}
			conformance.Run(t, h)
		})
	}
}

// quorumQueues names what carries a queue of the suite, if there is one.
func (s *suite) quorumQueues(queue string) []string {
	switch {
	case queue == "" || strings.Contains(s.name, "classic"):
		return nil
	case strings.Contains(s.name, "ordered"):
		return (&queueInfo{name: queue, shards: defaultShards}).queues()
	}
	return []string{queue}
}
