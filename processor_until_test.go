package broker_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/brokertest"
)

// lagless is a stream that cannot tell the lag for a while.
type lagless struct {
	broker.Stream
	asked int
}

func (s *lagless) Lag(ctx context.Context, group string) ([]broker.PartitionLag, error) {
	if s.asked++; s.asked < 5 {
		return nil, broker.ErrUnavailable
	}
	return s.Stream.Lag(ctx, group)
}

// Where the end is looked for in vain, the processor receives all the same.
func TestProcessorUntilIsReadyWhileItLooksForTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner := brokertest.NewStream("s", 1)
		fill(t, inner, 5, 1)
		s := &lagless{Stream: inner}
		var seen watch
		p := &broker.Processor{
			Stream: gapped{s}, Group: "g", Until: broker.Now(), Logger: quiet, Observe: seen.observe,
			Handler: func(context.Context, *broker.Record) error { return nil },
		}
		done := make(chan error, 1)
		go func() { done <- p.Run(t.Context()) }()
		for len(seen.of(broker.ObservedReceiveError)) == 0 {
			advance(100 * time.Millisecond)
		}
		if err := p.Ready(); err != nil {
			t.Errorf("Ready: %v", err)
		}
		if err := <-done; err != nil || s.asked < 5 {
			t.Errorf("Run: %v, asked %d times", err, s.asked)
		}
	})
}
