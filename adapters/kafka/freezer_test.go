package kafka_test

import (
	"context"
	"net"
	"sync"
)

// A freezer stops a client as SIGSTOP does: its connections stay and nothing
// passes, neither requests nor answers, until it thaws.
type freezer struct {
	mu   sync.Mutex
	cold chan struct{} // closed by thaw; nil: not frozen
}

func (f *freezer) freeze() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.cold == nil {
		f.cold = make(chan struct{})
	}
}

func (f *freezer) thaw() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.cold != nil {
		close(f.cold)
		f.cold = nil
	}
}

// wait returns when nothing is frozen, or net.ErrClosed when closed is closed.
func (f *freezer) wait(closed <-chan struct{}) error {
	f.mu.Lock()
	cold := f.cold
	f.mu.Unlock()
	if cold == nil {
		return nil
	}
	select {
	case <-cold:
		return nil
	case <-closed:
		return net.ErrClosed
	}
}

func (f *freezer) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if err := f.wait(ctx.Done()); err != nil {
		return nil, err
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return &frozenConn{Conn: conn, f: f, closed: make(chan struct{})}, nil
}

type frozenConn struct {
	net.Conn
	f      *freezer
	once   sync.Once
	closed chan struct{}
}

func (c *frozenConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if cold := c.f.wait(c.closed); cold != nil {
		return 0, cold
	}
	return n, err
}

func (c *frozenConn) Write(p []byte) (int, error) {
	if err := c.f.wait(c.closed); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

func (c *frozenConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}
