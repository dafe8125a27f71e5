package broker

import (
	"context"
	"log/slog"
	"time"
)

// An ObservationKind tells what was observed.
type ObservationKind uint8

// What a Worker or a Processor observes.
const (
	ObservedHandled         ObservationKind = iota + 1 // a handler returned; Err is its error
	ObservedSettled                                    // a verdict was carried out; Verdict says which
	ObservedSettleError                                // a verdict failed; it is tried again unless GivenUp
	ObservedLeaseLost                                  // a delivery's lease passed or its connection died
	ObservedExtendError                                // a lease could not be extended; it is tried again
	ObservedUnsupported                                // the queue cannot do what Verdict asks; a lesser one follows
	ObservedReceiveError                               // Receive failed; it is tried again
	ObservedCommitted                                  // Count records were committed
	ObservedCommitError                                // a commit failed; it is tried again
	ObservedDeadLettered                               // a record went to its dead-letter target; Err is the cause
	ObservedDeadLetterError                            // it could not; that is tried again
	ObservedRevoked                                    // a partition is being handed over, after its drain
	ObservedLost                                       // a partition is gone; what was not committed is done again elsewhere
	ObservedPanic                                      // a handler panicked; Err is a *PanicError
)

var observationNames = [...]string{
	ObservedHandled: "handled", ObservedSettled: "settled", ObservedSettleError: "settle failed",
	ObservedLeaseLost: "lease lost", ObservedExtendError: "extending the lease failed",
	ObservedUnsupported: "unsupported by the queue", ObservedReceiveError: "receive failed",
	ObservedCommitted: "committed", ObservedCommitError: "commit failed",
	ObservedDeadLettered: "dead-lettered", ObservedDeadLetterError: "dead-lettering failed",
	ObservedRevoked: "partition revoked", ObservedLost: "partition lost", ObservedPanic: "handler panicked",
}

// String returns the kind in words.
func (k ObservationKind) String() string {
	if int(k) < len(observationNames) && observationNames[k] != "" {
		return observationNames[k]
	}
	return "unknown"
}

// An Observation is one event in the life of a Worker or a Processor. Observe
// functions are called from many goroutines at once and must not block.
type Observation struct {
	Kind      ObservationKind
	Source    string   // the queue or the stream
	Group     string   // the consumer group, of streams
	Incoming  Incoming // the *Delivery or *Record concerned; nil if none is
	Verdict   Verdict  // of what is settled
	Partition int32    // of ObservedRevoked, ObservedLost, ObservedCommitted and ObservedCommitError
	Count     int      // messages or records concerned
	Duration  time.Duration
	GivenUp   bool // of ObservedSettleError: not tried again
	Err       error
}

// observer tells Observe and the logger.
type observer struct {
	source, group string
	fn            func(context.Context, Observation)
	log           *slog.Logger
}

func newObserver(source, group string, fn func(context.Context, Observation), log *slog.Logger) observer {
	if log == nil {
		log = slog.Default()
	}
	attrs := []any{slog.String("source", source)}
	if group != "" {
		attrs = append(attrs, slog.String("group", group))
	}
	return observer{source: source, group: group, fn: fn, log: log.With(attrs...)}
}

// now returns the time, if anyone will ask how long something took.
func (b *observer) now() time.Time {
	if b.fn == nil {
		return time.Time{}
	}
	return time.Now()
}

func since(t time.Time) time.Duration {
	if t.IsZero() {
		return 0
	}
	return time.Since(t)
}

func (b *observer) observe(ctx context.Context, o Observation) {
	o.Source, o.Group = b.source, b.group
	level := slog.LevelDebug
	switch o.Kind {
	case ObservedHandled:
		if o.Err != nil {
			level = slog.LevelInfo
		}
	case ObservedPanic:
		level = slog.LevelError
	case ObservedSettled, ObservedCommitted, ObservedRevoked:
	default:
		level = slog.LevelWarn
	}
	if (level > slog.LevelDebug || o.Err != nil) && b.log.Enabled(ctx, level) {
		b.log.LogAttrs(ctx, level, o.Kind.String(), o.attrs()...)
	}
	if b.fn != nil {
		b.fn(ctx, o)
	}
}

func (o *Observation) attrs() []slog.Attr {
	var attrs []slog.Attr
	if o.Incoming != nil {
		info := o.Incoming.Info()
		attrs = append(attrs, slog.String("id", info.ID), slog.Int("attempt", info.Attempt))
	}
	if o.Verdict.Kind != 0 {
		attrs = append(attrs, slog.String("verdict", o.Verdict.Kind.String()))
	}
	if o.Count > 1 {
		attrs = append(attrs, slog.Int("count", o.Count))
	}
	if o.Err != nil {
		attrs = append(attrs, slog.String("error", o.Err.Error()))
		if p, ok := o.Err.(*PanicError); ok { //nolint:errorlint // only the panic itself, not one wrapped in it
			attrs = append(attrs, slog.String("stack", string(p.Stack)))
		}
	}
	return attrs
}

// A BatchSizer is a [Publisher] whose concurrent calls share requests, and that
// counts how full those are.
type BatchSizer interface {
	// BatchSizes returns how many requests were sent, repeated ones included: at
	// index n those of n messages.
	BatchSizes() []int64
}
