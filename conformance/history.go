package conformance

import (
	"errors"
	"fmt"

	"github.com/queuestream/broker"
)

// An Outcome is what became of a call in a history.
type Outcome uint8

// The outcomes of a call. A time-out or a cancelled call is OutcomeInfo: it may
// or may not have happened.
const (
	OutcomeInfo Outcome = iota
	OutcomeOK
	OutcomeFail
)

// String returns "info", "ok" or "fail".
func (o Outcome) String() string {
	switch o {
	case OutcomeOK:
		return "ok"
	case OutcomeFail:
		return "fail"
	}
	return "info"
}

// outcomeOf tells what an error says about whether the call happened.
func outcomeOf(err error) Outcome {
	switch {
	case err == nil:
		return OutcomeOK
	case errors.Is(err, broker.ErrUnknownOutcome):
		return OutcomeInfo
	}
	return OutcomeFail
}

// A Violation is a verdict of a checker on a history.
type Violation struct {
	Verdict string `json:"verdict"` // "lost", "phantom", "reordered in group", …
	Detail  string `json:"detail"`  // what shows it
}

// String returns "verdict: detail".
func (v Violation) String() string { return v.Verdict + ": " + v.Detail }

func violation(verdict, format string, args ...any) Violation {
	return Violation{Verdict: verdict, Detail: fmt.Sprintf(format, args...)}
}
