package conformance

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bubble runs a case in virtual time.
func bubble(t T, run func(T)) {
	synctest.Test(t.(*testing.T), func(t *testing.T) { run(t) })
}

// memoryHarness has one memory broker for each case, in a bubble of its own; a
// case may open several connections to it.
func memoryHarness(name string, opts memory.Options, kinds Kind) Harness {
	var server *memory.Broker
	var mu sync.Mutex
	var clients []*memory.Broker
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
				run(t)
				if err := server.Close(); err != nil {
					t.Errorf("close the server: %v", err)
				}
			})
		},
		Open: func(context.Context) (broker.Broker, error) {
			b := server.Connect()
			mu.Lock()
			defer mu.Unlock()
			clients = append(clients, b)
			return b, nil
		},
		Faults: map[FaultKind]func(context.Context) (Injection, error){
			FaultConnectionCut: func(ctx context.Context) (Injection, error) {
				return every(ctx, 3*time.Millisecond, func() {
					mu.Lock()
					defer mu.Unlock()
					for _, b := range clients {
						b.Disconnect()
					}
				}), nil
			},
		},
		Patience:   24 * time.Hour,
		Million:    20_000,
		Duplicates: opts.Profile == memory.SQSStandard,
	}
}

// every does cut again and again until the injection is stopped.
func every(ctx context.Context, d time.Duration, cut func()) Injection {
	ctx, cancel := context.WithCancel(ctx)
	var bites atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		ticker := time.NewTicker(d)
		defer ticker.Stop()
		for {
			cut()
			bites.Add(1)
			select {
			case <-ticker.C:
			case <-ctx.Done():
				return
			}
		}
	}()
	return Injection{
		Stop:  func(context.Context) error { cancel(); <-done; return nil },
		Bites: bites.Load,
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
			Run(t, inMillions(memoryHarness(name, memory.Options{Profile: p}, Queue), p))
		})
	}
}
