package memory

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/queuestream/broker"
)

// QueueName returns name with the suffix that the profile's queues must have.
func (b *Broker) QueueName(name string, _ broker.QueueConfig) string {
	return strings.TrimSuffix(name, b.srv.rules.suffix) + b.srv.rules.suffix
}

// DeclareQueue makes a queue. Its dead-letter queue must exist.
func (b *Broker) DeclareQueue(ctx context.Context, name string, cfg broker.QueueConfig) error {
	err := b.check(ctx)
	if err == nil {
		err = b.srv.declareQueue(name, cfg)
	}
	return opError("declare queue", name, err)
}

func (s *server) declareQueue(name string, cfg broker.QueueConfig) error {
	if err := s.rules.queueName(name); err != nil {
		return err
	}
	if err := s.rules.queueConfig(&cfg); err != nil {
		return err
	}
	if s.rules.alwaysFIFO {
		cfg.Ordered, cfg.Dedup = true, true
	}
	cfg.Tags = maps.Clone(cfg.Tags)
	s.mu.Lock()
	defer s.mu.Unlock()
	if q := s.queues[name]; q != nil {
		return sameConfig(&q.cfg, &cfg)
	}
	q := newQueue(s, name, cfg)
	if cfg.DeadLetter != "" {
		dead := s.queues[cfg.DeadLetter]
		if dead == nil {
			return fmt.Errorf("dead-letter queue %q: %w", cfg.DeadLetter, broker.ErrNotFound)
		}
		connect(q, dead)
	}
	s.queues[name] = q
	return nil
}

// sameConfig returns ErrConflict naming the first setting that differs. Tags
// describe a queue and do not conflict.
func sameConfig(has, want *broker.QueueConfig) error {
	for _, f := range []struct {
		name      string
		has, want any
	}{
		{"Ordered", has.Ordered, want.Ordered},
		{"Dedup", has.Dedup, want.Dedup},
		{"ContentDedup", has.ContentDedup, want.ContentDedup},
		{"DedupPerGroup", has.DedupPerGroup, want.DedupPerGroup},
		{"MaxAttempts", has.MaxAttempts, want.MaxAttempts},
		{"DeadLetter", has.DeadLetter, want.DeadLetter},
		{"Lease", has.Lease, want.Lease},
		{"Delay", has.Delay, want.Delay},
		{"TTL", has.TTL, want.TTL},
		{"MaxPriority", has.MaxPriority, want.MaxPriority},
		{"MaxLength", has.MaxLength, want.MaxLength},
		{"MaxBytes", has.MaxBytes, want.MaxBytes},
		{"Shards", has.Shards, want.Shards},
		{"Temporary", has.Temporary, want.Temporary},
	} {
		if f.has != f.want {
			return fmt.Errorf("%w: %s is %v, not %v", broker.ErrConflict, f.name, f.has, f.want)
		}
	}
	return nil
}

// DeleteQueue removes a queue with its messages and bindings. Calls that wait
// on it return ErrNotFound.
func (b *Broker) DeleteQueue(ctx context.Context, name string) error {
	err := b.check(ctx)
	if err == nil {
		b.srv.deleteQueue(name)
	}
	return opError("delete queue", name, err)
}

func (s *server) deleteQueue(name string) {
	s.mu.Lock()
	q := s.queues[name]
	delete(s.queues, name)
	for _, x := range s.exchanges {
		x.unbindAll(name)
	}
	s.mu.Unlock()
	if q == nil {
		return
	}
	disconnect(q)
	q.mu.Lock()
	q.deleted.Store(true)
	q.absorb(false)
	q.clear(true)
	if q.timer != nil {
		q.timer.Stop()
	}
	for q.rouse(&q.receivers) || q.rouse(&q.space) {
	}
	q.unlock()
}

// clear drops everything that nobody holds, and with held the rest too. q.mu
// is held.
func (q *queue) clear(held bool) {
	if held {
		for _, e := range slices.Clone(q.slots) {
			if e != nil {
				e.attempt.d.Lose()
				q.finish(e)
			}
		}
	}
	for _, e := range q.stored() {
		if e.state != gone {
			q.drop(e)
		}
	}
}

// stored returns every entry that nobody holds, in the order of delivery;
// delayed ones come last. q.mu is held.
func (q *queue) stored() []*entry {
	var es []*entry
	for i := range q.fresh.n {
		if e := q.fresh.at(i); e.state == ready {
			es = append(es, e)
		}
	}
	es = append(es, q.back.items...)
	for _, g := range q.groups {
		for e := g.head; e != nil; e = e.extra.gnext {
			if e.state == waiting {
				es = append(es, e)
			}
		}
	}
	slices.SortFunc(es, func(a, b *entry) int {
		if before(a, b) {
			return -1
		}
		return 1
	})
	n := len(es)
	for _, e := range q.events.items {
		if e.state == delayed {
			es = append(es, e)
		}
	}
	slices.SortFunc(es[n:], func(a, b *entry) int { return int(min(max(a.due-b.due, -1), 1)) })
	return es
}

// sync brings the queues whose dead letters come to q, and q, up to now.
func (q *queue) sync() {
	for _, f := range q.sources() {
		f.refresh()
	}
	q.refresh()
}

// admin looks a queue up for an operation.
func (b *Broker) admin(ctx context.Context, name string) (*queue, error) {
	if err := b.check(ctx); err != nil {
		return nil, err
	}
	q, err := b.srv.queue(name)
	if err != nil {
		return nil, err
	}
	q.sync()
	return q, nil
}

// Purge removes every message that no consumer holds.
func (b *Broker) Purge(ctx context.Context, name string) error {
	q, err := b.admin(ctx, name)
	if err != nil {
		return opError("purge", name, err)
	}
	q.lock()
	q.clear(false)
	q.unlock()
	return nil
}

// QueueStats returns exact numbers. Ready counts those too that wait for their
// turn within a group.
func (b *Broker) QueueStats(ctx context.Context, name string) (broker.QueueStats, error) {
	q, err := b.admin(ctx, name)
	if err != nil {
		return broker.QueueStats{}, opError("queue stats", name, err)
	}
	q.lock()
	defer q.unlock()
	s := broker.QueueStats{
		Ready:     q.count[ready] + q.count[waiting],
		InFlight:  q.count[inFlight],
		Delayed:   q.count[delayed],
		Consumers: q.consumers,
	}
	var oldest int64
	older := func(e *entry) {
		if e != nil && (oldest == 0 || e.at < oldest) {
			oldest = e.at
		}
	}
	older(q.fresh.first())
	for _, e := range q.back.items {
		older(e)
	}
	if oldest != 0 {
		s.OldestAge = time.Duration(now() - oldest)
	}
	return s, nil
}

// Peek returns copies of messages in the order of delivery, those that are not
// due last, without touching them.
func (b *Broker) Peek(ctx context.Context, name string, limit int) ([]broker.Message, error) {
	q, err := b.admin(ctx, name)
	if err == nil && limit <= 0 {
		err = broker.Invalid("max %d: want at least 1", limit)
	}
	if err != nil {
		return nil, opError("peek", name, err)
	}
	q.lock()
	defer q.unlock()
	es := q.stored()
	ms := make([]broker.Message, min(limit, len(es)))
	for i := range ms {
		ms[i] = es[i].message()
	}
	return ms, nil
}

// Redrive moves messages out of a dead-letter queue, the oldest first. It
// stops at the first message that cannot go, which stays.
func (b *Broker) Redrive(ctx context.Context, deadLetterQueue, to string, limit int) (int, error) {
	n, err := b.redrive(ctx, deadLetterQueue, to, limit)
	return n, opError("redrive", deadLetterQueue, err)
}

func (b *Broker) redrive(ctx context.Context, from, to string, limit int) (int, error) {
	q, err := b.admin(ctx, from)
	if err != nil {
		return 0, err
	}
	if limit < 0 {
		return 0, broker.Invalid("max %d: must not be negative", limit)
	}
	if to == from {
		return 0, broker.Invalid("to %q: is the dead-letter queue itself", to)
	}
	if to != "" {
		if _, err := b.srv.queue(to); err != nil {
			return 0, fmt.Errorf("to %q: %w", to, err)
		}
	}
	q.lock()
	todo := q.length() // not what is dead-lettered again meanwhile
	q.unlock()
	if limit > 0 {
		todo = min(todo, int64(limit))
	}
	moved := 0
	var failed error
	for ; todo > 0 && failed == nil; todo-- {
		if failed = broker.ContextError(ctx); failed != nil {
			break
		}
		more, err := b.redriveOne(q, to)
		if !more && err == nil {
			break
		}
		if failed = err; err == nil {
			moved++
		}
	}
	return moved, failed
}

// redriveOne moves one message; while it moves its source counts it as in
// flight. It reports false if there is none.
func (b *Broker) redriveOne(q *queue, to string) (bool, error) {
	q.lock()
	t := now()
	q.advance(t)
	e := q.next()
	if e == nil {
		q.unlock()
		return false, nil
	}
	h := &Consumer{h: &Queue{b: b, q: q}, q: q}
	q.hold(e, h, t, &single{})
	q.unlock()

	err := b.put(e, to)
	q.mu.Lock()
	if e.holder == h { // not deleted meanwhile
		if err == nil {
			q.finish(e)
		} else {
			q.giveBack(e, t, 0, true, "")
		}
	}
	q.unlock()
	return true, err
}

// put stores a dead letter at to, or where it came from, as it was published.
func (b *Broker) put(e *entry, to string) error {
	if to == "" {
		stored := e.stored()
		why, ok := broker.DeadLetterOf(&stored)
		if !ok || why.Queue == "" {
			return fmt.Errorf("%w: message %q does not say where it came from", broker.ErrNotFound, e.id)
		}
		to = why.Queue
	}
	target, err := b.srv.queue(to)
	if err != nil {
		return fmt.Errorf("message %q to %q: %w", e.id, to, err)
	}
	m := broker.RedriveMessage(e.stored())
	m.Delay = 0
	t := now()
	n := newEntry(&m, t)
	target.setTTL(n, t)
	target.lock()
	defer target.unlock()
	switch {
	case target.deleted.Load():
		return fmt.Errorf("to %q: %w", to, broker.ErrNotFound)
	case target.full(n.size):
		return fmt.Errorf("to %q: %w", to, broker.ErrFull)
	}
	target.admit(n, t)
	return nil
}

// DeclareStream makes a stream, or adds partitions to one.
func (b *Broker) DeclareStream(ctx context.Context, name string, cfg broker.StreamConfig) error {
	err := b.check(ctx)
	if err == nil {
		err = b.srv.declareStream(name, cfg)
	}
	return opError("declare stream", name, err)
}

// DeleteStream removes a stream with its records and groups. Calls that wait
// on it return ErrNotFound.
func (b *Broker) DeleteStream(ctx context.Context, name string) error {
	err := b.check(ctx)
	if err == nil {
		b.srv.mu.Lock()
		s := b.srv.streams[name]
		delete(b.srv.streams, name)
		b.srv.mu.Unlock()
		if s != nil {
			s.delete()
		}
	}
	return opError("delete stream", name, err)
}

// ResetGroup sets the stored offsets of a group without members.
func (b *Broker) ResetGroup(ctx context.Context, name, group string, to broker.Position) error {
	err := b.check(ctx)
	if err == nil {
		var s *stream
		if s, err = b.srv.stream(name); err == nil {
			err = s.resetGroup(group, to)
		}
	}
	return opError("reset group", name, err)
}

var errNoQueue = errors.New("no queue takes the message")
