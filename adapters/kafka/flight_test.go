package kafka_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/kafka"
)

// The memory of a call is used again by the next, unless the call ended before
// its records were answered: no record shows another's bytes, and no receipt
// is another's, however calls end.
func TestCallsShareNoMemory(t *testing.T) {
	onBrokers(t, func(t *testing.T, o *kafka.Options) {
		s := declare(t, open(t, o), broker.StreamConfig{Partitions: 2})
		if _, err := s.Publish(testContext(t), broker.Record{}); err != nil { // the client knows the topic from here on
			t.Fatal(err)
		}
		const publishers, rounds = 8, 60
		var mu sync.Mutex
		receipts := map[string]broker.Receipt{}
		var wg sync.WaitGroup
		for p := range publishers {
			wg.Go(func() {
				for round := range rounds {
					ctx, cancel := context.WithCancel(testContext(t))
					if round%3 == 0 { // ends while the record is on its way, or never gets there
						go cancel()
					}
					name := fmt.Sprintf("%d/%d", p, round)
					r := broker.Record{Key: []byte(name), Value: bytes.Repeat([]byte(name+";"), 1+round*round)}
					receipt, err := s.Publish(ctx, r)
					switch {
					case err == nil:
						mu.Lock()
						receipts[name] = receipt
						mu.Unlock()
					case !errors.Is(err, context.Canceled):
						t.Error(err)
					}
					cancel()
					clear(r.Key)
					clear(r.Value)
				}
			})
		}
		wg.Wait()
		for r, err := range s.Read(testContext(t), broker.Range{}) {
			if err != nil {
				t.Fatal(err)
			}
			name := string(r.Key)
			if name == "" {
				continue // the first
			}
			if len(r.Value)%(len(name)+1) != 0 || !bytes.Equal(r.Value, bytes.Repeat([]byte(name+";"), len(r.Value)/(len(name)+1))) {
				t.Errorf("record %q holds another's bytes", name)
			}
			if got, ok := receipts[name]; ok && (got.Partition != r.Partition || got.Offset != r.Offset()) {
				t.Errorf("record %q is in partition %d at %v; its receipt says %d, %v", name, r.Partition, r.Offset(), got.Partition, got.Offset)
			}
			delete(receipts, name)
		}
		for name := range receipts {
			t.Errorf("record %q was accepted and is not there", name)
		}
	})
}
