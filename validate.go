package broker

import (
	"math"
	"time"
)

// MaxDuration bounds every duration that a program hands in (100 years), so
// that adding it to a time cannot overflow.
const MaxDuration = 100 * 365 * 24 * time.Hour

func validDuration(what string, d time.Duration) error {
	if d < 0 || d > MaxDuration {
		return Invalid("%s %v: want 0 to %v", what, d, MaxDuration)
	}
	return nil
}

// A setting is a duration that a program has set.
type setting struct {
	name string
	d    time.Duration
}

func validDurations(all ...setting) error {
	for _, s := range all {
		if err := validDuration(s.name, s.d); err != nil {
			return err
		}
	}
	return nil
}

// validHandlers checks what a Worker and a Processor share: one and batch tell
// which handlers are set.
func validHandlers(one, batch bool, concurrency, maxBatch int, maxWait time.Duration) error {
	switch {
	case !one && !batch:
		return Invalid("Handler is nil")
	case one && batch:
		return Invalid("both Handler and BatchHandler are set: want one")
	case concurrency < 0:
		return Invalid("Concurrency %d: must not be negative", concurrency)
	case maxBatch < 0:
		return Invalid("MaxBatch %d: must not be negative", maxBatch)
	case one && (maxBatch > 0 || maxWait > 0):
		return Invalid("MaxBatch and MaxWait need a BatchHandler")
	}
	return validDuration("MaxWait", maxWait)
}

// ValidateMessage returns nil if a queue with the capabilities c honours every
// field of m, otherwise an error that wraps ErrInvalid, ErrUnsupported or
// ErrTooLarge (body, headers and content type counted in bytes; an adapter
// whose broker counts otherwise checks again) and names the field.
func ValidateMessage(m *Message, c *QueueCapabilities) error {
	if err := validDuration("Delay", m.Delay); err != nil {
		return err
	}
	if err := validDuration("TTL", m.TTL); err != nil {
		return err
	}
	switch {
	case m.Priority < 0 || m.Priority > math.MaxUint8:
		return Invalid("Priority %d: want 0 to 255", m.Priority)
	case m.GroupID != "" && !c.Groups:
		return Unsupported("GroupID: the queue has no groups")
	case m.DedupID != "" && !c.Dedup:
		return Unsupported("DedupID: the queue does not deduplicate by id")
	case m.Delay > 0 && !c.Delay:
		return Unsupported("Delay: the queue has no delay per message")
	case c.MaxDelay > 0 && m.Delay > c.MaxDelay:
		return Unsupported("Delay %v: the longest is %v", m.Delay, c.MaxDelay)
	case m.TTL > 0 && !c.TTL:
		return Unsupported("TTL: the queue has no time to live per message")
	case m.Priority > c.MaxPriority:
		return Unsupported("Priority %d: the highest is %d", m.Priority, c.MaxPriority)
	case len(m.Headers) > 0 && !c.Headers:
		return Unsupported("Headers: the queue has none")
	}
	if err := validateHeaders(m.Headers); err != nil {
		return err
	}
	if n := m.Size(); c.MaxBytes > 0 && n > c.MaxBytes {
		return tooLarge(n, c.MaxBytes)
	}
	return nil
}

// ValidateRecord does for a Record what ValidateMessage does for a Message.
func ValidateRecord(r *Record, c *StreamCapabilities) error {
	switch {
	case r.Tombstone && len(r.Value) > 0:
		return Invalid("Tombstone with a Value of %d bytes: want none", len(r.Value))
	case r.Tombstone && !c.Tombstones:
		return Unsupported("Tombstone: the stream has none")
	case r.Tombstone && len(r.Key) == 0:
		return Invalid("Tombstone without a Key")
	case r.Pin && r.Partition < 0:
		return Invalid("Partition %d: must not be negative", r.Partition)
	case r.ms != 0 && !c.Timestamps:
		return Unsupported("SetTime: the stream sets the time itself")
	case len(r.Headers) > 0 && !c.Headers:
		return Unsupported("Headers: the stream has none")
	}
	if err := validateHeaders(r.Headers); err != nil {
		return err
	}
	if n := r.Size(); c.MaxBytes > 0 && n > c.MaxBytes {
		return tooLarge(n, c.MaxBytes)
	}
	return nil
}

func validateHeaders(h Headers) error {
	for i := range h {
		if h[i].Key == "" {
			return Invalid("Headers[%d]: the key is empty", i)
		}
	}
	return nil
}

func tooLarge(n, limit int) error {
	return &SizeError{Size: n, Limit: limit}
}

// A SizeError tells by how much a message is too large; it wraps ErrTooLarge.
type SizeError struct{ Size, Limit int } // bytes; Limit 0: unknown

// Size returns the bytes of body, headers and content type.
func (m *Message) Size() int { return len(m.Body) + m.Headers.Size() + len(m.ContentType) }

// Size returns the bytes of key, value and headers.
func (r *Record) Size() int { return len(r.Key) + len(r.Value) + r.Headers.Size() }

// ValidateDeclaredName checks what every broker asks of a name: 1 to 255 bytes,
// no control characters. Adapters check their broker's own rules on top.
func ValidateDeclaredName(name string) error {
	if name == "" || len(name) > 255 {
		return Invalid("name of %d bytes: want 1 to 255", len(name))
	}
	for i, r := range name {
		if r < ' ' || r == 0x7f || r == '\uFFFD' {
			return Invalid("name %q: character %q at byte %d is not allowed", name, r, i)
		}
	}
	return nil
}

// ValidateConsumer checks the options of a consumer against the queue's
// capabilities; nil options are valid.
func ValidateConsumer(o *ConsumerOptions, c *QueueCapabilities) error {
	if o == nil {
		return nil
	}
	if err := validDuration("Lease", o.Lease); err != nil {
		return err
	}
	switch {
	case o.Prefetch < 0:
		return Invalid("Prefetch %d: must not be negative", o.Prefetch)
	case o.Lease > 0 && !c.Lease:
		return Unsupported("Lease: deliveries of the queue have none")
	case c.MaxLease > 0 && o.Lease > c.MaxLease:
		return Unsupported("Lease %v: the longest is %v", o.Lease, c.MaxLease)
	}
	return nil
}

// ValidateVerdict checks a verdict against the queue's capabilities; a
// Settler calls it before anything is sent.
func ValidateVerdict(v *Verdict, c *QueueCapabilities) error {
	if err := validDuration("delay", v.Delay); err != nil {
		return err
	}
	if err := validDuration("lease", v.Lease); err != nil {
		return err
	}
	switch v.Kind {
	case VerdictAck:
	case VerdictNack:
		switch {
		case v.Delay > 0 && !c.NackDelay:
			return Unsupported("nack with a delay")
		case c.MaxNackDelay > 0 && v.Delay > c.MaxNackDelay:
			return Unsupported("nack with a delay of %v: the longest is %v", v.Delay, c.MaxNackDelay)
		case v.Snooze && !c.Snooze:
			return Unsupported("snooze: every delivery counts as an attempt")
		}
	case VerdictReject:
		if !c.Reject {
			return Unsupported("reject: no dead-letter queue is known; set QueueOptions.DeadLetter")
		}
	case VerdictExtend:
		switch {
		case !c.Lease:
			return Unsupported("extend: deliveries have no lease")
		case c.MaxLease > 0 && v.Lease > c.MaxLease:
			return Unsupported("extend by %v: the longest is %v", v.Lease, c.MaxLease)
		}
	default:
		return Invalid("verdict kind %d", v.Kind)
	}
	return nil
}

// ValidateQueueOptions checks what opening a queue is asked for; c are the
// capabilities that the handle will have.
func ValidateQueueOptions(o *QueueOptions, c QueueCapabilities) error {
	if o == nil {
		return nil
	}
	switch {
	case o.MaxAttempts < 0:
		return Invalid("MaxAttempts %d: must not be negative", o.MaxAttempts)
	case o.MaxAttempts > 0 && !c.Reject:
		return Invalid("MaxAttempts %d without a DeadLetter queue", o.MaxAttempts)
	}
	return c.Satisfies(o.Require)
}
