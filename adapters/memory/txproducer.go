package memory

import (
	"sync"
	"time"
)

// idExpiry is how long a transactional id is remembered while no transaction of
// it begins, is open or ends: as long as on Kafka
// (transactional.id.expiration.ms). Whoever still holds it gets ErrFenced then.
const idExpiry = 7 * 24 * time.Hour

// idsLookedAt is how many ids the server looks at for each new holder. So ids
// are forgotten faster than they come: while they come steadily, no more than
// one in eight of those kept is past its time.
const idsLookedAt = 8

// A producer is a transactional id. Its lock comes after the server's and
// before those of streams.
type producer struct {
	id         string
	prev, next *producer // in the server's ring; guarded by its lock

	mu    sync.Mutex
	owner *Transactor // every other holder of the id is fenced
	open  *Tx
	used  int64 // when it last got an owner, or began or ended a transaction
}

// abort aborts the open transaction, if there is one. p.mu is held.
func (p *producer) abort() {
	if tx := p.open; tx != nil {
		p.open = nil
		_ = tx.end(txAborted) // which cannot fail
	}
}

// producer returns a transactional id, a new one if it is the first time.
// s.mu is held.
func (s *server) producer(id string) *producer {
	p := s.producers[id]
	if p == nil {
		p = &producer{id: id}
		s.producers[id] = p
		s.push(p)
	}
	return p
}

// ring returns the root of the ring of all ids, the longest not looked at
// first. s.mu is held.
func (s *server) ring() *producer {
	root := &s.ids
	if root.next == nil {
		root.prev, root.next = root, root
	}
	return root
}

// push makes p the last of the ring. s.mu is held.
func (s *server) push(p *producer) {
	root := s.ring()
	p.prev, p.next = root.prev, root
	p.prev.next, root.prev = p, p
}

func (p *producer) unlink() {
	p.prev.next, p.next.prev = p.next, p.prev
	p.prev, p.next = nil, nil // a holder keeps p, and is not to keep its neighbours
}

// forget removes p. s.mu is held.
func (s *server) forget(p *producer) {
	p.unlink()
	delete(s.producers, p.id)
}

// expire looks at a few ids and forgets those past their time. s.mu is held.
func (s *server) expire(now int64) {
	root := s.ring()
	for range idsLookedAt {
		p := root.next
		if p == root {
			return
		}
		if p.expire(now) {
			s.forget(p)
			continue
		}
		p.unlink()
		s.push(p)
	}
}

// expire fences the holder of an id that was not used for idExpiry, and reports
// whether it did. A transaction uses it while it is open, until its time-out.
func (p *producer) expire(now int64) bool {
	if !p.mu.TryLock() { // somebody is using it
		return false
	}
	defer p.mu.Unlock()
	used := p.used
	if p.open != nil {
		used = p.open.state.deadline
	}
	if now-used < int64(idExpiry) {
		return false
	}
	p.owner, p.open = nil, nil
	return true
}

// release forgets the id of t, which has closed, unless a later holder has it:
// nobody is left to be fenced, since all earlier holders are.
func (s *server) release(t *Transactor) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t.p.mu.Lock()
	defer t.p.mu.Unlock()
	if t.p.owner == t && s.producers[t.id] == t.p {
		s.forget(t.p)
	}
}
