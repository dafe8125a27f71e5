package conformance

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/queuestream/broker"
)

// A streamRun is a case's work on one stream, written into a history.
type streamRun struct {
	*C
	stream broker.Stream
	hist   *StreamHistory

	offsets bool // receipts have offsets

	made    atomic.Int64 // values
	readers atomic.Int64
	members atomic.Int64
}

func newStreamRun(c *C, s broker.Stream) *streamRun {
	caps := s.Capabilities()
	return &streamRun{C: c, stream: s, hist: &StreamHistory{Idempotent: caps.Idempotent}, offsets: caps.Offsets}
}

// partitions is a StreamCase.Config that declares n of them.
func partitions(n int) func(*C, *broker.StreamConfig) {
	return func(_ *C, cfg *broker.StreamConfig) { cfg.Partitions = n }
}

// value returns a value that is unique in the case.
func (r *streamRun) value(tag string) string { return fmt.Sprintf("%s-%d", tag, r.made.Add(1)) }

// make returns n records with unique values; they have keys different keys in
// turn, 0: none.
func (r *streamRun) make(tag string, n, keys int) []broker.Record {
	rs := make([]broker.Record, n)
	for i := range rs {
		rs[i].Value = []byte(r.value(tag))
		if keys > 0 {
			rs[i].Key = fmt.Appendf(nil, "%s-key-%d", tag, i%keys)
		}
	}
	return rs
}

// pinned returns n records with unique values for one partition.
func (r *streamRun) pinned(tag string, n int, partition int32) []broker.Record {
	rs := r.make(tag, n, 0)
	for i := range rs {
		rs[i].Pin, rs[i].Partition = true, partition
	}
	return rs
}

func sentEntries(rs []broker.Record) []StreamEntry {
	es := make([]StreamEntry, len(rs))
	for i := range rs {
		es[i] = StreamEntry{Value: string(rs[i].Value)}
	}
	return es
}

func (r *streamRun) receiptEntry(rec *broker.Record, got broker.Receipt) StreamEntry {
	return StreamEntry{Value: string(rec.Value), Partition: got.Partition, Offset: got.Offset, HasOffset: r.offsets}
}

// located returns the receipts with their offsets, which it looks up where
// receipts have none.
func (r *streamRun) located(rs []broker.Record, receipts []broker.Receipt) []broker.Receipt {
	if r.offsets {
		return receipts
	}
	at := map[string]*broker.Record{}
	for _, rec := range r.readAll() {
		at[string(rec.Value)] = rec
	}
	out := slices.Clone(receipts)
	for i := range out {
		if rec := at[string(rs[i].Value)]; rec != nil {
			out[i].Offset = rec.Offset()
		}
	}
	return out
}

// trySend publishes the records one by one through s and records what became
// of each. It returns the receipts up to the first error.
func (r *streamRun) trySend(ctx context.Context, s broker.Stream, who string, rs ...broker.Record) ([]broker.Receipt, error) {
	receipts := make([]broker.Receipt, 0, len(rs))
	for i := range rs {
		e := r.hist.Begin(StreamEvent{Op: StreamSend, Who: who, Entries: sentEntries(rs[i : i+1])})
		got, err := s.Publish(ctx, rs[i])
		if err != nil {
			r.hist.End(e, outcomeOf(err), nil)
			return receipts, err
		}
		r.hist.End(e, OutcomeOK, []StreamEntry{r.receiptEntry(&rs[i], got)})
		receipts = append(receipts, got)
	}
	return receipts, nil
}

// send publishes the records one by one; the case ends if that fails.
func (r *streamRun) send(who string, rs ...broker.Record) []broker.Receipt {
	ctx, cancel := r.Soon()
	defer cancel()
	receipts, err := r.trySend(ctx, r.stream, who, rs...)
	r.Must(err, "publish record %d of %d", len(receipts)+1, len(rs))
	return receipts
}

// trySendBatch publishes a batch through s and records what became of each.
func (r *streamRun) trySendBatch(ctx context.Context, s broker.Stream, who string, rs []broker.Record) ([]broker.Receipt, error) {
	e := r.hist.Begin(StreamEvent{Op: StreamSend, Who: who, Entries: sentEntries(rs)})
	got, err := s.PublishBatch(ctx, rs)
	if len(got) != len(rs) {
		r.Fatalf("publish a batch of %d: %d receipts (%v)", len(rs), len(got), err)
	}
	var ok []StreamEntry
	for i := range rs {
		switch o := outcomeOf(broker.ErrorAt(err, i)); o {
		case OutcomeOK:
			ok = append(ok, r.receiptEntry(&rs[i], got[i]))
		default:
			j := r.hist.Begin(StreamEvent{Op: StreamSend, Who: who, Entries: sentEntries(rs[i : i+1])})
			r.hist.End(j, o, nil)
		}
	}
	if ok == nil {
		ok = []StreamEntry{} // the entries that it began with are in events of their own
	}
	r.hist.End(e, OutcomeOK, ok)
	return got, err
}

// sendBatch publishes a batch; the case ends unless all of it succeeds.
func (r *streamRun) sendBatch(who string, rs []broker.Record) []broker.Receipt {
	ctx, cancel := r.Soon()
	defer cancel()
	got, err := r.trySendBatch(ctx, r.stream, who, rs)
	r.Must(err, "publish a batch of %d", len(rs))
	return got
}

// tryRead reads a range without a group and records what came.
func (r *streamRun) tryRead(ctx context.Context, s broker.Stream, rg broker.Range) ([]*broker.Record, error) {
	who := fmt.Sprintf("reader %d", r.readers.Add(1))
	e := r.hist.Begin(StreamEvent{Op: StreamPoll, Who: who, ReadCommitted: rg.ReadCommitted})
	var out []*broker.Record
	var failed error
	for rec, err := range s.Read(ctx, rg) {
		if failed != nil {
			r.Errorf("read: a pair after the error %v", failed)
		}
		if err != nil {
			failed = err
			continue
		}
		out = append(out, rec)
	}
	r.hist.End(e, OutcomeOK, entriesOf(out))
	return out, failed
}

// read reads a range without a group; the case ends if that fails.
func (r *streamRun) read(rg broker.Range) []*broker.Record {
	ctx, cancel := r.Soon()
	defer cancel()
	out, err := r.tryRead(ctx, r.stream, rg)
	r.Must(err, "read from %v until %v after %d records", rg.From, rg.Until, len(out))
	return out
}

// readAll reads everything that is committed.
func (r *streamRun) readAll() []*broker.Record {
	return r.read(broker.Range{ReadCommitted: r.stream.Capabilities().Transactions})
}

// judge reads everything and checks the history.
func (r *streamRun) judge() []*broker.Record {
	r.Wait()
	all := r.readAll()
	r.Check(CheckStream(r.hist))
	return all
}

func entriesOf(rs []*broker.Record) []StreamEntry {
	es := make([]StreamEntry, len(rs))
	for i, rec := range rs {
		es[i] = entryOf(rec)
	}
	return es
}

func valuesOf(rs []*broker.Record) []string {
	vs := make([]string, len(rs))
	for i, rec := range rs {
		vs[i] = string(rec.Value)
	}
	return vs
}

func sentValues(rs []broker.Record) []string {
	vs := make([]string, len(rs))
	for i := range rs {
		vs[i] = string(rs[i].Value)
	}
	return vs
}

// sameValues fails the case unless got and want are the same, in order.
func (r *streamRun) sameValues(got, want []string, format string, args ...any) {
	if slices.Equal(got, want) {
		return
	}
	what := fmt.Sprintf(format, args...)
	i := 0
	for i < len(got) && i < len(want) && got[i] == want[i] {
		i++
	}
	r.Errorf("%s: %d values, want %d; from index %d on %q, want %q", what, len(got), len(want), i, head(got[i:]), head(want[i:]))
}

// sameSet fails the case unless got and want hold the same, each once.
func (r *streamRun) sameSet(got, want []string, format string, args ...any) {
	r.sameValues(slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(want)), format, args...)
}

func head(vs []string) []string { return vs[:min(3, len(vs))] }

// endOf returns the partition's state now.
func (r *streamRun) partition(id int32) broker.Partition {
	for _, p := range r.partitionList() {
		if p.ID == id {
			return p
		}
	}
	r.Fatalf("Partitions: partition %d is missing", id)
	return broker.Partition{}
}

func (r *streamRun) partitionList() []broker.Partition {
	ctx, cancel := r.Soon()
	defer cancel()
	ps, err := r.stream.Partitions(ctx)
	r.Must(err, "Partitions")
	return ps
}

// stored returns the group's stored positions, and records them.
func (r *streamRun) stored(group string) map[int32]broker.PartitionLag {
	ctx, cancel := r.Soon()
	defer cancel()
	lags, err := r.stream.Lag(ctx, group)
	r.Must(err, "Lag of %s", group)
	out := map[int32]broker.PartitionLag{}
	var es []StreamEntry
	for _, l := range lags {
		if _, twice := out[l.Partition]; twice {
			r.Errorf("Lag: partition %d twice", l.Partition)
		}
		out[l.Partition] = l
		if l.HasCommit {
			es = append(es, StreamEntry{Partition: l.Partition, Offset: l.Committed, HasOffset: true})
		}
	}
	r.hist.Add(StreamEvent{Op: StreamCommitted, Group: group, Entries: es})
	return out
}

// A streamMember is one member of a group, written into the history.
type streamMember struct {
	r     *streamRun
	name  string
	group string
	gc    broker.GroupConsumer
	rc    bool

	closing sync.Once

	mu      sync.Mutex
	own     []int32 // as OnAssigned and the others told
	revoked func(ctx context.Context, m *streamMember, partitions []int32)
}

// join adds a member to group. revoked runs inside OnRevoked; it may be nil.
func (r *streamRun) join(group string, opts broker.GroupOptions, revoked func(context.Context, *streamMember, []int32)) *streamMember {
	return r.joinStream(r.stream, group, opts, revoked)
}

func (r *streamRun) joinStream(s broker.Stream, group string, opts broker.GroupOptions, revoked func(context.Context, *streamMember, []int32)) *streamMember {
	m := &streamMember{
		r: r, group: group, rc: opts.ReadCommitted, revoked: revoked,
		name: fmt.Sprintf("%s member %d", group, r.members.Add(1)),
	}
	opts.OnAssigned = m.onAssigned
	opts.OnRevoked = m.onRevoked
	opts.OnLost = m.onLost
	ctx, cancel := r.Soon()
	defer cancel()
	gc, err := s.Consumer(ctx, group, &opts)
	r.Must(err, "join the group %s", group)
	m.mu.Lock()
	m.gc = gc
	m.mu.Unlock()
	r.track("member", m.closeErr)
	return m
}

func (m *streamMember) event(op StreamOp, ps []int32) StreamEvent {
	return StreamEvent{Op: op, Who: m.name, Group: m.group, Partitions: slices.Clone(ps), ReadCommitted: m.rc}
}

func (m *streamMember) onAssigned(ps []int32) {
	m.r.hist.Add(m.event(StreamAssign, ps))
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range ps {
		if !slices.Contains(m.own, p) {
			m.own = append(m.own, p)
		}
	}
}

func (m *streamMember) onRevoked(ctx context.Context, ps []int32) {
	e := m.r.hist.Begin(m.event(StreamRevoke, ps))
	m.drop(ps)
	if m.revoked != nil {
		m.revoked(ctx, m, ps)
	}
	m.r.hist.End(e, OutcomeOK, nil)
}

func (m *streamMember) onLost(ps []int32) {
	m.r.hist.Add(m.event(StreamLost, ps))
	m.drop(ps)
}

func (m *streamMember) drop(ps []int32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.own = slices.DeleteFunc(m.own, func(p int32) bool { return slices.Contains(ps, p) })
}

// owned returns what the callbacks told, ascending.
func (m *streamMember) owned() []int32 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Sorted(slices.Values(m.own))
}

// consumer returns the member's handle.
func (m *streamMember) consumer() broker.GroupConsumer {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.gc
}

// poll makes one call of Receive and records it.
func (m *streamMember) poll(ctx context.Context, max int) ([]*broker.Record, error) {
	e := m.r.hist.Begin(m.event(StreamPoll, nil))
	rs, err := m.consumer().Receive(ctx, max)
	switch {
	case err == nil && len(rs) == 0:
		m.r.Errorf("%s: Receive: neither a record nor an error", m.name)
	case err != nil && len(rs) > 0:
		m.r.Errorf("%s: Receive: %d records and the error %v", m.name, len(rs), err)
	case len(rs) > max:
		m.r.Errorf("%s: Receive at most %d: %d records", m.name, max, len(rs))
	}
	o := OutcomeOK
	if err != nil {
		o = OutcomeFail
	}
	m.r.hist.End(e, o, entriesOf(rs))
	return rs, err
}

// collect receives n records, not more, and ends the case if they do not come.
func (m *streamMember) collect(n int) []*broker.Record {
	var out []*broker.Record
	for len(out) < n {
		ctx, cancel := m.r.Soon()
		rs, err := m.poll(ctx, n-len(out))
		cancel()
		if err != nil {
			m.r.Fatalf("%s: %d of %d records, then: %v", m.name, len(out), n, err)
		}
		out = append(out, rs...)
	}
	return out
}

// nothing fails the case if a record comes within Harness.Quiet.
func (m *streamMember) nothing(why string) {
	ctx, cancel := m.r.Within(m.r.C.h.Quiet)
	defer cancel()
	rs, err := m.poll(ctx, 10)
	switch {
	case len(rs) > 0:
		m.r.Errorf("%s received %q where nothing may come: %s", m.name, valuesOf(rs), why)
	case !errors.Is(err, context.DeadlineExceeded):
		m.r.Errorf("%s: Receive with an ended context: %v, want the context's error", m.name, err)
	}
}

// assigned waits until the member has n partitions, by its callbacks and by
// Partitions alike. It receives nothing, so it suits members that have nothing
// to read or a goroutine that receives.
func (m *streamMember) assigned(n int) {
	m.r.Eventually(fmt.Sprintf("%s has %d partitions", m.name, n), func() bool {
		return len(m.owned()) == n && slices.Equal(m.consumer().Partitions(), m.owned())
	})
}

// commitErr commits and records it.
func (m *streamMember) commitErr(ctx context.Context, rs ...*broker.Record) error {
	e := m.event(StreamCommit, nil)
	e.Entries = entriesOf(rs)
	i := m.r.hist.Begin(e)
	err := m.consumer().Commit(ctx, rs...)
	o := OutcomeOK
	switch {
	case errors.Is(err, broker.ErrFenced):
		o = OutcomeFail
	case err != nil:
		o = OutcomeInfo
	}
	m.r.hist.End(i, o, nil)
	return err
}

func (m *streamMember) commit(rs ...*broker.Record) {
	ctx, cancel := m.r.Soon()
	defer cancel()
	m.r.Must(m.commitErr(ctx, rs...), "%s: commit of %d records", m.name, len(rs))
}

func (m *streamMember) seek(partition int32, to broker.Position) {
	ctx, cancel := m.r.Soon()
	defer cancel()
	m.r.Must(m.trySeek(ctx, partition, to), "%s: seek partition %d to %v", m.name, partition, to)
}

func (m *streamMember) trySeek(ctx context.Context, partition int32, to broker.Position) error {
	e := m.r.hist.Begin(m.event(StreamSeek, []int32{partition}))
	err := m.consumer().Seek(ctx, partition, to)
	m.r.hist.End(e, OutcomeOK, nil)
	return err
}

// processed records that the records' work is done.
func (m *streamMember) processed(rs ...*broker.Record) {
	e := m.event(StreamProcess, nil)
	e.Entries = entriesOf(rs)
	m.r.hist.Add(e)
}

// close leaves the group; the case fails if that fails.
func (m *streamMember) close() { m.r.Must(m.closeErr(), "%s: leave the group", m.name) }

func (m *streamMember) closeErr() (err error) {
	m.closing.Do(func() {
		e := m.r.hist.Begin(m.event(StreamLeave, nil))
		err = m.consumer().Close()
		m.r.hist.End(e, OutcomeOK, nil)
	})
	return err
}

// work receives until ctx ends or the member is closed, and hands each call's
// records to do. It runs in a goroutine of the case.
func (m *streamMember) work(ctx context.Context, do func(rs []*broker.Record)) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	m.r.Go(func() {
		defer close(done)
		for {
			rs, err := m.poll(ctx, 16)
			switch {
			case err == nil:
				do(rs)
			case ctx.Err() != nil || errors.Is(err, broker.ErrClosed):
				return
			default:
				m.r.Errorf("%s: Receive: %v", m.name, err)
				return
			}
		}
	})
	return func() { cancel(); <-done }
}

// A tally counts the values that came, from many goroutines.
type tally struct {
	mu    sync.Mutex
	n     int
	times map[string]int
}

func (t *tally) add(rs ...*broker.Record) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.times == nil {
		t.times = map[string]int{}
	}
	t.n += len(rs)
	for _, rec := range rs {
		t.times[string(rec.Value)]++
	}
}

// has tells whether every value came at least once.
func (t *tally) has(values []string) bool { return t.missing(values) == nil }

func (t *tally) missing(values []string) []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []string
	for _, v := range values {
		if t.times[v] == 0 {
			out = append(out, v)
		}
	}
	return out
}

// parallel runs f n times at once and waits for all.
func (r *streamRun) parallel(n int, f func(i int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Add(1)
		r.Go(func() {
			defer wg.Done()
			f(i)
		})
	}
	wg.Wait()
}

// done records that rs are processed, and commits them. A partition that has
// gone to another member by then may refuse it.
func (m *streamMember) done(rs ...*broker.Record) {
	m.processed(rs...)
	ctx, cancel := m.r.Soon()
	defer cancel()
	if err := m.commitErr(ctx, rs...); err != nil && !errors.Is(err, broker.ErrFenced) && !errors.Is(err, broker.ErrClosed) {
		m.r.Errorf("%s: commit of %d records: %v", m.name, len(rs), err)
	}
}

// share starts n members of group that process and commit, and count what they
// get. stop ends their receiving.
func (r *streamRun) share(group string, n int, got *tally) (members []*streamMember, stop func()) {
	var stops []func()
	for range n {
		m := r.join(group, broker.GroupOptions{}, nil)
		members = append(members, m)
		stops = append(stops, m.work(r.Context(), func(rs []*broker.Record) {
			m.done(rs...)
			got.add(rs...)
		}))
	}
	return members, func() {
		for _, f := range stops {
			f()
		}
	}
}

// complete waits until every value has come.
func (r *streamRun) complete(what string, got *tally, values []string) {
	if !r.Until(r.C.h.Soon, func() bool { return got.has(values) }) {
		missing := got.missing(values)
		r.Fatalf("%s: %d of %d values did not come within %v: %q", what, len(missing), len(values), r.C.h.Soon, head(missing))
	}
}

// count returns how many records came.
func (t *tally) count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.n
}

// counts returns how often each value came.
func (t *tally) counts() map[string]int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.times)
}

// patiently waits up to d for what a broker does in its own time, looking at
// it ever more seldom.
func (r *streamRun) patiently(d time.Duration, cond func() bool) bool {
	wait, waited := time.Millisecond, time.Duration(0)
	for !cond() {
		if waited >= d {
			return false
		}
		r.Sleep(wait)
		waited += wait
		wait = min(2*wait, max(d/20, 100*time.Millisecond))
	}
	return true
}
