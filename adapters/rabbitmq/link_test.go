package rabbitmq

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"testing"
	"time"
)

// retries are the waits that are logged under a message.
type retries struct {
	slog.Handler
	message string
	waits   chan time.Duration
}

func (r *retries) Handle(_ context.Context, rec slog.Record) error {
	if rec.Message == r.message {
		rec.Attrs(func(a slog.Attr) bool {
			if a.Key == "retry_in" {
				r.waits <- a.Value.Duration()
			}
			return true
		})
	}
	return nil
}
func (r *retries) Enabled(context.Context, slog.Level) bool { return true }
func (r *retries) WithAttrs([]slog.Attr) slog.Handler       { return r }
func (r *retries) WithGroup(string) slog.Handler            { return r }

// TestLinkBackoff: however long it took to connect, a connection that is lost is
// replaced at once.
func TestLinkBackoff(t *testing.T) {
	const refusals = 8
	lost := &retries{message: "connection lost", waits: make(chan time.Duration, 1)}
	dials := 0
	var conn net.Conn
	o, err := (&Options{
		URLs: []string{testURL(t)}, MinBackoff: time.Millisecond, MaxBackoff: time.Hour, Logger: slog.New(lost),
		Dial: func(ctx context.Context, network, address string) (c net.Conn, err error) {
			if dials++; dials <= refusals {
				return nil, errors.New("refused")
			}
			c, err = (&net.Dialer{}).DialContext(ctx, network, address)
			conn = c
			return c, err
		},
	}).withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	l := newLink("test", o)
	defer l.close()
	g, err := l.get(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	if dials != refusals+1 {
		t.Errorf("dialed %d times, want %d", dials, refusals+1)
	}
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	if wait := <-lost.waits; wait > o.MinBackoff {
		t.Errorf("waits %v before it connects again, want %v at most", wait, o.MinBackoff)
	}
	if next, err := l.get(testContext(t)); err != nil || next == g {
		t.Errorf("the same connection, or %v", err)
	}
}
