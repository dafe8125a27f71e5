package memory

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/queuestream/broker"
	"pgregory.net/rapid"
)

// transact does something with one of two transactional ids.
func (r *streamRun) transact(ctx context.Context, s streamStep, m *memberSpec) error {
	i := s.C % 2
	tx := r.open[i]
	switch {
	case s.Op == "take over":
		return r.takeOver(ctx, i)
	case s.Op == "begin":
		if tx != nil {
			_, err := r.holders[i].Begin(ctx)
			return wantThat(err, broker.ErrConflict)
		}
		b, err := r.holders[i].Begin(ctx)
		tx = &txSpec{tx: b, deadline: time.Now().Add(time.Minute)}
		r.open[i], r.txs = tx, append(r.txs, tx)
		return err
	case tx == nil:
		return nil
	}
	aborted := error(nil) // what every call but Rollback gets once the time is over
	if tx.state == txAborted {
		aborted = broker.ErrTxAborted
	}
	switch s.Op {
	case "publish in":
		return r.publishIn(ctx, tx, s, aborted)
	case "offsets in":
		if m == nil {
			return nil
		}
		taken := slices.Clone(m.taken[max(0, len(m.taken)-1-s.B%5):])
		err := tx.tx.CommitOffsets(ctx, m.c, recordsOf(taken)...)
		if aborted != nil {
			return wantThat(err, aborted)
		}
		var want error
		if !m.allValid(taken) {
			taken, want = nil, broker.ErrFenced
		}
		tx.offsets = append(tx.offsets, offsetsSpec{m, taken})
		return wantThat(err, want)
	case "end":
		return r.commitTx(ctx, i, aborted)
	case "roll back":
		r.open[i] = nil
		r.end(tx, txAborted)
		tx.rewind()
		return tx.tx.Rollback(ctx)
	}
	return nil
}

// takeOver makes a new holder of an id: the transaction that is open aborts,
// and the old holder is fenced.
func (r *streamRun) takeOver(ctx context.Context, i int) error {
	old, tx := r.holders[i], r.open[i]
	t, err := r.b.transactor(ctx, fmt.Sprintf("x%d", i))
	if err != nil {
		return err
	}
	r.holders[i], r.open[i] = t, nil
	if tx != nil {
		r.end(tx, txAborted)
		tx.rewind()
		if err := wantThat(tx.tx.Commit(ctx), broker.ErrFenced); err != nil {
			return err
		}
	}
	if old == nil {
		return nil
	}
	_, err = old.Begin(ctx)
	return errors.Join(wantThat(err, broker.ErrFenced), old.Close())
}

func (r *streamRun) publishIn(ctx context.Context, tx *txSpec, s streamStep, aborted error) error {
	rs := make([]broker.Record, 1+s.B%3)
	for i := range rs {
		rs[i] = r.record(s, i)
		rs[i].Pin, rs[i].Partition = true, int32((s.A+i)%len(r.parts)) // no receipt tells where it went
	}
	err := tx.tx.Publish(ctx, r.s, rs...)
	if aborted != nil {
		return wantThat(err, aborted)
	}
	if err != nil {
		return err
	}
	for i := range rs {
		if err := r.stored(&rs[i], rs[i].Partition, tx); err != nil {
			return err
		}
	}
	return nil
}

func (r *streamRun) commitTx(ctx context.Context, i int, aborted error) error {
	tx := r.open[i]
	r.open[i] = nil
	err := tx.tx.Commit(ctx)
	if aborted == nil && slices.ContainsFunc(tx.offsets, func(o offsetsSpec) bool {
		return !o.m.allValid(o.taken) || !slices.Contains(o.m.g.members, o.m)
	}) {
		aborted = broker.ErrTxAborted
	}
	if aborted != nil {
		r.end(tx, txAborted)
		tx.rewind()
		return wantThat(err, aborted)
	}
	r.end(tx, txCommitted)
	for _, o := range tx.offsets {
		o.m.commit(o.taken)
	}
	tx.rewind()
	if err != nil {
		return err
	}
	return wantThat(tx.tx.Rollback(ctx), broker.ErrClosed)
}

// compare looks at everything that the stream tells of itself.
func (r *streamRun) compare(ctx context.Context, all bool) error {
	r.sync()
	parts, err := r.s.Partitions(ctx)
	if err != nil {
		return err
	}
	for i, p := range r.parts {
		first, _ := parts[i].First.Int64()
		next, _ := parts[i].Next.Int64()
		if first != p.first || next != p.next {
			return fmt.Errorf("partition %d goes from %d to %d, want %d to %d", i, first, next, p.first, p.next)
		}
		if !all {
			continue
		}
		for n := range 2 {
			if err := r.read(ctx, streamStep{A: i, C: 1_000_000 + n}); err != nil {
				return err
			}
		}
	}
	for _, g := range r.groups {
		lags, err := r.s.Lag(ctx, g.name)
		if err != nil {
			return err
		}
		for i, p := range r.parts {
			committed, has, next, lag := g.lag(p)
			gotCommitted, _ := lags[i].Committed.Int64()
			gotNext, _ := lags[i].Next.Int64()
			if l := lags[i]; l.HasCommit != has || has && gotCommitted != committed || gotNext != next || l.Lag != lag {
				return fmt.Errorf("lag of %s: %+v, want committed %d (%v), next %d, lag %d", g.name, l, committed, has, next, lag)
			}
		}
		for _, m := range g.members {
			var want []int32
			for _, p := range r.parts {
				if h := g.holds[p.id]; h != nil && h.m == m {
					want = append(want, p.id)
				}
			}
			if got := m.c.Partitions(); !slices.Equal(got, want) {
				return fmt.Errorf("a member of %s has partitions %v, want %v", g.name, got, want)
			}
		}
	}
	return nil
}

// Programs on streams that once failed, shrunk.
var streamRegressions = []struct {
	name    string
	profile Profile
	config  int
	steps   []streamStep
}{}

func TestStreamRegressions(t *testing.T) {
	for _, r := range streamRegressions {
		t.Run(r.name, func(t *testing.T) {
			if err := runStreamProgram(t, r.profile, r.config, r.steps); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestStreamModel runs its programs on all the profiles that have streams.
func TestStreamModel(t *testing.T) {
	gen := rapid.Custom(func(t *rapid.T) streamStep {
		n := rapid.IntRange(0, 119)
		return streamStep{rapid.SampledFrom(streamOps).Draw(t, "op"), n.Draw(t, "a"), n.Draw(t, "b"), n.Draw(t, "c")}
	})
	rapid.Check(t, func(rt *rapid.T) {
		profile := rapid.SampledFrom([]Profile{Default, RabbitMQQuorum, KafkaTopic}).Draw(rt, "profile")
		config := rapid.IntRange(0, len(streamConfigs)-1).Draw(rt, "config")
		steps := rapid.SliceOfN(gen, rapid.SampledFrom([]int{0, 20, 60}).Draw(rt, "least"), 80).Draw(rt, "steps")
		if err := runStreamProgram(t, profile, config, steps); err != nil {
			rt.Fatal(err)
		}
	})
}
