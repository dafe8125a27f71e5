package rabbitmq

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"time"
)

// The broker's coordinator can leave a partition of a super stream without an
// active consumer while the group has members: it has asked the active one to
// step down, that is gone before it answers, and the coordinator waits for the
// answer for good (rabbitmq-server#13657, #15353). Only a group that has become
// empty begins anew. So members that see that nobody works on a partition, as
// neither commits nor signs of life come, leave its group all at once, and come
// back.

// A pace is how often members look after their group.
type pace struct {
	look  time.Duration // from one look at the partitions of others to the next
	signs time.Duration // who has not committed for so long says that it is alive
}

// By this pace a partition has an active member again within 23 seconds.
var defaultPace = pace{look: 4 * time.Second, signs: 2 * time.Second}

// quietLooks in a row that see a partition as it was make it a suspect. A
// hand-over goes on with its signs.
const quietLooks = 3

// signs says that the member is alive for each partition on which it is slow: it
// has not read, or has read more than is committed, and has committed nothing
// since the sign before.
func (m *member) signs(ctx context.Context) {
	if !m.s.super {
		return
	}
	t := time.NewTicker(m.s.b.streams.pace.signs)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		for _, h := range m.slow() {
			// An error is the loss of the connection, and ends the session.
			_ = h.k.StoreOffset(signReference(m.group), m.s.partitions[h.partition], time.Now().UnixMilli())
		}
	}
}

func (m *member) slow() (hs []*hold) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, h := range m.holds {
		behind := h.over || !h.reading || h.next > max(0, h.committed)
		if behind && h.signed == h.committed {
			hs = append(hs, h)
		}
		h.signed = h.committed
	}
	return hs
}

// signReference is where a group's signs of life are stored, as an offset that
// always changes. No group has such a name.
func signReference(group string) string {
	const prefix = "amq.alive."
	if name := prefix + group; len(name) <= maxShortString {
		return name
	}
	sum := sha256.Sum256([]byte(group))
	return prefix + hex.EncodeToString(sum[:])
}

// A view is what a member has seen of a partition that it does not have.
type view struct {
	chunk        int64 // the last one that is committed
	stored, sign int64
	done         bool // there was nothing to work on
	quiet        int  // looks in a row that saw the same
}

// watch looks after the partitions of others, until the session ends. Members
// act together by their clocks: they look at the multiples of look, and leave
// at each second one, so that who is active from there on has had the time for
// a sign before the next.
func (m *member) watch(ctx context.Context, cancel context.CancelCauseFunc) error {
	clear(m.views) // while nobody could reach the broker, nobody gave a sign
	for attempts := 0; m.s.super; {
		every := m.s.b.streams.pace.look
		tick := time.Now().Truncate(every).Add(every)
		sleep(ctx, time.Until(tick))
		if ctx.Err() != nil {
			break
		}
		suspects := m.look(ctx)
		switch {
		case len(suspects) == 0:
			attempts = 0
		case tick.Equal(tick.Truncate(2 * every)):
			// A longer absence overcomes clocks that differ.
			out := min(every/10<<min(attempts, 2), every*2/5)
			attempts++
			if err := m.stepOut(ctx, cancel, suspects, tick.Add(every/2), out); err != nil {
				return err
			}
		}
	}
	<-ctx.Done()
	return context.Cause(ctx)
}

// look returns the partitions on which there is work and nobody does it.
func (m *member) look(ctx context.Context) (suspects []int32) {
	ctx, cancel := context.WithTimeout(ctx, m.s.b.streams.pace.look/2)
	defer cancel()
	for i := range m.s.partitions {
		p := int32(i) //nolint:gosec // few
		if !m.sitsBy(p) {
			delete(m.views, p)
			continue
		}
		v, err := m.see(ctx, p, m.views[p])
		if err != nil {
			delete(m.views, p) // to be seen anew
			continue
		}
		m.views[p] = v
		if v.quiet >= quietLooks {
			suspects = append(suspects, p)
		}
	}
	return suspects
}

// sitsBy tells whether the member is in the group of a partition and has not got it.
func (m *member) sitsBy(p int32) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.seats[p] != nil && m.holds[p] == nil
}

// see compares a partition with what was seen before, if anything was. While it
// has no news this is a single request.
func (m *member) see(ctx context.Context, p int32, before *view) (*view, error) {
	name := m.s.partitions[p]
	k, err := m.s.b.streams.leader(ctx, roleControl, name)
	if err != nil {
		return nil, err
	}
	stats, err := k.Stats(ctx, name)
	if err != nil {
		return nil, err
	}
	now := &view{chunk: stats["committed_chunk_id"]}
	if before != nil && before.done && before.chunk == now.chunk {
		return before, nil
	}
	var has bool
	if now.stored, has, err = storedOn(ctx, k, m.group, name); err != nil {
		return nil, err
	}
	if now.sign, _, err = storedOn(ctx, k, signReference(m.group), name); err != nil {
		return nil, err
	}
	if before == nil || before.done || before.stored != now.stored || before.sign != now.sign {
		return now, nil
	}
	first, next, err := m.s.bounds(ctx, p)
	if err != nil {
		return nil, err
	}
	if !has {
		now.stored = 0
	}
	now.done = next <= max(first, now.stored)
	if !now.done {
		now.quiet = before.quiet + 1
	}
	return now, nil
}

// stepOut leaves the groups of partitions at a time, stays away for a while, and
// joins them again.
func (m *member) stepOut(ctx context.Context, cancel context.CancelCauseFunc, suspects []int32, at time.Time, out time.Duration) error {
	sleep(ctx, time.Until(at))
	var ps []int32
	var seats []*seat
	m.mu.Lock()
	for _, p := range suspects {
		if st := m.seats[p]; st != nil && m.holds[p] == nil && ctx.Err() == nil {
			st.left = true
			delete(m.seats, p)
			ps, seats = append(ps, p), append(seats, st)
		}
	}
	m.mu.Unlock()
	if len(ps) == 0 {
		return nil
	}
	m.s.b.o.Logger.Warn("nobody works on partitions: leaving their group for a moment, so that the broker begins anew",
		"adapter", adapterName, "stream", m.s.name, "group", m.group, "partitions", slices.Clone(ps))
	m.leave(seats)
	sleep(ctx, time.Until(at.Add(out)))
	return m.join(ctx, cancel, ps)
}
