package rabbitmq

import (
	"testing"

	"github.com/queuestream/broker/conformance"
	"github.com/queuestream/broker/conformance/containers"
)

// TestConformanceScale runs the cases of scale.
func TestConformanceScale(t *testing.T) {
	in := containers.NeedRabbitMQ(t)
	for _, s := range suites {
		t.Run(s.name, func(t *testing.T) {
			h := s.harness(t, in, "97", "98")
			h.Million = 100_000
			if s.kinds == conformance.Stream {
				h.Million = 1_000_000
			}
			conformance.Run(t, h)
		})
	}
}
