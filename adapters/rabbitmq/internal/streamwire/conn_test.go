package streamwire

import (
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A server speaks the broker's side as far as a test tells it to.
type server struct {
	t testing.TB
	c net.Conn
	// answer returns what to send for a request; nil: nothing. The default
	// answers everything with OK.
	answer func(key uint16, id uint32, body *reader) []frame
}

func ok(key uint16, id uint32) frame {
	return newFrame(key|response, 16).u32(id).u16(uint16(OK))
}

// shake answers a handshake.
func shake(key uint16, id uint32) []frame {
	switch key {
	case keyPeerProperties:
		return []frame{ok(key, id).dict(map[string]string{"version": "4.0.5"})}
	case keySASLHandshake:
		return []frame{ok(key, id).strs([]string{"PLAIN"})}
	case keySASLAuthenticate:
		return []frame{ok(key, id), newFrame(keyTune, 8).u32(1 << 20).u32(60)}
	case keyOpen:
		return []frame{ok(key, id).dict(map[string]string{"advertised_host": "host", "advertised_port": "5552"})}
	case keyTune | response, keyHeartbeat:
		return nil
	}
	return []frame{ok(key, id)}
}

func (s *server) run() {
	for {
		var head [4]byte
		if _, err := io.ReadFull(s.c, head[:]); err != nil {
			return
		}
		b := make([]byte, binary.BigEndian.Uint32(head[:]))
		if _, err := io.ReadFull(s.c, b); err != nil {
			return
		}
		r := &reader{b: b}
		key := r.u16()
		r.u16()
		var id uint32
		if key != keyHeartbeat && key != keyTune|response {
			id = r.u32()
		}
		for _, f := range s.answer(key, id, r) {
			if _, err := s.c.Write(f.sized()); err != nil {
				return
			}
		}
	}
}

// dial returns a connection to a server with its own answers behind the
// handshake.
func dial(t *testing.T, answer func(s *server, key uint16, id uint32, body *reader) []frame) (*Conn, error) {
	t.Helper()
	near, far := tcpPair(t)
	s := &server{t: t, c: far}
	s.answer = func(key uint16, id uint32, body *reader) []frame {
		if answer != nil {
			if fs := answer(s, key, id, body); fs != nil {
				return fs
			}
		}
		return shake(key, id)
	}
	var wg sync.WaitGroup
	wg.Go(s.run)
	t.Cleanup(func() { far.Close(); wg.Wait() })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	return Open(ctx, near, Config{User: "u", Password: "p", VHost: "/", Heartbeat: time.Minute})
}

func tcpPair(t *testing.T) (near, far net.Conn) {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if near, err = (&net.Dialer{}).DialContext(t.Context(), "tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if far, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return near, far
}

func open(t *testing.T, answer func(s *server, key uint16, id uint32, body *reader) []frame) *Conn {
	t.Helper()
	k, err := dial(t, answer)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		k.Close(ctx)
	})
	return k
}

// TestHandshakeCut: a connection that dies at any point of the handshake is an
// error at once, not at the context's end.
func TestHandshakeCut(t *testing.T) {
	for _, at := range []uint16{keyPeerProperties, keySASLHandshake, keySASLAuthenticate, keyTune | response, keyOpen} {
		start := time.Now()
		k, err := dial(t, func(s *server, key uint16, _ uint32, _ *reader) []frame {
			if key == at {
				s.c.Close()
			}
			return nil
		})
		if k != nil || !errors.Is(err, ErrClosed) {
			t.Errorf("cut at %d: %v", at, err)
		}
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("cut at %d: %v", at, took)
		}
	}
}

// TestHandshakeSilent: at any point, the context ends it.
func TestHandshakeSilent(t *testing.T) {
	for _, at := range []uint16{keyPeerProperties, keySASLHandshake, keySASLAuthenticate, keyOpen} {
		near, far := tcpPair(t)
		ctx, cancel := context.WithCancel(t.Context())
		s := &server{t: t, c: far, answer: func(key uint16, id uint32, _ *reader) []frame {
			if key == at {
				cancel()
				return nil
			}
			return shake(key, id)
		}}
		go s.run()
		if k, err := Open(ctx, near, Config{Heartbeat: 10 * time.Second}); k != nil || !errors.Is(err, context.Canceled) {
			t.Errorf("silent at %d: %v", at, err)
		}
		cancel()
		far.Close()
	}
}

func TestHandshakeRefused(t *testing.T) {
	for at, code := range map[uint16]CodeError{keySASLAuthenticate: ErrAuthenticationFailure, keyOpen: ErrVirtualHostAccess} {
		_, err := dial(t, func(_ *server, key uint16, id uint32, _ *reader) []frame {
			if key == at {
				return []frame{newFrame(key|response, 8).u32(id).u16(uint16(code))}
			}
			return nil
		})
		if !errors.Is(err, code) {
			t.Errorf("%v, want %v", err, code)
		}
	}
}

// TestSilence: a peer that stops beating is found within two heartbeats.
func TestSilence(t *testing.T) {
	k := open(t, func(_ *server, key uint16, id uint32, _ *reader) []frame { // it never beats
		if key == keySASLAuthenticate {
			return []frame{ok(key, id), newFrame(keyTune, 8).u32(1 << 20).u32(1)}
		}
		return nil
	})
	select {
	case <-k.Done():
	case <-time.After(20 * time.Second):
		t.Fatal("not found")
	}
	var timeout net.Error
	if !errors.As(k.Err(), &timeout) || !timeout.Timeout() {
		t.Fatal(k.Err())
	}
}

// TestCutEndsEverything: calls under way, publishers and subscriptions.
func TestCutEndsEverything(t *testing.T) {
	k := open(t, func(s *server, key uint16, id uint32, _ *reader) []frame {
		switch key {
		case keyQuerySequence:
			return []frame{ok(key, id).i64(41)}
		case keyStats:
			s.c.Close()
		}
		return nil
	})
	p, last, err := k.DeclarePublisher(t.Context(), "name", "s", func([]int64, CodeError) {})
	if err != nil || last != 41 {
		t.Fatal(last, err)
	}
	sub, err := k.Subscribe(t.Context(), "s", First(), SubscribeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.Stats(t.Context(), "s"); !errors.Is(err, ErrClosed) {
		t.Errorf("a call: %v", err)
	}
	<-p.Done()
	if _, err := sub.Next(t.Context()); !errors.Is(err, ErrClosed) || !errors.Is(p.Err(), ErrClosed) {
		t.Errorf("%v, %v", err, p.Err())
	}
	if err := p.Send([]Entry{{ID: 1}}); !errors.Is(err, ErrClosed) {
		t.Errorf("send: %v", err)
	}
	if k.Room() {
		t.Error("a dead connection has room")
	}
}

// chunkFrame is a delivery of n messages of one byte.
func chunkFrame(sub uint8, first int64, n int, spoil bool) frame {
	var data frame
	for range n {
		data = data.bytes([]byte("x"))
	}
	crc := crc32.ChecksumIEEE(data)
	if spoil {
		crc++
	}
	f := newFrame(keyDeliver, 64).u8(sub).u8(0x50).u8(0).u16(uint16(n)).u32(uint32(n)).i64(0).i64(1).i64(first)
	return append(f.u32(crc).u32(uint32(len(data))).u32(0).u32(0), data...)
}

// TestDeliver: chunks come in order, each gives a credit back, and a wrong
// checksum ends the connection.
func TestDeliver(t *testing.T) {
	var credits int
	credited := make(chan int, 10)
	k := open(t, func(_ *server, key uint16, id uint32, r *reader) []frame {
		switch key {
		case keySubscribe:
			return []frame{ok(key, id), chunkFrame(r.u8(), 5, 3, false), chunkFrame(0, 8, 2, false)}
		case keyCredit:
			credits++
			credited <- credits
			if credits == 2 {
				return []frame{chunkFrame(0, 10, 1, true)}
			}
			return []frame{newFrame(keyHeartbeat, 0)}
		}
		return nil
	})
	sub, err := k.Subscribe(t.Context(), "s", AtOffset(5), SubscribeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []int64{5, 8} {
		c, err := sub.Next(t.Context())
		if err != nil || c.First != want {
			t.Fatal(c, err)
		}
		<-credited
	}
	if _, err := sub.Next(t.Context()); !errors.Is(err, errMalformed) {
		t.Fatal(err)
	}
}

// TestStreamGone: a metadata update ends what is open on the stream, and the
// connection goes on.
func TestStreamGone(t *testing.T) {
	k := open(t, func(_ *server, key uint16, id uint32, _ *reader) []frame {
		if key == keyStats {
			return []frame{newFrame(keyMetadataUpdate, 8).u16(uint16(ErrStreamNotAvailable)).str("a"), ok(key, id).u32(0)}
		}
		return nil
	})
	a, err := k.Subscribe(t.Context(), "a", First(), SubscribeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := k.Subscribe(t.Context(), "b", First(), SubscribeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.Stats(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Next(t.Context()); !errors.Is(err, ErrStreamNotAvailable) {
		t.Error(err)
	}
	select {
	case <-b.Done():
		t.Error(b.Err())
	default:
	}
}

// TestGoneKeepsIDs: what a metadata update ended keeps its id until its owner has
// closed it, and the broker has answered: else the late goodbye would end
// another one, which got the id meanwhile.
func TestGoneKeepsIDs(t *testing.T) {
	left := map[uint16][]uint8{}
	k := open(t, func(_ *server, key uint16, id uint32, r *reader) []frame {
		switch key {
		case keyStats:
			return []frame{newFrame(keyMetadataUpdate, 8).u16(uint16(ErrStreamNotAvailable)).str("a"), ok(key, id).u32(0)}
		case keyQuerySequence:
			return []frame{ok(key, id).i64(0)}
		case keyUnsubscribe, keyDeletePublisher:
			left[key] = append(left[key], r.u8())
		}
		return nil
	})
	nobody := func([]int64, CodeError) {}
	sub, err := k.Subscribe(t.Context(), "a", First(), SubscribeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pub, _, err := k.DeclarePublisher(t.Context(), "name", "a", nobody)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.Stats(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	<-sub.Done()
	<-pub.Done()
	other, err := k.Subscribe(t.Context(), "b", First(), SubscribeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	otherPub, _, err := k.DeclarePublisher(t.Context(), "name", "b", nobody)
	if err != nil {
		t.Fatal(err)
	}
	sub.Close(t.Context())
	pub.Close()
	if _, err := k.Stats(t.Context(), "a"); err != nil { // answered behind both
		t.Fatal(err)
	}
	again, err := k.Subscribe(t.Context(), "a", First(), SubscribeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if other.id == sub.id || otherPub.id == pub.id || len(left[keyUnsubscribe]) != 1 || len(left[keyDeletePublisher]) != 1 {
		t.Errorf("subscriptions %d, %d, publishers %d, %d; left %v", sub.id, other.id, pub.id, otherPub.id, left)
	}
	if again.id != sub.id || !errors.Is(sub.Err(), ErrStreamNotAvailable) {
		t.Errorf("id %d, want the free %d; %v", again.id, sub.id, sub.Err())
	}
}

// TestFull: ids run out as a typed error, and come back.
func TestFull(t *testing.T) {
	k := open(t, nil)
	var subs []*Subscription
	for k.Room() {
		s, err := k.Subscribe(t.Context(), "s", First(), SubscribeOptions{})
		if err != nil {
			t.Fatal(err)
		}
		subs = append(subs, s)
	}
	if _, err := k.Subscribe(t.Context(), "s", First(), SubscribeOptions{}); !errors.Is(err, ErrFull) || len(subs) != maxEntities {
		t.Fatal(len(subs), err)
	}
	subs[7].Close(t.Context())
	if _, err := k.Subscribe(t.Context(), "s", First(), SubscribeOptions{}); err != nil {
		t.Fatal(err)
	}
}

// TestCallEndsWithContext: and the late answer hurts nobody.
func TestCallEndsWithContext(t *testing.T) {
	held := make(chan uint32, 1)
	ctx, cancel := context.WithCancel(t.Context())
	k := open(t, func(_ *server, key uint16, id uint32, _ *reader) []frame {
		switch key {
		case keyQueryOffset:
			held <- id
			cancel()
			return []frame{newFrame(keyHeartbeat, 0)}
		case keyStats:
			return []frame{ok(keyQueryOffset, <-held).i64(1), ok(key, id).u32(0)}
		}
		return nil
	})
	if _, err := k.QueryOffset(ctx, "g", "s"); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if _, err := k.Stats(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	if err := k.send(newFrame(keyStoreOffset, 0).bytes(make([]byte, 2<<20))); !errors.Is(err, ErrFrameTooLarge) {
		t.Fatal(err)
	}
}
