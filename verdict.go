package broker

import (
	"errors"
	"fmt"
	"runtime/debug"
	"time"
)

// verdictError is what Reject, RetryAfter and Snooze return.
type verdictError struct {
	verdict Verdict
	err     error
}

func (e *verdictError) Error() string {
	switch {
	case e.verdict.Kind == VerdictReject:
		return e.err.Error()
	case e.verdict.Snooze:
		return fmt.Sprintf("snoozed for %v", e.verdict.Delay)
	case e.err == nil:
		return fmt.Sprintf("retry after %v", e.verdict.Delay)
	}
	return fmt.Sprintf("%v (retry after %v)", e.err, e.verdict.Delay)
}

func (e *verdictError) Unwrap() error { return e.err }

// Reject makes a handler's error final: the delivery (the record) is moved to
// the dead-letter target with err's text as the reason, and never retried. A
// nil err counts as one without a reason.
func Reject(err error) error {
	if err == nil {
		err = errors.New("rejected")
	}
	return &verdictError{Verdict{Kind: VerdictReject, Reason: err.Error()}, err}
}

// RetryAfter makes a handler's error redeliver after d, whatever the retry
// policy says; the attempt counts. A negative d counts as 0.
func RetryAfter(d time.Duration, err error) error {
	return &verdictError{Verdict{Kind: VerdictNack, Delay: min(max(d, 0), MaxDuration)}, err}
}

// Snooze redelivers after d and costs no attempt where the queue can do that
// (capability Snooze): the work is not due yet. A negative d counts as 0.
func Snooze(d time.Duration) error {
	return &verdictError{Verdict{Kind: VerdictNack, Delay: min(max(d, 0), MaxDuration), Snooze: true}, nil}
}

// VerdictOf returns the verdict that a handler's error stands for: nil acks,
// Reject, RetryAfter and Snooze are as they say. It reports false for any other
// error: the retry policy decides.
func VerdictOf(err error) (Verdict, bool) {
	if err == nil {
		return Verdict{Kind: VerdictAck}, true
	}
	if v, ok := errors.AsType[*verdictError](err); ok {
		return v.verdict, true
	}
	return Verdict{}, false
}

// A PanicError is what a handler's panic becomes.
type PanicError struct {
	Value any    // that was passed to panic
	Stack []byte // of the goroutine that panicked
}

// Error shows the value, not the stack.
func (e *PanicError) Error() string { return fmt.Sprintf("panic: %v", e.Value) }

// Unwrap returns the value if it is an error.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}

// recovered turns a panic of the function that defers it into *err.
func recovered(err *error) {
	if v := recover(); v != nil {
		*err = &PanicError{Value: v, Stack: debug.Stack()}
	}
}
