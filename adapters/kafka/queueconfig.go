package kafka

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/queuestream/broker"
	"github.com/twmb/franz-go/pkg/kerr"
)

// registry is the compacted topic that keeps what Kafka has no place for: the
// attempts and the dead-letter queue that a queue was declared with.
const registry = "queuestream.queues"

// A queueEntry is a queue's record in the registry.
type queueEntry struct {
	MaxAttempts int    `json:"max_attempts,omitempty"`
	DeadLetter  string `json:"dead_letter,omitempty"`
}

// entry reads what a queue was declared with; the zero value if nothing.
// broker.ErrUnauthorized: this user may not know, nor whether there is anything.
func (b *Broker) entry(ctx context.Context, queue string) (queueEntry, error) {
	var e queueEntry
	s, err := b.registryStream(ctx)
	if err != nil {
		if errors.Is(classify(err), broker.ErrNotFound) {
			return e, nil
		}
		return e, fmt.Errorf("reading %s, which keeps MaxAttempts and DeadLetter: %w", registry, classify(err))
	}
	for r, err := range s.Read(ctx, broker.Range{}) {
		if err != nil {
			return e, fmt.Errorf("reading %s, which keeps MaxAttempts and DeadLetter: %w", registry, err)
		}
		if string(r.Key) != queue {
			continue
		}
		e = queueEntry{}
		if r.Tombstone {
			continue
		}
		if err := json.Unmarshal(r.Value, &e); err != nil {
			return e, fmt.Errorf("reading %s: the entry of queue %q: %w", registry, queue, err)
		}
	}
	return e, nil
}

// setEntry stores what a queue is declared with; the zero value removes it.
func (b *Broker) setEntry(ctx context.Context, queue string, e queueEntry) error {
	r := broker.Record{Key: []byte(queue), Tombstone: e == queueEntry{}}
	if r.Tombstone {
		if has, err := b.entry(ctx, queue); isUnauthorized(err) || err == nil && has == e {
			return nil
		} else if err != nil {
			return err
		}
	} else {
		err := b.declareTopic(ctx, registry, 1, 0, map[string]string{"cleanup.policy": "compact"})
		if err != nil && !errors.Is(err, broker.ErrConflict) {
			return fmt.Errorf("topic %s: %w", registry, err)
		}
		if r.Value, err = json.Marshal(e); err != nil {
			return err
		}
	}
	s, err := b.registryStream(ctx)
	if err != nil {
		return err
	}
	_, err = s.Publish(ctx, r)
	return err
}

func (b *Broker) registryStream(ctx context.Context) (*Stream, error) {
	t, err := b.describe(ctx, registry)
	if err != nil {
		return nil, err
	}
	return &Stream{b: b, topic: t, caps: t.streamCapabilities(), count: t.partitions}, nil
}

// exists tells whether there is a topic of this name.
func (b *Broker) exists(ctx context.Context, name string) (bool, error) {
	details, err := b.admin.ListTopics(ctx, name)
	if err != nil {
		return false, bounded(ctx, authError(err))
	}
	err = details[name].Err
	if errors.Is(err, kerr.UnknownTopicOrPartition) {
		return false, nil
	}
	return err == nil, err
}
