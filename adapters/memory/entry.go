package memory

import (
	"bytes"
	"time"

	"github.com/queuestream/broker"
)

// An entry is one stored message. Programs never see it: what they publish is
// copied in, and each attempt is a Delivery with copies of its own. So the
// queue uses entries and small bodies again once they are acknowledged. It is
// as small as it can be: processors and the garbage collector go through all of
// it.
type entry struct {
	at        int64    // accepted, UnixNano
	due       int64    // not before, UnixNano; 0: now; while in flight: the end of the lease; 0: none
	expires   int64    // UnixNano; 0: never
	when      int64    // of the next event, while in queue.events
	seq       uint64   // place in the queue
	pos       [2]int32 // 1 + index in the heaps byTime and byOrder
	attempts  int32    // deliveries so far
	slot      int32    // in queue.slots, while in flight
	size      int32    // counted for the queue's bound
	state     state
	ringed    bool      // in queue.fresh
	delivered bool      // at least once
	returned  bool      // at least once: an attempt that was lost may still be copied from it
	attempt   *single   // while in flight; before the first attempt: made ahead, or nil
	holder    *Consumer // while in flight
	id        string
	body      []byte // a small one's memory is used again
	extra     *extra // what few messages have; nil: none of it
}

// An extra is the part of a message that is neither ID nor body, and its place
// in its group.
type extra struct {
	broker.Message
	group        *group // nil: none
	gprev, gnext *entry
}

// group returns the group that e is in, or nil.
func (e *entry) group() *group {
	if e.extra == nil {
		return nil
	}
	return e.extra.group
}

func (e *entry) priority() int {
	if e.extra == nil {
		return 0
	}
	return e.extra.Priority
}

type state uint8

const (
	waiting  state = iota // behind the head of its group
	delayed               // not due
	ready                 // can be received
	inFlight              // held by a consumer
	gone                  // in no queue
)

const (
	entryOverhead = 512  // what a queue counts for a message on top of its bytes
	smallBody     = 4096 // bodies up to here are copied into buffers that are used again
	spareEntries  = 1024 // entries that a queue keeps for that
	aheadFrom     = 32   // receivers are behind: publishers make first attempts for them,
	aheadTo       = 4096 // but for those that have to wait for long
)

// messageSize is what a queue counts for m.
func messageSize(m *broker.Message) int32 {
	n := m.Size() + len(m.ID) + len(m.GroupID) + len(m.DedupID) + len(m.CorrelationID) + len(m.ReplyTo)
	return int32(min(n, 1<<30) + entryOverhead)
}

// isPlain tells whether m has an ID and a body and nothing else.
func isPlain(m *broker.Message) bool {
	return m.ContentType == "" && len(m.Headers) == 0 && m.GroupID == "" && m.DedupID == "" &&
		m.Delay == 0 && m.TTL == 0 && m.Priority == 0 && m.CorrelationID == "" && m.ReplyTo == ""
}

// reset makes e fit for set again. It keeps nothing of the program's alive.
func (e *entry) reset() {
	if cap(e.body) > smallBody {
		e.body = nil
	}
	e.extra, e.id, e.due, e.expires, e.attempts, e.delivered = nil, "", 0, 0, 0, false
}

// set makes e, new or reset, the entry of m, accepted at a time and counted
// as size; a large body is the entry's to keep.
func (e *entry) set(m *broker.Message, at int64, size int32) {
	e.at, e.size, e.id = at, size, m.ID
	switch n := len(m.Body); {
	case n > smallBody:
		e.body = m.Body
	case n > cap(e.body):
		e.body = bytes.Clone(m.Body)
	default:
		e.body = e.body[:n]
		copy(e.body, m.Body)
	}
	if isPlain(m) {
		return
	}
	e.extra = &extra{Message: *m}
	e.extra.ID, e.extra.Body = "", nil
	e.extra.Headers = append(broker.Headers(nil), m.Headers...)
	if m.TTL > 0 {
		e.expires = at + int64(m.TTL)
	}
	if m.Delay > 0 {
		e.due = at + int64(m.Delay)
	}
}

// roomyEntry returns an empty entry with a buffer for a body of n bytes, in one
// allocation if that is small.
func roomyEntry(n int) *entry {
	const small = 256
	if n == 0 || n > small {
		return &entry{}
	}
	e := &struct {
		entry
		room [small]byte
	}{}
	e.body = e.room[:0]
	return &e.entry
}

// newEntry returns an entry with copies of all that m has.
func newEntry(m *broker.Message, at int64) *entry {
	e := &entry{}
	e.set(m, at, messageSize(m))
	if len(m.Body) > smallBody {
		e.body = append([]byte(nil), m.Body...)
	}
	return e
}

// fill copies what e holds into d, whose Body is memory for that of e or nil.
func (e *entry) fill(d *broker.Delivery) {
	body := d.Body
	if e.extra != nil {
		d.Message = e.extra.Message
		d.Headers = append(broker.Headers(nil), e.extra.Headers...)
	}
	d.ID = e.id
	if body == nil {
		d.Body = append(body, e.body...)
	} else {
		copy(body, e.body)
		d.Body = body
	}
	d.Time = time.Unix(0, e.at)
}

// message returns a copy of what is stored.
func (e *entry) message() broker.Message {
	m := e.stored()
	m.Body = append([]byte(nil), m.Body...)
	m.Headers = append(broker.Headers(nil), m.Headers...)
	return m
}

// stored returns what is stored, not to be changed.
func (e *entry) stored() broker.Message {
	var m broker.Message
	if e.extra != nil {
		m = e.extra.Message
	}
	m.ID, m.Body = e.id, e.body
	return m
}

// An entryRing is a queue of entries that are ready, ascending by seq. Entries
// that are dropped stay in it until their turn comes, or until they are half of
// it.
type entryRing struct {
	buf     []*entry // a power of two long
	head, n int
	dropped int // of n
}

const (
	idleRing    = 4096 // a longer buffer is let go once it is empty
	droppedRing = 64   // so many dropped entries are never worth a sweep
)

func (r *entryRing) at(i int) *entry { return r.buf[(r.head+i)&(len(r.buf)-1)] }

// accepts tells whether e comes after all that is there.
func (r *entryRing) accepts(e *entry) bool { return r.n == 0 || r.at(r.n-1).seq < e.seq }

func (r *entryRing) push(e *entry) {
	if r.n == len(r.buf) {
		r.resize(2 * r.n)
	}
	r.buf[(r.head+r.n)&(len(r.buf)-1)] = e
	r.n++
	e.ringed = true
}

// resize moves the entries that were not dropped to a buffer with room for n.
func (r *entryRing) resize(n int) {
	size := 16
	for size < n {
		size *= 2
	}
	buf, k := make([]*entry, size), 0
	for i := range r.n {
		if e := r.at(i); e.state == ready {
			buf[k] = e
			k++
		} else {
			e.ringed = false
		}
	}
	r.buf, r.head, r.n, r.dropped = buf, 0, k, 0
}

// drop notes that e, which may be in the ring, is dropped.
func (r *entryRing) drop(e *entry) {
	if !e.ringed {
		return
	}
	if r.dropped++; r.dropped > droppedRing && 2*r.dropped > r.n {
		r.resize(2 * (r.n - r.dropped))
	}
}

// first returns the first entry that was not dropped, or nil.
func (r *entryRing) first() *entry {
	for r.n > 0 {
		e := r.buf[r.head]
		if e.state == ready {
			return e
		}
		r.pop()
	}
	return nil
}

// swap exchanges the first entry with the i-th, if both are live.
func (r *entryRing) swap(i int) {
	if i < r.n && r.at(i).state == ready {
		j := (r.head + i) & (len(r.buf) - 1)
		r.buf[r.head], r.buf[j] = r.buf[j], r.buf[r.head]
	}
}

func (r *entryRing) pop() {
	e := r.buf[r.head]
	e.ringed = false
	if e.state != ready {
		r.dropped--
	}
	r.buf[r.head] = nil
	r.head = (r.head + 1) & (len(r.buf) - 1)
	if r.n--; r.n == 0 && len(r.buf) > idleRing {
		r.buf, r.head = nil, 0
	}
}

// The two orders that entries are kept in by heaps.
const (
	byTime  = 0 // when, then seq
	byOrder = 1 // the highest priority, then seq
)

// An entryHeap is a binary heap whose entries know their place.
type entryHeap struct {
	items []*entry
	order int
}

func before(a, b *entry) bool {
	if p, q := a.priority(), b.priority(); p != q {
		return p > q
	}
	return a.seq < b.seq
}

func (h *entryHeap) less(a, b *entry) bool {
	if h.order == byOrder {
		return before(a, b)
	}
	if a.when != b.when {
		return a.when < b.when
	}
	return a.seq < b.seq
}

func (h *entryHeap) top() *entry {
	if len(h.items) == 0 {
		return nil
	}
	return h.items[0]
}

func (h *entryHeap) push(e *entry) {
	h.items = append(h.items, e)
	h.up(len(h.items) - 1)
}

func (h *entryHeap) remove(e *entry) {
	i := int(e.pos[h.order]) - 1
	if i < 0 {
		return
	}
	last := len(h.items) - 1
	moved := h.items[last]
	h.items[last] = nil
	h.items = h.items[:last]
	e.pos[h.order] = 0
	if i < last {
		h.items[i] = moved
		h.down(i)
		h.up(int(moved.pos[h.order]) - 1)
	}
}

func (h *entryHeap) up(i int) {
	e := h.items[i]
	for i > 0 {
		parent := (i - 1) / 2
		p := h.items[parent]
		if !h.less(e, p) {
			break
		}
		h.items[i] = p
		p.pos[h.order] = int32(i + 1)
		i = parent
	}
	h.items[i] = e
	e.pos[h.order] = int32(i + 1)
}

func (h *entryHeap) down(i int) {
	e := h.items[i]
	for {
		child := 2*i + 1
		if child >= len(h.items) {
			break
		}
		if r := child + 1; r < len(h.items) && h.less(h.items[r], h.items[child]) {
			child = r
		}
		c := h.items[child]
		if !h.less(c, e) {
			break
		}
		h.items[i] = c
		c.pos[h.order] = int32(i + 1)
		i = child
	}
	h.items[i] = e
	e.pos[h.order] = int32(i + 1)
}

// A group holds the entries of one GroupID in order. Its head alone may be
// ready or delayed, and only while none of the group is in flight.
type group struct {
	id         string
	head, tail *entry
	open       *entry
}

func (g *group) pushBack(e *entry) {
	e.extra.gprev, e.extra.gnext = g.tail, nil
	if g.tail == nil {
		g.head = e
	} else {
		g.tail.extra.gnext = e
	}
	g.tail = e
}

func (g *group) pushFront(e *entry) {
	e.extra.gprev, e.extra.gnext = nil, g.head
	if g.head == nil {
		g.tail = e
	} else {
		g.head.extra.gprev = e
	}
	g.head = e
}

func (g *group) remove(e *entry) {
	x := e.extra
	if x.gprev == nil {
		g.head = x.gnext
	} else {
		x.gprev.extra.gnext = x.gnext
	}
	if x.gnext == nil {
		g.tail = x.gprev
	} else {
		x.gnext.extra.gprev = x.gprev
	}
	x.gprev, x.gnext = nil, nil
}
