package broker_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/brokertest"
)

// What a handler does with a record, the first times it gets it.
const (
	quick = iota // nothing, at once
	brief
	slow
	slower
	fails
	panics
	exits
	rejects
	snoozes
	behaviours
)

// What happens while a Processor runs.
const (
	eventPublish = iota
	eventWait
	eventRevoke
	eventLose
	eventStats
	eventPause
	events
)

type processorEvent struct {
	What, Partition, Count int
}

// A processorModel knows what a Processor must do with the records of a stream:
// a record waits for the one before it of its key, however the goroutines share
// the work and whatever happens meanwhile.
type processorModel struct {
	t           *rapid.T
	stream      *brokertest.Stream
	behaviour   []int
	concurrency int

	mu        sync.Mutex
	published int
	keys      map[recordAt]recordAt // of each record, the one before it of its key
	last      map[keyIn]recordAt
	ends      map[int32]int64
	tries     map[recordAt]int
	done      map[recordAt]int
	inKey     map[keyUnder]int
	running   int
}

type recordAt struct{ partition, number int64 }

type keyIn struct {
	partition int32
	key       string
}

type keyUnder struct {
	hold *broker.Assignment
	key  string
}

func (m *processorModel) publish(n int) {
	for range n {
		m.mu.Lock()
		i := m.published
		m.published++
		m.mu.Unlock()
		r := broker.Record{Value: fmt.Append(nil, i)}
		if k := m.behaviour[i%len(m.behaviour)] % 5; k > 0 {
			r.Key = fmt.Append(nil, "key-", (i+k)%7)
		}
		receipt, err := m.stream.Publish(context.Background(), r)
		if err != nil {
			m.t.Fatal(err)
		}
		m.mu.Lock()
		offset, _ := receipt.Offset.Int64()
		at := recordAt{int64(receipt.Partition), offset}
		m.ends[receipt.Partition] = offset + 1
		if len(r.Key) > 0 {
			k := keyIn{receipt.Partition, string(r.Key)}
			if before, ok := m.last[k]; ok {
				m.keys[at] = before
			}
			m.last[k] = at
		}
		m.mu.Unlock()
	}
}

func at(r *broker.Record) recordAt {
	offset, _ := r.Offset().Int64()
	return recordAt{int64(r.Partition), offset}
}

func (m *processorModel) begin(r *broker.Record) (try int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.running++; m.running > m.concurrency {
		m.t.Errorf("%d handlers at once, want at most %d", m.running, m.concurrency)
	}
	if before, ok := m.keys[at(r)]; ok && m.done[before] == 0 {
		m.t.Errorf("%v begun before %v of its key was done", at(r), before)
	}
	if k := (keyUnder{r.Assignment(), string(r.Key)}); len(r.Key) > 0 {
		if m.inKey[k]++; m.inKey[k] > 1 {
			m.t.Errorf("two of key %s at once", r.Key)
		}
	}
	m.tries[at(r)]++
	return m.tries[at(r)]
}

func (m *processorModel) end(r *broker.Record, done bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.running--
	m.inKey[keyUnder{r.Assignment(), string(r.Key)}]--
	if done {
		m.done[at(r)]++
	}
}

func (m *processorModel) handle(_ context.Context, r *broker.Record) (err error) {
	try := m.begin(r)
	defer func() { m.end(r, err == nil) }()
	var i int
	if _, err := fmt.Sscan(string(r.Value), &i); err != nil {
		return err
	}
	b := m.behaviour[i%len(m.behaviour)]
	switch {
	case b == brief:
		spend(300 * time.Microsecond)
	case b == slow:
		spend(3 * time.Millisecond)
	case b == slower:
		spend(40 * time.Millisecond)
	case b == rejects:
		return broker.Reject(errBoom)
	case b == fails && try < 3:
		return errBoom
	case b == panics && try < 2:
		err = errBoom
		panic("boom")
	case b == exits && try < 2:
		err = errBoom
		spend(time.Duration(i%3) * time.Millisecond)
		runtime.Goexit()
	case b == snoozes && try < 2:
		return broker.Snooze(5 * time.Millisecond)
	}
	return nil
}

func (m *processorModel) deadLetter(_ context.Context, r *broker.Record, _ error) error {
	spend(2 * time.Millisecond)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.tries[at(r)]++; m.tries[at(r)]%2 == 0 {
		return errors.New("the dead-letter queue is down")
	}
	m.done[at(r)]++
	return nil
}

// TestProcessorPrograms: whatever handlers and the group do, each record is
// handled, behind those before it of its key and no more at once than allowed,
// and committed; twice only where a partition was lost, or handed over while a
// record was to be tried again.
func TestProcessorPrograms(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		partitions := rapid.IntRange(1, 3).Draw(rt, "partitions")
		// Mostly quick ones: what is not quick ends the handling in place.
		behaviour := rapid.SliceOfN(rapid.OneOf(
			rapid.Just(quick), rapid.Just(quick), rapid.Just(quick), rapid.Just(quick), rapid.IntRange(0, behaviours-1),
		), 1, 60).Draw(rt, "behaviour")
		program := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) processorEvent {
			return processorEvent{
				rapid.IntRange(0, events-1).Draw(rt, "event"),
				rapid.IntRange(0, partitions-1).Draw(rt, "partition"), rapid.IntRange(1, 100).Draw(rt, "count"),
			}
		}), 1, 20).Draw(rt, "program")
		concurrency := rapid.IntRange(1, 4).Draw(rt, "concurrency")
		window := rapid.SampledFrom([]int{0, 8, 100}).Draw(rt, "window")
		observed := rapid.Bool().Draw(rt, "observed")
		synctest.Test(t, func(t *testing.T) {
			m := &processorModel{
				t: rt, stream: brokertest.NewStream("events", partitions), behaviour: behaviour, concurrency: concurrency,
				keys: map[recordAt]recordAt{}, last: map[keyIn]recordAt{}, ends: map[int32]int64{},
				tries: map[recordAt]int{}, done: map[recordAt]int{}, inKey: map[keyUnder]int{},
			}
			m.publish(50)
			p := &broker.Processor{
				Stream: m.stream, Group: "g", Logger: quiet, Handler: m.handle, DeadLetter: m.deadLetter,
				Concurrency: concurrency, MaxWindow: window, Retry: broker.RetryPolicy{Min: time.Millisecond, Max: 10 * time.Millisecond},
			}
			if observed {
				p.Observe = func(context.Context, broker.Observation) {}
			}
			m.run(t, p, program)
		})
	})
}

func (m *processorModel) run(t *testing.T, p *broker.Processor, program []processorEvent) {
	stop := start(t, p)
	synctest.Wait() // it has joined
	lost := false
	for _, e := range program {
		switch part := int32(e.Partition); e.What { //nolint:gosec // small
		case eventPublish:
			m.publish(e.Count)
		case eventWait:
			spend(time.Duration(e.Count) * 100 * time.Microsecond)
		case eventRevoke:
			m.stream.Revoke(t.Context(), "g", part)
			spend(time.Duration(e.Count) * 100 * time.Microsecond)
			m.stream.Assign("g", part)
		case eventLose:
			lost = true
			m.stream.Lose("g", part)
			m.stream.Assign("g", part)
		case eventStats:
			m.checkStats(p)
		case eventPause:
			p.Pause()
			spend(time.Duration(e.Count) * 100 * time.Microsecond)
			p.Resume()
		}
	}
	advance(time.Hour)
	m.checkStats(p)
	if err := stop(); err != nil {
		m.t.Error(err)
	}
	if !lost && len(m.done) != m.published {
		m.t.Errorf("handled %d of %d", len(m.done), m.published)
	}
	retries := slices.Max(m.behaviour) > slower
	for at, n := range m.done {
		if n > 1 && !lost && !retries {
			m.t.Errorf("%v was done %d times", at, n)
		}
	}
	for part, end := range m.ends {
		if n := m.stream.Committed("g", part); n != end {
			m.t.Errorf("partition %d: committed %d of %d", part, n, end)
		}
	}
}

func (m *processorModel) checkStats(p *broker.Processor) {
	s := p.Stats()
	m.mu.Lock()
	defer m.mu.Unlock()
	if s.Handlers > m.concurrency {
		m.t.Errorf("%d handlers", s.Handlers)
	}
	for _, part := range s.Partitions {
		if part.InHand > part.Window {
			m.t.Errorf("%+v", part)
		}
	}
}
