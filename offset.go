package broker

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unique"
)

// An Offset is a position in a partition: opaque, ordered and printable; an
// integer in Kafka, a long decimal elsewhere. Offsets compare with == too.
type Offset struct {
	n   int64
	big unique.Handle[string] // a decimal beyond int64, without leading zeros
}

var smallOffset unique.Handle[string]

// NewOffset returns the offset n, which must not be negative.
func NewOffset(n int64) Offset { return Offset{n: n} }

// ParseOffset reads what String wrote: decimal digits.
func ParseOffset(s string) (Offset, error) {
	t := strings.TrimLeft(s, "0")
	if s == "" || len(s) > 128 || strings.Trim(s, "0123456789") != "" {
		return Offset{}, fmt.Errorf("%w: offset %.40q: want 1 to 128 decimal digits", ErrInvalid, s)
	}
	if t == "" {
		return Offset{}, nil
	}
	if n, err := strconv.ParseInt(t, 10, 64); err == nil {
		return Offset{n: n}, nil
	}
	return Offset{big: unique.Make(t)}, nil
}

// Compare returns -1, 0 or +1.
func (o Offset) Compare(p Offset) int {
	if o.big == smallOffset && p.big == smallOffset {
		return cmp.Compare(o.n, p.n)
	}
	a, b := o.String(), p.String()
	if c := cmp.Compare(len(a), len(b)); c != 0 {
		return c
	}
	return cmp.Compare(a, b)
}

// Int64 returns the offset as an integer, and whether it is one.
func (o Offset) Int64() (int64, bool) { return o.n, o.big == smallOffset }

// String returns the offset in decimal.
func (o Offset) String() string {
	if o.big == smallOffset {
		return strconv.FormatInt(o.n, 10)
	}
	return o.big.Value()
}

// AppendText appends what String returns to b. Its error is always nil.
func (o Offset) AppendText(b []byte) ([]byte, error) { return o.append(b), nil }

func (o Offset) append(b []byte) []byte {
	if o.big == smallOffset {
		return strconv.AppendInt(b, o.n, 10)
	}
	return append(b, o.big.Value()...)
}

// A PositionKind tells what a Position means.
type PositionKind uint8

// The kinds of Position. PositionDefault is the zero Position: it means what
// the field says that it is used in.
const (
	PositionDefault PositionKind = iota
	PositionEarliest
	PositionLatest
	PositionTime
	PositionOffset
	PositionCommitted
	PositionNow
)

// A Position is a place in a stream's partitions.
type Position struct {
	kind   PositionKind
	offset Offset
	ms     int64
}

// Earliest is the oldest retained record.
func Earliest() Position { return Position{kind: PositionEarliest} }

// Latest is the end: only what is published later is read.
func Latest() Position { return Position{kind: PositionLatest} }

// AtTime is the first record at or after t, to the millisecond; the end where
// there is none.
func AtTime(t time.Time) Position { return Position{kind: PositionTime, ms: t.UnixMilli()} }

// AtOffset is the record at o, or the next one retained by compaction.
func AtOffset(o Offset) Position { return Position{kind: PositionOffset, offset: o} }

// Committed is the group's stored position; for Seek.
func Committed() Position { return Position{kind: PositionCommitted} }

// Now is the end as of the call; for Range.Until and Processor.Until.
func Now() Position { return Position{kind: PositionNow} }

// Kind tells which of the above the position is.
func (p Position) Kind() PositionKind { return p.kind }

// IsZero tells whether the position is the zero value.
func (p Position) IsZero() bool { return p.kind == PositionDefault }

// Time returns the time of AtTime.
func (p Position) Time() time.Time { return time.UnixMilli(p.ms) }

// Offset returns the offset of AtOffset.
func (p Position) Offset() Offset { return p.offset }

// String returns the position in words, for logs and errors.
func (p Position) String() string {
	switch p.kind {
	case PositionEarliest:
		return "earliest"
	case PositionLatest:
		return "latest"
	case PositionTime:
		return p.Time().UTC().Format(time.RFC3339Nano)
	case PositionOffset:
		return "offset " + p.offset.String()
	case PositionCommitted:
		return "committed"
	case PositionNow:
		return "now"
	default:
		return "default"
	}
}
