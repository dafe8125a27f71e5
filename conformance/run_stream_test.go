package conformance

import (
	"context"
	"testing"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/memory"
)

func TestMemoryStream(t *testing.T) {
	for _, p := range []memory.Profile{memory.Default, memory.KafkaTopic} {
		t.Run(string(p), func(t *testing.T) {
			allRun(t, Run(t, inMillions(memoryHarness("memory "+string(p), memory.Options{Profile: p}, Stream), p)))
		})
	}
}

func TestMemoryStreamInRealTime(t *testing.T) {
	allRun(t, Run(t, inRealTime(t, Harness{Name: "memory in real time", Kinds: Stream, Million: 20_000})))
}

// A broker that lives in its client has one client.
func TestMemoryStreamEmbedded(t *testing.T) {
	Run(t, Harness{
		Name: "memory, embedded", unreported: true, Kinds: Stream, Embedded: true, Only: []string{"1", "12", "28", "53", "56", "66", "67", "79", "80", "96"},
		Open: func(ctx context.Context) (broker.Broker, error) { return memory.Open(ctx, nil) },
	})
}
