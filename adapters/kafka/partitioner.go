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
	return pinning{kgo.UniformBytesPartitioner(64<<10, true, true, nil), met}
}

// metTopics are those that a client has the partitions of.
type metTopics struct {
	mu sync.RWMutex
	m  map[string]*atomic.Bool
}

func (t *metTopics) of(topic string) *atomic.Bool {
	t.mu.RLock()
	met := t.m[topic]
	t.mu.RUnlock()
	if met != nil {
		return met
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.m == nil {
		t.m = map[string]*atomic.Bool{}
	}
	if t.m[topic] == nil {
		t.m[topic] = &atomic.Bool{}
	}
	return t.m[topic]
}

type pinning struct {
	kgo.Partitioner
	met *metTopics
}

// ForTopic is asked once for a topic, when it has partitions.
func (p pinning) ForTopic(topic string) kgo.TopicPartitioner {
	p.met.of(topic).Store(true)
	inner := p.Partitioner.ForTopic(topic)
	backup, _ := inner.(kgo.TopicBackupPartitioner)
	return &pinningTopic{inner: inner, backup: backup}
}

// A pinningTopic is asked for one record after the other, under a lock of the
// client's: first RequiresConsistency, then for the partition.
type pinningTopic struct {
	inner  kgo.TopicPartitioner
	backup kgo.TopicBackupPartitioner
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
	return p.backup.PartitionByBackup(r, n, backup)
}
