package streamwire

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// Config says who connects.
type Config struct {
	User, Password, VHost string
	Name                  string        // shown by the management page
	Heartbeat             time.Duration // whole seconds, at least 1; the smaller of this and the broker's
}

// maxFrame bounds what is read and asked for; the broker's default is the same.
const maxFrame = 1 << 20

// readLimit bounds what the broker sends in one frame: a chunk is read whole,
// whatever the frame's limit.
const readLimit = 256 << 20

// maxEntities is how many publishers, or subscriptions, one connection takes.
const maxEntities = 200

// A Conn is one connection. Its methods are safe for concurrent use.
type Conn struct {
	c          net.Conn
	frameMax   atomic.Int64
	heartbeat  atomic.Int64 // in ns; 0: none
	advertised string
	tune       chan tuning
	done       chan struct{}
	routines   sync.WaitGroup

	write sync.Mutex

	mu         sync.Mutex
	err        error // why it is closed
	next       uint32
	calls      map[uint32]func(answer []byte)
	publishers map[uint8]*Publisher
	subs       map[uint8]*Subscription
}

type tuning struct{ frame, heartbeat uint32 }

// Open shakes hands over c, which it owns from here on. Write on c should not
// block for long; a Conn does not interrupt it.
func Open(ctx context.Context, c net.Conn, cfg Config) (*Conn, error) {
	k := &Conn{
		c: c, tune: make(chan tuning, 1), done: make(chan struct{}), calls: map[uint32]func([]byte){},
		publishers: map[uint8]*Publisher{}, subs: map[uint8]*Subscription{},
	}
	k.frameMax.Store(maxFrame)
	k.heartbeat.Store(int64(max(time.Second, cfg.Heartbeat.Truncate(time.Second))))
	k.routines.Go(k.read)
	if err := k.handshake(ctx, cfg); err != nil {
		k.fail(err)
		k.routines.Wait()
		return nil, err
	}
	k.routines.Go(k.beat)
	return k, nil
}

func (k *Conn) handshake(ctx context.Context, cfg Config) error {
	_, err := k.call(ctx, keyPeerProperties, func(f frame) frame {
		return f.dict(map[string]string{"product": "queuestream broker", "platform": "Go", "connection_name": cfg.Name})
	})
	if err != nil {
		return err
	}
	if _, err = k.call(ctx, keySASLHandshake, nil); err != nil {
		return err
	}
	if err = k.Authenticate(ctx, cfg.User, cfg.Password); err != nil {
		return err
	}
	select {
	case t := <-k.tune:
		size := lower(maxFrame, t.frame)
		beat := lower(uint32(k.heartbeat.Load()/int64(time.Second)), t.heartbeat) //nolint:gosec // small
		k.frameMax.Store(int64(size))
		k.heartbeat.Store(int64(beat) * int64(time.Second))
		if err := k.send(newFrame(keyTune|response, 8).u32(size).u32(beat)); err != nil {
			return err
		}
	case <-k.done:
		return k.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
	r, err := k.call(ctx, keyOpen, func(f frame) frame { return f.str(cfg.VHost) })
	if err != nil {
		return err
	}
	props := r.dict()
	if props["advertised_host"] != "" {
		k.advertised = net.JoinHostPort(props["advertised_host"], props["advertised_port"])
	}
	return r.err()
}

// Authenticate says who connects. On an open connection it replaces the user's
// password, a token that expires, as RabbitMQ 3.13 and later allow.
func (k *Conn) Authenticate(ctx context.Context, user, password string) error {
	_, err := k.call(ctx, keySASLAuthenticate, func(f frame) frame {
		return f.str("PLAIN").bytes([]byte("\x00" + user + "\x00" + password))
	})
	return err
}

// lower returns the smaller limit, where 0 is none.
func lower(a, b uint32) uint32 {
	if a == 0 || b == 0 {
		return max(a, b)
	}
	return min(a, b)
}

// Advertised returns the host and port under which the cluster knows the node.
func (k *Conn) Advertised() string { return k.advertised }

// Done is closed when the connection is gone.
func (k *Conn) Done() <-chan struct{} { return k.done }

// Err returns why the connection is gone; it wraps ErrClosed.
func (k *Conn) Err() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", ErrClosed, k.err)
}

// Room tells whether a publisher, or a subscription, fits in.
func (k *Conn) Room() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.err == nil && len(k.publishers) < maxEntities && len(k.subs) < maxEntities
}

// Close says goodbye and ends everything; it waits for the broker until ctx
// ends.
func (k *Conn) Close(ctx context.Context) {
	// It fails only if the connection is gone already, or ctx.
	_, _ = k.call(ctx, keyClose, func(f frame) frame { return f.u16(uint16(OK)).str("OK") })
	k.fail(errors.New("closed by this program"))
	k.routines.Wait()
}

// fail ends the connection, once.
func (k *Conn) fail(err error) {
	k.mu.Lock()
	if k.err != nil {
		k.mu.Unlock()
		return
	}
	k.err = err
	pubs, subs := k.publishers, k.subs
	k.publishers, k.subs = nil, nil
	k.mu.Unlock()
	close(k.done)
	_ = k.c.Close() // an error means that it is closed
	err = k.Err()
	for _, p := range pubs {
		p.end(err)
	}
	for _, s := range subs {
		s.end(err)
	}
}

func (k *Conn) send(f frame) error {
	if limit := k.frameMax.Load(); int64(len(f)-4) > limit {
		return fmt.Errorf("%w: %d bytes, at most %d", ErrFrameTooLarge, len(f)-4, limit)
	}
	k.write.Lock()
	defer k.write.Unlock()
	if _, err := k.c.Write(f.sized()); err != nil {
		k.fail(err)
		return k.Err()
	}
	return nil
}

// call sends a request and returns its answer behind the response code, which
// is the error unless OK.
func (k *Conn) call(ctx context.Context, key uint16, body func(frame) frame) (*reader, error) {
	r, err := k.ask(ctx, key, body)
	if err != nil {
		return nil, err
	}
	if code := CodeError(r.u16()); code != OK {
		if err := r.err(); err != nil {
			return nil, err
		}
		return nil, code
	}
	return r, nil
}

// ask is call for answers without a response code.
func (k *Conn) ask(ctx context.Context, key uint16, body func(frame) frame) (*reader, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	answer := make(chan []byte, 1)
	id, err := k.begin(key, body, func(b []byte) { answer <- b })
	if err != nil {
		return nil, err
	}
	defer func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		delete(k.calls, id)
	}()
	select {
	case b := <-answer:
		return &reader{b: b}, nil
	case <-k.done:
		return nil, k.Err()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// begin sends a request; answered runs on the reader with the answer, if there
// ever is one, and must not block.
func (k *Conn) begin(key uint16, body func(frame) frame, answered func([]byte)) (uint32, error) {
	k.mu.Lock()
	if k.err != nil {
		k.mu.Unlock()
		return 0, k.Err()
	}
	k.next++
	id := k.next
	k.calls[id] = answered
	k.mu.Unlock()
	f := newFrame(key, 64).u32(id)
	if body != nil {
		f = body(f)
	}
	err := k.send(f)
	if err != nil {
		k.mu.Lock()
		defer k.mu.Unlock()
		delete(k.calls, id)
	}
	return id, err
}

// beat sends heartbeats; the reader listens for the broker's.
func (k *Conn) beat() {
	h := time.Duration(k.heartbeat.Load())
	if h == 0 {
		return
	}
	t := time.NewTicker(h / 2)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			if k.send(newFrame(keyHeartbeat, 0)) != nil {
				return
			}
		case <-k.done:
			return
		}
	}
}

func (k *Conn) read() {
	k.fail(k.readFrames())
}

func (k *Conn) readFrames() error {
	in := bufio.NewReaderSize(k.c, 64<<10)
	var head [4]byte
	for {
		// The broker beats twice in a heartbeat's time; during the handshake
		// the caller's context is the limit.
		if h := time.Duration(k.heartbeat.Load()); h > 0 {
			if err := k.c.SetReadDeadline(time.Now().Add(2 * h)); err != nil {
				return err
			}
		}
		if _, err := io.ReadFull(in, head[:]); err != nil {
			return err
		}
		n := binary.BigEndian.Uint32(head[:])
		if n < 4 || n > readLimit {
			return fmt.Errorf("%w: of %d bytes", errMalformed, n)
		}
		b := make([]byte, n)
		if _, err := io.ReadFull(in, b); err != nil {
			return err
		}
		if err := k.handle(&reader{b: b}); err != nil {
			return err
		}
	}
}

// handle must not block: everything behind it waits.
func (k *Conn) handle(r *reader) error {
	key := r.u16()
	r.u16() // version
	switch key {
	case keyDeliver:
		return k.deliver(r)
	case keyPublishConfirm:
		return k.confirmed(r)
	case keyPublishError:
		return k.refused(r)
	case keyHeartbeat, keyCredit | response: // credit is answered for a subscription that is gone
		return nil
	case keyTune:
		select {
		case k.tune <- tuning{r.u32(), r.u32()}:
		default:
		}
		return r.err()
	case keyMetadataUpdate:
		code := CodeError(r.u16())
		k.gone(r.str(), code)
		return r.err()
	case keyConsumerUpdate:
		return k.update(r)
	case keyClose:
		id, code, reason := r.u32(), CodeError(r.u16()), r.str()
		_ = k.send(newFrame(keyClose|response, 8).u32(id).u16(uint16(OK))) // it is over either way
		return fmt.Errorf("closed by the broker: %s: %w", reason, code)
	}
	if key&response == 0 {
		return nil // a notice that this version of the protocol does not know
	}
	id := r.u32()
	if r.bad {
		return errMalformed
	}
	k.mu.Lock()
	answer := k.calls[id]
	delete(k.calls, id)
	k.mu.Unlock()
	if answer != nil { // else its caller has left
		answer(r.b)
	}
	return nil
}

// gone ends what is open on a stream that was deleted or has moved. The ids stay
// taken until their owners have closed them and the broker has answered: it may
// know one still, asked for meanwhile, and a goodbye that comes late must not
// meet another's.
func (k *Conn) gone(stream string, code CodeError) {
	k.mu.Lock()
	var pubs []*Publisher
	var subs []*Subscription
	for _, p := range k.publishers {
		if p.stream == stream {
			pubs = append(pubs, p)
		}
	}
	for _, s := range k.subs {
		if s.stream == stream {
			subs = append(subs, s)
		}
	}
	k.mu.Unlock()
	err := fmt.Errorf("stream %q: %w", stream, code)
	for _, p := range pubs {
		p.end(err)
	}
	for _, s := range subs {
		s.end(err)
	}
}

// freeID returns an id that is not in use. k.mu is held.
func freeID[T any](used map[uint8]T) (uint8, bool) {
	for id := range maxEntities {
		if _, ok := used[uint8(id)]; !ok {
			return uint8(id), true
		}
	}
	return 0, false
}

func joinPort(host string, port uint32) string {
	return net.JoinHostPort(host, strconv.FormatUint(uint64(port), 10))
}
