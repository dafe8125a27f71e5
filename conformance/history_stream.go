package conformance

import (
	"sync"

	"github.com/queuestream/broker"
)

// A StreamOp is what an event of a [StreamHistory] is about.
type StreamOp uint8

// The operations of a stream's history. Each event names the fields that it
// uses.
const (
	// StreamSend: Who published Entries, in Tx if that is set. With OutcomeOK
	// the entries carry partition and offset where the broker told them.
	StreamSend StreamOp = iota + 1
	// StreamPoll: Who, a member of Group or a reader without one, was handed
	// Entries in that order.
	StreamPoll
	// StreamAssign: the partitions became Who's. Start and End are equal.
	StreamAssign
	// StreamRevoke: the partitions stopped being Who's; from Start to End it
	// still might commit.
	StreamRevoke
	// StreamLost: Who is told that its partitions are gone already.
	StreamLost
	// StreamLeave: Who left the group or was killed: with all its partitions,
	// which others may have from Start on.
	StreamLeave
	// StreamSeek: Who moved its position in Partitions.
	StreamSeek
	// StreamProcess: Who finished the work of Entries.
	StreamProcess
	// StreamCommit: Who stored the positions after Entries.
	StreamCommit
	// StreamCommitted: the stored position of Group in the partition of each
	// entry was seen to be its offset (the next one to read).
	StreamCommitted
	// StreamTxEnd: Who ended Tx, by a commit unless Rollback is set.
	StreamTxEnd
)

// A StreamEntry is one record in a StreamEvent. Values are unique in a
// history, but for a retry of the same send.
type StreamEntry struct {
	Value     string
	Partition int32
	Offset    broker.Offset
	HasOffset bool               // Partition and Offset are known
	Hold      *broker.Assignment // of what a member was handed
}

// A StreamEvent is one operation: it was called at Start and returned at End,
// both positions in the order of the history. A call without an answer by the
// end has OutcomeInfo.
type StreamEvent struct {
	Op            StreamOp
	Who           string // producer, member or reader
	Group         string
	Start, End    int
	Outcome       Outcome
	Entries       []StreamEntry
	Partitions    []int32
	Tx            string
	Rollback      bool // of StreamTxEnd
	ReadCommitted bool // of StreamPoll
}

// A StreamHistory is what was done to one stream and what it answered.
// Recording may be called from many goroutines.
type StreamHistory struct {
	// Idempotent: a value stored more often than sent is a failure.
	Idempotent bool
	// Sparse: records may be missing legally (retention, compaction), so that
	// nothing is called lost, unseen or skipped.
	Sparse bool
	// Faulty: faults were injected. A member may hear late that it lost a
	// partition with its connection.
	Faulty bool
	Events []StreamEvent

	mu    sync.Mutex
	clock int
}

// Begin records that an operation is called and returns its index for End.
// Until then its outcome is OutcomeInfo.
func (h *StreamHistory) Begin(e StreamEvent) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clock++
	e.Start, e.End, e.Outcome = h.clock, 0, OutcomeInfo
	h.Events = append(h.Events, e)
	return len(h.Events) - 1
}

// End records that the operation i returned; entries, unless nil, replace
// those that it began with.
func (h *StreamHistory) End(i int, o Outcome, entries []StreamEntry) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clock++
	e := &h.Events[i]
	e.End, e.Outcome = h.clock, o
	if entries != nil {
		e.Entries = entries
	}
}

// Add records an operation that takes no time.
func (h *StreamHistory) Add(e StreamEvent) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clock++
	e.Start, e.End, e.Outcome = h.clock, h.clock, OutcomeOK
	h.Events = append(h.Events, e)
}

// snapshot returns the events so far; those that did not return end last.
func (h *StreamHistory) snapshot() []StreamEvent {
	h.mu.Lock()
	defer h.mu.Unlock()
	events := append([]StreamEvent(nil), h.Events...)
	last := h.clock
	for i := range events {
		last = max(last, events[i].Start, events[i].End)
	}
	for i := range events {
		if events[i].End == 0 {
			events[i].End = last + 1
		}
	}
	return events
}

// entryOf returns the entry of a record that was read.
func entryOf(r *broker.Record) StreamEntry {
	return StreamEntry{Value: string(r.Value), Partition: r.Partition, Offset: r.Offset(), HasOffset: true, Hold: r.Assignment()}
}
