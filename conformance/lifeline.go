package conformance

import (
	"context"
	"net"
	"sync"
)

// A Lifeline dials for a client that is to be killed: once it is cut, every
// connection is gone, with nothing said on it, and none is made again. To the
// broker that is what the death of the client's process looks like. It is what
// Harness.Victim needs where a client takes a dialer.
type Lifeline struct {
	mu    sync.Mutex
	cut   bool
	conns map[*lifelineConn]struct{}
}

// DialContext connects, unless the line is cut.
func (l *Lifeline) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	if l.isCut() {
		return nil, net.ErrClosed
	}
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cut {
		_ = conn.Close() // nobody has it
		return nil, net.ErrClosed
	}
	if l.conns == nil {
		l.conns = map[*lifelineConn]struct{}{}
	}
	held := &lifelineConn{Conn: conn, l: l}
	l.conns[held] = struct{}{}
	return held, nil
}

func (l *Lifeline) isCut() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cut
}

// Cut breaks every connection, for good. It may be called again.
func (l *Lifeline) Cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = true
	for conn := range l.conns {
		_ = conn.Conn.Close() // its state does not matter any more
	}
	l.conns = nil
}

// A lifelineConn tells its Lifeline when it is closed.
type lifelineConn struct {
	net.Conn
	l *Lifeline
}

// Close closes the connection.
func (c *lifelineConn) Close() error {
	c.l.mu.Lock()
	delete(c.l.conns, c)
	c.l.mu.Unlock()
	return c.Conn.Close()
}
