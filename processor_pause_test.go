package broker_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/brokertest"
)

// Large records fill a window before their number does, and hold up nobody
// else's.
func TestProcessorWindowOfLargeRecords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := brokertest.NewStream("events", 2)
		for i := range 400 {
			if _, err := s.Publish(t.Context(), broker.Record{Key: fmt.Appendf(nil, "k%d", i), Value: make([]byte, 1000), Pin: true, Partition: int32(i % 2)}); err != nil {
				t.Fatal(err)
			}
		}
		release := make(chan struct{})
		p := &broker.Processor{Stream: s, Group: "g", Logger: quiet, MaxWindow: 40, MaxWindowBytes: 20_000, Handler: func(_ context.Context, r *broker.Record) error {
			if string(r.Key) == "k0" {
				<-release
			}
			return nil
		}}
		stop := start(t, p)
		advance(10 * time.Second)
		// A share is 10 records, and a Receive as many.
		if st := p.Stats().Partitions; len(st) != 2 || st[0].Window > 21 || !st[0].Paused {
			t.Errorf("partition 0: %+v", st[0])
		}
		if s.Committed("g", 1) != 200 {
			t.Errorf("partition 1 stalled: %d committed", s.Committed("g", 1))
		}
		close(release)
		advance(10 * time.Second)
		if c := s.Committed("g", 0); c != 200 {
			t.Errorf("partition 0: committed %d", c)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}
