package containers

import (
	"errors"
	"fmt"
)

// Errors that callers tell apart with errors.Is.
var (
	// ErrUnavailable says that a broker can be neither found in the environment
	// nor started here: there is no container engine, or no image of the broker.
	ErrUnavailable = errors.New("broker unavailable")

	// ErrNotControlled says that a broker was given by an endpoint alone, so
	// that it can be used but not stopped, killed, paused or restarted.
	ErrNotControlled = errors.New("broker is not controlled by this process: its endpoint came without a container")

	// ErrShared says that a broker that other tests use was to be terminated.
	ErrShared = errors.New("broker is shared with other tests: it is not terminated by one of them")
)

// Error is what the functions and methods of this package return: the operation
// that failed, on which broker, and why. It unwraps to Err.
type Error struct {
	Op   string // what was tried: "start", "kill", "build image", ...
	Kind Kind   // the broker, or "" when the operation concerns all of them
	Err  error
}

func (e *Error) Error() string {
	if e.Kind == "" {
		return fmt.Sprintf("containers: %s: %v", e.Op, e.Err)
	}
	return fmt.Sprintf("containers: %s %s: %v", e.Op, e.Kind, e.Err)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// wrap returns err as an *Error, or nil when err is nil. An err that is one
// already is returned as it is: the innermost operation says most.
func wrap(op string, kind Kind, err error) error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		return err
	}
	return &Error{Op: op, Kind: kind, Err: err}
}
