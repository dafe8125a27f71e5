package sqs

import (
	"testing"

	"github.com/queuestream/broker/conformance"
)

// TestConformanceScale runs the cases of scale, as large as ElasticMQ bears:
// it looks through a whole FIFO queue for each receive.
func TestConformanceScale(t *testing.T) {
	endpoint := realEndpoint(t, "sqs")
	for name, of := range map[string]struct {
		only     func(conformance.Harness) conformance.Harness
		messages int
	}{
		"SQS standard queue": {standardOnly, 20_000},
		"SQS FIFO queue":     {fifoOnly, 1000},
	} {
		t.Run(name, func(t *testing.T) {
			h, _ := harness(name, endpoint)
			h.Only, h.Million = []string{"97", "98"}, of.messages
			conformance.Run(t, of.only(h))
		})
	}
}
