package streamwire

import (
	"context"
	"sync"
)

// A Publisher publishes to one stream over a connection to the stream's leader.
type Publisher struct {
	k       *Conn
	id      uint8
	stream  string
	confirm func(ids []int64, code CodeError)
	once    sync.Once // of end
	done    chan struct{}
	err     error // set before done is closed
}

// Entry is a message with its number.
type Entry struct {
	ID      int64
	Message []byte
}

// EntryOverhead is what an Entry takes in a frame beside its message;
// FrameOverhead is what a frame takes beside its entries.
const (
	EntryOverhead = 12
	FrameOverhead = 16
)

// DeclarePublisher begins to publish under a name, which is what the broker
// recognises numbers by, and returns the last number that it has stored (0:
// none). confirm is called on the connection's reader with what was stored
// (OK) or refused; it must not block, nor keep ids.
func (k *Conn) DeclarePublisher(ctx context.Context, name, stream string, confirm func(ids []int64, code CodeError)) (*Publisher, int64, error) {
	p := &Publisher{k: k, stream: stream, confirm: confirm, done: make(chan struct{})}
	k.mu.Lock()
	if k.err != nil {
		k.mu.Unlock()
		return nil, 0, k.Err()
	}
	id, ok := freeID(k.publishers)
	if !ok {
		k.mu.Unlock()
		return nil, 0, ErrFull
	}
	p.id = id
	k.publishers[id] = p
	k.mu.Unlock()
	_, err := k.call(ctx, keyDeclarePublisher, func(f frame) frame { return f.u8(id).str(name).str(stream) })
	if err != nil {
		p.Close() // the broker may have declared it
		return nil, 0, err
	}
	r, err := k.call(ctx, keyQuerySequence, func(f frame) frame { return f.str(name).str(stream) })
	if err != nil {
		p.Close()
		return nil, 0, err
	}
	last := r.i64()
	return p, last, r.err()
}

func (k *Conn) dropPublisher(p *Publisher) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.publishers[p.id] == p {
		delete(k.publishers, p.id)
	}
}

// Room returns what a frame takes of entries, each with its EntryOverhead: the
// smaller of 1 MiB and the broker's own limit.
func (p *Publisher) Room() int { return int(p.k.frameMax.Load()) - FrameOverhead }

// Send publishes entries in one frame.
func (p *Publisher) Send(entries []Entry) error {
	size := 0
	for _, e := range entries {
		size += EntryOverhead + len(e.Message)
	}
	f := newFrame(keyPublish, FrameOverhead+size).u8(p.id).u32(uint32(len(entries))) //nolint:gosec // few
	for _, e := range entries {
		f = f.i64(e.ID).bytes(e.Message)
	}
	return p.k.send(f)
}

// Done is closed when the publisher is gone.
func (p *Publisher) Done() <-chan struct{} { return p.done }

// Err returns why the publisher is gone, once Done is closed.
func (p *Publisher) Err() error { return p.err }

func (p *Publisher) end(err error) {
	p.once.Do(func() {
		p.err = err
		close(p.done)
	})
}

// Close gives the publisher back without waiting for the broker. It is called
// also when the publisher has ended by itself: its id is not free before.
func (p *Publisher) Close() {
	// The id is free once the broker has answered; an error means that the
	// connection is gone, and everything with it.
	_, _ = p.k.begin(keyDeletePublisher, func(f frame) frame { return f.u8(p.id) }, func([]byte) { p.k.dropPublisher(p) })
}

func (k *Conn) confirmed(r *reader) error {
	id := r.u8()
	ids := make([]int64, r.count(8))
	for i := range ids {
		ids[i] = r.i64()
	}
	if p := k.publisher(id); p != nil && len(ids) > 0 {
		p.confirm(ids, OK)
	}
	return r.err()
}

func (k *Conn) refused(r *reader) error {
	p := k.publisher(r.u8())
	for range r.count(10) {
		id, code := r.i64(), CodeError(r.u16())
		if p != nil && !r.bad {
			p.confirm([]int64{id}, code)
		}
	}
	return r.err()
}

func (k *Conn) publisher(id uint8) *Publisher {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.publishers[id]
}
