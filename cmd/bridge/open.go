package main

import (
	"context"
	"log/slog"
	"os"

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
	return bridge.Load(data, f.Config, nil)
}

// openers picks adapters by URL scheme.
func openers() bridge.Openers {
	return bridge.Openers{
		Brokers: broker.Openers{
			"kafka":  opener(kafka.OpenURL),
			"sqs":    opener(sqs.OpenURL),
			"amqp":   opener(rabbitmq.OpenURL),
			"amqps":  opener(rabbitmq.OpenURL),
			"memory": opener(memory.OpenURL),
		},
		Blobs: map[string]func(context.Context, string) (blob.Store, error){
			"s3": func(ctx context.Context, url string) (blob.Store, error) { return s3.OpenURL(ctx, url) },
		},
	}
}

// opener lets a function that returns a concrete broker be one of the Openers.
func opener[B broker.Broker](open func(context.Context, string) (B, error)) func(context.Context, string) (broker.Broker, error) {
	return func(ctx context.Context, url string) (broker.Broker, error) {
		b, err := open(ctx, url)
		if err != nil {
			return nil, err
		}
		return b, nil
	}
}

// newLogger writes JSON to stderr.
func newLogger(e env, level string) (*slog.Logger, error) {
	l := slog.LevelInfo
	if level != "" {
		if err := l.UnmarshalText([]byte(level)); err != nil {
			return nil, err
		}
	}
	return slog.New(slog.NewJSONHandler(e.stderr, &slog.HandlerOptions{Level: l})), nil
}
