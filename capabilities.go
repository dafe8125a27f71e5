package broker

import (
	"fmt"
	"reflect"
	"strings"
	"time"
)

// QueueCapabilities tell what one queue handle honours. The conformance suite
// tests both directions: what is claimed works, what is not claimed returns
// [ErrUnsupported]. A number is a limit that is meaningful only where its
// comment says so.
type QueueCapabilities struct {
	// Message fields.
	Groups       bool          // GroupID: order and one delivery at a time within a group
	Dedup        bool          // DedupID: stored once within DedupWindow
	ContentDedup bool          // equal bodies are stored once within DedupWindow, without a DedupID
	DedupWindow  time.Duration // of Dedup and ContentDedup
	Delay        bool          // Message.Delay
	MaxDelay     time.Duration // longest Message.Delay; 0: any
	TTL          bool
	MaxPriority  int // highest Message.Priority; 0: priorities are unsupported
	Headers      bool
	MaxBytes     int // largest message as the broker counts it; 0: unknown or unlimited

	// Delivery.
	FIFO         bool          // one consumer receives all messages in the order published
	Lease        bool          // deliveries have a lease; Extend works
	MaxLease     time.Duration // longest lease; 0: any
	NackDelay    bool          // Nack with a delay
	MaxNackDelay time.Duration // longest; 0: any
	Snooze       bool          // Verdict.Snooze: a redelivery that costs no attempt
	Reject       bool          // a dead-letter target is known
	Attempts     bool          // Delivery.Attempt counts every delivery; otherwise it may miss some
	MaxAttempts  int           // deliveries before a message is dead-lettered; 0: no limit
	Prefetch     bool          // ConsumerOptions.Prefetch bounds what the broker hands out ahead

	// Promises.
	Durable    bool // what Publish accepted survives a restart of the broker
	Idempotent bool // a Publish repeated with the same ID after ErrUnknownOutcome stores one copy
	Bounded    bool // a length limit is set: Publish returns ErrFull at it
	Requeue    RequeuePosition
}

// RequeuePosition tells where a message given back is put.
type RequeuePosition uint8

// Where a message goes after Nack without a delay.
const (
	RequeueUnspecified RequeuePosition = iota
	RequeueFront                       // at its old place, before later messages
	RequeueBack                        // behind what is there
)

// StreamCapabilities tell what one stream handle honours; see [QueueCapabilities].
type StreamCapabilities struct {
	Headers      bool
	Tombstones   bool // Record.Tombstone
	Compaction   bool // streams can be declared with Compact
	Timestamps   bool // Record.SetTime is kept; otherwise the broker sets the time
	SeekTime     bool // AtTime
	Transactions bool // Transactional, and ReadCommitted
	Fencing      bool // the broker refuses a commit by a former owner; otherwise only the client does
	ExactLag     bool // Lag counts records exactly; otherwise it is an upper bound
	Offsets      bool // Receipt.Offset is the record's; otherwise only Receipt.Partition is known
	Dedup        bool // a named producer's retries are stored once
	GroupReset   bool // Admin.ResetGroup
	Growth       bool // partitions can be added
	MaxBytes     int  // largest record as the broker counts it; 0: unknown or unlimited
	Durable      bool // as for queues
	Idempotent   bool // a Publish repeated by the client after a lost answer stores one copy
}

// ExchangeCapabilities tell what one exchange handle honours.
type ExchangeCapabilities struct {
	Kind       ExchangeKind
	Unroutable bool // Publish returns ErrNotFound when no queue takes the message
	TopicWords bool // topic patterns with * and # anywhere; otherwise only "#", exact and "prefix.#"
	MatchAny   bool // headers bindings with MatchAny
	Queue      QueueCapabilities
}

// limitOf names the flag without which a limit means nothing.
var limitOf = map[string]string{"MaxDelay": "Delay", "MaxNackDelay": "NackDelay", "MaxLease": "Lease"}

// require returns ErrUnsupported naming every field of want that have lacks.
// Flags must be true, numbers at least as large; 0 in have means no limit for
// the fields that say so.
func require(want, have any) error {
	w, h := reflect.ValueOf(want), reflect.ValueOf(have)
	var missing []string
	for i := range w.NumField() {
		f, wf, hf := w.Type().Field(i), w.Field(i), h.Field(i)
		if wf.IsZero() {
			continue
		}
		ok := false
		switch {
		case wf.Kind() == reflect.Bool:
			ok = hf.Bool()
		case f.Type == reflect.TypeFor[RequeuePosition]():
			ok = wf.Uint() == hf.Uint()
		case wf.CanInt():
			unlimited := hf.IsZero() && f.Name != "MaxPriority" && f.Name != "DedupWindow"
			ok = unlimited || hf.Int() >= wf.Int()
			if flag := limitOf[f.Name]; flag != "" {
				ok = ok && h.FieldByName(flag).Bool()
			}
		}
		if !ok {
			missing = append(missing, fmt.Sprintf("%s %v (has %v)", f.Name, wf.Interface(), hf.Interface()))
		}
	}
	if missing == nil {
		return nil
	}
	return Unsupported("required: %s", strings.Join(missing, ", "))
}

// Satisfies returns nil if c has all that want requires, otherwise an error
// that wraps ErrUnsupported and names what is missing.
func (c QueueCapabilities) Satisfies(want QueueCapabilities) error { return require(want, c) }

// Satisfies returns nil if c has all that want requires, otherwise an error
// that wraps ErrUnsupported and names what is missing.
func (c StreamCapabilities) Satisfies(want StreamCapabilities) error { return require(want, c) }
