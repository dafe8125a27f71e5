package streamwire

import (
	"errors"
	"fmt"
)

// A Code is the broker's answer to a request. It is an error unless OK.
type Code uint16

// The protocol's response codes that a caller may tell apart.
const (
	OK                     Code = 1
	StreamDoesNotExist     Code = 2
	StreamAlreadyExists    Code = 5
	StreamNotAvailable     Code = 6
	MechanismNotSupported  Code = 7
	AuthenticationFailure  Code = 8
	SASLError              Code = 9
	AuthenticationLoopback Code = 11
	VirtualHostAccess      Code = 12
	FrameTooLarge          Code = 14
	AccessRefused          Code = 16
	PreconditionFailed     Code = 17
	PublisherDoesNotExist  Code = 18
	NoOffset               Code = 19
	unknownCode                 = "unknown response code"
)

var codeNames = map[Code]string{
	OK: "ok", StreamDoesNotExist: "stream does not exist", 3: "subscription id already exists",
	4: "subscription id does not exist", StreamAlreadyExists: "stream already exists", StreamNotAvailable: "stream not available",
	MechanismNotSupported: "SASL mechanism not supported", AuthenticationFailure: "authentication failure", SASLError: "SASL error",
	10: "SASL challenge", AuthenticationLoopback: "authentication failure, loopback only", VirtualHostAccess: "virtual host access failure",
	13: "unknown frame", FrameTooLarge: "frame too large", 15: "internal error", AccessRefused: "access refused",
	PreconditionFailed: "precondition failed", PublisherDoesNotExist: "publisher does not exist", NoOffset: "no offset",
}

// Error implements error.
func (c Code) Error() string {
	if s, ok := codeNames[c]; ok {
		return fmt.Sprintf("%s (%d)", s, uint16(c))
	}
	return fmt.Sprintf("%s (%d)", unknownCode, uint16(c))
}

var (
	// ErrClosed: the connection is gone; what was asked on it may have happened.
	ErrClosed = errors.New("the stream connection is closed")
	// ErrFull: the connection has as many publishers or subscriptions as it can.
	ErrFull = errors.New("the stream connection is full")

	errMalformed = errors.New("malformed frame")
)
