package conformance

import (
	"bytes"
	"context"
	"errors"
	"slices"

	"github.com/queuestream/broker"
)

var streamPressure = map[int]StreamCase{
	68: {Config: partitions(2), Run: streamBounds},
	69: {Config: partitions(4), Run: streamPublishBlocks},
	71: {Config: partitions(4), Run: streamSlowConsumer},
	72: {Config: partitions(2), Run: streamThrottled},
}

// streamBounds: Receive keeps to max, and a paused partition waits, for as long
// as it is assigned.
func streamBounds(c *C, s broker.Stream) {
	r := newStreamRun(c, s)
	zero, one := r.twoFull(30)
	m := r.join(c.Name("group"), broker.GroupOptions{}, nil)
	for _, limit := range []int{0, -1} {
		ctx, cancel := c.Soon()
		_, err := m.consumer().Receive(ctx, limit)
		cancel()
		c.WantErr(err, broker.ErrInvalid, "Receive at most %d", limit)
	}
	all := m.collect(1) // collect checks the bound of each call
	all = append(all, m.collect(7)...)
	for _, limit := range []int{1, 3, 1000} {
		for range 2 {
			ctx, cancel := c.Soon()
			if limit == 1000 {
				all = append(all, m.collect(60-len(all))...)
				cancel()
				break
			}
			rs, err := m.poll(ctx, limit)
			cancel()
			c.Must(err, "receive at most %d", limit)
			all = append(all, rs...)
		}
	}
	r.sameValues(valuesOf(of(all, 0)), sentValues(zero), "partition 0")
	r.sameValues(valuesOf(of(all, 1)), sentValues(one), "partition 1")

	// Pause holds one partition, whatever was fetched before.
	assigned := m.consumer().Partitions()
	m.seek(0, broker.AtOffset(of(all, 0)[0].Offset()))
	m.seek(1, broker.AtOffset(of(all, 1)[0].Offset()))
	first := m.collect(1)[0].Partition // more of it may be at hand by now
	m.consumer().Pause(first)
	other := 1 - first
	rest := m.collect(30)
	for _, rec := range rest {
		if rec.Partition != other {
			c.Errorf("%q of partition %d was received while that was paused", rec.Value, first)
		}
	}
	more := r.pinned("paused", 3, first)
	r.sendBatch("p", more)
	m.nothing("one partition is paused, the other read to its end")
	if got := m.consumer().Partitions(); !slices.Equal(got, assigned) {
		c.Errorf("Pause changed the assignment from %v to %v", assigned, got)
	}
	m.consumer().Pause(first) // again
	m.consumer().Resume(first)
	late := m.collect(32)
	want := append(sentValues([][]broker.Record{zero, one}[first][1:]), sentValues(more)...)
	r.sameValues(valuesOf(late), want, "after Resume, from where it was")
	m.consumer().Resume(first, other) // what is not paused

	// A pause ends with the assignment: what comes back flows.
	m.commit(append(rest, late...)...)
	m.consumer().Pause(first, other)
	second := r.join(m.group, broker.GroupOptions{}, nil)
	r.balanced(1, m, second)
	back := second.consumer().Partitions()[0]
	second.close()
	r.balanced(2, m)
	m.consumer().Resume(1 - back)
	again := r.pinned("back", 3, back)
	r.sendBatch("p", again)
	r.sameValues(valuesOf(m.collect(3)), sentValues(again), "of a partition that was paused, lost and assigned again")
	r.judge()
}

func streamPublishBlocks(c *C, s broker.Stream) {
	r := newStreamRun(c, s)
	padding := bytes.Repeat([]byte("."), 4<<10)
	const publishers, each = 64, 10
	var values [publishers][]string
	grown := heapGrowth()
	r.parallel(publishers, func(w int) {
		who := "publisher " + itoa(w)
		rs := r.make(who, each, 0)
		for i := range rs {
			rs[i].Value = append(append(rs[i].Value, ' '), padding...)
		}
		values[w] = sentValues(rs)
		r.send(who, rs[:each/2]...)
		r.sendBatch(who, rs[each/2:])
	})
	r.sameSet(valuesOf(r.judge()), slices.Concat(values[:]...), "what %d publishers at once stored", publishers)
	if n := grown(); n > heapBound {
		c.Errorf("after %d records of %d bytes, all answered, the heap has grown by %d bytes", publishers*each, len(padding), n)
	}
}

// streamSlowConsumer: a member that does not receive holds up its own
// partitions at most.
func streamSlowConsumer(c *C, s broker.Stream) {
	r := newStreamRun(c, s)
	idle := r.join(c.Name("group"), broker.GroupOptions{}, nil) // of another group
	group := c.Name("group")
	slow := r.join(group, broker.GroupOptions{}, nil)
	quick := r.join(group, broker.GroupOptions{}, nil)
	var got tally
	stop := quick.work(c.Context(), func(rs []*broker.Record) { quick.done(rs...); got.add(rs...) })
	r.balanced(1, slow, quick)
	var mine, rest []string
	for _, p := range r.partitionList() {
		rs := r.pinned("slow", 50, p.ID)
		r.sendBatch("p", rs)
		if slices.Contains(quick.consumer().Partitions(), p.ID) {
			mine = append(mine, sentValues(rs)...)
		} else {
			rest = append(rest, sentValues(rs)...)
		}
	}
	r.complete("the quick member's partitions", &got, mine)
	var late tally
	stopIdle := idle.work(c.Context(), func(rs []*broker.Record) { late.add(rs...) })
	r.complete("a member that began late", &late, slices.Concat(mine, rest))
	stopIdle()
	slow.close()
	r.complete("what the slow member left", &got, rest)
	stop()
	r.judge()
}

func streamThrottled(c *C, s broker.Stream) {
	r := newStreamRun(c, s)
	in := c.Inject(FaultThrottle)
	rs := r.make("throttled", c.Harness().Messages, 4)
	r.sendUntilOK(s, "p", rs...)
	var got tally
	m := r.join(c.Name("group"), broker.GroupOptions{}, nil)
	stop := r.workThrough(m, &got)
	r.complete("a group while the broker throttles", &got, sentValues(rs))
	c.Must(in.Stop(c.Context()), "stop the fault")
	stop()
	r.judge()
}

// workThrough is m.work for a run under a fault: temporary errors of Receive
// and Commit are tried again.
func (r *streamRun) workThrough(m *streamMember, got *tally) (stop func()) {
	ctx, cancel := context.WithCancel(r.Context())
	done := make(chan struct{})
	r.Go(func() {
		defer close(done)
		for {
			rs, err := m.poll(ctx, 16)
			switch {
			case ctx.Err() != nil || errors.Is(err, broker.ErrClosed):
				return
			case err != nil && !broker.IsTemporary(err):
				r.Errorf("%s: Receive: %v, want a temporary error", m.name, err)
				return
			case err != nil:
				continue
			}
			m.processed(rs...)
			// What is not committed comes again.
			if err = m.commitErr(ctx, rs...); err != nil && ctx.Err() == nil && !broker.IsTemporary(err) &&
				!errors.Is(err, broker.ErrFenced) && !errors.Is(err, broker.ErrUnknownOutcome) && !errors.Is(err, broker.ErrClosed) {
				r.Errorf("%s: Commit: %v, want a temporary error", m.name, err)
			}
			got.add(rs...)
		}
	})
	return func() { cancel(); <-done }
}
