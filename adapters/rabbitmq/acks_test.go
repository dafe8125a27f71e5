package rabbitmq

import (
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/queuestream/broker"
)

// A fakeAcker applies acknowledgements as the broker does.
type fakeAcker struct {
	mu      sync.Mutex
	open    map[uint64]bool
	settled map[uint64]string
	frames  int
	err     error
}

func (f *fakeAcker) Ack(tag uint64, multiple bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return f.err
	}
	f.frames++
	if !f.open[tag] {
		f.err = fmt.Errorf("unknown delivery tag %d", tag)
		return f.err
	}
	for t := range f.open {
		if t == tag || multiple && t < tag {
			delete(f.open, t)
			f.settled[t] = "ack"
		}
	}
	return nil
}

func (f *fakeAcker) Reject(tag uint64, requeue bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.frames++
	if !f.open[tag] || !requeue {
		f.err = fmt.Errorf("reject of %d", tag)
		return f.err
	}
	delete(f.open, tag)
	f.settled[tag] = "requeue"
	return nil
}

// TestAcksModel: whatever the order of verdicts, each reaches the broker once,
// as decided, and nothing else is settled.
func TestAcksModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := &fakeAcker{open: map[uint64]bool{}, settled: map[uint64]string{}}
		a := newAcks(f, 1, rapid.SampledFrom([]int{1, 64, 1000}).Draw(t, "prefetch"), nil)
		n := uint64(rapid.IntRange(1, 60).Draw(t, "n"))
		var tags []uint64
		for tag := range n {
			f.open[tag+1] = true
			tags = append(tags, tag+1)
		}
		for _, tag := range shuffled(t, tags) { // several subscriptions share the tags
			if !a.add(tag, &broker.Delivery{}) {
				t.Fatalf("add %d", tag)
			}
		}
		want := map[uint64]string{}
		for _, tag := range shuffled(t, tags)[:rapid.IntRange(0, int(n)).Draw(t, "decided")] {
			requeue := rapid.Bool().Draw(t, "requeue")
			want[tag] = map[bool]string{true: "requeue", false: "ack"}[requeue]
			if !a.decide(tag, 1, requeue) || a.decide(tag, 1, false) || a.decide(tag, 2, false) {
				t.Fatalf("decide %d", tag)
			}
		}
		for w := a.waiting(false); w != nil; w = a.waiting(false) {
			<-w
		}
		if open := a.close(); len(open) != int(n)-len(want) {
			t.Fatalf("%d open, want %d", len(open), int(n)-len(want))
		}
		if a.decide(1, 1, false) || f.err != nil || fmt.Sprint(f.settled) != fmt.Sprint(want) {
			t.Fatalf("settled %v, want %v, %v", f.settled, want, f.err)
		}
	})
}

func shuffled(t *rapid.T, tags []uint64) []uint64 {
	return rapid.Permutation(tags).Draw(t, "order")
}

// TestAcksUseMultiple: contiguous acknowledgements share frames.
func TestAcksUseMultiple(t *testing.T) {
	f := &fakeAcker{open: map[uint64]bool{}, settled: map[uint64]string{}}
	a := newAcks(f, 1, 1000, nil)
	const n = 1000
	f.mu.Lock() // the writer waits, and the rest gathers
	for tag := uint64(1); tag <= n; tag++ {
		f.open[tag] = true
		a.add(tag, &broker.Delivery{})
	}
	for tag := uint64(1); tag <= n; tag++ {
		a.decide(tag, 1, false)
	}
	f.mu.Unlock()
	for w := a.waiting(true); w != nil; w = a.waiting(true) {
		<-w
	}
	a.close()
	if f.frames > 2 || len(f.settled) != n || f.err != nil {
		t.Fatalf("%d frames, %d settled, %v", f.frames, len(f.settled), f.err)
	}
}

// TestAcksGather: the first acknowledgement after a while leaves at once, and
// those that follow it leave together: when there are enough, when ackLinger has
// passed, or when someone waits for them; a requeue does not wait, and nothing
// does with a prefetch of 1.
func TestAcksGather(t *testing.T) {
	const prefetch = 80 // full of 10
	for _, c := range []struct {
		name     string
		prefetch int
		decide   func(a *acks)
		frames   int // at once, after that of the first
		later    int // and after ackLinger
	}{
		{name: "too few", prefetch: prefetch, decide: func(a *acks) { ackTags(a, 2, 10) }, later: 1},
		{name: "enough", prefetch: prefetch, decide: func(a *acks) { ackTags(a, 2, 11) }, frames: 1, later: 1},
		{name: "waited for", prefetch: prefetch, decide: func(a *acks) {
			ackTags(a, 2, 4)
			for w := a.waiting(false); w != nil; w = a.waiting(false) {
				<-w
			}
		}, frames: 1, later: 1},
		{name: "requeued", prefetch: prefetch, decide: func(a *acks) {
			ackTags(a, 2, 3)
			a.decide(4, 1, true)
		}, frames: 2, later: 2},
		{name: "closed", prefetch: prefetch, decide: func(a *acks) {
			ackTags(a, 2, 3)
			a.close()
		}, frames: 1, later: 1},
		{name: "prefetch of 1", prefetch: 1, decide: func(a *acks) { ackTags(a, 2, 2) }, frames: 1, later: 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakeAcker{open: map[uint64]bool{}, settled: map[uint64]string{}}
				a := newAcks(f, 1, c.prefetch, nil)
				for tag := uint64(1); tag <= prefetch; tag++ {
					f.open[tag] = true
					a.add(tag, &broker.Delivery{})
				}
				ackTags(a, 1, 1)
				synctest.Wait()
				if n := f.count(); n != 1 {
					t.Errorf("%d frames for the first, want 1 at once", n)
				}
				c.decide(a)
				synctest.Wait()
				if n := f.count() - 1; n != c.frames {
					t.Errorf("%d frames at once, want %d", n, c.frames)
				}
				<-time.After(ackLinger)
				synctest.Wait()
				if n := f.count() - 1; n != c.later || f.err != nil {
					t.Errorf("%d frames after %v, want %d: %v", n, ackLinger, c.later, f.err)
				}
				a.close()
			})
		})
	}
}

func ackTags(a *acks, from, to uint64) {
	for tag := from; tag <= to; tag++ {
		a.decide(tag, 1, false)
	}
}

func (f *fakeAcker) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.frames
}
