package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/rabbitmq/internal/streamwire"
)

// maxPartitions bounds what one declaration makes.
const maxPartitions = 1024

// DeclareStream implements [broker.Admin]: a super stream, whose partitions are
// "name-0" and so on. Replicas, Compact and MaxBytes are unsupported; the
// number of partitions cannot change. Retention removes whole segments, when the
// next one begins: Options "x-stream-max-segment-size-bytes" makes them smaller
// than 500 MB (https://www.rabbitmq.com/docs/streams#retention).
func (b *Broker) DeclareStream(ctx context.Context, name string, cfg broker.StreamConfig) error {
	return fail("declare stream", name, b.declareStream(ctx, name, cfg))
}

func (b *Broker) declareStream(ctx context.Context, name string, cfg broker.StreamConfig) error {
	if err := checkName(name); err != nil {
		return err
	}
	switch {
	case cfg.Partitions < 0 || cfg.Partitions > maxPartitions:
		return broker.Invalid("Partitions %d: want 0 to %d", cfg.Partitions, maxPartitions)
	case cfg.Retention < 0 || cfg.RetentionBytes < 0 || cfg.Replicas < 0 || cfg.MaxBytes < 0:
		return broker.Invalid("a number of StreamConfig is negative")
	case cfg.Compact:
		return broker.Unsupported("Compact: RabbitMQ streams are not compacted")
	case cfg.MaxBytes > 0:
		return broker.Unsupported("MaxBytes: a record's limit is the frame's, %d bytes", maxRecordBytes)
	case cfg.Replicas > 0:
		return broker.Unsupported("Replicas: set by the cluster's size, or a policy's initial-cluster-size")
	}
	segment, err := segmentSize(cfg)
	if err != nil {
		return err
	}
	args := map[string]string{"queue-leader-locator": "balanced"}
	if cfg.Retention > 0 {
		args["max-age"] = maxAge(cfg.Retention)
	}
	if cfg.RetentionBytes > 0 {
		args["max-length-bytes"] = strconv.FormatInt(cfg.RetentionBytes, 10)
	}
	if segment > 0 {
		args["stream-max-segment-size-bytes"] = strconv.FormatInt(segment, 10)
	}
	n := max(1, cfg.Partitions)
	names, _, err := b.partitions(ctx, name)
	if errors.Is(err, broker.ErrNotFound) {
		var keys []string
		names = nil
		for i := range n {
			keys = append(keys, strconv.Itoa(i))
			names = append(names, fmt.Sprintf("%s-%d", name, i))
		}
		_, err = control(ctx, b.streams, func(ctx context.Context, c *streamwire.Conn) (struct{}, error) {
			return struct{}{}, c.CreateSuperStream(ctx, name, names, keys, args)
		})
		if !errors.Is(err, broker.ErrConflict) {
			return err
		}
		names, _, err = b.partitions(ctx, name) // declared meanwhile, perhaps by a broken attempt of ours
	}
	if err != nil {
		return err
	}
	if len(names) != n {
		return fmt.Errorf("%w: Partitions is %d, declared with %d", broker.ErrConflict, len(names), n)
	}
	return b.sameRetention(ctx, names[0], cfg)
}

// Retention counts whole seconds; segments have 500 MB by default, and only
// whole segments are removed.
const (
	minRetention = 1_000_000_000 // 1 s
	minSegment   = 4 << 10
	maxSegment   = 500_000_000
)

func maxAge(d time.Duration) string {
	return fmt.Sprintf("%ds", int(max(d, minRetention).Seconds()))
}

// optSegment is the argument that sets the size of a stream's segments.
const optSegment = "x-stream-max-segment-size-bytes"

// segmentSize returns the size of segments, or 0 for the broker's default.
// Whole segments are removed: they must be smaller than RetentionBytes.
func segmentSize(cfg broker.StreamConfig) (int64, error) {
	var size int64
	if cfg.RetentionBytes > 0 {
		size = min(maxSegment, max(minSegment, cfg.RetentionBytes/4))
	}
	for k, v := range cfg.Options {
		n, err := strconv.ParseInt(v, 10, 64)
		switch {
		case k != optSegment:
			return 0, broker.Unsupported("Options[%q]: streams take %s alone", k, optSegment)
		case err != nil || n < minSegment || n > maxSegment:
			return 0, broker.Invalid("Options[%q] %q: want %d to %d bytes", k, v, minSegment, maxSegment)
		}
		size = n
	}
	return size, nil
}

// sameRetention compares the retention of what exists, where the management
// API shows it.
func (b *Broker) sameRetention(ctx context.Context, partition string, cfg broker.StreamConfig) error {
	if b.manage == nil {
		return nil
	}
	q, err := b.manage.queue(ctx, partition)
	if errors.Is(err, broker.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	age, size := "", float64(cfg.RetentionBytes)
	if cfg.Retention > 0 {
		age = maxAge(cfg.Retention)
	}
	hasAge, _ := q.Arguments["x-max-age"].(string)
	hasSize, _ := q.Arguments["x-max-length-bytes"].(float64)
	switch {
	case age != hasAge:
		return fmt.Errorf("%w: Retention (x-max-age) is %q, declared with %q", broker.ErrConflict, hasAge, age)
	case size != hasSize:
		return fmt.Errorf("%w: RetentionBytes (x-max-length-bytes) is %.0f, declared with %.0f", broker.ErrConflict, hasSize, size)
	}
	return nil
}

// DeleteStream implements [broker.Admin].
func (b *Broker) DeleteStream(ctx context.Context, name string) error {
	return fail("delete stream", name, b.deleteStream(ctx, name))
}

func (b *Broker) deleteStream(ctx context.Context, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	_, super, err := b.partitions(ctx, name)
	if err == nil {
		_, err = control(ctx, b.streams, func(ctx context.Context, c *streamwire.Conn) (struct{}, error) {
			if super {
				return struct{}{}, c.DeleteSuperStream(ctx, name)
			}
			return struct{}{}, c.DeleteStream(ctx, name)
		})
	}
	if errors.Is(err, broker.ErrNotFound) {
		return nil
	}
	return err
}

// ResetGroup implements [broker.Admin]. The broker does not tell a group's
// members without the management API, and then it is not refused while there
// are some.
func (b *Broker) ResetGroup(ctx context.Context, name, group string, to broker.Position) error {
	return fail("reset group", name, b.resetGroup(ctx, name, group, to))
}

func (b *Broker) resetGroup(ctx context.Context, name, group string, to broker.Position) error {
	if err := checkName(group); err != nil {
		return fmt.Errorf("group: %w", err)
	}
	if b.hasMembers(name, group) {
		return fmt.Errorf("%w: group %q has members", broker.ErrConflict, group)
	}
	s, err := b.openStream(ctx, name, nil)
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }() // always nil
	if b.manage != nil {
		busy, err := b.manage.groupMembers(ctx, s.partitions, group)
		if err != nil {
			return err
		}
		if busy {
			return fmt.Errorf("%w: group %q has members", broker.ErrConflict, group)
		}
	}
	for i := range s.partitions {
		p := int32(i) //nolint:gosec // few
		first, next, err := s.bounds(ctx, p)
		if err != nil {
			return err
		}
		st, err := startAt(to, first, next)
		if err != nil {
			return err
		}
		offset := st.offset
		if to.Kind() == broker.PositionTime {
			if offset, err = s.offsetAt(ctx, p, to, next); err != nil {
				return err
			}
		}
		if err := s.store(ctx, group, p, offset); err != nil {
			return err
		}
	}
	return nil
}

// offsetAt returns the offset of the first record at or after a time.
func (s *Stream) offsetAt(ctx context.Context, p int32, at broker.Position, next int64) (int64, error) {
	for r, err := range s.Read(ctx, broker.Range{From: at, Partitions: []int32{p}}) {
		if err != nil {
			return 0, err
		}
		n, _ := r.Offset().Int64()
		return n, nil
	}
	return next, nil
}

// hasMembers tells whether this program is in the group.
func (b *Broker) hasMembers(name, group string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for h := range b.handles {
		s, ok := h.(*Stream)
		if !ok || s.name != name {
			continue
		}
		s.mu.Lock()
		for m := range s.members {
			if m.group == group {
				s.mu.Unlock()
				return true
			}
		}
		s.mu.Unlock()
	}
	return false
}

// groupMembers asks for the consumers of a stream by name.
func (m *management) groupMembers(ctx context.Context, partitions []string, group string) (bool, error) {
	var cs []struct {
		Reference  string `json:"reference"`
		Properties struct {
			Name string `json:"name"`
		} `json:"properties"`
		Queue struct {
			Name string `json:"name"`
		} `json:"queue"`
	}
	err := m.get(ctx, &cs, "stream", "consumers", m.vhost)
	if errors.Is(err, broker.ErrNotFound) { // without rabbitmq_stream_management
		return false, nil
	}
	if err != nil {
		return false, err
	}
	for _, c := range cs {
		for _, p := range partitions {
			if c.Queue.Name == p && (c.Reference == group || c.Properties.Name == group) {
				return true, nil
			}
		}
	}
	return false, nil
}
