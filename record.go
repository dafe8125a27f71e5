package broker

import (
	"sync/atomic"
	"time"
)

// A Record is an entry of a [Stream]. It is kept at 112 bytes, since copying
// it is the cost of reading. A nil Value without Tombstone is an empty value.
type Record struct {
	Key, Value []byte
	Headers    Headers
	Partition  int32 // where it was read, or, with Pin, where it goes
	Pin        bool  // publish to Partition; otherwise Key selects
	Tombstone  bool  // deletes Key under compaction; Value must be empty

	attempt    uint16 // set by the Processor; in what would be padding
	ms         int64  // UnixMilli+1, so that zero means unset
	offset     Offset
	assignment *Assignment
}

// Time returns when the record happened or was accepted, to the millisecond,
// or the zero time if it was not set yet.
func (r *Record) Time() time.Time {
	if r.ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(r.ms - 1)
}

// SetTime sets the time that the record is published with; the zero time
// leaves it to the broker or the client.
func (r *Record) SetTime(t time.Time) {
	if t.IsZero() {
		r.ms = 0
		return
	}
	r.ms = t.UnixMilli() + 1
}

// Offset returns the record's position in its partition.
func (r *Record) Offset() Offset { return r.offset }

// Assignment returns the hold on the partition under which a group's member
// read the record, or nil for records read without a group.
func (r *Record) Assignment() *Assignment { return r.assignment }

// Bind sets what only the broker knows. For adapters.
func (r *Record) Bind(o Offset, a *Assignment) { r.offset, r.assignment = o, a }

// An Assignment is one member's hold on one partition, from assigned to
// revoked or lost. Adapters make a new one for every assignment and stamp each
// record with it, so that work for a hold that is gone can be told apart.
type Assignment struct {
	Stream, Group string
	Partition     int32
	// Identity tells the stream apart from one of the same name in another
	// cluster, or deleted and created again (in Kafka: cluster id and topic
	// id). Empty: the broker has no such thing.
	Identity string
	// State is the adapter's own; programs leave it alone.
	State any
	ended atomic.Bool
}

// End marks the hold as gone; it may be called again.
func (a *Assignment) End() { a.ended.Store(true) }

// Ended tells whether the hold is gone. Of a nil Assignment it is false.
func (a *Assignment) Ended() bool { return a != nil && a.ended.Load() }
