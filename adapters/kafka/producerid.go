package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// mayPublish is nil unless this user is refused what publishing takes.
func (b *Broker) mayPublish(ctx context.Context) error {
	if b.publishes.Load() {
		return nil
	}
	return b.askToPublish(ctx)
}

// askToPublish asks, before the first record, whether the cluster gives this
// user a producer id. A client that was refused one once fails all records for
// ever, also when the right is there by then; so it begins only when it will
// not be. Whatever else goes wrong the client deals with by itself.
func (b *Broker) askToPublish(ctx context.Context) error {
	select {
	case b.asking <- struct{}{}:
		defer func() { <-b.asking }()
	case <-ctx.Done():
		return nil
	}
	if off, ok := b.client.OptValue(kgo.DisableIdempotentWrite).(bool); b.publishes.Load() || ok && off {
		return nil
	}
	resp, err := kmsg.NewPtrInitProducerIDRequest().RequestWith(ctx, b.client)
	if err != nil {
		return nil //nolint:nilerr // the client tries again, and says what is wrong
	}
	if err := classify(kerr.ErrorForCode(resp.ErrorCode)); isUnauthorized(err) {
		return err
	}
	if _, _, err := b.client.ProducerID(ctx); err == nil {
		b.publishes.Store(true)
	}
	return nil
}
