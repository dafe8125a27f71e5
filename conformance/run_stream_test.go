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
			report := Run(t, inMillions(memoryHarness("memory "+string(p), memory.Options{Profile: p}, Stream), p))
			// What memory cannot show; anything else must have been run.
			for i := range report.Results {
				r := &report.Results[i]
				if r.Status == StatusSkip && !streamSkips[r.ID] {
					t.Errorf("%d %s was skipped: %s", r.ID, r.Name, r.Reason)
				}
			}
		})
	}
}

// streamSkips need faults that nobody injects into memory, and the default
// profile has no limit of size.
var streamSkips = map[int]bool{72: true, 80: true, 81: true, 37: true, 91: true, 93: true, 94: true, 95: true, 96: true}

// In real time goroutines meet otherwise than in virtual time.
func TestMemoryStreamInRealTime(t *testing.T) {
	Run(t, Harness{
		Name: "memory in real time", Kinds: Stream, Embedded: true,
		Open: func(ctx context.Context) (broker.Broker, error) { return memory.Open(ctx, nil) },
	})
}
