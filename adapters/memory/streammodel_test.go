package memory

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/queuestream/broker"
)

// A streamStep is one operation of a random program on a stream. What its
// numbers mean depends on the operation, as in step.
type streamStep struct {
	Op      string
	A, B, C int
}

// streamOps are the operations, the frequent ones more than once.
var streamOps = []string{
	"publish", "publish", "publish", "publish", "publish many", "receive", "receive", "receive", "receive",
	"commit", "commit", "seek", "pause", "resume", "join", "join", "leave", "advance", "advance", "reset", "grow", "read",
	"begin", "begin", "publish in", "publish in", "offsets in", "offsets in", "end", "end", "roll back", "take over",
}

var streamConfigs = []broker.StreamConfig{
	{Partitions: 3},
	{Partitions: 3, Retention: time.Minute},
	{Partitions: 2, RetentionBytes: 2000},
	{Partitions: 2, Compact: true, Options: map[string]string{OptionTombstoneRetention: "30s"}},
	{Partitions: 2, Compact: true, Retention: 90 * time.Second, Options: map[string]string{OptionTombstoneRetention: "10s"}},
}

// A streamRun is one program against one stream and its specification.
type streamRun struct {
	b    *Broker
	s    *Stream
	caps broker.StreamCapabilities

	mu sync.Mutex // callbacks of members run beside the program, but never while it looks
	*streamSpec
	failed  error // in a callback
	serial  int
	keys    map[string]int32 // the partition of each key
	holders [2]*Transactor
	open    [2]*txSpec // of each transactional id
}

// runStreamProgram returns what the stream did against its specification, if anything.
func runStreamProgram(t *testing.T, profile Profile, config int, steps []streamStep) error {
	var err error
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		b := open(t, &Options{Profile: profile})
		cfg := streamConfigs[config]
		if cfg.Compact && !b.srv.rules.stream.Compaction {
			cfg.Compact, cfg.Options = false, nil
		}
		r := &streamRun{b: b, s: declareStream(t, b, cfg), keys: map[string]int32{}}
		r.caps = r.s.Capabilities()
		r.streamSpec = &streamSpec{cfg: cfg, tombstones: r.s.s.tombstones}
		r.grow(cfg.Partitions)
		for i := range r.groups {
			r.groups[i] = &groupSpec{
				name: "g" + strconv.Itoa(i), committed: i == 0 && r.caps.Transactions, start: broker.Earliest(),
				offsets: map[int32]int64{}, starts: map[int32]int64{}, holds: map[int32]*holdSpec{},
			}
		}
		r.groups[1].start = broker.Latest()
		for i := range r.holders {
			if r.caps.Transactions {
				check(t, r.takeOver(ctx, i))
			}
		}
		for i, s := range steps {
			r.sync()
			if err = r.step(ctx, s); err == nil {
				err = r.compare(ctx, i%4 == 0 || i == len(steps)-1)
			}
			if err != nil {
				err = fmt.Errorf("step %d %v: %w", i, s, err)
				return
			}
		}
	})
	return err
}

func wantThat(err, want error) error {
	if errors.Is(err, want) && (err == nil) == (want == nil) {
		return nil
	}
	return fmt.Errorf("error %v, want %v", err, want) //nolint:errorlint // two of them
}

func (r *streamRun) step(ctx context.Context, s streamStep) error {
	g := r.groups[s.A%2]
	var m *memberSpec
	if len(g.members) > 0 {
		m = g.members[s.B%len(g.members)]
	}
	switch s.Op {
	case "publish":
		return r.publish(ctx, s, 1+s.C%3)
	case "publish many":
		return r.publish(ctx, s, 100)
	case "join":
		if len(g.members) < 3 {
			return r.join(ctx, g, s.C%2 == 0)
		}
	case "advance":
		d := time.Duration(1+s.A%100) * time.Second
		if s.B%3 == 0 {
			d = time.Minute // the time-out of transactions, exactly
		}
		<-time.After(d)
		r.sync()
	case "reset":
		return r.reset(ctx, g, []broker.Position{broker.Earliest(), broker.Latest(), broker.AtTime(r.ago(s.C))}[s.B%3])
	case "grow":
		return r.addPartition(ctx)
	case "read":
		return r.read(ctx, s)
	case "begin", "publish in", "offsets in", "end", "roll back", "take over":
		if r.caps.Transactions {
			return r.transact(ctx, s, m)
		}
	default:
		if m != nil {
			return r.use(ctx, m, s)
		}
	}
	return nil
}

func (r *streamRun) ago(seconds int) time.Time {
	return time.Now().Add(-time.Duration(seconds) * time.Second)
}

// record makes a record; one in a few has a time of its own.
func (r *streamRun) record(s streamStep, i int) broker.Record {
	r.serial++
	rec := broker.Record{Value: []byte(strconv.Itoa(r.serial))}
	switch k := (s.A + i) % 6; {
	case k == 0:
		rec.Pin, rec.Partition = true, int32(s.B%len(r.parts))
	case k == 1 && !r.cfg.Compact:
	default:
		rec.Key = []byte("k" + strconv.Itoa(s.B%5))
		if r.caps.Tombstones && k == 2 {
			rec.Tombstone, rec.Value = true, nil
		}
	}
	if s.C%5 == 0 {
		rec.SetTime(r.ago(s.A))
	}
	return rec
}

func (r *streamRun) publish(ctx context.Context, s streamStep, n int) error {
	rs := make([]broker.Record, n)
	for i := range rs {
		rs[i] = r.record(s, i)
	}
	receipts, err := r.s.PublishBatch(ctx, rs)
	if err != nil {
		return err
	}
	for i := range rs {
		got, _ := receipts[i].Offset.Int64()
		if want := r.parts[receipts[i].Partition].next; r.caps.Offsets && got != want {
			return fmt.Errorf("%q is at %d of partition %d, want %d", rs[i].Value, got, receipts[i].Partition, want)
		}
		if err := r.stored(&rs[i], receipts[i].Partition, nil); err != nil {
			return err
		}
	}
	return nil
}

// stored notes that rec was put in a partition.
func (r *streamRun) stored(rec *broker.Record, partition int32, tx *txSpec) error {
	switch was, ok := r.keys[string(rec.Key)]; {
	case rec.Pin && rec.Partition != partition:
		return fmt.Errorf("a record for partition %d went to %d", rec.Partition, partition)
	case rec.Pin || len(rec.Key) == 0:
	case ok && was != partition:
		return fmt.Errorf("key %q went to partition %d, then to %d", rec.Key, was, partition)
	default:
		r.keys[string(rec.Key)] = partition
	}
	ms := time.Now().UnixMilli()
	if t := rec.Time(); !t.IsZero() {
		ms = t.UnixMilli()
	}
	r.store(r.parts[partition], &recordSpec{
		key: string(rec.Key), value: string(rec.Value), tombstone: rec.Tombstone, ms: ms,
		size: int64(rec.Size()) + recordOverhead, tx: tx,
	})
	return nil
}

// settled waits for the callbacks of a rebalance and checks what came of it.
func (r *streamRun) settled() error {
	synctest.Wait()
	if r.failed != nil {
		return r.failed
	}
	for _, g := range r.groups {
		if len(g.members) == 0 {
			continue
		}
		loads := map[*memberSpec]int{}
		for _, p := range r.parts {
			h := g.holds[p.id]
			if h == nil {
				return fmt.Errorf("nobody of %s holds partition %d", g.name, p.id)
			}
			loads[h.m]++
		}
		for _, m := range g.members {
			if n, k := loads[m], len(r.parts)/len(g.members); n < k || n > k+1 {
				return fmt.Errorf("a member of %s holds %d of %d partitions, of %d members", g.name, n, len(r.parts), len(g.members))
			}
		}
	}
	return nil
}

func (r *streamRun) owners(g *groupSpec) map[int32]*memberSpec {
	owners := map[int32]*memberSpec{}
	for id, h := range g.holds {
		owners[id] = h.m
	}
	return owners
}

func (r *streamRun) join(ctx context.Context, g *groupSpec, commits bool) error {
	m := &memberSpec{g: g, commits: commits, paused: map[int32]bool{}}
	before := r.owners(g)
	g.known = true
	g.members = append(g.members, m)
	c, err := r.s.Consumer(ctx, g.name, &broker.GroupOptions{
		Start: g.start, ReadCommitted: g.committed,
		OnAssigned: func(ids []int32) { r.assigned(m, ids) },
		OnRevoked:  func(ctx context.Context, ids []int32) { r.revoked(ctx, m, ids) },
		OnLost:     func(ids []int32) { r.fail(fmt.Errorf("%v were lost", ids)) },
	})
	if err != nil {
		return err
	}
	m.c = c.(*GroupConsumer)
	if err := r.settled(); err != nil {
		return err
	}
	for id, owner := range r.owners(g) {
		if was := before[id]; was != nil && was != owner && owner != m {
			return fmt.Errorf("partition %d moved between two members as a third joined", id)
		}
	}
	return nil
}

func (r *streamRun) fail(err error) {
	if r.failed == nil {
		r.failed = err
	}
}

func (r *streamRun) assigned(m *memberSpec, ids []int32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, id := range ids {
		if h := m.g.holds[id]; h != nil {
			r.fail(fmt.Errorf("partition %d was given away while it was held", id))
		}
		m.take(r.parts[id])
	}
}

func (r *streamRun) revoked(ctx context.Context, m *memberSpec, ids []int32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var last []takenSpec
	for _, id := range ids {
		if h := m.g.holds[id]; h == nil || h.m != m {
			r.fail(fmt.Errorf("partition %d was revoked from a member that does not hold it", id))
		}
		for _, t := range slices.Backward(m.taken) {
			if t.partition() == id && m.valid(&t) {
				last = append(last, t)
				break
			}
		}
	}
	if m.commits && len(last) > 0 {
		m.commit(last)
		if err := m.c.Commit(ctx, recordsOf(last)...); err != nil {
			r.fail(fmt.Errorf("commit in OnRevoked: %w", err))
		}
	}
	for _, id := range ids {
		m.letGo(id)
	}
}

func recordsOf(taken []takenSpec) []*broker.Record {
	rs := make([]*broker.Record, len(taken))
	for i := range taken {
		rs[i] = taken[i].r
	}
	return rs
}

func (r *streamRun) leave(m *memberSpec) error {
	before := r.owners(m.g)
	m.leave()
	if err := m.c.Close(); err != nil {
		return err
	}
	if err := r.settled(); err != nil {
		return err
	}
	for id, owner := range r.owners(m.g) {
		if was := before[id]; was != m && was != owner {
			return fmt.Errorf("partition %d moved as another member left", id)
		}
	}
	return wantThat(m.c.Commit(context.Background()), broker.ErrClosed)
}

// use does something with a member.
func (r *streamRun) use(ctx context.Context, m *memberSpec, s streamStep) error {
	id := int32(s.C % len(r.parts))
	switch s.Op {
	case "receive":
		return r.receive(ctx, m, 1+s.C%8)
	case "commit":
		to := len(m.taken) - s.C%4
		taken := m.taken[max(0, min(to, len(m.taken))-1-s.C%7):max(0, to)]
		var want error
		if !m.commit(taken) {
			want = broker.ErrFenced
		}
		return wantThat(m.c.Commit(ctx, recordsOf(taken)...), want)
	case "seek":
		p, h := r.parts[id], m.g.holds[id]
		to := []broker.Position{
			broker.Earliest(), broker.Latest(), broker.Committed(), broker.AtTime(r.ago(s.B)),
			broker.AtOffset(broker.NewOffset(int64(s.B) % (p.next + 2))),
		}[s.A/2%5]
		n, ok := p.resolve(to)
		if to.Kind() == broker.PositionCommitted && h != nil {
			n, ok = h.stored(id), true
		}
		var want error
		switch {
		case h == nil || h.m != m:
			want = broker.ErrFenced
		case !ok:
			want = broker.ErrOutOfRange
		default:
			h.rewound = h.rewound || to.Kind() != broker.PositionCommitted
			h.moveTo(n)
		}
		return wantThat(m.c.Seek(ctx, id, to), want)
	case "pause":
		m.paused[id] = true
		m.c.Pause(id)
	case "resume":
		delete(m.paused, id)
		m.c.Resume(id)
	case "leave":
		return r.leave(m)
	}
	return nil
}

func (r *streamRun) receive(ctx context.Context, m *memberSpec, limit int) error {
	left := map[int32][]*recordSpec{} // what m may be given of each partition, in order
	total := 0
	for id, h := range m.g.holds {
		if h.m == m && !m.paused[id] {
			left[id] = r.parts[id].visible(h.pos, r.parts[id].next, m.g.committed)
			total += len(left[id])
		}
	}
	ctx, cancel := context.WithTimeout(ctx, time.Millisecond)
	defer cancel()
	rs, err := m.c.Receive(ctx, limit)
	if total == 0 {
		return wantThat(err, context.DeadlineExceeded)
	}
	if err != nil || len(rs) != min(total, limit) {
		return fmt.Errorf("received %d, %w; want %d", len(rs), err, min(total, limit))
	}
	for _, rec := range rs {
		h := m.g.holds[rec.Partition]
		if len(left[rec.Partition]) == 0 {
			return fmt.Errorf("received %q of partition %d, of which nothing is left", rec.Value, rec.Partition)
		}
		want := left[rec.Partition][0]
		if err := want.same(rec); err != nil {
			return fmt.Errorf("partition %d: %w", rec.Partition, err)
		}
		left[rec.Partition] = left[rec.Partition][1:]
		h.pos, h.handed = want.offset+1, want.offset+1
		m.taken = append(m.taken, takenSpec{rec, h, h.era})
	}
	return nil
}

func (r *recordSpec) same(rec *broker.Record) error {
	n, _ := rec.Offset().Int64()
	if n != r.offset || string(rec.Key) != r.key || string(rec.Value) != r.value ||
		rec.Tombstone != r.tombstone || rec.Time().UnixMilli() != r.ms {
		return fmt.Errorf("read %d: %q=%q, want %d: %q=%q", n, rec.Key, rec.Value, r.offset, r.key, r.value)
	}
	return nil
}

func (r *streamRun) reset(ctx context.Context, g *groupSpec, to broker.Position) error {
	var want error
	if len(g.members) > 0 {
		want = broker.ErrConflict
	} else {
		for _, p := range r.parts {
			g.offsets[p.id], _ = p.resolve(to)
		}
	}
	return wantThat(r.b.ResetGroup(ctx, "s", g.name, to), want)
}

func (r *streamRun) addPartition(ctx context.Context) error {
	cfg := r.cfg
	cfg.Partitions = len(r.parts) + 1
	switch {
	case cfg.Partitions > 5:
		return nil
	case !r.caps.Growth:
		return wantThat(r.b.DeclareStream(ctx, "s", cfg), broker.ErrConflict)
	}
	before := [2]map[int32]*memberSpec{r.owners(r.groups[0]), r.owners(r.groups[1])}
	r.grow(cfg.Partitions)
	clear(r.keys)
	if err := r.b.DeclareStream(ctx, "s", cfg); err != nil {
		return err
	}
	if err := r.settled(); err != nil {
		return err
	}
	for i, g := range r.groups {
		now := r.owners(g)
		delete(now, int32(cfg.Partitions-1))
		if !maps.Equal(now, before[i]) {
			return fmt.Errorf("partitions of %s moved as one was added", g.name)
		}
	}
	return nil
}

// read compares what a Read gives between two offsets.
func (r *streamRun) read(ctx context.Context, s streamStep) error {
	p := r.parts[s.A%len(r.parts)]
	from := p.first + int64(s.B)%(p.next-p.first+1)
	until := from + int64(s.C)
	committed := r.caps.Transactions && s.C%2 == 0
	want := p.visible(from, until, committed)
	for rec, err := range r.s.Read(ctx, broker.Range{
		From: broker.AtOffset(broker.NewOffset(from)), Until: broker.AtOffset(broker.NewOffset(until)),
		Partitions: []int32{p.id}, ReadCommitted: committed,
	}) {
		switch {
		case err != nil:
			return err
		case len(want) == 0:
			return fmt.Errorf("read %v of partition %d, beyond what there is", rec.Offset(), p.id)
		}
		if err := want[0].same(rec); err != nil {
			return err
		}
		want = want[1:]
	}
	if len(want) > 0 {
		return fmt.Errorf("%d records of partition %d were not read", len(want), p.id)
	}
	return nil
}
