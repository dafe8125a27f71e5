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
	"github.com/twmb/franz-go/pkg/kmsg"
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

// A batch of more bytes than are copied at once, and one of many records,
// arrive whole, in order per key, and with the receipts of their records.
func TestLargeBatch(t *testing.T) {
	t.Run("bytes", func(t *testing.T) { testLargeBatch(t, 150, 20_000) })
	t.Run("records", func(t *testing.T) { testLargeBatch(t, 5_000, 1) })
}

func testLargeBatch(t *testing.T, n, repeated int) {
	onBrokers(t, func(t *testing.T, o *kafka.Options) {
		s := declare(t, open(t, o), broker.StreamConfig{Partitions: 3})
		if _, err := s.Publish(testContext(t), broker.Record{Key: []byte("first")}); err != nil { // the client knows the partitions from here on
			t.Fatal(err)
		}
		const keys = 7
		rs := make([]broker.Record, n)
		for i := range rs {
			rs[i].Value = bytes.Repeat(fmt.Appendf(nil, "%d;", i), repeated)
			switch i % (keys + 2) {
			case keys:
				rs[i].Pin, rs[i].Partition = true, int32(i%3) //nolint:gosec // small
			case keys + 1: // anywhere
			default:
				rs[i].Key = fmt.Appendf(nil, "k%d", i%keys)
			}
		}
		receipts, err := s.PublishBatch(testContext(t), rs)
		if err != nil {
			t.Fatal(err)
		}
		last := map[string]int{}
		read := 0
		for r, err := range s.Read(testContext(t), broker.Range{}) {
			if err != nil {
				t.Fatal(err)
			}
			if string(r.Key) == "first" {
				continue
			}
			var i int
			if _, err := fmt.Sscanf(string(r.Value), "%d;", &i); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(r.Value, rs[i].Value) || !bytes.Equal(r.Key, rs[i].Key) {
				t.Errorf("record %d holds another's bytes", i)
			}
			if receipts[i].Partition != r.Partition || receipts[i].Offset != r.Offset() {
				t.Errorf("record %d is in partition %d at %v; its receipt says %d, %v", i, r.Partition, r.Offset(), receipts[i].Partition, receipts[i].Offset)
			}
			if before, ok := last[string(r.Key)]; ok && before > i && len(r.Key) > 0 {
				t.Errorf("record %d of key %s comes after %d", i, r.Key, before)
			}
			last[string(r.Key)] = i
			read++
		}
		if read != n {
			t.Errorf("%d of %d records", read, n)
		}
	})
}

// When a call ends, what it has handed over has an outcome that nobody knows,
// and what it has not was not sent.
func TestEndOfALargeBatch(t *testing.T) {
	t.Parallel()
	cluster := fake(t)
	held, release := holdBack(cluster, kmsg.Produce)
	defer release()
	b := open(t, &kafka.Options{Brokers: cluster.ListenAddrs()})
	s := declare(t, b, broker.StreamConfig{Partitions: 1})
	rs := make([]broker.Record, 40)
	for i := range rs {
		rs[i].Value = make([]byte, 600_000)
	}
	ctx, cancel := context.WithCancel(testContext(t))
	ended := make(chan error)
	go func() {
		receipts, err := s.PublishBatch(ctx, rs)
		if len(receipts) != len(rs) {
			t.Errorf("%d receipts", len(receipts))
		}
		ended <- err
	}()
	<-held
	const handed = 28 // seven of them exceed what is copied at once, and that is done four times
	eventually(t, "records in the client's hands", func() bool { return b.Client().BufferedProduceRecords() >= handed })
	cancel()
	err := <-ended
	for i := range rs {
		if err := broker.ErrorAt(err, i); !errors.Is(err, context.Canceled) || errors.Is(err, broker.ErrUnknownOutcome) != (i < handed) {
			t.Errorf("record %d: %v", i, err)
		}
	}
}
