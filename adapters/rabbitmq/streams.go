package rabbitmq

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/rabbitmq/internal/streamwire"
)

// The ports of the stream plugin.
const (
	streamPort    = "5552"
	streamTLSPort = "5551"
)

// Connections of the stream protocol are kept apart by what they are for, so
// that a reader that is full of records holds up neither a publisher nor the
// group's coordination.
const (
	roleControl = "control"
	rolePublish = "publish"
	roleConsume = "consume"
	roleGroup   = "group"
)

// streams keeps the connections of the stream protocol, made at first use and
// replaced when they are dead.
type streams struct {
	b       *Broker
	ctx     context.Context // ends with close
	cancel  context.CancelFunc
	reached atomic.Bool // once: from there on a failure to connect passes
	next    atomic.Uint32
	joining chan struct{} // a token: one member of a group joins at a time
	pace    pace          // of the groups' members

	mu    sync.Mutex
	pools map[poolKey]*pool
	roles map[groupKey]bool // of the members of groups
}

type poolKey struct{ role, node string } // node: host and port, or "" for any

type groupKey struct{ stream, group, role string }

// A pool holds the connections to one node for one purpose.
type pool struct {
	lock  chan struct{} // a token: one connects at a time
	conns []*streamwire.Conn
}

func newStreams(b *Broker) *streams {
	s := &streams{b: b, pools: map[poolKey]*pool{}, roles: map[groupKey]bool{}, joining: make(chan struct{}, 1), pace: defaultPace}
	s.joining <- struct{}{}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// groupRole returns a role for a member of a group that no other one of the
// group has: RabbitMQ 4.0 can make a dying connection's one consumer hand a
// partition over to its other one, and then wait for that for good.
func (s *streams) groupRole(stream, group string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	role := roleGroup
	for n := 2; s.roles[groupKey{stream, group, role}]; n++ {
		role = fmt.Sprintf("%s.%d", roleGroup, n)
	}
	s.roles[groupKey{stream, group, role}] = true
	return role
}

func (s *streams) freeRole(stream, group, role string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.roles, groupKey{stream, group, role})
}

// conn returns a live connection that has room.
func (s *streams) conn(ctx context.Context, role, node string) (*streamwire.Conn, error) {
	s.mu.Lock()
	key := poolKey{role, node}
	p := s.pools[key]
	if p == nil {
		p = &pool{lock: make(chan struct{}, 1)}
		p.lock <- struct{}{}
		s.pools[key] = p
	}
	s.mu.Unlock()
	select {
	case <-p.lock:
		defer func() { p.lock <- struct{}{} }()
	case <-s.ctx.Done():
		return nil, broker.ErrClosed
	case <-ctx.Done():
		return nil, unavailable(ctx, nil)
	}
	live := p.conns[:0]
	for _, c := range p.conns {
		if c.Err() == nil {
			live = append(live, c)
		}
	}
	clear(p.conns[len(live):])
	p.conns = live
	for _, c := range p.conns {
		if c.Room() {
			return c, nil
		}
	}
	if s.ctx.Err() != nil {
		return nil, broker.ErrClosed
	}
	c, err := s.dial(ctx, role, node)
	if err != nil {
		return nil, err
	}
	p.conns = append(p.conns, c)
	return c, nil
}

// dial connects to a node, or tries every endpoint once.
func (s *streams) dial(ctx context.Context, role, node string) (*streamwire.Conn, error) {
	uris, err := streamURLs(s.b.o)
	if err != nil {
		return nil, err
	}
	first := int(s.next.Add(1))
	var errs []error
	for i := range uris {
		u := uris[(first+i)%len(uris)]
		c, err := s.dialURL(ctx, role, node, u)
		if err == nil {
			s.reached.Store(true)
			return c, nil
		}
		errs = append(errs, fmt.Errorf("stream protocol at %s: %w", u.Host, err))
		if ctx.Err() != nil {
			break
		}
	}
	err = errors.Join(errs...)
	switch {
	case ctx.Err() != nil:
		return nil, unavailable(ctx, err)
	case s.reached.Load(): // it worked once: whatever it is now, it may pass
		return nil, fmt.Errorf("%w: %w", broker.ErrUnavailable, err)
	case errors.Is(err, syscall.ECONNREFUSED):
		return nil, broker.Unsupported("streams: nothing listens on the stream port, while AMQP works: enable the plugin "+
			"(rabbitmq-plugins enable rabbitmq_stream) or set Options.StreamURLs: %v", err)
	}
	return nil, classifyStream(err)
}

// resolveTries bounds how often a load balancer is asked for one node.
const resolveTries = 50

func (s *streams) dialURL(ctx context.Context, role, node string, u *url.URL) (*streamwire.Conn, error) {
	address := u.Host
	tries := 1
	switch {
	case node == "":
	case s.b.o.StreamDirect:
		tries = resolveTries
	default:
		address = node
	}
	for {
		c, err := s.dialAddress(ctx, role, address, u)
		if err != nil {
			return nil, err
		}
		if node == "" || c.Advertised() == node || tries == 1 {
			return c, nil
		}
		s.closeConn(c)
		if tries--; tries == 0 {
			return nil, fmt.Errorf("%w: of %d connections to %s none reached the node %s", broker.ErrUnavailable, resolveTries, address, node)
		}
	}
}

func (s *streams) dialAddress(ctx context.Context, role, address string, u *url.URL) (*streamwire.Conn, error) {
	o := s.b.o
	ctx, cancel := context.WithTimeout(ctx, o.DialTimeout)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	cfg := streamwire.Config{User: u.User.Username(), VHost: streamVHost(u), Name: o.Name + "." + role, Heartbeat: o.Heartbeat}
	cfg.Password, _ = u.User.Password()
	if o.Credentials != nil {
		var err error
		if cfg.User, cfg.Password, err = o.Credentials(ctx); err != nil {
			return nil, fmt.Errorf("%w: credentials: %w", broker.ErrUnavailable, err)
		}
	}
	socket, err := o.Dial(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	if u.Scheme == "rabbitmq-stream+tls" {
		t := o.TLS.Clone()
		if t == nil {
			t = &tls.Config{MinVersion: tls.VersionTLS12}
		}
		if t.ServerName == "" {
			t.ServerName, _, _ = strings.Cut(address, ":")
			if host, _, err := net.SplitHostPort(address); err == nil {
				t.ServerName = host
			}
		}
		secure := tls.Client(socket, t)
		if err := secure.HandshakeContext(ctx); err != nil {
			return nil, errors.Join(err, ignoreClosed(socket.Close()))
		}
		socket = secure
	}
	c, err := streamwire.Open(ctx, newPipe(socket), cfg)
	switch {
	case err != nil && ctx.Err() != nil:
		err = unavailable(ctx, err)
	case err == nil && o.Credentials != nil && o.RefreshCredentials > 0:
		go s.refresh(c)
	}
	return c, err
}

// refresh gives a connection a new secret now and then, until it is gone.
func (s *streams) refresh(c *streamwire.Conn) {
	o := s.b.o
	t := time.NewTicker(o.RefreshCredentials)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-c.Done():
			return
		}
		ctx, cancel := context.WithTimeout(s.ctx, o.DialTimeout)
		user, secret, err := o.Credentials(ctx)
		if err == nil {
			err = c.Authenticate(ctx, user, secret)
		}
		cancel()
		if err != nil && c.Err() == nil {
			o.Logger.Warn("refreshing credentials failed", "adapter", adapterName, "connection", "stream", "error", err)
		}
	}
}

// streamVHost returns the virtual host of a stream URL.
func streamVHost(u *url.URL) string {
	v := strings.TrimPrefix(u.EscapedPath(), "/")
	if v == "" {
		return "/"
	}
	if plain, err := url.PathUnescape(v); err == nil {
		return plain
	}
	return v
}

// streamURLs returns the endpoints of the stream protocol.
func streamURLs(o *Options) ([]*url.URL, error) {
	var uris []*url.URL
	for i, raw := range o.StreamURLs {
		u, err := url.Parse(raw)
		if err != nil {
			return nil, broker.Invalid("Options.StreamURLs[%d]: %v", i, redact(err, raw))
		}
		if u.Scheme != "rabbitmq-stream" && u.Scheme != "rabbitmq-stream+tls" || u.Hostname() == "" {
			return nil, broker.Invalid("Options.StreamURLs[%d]: want rabbitmq-stream://user:password@host:5552/vhost", i)
		}
		if u.User == nil {
			u.User = url.UserPassword("guest", "guest") // as AMQP URLs without
		}
		if u.Port() == "" {
			port := streamPort
			if u.Scheme == "rabbitmq-stream+tls" {
				port = streamTLSPort
			}
			u.Host = net.JoinHostPort(u.Hostname(), port)
		}
		uris = append(uris, u)
	}
	if uris != nil {
		return uris, nil
	}
	for i, raw := range o.URLs {
		a, err := amqp.ParseURI(raw)
		if err != nil {
			return nil, broker.Invalid("Options.URLs[%d]: %v", i, redact(err, raw))
		}
		u := &url.URL{Scheme: "rabbitmq-stream", User: url.UserPassword(a.Username, a.Password),
			Host: net.JoinHostPort(a.Host, streamPort), Path: "/" + a.Vhost}
		if a.Scheme == "amqps" {
			u.Scheme, u.Host = "rabbitmq-stream+tls", net.JoinHostPort(a.Host, streamTLSPort)
		}
		if a.Vhost == "/" {
			u.Path, u.RawPath = "//", "/%2f"
		}
		uris = append(uris, u)
	}
	return uris, nil
}

// close ends every connection; it is bounded by CloseTimeout.
func (s *streams) close() {
	s.cancel()
	s.mu.Lock()
	pools := s.pools
	s.pools = map[poolKey]*pool{}
	s.mu.Unlock()
	var wg sync.WaitGroup
	for _, p := range pools {
		wg.Go(func() {
			<-p.lock // who connects sees that s.ctx has ended
			var conns sync.WaitGroup
			for _, c := range p.conns {
				conns.Go(func() { s.closeConn(c) })
			}
			conns.Wait()
			p.conns = nil
			p.lock <- struct{}{}
		})
	}
	wg.Wait()
}

func (s *streams) closeConn(c *streamwire.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), s.b.o.CloseTimeout)
	defer cancel()
	c.Close(ctx)
}

// control runs fn on a connection to any node. What a broken connection left
// undecided is asked again until ctx ends, so fn must be safe to repeat.
func control[T any](ctx context.Context, s *streams, fn func(context.Context, *streamwire.Conn) (T, error)) (T, error) {
	return persist(ctx, s, func() (T, error) {
		c, err := s.conn(ctx, roleControl, "")
		if err != nil {
			var zero T
			return zero, err
		}
		return fn(ctx, c)
	})
}

// persist repeats fn while the broker is unavailable, once it was reached.
func persist[T any](ctx context.Context, s *streams, fn func() (T, error)) (T, error) {
	ctx, cancel := context.WithCancel(ctx) // ends with s.ctx too
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	var last error
	for wait := newBackoff(s.b.o); ; {
		began := time.Now()
		v, err := fn()
		switch {
		case err == nil:
			return v, nil
		case s.ctx.Err() != nil:
			return v, broker.ErrClosed
		case ctx.Err() != nil && last == nil:
			return v, broker.ContextError(ctx)
		case ctx.Err() != nil:
			return v, unavailable(ctx, last)
		}
		if err = classifyStream(err); !errors.Is(err, broker.ErrUnavailable) || !s.reached.Load() {
			return v, err
		}
		last = err
		wait.sleep(ctx, began)
	}
}

// leader returns a connection to the node that leads a stream.
func (s *streams) leader(ctx context.Context, role, stream string) (*streamwire.Conn, error) {
	p, err := s.locate(ctx, stream)
	if err != nil {
		return nil, err
	}
	return s.conn(ctx, role, p.Leader)
}

// replica returns a connection to a node that has a copy of a stream.
func (s *streams) replica(ctx context.Context, role, stream string) (*streamwire.Conn, error) {
	p, err := s.locate(ctx, stream)
	if err != nil {
		return nil, err
	}
	node := p.Leader
	if len(p.Replicas) > 0 {
		node = p.Replicas[rand.IntN(len(p.Replicas))]
	}
	return s.conn(ctx, role, node)
}

func (s *streams) locate(ctx context.Context, stream string) (streamwire.Placement, error) {
	c, err := s.conn(ctx, roleControl, "")
	if err != nil {
		return streamwire.Placement{}, err
	}
	return c.Locate(ctx, stream)
}

// classifyStream adds the sentinel that an answer of the stream protocol stands
// for.
func classifyStream(err error) error {
	for _, known := range []error{nil, broker.ErrUnavailable, broker.ErrClosed, broker.ErrUnsupported, broker.ErrInvalid, broker.ErrNotFound} {
		if errors.Is(err, known) {
			return err
		}
	}
	sentinel := broker.ErrUnavailable
	if code, ok := errors.AsType[streamwire.CodeError](err); ok && !errors.Is(err, streamwire.ErrClosed) {
		switch code {
		case streamwire.ErrStreamDoesNotExist, streamwire.ErrVirtualHostAccess, streamwire.ErrNoOffset:
			sentinel = broker.ErrNotFound
		case streamwire.ErrAuthenticationFailure, streamwire.ErrAuthenticationLoopback, streamwire.ErrAccessRefused, streamwire.ErrSASL:
			sentinel = broker.ErrUnauthorized
		case streamwire.ErrStreamAlreadyExists, streamwire.ErrPreconditionFailed:
			sentinel = broker.ErrConflict
		case streamwire.ErrFrameTooLarge:
			sentinel = broker.ErrTooLarge
		case streamwire.ErrMechanismNotSupported:
			sentinel = broker.ErrUnsupported
		}
	}
	if errors.Is(err, sentinel) {
		return err
	}
	return fmt.Errorf("%w: %w", sentinel, err)
}
