package broker

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// Sentinels. They arrive wrapped in an [*Error]; match them with errors.Is.
var (
	ErrClosed         = errors.New("closed")
	ErrNotFound       = errors.New("not found")
	ErrConflict       = errors.New("exists with another configuration")
	ErrInvalid        = errors.New("invalid")
	ErrUnauthorized   = errors.New("not authorized") // credentials or permissions; not retried
	ErrSettled        = errors.New("already settled")
	ErrLeaseLost      = errors.New("lease lost")
	ErrFenced         = errors.New("fenced")
	ErrOutOfRange     = errors.New("position out of range")
	ErrTooLarge       = errors.New("message too large")
	ErrFull           = errors.New("queue full")
	ErrUnavailable    = errors.New("broker unavailable") // temporary: nothing was sent
	ErrUnknownOutcome = errors.New("outcome unknown")
	ErrTxAborted      = errors.New("transaction aborted")
	ErrShutdown       = errors.New("shutting down")
	ErrUnsupported    = errors.ErrUnsupported
)

// An Error tells what failed, where, and whether trying again may help. Err
// wraps a sentinel, the client's own error, or both.
type Error struct {
	Op        string // publish, receive, ack, nack, reject, extend, commit, declare queue, …
	Adapter   string // memory, kafka, rabbitmq, sqs
	Name      string // of the queue, stream, exchange or group; empty for the broker itself
	Temporary bool   // the same call may succeed later
	Err       error
}

// Error returns "adapter: op name: cause".
func (e *Error) Error() string {
	var b strings.Builder
	if e.Adapter != "" {
		b.WriteString(e.Adapter + ": ")
	}
	b.WriteString(e.Op)
	if e.Name != "" {
		fmt.Fprintf(&b, " %q", e.Name)
	}
	fmt.Fprintf(&b, ": %v", e.Err)
	return b.String()
}

// Unwrap returns Err.
func (e *Error) Unwrap() error { return e.Err }

// Unsupported returns an error that wraps ErrUnsupported and says what is not
// supported and why or what to do instead.
func Unsupported(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrUnsupported}, args...)...)
}

// Invalid returns an error that wraps ErrInvalid and says what is wrong and
// what is allowed.
func Invalid(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrInvalid}, args...)...)
}

// UnknownOutcome returns an error that wraps ErrUnknownOutcome and cause: the request
// may or may not have been carried out.
func UnknownOutcome(cause error) error {
	if cause == nil || errors.Is(cause, ErrUnknownOutcome) {
		return cause
	}
	return fmt.Errorf("%w: %w", ErrUnknownOutcome, cause)
}

// IsTemporary tells whether the same call may succeed later: it asks the
// outermost *Error, and says yes to ErrUnavailable.
func IsTemporary(err error) bool {
	if e, ok := errors.AsType[*Error](err); ok && e.Temporary {
		return true
	}
	return errors.Is(err, ErrUnavailable)
}

// A BatchError names what failed of a batch.
type BatchError struct {
	// Errs has an entry for each member of the batch, nil where it went well.
	Errs []error
}

// NewBatchError returns a *BatchError, or nil if all of errs are nil.
func NewBatchError(errs []error) error {
	for _, err := range errs {
		if err != nil {
			return &BatchError{Errs: errs}
		}
	}
	return nil
}

// Error counts the failures and shows the first.
func (e *BatchError) Error() string {
	n, first := 0, -1
	for i, err := range e.Errs {
		if err != nil {
			if n++; first < 0 {
				first = i
			}
		}
	}
	if first < 0 {
		return "no failure in the batch"
	}
	return fmt.Sprintf("%d of %d failed, first at index %d: %v", n, len(e.Errs), first, e.Errs[first])
}

// Unwrap returns the failures.
func (e *BatchError) Unwrap() []error {
	var errs []error
	for _, err := range e.Errs {
		if err != nil {
			errs = append(errs, err)
		}
	}
	return errs
}

// ErrorAt returns what err says of the member i of a batch: its entry in a
// *BatchError, otherwise err itself, which also holds for a member that the
// *BatchError has no entry for.
func ErrorAt(err error, i int) error {
	if b, ok := errors.AsType[*BatchError](err); ok && i < len(b.Errs) {
		return b.Errs[i]
	}
	return err
}

// errorOf returns what a batch handler's err says of the entry i of n: the
// entry of a *BatchError, also of one with more words around it. A *BatchError
// of another length is about another batch (what the handler published, say),
// and one inside a verdict, a panic or several errors is not all there is to
// say: those fail all n.
func errorOf(err error, i, n int) error {
	for e := err; e != nil; e = errors.Unwrap(e) {
		switch e := e.(type) { //nolint:errorlint // it unwraps by itself, and not everything
		case *BatchError:
			if len(e.Errs) == n {
				return e.Errs[i]
			}
			return err
		case *verdictError, *PanicError:
			return err
		}
	}
	return err
}

// errGoexit is what a function of the program's has failed with that ended its
// goroutine.
var errGoexit = errors.New("the goroutine was ended, as by runtime.Goexit or testing.T.FailNow")

// adapterOf returns the name of the adapter that a handle is of, where it has a
// method Adapter, as what settles a [Delivery] has.
func adapterOf(handle any) string {
	if a, ok := As[interface{ Adapter() string }](handle); ok {
		return a.Adapter()
	}
	return ""
}

// ContextError returns the cause of an ended ctx together with its error, so
// that errors.Is finds both, or nil.
func ContextError(ctx context.Context) error {
	err := ctx.Err()
	if err == nil {
		return nil
	}
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, err) {
		return fmt.Errorf("%w: %w", err, cause)
	}
	return err
}

// Error says how large the message is and what is allowed.
func (e *SizeError) Error() string {
	if e.Limit == 0 {
		return fmt.Sprintf("%v: %d bytes", ErrTooLarge, e.Size)
	}
	return fmt.Sprintf("%v: %d bytes, at most %d", ErrTooLarge, e.Size, e.Limit)
}

// Unwrap returns ErrTooLarge.
func (e *SizeError) Unwrap() error { return ErrTooLarge }
