package containers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// RabbitMQInstance is a RabbitMQ node with streams, the management API and the
// consistent-hash exchange. The user guest may connect from anywhere.
type RabbitMQInstance struct {
	*Instance
	// URL is the AMQP endpoint, amqp://user:password@host:port/.
	URL string
	// StreamURL is the endpoint of the stream protocol,
	// rabbitmq-stream://user:password@host:port/, or "" when the environment
	// names none. The node advertises this very address; a client that goes
	// through a proxy resolves every address to the proxy's.
	StreamURL string
	// ManagementURL is the HTTP API's, http://user:password@host:port without
	// a slash at the end, or "" when the environment names none.
	ManagementURL string
}

// RabbitMQ returns the RabbitMQ node of this test run: the one that the
// environment names, else one started once for this process. The error wraps
// ErrUnavailable when there is none.
func RabbitMQ(ctx context.Context) (*RabbitMQInstance, error) {
	in, err := sharedInstance(ctx, KindRabbitMQ)
	if err != nil {
		return nil, err
	}
	return newRabbitMQ(in), nil
}

// StartRabbitMQ starts a RabbitMQ node for the caller alone, about eight seconds
// on two cores. The caller terminates it; what it forgets goes with the process.
func StartRabbitMQ(ctx context.Context) (*RabbitMQInstance, error) {
	in, err := private(ctx, rabbitMQSpec())
	if err != nil {
		return nil, err
	}
	return newRabbitMQ(in), nil
}

// AwaitQueueOnDisk returns once the node has written down that the quorum queue
// exists; the queue is one of the virtual host "/". The node does so up to half a second after it has confirmed the
// declaration, and even messages; a kill in between leaves a queue that answers
// nothing but time-outs for ever (RabbitMQ 4.0: "configured member was not found
// on this node"). A test that kills a node waits for its queues first.
func (in *RabbitMQInstance) AwaitQueueOnDisk(ctx context.Context, queue string) error {
	// Where Ra keeps the names of its servers.
	return in.awaitInFile(ctx, "await a queue of", "%2F_"+queue, "quorum/rabbit@"+rabbitMQHost+"/names.dets")
}

// AwaitDeclarationOnDisk returns once the node has written down that a durable
// queue was declared. It does so some time after it has confirmed that; a kill
// in between leaves no classic queue (RabbitMQ 4.0 with Mnesia).
func (in *RabbitMQInstance) AwaitDeclarationOnDisk(ctx context.Context, queue string) error {
	// The log, and where it goes from time to time.
	return in.awaitInFile(ctx, "await a declaration of", queue,
		"LATEST.LOG", "PREVIOUS.LOG", "rabbit_durable_queue.DCL", "rabbit_durable_queue.DCD")
}

// awaitInFile returns once one of the files of the node's data has text in it.
func (in *RabbitMQInstance) awaitInFile(ctx context.Context, what, text string, files ...string) error {
	const dir = "/var/lib/rabbitmq/mnesia/rabbit@" + rabbitMQHost + "/"
	return in.control(ctx, what, func(ctx context.Context, e *engine) error {
		for {
			var errs error // a file that is not there has nothing, yet
			for _, file := range files {
				b, err := e.readFile(ctx, in.container, dir+file)
				if err == nil && bytes.Contains(b, []byte(text)) {
					return nil
				}
				errs = errors.Join(errs, err)
			}
			if err := pause(ctx, pollInterval); err != nil {
				return errors.Join(err, errs)
			}
		}
	})
}

// rabbitMQHost is the host name of every node: a node's data belong to it.
const rabbitMQHost = "queuestream"

const rabbitMQUser = "guest:guest@"

func newRabbitMQ(in *Instance) *RabbitMQInstance {
	return &RabbitMQInstance{
		Instance:      in,
		URL:           endpointURL("amqp://"+rabbitMQUser, in.at[roleClient], "/"),
		StreamURL:     endpointURL("rabbitmq-stream://"+rabbitMQUser, in.at[roleStream], "/"),
		ManagementURL: endpointURL("http://"+rabbitMQUser, in.at[roleManagement], ""),
	}
}

// endpointURL completes a host:port to a URL. What is a URL already, or
// nothing, stays as it is.
func endpointURL(prefix, addr, suffix string) string {
	if addr == "" || strings.Contains(addr, "://") {
		return addr
	}
	return prefix + addr + suffix
}

func rabbitMQSpec() spec {
	const confd = "/etc/rabbitmq/conf.d/"
	return spec{
		kind:     KindRabbitMQ,
		ports:    []port{{roleClient, 5672}, {roleStream, 5552}, {roleManagement, 15672}},
		hostname: rabbitMQHost,
		files: func(at addrs) []file {
			files := []file{
				config("rabbitmq.conf", confd+"90-queuestream.conf"),
				config("enabled_plugins", "/etc/rabbitmq/enabled_plugins"),
			}
			if host, port, ok := hostPort(at[roleStream]); ok {
				files = append(files, file{path: confd + "91-advertised.conf", mode: 0o644,
					body: fmt.Appendf(nil, "stream.advertised_host = %s\nstream.advertised_port = %d\n", host, port)})
			}
			return files
		},
		ready: rabbitMQReady,
		grace: 20 * time.Second,
	}
}

// rabbitMQEnv reads the AMQP URL, and the stream and management URLs beside it.
func rabbitMQEnv(value string) (addrs, error) {
	if u, err := url.Parse(value); err != nil || (u.Scheme != "amqp" && u.Scheme != "amqps") || u.Host == "" {
		return nil, fmt.Errorf("%q is not amqp://host:port/", value)
	}
	return addrs{
		roleClient:     value,
		roleStream:     os.Getenv(KindRabbitMQ.Env() + envStream),
		roleManagement: strings.TrimSuffix(os.Getenv(KindRabbitMQ.Env()+envManagement), "/"),
	}, nil
}

// rabbitMQReady opens an AMQP connection, and looks at the stream listener and
// at the management API where there are any.
func rabbitMQReady(ctx context.Context, at addrs) error {
	in := newRabbitMQ(&Instance{at: at})
	conn, err := amqp.DialConfig(in.URL, amqp.Config{Dial: func(network, addr string) (net.Conn, error) {
		c, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		// As amqp.DefaultDial does: the handshake may not take for ever.
		return c, c.SetDeadline(time.Now().Add(probeTimeout))
	}})
	if err != nil {
		return fmt.Errorf("amqp: %w", err)
	}
	_ = conn.Close()
	if in.StreamURL != "" {
		u, err := url.Parse(in.StreamURL)
		if err != nil {
			return err
		}
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", u.Host)
		if err != nil {
			return fmt.Errorf("streams: %w", err)
		}
		_ = c.Close()
	}
	if in.ManagementURL != "" {
		if err := httpReady(ctx, in.ManagementURL+"/api/overview"); err != nil {
			return fmt.Errorf("management: %w", err)
		}
	}
	return nil
}

// errHTTPStatus is what httpReady returns for any answer but 200.
var errHTTPStatus = errors.New("unexpected HTTP status")

// httpReady returns nil when a GET of the URL is answered with 200. It keeps no
// connection open.
func httpReady(ctx context.Context, target string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return err
	}
	if u := req.URL.User; u != nil {
		password, _ := u.Password()
		req.SetBasicAuth(u.Username(), password)
	}
	tr := &http.Transport{DisableKeepAlives: true}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%w %s", errHTTPStatus, resp.Status)
	}
	return nil
}
