package conformance

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/queuestream/broker"
)

// moreQueueMutants continues queueMutants.
var moreQueueMutants = []struct {
	name string
	by   string
	m    mutation
}{
	// Order and groups.
	{"groups are forgotten", "GroupExclusive", mutation{message: func(_ *mutantQueue, m *broker.Message) {
		m.Headers, m.GroupID = m.Headers.With("group", m.GroupID), ""
	}, delivery: func(_ *mutantConsumer, d *broker.Delivery) { d.GroupID = d.Headers.Get("group") }}},
	{"a nacked head goes to the back of its group", "GroupHeadBlocks", mutation{settle: republish(0)}},
	{"all groups are one", "GroupsIndependent", mutation{message: func(_ *mutantQueue, m *broker.Message) {
		m.Headers, m.GroupID = m.Headers.With("group", m.GroupID), "all"
	}, delivery: func(_ *mutantConsumer, d *broker.Delivery) { d.GroupID = d.Headers.Get("group") }}},
	{"the busiest group goes first", "NoGroupStarves", mutation{receive: busiestFirst}},
	{"some groups are dropped", "TenThousandGroups", mutation{send: func(q *mutantQueue, ctx context.Context, ms []broker.Message) ([]broker.Receipt, error) {
		rs, err := q.Queue.PublishBatch(ctx, slices.DeleteFunc(slices.Clone(ms), func(m broker.Message) bool { return m.GroupID == "g777" }))
		return append(rs, make([]broker.Receipt, len(ms)-len(rs))...), err
	}}},
	{"a nacked message goes to the back", "RequeuePosition", mutation{settle: republish(0)}},

	// Dedup.
	{"DedupID is ignored", "DedupWindow", mutation{message: func(_ *mutantQueue, m *broker.Message) { m.DedupID = "" }}},
	{"DedupID counts until the acknowledgement", "DedupAfterAck", mutation{
		message: func(q *mutantQueue, m *broker.Message) {
			if m.DedupID != "" {
				m.DedupID += fmt.Sprint("-", q.s.count(0))
			}
		},
		settle: onVerdict(broker.VerdictAck, func(k *mutantConsumer, ctx context.Context, d *broker.Delivery) error {
			k.s.count(1)
			return k.Consumer.SettleOne(ctx, d, ackVerdict)
		}),
	}},
	{"DedupID counts for ever", "DedupExpires", mutation{send: onlyOnce(func(_ *mutantQueue, m *broker.Message) string { return m.DedupID })}},
	{"DedupID counts for a minute", "DedupExpires", mutation{message: func(q *mutantQueue, m *broker.Message) {
		if m.DedupID != "" {
			m.DedupID += fmt.Sprint("-", time.Now().Unix()/60)
		}
	}}},
	{"the scope of DedupID is always the group", "DedupScope", mutation{message: func(_ *mutantQueue, m *broker.Message) {
		if m.DedupID != "" {
			m.DedupID += m.GroupID
		}
	}}},
	{"only the beginning of a body is compared", "ContentDedup", mutation{send: onlyOnce(func(q *mutantQueue, m *broker.Message) string {
		if !q.s.content {
			return ""
		}
		return string(m.Body[:min(len(m.Body), 1000)])
	})}},
	{"a duplicate's receipt shows another message", "DedupReceipt", mutation{send: func(q *mutantQueue, ctx context.Context, ms []broker.Message) ([]broker.Receipt, error) {
		rs, err := q.Queue.PublishBatch(ctx, ms)
		for i := range rs {
			if rs[i].Sequence = fmt.Sprint(q.s.count(1)); ms[i].DedupID != "" && q.s.times(ms[i].DedupID) > 1 {
				rs[i].Duplicate = true
			}
		}
		return rs, err
	}}},

	// Delay, lease, time to live.
	{"delays are ignored", "DelayNeverEarly", mutation{message: func(_ *mutantQueue, m *broker.Message) { m.Delay = max(0, min(m.Delay, 0)) }}},
	{"delays are too short", "DelayNeverEarly", mutation{message: func(_ *mutantQueue, m *broker.Message) { m.Delay -= m.Delay / 10 }}},
	{"delayed messages come late", "DelayNotLate", mutation{message: func(_ *mutantQueue, m *broker.Message) {
		if m.Delay > 0 {
			m.Delay += time.Minute
		}
	}}},
	{"a long delay holds up shorter ones", "DelayMixed", mutation{message: func(q *mutantQueue, m *broker.Message) {
		q.s.mu.Lock()
		defer q.s.mu.Unlock()
		if due := time.Now().Add(m.Delay); m.Delay > 0 && due.Before(q.s.at) {
			m.Delay = time.Until(q.s.at)
		} else if m.Delay > 0 {
			q.s.at = due
		}
	}}},
	{"leases are too short", "InvisibleWhileHeld", mutation{
		consumer: func(_ *mutantQueue, o broker.ConsumerOptions) broker.ConsumerOptions { o.Lease /= 2; return o },
		delivery: fakeLease,
	}},
	{"leases are too long", "LeaseExpires", mutation{
		consumer: func(_ *mutantQueue, o broker.ConsumerOptions) broker.ConsumerOptions { o.Lease *= 20; return o },
		delivery: fakeLease,
	}},
	{"time to live is ignored", "RetentionExpires", mutation{message: func(_ *mutantQueue, m *broker.Message) { m.TTL = max(0, min(m.TTL, 0)) }}},
	{"time to live is too short", "RetentionExpires", mutation{message: func(_ *mutantQueue, m *broker.Message) {
		if m.TTL > time.Minute {
			m.TTL = time.Second
		}
	}}},

	// Attempts and dead letters.
	{"every attempt is the first", "AttemptCount", mutation{delivery: func(_ *mutantConsumer, d *broker.Delivery) { d.Attempt = 1 }}},
	{"attempts are counted for each consumer", "AttemptCount", mutation{delivery: func(k *mutantConsumer, d *broker.Delivery) { k.n++; d.Attempt = k.n }}},
	{"one attempt too many", "DeadLetterAfterN", mutation{
		declare: func(cfg *broker.QueueConfig) { cfg.MaxAttempts += min(cfg.MaxAttempts, 1) },
		caps:    func(c *broker.QueueCapabilities) { c.MaxAttempts = max(0, c.MaxAttempts-1) },
	}},
	{"one attempt too few", "DeadLetterAfterN", mutation{
		declare: func(cfg *broker.QueueConfig) { cfg.MaxAttempts -= min(cfg.MaxAttempts, 1) },
		caps:    func(c *broker.QueueCapabilities) { c.MaxAttempts += min(c.MaxAttempts, 1) },
	}},
	{"two dead letters for each", "DeadLetterKeeps", mutation{settle: onVerdict(broker.VerdictReject, func(k *mutantConsumer, ctx context.Context, d *broker.Delivery) error {
		m := broker.DeadLetterMessage(d.Message, broker.DeadLetter{Reason: "x", Queue: k.q.Name(), Attempts: d.Attempt, Time: time.Now()})
		if err := k.bury(ctx, m); err != nil {
			return err
		}
		return k.Consumer.SettleOne(ctx, d, broker.Verdict{Kind: broker.VerdictReject, Reason: "x"})
	})}},
	{"dead letters lose their headers", "DeadLetterKeeps", mutation{settle: func(k *mutantConsumer, ctx context.Context, d *broker.Delivery, v broker.Verdict) error {
		if v.Kind != broker.VerdictReject {
			return k.Consumer.SettleOne(ctx, d, v)
		}
		m := d.Message
		m.Headers = nil
		m = broker.DeadLetterMessage(m, broker.DeadLetter{Reason: v.Reason, Queue: k.q.Name(), Attempts: d.Attempt, Time: time.Now()})
		if err := k.bury(ctx, m); err != nil {
			return err
		}
		return k.Consumer.SettleOne(ctx, d, ackVerdict)
	}}},
	{"redrive loses one", "Redrive", mutation{redrive: func(a *mutantAdmin, ctx context.Context, from, to string, max int) (int, error) {
		return a.redriveVia(ctx, from, to, max, func(ms []broker.Message) []broker.Message { return ms[:len(ms)-1] })
	}}},
	{"redrive copies", "Redrive", mutation{redrive: func(a *mutantAdmin, ctx context.Context, from, to string, max int) (int, error) {
		return a.redriveVia(ctx, from, to, max, func(ms []broker.Message) []broker.Message { return append(ms, ms[0]) })
	}}},
	{"redriven messages keep the marks of death", "Redrive", mutation{redrive: func(a *mutantAdmin, ctx context.Context, from, to string, max int) (int, error) {
		return a.redriveVia(ctx, from, to, max, func(ms []broker.Message) []broker.Message {
			for i := range ms {
				ms[i].Headers = ms[i].Headers.With(broker.HeaderDeadLetterReason, "later")
			}
			return ms
		})
	}}},
	{"poison is delivered for ever", "PoisonDoesNotBlock", mutation{
		declare: func(cfg *broker.QueueConfig) { cfg.MaxAttempts *= 1_000_000 },
		caps:    func(c *broker.QueueCapabilities) { c.MaxAttempts = min(c.MaxAttempts, attemptLimit) },
	}},

	// Back-pressure.
	{"prefetch is ignored", "PrefetchBound", mutation{receive: hoard}},
	{"Receive returns more than asked for", "PrefetchBound", mutation{receive: func(k *mutantConsumer, ctx context.Context, max int) ([]*broker.Delivery, error) {
		if max > 0 {
			max++
		}
		return k.inner(ctx, max)
	}}},
	{"a full queue drops the new", "QueueFull", mutation{send: func(q *mutantQueue, ctx context.Context, ms []broker.Message) ([]broker.Receipt, error) {
		rs, err := q.Queue.PublishBatch(ctx, ms)
		if errors.Is(err, broker.ErrFull) {
			err = nil
		}
		return rs, err
	}}},
	{"a slow consumer holds all", "SlowConsumer", mutation{receive: hoard}},
	{"publish fails under load", "PublishBlocks", mutation{send: func(q *mutantQueue, ctx context.Context, ms []broker.Message) ([]broker.Receipt, error) {
		defer q.s.count(-1)
		if q.s.count(1) > 16 {
			return make([]broker.Receipt, len(ms)), &broker.Error{Op: "publish", Temporary: true, Err: broker.ErrUnavailable}
		}
		time.Sleep(time.Millisecond) // a round trip, in virtual time
		return q.Queue.PublishBatch(ctx, ms)
	}}},

	// Life cycle.
	{"the second Close fails", "CloseTwice", mutation{closing: func(k *mutantConsumer) error {
		k.mu.Lock()
		defer k.mu.Unlock()
		if k.n++; k.n > 1 {
			return broker.ErrClosed
		}
		return k.Consumer.Close()
	}}},
	{"a closed queue still publishes", "UseAfterClose", mutation{closed: func(*mutantQueue) error { return nil }}},
	{"a goroutine for each connection is left", "NoLeaks", mutation{shut: func(b *mutantBroker) error {
		go func() { <-b.w.end }()
		return b.Broker.Close()
	}}},
	{"Close acknowledges what is unread", "CloseWithUnread", mutation{closing: func(k *mutantConsumer) error {
		for _, d := range k.soon(context.Background(), 50) {
			_ = k.Consumer.SettleOne(context.Background(), d, ackVerdict)
		}
		return k.Consumer.Close()
	}}},
	{"Close hangs with unread messages", "CloseWithUnread", mutation{closing: func(k *mutantConsumer) error {
		if stats, err := k.q.b.QueueStats(context.Background(), k.q.Name()); err == nil && stats.Ready > 100 {
			<-k.q.b.w.end
		}
		return k.Consumer.Close()
	}}},
	{"one consumer cannot be shared", "ConcurrentUse", mutation{receive: func(k *mutantConsumer, ctx context.Context, max int) ([]*broker.Delivery, error) {
		if !k.mu.TryLock() {
			return nil, &broker.Error{Op: "receive", Err: broker.ErrConflict}
		}
		defer k.mu.Unlock()
		return k.inner(ctx, max)
	}}},

	// Bad input.
	{"unsupported delays are dropped silently", "UnsupportedRefused", mutation{
		caps:    func(c *broker.QueueCapabilities) { c.Delay = false },
		message: func(_ *mutantQueue, m *broker.Message) { m.Delay = min(m.Delay, 0) },
	}},
	{"unsupported headers are dropped silently", "UnsupportedRefused", mutation{
		caps:    func(c *broker.QueueCapabilities) { c.Headers = false },
		message: func(_ *mutantQueue, m *broker.Message) { m.Headers = nil },
	}},
	{"a setting is accepted and dropped", "UnsupportedRefused", mutation{
		declare: func(cfg *broker.QueueConfig) { cfg.ContentDedup = false },
	}},
	{"missing queues are made", "BadName", mutation{openQueue: func(b *mutantBroker, ctx context.Context, name string, err error) (broker.Queue, error) {
		if !errors.Is(err, broker.ErrNotFound) {
			return nil, err
		}
		if err := b.Broker.DeclareQueue(ctx, name, broker.QueueConfig{}); err != nil {
			return nil, err
		}
		return b.Broker.Queue(ctx, name, nil)
	}}},

	// Routing.
	{"a direct exchange ignores the key", "Direct", mutation{
		exchange: func(broker.ExchangeKind) broker.ExchangeKind { return broker.ExchangeFanout },
		bind:     func(b *broker.Binding) { b.RoutingKey = "" },
	}},
	{"* matches any number of words", "Topic", mutation{bind: func(b *broker.Binding) { b.RoutingKey = strings.ReplaceAll(b.RoutingKey, "*", "#") }}},
	{"# matches one word", "Topic", mutation{bind: func(b *broker.Binding) { b.RoutingKey = strings.ReplaceAll(b.RoutingKey, "#", "*") }}},
	{"any header is enough", "HeadersMatch", mutation{bind: func(b *broker.Binding) { b.MatchAny = true }}},
	{"all headers are wanted", "HeadersMatch", mutation{bind: func(b *broker.Binding) { b.MatchAny = false }}},
	{"fanout delivers twice", "Fanout", mutation{route: func(p broker.Publisher, ctx context.Context, m broker.Message) (broker.Receipt, error) {
		if _, err := p.Publish(ctx, m); err != nil {
			return broker.Receipt{}, err
		}
		return p.Publish(ctx, m)
	}}},
	{"what no queue takes is dropped silently", "Unroutable", mutation{route: func(p broker.Publisher, ctx context.Context, m broker.Message) (broker.Receipt, error) {
		r, err := p.Publish(ctx, m)
		if errors.Is(err, broker.ErrNotFound) {
			err = nil
		}
		return r, err
	}}},
	{"reply queues are left behind", "RequestReply", mutation{reply: func(q broker.Queue) broker.Queue { return &immortal{q} }}},
	{"a killed consumer's deliveries are gone", "ConsumerKill", mutation{shut: func(b *mutantBroker) error {
		for _, name := range b.names() {
			s := b.w.queue(name)
			s.mu.Lock()
			held := s.stash
			s.stash = nil
			s.mu.Unlock()
			for _, d := range held {
				_ = d.Ack(context.Background())
			}
		}
		return b.Broker.Close()
	}, delivery: func(k *mutantConsumer, d *broker.Delivery) {
		k.s.mu.Lock()
		k.s.stash = append(k.s.stash, d)
		k.s.mu.Unlock()
	}}},
}

// immortal is a queue that Close leaves alone.
type immortal struct{ broker.Queue }

func (*immortal) Close() error { return nil }

// bury publishes to the dead-letter queue.
func (k *mutantConsumer) bury(ctx context.Context, m broker.Message) error {
	q, err := k.q.b.Broker.Queue(ctx, k.s.dead, nil)
	if err != nil {
		return err
	}
	_, err = q.Publish(ctx, m)
	return errors.Join(err, q.Close())
}

// redriveVia moves by hand, through a defect.
func (a *mutantAdmin) redriveVia(ctx context.Context, from, to string, max int, defect func([]broker.Message) []broker.Message) (int, error) {
	stats, err := a.QueueStats(ctx, from)
	if err != nil || stats.Ready == 0 {
		return 0, err
	}
	if max == 0 {
		max = int(stats.Ready)
	}
	q, err := a.Broker.Queue(ctx, from, nil)
	if err != nil {
		return 0, err
	}
	k, err := q.Consumer(ctx, nil)
	if err != nil {
		return 0, err
	}
	var ms []broker.Message
	for range max {
		ds, err := k.Receive(ctx, 1)
		if err != nil {
			return 0, err
		}
		why, _ := broker.DeadLetterOf(&ds[0].Message)
		if to == "" {
			to = why.Queue
		}
		ms = append(ms, broker.RedriveMessage(ds[0].Message))
		if err := ds[0].Ack(ctx); err != nil {
			return 0, err
		}
	}
	target, err := a.Broker.Queue(ctx, to, nil)
	if err != nil {
		return 0, err
	}
	n := len(ms)
	_, err = target.PublishBatch(ctx, defect(ms))
	return n, errors.Join(err, k.Close(), q.Close(), target.Close())
}
