package rabbitmq

import (
	"context"

	"github.com/queuestream/broker"
)

type streams struct{ b *Broker }

func newStreams(b *Broker) *streams { return &streams{b: b} }

func (s *streams) close() {}

func (b *Broker) openStream(context.Context, string, *broker.StreamOptions) (broker.Stream, error) {
	return nil, broker.Unsupported("streams")
}

// DeclareStream implements [broker.Admin].
func (b *Broker) DeclareStream(ctx context.Context, name string, cfg broker.StreamConfig) error {
	return fail("declare stream", name, broker.Unsupported("streams"))
}

// DeleteStream implements [broker.Admin].
func (b *Broker) DeleteStream(ctx context.Context, name string) error {
	return fail("delete stream", name, broker.Unsupported("streams"))
}

// ResetGroup implements [broker.Admin].
func (b *Broker) ResetGroup(ctx context.Context, stream, group string, to broker.Position) error {
	return fail("reset group", stream, broker.Unsupported("streams"))
}
