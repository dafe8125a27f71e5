package rabbitmq

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"sync"
	"syscall"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/rabbitmq/rabbitmq-stream-go-client/pkg/stream"

	"github.com/queuestream/broker"
)

// streamPort is the stream plugin's default.
const streamPort = "5552"

// streams owns the environment of the stream client, made at first use.
type streams struct {
	b    *Broker
	lock chan struct{} // a token: one connects at a time

	mu     sync.Mutex
	env    *stream.Environment
	closed bool
}

func newStreams(b *Broker) *streams {
	s := &streams{b: b, lock: make(chan struct{}, 1)}
	s.lock <- struct{}{}
	return s
}

// environment returns the client's environment. It waits for the AMQP
// connection first: the stream client itself retries without an end while the
// broker is down.
func (s *streams) environment(ctx context.Context) (*stream.Environment, error) {
	if _, err := s.b.control.get(ctx); err != nil {
		return nil, err
	}
	select {
	case <-s.lock:
		defer func() { s.lock <- struct{}{} }()
	case <-ctx.Done():
		return nil, unavailable(ctx, nil)
	}
	s.mu.Lock()
	env, closed := s.env, s.closed
	s.mu.Unlock()
	if env != nil || closed {
		if closed {
			return nil, broker.ErrClosed
		}
		return env, nil
	}
	o, err := s.options(ctx)
	if err != nil {
		return nil, err
	}
	env, err = call(ctx, func() (*stream.Environment, error) { return stream.NewEnvironment(o) }, closeEnvironment)
	if err != nil {
		return nil, s.connectError(ctx, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		go closeEnvironment(env)
		return nil, broker.ErrClosed
	}
	s.env = env
	return env, nil
}

func closeEnvironment(env *stream.Environment) {
	_ = env.Close() // always nil
}

// connectError tells a missing plugin from a broker that does not answer.
func (s *streams) connectError(ctx context.Context, err error) error {
	if ctx.Err() == nil && errors.Is(err, syscall.ECONNREFUSED) {
		return broker.Unsupported("streams: nothing listens on the stream port, while AMQP works: enable the plugin "+
			"(rabbitmq-plugins enable rabbitmq_stream) or set Options.StreamURLs: %v", err)
	}
	return classifyStream(err)
}

// options translates ours into the client's.
func (s *streams) options(ctx context.Context) (*stream.EnvironmentOptions, error) {
	o := s.b.o
	uris, err := streamURLs(o)
	if err != nil {
		return nil, err
	}
	if o.Credentials != nil {
		user, password, err := o.Credentials(ctx)
		if err != nil {
			return nil, fmt.Errorf("%w: credentials: %w", broker.ErrUnavailable, err)
		}
		for _, u := range uris {
			u.User = url.UserPassword(user, password)
		}
	}
	e := stream.NewEnvironmentOptions().SetMaxConsumersPerClient(20).SetMaxProducersPerClient(20).
		SetRequestedHeartbeat(max(5*time.Second, o.Heartbeat)).SetRPCTimeout(o.DialTimeout)
	texts := make([]string, len(uris))
	for i, u := range uris {
		texts[i] = u.String()
	}
	e.SetUris(texts)
	if uris[0].Scheme == "rabbitmq-stream+tls" {
		c := o.TLS.Clone()
		if c == nil {
			c = &tls.Config{MinVersion: tls.VersionTLS12}
		}
		if c.ServerName == "" {
			c.ServerName = uris[0].Hostname()
		}
		e.IsTLS(true).SetTLSConfig(c)
	}
	if o.StreamDirect {
		port, err := strconv.Atoi(uris[0].Port())
		if err != nil {
			return nil, broker.Invalid("Options.StreamURLs[0]: port %q", uris[0].Port())
		}
		e.SetAddressResolver(stream.AddressResolver{Host: uris[0].Hostname(), Port: port})
	}
	return e, nil
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
		if u.Port() == "" {
			u.Host = net.JoinHostPort(u.Hostname(), streamPort)
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
			u.Scheme, u.Host = "rabbitmq-stream+tls", net.JoinHostPort(a.Host, "5551")
		}
		if a.Vhost == "/" {
			u.Path, u.RawPath = "//", "/%2f"
		}
		uris = append(uris, u)
	}
	return uris, nil
}

func (s *streams) close() {
	s.mu.Lock()
	env := s.env
	s.env, s.closed = nil, true
	s.mu.Unlock()
	if env == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), s.b.o.CloseTimeout)
	defer cancel()
	if _, err := call(ctx, func() (struct{}, error) { closeEnvironment(env); return struct{}{}, nil }, nil); err != nil {
		s.b.o.Logger.Warn("closing the stream connections took too long", "adapter", adapterName)
	}
}

// do runs fn, which blocks on the stream protocol, until ctx ends.
func do[T any](ctx context.Context, s *streams, fn func(*stream.Environment) (T, error)) (T, error) {
	return acquire(ctx, s, fn, nil)
}

// acquire is do for what must be released: late is called with what fn returns
// after ctx has ended.
func acquire[T any](ctx context.Context, s *streams, fn func(*stream.Environment) (T, error), late func(T)) (T, error) {
	var zero T
	env, err := s.environment(ctx)
	if err != nil {
		return zero, err
	}
	v, err := call(ctx, func() (T, error) { return fn(env) }, late)
	if err != nil && ctx.Err() == nil {
		err = classifyStream(err)
	}
	return v, err
}

// classifyStream adds the sentinel that a stream client's error stands for.
func classifyStream(err error) error {
	var sentinel error
	switch {
	case err == nil:
		return nil
	case errors.Is(err, stream.StreamDoesNotExist), errors.Is(err, stream.VirtualHostAccessFailure):
		sentinel = broker.ErrNotFound
	case errors.Is(err, stream.AuthenticationFailure), errors.Is(err, stream.CodeAccessRefused),
		errors.Is(err, stream.AuthenticationFailureLoopbackError):
		sentinel = broker.ErrUnauthorized
	case errors.Is(err, stream.StreamAlreadyExists), errors.Is(err, stream.PreconditionFailed):
		sentinel = broker.ErrConflict
	case errors.Is(err, stream.FrameTooLarge):
		sentinel = broker.ErrTooLarge
	default:
		sentinel = broker.ErrUnavailable
	}
	if errors.Is(err, sentinel) {
		return err
	}
	return fmt.Errorf("%w: %w", sentinel, err)
}
