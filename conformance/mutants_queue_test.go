package conformance

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/queuestream/broker"
)

// queueMutants are defects, each with the case that must catch it.
var queueMutants = []struct {
	name string
	by   string
	m    mutation
}{
	// What the suites of peers let through.
	{"every message is delivered three times", "AckIsFinal", mutation{send: func(q *mutantQueue, ctx context.Context, ms []broker.Message) ([]broker.Receipt, error) {
		for range 2 {
			if rs, err := q.Queue.PublishBatch(ctx, ms); err != nil {
				return rs, err
			}
		}
		return q.Queue.PublishBatch(ctx, ms)
	}}},
	{"bodies are cut", "BytesExact", mutation{message: func(_ *mutantQueue, m *broker.Message) { m.Body = m.Body[:min(len(m.Body), 20)] }}},
	{"bodies are cut above 64 KiB", "BytesExact", mutation{message: func(_ *mutantQueue, m *broker.Message) { m.Body = m.Body[:min(len(m.Body), 64<<10)] }}},
	{"acknowledgements fail", "AckIsFinal", mutation{settle: onVerdict(broker.VerdictAck, func(*mutantConsumer, context.Context, *broker.Delivery) error {
		return &broker.Error{Op: "ack", Err: broker.ErrUnavailable}
	})}},
	{"an acknowledgement that was carried out is called failed", "SettleOnce", mutation{settle: onVerdict(broker.VerdictAck, func(k *mutantConsumer, ctx context.Context, d *broker.Delivery) error {
		err := k.Consumer.SettleOne(ctx, d, ackVerdict)
		if k.q.s.count(1)%3 == 0 && err == nil {
			return &broker.Error{Op: "ack", Err: broker.ErrUnavailable}
		}
		return err
	})}},
	{"acknowledgements do nothing", "AckIsFinal", mutation{settle: onVerdict(broker.VerdictAck, nothing)}},
	{"publish returns before it is done, and loses what it holds at Close", "CloseFlushes", mutation{send: lazySend, shut: func(b *mutantBroker) error {
		b.w.mu.Lock()
		for _, s := range b.w.queues {
			s.mu.Lock()
			s.n++ // whoever waits to send gives up
			s.mu.Unlock()
		}
		b.w.mu.Unlock()
		return b.Broker.Close()
	}}},
	{"publish hides its errors", "BatchPartialFailure", mutation{send: func(q *mutantQueue, ctx context.Context, ms []broker.Message) ([]broker.Receipt, error) {
		rs, _ := q.Queue.PublishBatch(ctx, ms)
		return rs, nil
	}}},
	{"last in, first out", "FIFOSingle", mutation{receive: func(k *mutantConsumer, ctx context.Context, max int) ([]*broker.Delivery, error) {
		k.mu.Lock()
		defer k.mu.Unlock()
		if k.stash == nil {
			ds, err := k.inner(ctx, 1000)
			if err != nil {
				return nil, err
			}
			k.stash = ds
		}
		n := max
		n = min(n, len(k.stash))
		out := slices.Clone(k.stash[len(k.stash)-n:])
		slices.Reverse(out)
		k.stash = k.stash[:len(k.stash)-n]
		if len(k.stash) == 0 {
			k.stash = nil
		}
		return out, nil
	}}},
	{"batches are reversed", "GroupFIFO", mutation{send: func(q *mutantQueue, ctx context.Context, ms []broker.Message) ([]broker.Receipt, error) {
		ms = slices.Clone(ms)
		slices.Reverse(ms)
		rs, err := q.Queue.PublishBatch(ctx, ms)
		slices.Reverse(rs)
		return rs, err
	}}},
	{"no redelivery after the lease", "LeaseExpires", mutation{
		consumer: func(_ *mutantQueue, o broker.ConsumerOptions) broker.ConsumerOptions { o.Lease *= 10_000; return o },
		delivery: fakeLease,
	}},
	{"what comes after message 100 is lost", "AckedNotLost", mutation{send: drop(func(n int) bool { return n > 100 })}},
	{"Receive ignores its context", "ContextCancel", mutation{receive: func(k *mutantConsumer, ctx context.Context, max int) ([]*broker.Delivery, error) {
		return k.inner(context.WithoutCancel(ctx), max)
	}}},
	{"Publish ignores its context", "ContextCancel", mutation{send: func(q *mutantQueue, ctx context.Context, ms []broker.Message) ([]broker.Receipt, error) {
		return q.Queue.PublishBatch(context.WithoutCancel(ctx), ms)
	}}},

	// Loss and invention.
	{"the first message is lost", "AckedNotLost", mutation{send: drop(func(n int) bool { return n == 1 })}},
	{"a message in the middle is lost", "AckedNotLost", mutation{send: drop(func(n int) bool { return n == 77 })}},
	{"one in many is lost", "Million", mutation{send: drop(func(n int) bool { return n == 999 })}},
	{"an empty delivery when the queue is deleted", "NoPhantom", mutation{receive: func(k *mutantConsumer, ctx context.Context, max int) ([]*broker.Delivery, error) {
		ds, err := k.inner(ctx, max)
		if errors.Is(err, broker.ErrNotFound) {
			return []*broker.Delivery{{}}, nil
		}
		return ds, err
	}}},
	{"what was refused is stored", "NoPhantom", mutation{send: func(q *mutantQueue, ctx context.Context, ms []broker.Message) ([]broker.Receipt, error) {
		rs, err := q.Queue.PublishBatch(ctx, ms)
		if errors.Is(err, broker.ErrInvalid) {
			again := slices.Clone(ms)
			for i := range again {
				again[i].Delay = 0
			}
			_, _ = q.Queue.PublishBatch(ctx, again)
		}
		return rs, err
	}}},
	{"one message is held by two", "CompetingConsumers", mutation{receive: twoHolders}},

	// Contents.
	{"headers are sorted", "HeadersExact", mutation{message: func(_ *mutantQueue, m *broker.Message) {
		m.Headers = slices.Clone(m.Headers)
		slices.SortFunc(m.Headers, func(a, b broker.Header) int { return strings.Compare(a.Key, b.Key) })
	}}},
	{"the last header of a key wins", "HeadersExact", mutation{message: func(_ *mutantQueue, m *broker.Message) {
		h := broker.Headers{}
		for _, e := range m.Headers {
			h.Set(e.Key, e.Value)
		}
		m.Headers = h
	}}},
	{"header values are made valid text", "HeadersExact", mutation{message: func(_ *mutantQueue, m *broker.Message) {
		m.Headers = slices.Clone(m.Headers)
		for i := range m.Headers {
			m.Headers[i].Value = strings.ToValidUTF8(m.Headers[i].Value, "?")
		}
	}}},
	{"bodies are made valid text", "BytesExact", mutation{message: func(_ *mutantQueue, m *broker.Message) { m.Body = bytes.ToValidUTF8(m.Body, []byte("?")) }}},
	{"the body is kept, not copied", "BytesExact", mutation{
		message:  func(q *mutantQueue, m *broker.Message) { q.s.kept(m) },
		delivery: func(k *mutantConsumer, d *broker.Delivery) { d.Body = k.s.body(d) },
	}},
	{"the id is replaced", "DedupReceipt", mutation{delivery: func(_ *mutantConsumer, d *broker.Delivery) { d.ID = broker.NewID() }}},
	{"the correlation id is dropped", "RequestReply", mutation{message: func(_ *mutantQueue, m *broker.Message) { m.CorrelationID = "" }}},

	// Batches.
	{"one bad entry fails the whole batch", "BatchPartialFailure", mutation{send: func(q *mutantQueue, ctx context.Context, ms []broker.Message) ([]broker.Receipt, error) {
		rs, err := q.Queue.PublishBatch(ctx, ms)
		if be, ok := errors.AsType[*broker.BatchError](err); ok {
			return rs, be.Unwrap()[0]
		}
		return rs, err
	}}},
	{"a bad entry ends the batch", "BatchPartialFailure", mutation{send: func(q *mutantQueue, ctx context.Context, ms []broker.Message) ([]broker.Receipt, error) {
		rs, errs := make([]broker.Receipt, len(ms)), make([]error, len(ms))
		for i := range ms {
			if rs[i], errs[i] = q.Queue.Publish(ctx, ms[i]); errs[i] != nil {
				break
			}
		}
		return rs, broker.NewBatchError(errs)
	}}},
	{"the batch counts as one message for the size", "Oversize", mutation{send: func(q *mutantQueue, ctx context.Context, ms []broker.Message) ([]broker.Receipt, error) {
		total := 0
		for i := range ms {
			total += ms[i].Size()
		}
		if limit := q.Queue.Capabilities().MaxBytes; total > limit {
			return make([]broker.Receipt, len(ms)), &broker.Error{Op: "publish", Err: broker.ErrTooLarge}
		}
		return q.Queue.PublishBatch(ctx, ms)
	}}},
	{"sizes are counted in characters", "Oversize", mutation{message: func(q *mutantQueue, m *broker.Message) {
		if limit := q.Queue.Capabilities().MaxBytes; len(m.Body) > limit && len([]rune(string(m.Body))) <= limit {
			m.Body = m.Body[:limit] // that many bytes were let through
		}
	}}},

	// Settlement.
	{"nack removes the message", "NackRequeues", mutation{settle: onVerdict(broker.VerdictNack, as(broker.VerdictAck))}},
	{"nack does nothing", "ReleaseNow", mutation{settle: onVerdict(broker.VerdictNack, nothing)}},
	{"nack gives up the neighbours", "NackRequeues", mutation{settle: func(k *mutantConsumer, ctx context.Context, d *broker.Delivery, v broker.Verdict) error {
		k.s.mu.Lock()
		open := k.s.held
		k.s.held = map[string]*broker.Delivery{}
		k.s.mu.Unlock()
		if v.Kind == broker.VerdictNack {
			for _, other := range open {
				if other != d {
					_ = k.Consumer.SettleOne(ctx, other, broker.Verdict{Kind: broker.VerdictAck})
				}
			}
		}
		return k.Consumer.SettleOne(ctx, d, v)
	}, delivery: func(k *mutantConsumer, d *broker.Delivery) {
		k.s.mu.Lock()
		k.s.held[d.ID] = d
		k.s.mu.Unlock()
	}}},
	{"a long reason keeps the message", "DeadLetterKeeps", mutation{settle: func(k *mutantConsumer, ctx context.Context, d *broker.Delivery, v broker.Verdict) error {
		if len(v.Reason) > 64<<10 {
			return &broker.SizeError{Size: len(v.Reason)}
		}
		return k.Consumer.SettleOne(ctx, d, v)
	}}},
	{"reject drops the message", "DeadLetterKeeps", mutation{settle: onVerdict(broker.VerdictReject, as(broker.VerdictAck))}},
	{"extend does nothing", "ExtendLease", mutation{settle: onVerdict(broker.VerdictExtend, func(k *mutantConsumer, _ context.Context, d *broker.Delivery) error {
		d.SetLease(time.Now().Add(k.lease))
		return nil
	})}},
	{"extend adds to the lease", "ExtendLease", mutation{settle: func(k *mutantConsumer, ctx context.Context, d *broker.Delivery, v broker.Verdict) error {
		if v.Kind == broker.VerdictExtend && v.Lease == 0 {
			v.Lease = time.Until(d.LeaseExpires()) + k.lease
		}
		return k.Consumer.SettleOne(ctx, d, v)
	}}},
	{"a stale acknowledgement settles the new holder's delivery", "StaleReceipt", mutation{receive: byID}},
	{"a closed consumer keeps what it holds", "UnackedReturns", mutation{closing: func(k *mutantConsumer) error { return nil }}},
}

func TestQueueMutants(t *testing.T) {
	all := append(slices.Clone(queueMutants), moreQueueMutants...)
	for i := range all {
		mu := &all[i]
		caught(t, mu.by, mu.name, func(t *testing.T) Harness { return mutantHarness(t, &mu.m, mu.by) })
	}
	t.Logf("%d mutants", len(all))
}

// caught runs the one case that has to fail on a mutant.
func caught(t *testing.T, by, name string, harness func(*testing.T) Harness) {
	t.Run(by+"/"+name, func(t *testing.T) {
		report, err := Check(t.Context(), harness(t))
		if err != nil || len(report.Results) != 1 {
			t.Fatalf("%v, %d results", err, len(report.Results))
		}
		if r := report.Results[0]; r.Status != StatusFail {
			t.Errorf("not caught: %s %s", r.Status, r.Reason)
		} else {
			t.Logf("%.300s", r.Failures[0])
		}
	})
}

// harmless runs a mutant's harness without a mutation: at least so many cases
// pass, and none fails.
func harmless(t *testing.T, h Harness, least int) {
	t.Helper()
	report, err := Check(t.Context(), h)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range report.Results {
		if r.Status == StatusFail {
			t.Errorf("%d %s: %q", r.ID, r.Name, r.Failures)
		}
	}
	if report.Count(StatusPass) < least {
		t.Error(report.Summary())
	}
}

// The wrapper by itself changes nothing.
func TestNoMutation(t *testing.T) {
	harmless(t, mutantHarness(t, &mutation{}), 50)
}
