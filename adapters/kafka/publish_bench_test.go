package kafka_test

import (
	"context"
	"sync"
	"testing"

	"github.com/queuestream/broker"
	"github.com/twmb/franz-go/pkg/kgo"
)

// BenchmarkPublishBatch publishes batches of 1,000 records without keys to the
// real broker, with the client alone and through the adapter. Read ns/op of
// CPU from a profile: the broker is another process.
func BenchmarkPublishBatch(b *testing.B) {
	const batch = 1000
	kb := open(b, realOptions(b))
	s := declare(b, kb, broker.StreamConfig{Partitions: 4})
	value := make([]byte, 256)
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	b.Run("client", func(b *testing.B) {
		b.ReportAllocs()
		for range b.N / batch {
			rs := make([]kgo.Record, batch)
			var wg sync.WaitGroup
			wg.Add(batch)
			for i := range rs {
				rs[i].Topic, rs[i].Value = s.Name(), value
				kb.Client().Produce(ctx, &rs[i], func(_ *kgo.Record, err error) {
					if err != nil {
						b.Error(err)
					}
					wg.Done()
				})
			}
			wg.Wait()
		}
	})
	b.Run("adapter", func(b *testing.B) {
		rs := make([]broker.Record, batch)
		for i := range rs {
			rs[i].Value = value
		}
		b.ReportAllocs()
		for range b.N / batch {
			if _, err := s.PublishBatch(ctx, rs); err != nil {
				b.Fatal(err)
			}
		}
	})
}
