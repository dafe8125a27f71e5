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
// functions are called from many goroutines at once and must not block; a panic
// in one is logged and changes nothing else.
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

// observe logs o where it is worth a line, and tells Observe.
func (b *observer) observe(ctx context.Context, o Observation) {
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
	b.tell(ctx, o)
}

// tell tells Observe alone: another line says it.
func (b *observer) tell(ctx context.Context, o Observation) {
	if b.fn == nil {
		return
	}
	o.Source, o.Group = b.source, b.group
	if err := b.call(ctx, o); err != nil {
		b.panicked(ctx, "Observe panicked", o.Incoming, err)
	}
}

func (b *observer) call(ctx context.Context, o Observation) (err error) {
	defer recovered(&err)
	b.fn(ctx, o)
	return nil
}

// retryAfter is p.After, or the wait without p.Delay where that panics.
func (b *observer) retryAfter(ctx context.Context, p *RetryPolicy, in Incoming, attempt int, err error) time.Duration {
	d, panicked := p.tryAfter(attempt, err)
	if panicked != nil {
		b.panicked(ctx, "Retry.Delay panicked", in, panicked)
		return p.exponential(attempt)
	}
	return d
}

// panicked logs the panic of a function beside the handler.
func (b *observer) panicked(ctx context.Context, msg string, in Incoming, err error) {
	o := Observation{Incoming: in, Err: err}
	b.log.LogAttrs(ctx, slog.LevelError, msg, o.attrs()...)
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
		// Only of the panic itself, not of one wrapped in it, and once: a dead
		// letter's was logged when it happened.
		if p, ok := o.Err.(*PanicError); ok && o.Kind != ObservedDeadLettered { //nolint:errorlint // see above
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
