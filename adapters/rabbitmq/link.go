package rabbitmq

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/queuestream/broker"
)

// A link is one supervised connection: when it breaks, the next generation
// replaces it. Everything that belongs to a generation dies with it.
type link struct {
	role string // of the connection: consume, publish
	o    *Options
	log  *slog.Logger
	up   func(context.Context, *generation) // runs when a generation replaces a dead one

	ctx    context.Context // ends with close
	cancel context.CancelFunc
	done   chan struct{} // closed when run has returned

	mu      sync.Mutex
	started bool
	gen     *generation   // live, or nil
	err     error         // why there is none
	count   uint32        // of generations
	next    int           // endpoint
	server  string        // its version, of the last connection
	changed chan struct{} // closed and replaced with every change
}

// A generation is one connection from open to dead.
type generation struct {
	n        uint32
	endpoint string // host and port
	conn     *amqp.Connection
	pipe     *pipe // under conn
	dead     chan struct{}

	mu      sync.Mutex
	blocked string        // the broker's reason, while it is set
	free    chan struct{} // closed while not blocked
}

func newLink(role string, o *Options) *link {
	ctx, cancel := context.WithCancel(context.Background())
	return &link{
		role: role, o: o, log: o.Logger.With("adapter", adapterName, "connection", role),
		ctx: ctx, cancel: cancel, done: make(chan struct{}),
		next: rand.IntN(len(o.URLs)), changed: make(chan struct{}),
	}
}

// open tries every endpoint once and then supervises what it found.
func (l *link) open(ctx context.Context) error {
	var errs []error
	for range l.o.URLs {
		g, err := l.dial(ctx)
		if err == nil {
			l.start(g)
			return nil
		}
		errs = append(errs, err)
		if errors.Is(err, broker.ErrUnauthorized) || ctx.Err() != nil {
			break
		}
	}
	return errors.Join(errs...)
}

// start begins supervision, with a generation or none yet.
func (l *link) start(g *generation) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.started || l.ctx.Err() != nil {
		if g != nil {
			go g.close(time.Second)
		}
		return
	}
	l.started = true
	l.gen = g
	go l.run(g)
}

func (l *link) run(g *generation) {
	defer close(l.done)
	// Each has its own: how long the broker was away says nothing about how often
	// it cuts, and one that cuts at once is not stormed.
	dialing, cut := newBackoff(l.o), newBackoff(l.o)
	for g != nil || l.ctx.Err() == nil { // a connection is closed also when close came first
		if g == nil {
			var err error
			if g, err = l.dial(l.ctx); err != nil {
				l.set(nil, err)
				if l.ctx.Err() != nil {
					return
				}
				wait := dialing.after(0)
				l.log.Warn("connecting failed", "error", err, "retry_in", wait)
				sleep(l.ctx, wait)
				continue
			}
			dialing = newBackoff(l.o)
			if l.up != nil {
				l.up(l.ctx, g)
			}
			l.set(g, nil)
		}
		opened := time.Now()
		err := l.watch(g)
		if err == nil { // closed by us
			l.set(nil, broker.ErrClosed)
			return
		}
		l.set(nil, err)
		wait := cut.after(time.Since(opened))
		l.log.Warn("connection lost", "endpoint", g.endpoint, "generation", g.n, "error", err, "retry_in", wait)
		g = nil
		sleep(l.ctx, wait)
	}
}

// watch serves a generation's notices until it is dead. It returns nil when the
// link was closed.
func (l *link) watch(g *generation) error {
	defer close(g.dead)
	closed := g.conn.NotifyClose(make(chan *amqp.Error, 1))
	blocked := g.conn.NotifyBlocked(make(chan amqp.Blocking, 8))
	var refresh <-chan time.Time
	if l.o.Credentials != nil && l.o.RefreshCredentials > 0 {
		t := time.NewTicker(l.o.RefreshCredentials)
		defer t.Stop()
		refresh = t.C
	}
	refreshed := make(chan error, 1)
	for {
		select {
		case err := <-closed:
			if err == nil {
				return fmt.Errorf("%w: the connection was closed", broker.ErrUnavailable)
			}
			return classify(err)
		case b, ok := <-blocked:
			if !ok {
				blocked = nil
				continue
			}
			g.block(b)
			l.log.Warn("the broker's resource alarm changed", "blocked", b.Active, "reason", b.Reason)
		case <-refresh:
			go func() {
				select {
				case refreshed <- l.refresh(g):
				default:
				}
			}()
		case err := <-refreshed:
			if err != nil {
				l.log.Warn("refreshing credentials failed", "error", err)
			}
		case <-l.ctx.Done():
			g.close(l.o.CloseTimeout)
			return nil
		}
	}
}

func (l *link) refresh(g *generation) error {
	ctx, cancel := context.WithTimeout(l.ctx, l.o.DialTimeout)
	defer cancel()
	_, secret, err := l.o.Credentials(ctx)
	if err != nil {
		return err
	}
	return g.conn.UpdateSecret(secret, "refreshed")
}

func (l *link) set(g *generation, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gen, l.err = g, err
	close(l.changed)
	l.changed = make(chan struct{})
}

// get returns the live generation and waits for one until ctx ends.
func (l *link) get(ctx context.Context) (*generation, error) {
	for {
		if l.ctx.Err() != nil {
			return nil, broker.ErrClosed
		}
		l.mu.Lock()
		g, err, changed, started := l.gen, l.err, l.changed, l.started
		l.mu.Unlock()
		if !started {
			l.start(nil)
			continue
		}
		if g != nil {
			return g, nil
		}
		select {
		case <-changed:
		case <-l.ctx.Done():
		case <-ctx.Done():
			return nil, unavailable(ctx, err)
		}
	}
}

// close ends the link; it is bounded by CloseTimeout.
func (l *link) close() {
	l.mu.Lock()
	started := l.started
	l.cancel()
	l.mu.Unlock()
	if started {
		<-l.done
	}
}

func (l *link) dial(ctx context.Context) (*generation, error) {
	l.mu.Lock()
	raw := l.o.URLs[l.next]
	l.next = (l.next + 1) % len(l.o.URLs)
	l.count++
	n := l.count
	l.mu.Unlock()

	uri, err := amqp.ParseURI(raw)
	if err != nil {
		return nil, broker.Invalid("%v", redact(err, raw))
	}
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(time.Duration(uri.ConnectionTimeout)*time.Millisecond, l.o.DialTimeout))
	defer cancel()
	endpoint := net.JoinHostPort(uri.Host, fmt.Sprint(uri.Port))
	cfg := amqp.Config{Heartbeat: l.o.Heartbeat, Properties: amqp.NewConnectionProperties()}
	cfg.Properties.SetClientConnectionName(l.o.Name + "." + l.role)
	if l.o.TLS != nil {
		cfg.TLSClientConfig = l.o.TLS.Clone()
	}
	if l.o.Credentials != nil {
		user, password, err := l.o.Credentials(ctx)
		if err != nil {
			return nil, fmt.Errorf("%w: credentials: %w", broker.ErrUnavailable, err)
		}
		cfg.SASL = []amqp.Authentication{&amqp.PlainAuth{Username: user, Password: password}}
	}
	var socket *pipe
	abort := func() bool { return true }
	cfg.Dial = func(network, address string) (net.Conn, error) {
		c, err := l.o.Dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		// The handshake takes no context: closing the socket ends it. A deadline
		// of the socket's own would race with ctx for the error.
		abort = context.AfterFunc(ctx, func() { _ = c.Close() })
		socket = newPipe(c)
		return socket, nil
	}
	conn, err := amqp.DialConfig(raw, cfg)
	if !abort() { // ctx ended, and the socket is closed: whatever came of it
		err = unavailable(ctx, err)
	} else if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() { // the dialer may be a moment ahead of ctx
		err = fmt.Errorf("%w: %w", context.DeadlineExceeded, err)
	}
	if err != nil {
		if socket != nil {
			err = errors.Join(err, ignoreClosed(socket.Close()))
		}
		return nil, fmt.Errorf("%s: %w", endpoint, classify(err))
	}
	server, _ := conn.Properties["version"].(string)
	l.mu.Lock()
	l.server = server
	l.mu.Unlock()
	free := make(chan struct{})
	close(free)
	return &generation{n: n, endpoint: endpoint, conn: conn, pipe: socket, dead: make(chan struct{}), free: free}, nil
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// close says goodbye and closes the socket; it waits for timeout at most.
func (g *generation) close(timeout time.Duration) {
	// Whatever it returns, the connection is closed.
	_ = g.conn.CloseDeadline(time.Now().Add(timeout))
}

func (g *generation) isDead() bool {
	select {
	case <-g.dead:
		return true
	default:
		return g.conn.IsClosed()
	}
}

func (g *generation) block(b amqp.Blocking) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case b.Active && g.blocked == "":
		g.blocked = cmp.Or(b.Reason, "unknown")
		g.free = make(chan struct{})
	case b.Active:
		g.blocked = cmp.Or(b.Reason, "unknown")
	case g.blocked != "":
		g.blocked = ""
		close(g.free)
	}
}

// unblocked waits while the broker blocks publishers, until ctx ends or the
// generation is dead.
func (g *generation) unblocked(ctx context.Context) error {
	g.mu.Lock()
	free, reason := g.free, g.blocked
	g.mu.Unlock()
	select {
	case <-free:
		return nil
	default:
	}
	select {
	case <-free:
	case <-g.dead:
	case <-ctx.Done():
		return fmt.Errorf("%w: the broker blocks publishers: %s: %w", broker.ErrUnavailable, reason, broker.ContextError(ctx))
	}
	return nil
}

// call runs fn, which blocks on the connection, and returns when it has
// answered or ctx ends. An abandoned fn ends with the connection at the latest.
func call[T any](ctx context.Context, fn func() (T, error), late func(T)) (T, error) {
	type result struct {
		v   T
		err error
	}
	var zero T
	if err := broker.ContextError(ctx); err != nil {
		return zero, err
	}
	ch := make(chan result, 1)
	go func() {
		v, err := fn()
		ch <- result{v, err}
	}()
	select {
	case r := <-ch:
		return r.v, r.err
	case <-ctx.Done():
		if late != nil {
			go func() {
				if r := <-ch; r.err == nil {
					late(r.v)
				}
			}()
		}
		return zero, broker.ContextError(ctx)
	}
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
