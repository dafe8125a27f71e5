package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/queuestream/broker"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// A shareMember keeps a consumer in its share group: it sends heartbeats and
// hands on what they assign.
type shareMember struct {
	c        *Consumer
	id       string
	epoch    int32
	topics   []string // to tell with the next heartbeat; nil: told already
	interval time.Duration
	eager    int // quick heartbeats left, until there is an assignment
	assigned map[[16]byte][]int32
	looked   time.Time     // when the partitions' leaders were read last; zero: they are to be read
	again    chan struct{} // a token while the leaders are to be read before the next heartbeat is due
}

const (
	eagerHeartbeats = 50
	eagerInterval   = 100 * time.Millisecond
)

func newShareMember(c *Consumer) *shareMember {
	return &shareMember{c: c, id: broker.NewID(), eager: eagerHeartbeats, interval: eagerInterval, again: make(chan struct{}, 1)}
}

// lookAgain makes the member read soon who leads the partitions.
func (m *shareMember) lookAgain() {
	select {
	case m.again <- struct{}{}:
	default:
	}
}

func (m *shareMember) names() []string {
	names := []string{m.c.q.topic.name}
	if m.c.q.retry != nil {
		names = append(names, m.c.q.retry.name)
	}
	return names
}

// run joins the group, stays in it until ctx ends, and leaves.
func (m *shareMember) run(ctx context.Context) {
	wait := eagerInterval
	for ctx.Err() == nil {
		err := m.heartbeat(ctx)
		pause := m.interval
		switch {
		case err == nil:
			m.c.refuse(nil)
			wait = eagerInterval
			if m.eager > 0 && len(m.assigned) == 0 {
				m.eager--
				pause = min(pause, eagerInterval)
			}
			if m.looked.IsZero() { // a partition has no leader, as far as known
				pause = min(pause, eagerInterval)
			}
		case ctx.Err() != nil:
			return
		case errors.Is(err, kerr.UnknownMemberID), errors.Is(err, kerr.FencedMemberEpoch), errors.Is(err, kerr.GroupIDNotFound):
			m.c.log(slog.LevelInfo, "kafka: joining the share group again", "error", err)
			m.epoch, m.assigned = 0, nil
			m.c.fenced()
			pause = eagerInterval
		default:
			if err = classify(err); !temporary(err) {
				m.c.refuse(fail("receive", m.c.q.name, err))
			}
			m.c.log(slog.LevelWarn, "kafka: heartbeat of the share group failed", "error", err)
			m.topics = nil // the coordinator may be another one by now
			pause = wait
			wait = min(2*wait, 2*time.Second)
		}
		if !m.pause(ctx, pause) {
			break
		}
	}
	m.leave()
}

// pause waits until the next heartbeat is due, or the leaders are to be read
// again. It reports false at the end of ctx.
func (m *shareMember) pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-m.again:
		m.looked = time.Time{}
		return sleep(ctx, min(d, eagerInterval)) == nil
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}

func (m *shareMember) heartbeat(ctx context.Context) error {
	req := kmsg.NewPtrShareGroupHeartbeatRequest()
	req.GroupID, req.MemberID, req.MemberEpoch = shareGroup(m.c.q.name), m.id, m.epoch
	if rack := m.c.q.b.opts.Rack; rack != "" && m.epoch == 0 {
		req.RackID = &rack
	}
	if m.epoch == 0 || m.topics == nil {
		req.SubscribedTopicNames = m.names()
	}
	resp, err := req.RequestWith(ctx, m.c.client)
	if err != nil {
		return bounded(ctx, err)
	}
	if err := kerr.ErrorForCode(resp.ErrorCode); err != nil {
		if resp.ErrorMessage != nil {
			err = fmt.Errorf("%w: %s", err, *resp.ErrorMessage)
		}
		return err
	}
	m.topics = m.names()
	m.epoch = resp.MemberEpoch
	m.interval = min(max(time.Duration(resp.HeartbeatIntervalMillis)*time.Millisecond, eagerInterval), 30*time.Second)
	if resp.Assignment != nil {
		m.assigned = make(map[[16]byte][]int32, len(resp.Assignment.TopicPartitions))
		for _, t := range resp.Assignment.TopicPartitions {
			m.assigned[t.TopicID] = t.Partitions
		}
		m.looked = time.Time{}
	}
	// Leaders move, and partitions are added of which the group assigns this
	// member none, so it looks now and then without being told.
	if time.Since(m.looked) < growthAge {
		return nil
	}
	complete, err := m.c.assign(ctx, len(m.assigned) > 0)
	if complete {
		m.looked = time.Now()
	}
	return err
}

func (m *shareMember) leave() {
	if m.epoch == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout/2)
	defer cancel()
	req := kmsg.NewPtrShareGroupHeartbeatRequest()
	req.GroupID, req.MemberID, req.MemberEpoch = shareGroup(m.c.q.name), m.id, -1
	if _, err := req.RequestWith(ctx, m.c.client); err != nil {
		m.c.log(slog.LevelWarn, "kafka: leaving the share group failed; the broker will miss this member after its session time-out", "error", err)
	}
}

// assign finds the partitions' leaders, and tells each one's session what to
// fetch: nothing before the group has taken the queue up. It reports whether
// every partition has a leader.
func (c *Consumer) assign(ctx context.Context, taken bool) (complete bool, err error) {
	details, err := c.q.b.admin.ListTopics(ctx, c.member.names()...)
	if err != nil {
		return false, authError(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return true, nil
	}
	complete = true
	wanted := map[topicPartition]bool{}
	for _, d := range details {
		if d.Err != nil {
			if d.Topic == c.q.name {
				err = d.Err
			}
			for key, part := range c.parts { // as it was, for as long as nothing better is known
				wanted[key] = wanted[key] || part.name == d.Topic
			}
			continue
		}
		// The group's assignor spreads partitions over the members, as for
		// streams; but then a member that is slow would keep its partitions'
		// messages from the others. A share session may fetch any partition
		// of the group, so every member fetches all of them, as soon as the
		// first assignment shows that the group has taken them up.
		for p := range d.Partitions {
			if !taken {
				break
			}
			key := topicPartition{d.ID, p}
			wanted[key] = true
			part := c.parts[key]
			if part == nil {
				part = &sharePart{key: key, name: d.Topic, retry: d.Topic != c.q.name, locks: map[int64]*shareLock{}}
				c.parts[key] = part
			}
			leader := d.Partitions[p].Leader
			if leader >= 0 && (part.node == nil || part.node.id != leader) {
				c.moved(part)
				part.node = c.node(leader)
			}
			complete = complete && part.node != nil
		}
	}
	for key, part := range c.parts {
		if !wanted[key] {
			part.node = nil
			delete(c.parts, key) // its locks stay ours until they are settled
		}
	}
	for _, n := range c.nodes {
		n.assigned = 0
	}
	for _, part := range c.parts {
		if part.node != nil {
			part.node.assigned++
		}
	}
	if len(wanted) > 0 {
		c.begun()
	}
	c.wakeAll()
	return complete, err
}

// moved deals with a partition whose leader is another one: what the old one
// has handed out, it has forgotten. c.mu is held.
func (c *Consumer) moved(part *sharePart) {
	part.node = nil
	for _, l := range part.locks {
		l.node.failLock(l, errMoved)
		c.lose(l)
	}
}

// fenced deals with a membership that the group has ended.
func (c *Consumer) fenced() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range c.nodes {
		n.reset(errFencedMember)
		n.assigned = 0
	}
	clear(c.parts)
}

// node returns the session with a broker. c.mu is held.
func (c *Consumer) node(id int32) *shareNode {
	n := c.nodes[id]
	if n == nil {
		n = &shareNode{c: c, id: id, wake: make(chan struct{}, 1), sent: map[topicPartition]bool{}}
		c.nodes[id] = n
		c.work.Go(func() { n.run(c.ctx) })
	}
	return n
}
