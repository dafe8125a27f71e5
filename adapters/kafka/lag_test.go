package kafka_test

import (
	"errors"
	"testing"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/kafka"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
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

// Behind a commit, and between transactions, lie markers and aborted records,
// which nobody is behind by.
func TestLagOfTransactions(t *testing.T) {
	onBrokers(t, func(t *testing.T, o *kafka.Options) {
		ctx := testContext(t)
		b := open(t, o)
		s := declare(t, b, broker.StreamConfig{Partitions: 1})
		x := transactor(t, b, name(t))
		for i := range 20 {
			tx := begin(t, x)
			if err := tx.Publish(ctx, s, texts(10)...); err != nil {
				t.Fatal(err)
			}
			end := tx.Commit
			if i%2 == 1 {
				end = tx.Rollback
			}
			if err := end(ctx); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, "what is committed", func() bool { return len(values(t, s, true)) == 100 })
		c := member(t, s, s.Name(), &broker.GroupOptions{ReadCommitted: true})
		rs := receive(t, c, 100)
		for _, done := range []int{1, 10, 55, 100} {
			if err := c.Commit(ctx, rs[:done]...); err != nil {
				t.Fatal(err)
			}
			lag, err := s.Lag(ctx, s.Name())
			if err != nil || lag[0].Lag != int64(100-done) || !lag[0].Exact {
				t.Errorf("lag %+v and %v behind %d of 100 records", lag, err, done)
			}
		}
	})
}

// What compaction has removed nobody is behind by.
func TestLagOfACompactedStream(t *testing.T) {
	t.Parallel()
	t.Run("fake", func(t *testing.T) {
		t.Parallel()
		cluster := fake(t, kfake.BrokerConfigs(map[string]string{"log.cleaner.backoff.ms": "100"}))
		lagOfACompactedStream(t, &kafka.Options{Brokers: cluster.ListenAddrs()})
	})
	t.Run("real", func(t *testing.T) {
		t.Parallel()
		lagOfACompactedStream(t, realOptions(t))
	})
}

func lagOfACompactedStream(t *testing.T, o *kafka.Options) {
	ctx := testContext(t)
	s := declare(t, open(t, o), broker.StreamConfig{Partitions: 1, Compact: true, Options: map[string]string{
		"segment.ms": "100", "min.cleanable.dirty.ratio": "0.01", "max.compaction.lag.ms": "100",
	}})
	sent := int64(0)
	publishMore := func() {
		publish(t, s, 30) // of 29 keys
		sent += 30
	}
	for range 10 {
		publishMore()
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	eventually(t, "the exact number of the records that are left", func() bool {
		select {
		case <-tick.C: // the segment being written is spared: the next one has to begin
			publishMore()
		default:
		}
		left := int64(0)
		for _, err := range s.Read(ctx, broker.Range{}) {
			if errors.Is(err, broker.ErrOutOfRange) {
				return false // unlike Kafka's, kfake's compaction moves the begin of the log
			}
			if err != nil {
				t.Fatal(err)
			}
			left++
		}
		lag, err := s.Lag(ctx, "nobody-"+s.Name())
		if err != nil {
			t.Fatal(err)
		}
		next, _ := lag[0].Next.Int64()
		return left < sent/2 && lag[0].Lag == left && lag[0].Exact && next == sent
	})
}

// Of what is too much to count, Lag says so, and nobody is behind by more.
func TestLagOfALongWay(t *testing.T) {
	onBrokers(t, func(t *testing.T, o *kafka.Options) {
		ctx := testContext(t)
		own := *o
		own.Compression = "none"
		b := open(t, &own)
		s := declare(t, b, broker.StreamConfig{Partitions: 2})
		rs := make([]broker.Record, 44)
		for i := range rs {
			rs[i] = broker.Record{Pin: true, Value: make([]byte, 500_000)}
		}
		for i := range 4 {
			rs[i] = broker.Record{Pin: true, Partition: 1, Value: []byte("x")}
		}
		if _, err := s.PublishBatch(ctx, rs); err != nil {
			t.Fatal(err)
		}
		lag, err := s.Lag(ctx, "nobody-"+s.Name())
		if err != nil || lag[0].Lag != 40 || lag[0].Exact || lag[1].Lag != 4 || !lag[1].Exact {
			t.Errorf("lag %+v and %v, want 40 at most and 4", lag, err)
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
