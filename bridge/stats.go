package bridge

import (
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/queuestream/broker"
)

// An EventKind tells what became of a record.
type EventKind string

// The kinds. Every record ends once as enqueued, filtered, parked or skipped.
const (
	Enqueued EventKind = "enqueued"
	Filtered EventKind = "filtered"
	Parked   EventKind = "parked"  // confirmed in the dead-letter queue
	Skipped  EventKind = "skipped" // poison, dropped by policy
	Retried  EventKind = "retried" // one try failed, another follows
	Blocked  EventKind = "blocked" // poison, tried again by policy block_key
)

// An Event is what Route.Observe gets.
type Event struct {
	Route     string
	Kind      EventKind
	Record    *broker.Record // valid during the call
	Took      time.Duration  // of this try
	Duplicate bool           // enqueued: the queue had it already
	Err       error
}

// Stats are a route's numbers since it was made.
type Stats struct {
	In         int64 // records taken up; one that is read again counts again
	Enqueued   int64
	Filtered   int64
	Parked     int64
	Skipped    int64
	Retried    int64 // tries that failed and were repeated, by the queue's client too where it tells
	Duplicates int64 // enqueued, and suppressed by the queue, as far as it tells: SQS does not
	Claimed    int64 // bodies put into the blob store

	// BatchSizes is how many requests the target queues were sent, at index n
	// those of n tasks; nil where they do not tell.
	BatchSizes []int64

	WindowRecords int           // in hand or done beyond the commit
	WindowAge     time.Duration // of the oldest of them
	Paused        bool
	Halted        error // why the route ended, if it did
}

// coordinates name a record of the source. A record that goes to another
// member while it fails is not seen again here: little of it is to stay.
type coordinates struct {
	partition int32
	offset    broker.Offset
}

type counters struct {
	enqueued, filtered, parked, skipped, retried, duplicates, claimed atomic.Int64
}

// state is what a running route keeps.
type state struct {
	count counters

	mu        sync.Mutex
	processor *broker.Processor
	received  int64 // by processors before it
	paused    bool
	halted    error
	failures  map[coordinates]int // tries that failed for an unknown reason
	ended     map[held]bool       // behind one that had not
	endedRoom int                 // how many of them cause a sweep
	remembers atomic.Bool         // failures or ended may hold something

	targets sync.Map // that TargetFor chose: broker.Queue → nil
}

// Stats returns the route's numbers. It may be called at any time.
func (rt *Route) Stats() Stats {
	c := &rt.count
	s := Stats{
		Enqueued: c.enqueued.Load(), Filtered: c.filtered.Load(),
		Parked: c.parked.Load(), Skipped: c.skipped.Load(), Retried: c.retried.Load(),
		Duplicates: c.duplicates.Load(), Claimed: c.claimed.Load(),
	}
	rt.ofQueues(&s)
	rt.mu.Lock()
	defer rt.mu.Unlock()
	s.Paused, s.Halted, s.In = rt.paused, rt.halted, rt.received
	if rt.processor != nil {
		now := rt.processor.Stats()
		s.In += now.Received
		for _, p := range now.Partitions {
			s.WindowRecords += p.Window
			s.WindowAge = max(s.WindowAge, p.OldestAge)
		}
	}
	return s
}

// A retrier is a queue whose client tries again by itself, and counts that.
type retrier interface{ Retries() int64 }

// ofQueues adds what the queues know.
func (rt *Route) ofQueues(s *Stats) {
	retries := func(q any) {
		if r, ok := broker.As[retrier](q); ok {
			s.Retried += r.Retries()
		}
	}
	add := func(q any) {
		retries(q)
		b, ok := broker.As[broker.BatchSizer](q)
		if !ok {
			return
		}
		for n, count := range b.BatchSizes() {
			if n == len(s.BatchSizes) {
				s.BatchSizes = append(s.BatchSizes, 0)
			}
			s.BatchSizes[n] += count
		}
	}
	if rt.Target != nil {
		add(rt.Target)
	}
	rt.targets.Range(func(q, _ any) bool { add(q); return true })
	if rt.DeadLetter != nil {
		retries(rt.DeadLetter)
	}
}

func (rt *Route) event(kind EventKind, r *broker.Record, start time.Time, duplicate bool, err error) {
	c := &rt.count
	switch kind {
	case Enqueued:
		c.enqueued.Add(1)
		if duplicate {
			c.duplicates.Add(1)
		}
	case Filtered:
		c.filtered.Add(1)
	case Parked:
		c.parked.Add(1)
	case Skipped:
		c.skipped.Add(1)
	case Retried, Blocked:
		c.retried.Add(1)
	}
	if rt.Observe != nil {
		rt.Observe(Event{Route: rt.Name, Kind: kind, Record: r, Took: time.Since(start), Duplicate: duplicate, Err: err})
	}
}

// failed counts a try of r that failed for an unknown reason, and returns how
// many there were.
func (rt *Route) failed(r *broker.Record) int {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	rt.remembers.Store(true)
	if rt.failures == nil {
		rt.failures = map[coordinates]int{}
	}
	at := coordinates{r.Partition, r.Offset()}
	rt.failures[at]++
	return rt.failures[at]
}

func (rt *Route) forget(r *broker.Record) {
	if !rt.remembers.Load() {
		return
	}
	rt.mu.Lock()
	defer rt.mu.Unlock()
	delete(rt.failures, coordinates{r.Partition, r.Offset()})
	rt.remembers.Store(len(rt.failures)+len(rt.ended) > 0)
}

// A held record is one of an assignment: it comes again as long as that lasts,
// and is another one afterwards.
type held struct {
	by     *broker.Assignment
	offset broker.Offset
}

// endedRoom is how many records may be remembered before those are looked for
// that need not be.
const endedRoom = 1000

// remember notes records that have ended and may be handled again all the same.
func (rt *Route) remember(rs []*broker.Record) {
	if len(rs) == 0 {
		return
	}
	rt.mu.Lock()
	defer rt.mu.Unlock()
	if rt.ended == nil {
		rt.ended, rt.endedRoom = map[held]bool{}, endedRoom
	}
	for _, r := range rs {
		rt.ended[held{r.Assignment(), r.Offset()}] = true
	}
	if len(rt.ended) > rt.endedRoom {
		rt.sweep()
		rt.endedRoom = max(endedRoom, 2*len(rt.ended))
	}
	rt.remembers.Store(true)
}

// sweep forgets what was committed, and what went to another member. rt.mu is
// held.
func (rt *Route) sweep() {
	committed := map[int32]broker.PartitionStats{}
	for _, p := range rt.processor.Stats().Partitions {
		committed[p.Partition] = p
	}
	maps.DeleteFunc(rt.ended, func(h held, _ bool) bool {
		p := committed[h.by.Partition]
		return h.by.Ended() || p.HasCommitted && h.offset.Compare(p.Committed) <= 0
	})
}

// hasEnded tells whether r is remembered.
func (rt *Route) hasEnded(r *broker.Record) bool {
	if !rt.remembers.Load() {
		return false
	}
	rt.mu.Lock()
	defer rt.mu.Unlock()
	return rt.ended[held{r.Assignment(), r.Offset()}]
}
