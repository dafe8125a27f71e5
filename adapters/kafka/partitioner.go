package kafka

import (
	"sync"
	"sync/atomic"

	"github.com/twmb/franz-go/pkg/kgo"
)

// newPartitioner returns franz-go's default partitioner (keys by murmur2 as
// the Java client, records without a key in runs of 64 KiB to the partition
// with the least waiting), which also sends pinned records where they go.
func newPartitioner(met *metTopics) kgo.Partitioner {
	return pinning{kgo.UniformBytesPartitioner(64<<10, true, true, hashed), met}
}

// hashed returns the partition of n that the Java client sends a key to.
var hashed = kgo.KafkaHasher(murmur2)

// metTopics are those that a client has been asked to publish to.
type metTopics struct {
	mu sync.RWMutex
	m  map[string]*metTopic
}

// A metTopic is what is known of how a client publishes to a topic.
type metTopic struct {
	known      atomic.Bool  // it has the topic's partitions
	partitions atomic.Int32 // how many it last chose from for a key; 0: none yet
}

func (t *metTopics) of(topic string) *metTopic {
	t.mu.RLock()
	met := t.m[topic]
	t.mu.RUnlock()
	if met != nil {
		return met
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.m == nil {
		t.m = map[string]*metTopic{}
	}
	if t.m[topic] == nil {
		t.m[topic] = &metTopic{}
	}
	return t.m[topic]
}

type pinning struct {
	kgo.Partitioner
	met *metTopics
}

// ForTopic is asked once for a topic, when it has partitions.
func (p pinning) ForTopic(topic string) kgo.TopicPartitioner {
	met := p.met.of(topic)
	met.known.Store(true)
	inner := p.Partitioner.ForTopic(topic)
	backup, _ := inner.(kgo.TopicBackupPartitioner)
	return &pinningTopic{inner: inner, backup: backup, met: met}
}

// A pinningTopic is asked for one record after the other, under a lock of the
// client's: first RequiresConsistency, then for the partition.
type pinningTopic struct {
	inner  kgo.TopicPartitioner
	backup kgo.TopicBackupPartitioner
	met    *metTopic
	n      int  // met.partitions
	pinned bool // the record
}

// RequiresConsistency is what the client asks first, once it has room for a
// record and before others can see it.
func (p *pinningTopic) RequiresConsistency(r *kgo.Record) bool {
	p.pinned = false
	if r.Partition != unpinned {
		if it := itemOf(r); it != nil && &it.rec == r { // not one that a hook made of it
			it.place()
			p.pinned = r.Partition >= 0
		}
	}
	return p.pinned || p.inner.RequiresConsistency(r)
}

func (p *pinningTopic) Partition(r *kgo.Record, n int) int {
	if p.pinned {
		return int(r.Partition)
	}
	return p.inner.Partition(r, n)
}

func (p *pinningTopic) PartitionByBackup(r *kgo.Record, n int, backup kgo.TopicBackupIter) int {
	if p.pinned {
		return int(r.Partition)
	}
	if p.backup == nil {
		return p.inner.Partition(r, n)
	}
	if n != p.n && r.Key != nil {
		p.n = n
		p.met.partitions.Store(int32(n)) //nolint:gosec // Kafka counts partitions in 32 bits
	}
	return p.backup.PartitionByBackup(r, n, backup)
}
