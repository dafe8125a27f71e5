package rabbitmq

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/queuestream/broker"
)

// management speaks to the HTTP API for what AMQP does not tell.
// https://www.rabbitmq.com/docs/http-api-reference
type management struct {
	base     string // scheme, host and path
	user     string
	password string
	vhost    string
	client   *http.Client
}

func newManagement(o *Options) (*management, error) {
	if o.Management == "" {
		return nil, nil //nolint:nilnil // no management API is a valid configuration
	}
	u, err := url.Parse(o.Management)
	if err != nil {
		return nil, broker.Invalid("Options.Management: %v", redact(err, o.Management))
	}
	uri, err := amqp.ParseURI(o.URLs[0])
	if err != nil {
		return nil, broker.Invalid("Options.URLs[0]: %v", redact(err, o.URLs[0]))
	}
	m := &management{user: uri.Username, password: uri.Password, vhost: uri.Vhost}
	if u.User != nil {
		m.user = u.User.Username()
		m.password, _ = u.User.Password()
	}
	m.base = u.Scheme + "://" + u.Host + strings.TrimSuffix(u.Path, "/")
	m.client = &http.Client{
		Timeout:   10 * time.Second,
		Transport: &http.Transport{TLSClientConfig: o.TLS.Clone(), MaxIdleConnsPerHost: 4, IdleConnTimeout: 30 * time.Second},
	}
	return m, nil
}

func (m *management) close() {
	if m != nil {
		m.client.CloseIdleConnections()
	}
}

// A managedQueue is what the API says of a queue.
type managedQueue struct {
	Type           string         `json:"type"`
	Durable        bool           `json:"durable"`
	Unacknowledged int64          `json:"messages_unacknowledged"`
	Arguments      map[string]any `json:"arguments"`
}

func (m *management) queue(ctx context.Context, name string) (managedQueue, error) {
	var q managedQueue
	err := m.get(ctx, &q, "queues", m.vhost, name)
	return q, err
}

// get reads one object; parts are the elements of its path.
func (m *management) get(ctx context.Context, v any, parts ...string) (err error) {
	path := m.base + "/api"
	for _, p := range parts {
		path += "/" + url.PathEscape(p)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, path, nil)
	if err != nil {
		return fmt.Errorf("management API: %w", err)
	}
	r.SetBasicAuth(m.user, m.password)
	res, err := m.client.Do(r)
	if err != nil {
		return fmt.Errorf("%w: management API: %w", broker.ErrUnavailable, err)
	}
	defer func() { err = errors.Join(err, res.Body.Close()) }()
	switch {
	case res.StatusCode == http.StatusNotFound:
		return fmt.Errorf("%w: management API: %s", broker.ErrNotFound, res.Status)
	case res.StatusCode == http.StatusUnauthorized || res.StatusCode == http.StatusForbidden:
		return fmt.Errorf("%w: management API: %s", broker.ErrUnauthorized, res.Status)
	case res.StatusCode != http.StatusOK:
		return fmt.Errorf("%w: management API: %s", broker.ErrUnavailable, res.Status)
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, 16<<20)).Decode(v); err != nil {
		return fmt.Errorf("management API: %w", err)
	}
	return nil
}

// describe completes what is known about a queue; stored is its name, or its
// first shard's, in the broker.
func (m *management) describe(ctx context.Context, info queueInfo, stored string) (queueInfo, error) {
	q, err := m.queue(ctx, stored)
	if errors.Is(err, broker.ErrNotFound) { // the API learns of a new queue late
		return info, nil
	}
	if err != nil {
		return info, err
	}
	info.classic = q.Type == amqp.QueueTypeClassic
	info.transient = !q.Durable
	number := func(arg string) int {
		f, _ := q.Arguments[arg].(float64)
		return int(f)
	}
	info.maxPriority = number("x-max-priority")
	info.maxAttempts = number(argMaxAttempts)
	info.bounded = number(amqp.QueueMaxLenArg) > 0 && q.Arguments[amqp.QueueOverflowArg] == amqp.QueueOverflowRejectPublish
	switch exchange, key := q.Arguments["x-dead-letter-exchange"], q.Arguments["x-dead-letter-routing-key"]; {
	case exchange == "":
		if k, ok := key.(string); ok {
			info.deadLetter = unshard(k)
		}
	case exchange != nil:
		if e, ok := exchange.(string); ok {
			info.deadLetter, _ = strings.CutSuffix(e, shardExchange(""))
			if info.deadLetter == e {
				info.deadLetter = "" // an exchange of the user's: its queues are unknown
			}
		}
	}
	return info, nil
}
