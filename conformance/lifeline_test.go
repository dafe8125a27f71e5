package conformance

import (
	"errors"
	"io"
	"net"
	"testing"
)

func TestLifeline(t *testing.T) {
	ln, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	var l Lifeline
	var near, far []net.Conn
	for range 2 {
		conn, err := l.DialContext(t.Context(), "tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		peer, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer peer.Close()
		near, far = append(near, conn), append(far, peer)
	}
	if err := near[0].Close(); err != nil || len(l.conns) != 1 {
		t.Fatalf("%v, %d connections are kept", err, len(l.conns))
	}
	l.Cut()
	l.Cut()
	for i, peer := range far {
		if _, err := peer.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("peer %d: %v", i, err)
		}
	}
	if _, err := near[1].Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("write on a cut line: %v", err)
	}
	if _, err := l.DialContext(t.Context(), "tcp", ln.Addr().String()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("dial on a cut line: %v", err)
	}
}
