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
