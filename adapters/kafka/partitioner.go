package kafka

import "github.com/twmb/franz-go/pkg/kgo"

// newPartitioner returns franz-go's default partitioner (keys by murmur2 as
// the Java client, records without a key in runs of 64 KiB to the partition
// with the least waiting), which also sends pinned records where they go.
func newPartitioner() kgo.Partitioner {
	return pinning{kgo.UniformBytesPartitioner(64<<10, true, true, nil)}
}

type pinning struct{ kgo.Partitioner }

func (p pinning) ForTopic(topic string) kgo.TopicPartitioner {
	inner := p.Partitioner.ForTopic(topic)
	backup, _ := inner.(kgo.TopicBackupPartitioner)
	return &pinningTopic{inner: inner, backup: backup}
}

type pinningTopic struct {
	inner  kgo.TopicPartitioner
	backup kgo.TopicBackupPartitioner
}

func pinned(r *kgo.Record) bool {
	it := itemOf(r)
	return it != nil && it.pin
}

func (p *pinningTopic) RequiresConsistency(r *kgo.Record) bool {
	return pinned(r) || p.inner.RequiresConsistency(r)
}

func (p *pinningTopic) Partition(r *kgo.Record, n int) int {
	if pinned(r) {
		return int(r.Partition)
	}
	return p.inner.Partition(r, n)
}

func (p *pinningTopic) PartitionByBackup(r *kgo.Record, n int, backup kgo.TopicBackupIter) int {
	if pinned(r) {
		return int(r.Partition)
	}
	if p.backup == nil {
		return p.inner.Partition(r, n)
	}
	return p.backup.PartitionByBackup(r, n, backup)
}
