package kafka_test

import (
	"errors"
	"testing"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/kafka"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
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

// While a transaction has a group's offsets in hand nobody can tell where the
// group is: who asks waits for its end.
func TestLagWaitsForTransactions(t *testing.T) {
	onBrokers(t, func(t *testing.T, o *kafka.Options) {
		ctx := testContext(t)
		b := open(t, o)
		s := declare(t, b, broker.StreamConfig{Partitions: 1})
		publish(t, s, 5)
		group := "g-" + s.Name()
		c := member(t, s, group, nil)
		if err := errors.Join(c.Commit(ctx, receive(t, c, 1)...), c.Close()); err != nil {
			t.Fatal(err)
		}
		raw, err := kgo.NewClient(kgo.SeedBrokers(o.Brokers...), kgo.TransactionalID(name(t)))
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		if err := raw.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		if err := raw.ProduceSync(ctx, &kgo.Record{Topic: s.Name()}).FirstErr(); err != nil {
			t.Fatal(err)
		}
		topics, err := kadm.NewClient(raw).ListTopics(ctx, s.Name())
		if err != nil {
			t.Fatal(err)
		}
		storeInTransaction(t, raw, group, topics[s.Name()], 3)
		lags := make(chan []broker.PartitionLag, 1)
		go func() {
			lag, err := s.Lag(ctx, group)
			if err != nil {
				t.Error(err)
			}
			lags <- lag
		}()
		select {
		case lag := <-lags:
			t.Fatalf("lag %+v amid the transaction", lag)
		case <-time.After(300 * time.Millisecond):
		}
		if err := raw.EndTransaction(ctx, kgo.TryCommit); err != nil {
			t.Fatal(err)
		}
		if lag := <-lags; len(lag) != 1 || lag[0].Committed != broker.NewOffset(3) {
			t.Errorf("lag %+v after the transaction, want it behind offset 3", lag)
		}
	})
}

// storeInTransaction does what a producer with no member of the group does.
func storeInTransaction(t *testing.T, raw *kgo.Client, group string, topic kadm.TopicDetail, offset int64) {
	t.Helper()
	id, epoch, err := raw.ProducerID(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	txn := raw.OptValue(kgo.TransactionalID).(string)
	add := kmsg.NewPtrAddOffsetsToTxnRequest()
	add.TransactionalID, add.Group, add.ProducerID, add.ProducerEpoch = txn, group, id, epoch
	added, err := add.RequestWith(t.Context(), raw)
	if err != nil || added.ErrorCode != 0 {
		t.Fatal(err, kerr.ErrorForCode(added.ErrorCode))
	}
	req := kmsg.NewPtrTxnOffsetCommitRequest()
	req.TransactionalID, req.Group, req.ProducerID, req.ProducerEpoch, req.Generation = txn, group, id, epoch, -1
	p := kmsg.NewTxnOffsetCommitRequestTopicPartition()
	p.Offset = offset
	tp := kmsg.NewTxnOffsetCommitRequestTopic()
	tp.Topic, tp.TopicID, tp.Partitions = topic.Topic, topic.ID, append(tp.Partitions, p)
	req.Topics = append(req.Topics, tp)
	resp, err := req.RequestWith(t.Context(), raw)
	if err != nil {
		t.Fatal(err)
	}
	if err := kerr.ErrorForCode(resp.Topics[0].Partitions[0].ErrorCode); err != nil {
		t.Fatal(err)
	}
}
