package sqs

import (
	"maps"
	"net/url"
	"testing"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/conformance"
	"github.com/queuestream/broker/conformance/containers"
	"github.com/queuestream/broker/conformance/faultproxy"
)

// TestConformanceNetwork runs the cases that break the network, or stop the
// broker for a while, on one of its own behind a proxy. Not those that kill it:
// ElasticMQ keeps its messages in memory.
func TestConformanceNetwork(t *testing.T) {
	in := containers.OwnSQS(t)
	at, err := url.Parse(in.URL)
	if err != nil {
		t.Fatal(err)
	}
	p := faultproxy.New(t, "127.0.0.1:0", at.Host)
	at.Host = p.Addr()
	for name, only := range map[string]func(conformance.Harness) conformance.Harness{"SQS standard queue": standardOnly, "SQS FIFO queue": fifoOnly} {
		t.Run(name, func(t *testing.T) { // one after the other: a fault hits all
			h, _ := harness(name, at.String())
			h.Only = []string{"80", "90", "91", "93", "94", "95"}
			h.Faults = faultproxy.Faults(p)
			maps.Copy(h.Faults, map[conformance.FaultKind]faultproxy.Inject{
				conformance.FaultPause: faultproxy.Away(in.Pause, 3*time.Second, in.Resume),
			})
			h = only(h)
			limits := h.QueueConfig
			h.QueueConfig = func(cfg *broker.QueueConfig) error {
				if cfg.Lease == 0 { // what a lost answer hides comes back soon
					cfg.Lease = 5 * time.Second
				}
				return limits(cfg)
			}
			conformance.Run(t, h)
		})
	}
}
