package streamwire

import (
	"errors"
	"fmt"
)

// A CodeError is the broker's answer to a request. It is an error unless OK.
type CodeError uint16

// The protocol's response codes that a caller may tell apart.
const (
	OK                        CodeError = 1
	ErrStreamDoesNotExist     CodeError = 2
	ErrStreamAlreadyExists    CodeError = 5
	ErrStreamNotAvailable     CodeError = 6
	ErrMechanismNotSupported  CodeError = 7
	ErrAuthenticationFailure  CodeError = 8
	ErrSASL                   CodeError = 9
	ErrAuthenticationLoopback CodeError = 11
	ErrVirtualHostAccess      CodeError = 12
	ErrFrameTooLarge          CodeError = 14
	ErrAccessRefused          CodeError = 16
	ErrPreconditionFailed     CodeError = 17
	ErrPublisherDoesNotExist  CodeError = 18
	ErrNoOffset               CodeError = 19
)

var codeNames = map[CodeError]string{
	OK: "ok", ErrStreamDoesNotExist: "stream does not exist", 3: "subscription id already exists",
	4: "subscription id does not exist", ErrStreamAlreadyExists: "stream already exists", ErrStreamNotAvailable: "stream not available",
	ErrMechanismNotSupported: "SASL mechanism not supported", ErrAuthenticationFailure: "authentication failure", ErrSASL: "SASL error",
	10: "SASL challenge", ErrAuthenticationLoopback: "authentication failure, loopback only", ErrVirtualHostAccess: "virtual host access failure",
	13: "unknown frame", ErrFrameTooLarge: "frame too large", 15: "internal error", ErrAccessRefused: "access refused",
	ErrPreconditionFailed: "precondition failed", ErrPublisherDoesNotExist: "publisher does not exist", ErrNoOffset: "no offset",
}

// Error implements error.
func (c CodeError) Error() string {
	if s, ok := codeNames[c]; ok {
		return fmt.Sprintf("%s (%d)", s, uint16(c))
	}
	return fmt.Sprintf("unknown response code (%d)", uint16(c))
}

var (
	// ErrClosed says that the connection is gone; what was asked on it may have happened.
	ErrClosed = errors.New("the stream connection is closed")
	// ErrFull says that the connection has as many publishers or subscriptions as it can.
	ErrFull = errors.New("the stream connection is full")

	errMalformed = errors.New("malformed frame")
)
