package conformance

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/memory"
)

// streamMutants are the defects and the cases that must catch them.
var streamMutants = []struct {
	name string
	by   string
	m    streamMutation
}{
	// Publishing.
	{"a record in the middle is lost", "AckedNotLost", streamMutation{send: dropNth(50)}},
	{"every record is stored twice", "NoPhantom", streamMutation{send: eachOnce(func(s *mutantStream, ctx context.Context, r broker.Record) (broker.Receipt, error) {
		if got, err := s.Stream.Publish(ctx, r); err != nil {
			return got, err
		}
		return s.Stream.Publish(ctx, r)
	})}},
	{"values are cut at 64 KiB", "BytesExact", streamMutation{send: eachOnce(func(s *mutantStream, ctx context.Context, r broker.Record) (broker.Receipt, error) {
		r.Value = r.Value[:min(len(r.Value), 64<<10)]
		return s.Stream.Publish(ctx, r)
	})}},
	{"the caller's buffer is kept", "BytesExact", streamMutation{record: func(_ *mutantStream, rec *broker.Record) { rec.Value = shared(rec.Value) }}},
	{"a batch ends at its first failure", "BatchPartialFailure", streamMutation{send: func(s *mutantStream, ctx context.Context, rs []broker.Record) ([]broker.Receipt, error) {
		out, errs := make([]broker.Receipt, len(rs)), make([]error, len(rs))
		for i := range rs {
			if i > 0 && errs[i-1] != nil {
				errs[i] = errs[i-1]
				continue
			}
			out[i], errs[i] = s.Stream.Publish(ctx, rs[i])
		}
		return out, broker.NewBatchError(errs)
	}}},
	{"keys do not stick to a partition", "KeyAffinity", streamMutation{send: eachOnce(func(s *mutantStream, ctx context.Context, r broker.Record) (broker.Receipt, error) {
		if !r.Pin {
			r.Pin, r.Partition = true, int32(s.b.w.count()%4)
		}
		return s.Stream.Publish(ctx, r)
	})}},
	{"pinning is ignored", "KeyAffinity", streamMutation{send: eachOnce(func(s *mutantStream, ctx context.Context, r broker.Record) (broker.Receipt, error) {
		r.Pin = false
		return s.Stream.Publish(ctx, r)
	})}},
	{"a batch is stored backwards", "SendOrder", streamMutation{send: func(s *mutantStream, ctx context.Context, rs []broker.Record) ([]broker.Receipt, error) {
		slices.Reverse(rs)
		out, err := s.Stream.PublishBatch(ctx, rs)
		slices.Reverse(out)
		return out, err
	}}},
	{"receipts repeat an offset", "DedupReceipt", streamMutation{send: eachOnce(func(s *mutantStream, ctx context.Context, r broker.Record) (broker.Receipt, error) {
		got, err := s.Stream.Publish(ctx, r)
		if n, _ := got.Offset.Int64(); n%2 == 1 {
			got.Offset = broker.NewOffset(n - 1)
		}
		return got, err
	})}},
	{"publishing is fire and forget", "CloseFlushes", streamMutation{send: func(s *mutantStream, ctx context.Context, rs []broker.Record) ([]broker.Receipt, error) {
		go func() {
			select {
			case <-time.After(time.Millisecond): // virtual
				_, _ = s.Stream.PublishBatch(context.WithoutCancel(ctx), rs)
			case <-s.b.w.end:
			}
		}()
		return make([]broker.Receipt, len(rs)), nil
	}}},
	{"publishing ignores an ended context", "ContextCancel", streamMutation{send: func(s *mutantStream, ctx context.Context, rs []broker.Record) ([]broker.Receipt, error) {
		return s.Stream.PublishBatch(context.WithoutCancel(ctx), rs)
	}}},
	{"what is too large is cut", "Oversize", streamMutation{send: eachOnce(func(s *mutantStream, ctx context.Context, r broker.Record) (broker.Receipt, error) {
		if limit := s.Stream.Capabilities().MaxBytes; len(r.Value) > limit {
			r.Value = r.Value[:limit]
		}
		return s.Stream.Publish(ctx, r)
	})}},

	// Reading.
	{"the order of headers is lost", "HeadersExact", streamMutation{record: func(_ *mutantStream, rec *broker.Record) {
		slices.SortFunc(rec.Headers, func(a, b broker.Header) int { return strings.Compare(a.Key, b.Key) })
	}}},
	{"headers that are not claimed are dropped", "HeadersExact", streamMutation{
		caps: func(c *broker.StreamCapabilities) { c.Headers = false },
		send: eachOnce(func(s *mutantStream, ctx context.Context, r broker.Record) (broker.Receipt, error) {
			r.Headers = nil
			return s.Stream.Publish(ctx, r)
		}),
		options: func(o *broker.StreamOptions) { o.Require = broker.StreamCapabilities{Durable: o.Require.Headers} },
	}},
	{"records of a partition are handed out backwards", "PartitionOrder", streamMutation{receive: func(m *mutantMember, ctx context.Context, max int) ([]*broker.Record, error) {
		rs, err := m.GroupConsumer.Receive(ctx, max)
		slices.Reverse(rs)
		return rs, err
	}}},
	{"Read goes through partitions backwards", "PartitionOrder", streamMutation{read: func(s *mutantStream, ctx context.Context, r broker.Range) iter.Seq2[*broker.Record, error] {
		return collected(s.Stream.Read(ctx, r), slices.Reverse[[]*broker.Record])
	}}},
	{"a replay begins in the wrong place", "FromEarliest", streamMutation{join: func(_ *mutantStream, group string, o *broker.GroupOptions) string {
		if o.Start.Kind() == broker.PositionEarliest {
			o.Start = broker.AtOffset(broker.NewOffset(1))
		}
		return group
	}}},
	{"Latest begins at the earliest", "FromLatest", streamMutation{join: func(_ *mutantStream, group string, o *broker.GroupOptions) string {
		o.Start = broker.Earliest()
		return group
	}}},
	{"Seek is ignored", "SeekOffset", streamMutation{seek: func(*mutantMember, context.Context, int32, broker.Position) error { return nil }}},
	{"Seek leaves what was fetched before", "SeekOffset", streamMutation{receive: prefetch, seek: func(m *mutantMember, ctx context.Context, p int32, to broker.Position) error {
		return m.GroupConsumer.Seek(ctx, p, to)
	}}},
	{"Seek moves every group", "SeekIsolation", streamMutation{seek: func(m *mutantMember, ctx context.Context, p int32, to broker.Position) error {
		m.s.b.w.mu.Lock()
		all := slices.Clone(m.s.b.w.all)
		m.s.b.w.mu.Unlock()
		for _, o := range all {
			if o != m {
				_ = o.GroupConsumer.Seek(ctx, p, to)
			}
		}
		return m.GroupConsumer.Seek(ctx, p, to)
	}}},
	{"a seek by time is off by one", "SeekTime", streamMutation{seek: func(m *mutantMember, ctx context.Context, p int32, to broker.Position) error {
		if to.Kind() == broker.PositionTime {
			to = broker.AtTime(to.Time().Add(time.Millisecond))
		}
		return m.GroupConsumer.Seek(ctx, p, to)
	}}},
	{"Read does not end", "ReplayIdentical", streamMutation{read: endless}},
	{"Read includes its end", "ReplayIdentical", streamMutation{read: func(s *mutantStream, ctx context.Context, r broker.Range) iter.Seq2[*broker.Record, error] {
		if r.Until.Kind() == broker.PositionOffset {
			n, _ := r.Until.Offset().Int64()
			r.Until = broker.AtOffset(broker.NewOffset(n + 1))
		}
		return s.Stream.Read(ctx, r)
	}}},
	{"what is out of range starts at the earliest", "OffsetOutOfRange", streamMutation{seek: func(m *mutantMember, ctx context.Context, p int32, to broker.Position) error {
		err := m.GroupConsumer.Seek(ctx, p, to)
		if errors.Is(err, broker.ErrOutOfRange) {
			return m.GroupConsumer.Seek(ctx, p, broker.Earliest())
		}
		return err
	}}},

	// Commits.
	{"Commit does nothing", "ResumeCommitted", streamMutation{commit: func(*mutantMember, context.Context, []*broker.Record) error { return nil }}},
	{"Commit skips a record", "CommitBounds", streamMutation{commit: func(m *mutantMember, ctx context.Context, rs []*broker.Record) error {
		return m.GroupConsumer.Commit(ctx, moved(rs, 1)...)
	}}},
	{"Commit stores the record instead of the place behind it", "CommitBounds", streamMutation{commit: func(m *mutantMember, ctx context.Context, rs []*broker.Record) error {
		return m.GroupConsumer.Commit(ctx, moved(rs, -1)...)
	}}},
	{"Commit stores for the last record only", "CommitBounds", streamMutation{commit: func(m *mutantMember, ctx context.Context, rs []*broker.Record) error {
		return m.GroupConsumer.Commit(ctx, rs[max(0, len(rs)-1):]...)
	}}},
	{"Receive commits", "CommitBounds", streamMutation{receive: func(m *mutantMember, ctx context.Context, max int) ([]*broker.Record, error) {
		rs, err := m.GroupConsumer.Receive(ctx, max)
		if err == nil {
			err = m.GroupConsumer.Commit(ctx, rs...)
		}
		return rs, err
	}}},
	{"groups share their offsets", "FanOut", streamMutation{join: func(*mutantStream, string, *broker.GroupOptions) string { return "one for all" }}},

	// Groups.
	{"every member gets everything", "SingleOwner", streamMutation{join: func(s *mutantStream, group string, o *broker.GroupOptions) string {
		if o.OnAssigned == nil {
			return group
		}
		return group + itoa(s.b.w.count())
	}}},
	{"what is revoked is handed out further", "JoinLeave", streamMutation{receive: keepReading}},
	{"OnRevoked comes too late", "RevokeBeforeAssign", streamMutation{join: func(s *mutantStream, group string, o *broker.GroupOptions) string {
		if f := o.OnRevoked; f != nil {
			o.OnRevoked = func(ctx context.Context, ps []int32) {
				go func() {
					select {
					case <-time.After(time.Millisecond): // virtual
						f(context.WithoutCancel(ctx), ps)
					case <-s.b.w.end:
					}
				}()
			}
		}
		return group
	}}},
	{"OnAssigned comes too late", "JoinLeave", streamMutation{join: func(s *mutantStream, group string, o *broker.GroupOptions) string {
		if f := o.OnAssigned; f != nil {
			o.OnAssigned = func(ps []int32) {
				go func() {
					select {
					case <-time.After(time.Millisecond): // virtual
						f(ps)
					case <-s.b.w.end:
					}
				}()
			}
		}
		return group
	}}},
	{"a hand-over skips a record", "RebalanceStorm", streamMutation{receive: skipFirst}},
	{"a member that leaves keeps its partitions", "IdleMember", streamMutation{leave: func(*mutantMember) error { return nil }}},
	{"a zombie's commit is accepted", "ZombieFenced", streamMutation{commit: func(m *mutantMember, ctx context.Context, rs []*broker.Record) error {
		if err := m.GroupConsumer.Commit(ctx, rs...); !errors.Is(err, broker.ErrFenced) {
			return err
		}
		return nil
	}}},
	{"added partitions are not there", "PartitionGrowth", streamMutation{declare: func(b *mutantStreams, ctx context.Context, name string, cfg *broker.StreamConfig) bool {
		s, err := b.Broker.Stream(ctx, name, nil)
		if err != nil {
			return false
		}
		_ = s.Close()
		return true
	}}},
	{"Pause is ignored", "PrefetchBound", streamMutation{noPause: true}},
	{"a pause outlasts the assignment", "PrefetchBound", streamMutation{pauses: true}},
	{"Receive returns more than max", "PrefetchBound", streamMutation{receive: func(m *mutantMember, ctx context.Context, max int) ([]*broker.Record, error) {
		if max > 0 {
			max++
		}
		return m.GroupConsumer.Receive(ctx, max)
	}}},
	{"a slow member stalls the others", "SlowConsumer", streamMutation{receive: func(m *mutantMember, ctx context.Context, max int) ([]*broker.Record, error) {
		if m.s.b.w.count() < 3 {
			return m.GroupConsumer.Receive(ctx, max)
		}
		<-ctx.Done()
		return nil, ctx.Err()
	}}},

	// Retention.
	{"retention comes early", "RetentionExpires", streamMutation{declare: func(_ *mutantStreams, _ context.Context, _ string, cfg *broker.StreamConfig) bool {
		cfg.Retention /= 2
		return false
	}}},
	{"retention never comes", "RetentionExpires", streamMutation{declare: func(_ *mutantStreams, _ context.Context, _ string, cfg *broker.StreamConfig) bool {
		cfg.Retention = 0
		return false
	}}},
	{"retention renumbers", "RetentionKeepsOffsets", streamMutation{record: func(s *mutantStream, rec *broker.Record) {
		ps, err := s.Stream.Partitions(context.Background())
		if err == nil {
			first, _ := ps[rec.Partition].First.Int64()
			n, _ := rec.Offset().Int64()
			rec.Bind(broker.NewOffset(n-first), rec.Assignment())
		}
	}}},
	{"compaction keeps the oldest", "CompactionKeepsLatest", streamMutation{read: func(s *mutantStream, ctx context.Context, r broker.Range) iter.Seq2[*broker.Record, error] {
		return collected(s.Stream.Read(ctx, r), keepOldest(s))
	}, declare: func(_ *mutantStreams, _ context.Context, _ string, cfg *broker.StreamConfig) bool {
		cfg.Compact = false
		return false
	}}},
	{"compaction does nothing", "CompactionKeepsLatest", streamMutation{declare: func(_ *mutantStreams, _ context.Context, _ string, cfg *broker.StreamConfig) bool {
		cfg.Compact = false
		return false
	}}},
	{"a tombstone is an empty value", "Tombstone", streamMutation{record: func(_ *mutantStream, rec *broker.Record) { rec.Tombstone = false }}},
	{"an empty value is a tombstone", "Tombstone", streamMutation{record: func(_ *mutantStream, rec *broker.Record) { rec.Tombstone = len(rec.Value) == 0 }}},

	// Transactions.
	{"aborted records are visible", "AbortInvisible", streamMutation{join: uncommitted, read: readUncommitted}},
	{"Rollback commits", "AbortInvisible", streamMutation{txEnd: func(tx *mutantTx, ctx context.Context, _ bool) error { return tx.Tx.Commit(ctx) }}},
	{"a transaction is torn", "AtomicVisibility", streamMutation{txSend: func(tx *mutantTx, ctx context.Context, s broker.Stream, rs []broker.Record) error {
		if tx.n++; tx.n%3 == 0 { // a part goes without it
			_, err := s.(*mutantStream).Stream.PublishBatch(ctx, rs)
			return err
		}
		return tx.Tx.Publish(ctx, s, rs...)
	}}},
	{"a part of a transaction is lost", "AtomicVisibility", streamMutation{txSend: func(tx *mutantTx, ctx context.Context, s broker.Stream, rs []broker.Record) error {
		if tx.n++; tx.n == 6 {
			rs = rs[1:]
		}
		return tx.Tx.Publish(ctx, s, rs...)
	}}},
	{"Read shows open transactions", "NoOwnUncommittedRead", streamMutation{read: readUncommitted}},
	{"offsets are committed outside the transaction", "ConsumeTransformProduce", streamMutation{txCommit: func(_ *mutantTx, ctx context.Context, m *mutantMember, rs []*broker.Record) error {
		return m.GroupConsumer.Commit(ctx, rs...)
	}}},
	{"offsets of a transaction are dropped", "ConsumeTransformProduce", streamMutation{txCommit: func(*mutantTx, context.Context, *mutantMember, []*broker.Record) error { return nil }}},
	{"a transactional id fences nobody", "ProducerFenced", streamMutation{id: func(string) string { return broker.NewID() }}},

	// Life cycle and bad input.
	{"Receive ignores its context", "ContextCancel", streamMutation{ctx: context.WithoutCancel}},
	{"Receive takes with an ended context", "ContextCancel", streamMutation{receive: func(m *mutantMember, ctx context.Context, max int) ([]*broker.Record, error) {
		if ctx.Err() != nil { // takes, and drops
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Millisecond)
			defer cancel()
			_, _ = m.GroupConsumer.Receive(ctx, max)
			return nil, context.Canceled
		}
		return m.GroupConsumer.Receive(ctx, max)
	}}},
	{"a closed stream can be used", "UseAfterClose", streamMutation{closed: func(*mutantStream) error { return nil }}},
	{"closing twice is an error", "CloseTwice", streamMutation{closed: func(s *mutantStream) error {
		if s.b.w.count() > 1 {
			return broker.ErrClosed
		}
		return s.Stream.Close()
	}}},
	{"Close hangs while records are unread", "CloseWithUnread", streamMutation{leave: func(m *mutantMember) error {
		lags, _ := m.s.Stream.Lag(context.Background(), m.group)
		for _, l := range lags {
			if l.Lag > 0 {
				select {
				case <-m.s.b.w.end:
				case <-time.After(time.Minute): // virtual
				}
			}
		}
		return m.GroupConsumer.Close()
	}}},
	{"a member leaves a goroutine behind", "NoLeaks", streamMutation{join: func(s *mutantStream, group string, _ *broker.GroupOptions) string {
		go func() { <-s.b.w.end }()
		return group
	}}},
	{"missing streams are made", "BadName", streamMutation{open: func(b *mutantStreams, ctx context.Context, name string, err error) (*memory.Stream, error) {
		if !errors.Is(err, broker.ErrNotFound) {
			return nil, err
		}
		if err = b.Broker.DeclareStream(ctx, name, broker.StreamConfig{}); err != nil {
			return nil, err
		}
		s, err := b.Broker.Stream(ctx, name, nil)
		if err != nil {
			return nil, err
		}
		return s.(*memory.Stream), nil
	}}},
	{"an option that is not claimed is ignored", "UnsupportedRefused", streamMutation{profile: memory.KafkaTopic, options: func(o *broker.StreamOptions) { o.Producer = "" }}},
}

// eachOnce does to every record of a batch what one does.
func eachOnce(one func(s *mutantStream, ctx context.Context, r broker.Record) (broker.Receipt, error)) func(*mutantStream, context.Context, []broker.Record) ([]broker.Receipt, error) {
	return func(s *mutantStream, ctx context.Context, rs []broker.Record) ([]broker.Receipt, error) {
		out, errs := make([]broker.Receipt, len(rs)), make([]error, len(rs))
		for i := range rs {
			out[i], errs[i] = one(s, ctx, rs[i])
		}
		return out, broker.NewBatchError(errs)
	}
}

// dropNth answers for the nth record and does not store it.
func dropNth(n int) func(*mutantStream, context.Context, []broker.Record) ([]broker.Receipt, error) {
	return eachOnce(func(s *mutantStream, ctx context.Context, r broker.Record) (broker.Receipt, error) {
		if s.b.w.count() != n {
			return s.Stream.Publish(ctx, r)
		}
		return broker.Receipt{Offset: broker.NewOffset(1 << 40)}, ctx.Err()
	})
}

// sharedValues stands for a reader's buffer that is used again.
var sharedValues = map[int][]byte{}

// shared returns a slice that others hold too.
func shared(v []byte) []byte {
	if len(v) != 256 {
		return v
	}
	if sharedValues[len(v)] == nil {
		sharedValues[len(v)] = v
	}
	return sharedValues[len(v)]
}

// collected hands out what inner yields after change has been over it.
func collected(inner iter.Seq2[*broker.Record, error], change func([]*broker.Record)) iter.Seq2[*broker.Record, error] {
	return func(yield func(*broker.Record, error) bool) {
		var all []*broker.Record
		for rec, err := range inner {
			if err != nil {
				yield(nil, err)
				return
			}
			all = append(all, rec)
		}
		change(all)
		for _, rec := range all {
			if rec != nil && !yield(rec, nil) {
				return
			}
		}
	}
}

// keepOldest drops all but the first record of each key.
func keepOldest(s *mutantStream) func([]*broker.Record) {
	return func(all []*broker.Record) {
		seen := map[string]bool{}
		for i, rec := range all {
			if key := string(rec.Key); seen[key] && key != "filler" {
				all[i] = nil
			} else {
				seen[key] = true
			}
		}
	}
}

// endless reads on and on, until its context ends.
func endless(s *mutantStream, ctx context.Context, r broker.Range) iter.Seq2[*broker.Record, error] {
	return func(yield func(*broker.Record, error) bool) {
		for rec, err := range s.Stream.Read(ctx, r) {
			if !yield(rec, err) || err != nil {
				return
			}
		}
		<-ctx.Done()
		yield(nil, &broker.Error{Op: "read", Err: ctx.Err()})
	}
}

func uncommitted(_ *mutantStream, group string, o *broker.GroupOptions) string {
	o.ReadCommitted = false
	return group
}

func readUncommitted(s *mutantStream, ctx context.Context, r broker.Range) iter.Seq2[*broker.Record, error] {
	r.ReadCommitted = false
	return s.Stream.Read(ctx, r)
}

// moved returns copies of records with offsets that are off by by.
func moved(rs []*broker.Record, by int64) []*broker.Record {
	out := make([]*broker.Record, 0, len(rs))
	for _, rec := range rs {
		c := *rec
		n, _ := rec.Offset().Int64()
		if n+by < 0 {
			continue
		}
		c.Bind(broker.NewOffset(n+by), rec.Assignment())
		out = append(out, &c)
	}
	return out
}

// prefetch keeps what it has fetched, whatever happens meanwhile.
func prefetch(m *mutantMember, ctx context.Context, max int) ([]*broker.Record, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.stash) == 0 {
		rs, err := m.GroupConsumer.Receive(ctx, max+1)
		if err != nil {
			return nil, err
		}
		m.stash = rs
	}
	n := min(max, len(m.stash))
	out := m.stash[:n:n]
	m.stash = m.stash[n:]
	return out, nil
}

// skipFirst drops the first record of each assignment but the first of its partition.
func skipFirst(m *mutantMember, ctx context.Context, max int) ([]*broker.Record, error) {
	for {
		rs, err := m.GroupConsumer.Receive(ctx, max)
		w := m.s.b.w
		w.mu.Lock()
		rs = slices.DeleteFunc(rs, func(r *broker.Record) bool {
			key := fmt.Sprintf("%s %d", m.group, r.Partition)
			before, seen := w.kept[key]
			w.kept[key] = fmt.Sprintf("%p", r.Assignment())
			return seen && before != w.kept[key]
		})
		w.mu.Unlock()
		if err != nil || len(rs) > 0 {
			return rs, err
		}
	}
}

// keepReading hands out, beside its own, what was taken from the member.
func keepReading(m *mutantMember, ctx context.Context, max int) ([]*broker.Record, error) {
	for {
		wait, cancel := context.WithTimeout(ctx, time.Millisecond)
		rs, err := m.GroupConsumer.Receive(wait, max)
		ended := wait.Err() != nil
		cancel()
		if err == nil || !ended || ctx.Err() != nil {
			return rs, err
		}
		m.mu.Lock()
		for p, from := range m.taken {
			for rec, err := range m.s.Stream.Read(ctx, broker.Range{From: from, Partitions: []int32{p}}) {
				if err != nil || len(rs) == max {
					break
				}
				rs = append(rs, rec)
				n, _ := rec.Offset().Int64()
				m.taken[p] = broker.AtOffset(broker.NewOffset(n + 1))
			}
		}
		m.mu.Unlock()
		if len(rs) > 0 {
			return rs, nil
		}
	}
}
