package rabbitmq

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// TestPipe: bytes come out in order, a stalled peer blocks no writer, and Close
// is bounded.
func TestPipe(t *testing.T) {
	near, far := net.Pipe()
	p := newPipe(near)
	var want bytes.Buffer
	for i := range 500 {
		size := rand.IntN(3000)
		if i%50 == 0 {
			size = rand.IntN(3 * pipeChunk)
		}
		b := bytes.Repeat([]byte{byte(rand.IntN(256))}, size)
		want.Write(b)
		if _, err := p.Write(b); err != nil { // nobody reads yet
			t.Fatal(err)
		}
	}
	got := make([]byte, want.Len())
	for n := 0; n < len(got); {
		k, err := far.Read(got[n:])
		if err != nil {
			t.Fatal(err)
		}
		n += k
	}
	if !bytes.Equal(got, want.Bytes()) {
		t.Fatal("other bytes came out")
	}
	if _, err := p.Write([]byte("never read")); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took > 5*pipeLinger {
		t.Fatalf("Close took %v", took)
	}
	if _, err := p.Write(nil); err == nil {
		t.Fatal("write after close")
	}
	if err := far.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestPipeRoom: while the network stalls, who asks for room waits until its
// context ends; it goes on once the network does, or the pipe is closed or
// broken.
func TestPipeRoom(t *testing.T) {
	for name, release := range map[string]func(near *pipe, far net.Conn) error{
		"network goes on": func(_ *pipe, far net.Conn) error {
			_, err := far.Read(make([]byte, pipeChunk))
			return err
		},
		"closed": func(near *pipe, _ net.Conn) error { return near.Close() },
		"broken": func(_ *pipe, far net.Conn) error { return far.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				conn, far := net.Pipe()
				near := newPipe(conn)
				write := func() {
					if _, err := near.Write(make([]byte, pipeChunk)); err != nil {
						t.Fatal(err)
					}
				}
				write() // the writer takes it, and stalls
				synctest.Wait()
				for range pipeFull {
					if err := near.room(t.Context()); err != nil {
						t.Fatal(err)
					}
					write()
				}
				if err := near.room(t.Context()); err != nil {
					t.Fatal(err)
				}
				write()
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				if err := near.room(ctx); !errors.Is(err, context.DeadlineExceeded) {
					t.Fatalf("%d chunks wait to be written: %v", len(near.chunks), err)
				}
				waiter := make(chan error, 1)
				go func() { waiter <- near.room(context.WithoutCancel(t.Context())) }()
				synctest.Wait()
				if err := release(near, far); err != nil {
					t.Fatal(err)
				}
				if err := <-waiter; err != nil {
					t.Fatal(err)
				}
				_ = near.Close() // it may be closed, or broken, already
				if err := far.Close(); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}
