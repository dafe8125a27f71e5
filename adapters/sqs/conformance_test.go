package sqs

import (
	"context"
	"testing"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/conformance"
)

// harness is what the suite needs of the SQS at endpoint.
func harness(name, endpoint string, edit func(*Options)) conformance.Harness {
	open := func(secret string) func(ctx context.Context) (broker.Broker, error) {
		return func(ctx context.Context) (broker.Broker, error) {
			o := &Options{
				Region: "us-east-1", Endpoint: endpoint, Credentials: staticCredentials("test", secret),
				// ElasticMQ goes on with a poll whose connection is gone, and
				// hands it the next messages: end polls instead of cutting them.
				PollWait: time.Second,
			}
			if edit != nil {
				edit(o)
			}
			return Open(ctx, o)
		}
	}
	h := conformance.Harness{
		Name: name, Version: "ElasticMQ 1.7.1", Kinds: conformance.Queue,
		Open:       open("test"),
		Duplicates: true,
		NewName: func(kind string) string {
			switch kind {
			case "ordered":
				return realName(kind) + fifoSuffix
			}
			return realName(kind)
		},
		Lease: time.Second,
		Delay: time.Second,
		Tick:  time.Second, // SQS counts whole seconds
		Expected: map[int]string{
			35: "ElasticMQ ignores the dedup scope messageGroup",
		},
	}
	for id := 84; id <= 88; id++ {
		h.Expected[id] = "ElasticMQ has no SNS; the cases run on moto"
	}
	return h
}

// fifoOnly has every queue declared as a FIFO queue.
func fifoOnly(h conformance.Harness) conformance.Harness {
	h.NewName = func(kind string) string {
		if kind == "queue" || kind == "ordered" || kind == "exchange" {
			return realName(kind) + fifoSuffix
		}
		return realName(kind)
	}
	return h
}

func TestConformanceStandard(t *testing.T) {
	h := harness("SQS standard queue", realEndpoint(t, "sqs"), nil)
	h.QueueConfig = func(cfg *broker.QueueConfig) error {
		if wantsFIFO(cfg) {
			return broker.Unsupported("a standard queue has no groups and no dedup")
		}
		return nil
	}
	conformance.Run(t, h)
}

func TestConformanceFIFO(t *testing.T) {
	h := fifoOnly(harness("SQS FIFO queue", realEndpoint(t, "sqs"), nil))
	conformance.Run(t, h)
}

func TestConformanceSNS(t *testing.T) {
	h := harness("SNS exchanges", realEndpoint(t, "sns"), nil)
	h.Version, h.Expected = "moto 5.1.1", nil
	h.Only = []string{"84", "85", "86", "87", "88", "89"}
	conformance.Run(t, h)
}
