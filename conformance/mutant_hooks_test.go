package conformance

import (
	"context"
	"slices"
	"time"

	"github.com/queuestream/broker"
)

// The hooks that several mutations share.

type settleHook = func(k *mutantConsumer, ctx context.Context, d *broker.Delivery, v broker.Verdict) error

// onVerdict replaces what one kind of verdict does.
func onVerdict(kind broker.VerdictKind, f func(k *mutantConsumer, ctx context.Context, d *broker.Delivery) error) settleHook {
	return func(k *mutantConsumer, ctx context.Context, d *broker.Delivery, v broker.Verdict) error {
		if v.Kind == kind {
			return f(k, ctx, d)
		}
		return k.Consumer.SettleOne(ctx, d, v)
	}
}

func nothing(*mutantConsumer, context.Context, *broker.Delivery) error { return nil }

func as(kind broker.VerdictKind) func(k *mutantConsumer, ctx context.Context, d *broker.Delivery) error {
	return func(k *mutantConsumer, ctx context.Context, d *broker.Delivery) error {
		return k.Consumer.SettleOne(ctx, d, broker.Verdict{Kind: kind})
	}
}

// republish makes a nack a new publish with a delay.
func republish(delay time.Duration) settleHook {
	return onVerdict(broker.VerdictNack, func(k *mutantConsumer, ctx context.Context, d *broker.Delivery) error {
		m := d.Message
		m.Delay = delay
		if _, err := k.q.Queue.Publish(ctx, m); err != nil {
			return err
		}
		return k.Consumer.SettleOne(ctx, d, ackVerdict)
	})
}

// drop loses the messages whose number in their queue, from 1, it is told to.
func drop(lost func(n int) bool) func(*mutantQueue, context.Context, []broker.Message) ([]broker.Receipt, error) {
	return func(q *mutantQueue, ctx context.Context, ms []broker.Message) ([]broker.Receipt, error) {
		rs, errs := make([]broker.Receipt, len(ms)), make([]error, len(ms))
		for i, m := range ms {
			if lost(q.s.count(1)) {
				rs[i].ID = broker.NewID()
				continue
			}
			rs[i], errs[i] = q.Queue.Publish(ctx, m)
		}
		return rs, broker.NewBatchError(errs)
	}
}

// onlyOnce drops what has a key that was seen before, for ever.
func onlyOnce(key func(q *mutantQueue, m *broker.Message) string) func(*mutantQueue, context.Context, []broker.Message) ([]broker.Receipt, error) {
	return func(q *mutantQueue, ctx context.Context, ms []broker.Message) ([]broker.Receipt, error) {
		rs, errs := make([]broker.Receipt, len(ms)), make([]error, len(ms))
		for i, m := range ms {
			if k := key(q, &m); k != "" && q.s.times(k) > 1 {
				rs[i].ID = broker.NewID()
				continue
			}
			rs[i], errs[i] = q.Queue.Publish(ctx, m)
		}
		return rs, broker.NewBatchError(errs)
	}
}

// lazySend answers at once and sends a moment later, unless the connection was
// closed by then.
func lazySend(q *mutantQueue, ctx context.Context, ms []broker.Message) ([]broker.Receipt, error) {
	ms, before := slices.Clone(ms), q.s.count(0)
	rs := make([]broker.Receipt, len(ms))
	for i := range ms {
		if ms[i].ID == "" {
			ms[i].ID = broker.NewID()
		}
		rs[i].ID = ms[i].ID
	}
	go func() {
		time.Sleep(time.Millisecond) // virtual
		if q.s.count(0) == before {
			_, _ = q.Queue.PublishBatch(context.WithoutCancel(ctx), ms)
		}
	}()
	return rs, nil
}

// fakeLease tells the lease that was asked for, whatever the broker holds it for.
func fakeLease(k *mutantConsumer, d *broker.Delivery) {
	if k.lease > 0 {
		d.SetLease(time.Now().Add(k.lease))
	}
}

// hoard takes everything there is ahead of Receive.
func hoard(k *mutantConsumer, ctx context.Context, max int) ([]*broker.Delivery, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if max <= 0 {
		return k.inner(ctx, max)
	}
	if len(k.stash) == 0 {
		ds, err := k.inner(ctx, 1000)
		if err != nil {
			return nil, err
		}
		k.stash = ds
	}
	k.stash = append(k.stash, k.soon(ctx, 1000)...)
	n := min(max, len(k.stash))
	out := k.stash[:n:n]
	k.stash = k.stash[n:]
	return out, nil
}

// busiestFirst sets deliveries of other groups aside as long as there are more
// of the group that was served last.
func busiestFirst(k *mutantConsumer, ctx context.Context, max int) ([]*broker.Delivery, error) {
	for {
		ds := k.soon(ctx, 1)
		if len(ds) == 0 {
			break
		}
		if k.s.times(ds[0].GroupID) > 10 {
			return ds, nil
		}
		k.stash = append(k.stash, ds[0])
		if k.s.seen[ds[0].GroupID] > 10 || len(k.stash) < 2 && ds[0].GroupID == "busy" {
			break
		}
	}
	if len(k.stash) > 0 {
		d := k.stash[0]
		k.stash = k.stash[1:]
		return []*broker.Delivery{d}, nil
	}
	return k.inner(ctx, max)
}

// twoHolders hands a delivery to the next consumer as well.
func twoHolders(k *mutantConsumer, ctx context.Context, max int) ([]*broker.Delivery, error) {
	k.s.mu.Lock()
	if n := len(k.s.stash); n > 0 && max > 0 && ctx.Err() == nil {
		d := k.s.stash[n-1]
		k.s.stash = nil
		k.s.mu.Unlock()
		return []*broker.Delivery{d}, nil
	}
	k.s.mu.Unlock()
	ds, err := k.inner(ctx, max)
	if len(ds) > 0 {
		k.s.mu.Lock()
		k.s.stash = append(k.s.stash, ds[0])
		k.s.mu.Unlock()
	}
	return ds, err
}

// byID settles whatever delivery of the message is the latest, as a broker does
// whose receipts are not bound to a delivery.
func byID(k *mutantConsumer, ctx context.Context, max int) ([]*broker.Delivery, error) {
	ds, err := k.inner(ctx, max)
	for i, d := range ds {
		k.s.mu.Lock()
		k.s.held[d.ID] = d
		k.s.mu.Unlock()
		copied := &broker.Delivery{Message: d.Message, Attempt: d.Attempt, Time: d.Time}
		copied.Bind(&byMessage{k.s}, 0, 0)
		ds[i] = copied
	}
	return ds, err
}

type byMessage struct{ s *state }

func (l *byMessage) SettleOne(ctx context.Context, d *broker.Delivery, v broker.Verdict) error {
	l.s.mu.Lock()
	real := l.s.held[d.ID]
	l.s.mu.Unlock()
	return broker.ErrorAt(broker.SettleAll(ctx, []broker.Outcome{{Delivery: real, Verdict: v}}), 0)
}

func (l *byMessage) Settle(ctx context.Context, batch []broker.Outcome) {
	for i := range batch {
		batch[i].Err = l.SettleOne(ctx, batch[i].Delivery, batch[i].Verdict)
	}
}

// count adds to the queue's number and returns it.
func (s *state) count(add int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n += add
	return s.n
}

// times counts a key and returns how often it was seen by now.
func (s *state) times(key string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen[key]++
	return s.seen[key]
}

// kept remembers the caller's own body instead of copying it.
func (s *state) kept(m *broker.Message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bodies == nil {
		s.bodies = map[string][]byte{}
	}
	s.bodies[m.ID] = m.Body
}

func (s *state) body(d *broker.Delivery) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b, ok := s.bodies[d.ID]; ok {
		return b
	}
	return d.Body
}

func (b *mutantBroker) names() []string {
	b.w.mu.Lock()
	defer b.w.mu.Unlock()
	var names []string
	for name := range b.w.queues {
		names = append(names, name)
	}
	return names
}
