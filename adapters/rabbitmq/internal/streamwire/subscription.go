package streamwire

import (
	"context"
	"fmt"
	"hash/crc32"
	"sync"
)

// A Start says where a subscription begins: use the constructors.
type Start struct {
	kind  uint16
	value int64
}

// First is the first chunk that is retained.
func First() Start { return Start{kind: 1} }

// Last is the last chunk that is stored.
func Last() Start { return Start{kind: 2} }

// AtOffset is the chunk that contains an offset, or the end.
func AtOffset(offset int64) Start { return Start{kind: 4, value: offset} }

// AtTime is the chunk that contains a time, in ms since 1970, or the end.
func AtTime(ms int64) Start { return Start{kind: 5, value: ms} }

func (s Start) put(f frame) frame {
	f = f.u16(s.kind)
	if s.kind == 4 || s.kind == 5 {
		f = f.i64(s.value)
	}
	return f
}

// credits is how many chunks the broker sends ahead.
const credits = 10

// SubscribeOptions are the optional parts of a subscription.
type SubscribeOptions struct {
	// Group, when set, makes this one of the group's subscriptions of which the
	// broker keeps a single one active; SuperStream names what the stream is a
	// partition of, if any.
	Group       string
	SuperStream string
	// Update runs, one at a time, when the broker makes the subscription active
	// or not; the broker waits for it to return before another becomes active.
	// It returns where to go on.
	Update func(active bool) Start
	// Credits is how many chunks the broker sends ahead. 0: 10.
	Credits int
}

// A Subscription delivers the chunks of one stream.
type Subscription struct {
	k      *Conn
	id     uint8
	stream string
	o      SubscribeOptions
	chunks chan *Chunk
	wants  chan want
	once   sync.Once // of end
	done   chan struct{}
	err    error // set before done is closed
}

// A want is the broker's question about a single active subscription.
type want struct {
	id     uint32
	active bool
}

// Subscribe begins to read a stream.
func (k *Conn) Subscribe(ctx context.Context, stream string, from Start, o SubscribeOptions) (*Subscription, error) {
	if o.Credits == 0 {
		o.Credits = credits
	}
	s := &Subscription{k: k, stream: stream, o: o, chunks: make(chan *Chunk, o.Credits), done: make(chan struct{})}
	props := map[string]string{}
	if o.Group != "" {
		s.wants = make(chan want, 64)
		props["name"] = o.Group
		props["single-active-consumer"] = "true"
		if o.SuperStream != "" {
			props["super-stream"] = o.SuperStream
		}
	}
	k.mu.Lock()
	if k.err != nil {
		k.mu.Unlock()
		return nil, k.Err()
	}
	id, ok := freeID(k.subs)
	if !ok {
		k.mu.Unlock()
		return nil, ErrFull
	}
	s.id = id
	k.subs[id] = s
	k.mu.Unlock()
	if s.wants != nil {
		go s.answer() // it may be the program's callback that does not return
	}
	_, err := k.call(ctx, keySubscribe, func(f frame) frame {
		f = from.put(f.u8(id).str(stream)).u16(uint16(o.Credits)) //nolint:gosec // small
		if len(props) > 0 {
			f = f.dict(props)
		}
		return f
	})
	if err != nil {
		s.leave() // the broker may have subscribed it
		return nil, err
	}
	return s, nil
}

// Next returns the next chunk and lets the broker send another.
func (s *Subscription) Next(ctx context.Context) (*Chunk, error) {
	select {
	case c := <-s.chunks:
		return c, s.credit()
	default:
	}
	select {
	case c := <-s.chunks:
		return c, s.credit()
	case <-s.done:
		return nil, s.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Waiting returns a chunk that has arrived, or nil.
func (s *Subscription) Waiting() *Chunk {
	select {
	case c := <-s.chunks:
		return c
	default:
		return nil
	}
}

func (s *Subscription) credit() error {
	if s.k.send(newFrame(keyCredit, 4).u8(s.id).u16(1)) != nil {
		<-s.done // the chunk comes again over the next connection
		return s.err
	}
	return nil
}

// Conn returns the connection that the subscription lives on.
func (s *Subscription) Conn() *Conn { return s.k }

// Done is closed when the subscription is gone.
func (s *Subscription) Done() <-chan struct{} { return s.done }

// Err returns why the subscription is gone, once Done is closed.
func (s *Subscription) Err() error { return s.err }

func (s *Subscription) end(err error) {
	s.once.Do(func() {
		s.err = err
		close(s.done)
	})
}

// leave unsubscribes; the channel that it returns is closed when the broker has
// answered.
func (s *Subscription) leave() <-chan struct{} {
	left := make(chan struct{})
	// The id is free once the broker has answered; an error means that the
	// connection is gone, and everything with it.
	_, _ = s.k.begin(keyUnsubscribe, func(f frame) frame { return f.u8(s.id) }, func([]byte) {
		s.k.mu.Lock()
		if s.k.subs[s.id] == s {
			delete(s.k.subs, s.id)
		}
		s.k.mu.Unlock()
		s.end(fmt.Errorf("%w: unsubscribed", ErrClosed))
		close(left)
	})
	return left
}

// Close unsubscribes and waits for the broker until ctx ends. It is called once,
// also when the subscription has ended by itself: its id is not free before.
func (s *Subscription) Close(ctx context.Context) {
	select {
	case <-s.leave():
	case <-s.done:
	case <-ctx.Done():
	}
}

// answer runs Update for each question of the broker's.
func (s *Subscription) answer() {
	for {
		select {
		case w := <-s.wants:
			from := s.o.Update(w.active)
			f := from.put(newFrame(keyConsumerUpdate|response, 24).u32(w.id).u16(uint16(OK)))
			if s.k.send(f) != nil {
				return
			}
		case <-s.done:
			return
		}
	}
}

func (k *Conn) update(r *reader) error {
	id := r.u32()
	s := k.subscription(r.u8())
	w := want{id, r.u8() == 1}
	if r.bad {
		return errMalformed
	}
	if s == nil || s.wants == nil {
		return nil
	}
	select {
	case s.wants <- w:
		return nil
	default:
		return fmt.Errorf("stream %q: more changes of the active consumer than were answered", s.stream)
	}
}

func (k *Conn) subscription(id uint8) *Subscription {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.subs[id]
}

func (k *Conn) deliver(r *reader) error {
	s := k.subscription(r.u8())
	r.u8() // magic and version
	kind := r.u8()
	c := &Chunk{entries: int(r.u16()), Records: int(r.u32()), Time: r.i64()}
	r.i64() // epoch
	c.First = r.i64()
	crc, size := r.u32(), int(r.u32())
	r.u32() // trailer
	r.u32() // reserved
	c.data = r.next(size)
	switch {
	case r.bad:
		return errMalformed
	case crc32.ChecksumIEEE(c.data) != crc:
		return fmt.Errorf("%w: the checksum of chunk %d is wrong", errMalformed, c.First)
	case s == nil || kind != 0:
		return nil // unsubscribed, or not of records
	}
	select {
	case s.chunks <- c:
		return nil
	default:
		return fmt.Errorf("%w: more chunks than there was credit for", errMalformed)
	}
}
