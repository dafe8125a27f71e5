package rabbitmq

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/queuestream/broker"
)

// Options tell how to reach a cluster. URLs is required; the zero value of the
// rest is right for most programs.
type Options struct {
	// URLs are the endpoints, amqp:// or amqps://, tried in turn from a random
	// one on. Each carries its user, password and virtual host; see
	// https://www.rabbitmq.com/docs/uri-spec. Of RabbitMQ's parameters
	// (https://www.rabbitmq.com/docs/uri-query-parameters) they take heartbeat
	// and connection_timeout, which go before Heartbeat and DialTimeout,
	// channel_max, auth_mechanism and, for amqps:// without TLS, cacertfile,
	// certfile, keyfile and server_name_indication.
	URLs []string

	// Credentials replaces the user and password of the URLs and is asked for
	// each new connection. It must not block longer than ctx.
	Credentials func(ctx context.Context) (user, password string, err error)
	// RefreshCredentials is how often live connections get a new secret by
	// Credentials (OAuth 2 tokens). 0: never.
	RefreshCredentials time.Duration

	TLS       *tls.Config   // for amqps://; nil: the system's certificates
	Heartbeat time.Duration // 0: 10 s; whole seconds. A dead peer is found within 1.5 of it, on streams within 2
	// DialTimeout bounds one attempt to connect, handshake included. 0: 10 s.
	DialTimeout time.Duration
	// Dial replaces the TCP dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	// MinBackoff and MaxBackoff bound the jittered wait between attempts to
	// reconnect. 0: 100 ms and 10 s.
	MinBackoff, MaxBackoff time.Duration
	// CloseTimeout bounds each step of Close. 0: 2 s.
	CloseTimeout time.Duration

	// Window bounds the unconfirmed messages of one queue or exchange handle,
	// WindowBytes their bodies and headers. 0: 1000 and 64 MiB.
	Window      int
	WindowBytes int
	// Prefetch is the default of ConsumerOptions.Prefetch. 0: 256. The shards
	// of an ordered queue divide it; beside them a quarter as many messages without a
	// group are prefetched.
	Prefetch int
	// MaxMessageBytes refuses larger messages before they are sent; it should
	// equal the broker's max_message_size. 0: 16 MiB, RabbitMQ 4's default.
	MaxMessageBytes int

	// Management is the management API's address, as
	// "http://user:password@host:15672". Without it QueueStats knows only what
	// AMQP tells, and the configuration of queues that others declared stays
	// unknown. User and password default to those of the first URL.
	Management string

	// StreamURLs are the endpoints of the stream protocol,
	// rabbitmq-stream://user:password@host:5552/vhost. Empty: the hosts of
	// URLs at port 5552.
	StreamURLs []string
	// StreamDirect connects to the brokers that StreamURLs name instead of
	// the addresses that the cluster advertises: for containers and load
	// balancers.
	StreamDirect bool

	// DirectReplies makes ReplyQueue use direct reply-to in place of a queue
	// (https://www.rabbitmq.com/docs/direct-reply-to): nothing is declared, and
	// an answer is handed to the caller's channel or dropped. Replies are at
	// most once: when the connection breaks, those under way are lost, and
	// Receive returns [broker.ErrNotFound].
	DirectReplies bool

	Name   string       // of the connections, as the management page shows it
	Logger *slog.Logger // nil: none
}

// maxHeartbeat is AMQP's limit, a number of seconds in 16 bits.
const maxHeartbeat = 65535 * time.Second

// MaxDelay is the longest delay of a message.
const MaxDelay = delayUnit * (1<<delayLevels - 1)

func (o *Options) withDefaults() (*Options, error) {
	if o == nil || len(o.URLs) == 0 {
		return nil, broker.Invalid("Options.URLs: want at least one amqp:// or amqps:// URL")
	}
	c := *o
	for i, u := range c.URLs {
		if err := checkURL(u); err != nil {
			return nil, broker.Invalid("Options.URLs[%d]: %w", i, err)
		}
	}
	switch {
	case c.Window < 0 || c.WindowBytes < 0 || c.Prefetch < 0 || c.MaxMessageBytes < 0:
		return nil, broker.Invalid("Window %d, WindowBytes %d, Prefetch %d, MaxMessageBytes %d: must not be negative",
			c.Window, c.WindowBytes, c.Prefetch, c.MaxMessageBytes)
	case c.Prefetch > maxPrefetch:
		return nil, broker.Invalid("Prefetch %d: at most %d", c.Prefetch, maxPrefetch)
	case c.Heartbeat > 0 && c.Heartbeat < time.Second, c.Heartbeat > maxHeartbeat:
		return nil, broker.Invalid("Heartbeat %v: want 1s to %v", c.Heartbeat, maxHeartbeat)
	}
	for _, d := range []struct {
		name string
		d    time.Duration
	}{
		{"Heartbeat", c.Heartbeat}, {"DialTimeout", c.DialTimeout}, {"MinBackoff", c.MinBackoff}, {"MaxBackoff", c.MaxBackoff},
		{"CloseTimeout", c.CloseTimeout}, {"RefreshCredentials", c.RefreshCredentials},
	} {
		if d.d < 0 || d.d > broker.MaxDuration {
			return nil, broker.Invalid("%s %v: want 0 to %v", d.name, d.d, broker.MaxDuration)
		}
	}
	def(&c.Heartbeat, 10*time.Second)
	def(&c.DialTimeout, 10*time.Second)
	def(&c.MinBackoff, 100*time.Millisecond)
	def(&c.MaxBackoff, 10*time.Second)
	c.MaxBackoff = max(c.MaxBackoff, c.MinBackoff)
	def(&c.CloseTimeout, 2*time.Second)
	def(&c.Window, 1000)
	def(&c.WindowBytes, 64<<20)
	def(&c.Prefetch, 256)
	def(&c.MaxMessageBytes, 16<<20)
	if c.Name == "" {
		c.Name = "queuestream-broker"
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Dial == nil {
		c.Dial = (&net.Dialer{}).DialContext
	}
	if c.Management != "" {
		u, err := url.Parse(c.Management)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return nil, broker.Invalid("Options.Management: want http://host:15672 or https://…")
		}
	}
	return &c, nil
}

// urlParameters are those that have an effect.
var urlParameters = []string{
	"heartbeat", "connection_timeout", "channel_max", "auth_mechanism", "cacertfile", "certfile", "keyfile", "server_name_indication",
}

// checkURL tells what is wrong with an endpoint.
func checkURL(raw string) error {
	uri, err := amqp.ParseURI(raw)
	if err != nil {
		return redact(err, raw)
	}
	if uri.ConnectionTimeout < 0 {
		return broker.Invalid("connection_timeout=%d: must not be negative", uri.ConnectionTimeout)
	}
	u, err := url.Parse(raw)
	if err != nil || u.Fragment != "" || u.User == nil && strings.Contains(u.EscapedPath()+u.RawQuery, "@") {
		return errMalformed // a password with a slash, say
	}
	values, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return errors.New("the part after ? is not well encoded")
	}
	for key := range values {
		if !slices.Contains(urlParameters, key) {
			return fmt.Errorf("parameter %q: want one of %s", key, strings.Join(urlParameters, ", "))
		}
	}
	return nil
}

func def[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

var errMalformed = errors.New("malformed URL; what is reserved must be percent-encoded in a user name or password")

// redact keeps the password of a URL out of an error's text. What net/url says
// shows the URL, or a part of it, quoted.
func redact(err error, u string) error {
	if _, ok := errors.AsType[*url.Error](err); ok {
		return errMalformed
	}
	return errors.New(strings.ReplaceAll(err.Error(), u, "the URL"))
}

// OpenURL is Open with one endpoint and the default options. The query of
// rawURL has the parameters that Options.URLs take and
// "management=http://host:15672".
func OpenURL(ctx context.Context, rawURL string) (broker.Broker, error) {
	o := &Options{URLs: []string{rawURL}}
	if u, err := url.Parse(rawURL); err == nil {
		if q, err := url.ParseQuery(u.RawQuery); err == nil && q.Has("management") { // checked by Open otherwise
			o.Management = q.Get("management")
			q.Del("management")
			u.RawQuery = q.Encode()
			o.URLs[0] = u.String()
		}
	}
	b, err := Open(ctx, o)
	if err != nil {
		return nil, err
	}
	return b, nil
}
