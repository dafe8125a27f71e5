package broker_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/brokertest"
)

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

func messages(n int) []broker.Message {
	ms := make([]broker.Message, n)
	for i := range ms {
		ms[i] = broker.Message{ID: strconv.Itoa(i), Body: fmt.Appendf(nil, "message %d", i)}
	}
	return ms
}

// start runs a Runner and returns a function that stops it and returns its error.
func start(t *testing.T, r broker.Runner) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	return func() error {
		cancel()
		return <-done
	}
}

func TestWorkerAcksEachOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := brokertest.NewQueue("jobs", messages(1000)...)
		var handled atomic.Int64
		w := &broker.Worker{Queue: q, Logger: quiet, Handler: func(context.Context, *broker.Delivery) error {
			handled.Add(1)
			return nil
		}}
		stop := start(t, w)
		synctest.Wait()
		if err := w.Ready(); err != nil {
			t.Errorf("Ready: %v", err)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		s := w.Stats()
		if handled.Load() != 1000 || s.Acked != 1000 || s.Held != 0 || len(q.Waiting()) != 0 {
			t.Errorf("handled %d, stats %+v, waiting %d", handled.Load(), s, len(q.Waiting()))
		}
	})
}

func TestWorkerVerdicts(t *testing.T) {
	boom := errors.New("boom")
	for _, tc := range []struct {
		name     string
		err      error
		want     broker.Verdict
		wantGone bool
	}{
		{"nil acks", nil, broker.Verdict{Kind: broker.VerdictAck}, true},
		{"reject", broker.Reject(boom), broker.Verdict{Kind: broker.VerdictReject, Reason: "boom"}, true},
		{"retry after", broker.RetryAfter(time.Minute, boom), broker.Verdict{Kind: broker.VerdictNack, Delay: time.Minute}, false},
		{"snooze", broker.Snooze(time.Minute), broker.Verdict{Kind: broker.VerdictNack, Delay: time.Minute, Snooze: true}, false},
		{"wrapped", fmt.Errorf("wrapped: %w", broker.RetryAfter(2*time.Minute, boom)), broker.Verdict{Kind: broker.VerdictNack, Delay: 2 * time.Minute}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				q := brokertest.NewQueue("jobs", messages(1)...)
				w := &broker.Worker{Queue: q, Logger: quiet, Handler: func(context.Context, *broker.Delivery) error { return tc.err }}
				stop := start(t, w)
				synctest.Wait()
				if got, ok := q.Recorder.Settled("0"); !ok || got != tc.want {
					t.Errorf("verdict %+v, %v; want %+v", got, ok, tc.want)
				}
				if err := stop(); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}
