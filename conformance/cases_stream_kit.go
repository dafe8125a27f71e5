package conformance

import (
	"context"
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
	r.hist.Faulty = r.faulty()
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
