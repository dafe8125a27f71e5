package bridge

import (
	"context"
	"fmt"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/kafka"
)

// onKafka is a world whose stream is a topic of a Kafka in process.
func onKafka(t *testing.T, partitions int, more ...kfake.Opt) (*world, *kafka.Broker, *kfake.Cluster) {
	t.Helper()
	cluster := must(kfake.NewCluster(append(more, kfake.NumBrokers(3))...))(t)
	t.Cleanup(cluster.Close)
	k := must(kafka.Open(t.Context(), &kafka.Options{Brokers: cluster.ListenAddrs()}))(t)
	t.Cleanup(func() { check(t, k.Close()) })
	w := newWorld(t, 1)
	check(t, k.DeclareStream(w.ctx, "events", broker.StreamConfig{Partitions: partitions}))
	w.stream = must(k.Stream(w.ctx, "events", nil))(t)
	return w, k, cluster
}

// The coordinator refuses commits in every way in which that passes: nothing is
// sent twice, and all is committed in the end.
func TestKafkaCommitRefused(t *testing.T) {
	for _, refusal := range []*kerr.Error{
		kerr.RebalanceInProgress, kerr.IllegalGeneration, kerr.NotCoordinator,
		kerr.CoordinatorLoadInProgress, kerr.CoordinatorNotAvailable,
	} {
		t.Run(refusal.Message, func(t *testing.T) {
			t.Parallel()
			w, _, cluster := onKafka(t, 4)
			var refused atomic.Int32
			cluster.ControlKey(int16(kmsg.OffsetCommit), func(in kmsg.Request) (kmsg.Response, error, bool) {
				if refused.Add(1) > 3 {
					return nil, nil, false
				}
				cluster.KeepControl()
				req, ok := in.(*kmsg.OffsetCommitRequest)
				if !ok {
					return nil, fmt.Errorf("a commit is %T", in), true
				}
				res, ok := req.ResponseKind().(*kmsg.OffsetCommitResponse)
				if !ok {
					return nil, fmt.Errorf("its answer is %T", res), true
				}
				for _, topic := range req.Topics {
					rt := kmsg.OffsetCommitResponseTopic{Topic: topic.Topic, TopicID: topic.TopicID}
					for _, p := range topic.Partitions {
						rt.Partitions = append(rt.Partitions, kmsg.OffsetCommitResponseTopicPartition{Partition: p.Partition, ErrorCode: refusal.Code})
					}
					res.Topics = append(res.Topics, rt)
				}
				return res, nil, true
			})
			const n = 500
			w.publish(n, 50)
			q := &flaky{Queue: w.queue}
			stop := w.start(w.route(func(rt *Route) { rt.Target = q }))
			w.until("the end of the stream", func() bool { return w.lag("bridge-r") == 0 })
			check(t, stop())
			if refused.Load() < 3 || q.sent() != n {
				t.Errorf("%d sends for %d records, %d commits refused", q.sent(), n, refused.Load())
			}
			allOnce(t, w.drain(w.queue), n)
		})
	}
}

// Brokers go away and come back, with coordinator and leaders.
func TestKafkaCoordinatorMoves(t *testing.T) {
	w, _, cluster := onKafka(t, 6)
	const n = 1000
	q := &flaky{Queue: w.queue}
	stop := w.start(w.route(func(rt *Route) { rt.Target = q }))
	for i := range 5 {
		w.publish(n/5, 50)
		w.until("progress", func() bool { return q.sent() >= i*n/5 })
		check(t, cluster.MoveTopicPartition("events", int32(i), int32(i%3))) //nolint:gosec // small
		cluster.RehashCoordinators()
	}
	w.until("the end of the stream", func() bool { return w.lag("bridge-r") == 0 })
	check(t, stop())
	allOnce(t, w.drain(w.queue), n)
}

// Records that are gone before they were read are skipped; the rest arrives.
func TestKafkaTruncation(t *testing.T) {
	w, k, _ := onKafka(t, 1)
	w.publish(100, 10)
	live := w.route(nil)
	stop := w.start(live)
	w.until("the end of the stream", func() bool { return w.lag("bridge-r") == 0 })
	check(t, stop())
	w.publish(100, 10)
	var upTo kadm.Offsets
	upTo.Add(kadm.Offset{Topic: "events", Partition: 0, At: 150})
	res := must(kadm.NewClient(k.Client()).DeleteRecords(w.ctx, upTo))(t)
	check(t, res.Error())
	stop = w.start(live)
	w.until("the end of the stream", func() bool { return w.lag("bridge-r") == 0 })
	check(t, stop())
	ds := w.drain(w.queue)
	if v := values(ds); len(ds) != 150 || v["99"] != 1 || v["149"] != 0 || v["150"] != 1 {
		t.Errorf("%d tasks", len(ds))
	}
}

// A topic that is deleted and made again while the route runs: the route waits
// for it and goes on with the new one's records, from the first.
func TestKafkaTopicMadeAgain(t *testing.T) {
	w, k, _ := onKafka(t, 2)
	w.publish(100, 10)
	rt := w.route(nil)
	stop := w.start(rt)
	w.until("the first topic's records", func() bool { return rt.Stats().Enqueued == 100 && w.lag("bridge-r") == 0 })
	check(t, k.DeleteStream(w.ctx, "events"))
	w.until("a topic of that name", func() bool {
		return k.DeclareStream(w.ctx, "events", broker.StreamConfig{Partitions: 2}) == nil
	})
	w.publish(100, 10)
	w.until("the second topic's records", func() bool { return rt.Stats().Enqueued == 200 && w.lag("bridge-r") == 0 })
	check(t, stop())
	allOnce(t, w.drain(w.queue), 200)
}

// Compaction leaves gaps: what is left is sent once, the last record of each key
// is there, and the gaps are committed over.
func TestKafkaCompaction(t *testing.T) {
	w, k, _ := onKafka(t, 1, kfake.BrokerConfigs(map[string]string{"log.cleaner.backoff.ms": "100"}))
	check(t, k.DeclareStream(w.ctx, "compacted", broker.StreamConfig{Partitions: 1, Compact: true, Options: map[string]string{
		"segment.ms": "100", "min.cleanable.dirty.ratio": "0.01", "max.compaction.lag.ms": "100",
	}}))
	w.stream = must(k.Stream(w.ctx, "compacted", nil))(t)
	_, err := w.stream.Publish(w.ctx, broker.Record{Key: []byte("once"), Value: []byte("first")}) // the begin of the log stays
	check(t, err)
	const keys = 10
	w.until("a gap", func() bool {
		w.publish(keys, keys)
		<-time.After(50 * time.Millisecond) // the segment being written is spared
		left := 0
		for _, err := range w.stream.Read(w.ctx, broker.Range{}) {
			check(t, err)
			left++
		}
		return left < 1+w.entered/2
	})
	stop := w.start(w.route(nil))
	w.until("the end of the stream", func() bool { return w.lag("bridge-r") == 0 })
	check(t, stop())
	v := values(w.drain(w.queue))
	for i := w.entered - keys; i < w.entered; i++ {
		if v[strconv.Itoa(i)] != 1 {
			t.Errorf("record %d, the last of its key, arrived %d times", i, v[strconv.Itoa(i)])
		}
	}
	if v["first"] != 1 || len(v) > w.entered*2/3 {
		t.Errorf("%d of %d records are left, the first arrived %d times", len(v), w.entered, v["first"])
	}
}

// Transactions leave offsets without a record. Aborted records are not sent, the
// gaps are committed over, and a tombstone becomes a task.
func TestKafkaTransactionsAndTombstones(t *testing.T) {
	w, k, _ := onKafka(t, 2)
	tx := must(k.Transactor(w.ctx, "t"))(t)
	defer func() { check(t, tx.Close()) }()
	sent := 0
	for i := range 20 {
		open := must(tx.Begin(w.ctx))(t)
		for range 10 {
			v := strconv.Itoa(sent)
			if i%2 == 1 {
				v = "aborted"
			} else {
				sent++
			}
			check(t, open.Publish(w.ctx, w.stream, broker.Record{Key: []byte(v), Value: []byte(v)}))
		}
		if i%2 == 1 {
			check(t, open.Rollback(w.ctx))
		} else {
			check(t, open.Commit(w.ctx))
		}
	}
	_, err := w.stream.Publish(w.ctx, broker.Record{Key: []byte("gone"), Tombstone: true})
	check(t, err)
	rt := w.route(func(rt *Route) { rt.ReadCommitted = true })
	stop := w.start(rt)
	w.until("the end of the stream", func() bool { return rt.Stats().Enqueued == int64(sent)+1 && w.lag("bridge-r") == 0 })
	check(t, stop())
	var tasks []*broker.Delivery
	for _, d := range w.drain(w.queue) {
		if d.Headers.Get(HeaderTombstone) == "" {
			tasks = append(tasks, d)
		} else if len(d.Body) != 0 || d.GroupID != "gone" {
			t.Errorf("the tombstone's task: group %q, body %q", d.GroupID, d.Body)
		}
	}
	allOnce(t, tasks, sent)
}

// A partition is taken away while the target is blocked: what is in hand is cut
// off at the drain's end and not committed, its new owner sends it, and the
// FIFO queue suppresses what had been stored.
func TestKafkaRevokedWhileTargetIsBlocked(t *testing.T) {
	w, _, _ := onKafka(t, 4)
	const n = 400
	w.publish(n, 40)
	var blocked atomic.Bool
	blocked.Store(true)
	stuck := &blocking{Queue: w.queue, blocked: &blocked}
	first := w.route(func(rt *Route) { rt.Target, rt.DrainTimeout = stuck, 200*time.Millisecond })
	stopFirst := w.start(first)
	w.until("a blocked target", func() bool { return stuck.waiting.Load() > 0 })
	second := w.route(nil)
	stopSecond := w.start(second)
	w.until("the second member's share", func() bool { return second.Stats().Enqueued >= n/8 })
	if first.Stats().Enqueued != 0 {
		t.Error("the blocked target took something")
	}
	blocked.Store(false)
	w.until("the end of the stream", func() bool { return w.lag("bridge-r") == 0 })
	check(t, stopFirst())
	check(t, stopSecond())
	allOnce(t, w.drain(w.queue), n)
}

// A blocking queue stores nothing and answers nothing while it is blocked.
type blocking struct {
	broker.Queue
	blocked *atomic.Bool
	waiting atomic.Int32
}

func (b *blocking) Publish(ctx context.Context, m broker.Message) (broker.Receipt, error) {
	for b.blocked.Load() {
		b.waiting.Add(1)
		select {
		case <-ctx.Done():
			return broker.Receipt{ID: m.ID}, broker.ContextError(ctx)
		case <-time.After(5 * time.Millisecond):
		}
	}
	return b.Queue.Publish(ctx, m)
}
