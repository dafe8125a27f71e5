package memory

import (
	"slices"
	"time"

	"github.com/queuestream/broker"
)

// A burial is a message on its way to a dead-letter queue.
type burial struct {
	e   *entry
	to  *queue
	why broker.DeadLetter
}

// A policy is what a handle does with messages that fail.
type policy struct {
	maxAttempts int32
	dead        *queue
}

func (q *queue) bury(b *burial) {
	m := broker.DeadLetterMessage(b.e.stored(), b.why)
	t := now()
	e := newEntry(&m, t)
	e.at = b.e.at
	b.to.setTTL(e, t)
	b.to.lock()
	if !b.to.deleted.Load() {
		b.to.admit(e, t)
		b.to.unlock()
		return
	}
	b.to.mu.Unlock()
	// The dead-letter queue went away this moment: rather deliver once more.
	q.lock()
	q.admit(b.e, now())
	q.unlock()
}

// sources returns the queues whose dead letters come here.
func (q *queue) sources() []*queue {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.feeders
}

// connect makes dead letters of from visible to receivers of to in time.
func connect(from, to *queue) {
	if from == nil || to == nil {
		return
	}
	add := func(q, other *queue, list *[]*queue) {
		q.mu.Lock()
		defer q.mu.Unlock()
		for _, x := range *list {
			if x == other {
				return
			}
		}
		*list = append((*list)[:len(*list):len(*list)], other)
	}
	add(from, to, &from.targets)
	add(to, from, &to.feeders)
	to.fed.Store(true)
}

// disconnect undoes connect for a queue that is deleted.
func disconnect(q *queue) {
	remove := func(from *queue, list *[]*queue) {
		from.mu.Lock()
		defer from.mu.Unlock()
		*list = slices.DeleteFunc(slices.Clone(*list), func(x *queue) bool { return x == q })
		from.fed.Store(len(from.feeders) > 0)
	}
	q.mu.Lock()
	targets, feeders := q.targets, q.feeders
	q.mu.Unlock()
	for _, t := range targets {
		remove(t, &t.feeders)
	}
	for _, f := range feeders {
		remove(f, &f.targets)
	}
}

// burySoon takes an entry in flight out and lets unlock move it to its
// dead-letter queue. q.mu is held.
func (q *queue) burySoon(e *entry, reason string) {
	p := &e.holder.h.policy
	q.release(e)
	e.returned = true
	q.dead = append(q.dead, burial{e: e, to: p.dead, why: broker.DeadLetter{
		Reason: reason, Queue: q.name, Attempts: int(e.attempts), Time: time.Now(),
	}})
	q.forget(e)
	if g := e.group(); g != nil {
		q.nextOf(g, true)
	}
}
