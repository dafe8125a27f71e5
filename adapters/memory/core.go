package memory

import (
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/internal/clock"
)

// A queue is what all handles of one queue share. One lock guards it. Time
// passes in it when somebody looks (advance) and, while somebody waits, by one
// timer. Dead letters leave it in unlock, so that no two queues are locked at
// once.
type queue struct {
	srv     *server
	name    string
	cfg     broker.QueueConfig
	grouped bool // GroupID is honoured
	deleted atomic.Bool
	parked  atomic.Int32 // receivers and drains that nobody has woken yet
	fed     atomic.Bool  // feeders is not empty

	_   cacheLine // publishers read what is above, and write what is below
	ids idSource
	in  intake
	_   cacheLine

	mu        mutex
	seq       uint64
	fresh     entryRing // ready, without priority
	back      entryHeap // ready: given back, or with a priority
	events    entryHeap // what changes by itself at some time, but for leases until soon
	soon      int64     // no lease that is not in events ends before; 0: there is none
	groups    map[string]*group
	slots     []*entry // in flight
	free      []int32  // of slots
	count     [gone]int64
	bytes     int64
	consumers int64
	receivers waitList
	space     waitList // publishers
	timer     *time.Timer
	armed     int64 // when timer fires; 0: it does not
	dedup     dedupTable
	absorbed  []*entry   // an empty slice for the intake
	spare     []*entry   // acknowledged, to be used again
	random    *rand.Rand // of profiles that reorder

	feeders []*queue // queues whose dead letters come here
	targets []*queue // queues where dead letters go

	woken *waiter  // those that unlock hands tokens to
	dead  []burial // messages that unlock moves
}

// A cacheLine keeps apart what different processors write.
type cacheLine [64]byte

func newQueue(srv *server, name string, cfg broker.QueueConfig) *queue {
	q := &queue{
		srv: srv, name: name, cfg: cfg,
		grouped: srv.rules.queueCapabilities(&cfg).Groups,
		back:    entryHeap{order: byOrder},
		groups:  map[string]*group{},
	}
	if srv.rules.reorders {
		q.random = rand.New(rand.NewPCG(srv.opts.Seed, uint64(len(name)))) //nolint:gosec // not for secrets
	}
	return q
}

func now() int64 { return clock.Now() }

// unlock releases q.mu, wakes whom that concerns and moves dead letters.
func (q *queue) unlock() {
	if q.woken == nil && q.dead == nil {
		q.mu.Unlock()
		return
	}
	woken, dead := q.woken, q.dead
	q.woken, q.dead = nil, nil
	q.mu.Unlock()
	for woken != nil {
		w := woken
		woken, w.nextWoken = w.nextWoken, nil
		w.token <- struct{}{}
	}
	for i := range dead {
		q.bury(&dead[i])
	}
}

// rouse ends the longest wait of a list, if there is one, and reports whether
// there was. q.mu is held.
func (q *queue) rouse(l *waitList) bool {
	w := l.pop()
	if w == nil {
		return false
	}
	if l == &q.receivers {
		q.parked.Add(-1) // now: until it runs, publishers need not care
	}
	w.nextWoken, q.woken = q.woken, w
	return true
}

// admit stores a new entry, at the end of the queue. q.mu is held.
func (q *queue) admit(e *entry, now int64) {
	q.bytes += int64(e.size)
	q.enter(e, now)
}

// enter is admit for an entry whose bytes are counted. q.mu is held.
func (q *queue) enter(e *entry, now int64) {
	q.seq++
	e.seq = q.seq
	e.state = gone
	if apart := e.due > now && q.srv.rules.delaysApart; apart || q.join(e) {
		q.activate(e, now)
	}
}

// join puts e at the end of its group, if it has one, and tells whether it is
// its turn. q.mu is held.
func (q *queue) join(e *entry) bool {
	if !q.grouped || e.extra == nil || e.extra.GroupID == "" {
		return true
	}
	id := e.extra.GroupID
	g := q.groups[id]
	if g == nil {
		g = &group{id: id}
		q.groups[id] = g
	}
	e.extra.group = g
	g.pushBack(e)
	if g.open == nil && g.head == e {
		return true
	}
	q.setState(e, waiting)
	q.schedule(e, e.expires)
	return false
}

// activate makes an entry delayed or ready. q.mu is held.
func (q *queue) activate(e *entry, now int64) {
	switch {
	case e.expires != 0 && e.expires <= now:
		q.setState(e, waiting)
		q.drop(e)
		return
	case e.due > now:
		q.setState(e, delayed)
		when := e.due
		if e.expires != 0 && e.expires < when {
			when = e.expires
		}
		q.schedule(e, when)
		return
	}
	e.due = 0
	q.setState(e, ready)
	q.schedule(e, e.expires)
	if e.priority() == 0 && q.fresh.accepts(e) {
		q.fresh.push(e)
	} else {
		q.back.push(e)
	}
	q.rouse(&q.receivers)
}

func (q *queue) setState(e *entry, s state) {
	if e.state != gone {
		q.count[e.state]--
	}
	if e.state = s; s != gone {
		q.count[s]++
	}
}

// schedule puts e among the events, or takes it out if when is 0. q.mu is held.
func (q *queue) schedule(e *entry, when int64) {
	if when == e.when {
		return
	}
	if e.when != 0 {
		q.events.remove(e)
	}
	if e.when = when; when != 0 {
		q.events.push(e)
	}
}

// drop removes an entry that nobody holds for good. q.mu is held.
func (q *queue) drop(e *entry) {
	q.back.remove(e)
	q.schedule(e, 0)
	q.forget(e)
	q.fresh.drop(e)
	if g := e.group(); g != nil {
		head := g.head == e
		g.remove(e)
		q.nextOf(g, head)
	}
}

// forget ends the accounting of e and lets a blocked publisher in. q.mu is held.
func (q *queue) forget(e *entry) {
	q.setState(e, gone)
	q.bytes -= int64(e.size)
	q.passSpace()
}

// nextOf activates the head of a group that became free. q.mu is held.
func (q *queue) nextOf(g *group, newHead bool) {
	switch {
	case g.open != nil:
	case g.head == nil:
		if q.groups[g.id] == g {
			delete(q.groups, g.id)
		}
	case newHead && g.head.state == waiting:
		q.activate(g.head, now())
	}
}

// advance carries out what is due by now. q.mu is held.
func (q *queue) advance(now int64) {
	if q.soon != 0 && q.soon <= now {
		q.scheduleLeases()
	}
	for e := q.events.top(); e != nil && e.when <= now; e = q.events.top() {
		switch {
		case e.state == inFlight:
			e.attempt.d.Lose()
			q.giveBack(e, now, 0, false, "the lease ended")
		case e.expires != 0 && e.expires <= now:
			q.drop(e)
		default: // delayed, and due
			q.schedule(e, 0)
			if !e.delivered && e.group() == nil {
				q.seq++
				e.seq = q.seq // as if published now
				if !q.join(e) {
					continue
				}
			}
			q.activate(e, now)
		}
	}
}

// scheduleLeases puts the leases that are not there yet among the events. Most
// deliveries are settled long before, and never get there. q.mu is held.
func (q *queue) scheduleLeases() {
	q.soon = 0
	for _, e := range q.slots {
		if e != nil && e.when == 0 && e.due != 0 {
			q.schedule(e, e.due)
		}
	}
}

// timed tells whether anything changes by itself. q.mu is held.
func (q *queue) timed() bool { return q.soon != 0 || len(q.events.items) > 0 }

// nextEvent returns when to look at what changes by itself; 0: nothing does.
// q.mu is held.
func (q *queue) nextEvent() int64 {
	e := q.events.top()
	if e == nil || q.soon != 0 && q.soon < e.when {
		return q.soon
	}
	return e.when
}

// cares tells whether somebody waits for what happens here. q.mu is held.
func (q *queue) cares() bool {
	if q.parked.Load() > 0 || q.space.n > 0 {
		return true
	}
	for _, t := range q.targets {
		if t.parked.Load() > 0 {
			return true
		}
	}
	return false
}

// arm sets the timer to the next event if somebody waits. q.mu is held.
func (q *queue) arm(now int64) {
	when := q.nextEvent()
	if when == 0 || q.armed != 0 && q.armed <= when || !q.cares() {
		return
	}
	q.armed = when
	wait := time.Duration(max(when-now, 0))
	if q.timer == nil {
		q.timer = time.AfterFunc(wait, q.tick)
	} else {
		q.timer.Reset(wait)
	}
}

// disarm stops the timer unless somebody waits: it would keep the broker alive,
// closed or not, until it fires. q.mu is held.
func (q *queue) disarm() {
	if q.armed != 0 && !q.cares() {
		q.timer.Stop()
		q.armed = 0
	}
}

// tick runs when the timer fires, and brings q up to now for whoever looks at
// what it feeds.
func (q *queue) tick() {
	q.lock()
	q.armed = 0
	t := now()
	q.advance(t)
	if !q.deleted.Load() {
		q.arm(t)
	}
	q.unlock()
}

// refresh brings q up to now without arming the timer.
func (q *queue) refresh() {
	q.lock()
	q.advance(now())
	q.unlock()
}

// next takes the entry that is to be delivered next, or nil. q.mu is held.
func (q *queue) next() *entry {
	f, b := q.fresh.first(), q.back.top()
	if f == nil && b == nil {
		return nil
	}
	if limit := q.srv.rules.maxInFlight; limit > 0 && q.count[inFlight] >= limit {
		return nil
	}
	if q.random != nil && f != nil && b == nil {
		q.fresh.swap(q.random.IntN(10)) // out of order, as SQS may
		f = q.fresh.first()
	}
	if f == nil || b != nil && before(b, f) {
		q.back.remove(b)
		f = b
	} else {
		q.fresh.pop()
	}
	if g := f.group(); g != nil {
		g.remove(f)
		g.open = f
	}
	return f
}

// hold gives e to c by the attempt s, whose lease is not set. q.mu is held.
func (q *queue) hold(e *entry, c *Consumer, now int64, s *single) {
	d := &s.d
	if n := len(q.free); n > 0 {
		e.slot = q.free[n-1]
		q.free = q.free[:n-1]
		q.slots[e.slot] = e
	} else {
		e.slot = int32(len(q.slots))
		q.slots = append(q.slots, e)
	}
	q.setState(e, inFlight)
	e.attempts++
	e.attempt, e.holder, e.delivered = s, c, true
	c.open++
	d.Attempt = int(e.attempts)
	d.Bind(c, uint64(e.slot), 0)
	q.schedule(e, 0)
	if c.lease > 0 {
		e.due = now + int64(c.lease)
		if q.soon == 0 || e.due < q.soon {
			q.soon = e.due
		}
	}
}

// release takes e from its holder. q.mu is held.
func (q *queue) release(e *entry) {
	q.slots[e.slot] = nil
	q.free = append(q.free, e.slot)
	q.schedule(e, 0)
	e.due = 0
	c := e.holder
	if c.open--; c.open == 0 && c.idle != nil {
		close(c.idle)
		c.idle = nil
	}
	e.holder, e.attempt = nil, nil
	if g := e.group(); g != nil && g.open == e {
		g.open = nil
	}
	if q.srv.rules.maxInFlight > 0 && q.count[ready] > 0 {
		q.rouse(&q.receivers) // it may have waited for less to be in flight
	}
}

// finish removes an entry in flight for good. q.mu is held.
func (q *queue) finish(e *entry) {
	q.release(e)
	q.forget(e)
	if g := e.group(); g != nil {
		q.nextOf(g, true)
	}
}

// recycle keeps a finished entry that nothing refers to for the next message.
// q.mu is held.
func (q *queue) recycle(e *entry) {
	if e.returned || len(q.spare) >= spareEntries {
		return
	}
	e.reset()
	q.spare = append(q.spare, e)
}

// entry returns an entry for m; it keeps the body if that is large. q.mu is held.
func (q *queue) entry(m *broker.Message, at int64, size int32) *entry {
	n := len(q.spare)
	if n == 0 {
		e := roomyEntry(len(m.Body))
		e.set(m, at, size)
		return e
	}
	e := q.spare[n-1]
	q.spare = q.spare[:n-1]
	e.set(m, at, size)
	return e
}

// giveBack returns an entry in flight to the queue, or buries it if it has had
// all its attempts. q.mu is held.
func (q *queue) giveBack(e *entry, now int64, delay time.Duration, snooze bool, why string) {
	p := &e.holder.h.policy
	if !snooze && p.maxAttempts > 0 && e.attempts >= p.maxAttempts && p.dead != nil && !p.dead.deleted.Load() {
		q.burySoon(e, fmt.Sprintf("%d attempts, then %s", e.attempts, why))
		return
	}
	q.release(e)
	e.returned = true
	if snooze {
		e.attempts--
	}
	if delay > 0 {
		e.due = now + int64(delay)
	}
	if q.srv.rules.caps.Requeue == broker.RequeueBack && e.group() == nil && delay == 0 {
		q.seq++
		e.seq = q.seq
	}
	if g := e.group(); g != nil {
		g.pushFront(e)
	}
	q.activate(e, now)
}
