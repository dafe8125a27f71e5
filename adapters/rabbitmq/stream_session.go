package rabbitmq

import (
	"context"
	"errors"
	"maps"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/rabbitmq/internal/streamwire"
)

// revokeTimeout bounds OnRevoked: the broker waits for its answer before it
// makes another member active.
const revokeTimeout = 10 * time.Second

// rejoinPause lets the broker notice that a broken connection is gone, once it
// answers again. A member that joins beside its own old self makes the broker
// ask the old one to step down; when that is gone before it answers, RabbitMQ
// 4.0 leaves the partition without an active consumer.
const rejoinPause = 200 * time.Millisecond

// nowhere is behind any end: the broker sends nothing on a subscription that
// only tells who is active.
var nowhere = streamwire.AtOffset(math.MaxInt64 >> 1)

// A seat is the member's place in the broker's group of one partition.
type seat struct {
	partition int32

	// guarded by the member's mu
	sub  *streamwire.Subscription // nil until the broker has answered
	left bool                     // what the broker tells it counts no more
}

// run keeps the member in the group until Close.
func (m *member) run() {
	wait := newBackoff(m.s.b.o)
	missed := false
	for m.ctx.Err() == nil {
		began := time.Now()
		err := classifyStream(m.session())
		if m.ctx.Err() != nil {
			return
		}
		missing := errors.Is(err, broker.ErrNotFound)
		if missing && missed { // twice: not while a node starts
			m.fail(err)
		}
		missed = missing
		m.s.b.o.Logger.Warn("left the group for a moment", "adapter", adapterName, "stream", m.s.name, "group", m.group, "error", err)
		wait.sleep(m.ctx, began)
	}
}

// session is in the group from join to the loss of a connection, or Close.
func (m *member) session() error {
	ctx, cancel := context.WithCancelCause(m.ctx)
	defer cancel(nil)
	if m.again {
		if err := m.settle(ctx); err != nil {
			return err
		}
	}
	m.again = true
	var signs sync.WaitGroup
	signs.Go(func() { m.signs(ctx) })
	all := make([]int32, len(m.s.partitions))
	for i := range all {
		all[i] = int32(i) //nolint:gosec // few
	}
	err := m.join(ctx, cancel, all)
	if err == nil {
		m.found()
		err = m.watch(ctx, cancel)
	}
	cancel(nil)
	signs.Wait()
	m.leave(m.lose()) // before another becomes active
	return err
}

// found says that what was missing is there again.
func (m *member) found() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.problem = nil
}

// settle returns when the broker has answered on every connection that the
// member joins over, and again after a pause.
func (m *member) settle(ctx context.Context) error {
	over := map[*streamwire.Conn]string{}
	for _, name := range m.s.partitions {
		k, err := m.s.b.streams.leader(ctx, m.role, name)
		if err != nil {
			return err
		}
		over[k] = name
	}
	for i := range 2 {
		if i > 0 {
			sleep(ctx, rejoinPause)
		}
		for k, name := range over {
			if _, err := k.Locate(ctx, name); err != nil {
				return err
			}
		}
	}
	return nil
}

// join subscribes to partitions. The broker gives partition i to the i-th
// member in the order of joining, so members join one after the other and each
// in the order of the partitions: else one may get nothing. From there on the
// loss of a subscription cancels the session.
func (m *member) join(ctx context.Context, cancel context.CancelCauseFunc, partitions []int32) error {
	select {
	case <-m.s.b.streams.joining:
		defer func() { m.s.b.streams.joining <- struct{}{} }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	for _, p := range partitions {
		if err := m.sit(ctx, cancel, p); err != nil {
			return err
		}
	}
	return nil
}

func (m *member) sit(ctx context.Context, cancel context.CancelCauseFunc, p int32) error {
	name := m.s.partitions[p]
	k, err := m.s.b.streams.leader(ctx, m.role, name)
	if err != nil {
		return err
	}
	st := &seat{partition: p}
	o := streamwire.SubscribeOptions{Group: m.group, Credits: 1, Update: func(active bool) streamwire.Start {
		if active {
			m.assign(st, k)
		} else {
			m.revoke(st)
		}
		return nowhere
	}}
	if m.s.super {
		o.SuperStream = m.s.name
	}
	m.mu.Lock()
	m.seats[p] = st
	m.mu.Unlock()
	sub, err := k.Subscribe(ctx, name, nowhere, o)
	if err != nil {
		return err
	}
	m.mu.Lock()
	st.sub = sub
	m.mu.Unlock()
	go func() {
		select {
		case <-sub.Done():
			m.mu.Lock()
			left := st.left
			m.mu.Unlock()
			if !left {
				cancel(sub.Err())
			}
		case <-ctx.Done():
		}
	}()
	return nil
}

// leave gives seats back to the broker and waits for its answer.
func (m *member) leave(seats []*seat) {
	var leaving sync.WaitGroup
	for _, st := range seats {
		if st.sub != nil { // set before the seat was taken from m.seats
			leaving.Go(func() { m.s.unsubscribe(st.sub) })
		}
	}
	leaving.Wait()
}

// assign runs while the broker waits for the answer.
func (m *member) assign(st *seat, k *streamwire.Conn) {
	h := newHold(m, st, k)
	m.mu.Lock()
	if m.closed || st.left {
		m.mu.Unlock()
		h.cancel()
		return
	}
	old := m.holds[st.partition]
	m.holds[st.partition] = h
	delete(m.paused, st.partition)
	m.mu.Unlock()
	if old != nil {
		old.end()
	}
	if m.o.OnAssigned != nil {
		m.o.OnAssigned([]int32{st.partition})
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.holds[st.partition] == h && !m.closed {
		m.work.Go(h.run)
	}
}

// revoke runs while the broker waits for the answer: the hand-over waits.
func (m *member) revoke(st *seat) {
	m.mu.Lock()
	h := m.holds[st.partition]
	if h == nil || h.seat != st {
		m.mu.Unlock()
		return
	}
	h.buf, h.over = nil, true // nothing more goes out
	h.stop()
	m.mu.Unlock()
	if m.o.OnRevoked != nil {
		ctx, cancel := context.WithTimeout(m.ctx, revokeTimeout)
		defer cancel()
		returned := make(chan struct{})
		go func() {
			defer close(returned)
			m.o.OnRevoked(ctx, []int32{st.partition})
		}()
		select {
		case <-returned:
		case <-ctx.Done():
		}
	}
	m.mu.Lock()
	if m.holds[st.partition] == h {
		delete(m.holds, st.partition)
	}
	m.mu.Unlock()
	h.end()
}

// lose ends every hold, since another member may have the partitions by now,
// and returns the seats, of which the member has none any more.
func (m *member) lose() []*seat {
	m.mu.Lock()
	hs := slices.Collect(maps.Values(m.holds))
	clear(m.holds)
	seats := slices.Collect(maps.Values(m.seats))
	clear(m.seats)
	for _, st := range seats {
		st.left = true
	}
	closed := m.closed
	m.mu.Unlock()
	var ids []int32
	for _, h := range hs {
		h.end()
		ids = append(ids, h.partition)
	}
	slices.Sort(ids)
	if len(ids) > 0 && !closed && m.o.OnLost != nil {
		m.o.OnLost(ids)
	}
	return seats
}
