package conformance

import (
	"slices"
	"strings"

	"github.com/queuestream/broker"
)

// A Kind is what a case is about: a queue, a stream, or both in turn.
type Kind uint8

// The kinds of case. They are flags.
const (
	Queue Kind = 1 << iota
	Stream
	Both = Queue | Stream
)

// String returns "queue", "stream" or "both".
func (k Kind) String() string {
	switch k {
	case Queue:
		return "queue"
	case Stream:
		return "stream"
	case Both:
		return "both"
	}
	return "none"
}

// A Case is one rule and what checks it.
type Case struct {
	ID     int
	Name   string
	Kind   Kind
	Group  string // the chapter: delivery, ordering, replay, …
	Rule   string // in words
	Source string // who says so: the package broker's doc, a broker's documentation, …

	Queue  *QueueCase  // of the kinds Queue and Both
	Stream *StreamCase // of the kinds Stream and Both
}

// A QueueCase is the queue's half of a Case.
type QueueCase struct {
	// Needs are the capabilities without which Run makes no sense. A queue that
	// lacks one of them must refuse to be opened with Require set to Needs, and
	// whatever Refuse tries.
	Needs broker.QueueCapabilities
	// Config edits how the case's queue is declared; nil: the harness' default.
	// A broker that has no such setting answers ErrUnsupported.
	Config func(c *C, cfg *broker.QueueConfig)
	// Refuse checks that what is not claimed is refused; nil: Require alone.
	Refuse func(c *C, q broker.Queue)
	// Run checks the rule on C.Queue.
	Run func(c *C, q broker.Queue)
}

// A StreamCase is the stream's half of a Case; its fields mean what those of
// QueueCase do.
type StreamCase struct {
	Needs  broker.StreamCapabilities
	Config func(c *C, cfg *broker.StreamConfig)
	Refuse func(c *C, s broker.Stream)
	Run    func(c *C, s broker.Stream)
}

// Cases returns the table in order of ID.
func Cases() []Case {
	queue, stream := queueCases(), streamCases()
	all := slices.Clone(table)
	for i := range all {
		if q, ok := queue[all[i].ID]; ok && all[i].Kind&Queue != 0 {
			all[i].Queue = &q
		}
		if s, ok := stream[all[i].ID]; ok && all[i].Kind&Stream != 0 {
			all[i].Stream = &s
		}
	}
	return all
}

// queueCases returns the queue's half of every case by ID.
func queueCases() map[int]QueueCase {
	all := map[int]QueueCase{}
	for _, group := range []map[int]QueueCase{
		queueDelivery, queueOrdering, queueDedup, queueTiming, queueDead, queueFlow, queueLife, queueInput, queueRouting, queueFaults,
	} {
		for id, q := range group {
			all[id] = q
		}
	}
	return all
}

// Title returns the case's number and name, as in a test's name.
func (c *Case) Title() string { return pad(c.ID) + "-" + c.Name }

func pad(id int) string {
	s := "0" + itoa(id)
	return s[len(s)-2:]
}

// named tells whether pattern names the case: its number or its name.
func (c *Case) named(pattern string) bool {
	return pattern == itoa(c.ID) || strings.EqualFold(pattern, c.Name)
}
