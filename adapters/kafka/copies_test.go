package kafka_test

import (
	"bytes"
	"fmt"
	"sync"
	"testing"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/kafka"
)

// What is published is copied to memory that flights use one after the other
// and side by side: nothing of one shows in another, and what the caller does
// to its own afterwards changes nothing.
func TestPublishKeepsNothingOfTheCallers(t *testing.T) {
	onBrokers(t, func(t *testing.T, o *kafka.Options) {
		ctx := testContext(t) // it can end
		s := declare(t, open(t, o), broker.StreamConfig{Partitions: 2})
		sizes := []int{1, 100, 3000, 40_000, 200_000, 300_000}
		const rounds, publishers = 5, 4
		body := func(p, round, i int) []byte {
			return bytes.Repeat(fmt.Appendf(nil, "%d-%d-%d;", p, round, i), 1+sizes[i]/8)
		}
		var wg sync.WaitGroup
		for p := range publishers {
			wg.Go(func() {
				for round := range rounds {
					rs := make([]broker.Record, len(sizes))
					for i := range rs {
						rs[i].Key, rs[i].Value = fmt.Appendf(nil, "%d/%d/%d", p, round, i), body(p, round, i)
					}
					if _, err := s.PublishBatch(ctx, rs); err != nil {
						t.Error(err)
					}
					for i := range rs {
						clear(rs[i].Value)
					}
				}
			})
		}
		wg.Wait()
		read := 0
		for r, err := range s.Read(ctx, broker.Range{}) {
			if err != nil {
				t.Fatal(err)
			}
			var p, round, i int
			if _, err := fmt.Sscanf(string(r.Key), "%d/%d/%d", &p, &round, &i); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(r.Value, body(p, round, i)) {
				t.Errorf("record %s holds another's bytes", r.Key)
			}
			read++
		}
		if want := publishers * rounds * len(sizes); read != want {
			t.Errorf("%d records, want %d", read, want)
		}
	})
}
