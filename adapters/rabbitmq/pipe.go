package rabbitmq

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/queuestream/broker"
)

// A pipe is a connection whose Write only appends to a buffer; one goroutine
// writes the buffer to the network. The client flushes after every publish and
// acknowledgement: here what gathers during one system call leaves with the
// next. It also keeps the client's locks free while the network stalls. The
// buffer is bounded by the publishers' windows and the consumers' prefetch; who
// publishes waits for room outside those locks.
type pipe struct {
	net.Conn

	mu     sync.Mutex
	chunks [][]byte // all but the last are full
	free   [][]byte
	err    error
	closed bool
	wake   chan struct{}
	taken  chan struct{} // closed when chunks are taken to be written; nil: nobody waits
	done   chan struct{} // closed when run has returned
}

// pipeLinger bounds how long Close waits for the last bytes to leave.
const pipeLinger = 200 * time.Millisecond

// The buffer grows by chunks, so that what it holds is copied once however much
// that is. pipeFull of them gather while as many are written, and all are kept for
// reuse: fresh memory for each body costs more than the copy.
const (
	pipeChunk = 64 << 10
	pipeFull  = 8
	pipeKeep  = 2 * pipeFull
)

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
	for rest := b; len(rest) > 0; {
		last := len(p.chunks) - 1
		if last < 0 || len(p.chunks[last]) == cap(p.chunks[last]) {
			p.chunks, last = append(p.chunks, p.chunk()), last+1
		}
		c := p.chunks[last]
		n := copy(c[len(c):cap(c)], rest)
		p.chunks[last], rest = c[:len(c)+n], rest[n:]
	}
	p.signal()
	return len(b), nil
}

// room waits while pipeFull chunks are full, until ctx ends. Once the pipe is
// closed or broken, Write tells.
func (p *pipe) room(ctx context.Context) error {
	for {
		p.mu.Lock()
		over := p.closed || p.err != nil
		if over || len(p.chunks) <= pipeFull {
			p.mu.Unlock()
			return nil
		}
		if p.taken == nil {
			p.taken = make(chan struct{})
		}
		taken := p.taken
		p.mu.Unlock()
		select {
		case <-taken:
		case <-p.done:
		case <-ctx.Done():
			return broker.ContextError(ctx)
		}
	}
}

// chunk returns an empty one. p.mu is held.
func (p *pipe) chunk() []byte {
	if n := len(p.free); n > 0 {
		c := p.free[n-1]
		p.free = p.free[:n-1]
		return c
	}
	return make([]byte, 0, pipeChunk)
}

func (p *pipe) signal() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *pipe) run() {
	defer close(p.done)
	var out, sent [][]byte
	for range p.wake {
		p.mu.Lock()
		out, p.chunks = p.chunks, out[:0]
		closed := p.closed
		if p.taken != nil {
			close(p.taken)
			p.taken = nil
		}
		p.mu.Unlock()
		sent = append(sent[:0], out...)
		rest := net.Buffers(out) // WriteTo takes out what it has written
		_, err := rest.WriteTo(p.Conn)
		p.mu.Lock()
		for _, c := range sent[:min(len(sent), pipeKeep-len(p.free))] {
			p.free = append(p.free, c[:0])
		}
		if err != nil {
			p.err, p.chunks = err, nil
		}
		p.mu.Unlock()
		clear(out)
		clear(sent)
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
