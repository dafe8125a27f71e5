package conformance

import (
	"context"
	"iter"
	"testing"
	"time"

	"github.com/queuestream/broker"
)

// whileDown gives a mutant's harness a fault: nothing is answered for a while.
func whileDown(h Harness) Harness {
	var cs connections
	around, open := h.Around, h.Open
	h.Around = func(t T, run func(T)) { cs.forget(); around(t, run) }
	h.Open = func(ctx context.Context) (broker.Broker, error) {
		b, err := open(ctx)
		switch b := b.(type) {
		case *mutantBroker:
			cs.add(b.Broker)
		case *mutantStreams:
			cs.add(b.Broker)
		}
		return b, err
	}
	h.Faults = map[FaultKind]startFault{FaultBlackHole: cs.stalled(25*time.Second, func() {})}
	return h
}

// What ignores its context only while the broker does not answer.
func TestMutantsWhileDown(t *testing.T) {
	const by = "CloseWhileDown"
	for name, m := range map[string]mutation{
		"Publish waits for the answer": {send: func(q *mutantQueue, ctx context.Context, ms []broker.Message) ([]broker.Receipt, error) {
			return q.Queue.PublishBatch(context.WithoutCancel(ctx), ms)
		}},
		"an acknowledgement waits for the answer": {settle: func(k *mutantConsumer, ctx context.Context, d *broker.Delivery, v broker.Verdict) error {
			return k.Consumer.SettleOne(context.WithoutCancel(ctx), d, v)
		}},
		"opening waits for the answer": {openQueue: func(b *mutantBroker, ctx context.Context, name string, _ error) (broker.Queue, error) {
			return b.Broker.Queue(context.WithoutCancel(ctx), name, nil)
		}},
	} {
		caught(t, by, name, func(t *testing.T) Harness { return whileDown(mutantHarness(t, &m, by)) })
	}
	for name, m := range map[string]streamMutation{
		"Publish to a stream waits for the answer": {send: func(s *mutantStream, ctx context.Context, rs []broker.Record) ([]broker.Receipt, error) {
			return s.Stream.PublishBatch(context.WithoutCancel(ctx), rs)
		}},
		"Commit waits for the answer": {commit: func(m *mutantMember, ctx context.Context, rs []*broker.Record) error {
			return m.GroupConsumer.Commit(context.WithoutCancel(ctx), rs...)
		}},
		"Read waits for the answer": {read: func(s *mutantStream, ctx context.Context, r broker.Range) iter.Seq2[*broker.Record, error] {
			return s.Stream.Read(context.WithoutCancel(ctx), r)
		}},
	} {
		caught(t, by, name, func(t *testing.T) Harness { return whileDown(streamMutantHarness(t, &m, by)) })
	}
	pass := func(t *testing.T, h Harness) {
		h.Only = []string{by}
		harmless(t, whileDown(h), 1)
	}
	pass(t, mutantHarness(t, &mutation{}))
	pass(t, streamMutantHarness(t, &streamMutation{}))
}
