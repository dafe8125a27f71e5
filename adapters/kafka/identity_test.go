package kafka_test

import (
	"testing"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/kafka"
)

// What a group reads tells the topic apart from the one of the same name that
// was deleted, and the stream tells the same identity.
func TestIdentity(t *testing.T) {
	onBrokers(t, func(t *testing.T, o *kafka.Options) {
		ctx := testContext(t)
		b := open(t, o)
		s := declare(t, b, broker.StreamConfig{})
		read := func(group string) string {
			t.Helper()
			publish(t, s, 1)
			identity := receive(t, member(t, s, group, nil), 1)[0].Assignment().Identity
			if now, err := s.Identity(ctx); err != nil || identity == "" || identity != now {
				t.Errorf("records have the identity %q, the stream %q, %v", identity, now, err)
			}
			return identity
		}
		first := read("a")
		if err := b.DeleteStream(ctx, s.Name()); err != nil {
			t.Fatal(err)
		}
		eventually(t, "a topic of the same name", func() bool {
			return b.DeclareStream(ctx, s.Name(), broker.StreamConfig{}) == nil
		})
		if second := read("b"); second == first {
			t.Errorf("both topics have the identity %q", first)
		}
	})
}
