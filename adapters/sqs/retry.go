package sqs

import (
	"context"
	"crypto/tls"
	"errors"
	"math/rand/v2"
	"net"
	"time"

	"github.com/queuestream/broker"
)

const (
	firstBackoff = 50 * time.Millisecond
	maxBackoff   = 5 * time.Second
	// controlTries bounds how often a call that opens, declares or describes is
	// tried, so that it fails within seconds while SQS is down. Publishing and
	// settling go on until their context ends.
	controlTries = 5
)

// backoff returns how long to wait after a number of failed tries (from 1):
// doubling from 50 ms to 5 s, of which a random half.
func backoff(tries int) time.Duration {
	d := min(maxBackoff, firstBackoff<<min(max(tries-1, 0), 7))
	return d/2 + rand.N(d/2+1)
}

// pause waits for d or until ctx ends, and tells whether ctx still lives.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// control runs call, an operation outside the data path, with bounded retries.
func control[T any](ctx context.Context, b *Broker, call func(ctx context.Context) (T, error)) (T, error) {
	maybe := false
	for try := 1; ; try++ {
		rctx, cancel := context.WithTimeout(ctx, b.o.RequestTimeout)
		out, err := call(rctx)
		cancel()
		if err == nil {
			return out, nil
		}
		f := b.judge(ctx, err)
		if isUntrusted(err) { // no use to try again so soon
			f = &failure{kind: broker.ErrUnauthorized, err: err}
		}
		maybe = maybe || f.maybe
		if ctx.Err() != nil {
			return out, gaveUp(ctx, f, maybe)
		}
		if !f.retry || try == controlTries {
			return out, f.cause()
		}
		if !pause(ctx, backoff(try)) {
			return out, gaveUp(ctx, f, maybe)
		}
	}
}

// isUntrusted tells whether err is about the server's certificate. Whoever
// opens a queue is to know at once; what runs already goes on trying, since
// certificates lapse and are renewed.
func isUntrusted(err error) bool {
	_, ok := errors.AsType[*tls.CertificateVerificationError](err)
	return ok
}

// neverSent tells whether err says that no connection was made.
func neverSent(err error) bool {
	if _, ok := errors.AsType[*net.DNSError](err); ok || isUntrusted(err) {
		return true
	}
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "dial"
}
