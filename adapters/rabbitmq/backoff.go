package rabbitmq

import (
	"context"
	"math/rand/v2"
	"time"
)

// A backoff gives the jittered waits between attempts, which double from
// Options.MinBackoff to Options.MaxBackoff.
type backoff struct{ min, max, next time.Duration }

func newBackoff(o *Options) *backoff {
	return &backoff{min: o.MinBackoff, max: o.MaxBackoff, next: o.MinBackoff}
}

// backoffReset is how long something must have worked for the waits to begin anew.
const backoffReset = time.Second

// after returns how long to wait after an attempt that worked for lived.
func (b *backoff) after(lived time.Duration) time.Duration {
	if lived > backoffReset {
		b.next = b.min
	}
	d := b.next/2 + rand.N(b.next/2+1)
	b.next = min(2*b.next, b.max)
	return d
}

// sleep waits after an attempt that began at a time, until ctx ends.
func (b *backoff) sleep(ctx context.Context, began time.Time) {
	sleep(ctx, b.after(time.Since(began)))
}
