package kafka

import (
	"context"
	"slices"

	"github.com/queuestream/broker"
)

// lagBytes bounds what one call of Lag fetches, give or take one fetch.
const lagBytes = 16 << 20

// Lag does what broker.Stream promises. Between a commit and the end lie also
// transaction markers, aborted records and what compaction has removed, and
// Kafka knows no number but offsets. So Lag fetches what lies behind the
// commits, up to 16 MiB in all, and counts its records; what lies beyond
// counts by its offsets. Exact tells of each partition whether it was counted
// to its end: a group that is nearly up to date always is.
func (s *Stream) Lag(ctx context.Context, group string) ([]broker.PartitionLag, error) {
	out, err := s.lag(ctx, group)
	return out, fail("lag", s.topic.name, err)
}

func (s *Stream) lag(ctx context.Context, group string) ([]broker.PartitionLag, error) {
	if err := s.usable(); err != nil {
		return nil, err
	}
	if err := validateGroup(group); err != nil {
		return nil, err
	}
	// Commits are read first: the end may only be later than they are.
	commits, err := s.storedOffsets(ctx, group)
	if err != nil {
		return nil, err
	}
	committedOnly := false
	for _, c := range commits {
		committedOnly = committedOnly || c.committed
	}
	first, next, err := s.bounds(ctx, committedOnly)
	if err != nil {
		return nil, err
	}
	out := make([]broker.PartitionLag, 0, len(next))
	var spans []*span
	for _, p := range sorted(next) {
		l := broker.PartitionLag{Partition: p, Next: broker.NewOffset(next[p])}
		from := first[p]
		if c, ok := commits[p]; ok {
			l.Committed, l.HasCommit = broker.NewOffset(c.offset), true
			from = max(from, c.offset)
		}
		l.Lag = max(0, next[p]-from)
		if l.Exact = l.Lag == 0; !l.Exact {
			spans = append(spans, &span{p, from, next[p]})
		}
		out = append(out, l)
	}
	return out, s.countRecords(ctx, out, spans, committedOnly)
}

// countRecords replaces distances by numbers of records, as far as lagBytes go.
func (s *Stream) countRecords(ctx context.Context, lags []broker.PartitionLag, spans []*span, committed bool) error {
	f := &fetcher{s: s, committed: committed}
	counts := map[int32]int64{}
	left := slices.Clone(spans)
	for moves := true; moves && len(left) > 0 && f.bytes.Load() < lagBytes; {
		before := distance(left)
		records, err := f.round(ctx, left)
		if ce := broker.ContextError(ctx); ce != nil {
			return ce
		}
		if err != nil && !passing(err) && !isOutOfRange(err) {
			return err
		}
		for _, r := range records {
			counts[r.Partition]++
		}
		moves = err == nil && distance(left) < before
		left = slices.DeleteFunc(left, func(s *span) bool { return s.next >= s.until })
	}
	for _, sp := range spans {
		i := slices.IndexFunc(lags, func(l broker.PartitionLag) bool { return l.Partition == sp.partition })
		beyond := max(0, sp.until-sp.next)
		lags[i].Lag, lags[i].Exact = counts[sp.partition]+beyond, beyond == 0
	}
	return nil
}

// distance returns the sum of the offsets that are left of spans.
func distance(spans []*span) (n int64) {
	for _, s := range spans {
		n += max(0, s.until-s.next)
	}
	return n
}
