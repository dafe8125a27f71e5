package kafka_test

import (
	"context"
	"testing"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/kafka"
	"github.com/twmb/franz-go/pkg/kgo"
)

type spanKey struct{}

// A tracer does to records what franz-go's kotel does.
type tracer struct{ t *testing.T }

func (tracer) OnProduceRecordBuffered(r *kgo.Record) {
	r.Context = context.WithValue(r.Context, spanKey{}, string(r.Value))
}

func (tr tracer) OnProduceRecordUnbuffered(r *kgo.Record, err error) {
	if span, ok := r.Context.Value(spanKey{}).(string); err != nil || !ok || span != string(r.Value) {
		tr.t.Errorf("span %q of %q, %v", span, r.Value, err)
	}
}

// Hooks may put a context of their own into a record.
func TestTracingHooks(t *testing.T) {
	onBrokers(t, func(t *testing.T, o *kafka.Options) {
		o.Client = []kgo.Opt{kgo.WithHooks(tracer{t})}
		b := open(t, o)
		s := declare(t, b, broker.StreamConfig{Partitions: 2})
		publish(t, s, 10)
		if _, err := s.Publish(testContext(t), broker.Record{Value: []byte("pinned"), Partition: 1, Pin: true}); err != nil {
			t.Fatal(err)
		}
		tx := begin(t, transactor(t, b, name(t)))
		if err := tx.Publish(testContext(t), s, texts(3)...); err != nil {
			t.Fatal(err)
		}
		if err := tx.Commit(testContext(t)); err != nil {
			t.Fatal(err)
		}
		q := queue(t, b, broker.QueueConfig{})
		enqueue(t, q, 3)
		if got := len(values(t, s, true)); got != 14 {
			t.Errorf("%d records, want 14", got)
		}
	})
}

// A mirror sends a copy of each record to another topic, in the record's context.
type mirror struct {
	to     string
	client *kgo.Client
	failed func(error)
}

func (m *mirror) OnProduceRecordBuffered(r *kgo.Record) {
	if m.client == nil || r.Topic == m.to {
		return
	}
	c := &kgo.Record{Topic: m.to, Key: r.Key, Value: r.Value, Partition: r.Partition}
	m.client.Produce(context.WithoutCancel(r.Context), c, func(_ *kgo.Record, err error) {
		if err != nil {
			m.failed(err)
		}
	})
}

// A record that a hook makes of one is not pinned, whatever that one was.
func TestRecordsOfHooksAreTheirOwn(t *testing.T) {
	onBrokers(t, func(t *testing.T, o *kafka.Options) {
		m := &mirror{failed: func(err error) { t.Errorf("mirrored: %v", err) }}
		o.Client = []kgo.Opt{kgo.WithHooks(m)}
		b := open(t, o)
		s, spread, narrow := declare(t, b, broker.StreamConfig{Partitions: 4}), declare(t, b, broker.StreamConfig{Partitions: 4}), declare(t, b, broker.StreamConfig{Partitions: 1})
		m.client = b.Client()
		var keyed []broker.Record
		for i := range 40 {
			keyed = append(keyed, broker.Record{Key: []byte{byte(i)}, Value: []byte("keyed"), Partition: 3, Pin: i%2 == 0})
		}
		for _, to := range []broker.Stream{spread, narrow} {
			m.to = to.Name()
			if _, err := s.PublishBatch(testContext(t), keyed); err != nil {
				t.Fatal(err)
			}
			if err := b.Client().Flush(testContext(t)); err != nil {
				t.Fatal(err)
			}
		}
		used := map[int32]bool{}
		for r, err := range spread.Read(testContext(t), broker.Range{}) {
			if err != nil {
				t.Fatal(err)
			}
			used[r.Partition] = true
		}
		if len(used) < 2 {
			t.Errorf("40 keys went to partitions %v", used)
		}
		if n := len(values(t, narrow, false)); n != 40 {
			t.Errorf("%d records, want 40", n)
		}
	})
}
