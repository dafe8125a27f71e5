package broker

import (
	"math/rand/v2"
	"time"
)

// A RetryPolicy tells how long to wait before a failed handler runs again. The
// zero policy waits: 1 s, then twice as long each time, 5 min at most, each
// shortened at random by up to a half so that failures do not come back in step.
type RetryPolicy struct {
	// MaxAttempts is the number of attempts after which the failure is final
	// (as Reject). It needs a dead-letter target, and is not more than the queue
	// is configured with. 0: no limit here; what the queue is configured with
	// holds.
	MaxAttempts int
	Min         time.Duration // after the first attempt; 0: 1 s
	Max         time.Duration // 0: 5 min, or Min if that is longer
	// Delay replaces the exponential wait; attempt counts from 1. A negative
	// result counts as 0. Where it panics in a loop, that is logged and the wait
	// is the exponential one.
	Delay func(attempt int, err error) time.Duration
}

const (
	defaultRetryMin = time.Second
	defaultRetryMax = 5 * time.Minute
)

func (p *RetryPolicy) validate() error {
	switch {
	case p.MaxAttempts < 0:
		return Invalid("Retry.MaxAttempts %d: must not be negative", p.MaxAttempts)
	case p.Max > 0 && p.Min > p.Max:
		return Invalid("Retry.Min %v is longer than Retry.Max %v", p.Min, p.Max)
	}
	if err := validDuration("Retry.Min", p.Min); err != nil {
		return err
	}
	return validDuration("Retry.Max", p.Max)
}

// After returns the wait after the given attempt (from 1), which failed with err.
func (p *RetryPolicy) After(attempt int, err error) time.Duration {
	if p.Delay != nil {
		return min(max(p.Delay(attempt, err), 0), MaxDuration)
	}
	return p.exponential(attempt)
}

// tryAfter is After that turns a panic of Delay into an error.
func (p *RetryPolicy) tryAfter(attempt int, err error) (d time.Duration, panicked error) {
	defer recovered(&panicked)
	return p.After(attempt, err), nil
}

func (p *RetryPolicy) exponential(attempt int) time.Duration {
	d, top := p.Min, p.Max
	if d == 0 {
		d = defaultRetryMin
		if top > 0 {
			d = min(d, top)
		}
	}
	if top == 0 {
		top = max(defaultRetryMax, d)
	}
	for i := 1; i < attempt && d < top; i++ {
		d *= 2
	}
	return jitter(min(d, top))
}

// jitter returns a random duration from d/2 to d.
func jitter(d time.Duration) time.Duration {
	if d < 2 {
		return d
	}
	return d - rand.N(d/2)
}

// connectionRetry is how the loops wait between failed calls to a broker.
var connectionRetry = RetryPolicy{Min: 100 * time.Millisecond, Max: 10 * time.Second}
