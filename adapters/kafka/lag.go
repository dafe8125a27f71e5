package kafka

import (
	"context"

	"github.com/queuestream/broker"
)

// Lag does what broker.Stream promises. Between a commit and the end lie also
// transaction markers, aborted records and what compaction has removed. Lag
// fetches up to 1 MiB behind each commit and counts only records there; what
// lies beyond counts by its offsets. So a group that is nearly up to date
// gets the exact number, and any other an upper bound.
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
		if l.Lag > 0 {
			spans = append(spans, &span{p, from, next[p]})
		}
		out = append(out, l)
	}
	return out, s.countRecords(ctx, out, spans, committedOnly)
}

// countRecords replaces distances by numbers of records, as far as one fetch shows.
func (s *Stream) countRecords(ctx context.Context, lags []broker.PartitionLag, spans []*span, committed bool) error {
	if len(spans) == 0 {
		return nil
	}
	f := &fetcher{s: s, committed: committed}
	records, err := f.round(ctx, spans)
	if err != nil {
		if ce := broker.ContextError(ctx); ce != nil {
			return ce
		}
		if !passing(err) && !isOutOfRange(err) {
			return err
		}
	}
	for _, sp := range spans {
		n := max(0, sp.until-sp.next)
		for _, r := range records {
			if r.Partition == sp.partition {
				n++
			}
		}
		for i := range lags {
			if lags[i].Partition == sp.partition {
				lags[i].Lag = n
			}
		}
	}
	return nil
}
