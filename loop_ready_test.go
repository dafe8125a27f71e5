package broker_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/brokertest"
)

// A broker that is back is told by calls that wait again, also where nothing
// comes for hours: what supervises the program must not end it meanwhile.
func TestReadyAgainWithNothingToReceive(t *testing.T) {
	type program interface {
		Run(context.Context) error
		Ready() error
	}
	var down atomic.Bool
	receiveErr := func() error {
		if down.Load() {
			return &broker.Error{Op: "receive", Temporary: true, Err: broker.ErrUnavailable}
		}
		return nil
	}
	programs := map[string]func(t *testing.T) program{
		"Worker": func(*testing.T) program {
			q := brokertest.NewQueue("jobs")
			q.ReceiveErr = receiveErr
			return &broker.Worker{Queue: q, Logger: quiet, Handler: func(context.Context, *broker.Delivery) error { return nil }}
		},
		"Processor": func(*testing.T) program {
			s := brokertest.NewStream("events", 1)
			s.ReceiveErr = receiveErr
			return &broker.Processor{Stream: s, Group: "g", Logger: quiet, Handler: func(context.Context, *broker.Record) error { return nil }}
		},
		"Transformer": func(t *testing.T) program {
			b := openMemory(t)
			return &broker.Transformer{
				Broker: b, Source: failingStream{declareStream(t, b, "in", 1), receiveErr}, Group: "g", ID: "x", Logger: quiet,
				Handler: func(context.Context, []*broker.Record, func(broker.Stream, ...broker.Record) error) error { return nil },
			}
		},
	}
	for name, open := range programs {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				down.Store(true)
				p := open(t)
				stop := start(t, p)
				advance(time.Minute)
				if err := p.Ready(); !errors.Is(err, broker.ErrUnavailable) {
					t.Errorf("the broker is down: %v", err)
				}
				down.Store(false)
				advance(time.Minute)
				if err := p.Ready(); err != nil {
					t.Errorf("the broker is back, and nothing to receive: %v", err)
				}
				down.Store(true)
				if err := stop(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// What comes tells that the broker is back, also where each record is handed
// over to another goroutine that fetches on.
func TestReadyAgainOnceSomethingCame(t *testing.T) {
	for _, took := range []time.Duration{0, 5 * time.Millisecond} {
		t.Run(took.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var down atomic.Bool
				down.Store(true)
				s := brokertest.NewStream("events", 1)
				s.ReceiveErr = func() error {
					if down.Load() {
						return &broker.Error{Op: "receive", Temporary: true, Err: broker.ErrUnavailable}
					}
					return nil
				}
				p := &broker.Processor{Stream: s, Group: "g", Logger: quiet, Handler: func(context.Context, *broker.Record) error {
					spend(took)
					return nil
				}}
				stop := start(t, p)
				advance(30 * time.Second)
				down.Store(false)
				for range 40 { // nothing waits for long
					if _, err := s.Publish(t.Context(), broker.Record{Value: []byte("x")}); err != nil {
						t.Fatal(err)
					}
					advance(time.Second)
				}
				if err := p.Ready(); err != nil {
					t.Errorf("the broker is back, and a record comes each second: %v", err)
				}
				if err := stop(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// Nobody finds out whether the broker is back while nothing is to be received.
func TestPausedIsReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := brokertest.NewQueue("jobs")
		q.ReceiveErr = func() error { return &broker.Error{Op: "receive", Temporary: true, Err: broker.ErrUnavailable} }
		w := &broker.Worker{Queue: q, Logger: quiet, Handler: func(context.Context, *broker.Delivery) error { return nil }}
		stop := start(t, w)
		advance(time.Minute)
		w.Pause()
		if err := w.Ready(); err != nil {
			t.Errorf("paused: %v", err)
		}
		advance(time.Minute)
		w.Resume()
		if err := w.Ready(); !errors.Is(err, broker.ErrUnavailable) {
			t.Errorf("resumed, and nothing was received since: %v", err)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// A failingStream has members whose Receive asks receiveErr first.
type failingStream struct {
	broker.Stream
	receiveErr func() error
}

func (s failingStream) Consumer(ctx context.Context, group string, opts *broker.GroupOptions) (broker.GroupConsumer, error) {
	c, err := s.Stream.Consumer(ctx, group, opts)
	return failingMember{c, s.receiveErr}, err
}

type failingMember struct {
	broker.GroupConsumer
	receiveErr func() error
}

func (m failingMember) Receive(ctx context.Context, n int) ([]*broker.Record, error) {
	if err := m.receiveErr(); err != nil {
		return nil, err
	}
	return m.GroupConsumer.Receive(ctx, n)
}
