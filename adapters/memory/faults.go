package memory

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/queuestream/broker"
)

// Faults are injected at random, reproducibly from Options.Seed as long as the
// calls come in the same order. Each is the probability, 0 to 1, that one
// operation is hit.
type Faults struct {
	DropAck      float64       // Ack returns nil, and the message comes again once its lease ends
	LoseAnswer   float64       // Publish stores, and returns ErrUnknownOutcome
	Fail         float64       // Publish stores nothing, and returns ErrUnavailable
	Duplicate    float64       // a delivery without a group comes twice
	Delay        float64       // a message becomes ready later, by up to MaxDelay
	MaxDelay     time.Duration // of Delay; 0: 1 s
	Disconnect   float64       // a queue's Receive finds the connection broken; see Broker.Disconnect
	PartialBatch float64       // an entry of a batch settled fails with ErrUnavailable
}

var errInjected = fmt.Errorf("%w: injected fault", broker.ErrUnavailable)

func (f *Faults) validate() error {
	for _, p := range []struct {
		name string
		p    float64
	}{
		{"DropAck", f.DropAck}, {"LoseAnswer", f.LoseAnswer}, {"Fail", f.Fail}, {"Duplicate", f.Duplicate},
		{"Delay", f.Delay}, {"Disconnect", f.Disconnect}, {"PartialBatch", f.PartialBatch},
	} {
		if !(p.p >= 0 && p.p <= 1) {
			return broker.Invalid("Faults.%s %v: want a probability, 0 to 1", p.name, p.p)
		}
	}
	if f.MaxDelay < 0 || f.MaxDelay > broker.MaxDuration {
		return broker.Invalid("Faults.MaxDelay %v: want 0 to %v", f.MaxDelay, broker.MaxDuration)
	}
	return nil
}

type faults struct {
	Faults
	mu     sync.Mutex
	random *rand.Rand
}

// newFaults returns nil if nothing is to be injected.
func newFaults(f Faults, seed uint64) *faults {
	if f == (Faults{MaxDelay: f.MaxDelay}) {
		return nil
	}
	if f.MaxDelay == 0 {
		f.MaxDelay = time.Second
	}
	return &faults{Faults: f, random: rand.New(rand.NewPCG(seed, 1))} //nolint:gosec // not for secrets
}

func (f *faults) hit(p float64) bool {
	if p <= 0 {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.random.Float64() < p
}

// A publishFault is what happens to one publish.
type publishFault struct {
	err        error // nothing is stored
	loseAnswer bool
	delay      time.Duration
}

func (f *faults) onPublish() publishFault {
	var p publishFault
	if f.hit(f.Fail) {
		p.err = errInjected
		return p
	}
	p.loseAnswer = f.hit(f.LoseAnswer)
	if f.hit(f.Delay) {
		f.mu.Lock()
		p.delay = time.Duration(f.random.Int64N(int64(f.MaxDelay))) + 1
		f.mu.Unlock()
	}
	return p
}
