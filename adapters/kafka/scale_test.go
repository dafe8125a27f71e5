package kafka_test

import (
	"testing"

	"github.com/queuestream/broker/conformance"
)

// TestConformanceScale runs the cases of scale.
func TestConformanceScale(t *testing.T) {
	o, version := realBroker(t)
	t.Parallel()
	for i, messages := range []int{200_000, 1_000_000} {
		s := suites[i]
		t.Run(s.name, func(t *testing.T) {
			h := s.harness(o)
			h.Version, h.Only, h.Million = version, ids(97, 98), messages
			conformance.Run(t, h)
		})
	}
}
