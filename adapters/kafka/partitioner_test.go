package kafka

import (
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
	"pgregory.net/rapid"
)

// Keys go where franz-go's default partitioner sends them, which is where the
// Java client does.
func TestHashed(t *testing.T) {
	theirs := kgo.StickyKeyPartitioner(nil).ForTopic("t")
	rapid.Check(t, func(t *rapid.T) {
		key := rapid.SliceOf(rapid.Byte()).Draw(t, "key")
		n := rapid.IntRange(1, 1000).Draw(t, "partitions")
		if got, want := hashed(key, n), theirs.Partition(&kgo.Record{Key: key}, n); got != want {
			t.Fatalf("partition %d, want %d", got, want)
		}
	})
}

// The values of Kafka's own test of its hash.
func TestMurmur2(t *testing.T) {
	for key, want := range map[string]int32{
		"21": -973932308, "foobar": -790332482, "abc": 479470107,
		"a-little-bit-long-string": -985981536, "a-little-bit-longer-string": -1486304829,
		"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
	} {
		if got := int32(murmur2([]byte(key))); got != want { //nolint:gosec // Java's hash has a sign
			t.Errorf("%q: %d, want %d", key, got, want)
		}
	}
}
