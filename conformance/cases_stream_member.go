package conformance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/queuestream/broker"
)

// A streamMember is one member of a group, written into the history.
type streamMember struct {
	r     *streamRun
	name  string
	group string
	gc    broker.GroupConsumer
	rc    bool

	closing sync.Once
	commits atomic.Int32 // by done

	mu      sync.Mutex
	own     []int32 // as OnAssigned and the others told
	told    []int32 // by OnAssigned, ever
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
		if !slices.Contains(m.told, p) {
			m.told = append(m.told, p)
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

// checkTold looks for records that came before OnAssigned told of their partition.
func (m *streamMember) checkTold(rs []*broker.Record) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, rec := range rs {
		if !slices.Contains(m.told, rec.Partition) {
			m.r.Errorf("%s: Receive: a record of partition %d before OnAssigned had told of it", m.name, rec.Partition)
			m.told = append(m.told, rec.Partition) // once
		}
	}
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
	m.checkTold(rs)
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
	m.r.hist.End(i, commitOutcome(rs, err, m.r.faulty()), nil)
	return err
}

// commitOutcome: a fence says of one hold that nothing was stored for it; the
// other partitions of the same call may be stored.
func commitOutcome(rs []*broker.Record, err error, faulty bool) Outcome {
	several := slices.ContainsFunc(rs, func(rec *broker.Record) bool { return rec.Assignment() != rs[0].Assignment() })
	switch {
	case err == nil:
		return OutcomeOK
	case errors.Is(err, broker.ErrFenced) && !faulty && !several:
		return OutcomeFail
	default: // a commit whose answer was lost may be fenced when it is tried again
		return OutcomeInfo
	}
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

// die ends the member by killing it.
func (m *streamMember) die(kill func(io.Closer)) {
	m.closing.Do(func() {
		e := m.r.hist.Begin(m.event(StreamLeave, nil))
		kill(m.consumer())
		m.r.hist.End(e, OutcomeOK, nil)
	})
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

// done records that rs are processed, and commits them; every second time each
// partition on its own, since a fence of one says nothing of the others. A
// partition that has gone to another member by then may refuse it.
func (m *streamMember) done(rs ...*broker.Record) {
	m.processed(rs...)
	ctx, cancel := m.r.Soon()
	defer cancel()
	calls := [][]*broker.Record{rs}
	if m.commits.Add(1)%2 == 0 {
		calls = nil
		for rest := rs; len(rest) > 0; {
			p := rest[0].Partition
			calls = append(calls, of(rest, p))
			rest = slices.DeleteFunc(slices.Clone(rest), func(rec *broker.Record) bool { return rec.Partition == p })
		}
	}
	for _, rs := range calls {
		if err := m.commitErr(ctx, rs...); err != nil && !errors.Is(err, broker.ErrFenced) && !errors.Is(err, broker.ErrClosed) {
			m.r.Errorf("%s: commit of %d records: %v", m.name, len(rs), err)
		}
	}
}
