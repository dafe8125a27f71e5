package kafka_test

import (
	"testing"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/kafka"
)

// A group that nobody has joined yet is behind by all that there is.
func TestLagOfANewGroup(t *testing.T) {
	onBrokers(t, func(t *testing.T, o *kafka.Options) {
		b := open(t, o)
		s := declare(t, b, broker.StreamConfig{Partitions: 2})
		ctx := testContext(t)
		if _, err := s.PublishBatch(ctx, make([]broker.Record, 5)); err != nil {
			t.Fatal(err)
		}
		lag, err := s.Lag(ctx, "nobody-"+s.Name())
		if err != nil {
			t.Fatal(err)
		}
		var n int64
		for _, l := range lag {
			if n += l.Lag; l.HasCommit {
				t.Errorf("partition %d has a commit at %v", l.Partition, l.Committed)
			}
		}
		if len(lag) != 2 || n != 5 {
			t.Errorf("lag %+v, want 5 records in 2 partitions", lag)
		}
	})
}
