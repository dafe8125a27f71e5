package conformance

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/memory"
)

// connections are what a harness has opened of memory brokers, to break them.
type connections struct {
	mu   sync.Mutex
	open []*memory.Broker
}

func (cs *connections) add(b *memory.Broker) *memory.Broker {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.open = append(cs.open, b)
	return b
}

// all returns those of the case that runs now.
func (cs *connections) all() []*memory.Broker {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	return slices.Clone(cs.open)
}

func (cs *connections) forget() {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.open = nil
}

func (cs *connections) disconnect() {
	for _, b := range cs.all() {
		b.Disconnect()
	}
}

type startFault = func(context.Context) (Injection, error)

// faults are all that can be injected into an embedded broker; a kill has no
// meaning where nothing is durable. A stall ends by itself after so long.
func (cs *connections) faults(stall time.Duration) map[FaultKind]startFault {
	return map[FaultKind]startFault{
		FaultConnectionCut: func(ctx context.Context) (Injection, error) {
			return every(ctx, 3*time.Millisecond, cs.disconnect), nil
		},
		FaultAnswerLost: cs.faulty(memory.Faults{LoseAnswer: 0.2}),
		FaultThrottle:   cs.faulty(memory.Faults{Throttle: 0.3}),
		FaultSlowLink:   cs.faulty(memory.Faults{Latency: 20 * time.Millisecond}),
		FaultPause:      cs.stalled(stall, func() {}),
		FaultBlackHole:  cs.stalled(stall, cs.disconnect), // noticed in the end: nothing is answered any more
	}
}

// injected returns what has been hit from now on.
func (cs *connections) injected() func() int64 {
	sum := func() (n int64) {
		for _, b := range cs.all() {
			n += b.Injected()
		}
		return n
	}
	before := sum()
	return func() int64 { return sum() - before }
}

func (cs *connections) faulty(f memory.Faults) startFault {
	set := func(f memory.Faults) (err error) {
		for _, b := range cs.all() {
			if e := b.SetFaults(f); err == nil {
				err = e
			}
		}
		return err
	}
	return func(context.Context) (Injection, error) {
		return Injection{Bites: cs.injected(), Stop: func(context.Context) error { return set(memory.Faults{}) }}, set(f)
	}
}

func (cs *connections) stalled(d time.Duration, before func()) startFault {
	return func(context.Context) (Injection, error) {
		bites := cs.injected()
		var resumes []func()
		for _, b := range cs.all() {
			resumes = append(resumes, b.Pause())
		}
		ended := make(chan struct{})
		time.AfterFunc(d, func() {
			defer close(ended)
			before()
			for _, resume := range resumes {
				resume()
			}
		})
		return Injection{Bites: bites, Stop: func(context.Context) error { <-ended; return nil }}, nil
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

// cannot are the cases that no run on memory shows, with the reason.
var cannot = map[int]string{
	34: "in real time: a dedup window is 5 minutes",
}

// allRun fails the test for each case that was skipped and is not in cannot.
func allRun(t *testing.T, r *Report) {
	t.Helper()
	for i := range r.Results {
		if r := &r.Results[i]; r.Status == StatusSkip && cannot[r.ID] == "" {
			t.Errorf("%d %s was skipped: %s", r.ID, r.Name, r.Reason)
		}
	}
}

// inRealTime is a harness without virtual time, where goroutines meet
// otherwise, on one broker.
func inRealTime(t *testing.T, h Harness) Harness {
	server, err := memory.Open(t.Context(), &memory.Options{Name: "real time"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	var cs connections
	h.Embedded = false
	h.Open = func(context.Context) (broker.Broker, error) { return cs.add(server.Connect()), nil }
	h.Around = func(t T, run func(T)) { cs.forget(); run(t) }
	h.Faults = cs.faults(200 * time.Millisecond)
	h.Victim = cs.victim(server)
	return h
}

// victim connects to server; to kill it is to break its connection and close
// what is left of it in this process.
func (cs *connections) victim(server *memory.Broker) func(context.Context) (broker.Broker, func(), error) {
	return func(context.Context) (broker.Broker, func(), error) {
		b := cs.add(server.Connect())
		return b, func() { b.Disconnect(); _ = b.Close() }, nil
	}
}
