package rabbitmq

import (
	"sync"
	"time"

	"github.com/queuestream/broker"
)

// acks tracks the deliveries of one channel by tag and sends what is decided on
// them. Tags count from 1. A verdict sets a state; one writer sends one
// `multiple` acknowledgement up to the first gap and single ones beyond it.
// Acknowledgements soon after others gather until there are full of them, for
// ackLinger at most: each frame is an entry in the log of a quorum queue.
type acks struct {
	ch         acker
	generation uint32
	full       int
	quiet      func() // called when nothing is open and all is sent; or nil

	mu      sync.Mutex
	base    uint64 // tag of entries[0]
	entries []ackEntry
	open    int      // entries that are delivered and not decided
	parked  int      // of these, in no program's hands
	ready   []uint64 // acknowledged, not sent
	returns []uint64 // to requeue, not sent
	sending bool
	hurried bool // what gathered is waited for
	dead    bool
	wake    chan struct{} // a token: something to send, or to send it at once
	idle    chan struct{} // closed and replaced when open falls to 0 or all is sent
	done    chan struct{} // closed when the writer has returned
}

// An acker sends; an amqp.Channel is one. What goes back is rejected and not
// nacked: both requeue, but from RabbitMQ 4.3 on only basic.reject counts as an
// attempt (https://www.rabbitmq.com/docs/nack).
type acker interface {
	Ack(tag uint64, multiple bool) error
	Reject(tag uint64, requeue bool) error
}

type ackEntry struct {
	d      *broker.Delivery
	state  ackState
	parked bool
}

type ackState uint8

const (
	ackUnseen   ackState = iota // the tag is on its way from another consumer of the channel
	ackOpen                     // delivered
	ackReady                    // acknowledged, not sent
	ackReturned                 // to requeue, not sent
	ackSent
)

// ackLinger is far below what anyone waits for: nothing but the broker's room
// for a consumer that has taken its whole prefetch depends on acknowledgements,
// and full is a small part of that.
const ackLinger = 5 * time.Millisecond

// ackShare is the part of a prefetch that may be acknowledged and not sent.
const ackShare = 8

// newAcks makes the acks of a channel whose subscriptions have at least prefetch
// each.
func newAcks(ch acker, generation uint32, prefetch int, quiet func()) *acks {
	a := &acks{
		ch: ch, generation: generation, full: max(1, prefetch/ackShare), quiet: quiet, base: 1,
		wake: make(chan struct{}, 1), idle: make(chan struct{}), done: make(chan struct{}),
	}
	go a.run()
	return a
}

// add notes a delivery. It reports false when the channel is gone.
func (a *acks) add(tag uint64, d *broker.Delivery) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.dead || tag < a.base {
		return false
	}
	i := int(tag - a.base) //nolint:gosec // bounded by prefetch
	for len(a.entries) <= i {
		a.entries = append(a.entries, ackEntry{})
	}
	a.entries[i] = ackEntry{d: d, state: ackOpen}
	a.open++
	return true
}

// replace makes d the holder of an open tag: a redelivery that the broker does
// not know of. It reports false when the channel is gone.
func (a *acks) replace(tag uint64, d *broker.Delivery) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	e := a.entry(tag)
	if a.dead || e == nil || e.state != ackOpen {
		return false
	}
	e.d = d
	return true
}

// park tells that an open delivery is in no program's hands, and stays so until
// the channel is closed.
func (a *acks) park(tag uint64, generation uint32) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.dead || generation != a.generation {
		return
	}
	if e := a.entry(tag); e != nil && e.state == ackOpen && !e.parked {
		e.parked = true
		a.parked++
		a.notify()
	}
}

func (a *acks) entry(tag uint64) *ackEntry {
	if tag < a.base || tag-a.base >= uint64(len(a.entries)) {
		return nil
	}
	return &a.entries[tag-a.base]
}

// decide acknowledges or requeues open deliveries. It reports false for those
// that are not open on this channel any more.
func (a *acks) decide(tag uint64, generation uint32, requeue bool) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.dead || generation != a.generation {
		return false
	}
	e := a.entry(tag)
	if e == nil || e.state != ackOpen {
		return false
	}
	if requeue {
		e.state = ackReturned
		a.returns = append(a.returns, tag)
	} else {
		e.state = ackReady
		a.ready = append(a.ready, tag)
	}
	e.d = nil
	a.open--
	if requeue || len(a.ready) == 1 || len(a.ready) == a.full {
		a.signal()
	}
	return true
}

// signal leaves a token for the writer.
func (a *acks) signal() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

func (a *acks) run() {
	defer close(a.done)
	linger := time.NewTimer(0) // over: the first goes at once
	defer linger.Stop()
	for range a.wake {
		for gathering := true; gathering && a.mayGather(); {
			select {
			case <-a.wake:
			case <-linger.C:
				gathering = false
			}
		}
		if a.flush() {
			return
		}
		linger.Reset(ackLinger)
	}
}

// mayGather tells whether what there is to send may wait for more.
func (a *acks) mayGather() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.ready) > 0 && len(a.ready) < a.full && len(a.returns) == 0 && !a.hurried && !a.dead
}

// flush sends what gathered and reports whether the channel is gone, so that
// nothing more will.
func (a *acks) flush() (dead bool) {
	a.mu.Lock()
	ready, returns := a.ready, a.returns
	a.ready, a.returns, a.hurried = nil, nil, false
	dead = a.dead
	for _, t := range returns {
		a.entries[t-a.base].state = ackSent
	}
	var upTo uint64 // the last tag of the prefix that is still to acknowledge
	n := 0
	for n < len(a.entries) && (a.entries[n].state == ackReady || a.entries[n].state == ackSent) {
		if a.entries[n].state == ackReady {
			upTo = a.base + uint64(n)
		}
		n++
	}
	for _, t := range ready {
		a.entries[t-a.base].state = ackSent
	}
	a.base += uint64(n)
	rest := copy(a.entries, a.entries[n:])
	clear(a.entries[rest:])
	a.entries = a.entries[:rest]
	a.sending = true
	a.mu.Unlock()

	err := a.write(ready, returns, upTo)

	a.mu.Lock()
	a.sending = false
	if err != nil {
		// The connection is gone, and with it what it delivered: the session
		// ends by itself, and the broker delivers again.
		a.ready, a.returns = nil, nil
	}
	a.notify()
	idle := a.open == 0 && len(a.ready)+len(a.returns) == 0 && !a.dead
	a.mu.Unlock()
	if idle && a.quiet != nil {
		a.quiet()
	}
	return dead
}

func (a *acks) write(ready, returns []uint64, upTo uint64) error {
	for _, t := range returns { // first: multiple must not cover them
		if err := a.ch.Reject(t, true); err != nil {
			return err
		}
	}
	if upTo > 0 {
		if err := a.ch.Ack(upTo, true); err != nil {
			return err
		}
	}
	for _, t := range ready {
		if t > upTo {
			if err := a.ch.Ack(t, false); err != nil {
				return err
			}
		}
	}
	return nil
}

// notify wakes who waits for idle. a.mu is held.
func (a *acks) notify() {
	close(a.idle)
	a.idle = make(chan struct{})
}

// waiting returns a channel that closes with the next change, or nil when
// nothing is unsent (all: or open, unless it is parked) or the channel is gone.
func (a *acks) waiting(all bool) <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	gathered := len(a.ready)+len(a.returns) > 0
	if !a.sending && !gathered && (a.dead || !all || a.open == a.parked) {
		return nil
	}
	if gathered {
		a.hurried = true
		a.signal()
	}
	return a.idle
}

// openCount returns how many deliveries are not decided on.
func (a *acks) openCount() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.open
}

// close refuses further verdicts, sends those that there are, if the channel
// still takes them, and returns what was open on it.
func (a *acks) close() []*broker.Delivery {
	a.mu.Lock()
	if a.dead {
		a.mu.Unlock()
		<-a.done
		return nil
	}
	a.dead = true
	var open []*broker.Delivery
	for i := range a.entries {
		if a.entries[i].state == ackOpen {
			open = append(open, a.entries[i].d)
		}
	}
	a.open, a.parked = 0, 0
	a.signal()
	a.mu.Unlock()
	<-a.done
	return open
}
