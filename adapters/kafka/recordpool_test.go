package kafka_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/kafka"
	"github.com/twmb/franz-go/pkg/kgo"
)

type bytesPool struct{}

func (bytesPool) GetDecompressBytes([]byte, kgo.CompressionCodecType) []byte { return nil }
func (bytesPool) PutDecompressBytes([]byte)                                  {}

func TestBytesOfRecordsAreNotTakenBack(t *testing.T) {
	o := &kafka.Options{Brokers: fake(t).ListenAddrs(), Client: []kgo.Opt{kgo.WithPools(bytesPool{})}}
	if b, err := kafka.Open(testContext(t), o); !errors.Is(err, broker.ErrInvalid) {
		t.Errorf("open: %v, %v, want ErrInvalid", b, err)
	}
}

// The client's memory is used again for the next records: those before stay
// what they were.
func TestRecordsOutliveTheClientsMemory(t *testing.T) {
	b := open(t, &kafka.Options{Brokers: fake(t).ListenAddrs()})
	s := declare(t, b, broker.StreamConfig{Partitions: 1})
	const batches, each = 20, 100
	for i := range batches {
		rs := make([]broker.Record, each)
		for j := range rs {
			rs[j] = broker.Record{
				Key: fmt.Append(nil, i), Value: fmt.Append(nil, i*each+j), Headers: broker.Headers{{Key: "i", Value: fmt.Sprint(i)}},
			}
		}
		if _, err := s.PublishBatch(testContext(t), rs); err != nil {
			t.Fatal(err)
		}
	}
	c := member(t, s, s.Name(), nil)
	var all []*broker.Record
	for len(all) < batches*each {
		rs, err := c.Receive(testContext(t), 70)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, rs...)
	}
	for n, r := range all {
		i := fmt.Sprint(n / each)
		if string(r.Key) != i || string(r.Value) != fmt.Sprint(n) || r.Headers.Get("i") != i {
			t.Fatalf("record %d: %s = %s, %v", n, r.Key, r.Value, r.Headers)
		}
	}
}
