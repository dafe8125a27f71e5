// Package clock reads the time for paths on which time.Now costs as much as
// the rest of the work: a monotonic reading on top of a wall time that is
// renewed every tenth of a second, so that a step of the wall clock shows
// after that. In a bubble of testing/synctest it is the bubble's time, exactly.
package clock

import (
	"sync/atomic"
	"time"
)

const renewal = 100 * time.Millisecond

type anchor struct {
	at time.Time
	ns int64 // at, as Unix time
}

var last atomic.Pointer[anchor]

// Now returns the current Unix time in nanoseconds.
func Now() int64 {
	if a := last.Load(); a != nil {
		if d := time.Since(a.at); d >= 0 && d < renewal {
			return a.ns + int64(d)
		}
	}
	t := time.Now()
	a := &anchor{at: t, ns: t.UnixNano()}
	last.Store(a)
	return a.ns
}
