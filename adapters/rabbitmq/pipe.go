package rabbitmq

import (
	"net"
	"sync"
	"time"
)

// A pipe is a connection whose Write only appends to a buffer; one goroutine
// writes the buffer to the network. The client flushes after every publish and
// acknowledgement: here what gathers during one system call leaves with the
// next. It also keeps the client's locks free while the network stalls. The
// buffer is bounded by the publishers' windows and the consumers' prefetch.
type pipe struct {
	net.Conn

	mu     sync.Mutex
	buf    []byte
	spare  []byte
	err    error
	closed bool
	wake   chan struct{}
	done   chan struct{}
}

// pipeLinger bounds how long Close waits for the last bytes to leave.
const pipeLinger = 200 * time.Millisecond

// pipeKeep is the largest buffer kept for reuse.
const pipeKeep = 1 << 20

func newPipe(c net.Conn) *pipe {
	p := &pipe{Conn: c, wake: make(chan struct{}, 1), done: make(chan struct{})}
	go p.run()
	return p
}

func (p *pipe) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return 0, p.err
	}
	if p.closed {
		return 0, net.ErrClosed
	}
	p.buf = append(p.buf, b...)
	p.signal()
	return len(b), nil
}

func (p *pipe) signal() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *pipe) run() {
	defer close(p.done)
	for range p.wake {
		p.mu.Lock()
		out, closed := p.buf, p.closed
		p.buf = p.spare[:0]
		p.spare = nil
		p.mu.Unlock()
		var err error
		if len(out) > 0 {
			_, err = p.Conn.Write(out)
		}
		p.mu.Lock()
		if cap(out) <= pipeKeep {
			p.spare = out
		}
		if err != nil {
			p.err, p.buf = err, nil
		}
		p.mu.Unlock()
		if closed || err != nil {
			return
		}
	}
}

// Close writes what is left, for pipeLinger at most.
func (p *pipe) Close() error {
	p.mu.Lock()
	first := !p.closed
	p.closed = true
	p.signal()
	p.mu.Unlock()
	if first {
		// An error means that the connection is gone, which Close reports.
		_ = p.SetWriteDeadline(time.Now().Add(pipeLinger))
	}
	<-p.done
	return p.Conn.Close()
}
