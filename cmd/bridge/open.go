package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strconv"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/kafka"
	"github.com/queuestream/broker/adapters/memory"
	"github.com/queuestream/broker/adapters/rabbitmq"
	"github.com/queuestream/broker/adapters/sqs"
	"github.com/queuestream/broker/bridge"
	"github.com/queuestream/broker/bridge/blob"
	"github.com/queuestream/broker/bridge/blob/s3"
)

// configFlag is the configuration file of every command.
type configFlag struct {
	Config string `short:"c" required:"" type:"existingfile" placeholder:"bridge.yaml" help:"The configuration file."`
}

func (f configFlag) load() (*bridge.Config, error) {
	data, err := os.ReadFile(f.Config)
	if err != nil {
		return nil, err
	}
	cfg, err := bridge.Load(data, f.Config, nil)
	if err != nil {
		return nil, err
	}
	return cfg, errors.Join(checkWorker(cfg), batchGroups(cfg))
}

// batchGroups has the SQS brokers of routes with batch_same_group do their part.
func batchGroups(cfg *bridge.Config) error {
	for i := range cfg.Routes {
		r := &cfg.Routes[i]
		u, err := url.Parse(cfg.Brokers[r.Target.Broker])
		if err != nil || u.Scheme != "sqs" || !r.BatchSameGroup {
			continue
		}
		const param = "batch_groups"
		q := u.Query()
		if on, err := strconv.ParseBool(q.Get(param)); err == nil && !on {
			return &bridge.ConfigError{Problems: []bridge.Problem{cfg.Problem(fmt.Sprintf("routes[%d].batch_same_group", i),
				fmt.Sprintf("true, and the URL of broker %s says %s=%s", r.Target.Broker, param, q.Get(param)), "the same")}}
		}
		if !q.Has(param) {
			q.Set(param, "true")
			u.RawQuery = q.Encode()
			cfg.Brokers[r.Target.Broker] = u.String()
		}
	}
	return nil
}

// openers picks adapters by URL scheme.
func openers() bridge.Openers {
	return bridge.Openers{
		Brokers: broker.Openers{
			"kafka":  kafka.OpenURL,
			"sqs":    sqs.OpenURL,
			"amqp":   rabbitmq.OpenURL,
			"amqps":  rabbitmq.OpenURL,
			"memory": memory.OpenURL,
		},
		Blobs: map[string]func(context.Context, string) (blob.Store, error){
			"s3": func(ctx context.Context, url string) (blob.Store, error) { return s3.OpenURL(ctx, url) },
		},
	}
}

// build opens what the configuration names. What no start will ever open (an
// unknown URL parameter, a queue that cannot do what its route asks for) is a
// mistake in the configuration, and a route whose source is missing halts before
// it begins.
func build(ctx context.Context, cfg *bridge.Config, e env) (*bridge.Set, error) {
	set, err := bridge.Build(ctx, cfg, e.open)
	failed, known := errors.AsType[*broker.Error](err)
	switch {
	case broker.IsTemporary(err):
	case errors.Is(err, broker.ErrInvalid) || errors.Is(err, broker.ErrUnsupported):
		err = &usageError{err}
	case known && failed.Op == "open stream" && errors.Is(err, broker.ErrNotFound):
		err = &missingSourceError{err}
	}
	return set, err
}

// A missingSourceError is the error of a route that cannot begin.
type missingSourceError struct{ err error }

func (m *missingSourceError) Error() string { return m.err.Error() }
func (m *missingSourceError) Unwrap() error { return m.err }

// newLogger writes JSON to stderr. It is the default of the process, so that what
// the adapters log goes there too.
func newLogger(e env, level string) (*slog.Logger, error) {
	l := slog.LevelInfo
	if level != "" {
		if err := l.UnmarshalText([]byte(level)); err != nil {
			return nil, err
		}
	}
	log := slog.New(slog.NewJSONHandler(e.stderr, &slog.HandlerOptions{Level: l}))
	slog.SetDefault(log)
	return log, nil
}
