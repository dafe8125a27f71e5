package conformance

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/queuestream/broker"
)

var streamGroups = map[int]StreamCase{
	52: {Config: partitions(4), Run: streamSingleOwner},
	53: {Config: partitions(4), Run: streamJoinLeave},
	54: {Config: partitions(4), Run: streamRebalanceStorm},
	55: {Config: partitions(4), Run: streamRevokeBeforeAssign},
	56: {Config: partitions(2), Run: streamZombieFenced},
	57: {Config: partitions(2), Run: streamIdleMember},
	58: {Needs: broker.StreamCapabilities{Growth: true}, Config: partitions(2), Run: streamPartitionGrowth, Refuse: streamGrowthRefused},
}

// balanced waits until the members share all partitions, each one by one of
// them, and each member with at least least.
func (r *streamRun) balanced(least int, members ...*streamMember) {
	var all []int32
	for _, p := range r.partitionList() {
		all = append(all, p.ID)
	}
	what := func() string {
		s := ""
		for _, m := range members {
			s += fmt.Sprintf(" %s has %v (told %v)", m.name, m.consumer().Partitions(), m.owned())
		}
		return s
	}
	ok := r.Until(r.C.h.Soon, func() bool {
		var own []int32
		for _, m := range members {
			ps := m.consumer().Partitions()
			if len(ps) < least || !slices.Equal(ps, m.owned()) {
				return false
			}
			own = append(own, ps...)
		}
		slices.Sort(own)
		return slices.Equal(own, all)
	})
	if !ok {
		r.Fatalf("%d members do not share %d partitions within %v, each with at least %d:%s", len(members), len(all), r.C.h.Soon, least, what())
	}
}

func streamSingleOwner(c *C, s broker.Stream) {
	r := newStreamRun(c, s)
	group := c.Name("group")
	var first, got tally
	var mu sync.Mutex
	by := map[int32]map[string]bool{} // members by partition, of what was published after the group was complete
	var members []*streamMember
	steady := map[string]bool{}
	for range 3 {
		m := r.join(group, broker.GroupOptions{}, nil)
		members = append(members, m)
		m.work(c.Context(), func(rs []*broker.Record) {
			m.done(rs...)
			mu.Lock()
			defer mu.Unlock()
			for _, rec := range rs {
				if !steady[string(rec.Value)] {
					first.add(rec)
					continue
				}
				got.add(rec)
				if by[rec.Partition] == nil {
					by[rec.Partition] = map[string]bool{}
				}
				by[rec.Partition][m.name] = true
			}
		})
	}
	early := r.load("early")
	r.balanced(1, members...)
	r.complete("what was published while the members joined", &first, early)
	rs := r.make("steady", c.Harness().Messages, 32)
	mu.Lock()
	for _, v := range sentValues(rs) {
		steady[v] = true
	}
	mu.Unlock()
	r.sendBatch("p", rs)
	r.complete("what was published to the complete group", &got, sentValues(rs))
	for _, m := range members {
		m.close()
	}
	for p, ms := range by {
		if len(ms) != 1 {
			c.Errorf("records of partition %d came to %d members of a group that did not change: %v", p, len(ms), ms)
		}
	}
	for v, n := range got.counts() {
		if n != 1 {
			c.Errorf("%q came %d times to a group that did not change", v, n)
		}
	}
	r.stored(group)
	r.judge()
}

func streamJoinLeave(c *C, s broker.Stream) {
	r := newStreamRun(c, s)
	group := c.Name("group")
	var got tally
	start := func() *streamMember {
		m := r.join(group, broker.GroupOptions{}, nil)
		m.work(c.Context(), func(rs []*broker.Record) {
			m.done(rs...)
			got.add(rs...)
		})
		return m
	}
	a := start()
	values := r.load("one")
	r.balanced(1, a)
	b := start()
	values = append(values, r.load("two")...)
	r.balanced(1, a, b)
	values = append(values, r.load("both")...)
	r.complete("two members", &got, values)
	c.pass(c.Harness().Quiet) // what comes to a former owner comes by now
	a.close()
	values = append(values, r.load("left")...)
	r.balanced(1, b)
	d := start()
	r.balanced(1, b, d)
	values = append(values, r.load("third")...)
	b.close()
	d.close()
	e := start()
	values = append(values, r.load("last")...)
	r.complete("members that came and went", &got, values)
	e.close()
	r.stored(group)
	r.judge()
}

func streamRebalanceStorm(c *C, s broker.Stream) {
	r := newStreamRun(c, s)
	group := c.Name("group")
	var got tally
	ctx, stopSending := context.WithCancel(c.Context())
	defer stopSending()
	var mu sync.Mutex
	var values []string
	sent := make(chan struct{})
	c.Go(func() {
		defer close(sent)
		for i := 0; ctx.Err() == nil; i++ {
			rs := r.make("storm", 5, 16)
			r.sendBatch("p", rs)
			mu.Lock()
			values = append(values, sentValues(rs)...)
			n := len(values)
			mu.Unlock()
			// Not faster than the group, so that the load is bounded.
			c.pass(time.Millisecond)
			c.Until(c.Harness().Soon, func() bool { return ctx.Err() != nil || n-got.count() < 100 })
		}
	})
	var members []*streamMember
	for range 30 {
		before := got.count()
		if len(members) < 2 || len(members) < c.Harness().Workers && c.Rand().IntN(2) == 0 {
			m := r.join(group, broker.GroupOptions{}, nil)
			m.work(c.Context(), func(rs []*broker.Record) {
				m.done(rs...)
				got.add(rs...)
			})
			members = append(members, m)
		} else {
			i := c.Rand().IntN(len(members))
			members[i].close()
			members = slices.Delete(members, i, i+1)
		}
		c.Until(c.Harness().Quiet, func() bool { return got.count() > before })
	}
	stopSending()
	<-sent
	r.complete("a group in a storm", &got, values)
	for _, m := range members {
		m.close()
	}
	r.stored(group)
	r.judge()
}

func streamRevokeBeforeAssign(c *C, s broker.Stream) {
	r := newStreamRun(c, s)
	group := c.Name("group")
	var mu sync.Mutex
	inHand := map[int32]*broker.Record{} // the last one processed and not committed, by partition
	handed := map[int32]bool{}
	a := r.join(group, broker.GroupOptions{}, func(ctx context.Context, m *streamMember, ps []int32) {
		if err := ctx.Err(); err != nil {
			c.Errorf("the context of OnRevoked has ended already: %v", err)
		}
		mu.Lock()
		defer mu.Unlock()
		for _, p := range ps {
			handed[p] = true
			if rec := inHand[p]; rec != nil {
				if err := m.commitErr(ctx, rec); err != nil {
					c.Errorf("a commit inside OnRevoked: %v", err)
				}
			}
		}
	})
	var gotA, gotB tally
	a.work(c.Context(), func(rs []*broker.Record) {
		mu.Lock()
		defer mu.Unlock()
		for _, rec := range rs {
			inHand[rec.Partition] = rec
		}
		a.processed(rs...)
		gotA.add(rs...)
	})
	var before []string
	for _, p := range r.partitionList() {
		rs := r.pinned("before", 20, p.ID)
		r.sendBatch("p", rs)
		before = append(before, sentValues(rs)...)
	}
	r.complete("the only member", &gotA, before)
	b := r.join(group, broker.GroupOptions{}, nil)
	b.work(c.Context(), func(rs []*broker.Record) {
		b.processed(rs...)
		gotB.add(rs...)
	})
	r.balanced(1, a, b)
	for _, p := range b.consumer().Partitions() {
		mu.Lock()
		if !handed[p] {
			c.Errorf("partition %d moved without OnRevoked", p)
		}
		mu.Unlock()
		rs := r.pinned("after", 5, p)
		r.sendBatch("p", rs)
		r.complete("the new owner", &gotB, sentValues(rs))
	}
	if again := len(before) - len(gotB.missing(before)); again > 0 {
		c.Errorf("%d records committed inside OnRevoked came again to the next owner", again)
	}
	r.stored(group)
	a.close()
	b.close()
	r.judge()
}

func streamZombieFenced(c *C, s broker.Stream) {
	r := newStreamRun(c, s)
	zero, one := r.twoFull(10)
	group := c.Name("group")
	a := r.join(group, broker.GroupOptions{}, nil)
	all := a.collect(20)
	var mine tally
	a.work(c.Context(), func(rs []*broker.Record) { mine.add(rs...) })
	b := r.join(group, broker.GroupOptions{}, nil)
	var got tally
	var mu sync.Mutex
	var fresh []*broker.Record
	b.work(c.Context(), func(rs []*broker.Record) {
		got.add(rs...)
		mu.Lock()
		defer mu.Unlock()
		fresh = append(fresh, rs...)
	})
	r.balanced(1, a, b)
	moved := b.consumer().Partitions()[0]
	values := [][]string{sentValues(zero), sentValues(one)}[moved]
	r.complete("the new owner, since nothing was committed", &got, values)
	mu.Lock()
	r.sameValues(valuesOf(of(fresh, moved)), values, "the new owner")
	fourth := of(fresh, moved)[3]
	mu.Unlock()
	stale := of(all, moved)

	ctx, cancel := c.Soon()
	defer cancel()
	c.WantErr(a.commitErr(ctx, stale[9]), broker.ErrFenced, "a former owner's commit before the new owner's")
	if l := r.stored(group)[moved]; l.HasCommit {
		c.Errorf("a former owner's commit stored %v", l.Committed)
	}
	b.commit(fourth)
	c.WantErr(a.commitErr(ctx, stale[9]), broker.ErrFenced, "a former owner's commit of a later record")
	c.WantErr(a.commitErr(ctx, stale[0]), broker.ErrFenced, "a former owner's commit of an earlier record")
	r.storedAt(group, "after a former owner's commits", fourth, stale[4])
	a.close()
	if err := a.commitErr(ctx, stale[9]); !errors.Is(err, broker.ErrClosed) && !errors.Is(err, broker.ErrFenced) {
		c.Errorf("a commit by a member that left: %v, want ErrClosed or ErrFenced", err)
	}
	r.storedAt(group, "after a commit by a member that left", fourth, stale[4])
	b.close()
	r.judge()
}

func streamIdleMember(c *C, s broker.Stream) {
	r := newStreamRun(c, s)
	group := c.Name("group")
	var got tally
	members, _ := r.share(group, 3, &got)
	values := r.load("three")
	r.balanced(0, members...)
	r.complete("three members of two partitions", &got, values)
	busy := slices.IndexFunc(members, func(m *streamMember) bool { return len(m.consumer().Partitions()) > 0 })
	members[busy].close()
	members = slices.Delete(members, busy, busy+1)
	values = r.load("two")
	r.balanced(1, members...)
	r.complete("the idle member took over", &got, values)
	members[0].close()
	values = r.load("one")
	r.complete("one is left", &got, values)
	members[1].close()
	r.stored(group)
	r.judge()
}

// grow declares the stream again with n partitions.
func (r *streamRun) grow(n int) error {
	cfg := broker.StreamConfig{Partitions: n}
	if edit := r.C.h.StreamConfig; edit != nil {
		r.Must(edit(&cfg), "edit the stream's configuration")
	}
	cfg.Partitions = n
	ctx, cancel := r.Soon()
	defer cancel()
	return r.Admin().DeclareStream(ctx, r.stream.Name(), cfg)
}

func streamPartitionGrowth(c *C, s broker.Stream) {
	r := newStreamRun(c, s)
	group := c.Name("group")
	var got tally
	members, _ := r.share(group, 2, &got)
	values := r.load("before")
	r.balanced(1, members...)
	c.Must(r.grow(5), "declare more partitions")
	c.Eventually("the stream has 5 partitions", func() bool { return len(r.partitionList()) == 5 })
	for p := range int32(5) {
		rs := r.pinned("grown", 10, p)
		values = append(values, sentValues(rs)...)
		ctx, cancel := c.Soon()
		for { // the client may learn of the partition a moment later
			_, err := r.trySend(ctx, s, "p", rs[0])
			if err == nil {
				break
			} else if ctx.Err() != nil {
				c.Fatalf("publish to partition %d, which was added: %v", p, err)
			}
		}
		cancel()
		r.sendBatch("p", rs[1:])
	}
	r.balanced(1, members...)
	r.complete("old and added partitions", &got, values)
	if err := r.grow(5); err != nil {
		c.Errorf("declare the same number again: %v", err)
	}
	for _, m := range members {
		m.close()
	}
	r.stored(group)
	r.judge()
}

func streamGrowthRefused(c *C, s broker.Stream) {
	r := newStreamRun(c, s)
	n := len(r.partitionList())
	if err := r.grow(n + 2); !errors.Is(err, broker.ErrUnsupported) && !errors.Is(err, broker.ErrConflict) {
		c.Errorf("declare more partitions: %v, want ErrUnsupported or ErrConflict", err)
	}
	if got := len(r.partitionList()); got != n {
		c.Errorf("the stream has %d partitions after that was refused, before %d", got, n)
	}
}
