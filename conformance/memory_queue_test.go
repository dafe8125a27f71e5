package conformance

import (
	"context"
	"flag"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/memory"
)

func TestMain(m *testing.M) {
	SeedFlag(flag.CommandLine)
	goleak.VerifyTestMain(m)
}

// bubble runs a case in virtual time.
func bubble(t T, run func(T)) {
	synctest.Test(t.(*testing.T), func(t *testing.T) { run(t) })
}

// memoryHarness has one memory broker for each case, in a bubble of its own; a
// case may open several connections to it.
func memoryHarness(name string, opts memory.Options, kinds Kind) Harness {
	var server *memory.Broker
	var cs connections
	names := newNames()
	return Harness{
		Name:  name,
		Kinds: kinds,
		NewName: func(kind string) string {
			if opts.Profile == memory.SQSFIFO && (kind == "queue" || kind == "ordered") {
				return names(kind) + ".fifo"
			}
			return names(kind)
		},
		Around: func(t T, run func(T)) {
			bubble(t, func(t T) {
				var err error
				if server, err = memory.Open(t.Context(), &opts); err != nil {
					t.Fatalf("%v", err)
				}
				cs.forget()
				run(t)
				if err := server.Close(); err != nil {
					t.Errorf("close the server: %v", err)
				}
			})
		},
		Open:       func(context.Context) (broker.Broker, error) { return cs.add(server.Connect()), nil },
		Victim:     func(ctx context.Context) (broker.Broker, func(), error) { return cs.victim(server)(ctx) },
		Faults:     cs.faults(25 * time.Second), // longer than the suite waits for one call
		Patience:   24 * time.Hour,
		Million:    20_000,
		Duplicates: opts.Profile == memory.SQSStandard,
	}
}

// inMillions lets the scale cases earn their name where it takes seconds:
// profiles run the same code.
func inMillions(h Harness, p memory.Profile) Harness {
	if p == memory.Default && !testing.Short() {
		h.Million = 1_000_000
	}
	return h
}

func TestMemoryQueue(t *testing.T) {
	for _, p := range []memory.Profile{memory.Default, memory.SQSStandard, memory.SQSFIFO, memory.RabbitMQQuorum, memory.KafkaTopic} {
		name := "memory"
		if p != memory.Default {
			name += " as " + string(p)
		}
		t.Run(string(p), func(t *testing.T) {
			allRun(t, Run(t, inMillions(memoryHarness(name, memory.Options{Profile: p}, Queue), p)))
		})
	}
}
