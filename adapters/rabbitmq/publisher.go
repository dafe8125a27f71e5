package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"sync"

	amqp "github.com/rabbitmq/amqp091-go"
	"golang.org/x/sync/semaphore"

	"github.com/queuestream/broker"
)

// A publisher shares one confirming channel of the publishing connection among
// all queues and exchanges, which is faster than a channel each.
type publisher struct {
	link *link
	solo chan struct{} // a token: publishes alone on a channel of its own

	mu      sync.Mutex
	cur     *confirmChannel
	opening *channelOpening
}

type channelOpening struct {
	gen  *generation // maybe older than the one that a publisher waits for
	done chan struct{}
	err  error
}

// An outbound is a message on its way.
type outbound struct {
	exchange, key string
	optional      bool // it may find no queue: not mandatory
	msg           amqp.Publishing
}

func (o *outbound) size() int {
	n := len(o.msg.Body)
	for k, v := range o.msg.Headers {
		n += len(k) + 8
		if s, ok := v.(string); ok {
			n += len(s)
		}
	}
	return n
}

func newPublisher(l *link) *publisher {
	p := &publisher{link: l, solo: make(chan struct{}, 1)}
	p.solo <- struct{}{}
	return p
}

// A window bounds what a handle has unconfirmed, in messages and in bytes.
type window struct {
	sem *semaphore.Weighted
	max int64 // bytes
	min int64 // bytes that any message counts at least
}

func newWindow(messages, bytes int) *window {
	w := &window{sem: semaphore.NewWeighted(int64(bytes)), max: int64(bytes)}
	w.min = max(1, w.max/int64(messages))
	return w
}

func (w *window) weight(o *outbound) int64 { return min(w.max, max(w.min, int64(o.size()))) }

// channel returns the live confirming channel and waits for one until ctx ends.
func (p *publisher) channel(ctx context.Context) (*confirmChannel, error) {
	for {
		g, err := p.link.get(ctx)
		if err != nil {
			return nil, err
		}
		if err := g.unblocked(ctx); err != nil {
			return nil, err
		}
		p.mu.Lock()
		if p.cur != nil && p.cur.gen == g && !p.cur.ch.IsClosed() {
			cc := p.cur
			p.mu.Unlock()
			return cc, nil
		}
		op := p.opening
		if op == nil {
			op = &channelOpening{gen: g, done: make(chan struct{})}
			p.opening = op
			go p.open(op)
		}
		p.mu.Unlock()
		select {
		case <-op.done:
		case <-ctx.Done():
			return nil, unavailable(ctx, nil)
		}
		if op.err != nil && !op.gen.isDead() {
			return nil, classify(op.err)
		}
		if op.gen.isDead() { // until the supervisor has noticed
			select {
			case <-op.gen.dead:
			case <-ctx.Done():
				return nil, unavailable(ctx, nil)
			}
		}
	}
}

func (p *publisher) open(op *channelOpening) {
	cc, err := openConfirmChannel(op.gen)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil {
		p.cur = cc
	}
	op.err = err
	p.opening = nil
	close(op.done)
}

// publish sends os in order and sets an error for each. It waits for
// connections until ctx ends, and sends again what was not confirmed when one
// broke.
func (p *publisher) publish(ctx context.Context, w *window, os []outbound, errs []error) {
	todo := make([]int, len(os))
	for i := range os {
		todo[i] = i
	}
	sent := make([]bool, len(os)) // maybe stored
	for len(todo) > 0 {
		cc, err := p.channel(ctx)
		if err != nil {
			for _, i := range todo {
				errs[i] = outcome(err, sent[i])
			}
			return
		}
		b := &flightBatch{cc: cc, w: w, os: os, errs: errs, sent: sent}
		todo = b.run(ctx, todo)
		if len(todo) == 0 {
			return
		}
		select {
		case <-cc.dead:
		case <-ctx.Done():
			continue // channel says so
		}
		if cc.exception() != nil { // one of them, or a neighbour, is to blame
			for _, i := range todo {
				errs[i] = p.publishAlone(ctx, w, &os[i], sent[i])
			}
			return
		}
	}
}

// publishAlone uses a channel of its own, so that what closes the channel is
// the message's own fault.
func (p *publisher) publishAlone(ctx context.Context, w *window, o *outbound, sent bool) error {
	select {
	case <-p.solo:
		defer func() { p.solo <- struct{}{} }()
	case <-ctx.Done():
		return outcome(broker.ContextError(ctx), sent)
	}
	for {
		g, err := p.link.get(ctx)
		if err == nil {
			err = g.unblocked(ctx)
		}
		if err != nil {
			return outcome(err, sent)
		}
		cc, err := call(ctx, func() (*confirmChannel, error) { return openConfirmChannel(g) }, (*confirmChannel).close)
		if err != nil {
			if ctx.Err() == nil && g.isDead() {
				<-g.dead
				continue
			}
			return outcome(classify(err), sent)
		}
		errs, flags := []error{nil}, []bool{sent}
		b := &flightBatch{cc: cc, w: w, os: []outbound{*o}, errs: errs, sent: flags}
		again := b.run(ctx, []int{0})
		sent = flags[0]
		if len(again) == 0 {
			go cc.close()
			return errs[0]
		}
		select {
		case <-cc.dead:
		case <-ctx.Done():
			return outcome(broker.ContextError(ctx), sent)
		}
		if e := cc.exception(); e != nil {
			return classifyPublish(e)
		}
	}
}

func outcome(err error, sent bool) error {
	if sent {
		return broker.UnknownOutcome(err)
	}
	return err
}

// A confirmChannel is a channel in confirm mode with the returns that came on it.
type confirmChannel struct {
	gen  *generation
	ch   *amqp.Channel
	dead chan struct{} // closed when the channel is gone and err is set
	sync chan struct{} // a send succeeds once every return seen so far is noted

	mu      sync.Mutex
	err     *amqp.Error
	waiting map[returnKey]*returnSlot
}

type returnKey struct{ exchange, key, id string }

type returnSlot struct {
	users  int
	reason *amqp.Error
}

func openConfirmChannel(g *generation) (*confirmChannel, error) {
	ch, err := g.conn.Channel()
	if err != nil {
		return nil, err
	}
	cc := &confirmChannel{
		gen: g, ch: ch, dead: make(chan struct{}), sync: make(chan struct{}),
		waiting: map[returnKey]*returnSlot{},
	}
	closed := ch.NotifyClose(make(chan *amqp.Error, 1))
	// Unbuffered, so that a return is noted, and not on its way, when the
	// confirm that follows it is seen; run always reads it.
	returns := ch.NotifyReturn(make(chan amqp.Return))
	go cc.run(closed, returns)
	if err := ch.Confirm(false); err != nil {
		return nil, errors.Join(err, ch.Close())
	}
	return cc, nil
}

func (cc *confirmChannel) run(closed chan *amqp.Error, returns chan amqp.Return) {
	defer close(cc.dead)
	for {
		select {
		case r, ok := <-returns:
			if !ok {
				returns = nil
				continue
			}
			cc.mu.Lock()
			if s := cc.waiting[returnKey{r.Exchange, r.RoutingKey, r.MessageId}]; s != nil {
				s.reason = &amqp.Error{Code: int(r.ReplyCode), Reason: r.ReplyText, Server: true}
			}
			cc.mu.Unlock()
		case <-cc.sync:
		case err := <-closed:
			cc.mu.Lock()
			if err != nil && !cc.gen.conn.IsClosed() {
				cc.err = err
			}
			cc.mu.Unlock()
			return
		}
	}
}

// exception returns what the broker closed the channel for, or nil when it is
// open or died with its connection.
func (cc *confirmChannel) exception() *amqp.Error {
	cc.mu.Lock()
	defer cc.mu.Unlock()
	return cc.err
}

func (cc *confirmChannel) close() {
	// It fails only if the channel is gone already.
	_ = cc.ch.Close()
}

func (cc *confirmChannel) expect(k returnKey) *returnSlot {
	cc.mu.Lock()
	defer cc.mu.Unlock()
	s := cc.waiting[k]
	if s == nil {
		s = &returnSlot{}
		cc.waiting[k] = s
	}
	s.users++
	return s
}

func (cc *confirmChannel) release(k returnKey, s *returnSlot) *amqp.Error {
	cc.mu.Lock()
	defer cc.mu.Unlock()
	if s.users--; s.users == 0 {
		delete(cc.waiting, k)
	}
	return s.reason
}

// A flight is a message sent and not known to be stored yet.
type flight struct {
	index  int
	before bool // sent on an earlier channel too, where it may have been stored
	weight int64
	dc     *amqp.DeferredConfirmation
	key    returnKey
	slot   *returnSlot
	state  flightState
}

type flightState uint8

const (
	flying flightState = iota
	acked
	nacked
	died      // with its channel
	abandoned // by the caller
)

// A flightBatch sends messages over one channel and waits for their confirms.
type flightBatch struct {
	cc   *confirmChannel
	w    *window
	os   []outbound
	errs []error
	sent []bool

	flights []flight
	landed  int   // flights before it are not flying any more
	left    error // why the caller left
}

// run returns the indexes that the channel's death left undecided, in order.
func (b *flightBatch) run(ctx context.Context, todo []int) (again []int) {
	b.flights = make([]flight, 0, len(todo))
	for n, i := range todo {
		f, err := b.send(ctx, i)
		ended := broker.ContextError(ctx)
		switch {
		case err == nil:
			b.flights = append(b.flights, f)
			continue
		case ended == nil && (errors.Is(err, amqp.ErrClosed) || b.cc.ch.IsClosed() || broken(err)):
			again = todo[n:]
		default:
			if ended != nil {
				err = ended
			}
			for _, j := range todo[n:] {
				b.errs[j] = outcome(err, b.sent[j])
			}
		}
		break
	}
	for b.landed < len(b.flights) {
		b.land(ctx)
	}
	return append(b.finish(), again...)
}

// broken tells that a write failed, with whatever error the dialer's connection
// has: the client closes the channel a moment later. Its own errors are typed.
func broken(err error) bool {
	_, own := errors.AsType[*amqp.Error](err)
	return !own
}

func (b *flightBatch) send(ctx context.Context, i int) (flight, error) {
	o := &b.os[i]
	f := flight{index: i, before: b.sent[i], weight: b.w.weight(o), key: returnKey{o.exchange, o.key, o.msg.MessageId}}
	for !b.w.sem.TryAcquire(f.weight) {
		if b.landed < len(b.flights) {
			b.land(ctx) // frees what this batch holds itself
		} else if err := b.w.sem.Acquire(ctx, f.weight); err == nil {
			break
		}
		if ctx.Err() != nil {
			return f, broker.ContextError(ctx)
		}
	}
	err := broker.ContextError(ctx)
	if err == nil {
		err = b.cc.gen.pipe.room(ctx)
	}
	if err != nil {
		b.w.sem.Release(f.weight)
		return f, err
	}
	f.slot = b.cc.expect(f.key)
	dc, err := b.cc.ch.PublishWithDeferredConfirm(o.exchange, o.key, !o.optional, false, o.msg)
	if err != nil {
		if !errors.Is(err, amqp.ErrClosed) {
			b.sent[i] = true
		}
		_ = b.cc.release(f.key, f.slot) // its outcome is err
		b.w.sem.Release(f.weight)
		return f, err
	}
	b.sent[i] = true
	f.dc = dc
	return f, nil
}

// land waits for the oldest flight.
func (b *flightBatch) land(ctx context.Context) {
	f := &b.flights[b.landed]
	b.landed++
	select {
	case <-f.dc.Done():
	default:
		select {
		case <-f.dc.Done():
		case <-ctx.Done():
			f.state = abandoned
			b.left = broker.ContextError(ctx)
			return
		}
	}
	b.w.sem.Release(f.weight)
	switch {
	case f.dc.Acked():
		f.state = acked
	case b.cc.ch.IsClosed():
		f.state = died
	default:
		f.state = nacked
	}
}

// finish decides about every flight.
func (b *flightBatch) finish() (again []int) {
	select {
	case b.cc.sync <- struct{}{}:
	case <-b.cc.dead:
	}
	left := 0
	for i := range b.flights {
		f := &b.flights[i]
		if f.state == abandoned {
			left++
			continue
		}
		returned := b.cc.release(f.key, f.slot)
		switch f.state {
		case acked:
			b.errs[f.index] = nil
			if returned != nil {
				b.errs[f.index] = outcome(fmt.Errorf("no queue takes the message: %w", classify(returned)), f.before)
			}
		case nacked:
			b.errs[f.index] = outcome(errNacked, f.before)
			b.sent[f.index] = f.before
		case died:
			again = append(again, f.index)
		}
	}
	if left == 0 {
		return again
	}
	// The caller left. What it holds of the window returns with the confirms.
	rest := make([]flight, 0, left)
	for _, f := range b.flights {
		if f.state == abandoned {
			b.errs[f.index] = broker.UnknownOutcome(b.left)
			rest = append(rest, f)
		}
	}
	go func(cc *confirmChannel, w *window) {
		for _, f := range rest {
			<-f.dc.Done()
			_ = cc.release(f.key, f.slot) // the caller was told that the outcome is unknown
			w.sem.Release(f.weight)
		}
	}(b.cc, b.w)
	return again
}
