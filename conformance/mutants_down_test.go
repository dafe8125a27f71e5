package conformance

import (
	"context"
	"errors"
	"iter"
	"slices"
	"testing"
	"time"

	"github.com/queuestream/broker"
)

// whileDown gives a mutant's harness a fault: nothing is answered for a while.
func whileDown(h Harness) Harness {
	return underFaults(h, func(cs *connections) map[FaultKind]startFault {
		return map[FaultKind]startFault{FaultBlackHole: cs.stalled(25*time.Second, func() {})}
	})
}

// underFaults gives a mutant's harness faults of its connections.
func underFaults(h Harness, faults func(cs *connections) map[FaultKind]startFault) Harness {
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
	h.Faults = faults(&cs)
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

// A faultMutant is a defect that shows only while a fault lasts.
type faultMutant struct {
	name, by string
	m        *mutation
	s        *streamMutation
}

func faultMutants() []faultMutant {
	hidden := mutation{send: func(q *mutantQueue, ctx context.Context, ms []broker.Message) ([]broker.Receipt, error) {
		rs, err := q.Queue.PublishBatch(ctx, ms)
		if errors.Is(err, broker.ErrUnavailable) || errors.Is(err, broker.ErrUnknownOutcome) {
			err = nil
		}
		return rs, err
	}}
	hiddenStream := streamMutation{send: func(s *mutantStream, ctx context.Context, rs []broker.Record) ([]broker.Receipt, error) {
		out, err := s.Stream.PublishBatch(ctx, rs)
		if errors.Is(err, broker.ErrUnavailable) || errors.Is(err, broker.ErrUnknownOutcome) {
			err = nil
		}
		return out, err
	}}
	impatient := mutation{send: func(q *mutantQueue, ctx context.Context, ms []broker.Message) ([]broker.Receipt, error) {
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		rs, err := q.Queue.PublishBatch(short, ms)
		if short.Err() != nil && ctx.Err() == nil {
			err = nil
		}
		return rs, err
	}}
	impatientStream := streamMutation{send: func(s *mutantStream, ctx context.Context, rs []broker.Record) ([]broker.Receipt, error) {
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		out, err := s.Stream.PublishBatch(short, rs)
		if short.Err() != nil && ctx.Err() == nil {
			err = nil
		}
		return out, err
	}}
	return []faultMutant{
		{"what a cut took back is lost", "ConnectionCut", &mutation{
			settle: func(k *mutantConsumer, ctx context.Context, d *broker.Delivery, v broker.Verdict) error {
				<-time.After(time.Duration(k.q.s.count(1)%5) * time.Millisecond) // virtual; cuts are 3 ms apart
				return k.Consumer.SettleOne(ctx, d, v)
			},
			receive: func(k *mutantConsumer, ctx context.Context, max int) ([]*broker.Delivery, error) {
				ds, err := k.inner(ctx, max)
				return slices.DeleteFunc(ds, func(d *broker.Delivery) bool {
					return d.Attempt > 1 && k.Consumer.SettleOne(ctx, d, ackVerdict) == nil
				}), err
			},
		}, nil},
		{"who is connected again skips a record", "ConnectionCut", nil, &streamMutation{receive: skipFirst}},
		{"a publish that failed is called done", "Throttled", &hidden, nil},
		{"a publish that failed is called done", "Throttled", nil, &hiddenStream},
		{"receiving fails for good", "Throttled", &mutation{receive: func(k *mutantConsumer, ctx context.Context, max int) ([]*broker.Delivery, error) {
			ds, err := k.inner(ctx, max)
			if broker.IsTemporary(err) {
				err = errors.New("too fast")
			}
			return ds, err
		}}, nil},
		{"what took long to publish is called done", "BrokerPause", &impatient, nil},
		{"what took long to publish is called done", "BrokerPause", nil, &impatientStream},
		{"what took long to publish is called done", "BlackHole", &impatient, nil},
		{"what took long to publish is called done", "BlackHole", nil, &impatientStream},
		{"publishing fails for good", "Throttled", &mutation{send: func(q *mutantQueue, ctx context.Context, ms []broker.Message) ([]broker.Receipt, error) {
			rs, err := q.Queue.PublishBatch(ctx, ms)
			if broker.IsTemporary(err) {
				err = errors.New("too fast")
			}
			return rs, err
		}}, nil},
		{"what is not answered is taken back", "AnswerLost", &mutation{send: func(q *mutantQueue, ctx context.Context, ms []broker.Message) ([]broker.Receipt, error) {
			before := q.b.Injected()
			rs, err := q.Queue.PublishBatch(ctx, ms)
			if q.b.Injected() > before {
				_ = q.b.w.server.Purge(context.WithoutCancel(ctx), q.Name())
			}
			return rs, err
		}}, nil},
		{"what is not answered is published again", "RetryDedup", nil, &streamMutation{send: func(s *mutantStream, ctx context.Context, rs []broker.Record) ([]broker.Receipt, error) {
			before := s.b.Injected()
			out, err := s.Stream.PublishBatch(ctx, rs)
			if s.b.Injected() > before {
				out, err = s.Stream.PublishBatch(ctx, rs)
			}
			return out, err
		}}},
	}
}

func TestMutantsUnderFaults(t *testing.T) {
	faulty := func(h Harness) Harness {
		return underFaults(h, func(cs *connections) map[FaultKind]startFault { return cs.faults(20 * time.Second) })
	}
	for _, mu := range faultMutants() {
		caught(t, mu.by, mu.name, func(t *testing.T) Harness {
			if mu.m != nil {
				return faulty(mutantHarness(t, mu.m, mu.by))
			}
			return faulty(streamMutantHarness(t, mu.s, mu.by))
		})
	}
	only := []string{"RetryDedup", "Throttled", "ConnectionCut", "AnswerLost", "BrokerPause", "BlackHole", "SlowLink"}
	harmless(t, faulty(mutantHarness(t, &mutation{}, only...)), 6)
	harmless(t, faulty(streamMutantHarness(t, &streamMutation{}, only...)), 6)
}

// A case that no mutant fails may be one that cannot fail.
func TestEveryCaseHasAMutant(t *testing.T) {
	has := map[string]bool{"CloseWhileDown": true}
	for _, mu := range slices.Concat(queueMutants, moreQueueMutants) {
		has[mu.by] = true
	}
	for _, mu := range streamMutants {
		has[mu.by] = true
	}
	for _, mu := range faultMutants() {
		has[mu.by] = true
	}
	without := map[string]string{
		"PublishedIsDurable": "memory keeps nothing over a restart, so that nothing passes here",
		"BrokerKill":         "the same",
		"SlowLink":           "what AckedNotLost and GroupFIFO check, slowly",
	}
	for _, c := range Cases() {
		if _, known := without[c.Name]; has[c.Name] == known {
			t.Errorf("%d %s: a mutant: %t, known to have none: %t", c.ID, c.Name, has[c.Name], known)
		}
	}
}
