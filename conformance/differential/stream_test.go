package differential

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/queuestream/broker"
)

// The profile and the real broker carry out the same program on a stream: what
// each does is allowed, and where nothing is left open both do the same.
func TestStreamPrograms(t *testing.T) {
	for _, p := range pairs {
		if p.noStreams || p.cfg.Ordered {
			continue // it has none, or is the same broker as another pair
		}
		t.Run(p.name, func(t *testing.T) {
			b := p.open(t)
			t.Parallel()
			for _, seed := range seeds(t) {
				real := p.runStream(t.Context(), t, b, seed)
				var imitated string
				synctest.Test(t, func(t *testing.T) {
					m := openMemory(t.Context(), t, p.profile, seed)
					t.Cleanup(func() { _ = m.Close() })
					imitated = p.runStream(t.Context(), t, m, seed)
				})
				if t.Failed() {
					return
				}
				if real != imitated {
					t.Errorf("program %d, the broker:\n%s\nthe profile:\n%s", seed, real, imitated)
				}
			}
		})
	}
}

// A streamRunner carries out one program on one broker and judges by the one
// specification what it does.
type streamRunner struct {
	t     *testing.T
	b     broker.Broker
	name  string
	s     broker.Stream
	caps  broker.StreamCapabilities
	trace strings.Builder // what the specification leaves no choice in
	where string          // the step
	tx    broker.Transactor
	logs  [streamPartitions]*logSpec
	keys  map[string]int32

	mu     sync.Mutex // callbacks of members run beside the program
	groups [streamGroups]*groupSpec
}

const settleTime = 60 * time.Second // for whatever a group has to agree on

func (p *pair) runStream(ctx context.Context, t *testing.T, b broker.Broker, seed uint64) string {
	t.Helper()
	r := &streamRunner{t: t, b: b, name: p.newName("stream"), keys: map[string]int32{}}
	admin := b.(broker.Admin)
	r.must(admin.DeclareStream(ctx, r.name, broker.StreamConfig{Partitions: streamPartitions}))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		if err := admin.DeleteStream(ctx, r.name); err != nil {
			t.Errorf("delete %s: %v", r.name, err)
		}
	})
	var err error
	r.s, err = b.Stream(ctx, r.name, nil)
	r.must(err)
	defer r.s.Close() //nolint:errcheck // so does the broker
	r.caps = r.s.Capabilities()
	for i := range r.logs {
		r.logs[i] = &logSpec{}
	}
	for i := range r.groups {
		r.groups[i] = &groupSpec{name: fmt.Sprintf("%s-%d", r.name, i), committed: i == 0 && r.caps.Transactions, stored: map[int32]int{}}
	}
	if r.caps.Transactions {
		r.tx, err = b.(broker.Transactional).Transactor(ctx, r.name)
		r.must(err)
		defer r.tx.Close() //nolint:errcheck // so does the broker
	}
	prog := newStreamProgram(seed, r.caps, p.seeksStore != "")
	for i := range prog.steps {
		s := &prog.steps[i]
		r.where = fmt.Sprintf("program %d, step %d, %v of group %d", seed, i, s, s.group)
		fmt.Fprintf(&r.trace, "%d %v: %s\n", i, s, r.step(ctx, s))
	}
	r.where = fmt.Sprintf("program %d, the end", seed)
	r.end(ctx)
	return r.trace.String()
}

func (r *streamRunner) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatalf("%s: %v", r.where, err)
	}
}

// step returns what of its outcome the specification determines.
func (r *streamRunner) step(ctx context.Context, s *streamStep) string {
	g := r.groups[s.group]
	switch s.op {
	case publish:
		return r.publish(ctx, s)
	case drain:
		r.drain(ctx, g, s.max)
	case commitPrefix:
		r.drain(ctx, g, s.max)
		return r.commit(ctx, g, s.back)
	case join:
		r.join(ctx, g)
		return r.commit(ctx, g, 0)
	case leave:
		r.leave(ctx, g)
		return r.commit(ctx, g, 0)
	case seek:
		return r.seek(ctx, g, s)
	case pause:
		return r.pause(ctx, g, s)
	case reset:
		return r.reset(ctx, g, s)
	case read:
		return r.read(ctx, s)
	case transaction:
		return r.transaction(ctx, g, s)
	}
	return ""
}

func (r *streamRunner) publish(ctx context.Context, s *streamStep) string {
	receipts, errs := make([]broker.Receipt, len(s.records)), make([]error, len(s.records))
	if s.batch {
		var err error
		receipts, err = r.s.PublishBatch(ctx, s.records)
		for i := range errs {
			errs[i] = broker.ErrorAt(err, i)
		}
	} else {
		for i, rec := range s.records {
			receipts[i], errs[i] = r.s.Publish(ctx, rec)
		}
	}
	for i := range s.records {
		r.must(errs[i])
		l := r.stored(s.records[i], receipts[i].Partition, nil)
		if l.seen = r.caps.Offsets; l.seen {
			l.offset = receipts[i].Offset
		}
	}
	return class(nil)
}

// stored notes that rec is the next record of a partition.
func (r *streamRunner) stored(rec broker.Record, partition int32, tx *txSpec) *logged {
	switch was, ok := r.keys[string(rec.Key)]; {
	case rec.Pin && rec.Partition != partition:
		r.t.Errorf("%s: a record for partition %d went to %d", r.where, rec.Partition, partition)
	case rec.Pin:
	case ok && was != partition:
		r.t.Errorf("%s: key %q went to partition %d, then to %d", r.where, rec.Key, was, partition)
	default:
		r.keys[string(rec.Key)] = partition
	}
	l := &logged{rec: rec, tx: tx}
	log := r.logs[partition]
	log.records = append(log.records, l)
	return l
}

// take judges a record that m was given.
func (r *streamRunner) take(g *groupSpec, m *memberSpec, rec *broker.Record) {
	r.t.Helper()
	h := m.holds[rec.Partition]
	if h == nil {
		r.t.Errorf("%s: %q came from partition %d, which the member has not", r.where, rec.Value, rec.Partition)
		return
	}
	if h.paused {
		r.t.Errorf("%s: %q came from partition %d, which is paused", r.where, rec.Value, rec.Partition)
	}
	log := r.logs[rec.Partition]
	i, err := log.find(rec.Value, h.pos, g.committed)
	if err != nil {
		r.t.Errorf("%s: partition %d: %v", r.where, rec.Partition, err)
		return
	}
	l := log.records[i]
	if err := sameRecord(rec, &l.rec); err != nil {
		r.t.Errorf("%s: partition %d: %v", r.where, rec.Partition, err)
	}
	l.offset, l.seen = rec.Offset(), true
	h.pos, h.handed, h.indices = i+1, append(h.handed, rec), append(h.indices, i)
}

// receive calls Receive of one member once.
func (r *streamRunner) receive(ctx context.Context, g *groupSpec, m *memberSpec, limit int) int {
	ctx, cancel := context.WithTimeout(ctx, shortWait)
	defer cancel()
	rs, err := m.c.Receive(ctx, limit)
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		r.t.Fatalf("%s: receive: %v", r.where, err)
	}
	if len(rs) > limit {
		r.t.Errorf("%s: %d records where %d were asked for", r.where, len(rs), limit)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, rec := range rs {
		r.take(g, m, rec)
	}
	return len(rs)
}

// left counts what the group's members can be given.
func (r *streamRunner) left(g *groupSpec) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, m := range g.members {
		for id, h := range m.holds {
			if !h.paused {
				n += r.logs[id].left(h.pos, g.committed)
			}
		}
	}
	return n
}

// drain receives until all is there, and then until nothing comes.
func (r *streamRunner) drain(ctx context.Context, g *groupSpec, limit int) {
	if len(g.members) == 0 {
		return
	}
	got := 1
	r.until(func() bool { return got == 0 && r.left(g) == 0 }, func() {
		got = 0
		for _, m := range g.members {
			got += r.receive(ctx, g, m, limit)
		}
	}, func() string { return fmt.Sprintf("%d records did not come to %s", r.left(g), g.name) })
}

// until repeats do until what holds is so.
func (r *streamRunner) until(holds func() bool, do func(), missing func() string) {
	for end := time.Now().Add(settleTime); !holds(); do() {
		if r.t.Failed() || time.Now().After(end) {
			r.t.Fatalf("%s: %s", r.where, missing())
		}
	}
}

// commit stores the position after what each member was given but for the last
// few, partition by partition.
func (r *streamRunner) commit(ctx context.Context, g *groupSpec, back int) string {
	for _, m := range g.members {
		r.must(m.c.Commit(ctx, r.done(g, m, back)...))
	}
	return r.committed(g)
}

// done returns the records of a member whose positions are to be stored, and
// stores them.
func (r *streamRunner) done(g *groupSpec, m *memberSpec, back int) (rs []*broker.Record) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, h := range m.holds {
		if rec := g.commit(id, h, back); rec != nil {
			rs = append(rs, rec)
		}
	}
	return rs
}

// committed writes what is stored for a group.
func (r *streamRunner) committed(g *groupSpec) string {
	var out []string
	for _, id := range slices.Sorted(maps.Keys(g.stored)) {
		if n := r.logs[id].place(g.stored[id]); n > 0 {
			out = append(out, fmt.Sprintf("%d of %d", n, id))
		}
	}
	return "stored " + strings.Join(out, ", ")
}

// join adds a member, and waits until the group has shared out all partitions
// and has read them.
func (r *streamRunner) join(ctx context.Context, g *groupSpec) {
	r.drain(ctx, g, 100)
	m := &memberSpec{holds: map[int32]*holdSpec{}}
	r.mu.Lock()
	g.members = append(g.members, m)
	r.mu.Unlock()
	let := func(ids []int32) {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, id := range ids {
			delete(m.holds, id)
		}
	}
	var err error
	m.c, err = r.s.Consumer(ctx, g.name, &broker.GroupOptions{
		Start: broker.Earliest(), ReadCommitted: g.committed,
		OnAssigned: func(ids []int32) {
			r.mu.Lock()
			defer r.mu.Unlock()
			for _, id := range ids {
				for _, o := range g.members { // who leaves is none any more
					if o.holds[id] != nil {
						r.t.Errorf("%s: partition %d was given away while it was held", r.where, id)
					}
				}
				m.holds[id] = &holdSpec{pos: g.stored[id], base: g.stored[id]}
			}
		},
		OnRevoked: func(_ context.Context, ids []int32) { let(ids) },
		OnLost:    let,
	})
	r.must(err)
	r.settle(ctx, g)
}

func (r *streamRunner) leave(ctx context.Context, g *groupSpec) {
	r.drain(ctx, g, 100)
	r.close(g)
	r.settle(ctx, g)
}

// close ends a group's oldest member.
func (r *streamRunner) close(g *groupSpec) {
	r.mu.Lock()
	m := g.members[0]
	g.members = g.members[1:]
	r.mu.Unlock()
	r.must(m.c.Close())
}

// settle waits until each member has its share.
func (r *streamRunner) settle(ctx context.Context, g *groupSpec) {
	shares := func() (n []int) {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, m := range g.members {
			n = append(n, len(m.holds))
		}
		return n
	}
	if len(g.members) == 0 {
		return
	}
	r.until(func() bool {
		all, least := 0, streamPartitions
		for _, n := range shares() {
			all, least = all+n, min(least, n)
		}
		return all == streamPartitions && least >= streamPartitions/len(g.members)
	}, func() {
		for _, m := range g.members {
			r.receive(ctx, g, m, 100)
		}
	}, func() string { return fmt.Sprintf("the members have %v partitions", shares()) })
	r.drain(ctx, g, 100)
}

// holder returns the member that has a partition.
func (r *streamRunner) holder(g *groupSpec, id int32) (*memberSpec, *holdSpec) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range g.members {
		if h := m.holds[id]; h != nil {
			return m, h
		}
	}
	r.t.Fatalf("%s: nobody has partition %d", r.where, id)
	return nil, nil
}

// seek moves a partition, reads it from there, and commits that.
func (r *streamRunner) seek(ctx context.Context, g *groupSpec, s *streamStep) string {
	r.drain(ctx, g, s.max)
	m, h := r.holder(g, s.partition)
	i, to := r.logs[s.partition].resolve(s.to, s.at)
	if s.to == broker.PositionCommitted {
		i, to = g.stored[s.partition], broker.Committed()
	}
	r.must(m.c.Seek(ctx, s.partition, to))
	r.mu.Lock()
	h.rewound = h.rewound || s.to != broker.PositionCommitted
	h.moveTo(i)
	r.mu.Unlock()
	r.drain(ctx, g, s.max)
	return fmt.Sprintf("to %d, ", r.logs[s.partition].place(i)) + r.commit(ctx, g, 0)
}

// pause holds up one partition while records come to all of them.
func (r *streamRunner) pause(ctx context.Context, g *groupSpec, s *streamStep) string {
	r.drain(ctx, g, s.max)
	m, h := r.holder(g, s.partition)
	m.c.Pause(s.partition)
	h.paused = true
	r.publish(ctx, s)
	r.drain(ctx, g, s.max)
	m.c.Resume(s.partition)
	h.paused = false
	r.drain(ctx, g, s.max)
	return r.commit(ctx, g, 0)
}

func (r *streamRunner) reset(ctx context.Context, g *groupSpec, s *streamStep) string {
	_, to := r.logs[s.partition].resolve(s.to, s.at)
	err := r.b.(broker.Admin).ResetGroup(ctx, r.name, g.name, to)
	if len(g.members) > 0 {
		return class(err)
	}
	r.must(err)
	for id, log := range r.logs {
		switch i := 0; s.to {
		case broker.PositionLatest:
			g.stored[int32(id)] = len(log.records)
		case broker.PositionTime:
			for i < len(log.records) && log.records[i].rec.Time().Before(to.Time()) {
				i++
			}
			g.stored[int32(id)] = i
		default:
			g.stored[int32(id)] = 0
		}
	}
	return r.committed(g)
}

// read compares a Read from a position to the end.
func (r *streamRunner) read(ctx context.Context, s *streamStep) string {
	committed := s.commit && r.caps.Transactions
	log := r.logs[s.partition]
	i, from := log.resolve(broker.PositionOffset, s.at)
	for rec, err := range r.s.Read(ctx, broker.Range{From: from, Partitions: []int32{s.partition}, ReadCommitted: committed}) {
		r.must(err)
		if i, err = log.find(rec.Value, i, committed); err == nil {
			err = sameRecord(rec, &log.records[i].rec)
		}
		if err != nil {
			r.t.Fatalf("%s: partition %d: %v", r.where, s.partition, err)
		}
		i++
	}
	if n := log.left(i, committed); n > 0 {
		r.t.Errorf("%s: %d records of partition %d were not read", r.where, n, s.partition)
	}
	return class(nil)
}

// transaction publishes in one, while both groups read, and stores the position
// of the step's group in it.
func (r *streamRunner) transaction(ctx context.Context, g *groupSpec, s *streamStep) string {
	for _, g := range r.groups {
		r.drain(ctx, g, s.max)
	}
	tx, err := r.tx.Begin(ctx)
	r.must(err)
	spec := &txSpec{open: true}
	r.must(tx.Publish(ctx, r.s, s.records...))
	for _, rec := range s.records {
		r.stored(rec, rec.Partition, spec)
	}
	stored, holds := maps.Clone(g.stored), map[*holdSpec]holdSpec{}
	for _, m := range g.members {
		for _, h := range m.holds {
			holds[h] = *h
		}
	}
	if s.offsets {
		for _, m := range g.members {
			r.must(tx.CommitOffsets(ctx, m.c, r.done(g, m, 1)...))
		}
	}
	r.where += ", open"
	for _, g := range r.groups {
		r.drain(ctx, g, s.max)
	}
	r.where += ", then"
	if s.commit {
		r.must(tx.Commit(ctx))
	} else {
		r.must(tx.Rollback(ctx))
		spec.aborted = true
	}
	spec.open = false
	if !s.commit {
		g.stored = stored
	}
	if s.offsets {
		for _, m := range g.members {
			for _, h := range m.holds {
				if !s.commit {
					h.base, h.rewound = holds[h].base, holds[h].rewound
				}
				if h.pos > h.base {
					h.moveTo(h.base)
				}
			}
		}
	}
	for _, g := range r.groups {
		r.drain(ctx, g, s.max)
	}
	return r.committed(g)
}

// end compares the logs, what is stored and what is left of the groups, and
// that new members begin there.
func (r *streamRunner) end(ctx context.Context) {
	for id, log := range r.logs {
		for _, l := range log.records {
			if l.rec.Pin {
				fmt.Fprintf(&r.trace, "%s ", l.rec.Value)
			}
		}
		fmt.Fprintf(&r.trace, "in partition %d\n", id)
	}
	for _, g := range r.groups {
		for len(g.members) > 0 {
			r.close(g)
		}
		lags, err := r.s.Lag(ctx, g.name)
		r.must(err)
		for _, lag := range lags {
			log, from := r.logs[lag.Partition], g.stored[lag.Partition]
			least, most := int64(log.left(from, false)), int64(len(log.records)-from)
			if lag.Lag < least || (lag.Exact || r.caps.ExactLag) && lag.Lag > most {
				r.t.Errorf("%s: lag %d of partition %d, want %d to %d", r.where, lag.Lag, lag.Partition, least, most)
			}
			if from > 0 && !lag.HasCommit {
				r.t.Errorf("%s: nothing is stored for partition %d, want a position", r.where, lag.Partition)
			}
		}
		r.join(ctx, g) // judges where it begins
		fmt.Fprintf(&r.trace, "%s\n", r.committed(g))
		r.close(g)
	}
}

// The profiles alone carry out many more programs, and each the same again.
func TestStreamProgramsOfProfiles(t *testing.T) {
	programs := uint64(100)
	if testing.Short() {
		programs = 20
	}
	for _, p := range pairs {
		if p.noStreams || p.cfg.Ordered {
			continue
		}
		t.Run(p.name, func(t *testing.T) {
			for seed := range programs {
				var traces [2]string
				for i := range traces {
					synctest.Test(t, func(t *testing.T) {
						m := openMemory(t.Context(), t, p.profile, seed)
						t.Cleanup(func() { _ = m.Close() })
						traces[i] = p.runStream(t.Context(), t, m, seed)
					})
				}
				if t.Failed() {
					return
				}
				if traces[0] != traces[1] {
					t.Fatalf("program %d:\n%s\nthen:\n%s", seed, traces[0], traces[1])
				}
			}
		})
	}
}
