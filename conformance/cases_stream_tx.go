package conformance

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/queuestream/broker"
)

var streamTransactions = map[int]StreamCase{
	63: {Needs: transactions, Config: partitions(2), Run: streamAbortInvisible, Refuse: streamTransactionsRefused},
	64: {Needs: transactions, Config: partitions(3), Run: streamAtomicVisibility, Refuse: streamTransactionsRefused},
	65: {Needs: transactions, Config: partitions(2), Run: streamNoOwnUncommittedRead, Refuse: streamTransactionsRefused},
	66: {Needs: transactions, Config: partitions(3), Run: streamConsumeTransformProduce, Refuse: streamTransactionsRefused},
	67: {Needs: transactions, Config: partitions(2), Run: streamProducerFenced, Refuse: streamTransactionsRefused},
}

var transactions = broker.StreamCapabilities{Transactions: true}

func streamTransactionsRefused(c *C, s broker.Stream) {
	ctx, cancel := c.Soon()
	defer cancel()
	m, err := s.Consumer(ctx, c.Name("group"), &broker.GroupOptions{ReadCommitted: true})
	c.WantErr(err, broker.ErrUnsupported, "join a group with ReadCommitted")
	if err == nil {
		c.track("member", m.Close)
	}
	read := false
	for _, err := range s.Read(ctx, broker.Range{ReadCommitted: true}) {
		read = true
		c.WantErr(err, broker.ErrUnsupported, "Read with ReadCommitted")
		break
	}
	if !read {
		c.Errorf("Read with ReadCommitted yields nothing, want %q", broker.ErrUnsupported)
	}
	if t, ok := broker.As[broker.Transactional](c.Broker()); ok {
		got, err := t.Transactor(ctx, c.Name("id"))
		if err == nil {
			c.track("transactor", got.Close)
			var tx broker.Tx // the broker has transactions, this stream has not
			if tx, err = got.Begin(ctx); err == nil {
				err = tx.Publish(ctx, s, broker.Record{Value: []byte("never")})
				c.Must(tx.Rollback(ctx), "roll back")
			}
		}
		c.WantErr(err, broker.ErrUnsupported, "publish to the stream in a transaction")
	}
}

// A streamTx is a transaction that is written into the history.
type streamTx struct {
	r    *streamRun
	id   string // unique in the case
	who  string
	tx   broker.Tx
	sent []string
}

func (r *streamRun) transactorOf(b broker.Broker, id string) broker.Transactor {
	t, ok := broker.As[broker.Transactional](b)
	if !ok {
		r.Fatalf("the stream claims Transactions, and its broker is not Transactional")
	}
	ctx, cancel := r.Soon()
	defer cancel()
	tr, err := t.Transactor(ctx, id)
	r.Must(err, "open the transactor %q", id)
	r.track("transactor", func() error {
		if err := tr.Close(); !errors.Is(err, broker.ErrFenced) {
			return err
		}
		return nil
	})
	return tr
}

func (r *streamRun) tryBegin(tr broker.Transactor, who string) (*streamTx, error) {
	ctx, cancel := r.Soon()
	defer cancel()
	tx, err := tr.Begin(ctx)
	return &streamTx{r: r, id: r.value("tx"), who: who, tx: tx}, err
}

func (r *streamRun) begin(tr broker.Transactor, who string) *streamTx {
	tx, err := r.tryBegin(tr, who)
	r.Must(err, "begin a transaction")
	return tx
}

func (t *streamTx) trySend(s broker.Stream, rs ...broker.Record) error {
	ctx, cancel := t.r.Soon()
	defer cancel()
	e := t.r.hist.Begin(StreamEvent{Op: StreamSend, Who: t.who, Tx: t.id, Entries: sentEntries(rs)})
	err := t.tx.Publish(ctx, s, rs...)
	t.r.hist.End(e, outcomeOf(err), nil)
	t.sent = append(t.sent, sentValues(rs)...)
	return err
}

func (t *streamTx) send(rs ...broker.Record) {
	t.r.Must(t.trySend(t.r.stream, rs...), "publish %d records in a transaction", len(rs))
}

// tryEnd commits, or rolls back. An error that names neither an abort nor a
// fence leaves the outcome open.
func (t *streamTx) tryEnd(rollback bool) error {
	ctx, cancel := t.r.Soon()
	defer cancel()
	e := t.r.hist.Begin(StreamEvent{Op: StreamTxEnd, Who: t.who, Tx: t.id, Rollback: rollback})
	end := t.tx.Commit
	if rollback {
		end = t.tx.Rollback
	}
	err := end(ctx)
	o := OutcomeInfo
	switch {
	case err == nil:
		o = OutcomeOK
	case errors.Is(err, broker.ErrTxAborted), errors.Is(err, broker.ErrFenced):
		o = OutcomeFail
	}
	t.r.hist.End(e, o, nil)
	return err
}

func (t *streamTx) commit()   { t.r.Must(t.tryEnd(false), "commit the transaction") }
func (t *streamTx) rollback() { t.r.Must(t.tryEnd(true), "roll the transaction back") }

var readCommitted = broker.GroupOptions{ReadCommitted: true}

func streamAbortInvisible(c *C, s broker.Stream) {
	r := newStreamRun(c, s)
	tr := r.transactorOf(c.Broker(), c.Name("id"))
	m := r.join(c.Name("group"), readCommitted, nil)
	var want []string
	for i := range 6 {
		for p := range int32(2) {
			rs := r.pinned("plain", 2, p)
			r.send("plain", rs...)
			want = append(want, sentValues(rs)...)
		}
		tx := r.begin(tr, "writer")
		zero, one := r.pinned("tx", 3, 0), r.pinned("tx", 2, 1)
		tx.send(zero...)
		tx.send(one...)
		if i%2 == 0 {
			tx.rollback()
			if err := tx.tx.Commit(c.Context()); err == nil {
				c.Errorf("Commit after Rollback: nil")
			}
			continue
		}
		tx.commit()
		want = append(want, tx.sent...)
	}
	r.sameSet(valuesOf(m.collect(len(want))), want, "what a member with ReadCommitted got")
	m.nothing("the rest was rolled back")

	// A transactor that is closed takes its open transaction with it.
	tx := r.begin(tr, "writer")
	tx.send(r.pinned("left", 2, 0)...)
	e := r.hist.Begin(StreamEvent{Op: StreamTxEnd, Who: "writer", Tx: tx.id, Rollback: true})
	c.Must(tr.Close(), "close the transactor with an open transaction")
	tr = r.transactorOf(c.Broker(), c.Name("id"))
	last := r.begin(tr, "later")
	last.send(r.pinned("last", 2, 1)...)
	last.commit()
	r.hist.End(e, OutcomeOK, nil)
	want = append(want, last.sent...)
	r.sameSet(valuesOf(m.collect(2)), last.sent, "after a transaction that was left open")
	r.sameSet(valuesOf(r.judge()), want, "what Read with ReadCommitted got")
}

func streamAtomicVisibility(c *C, s broker.Stream) {
	r := newStreamRun(c, s)
	tr := r.transactorOf(c.Broker(), c.Name("id"))
	ctx, stop := context.WithCancel(c.Context())
	defer stop()
	stopped := make(chan struct{})
	var reads atomic.Int64
	c.Go(func() {
		defer close(stopped)
		for ctx.Err() == nil {
			whole := map[string]int{} // how much of a transaction one Read shows, by transaction and partition
			for _, rec := range r.readAll() {
				tx, _, _ := strings.Cut(string(rec.Key), "/")
				whole[fmt.Sprintf("%s in partition %d", tx, rec.Partition)]++
			}
			for where, n := range whole {
				if n != 4 {
					c.Errorf("one Read shows %d of 4 records of transaction %s", n, where)
				}
			}
			reads.Add(1)
			c.pass(time.Millisecond)
		}
	})
	m := r.join(c.Name("group"), readCommitted, nil)
	var got tally
	endWork := m.work(c.Context(), func(rs []*broker.Record) { got.add(rs...) })
	var want []string
	for i := range 10 {
		tx := r.begin(tr, "writer")
		for p := range int32(3) {
			rs := r.pinned("atomic", 4, p)
			for j := range rs {
				rs[j].Key = fmt.Appendf(nil, "%s/%d", tx.id, j)
			}
			tx.send(rs[:2]...)
			tx.send(rs[2:]...)
		}
		seen := reads.Load()
		c.Until(c.Harness().Quiet, func() bool { return reads.Load() > seen }) // a Read over the open transaction
		if n := len(got.missing(tx.sent)); n != len(tx.sent) {
			c.Errorf("a member with ReadCommitted got %d records of an open transaction", len(tx.sent)-n)
		}
		if i%3 == 2 {
			tx.rollback()
			continue
		}
		tx.commit()
		want = append(want, tx.sent...)
		r.complete("a committed transaction", &got, tx.sent)
	}
	stop()
	<-stopped
	endWork()
	r.sameSet(valuesOf(r.judge()), want, "what was committed")
}

func streamNoOwnUncommittedRead(c *C, s broker.Stream) {
	r := newStreamRun(c, s)
	tr := r.transactorOf(c.Broker(), c.Name("id"))
	m := r.join(c.Name("group"), readCommitted, nil)
	before := r.make("before", 4, 4)
	r.send("writer", before...)
	m.collect(4)
	tx := r.begin(tr, m.name) // the member writes what it must not read yet
	tx.send(r.make("own", 6, 6)...)
	m.nothing("the transaction is open, and its own")
	r.sameSet(valuesOf(r.readAll()), sentValues(before), "Read with ReadCommitted beside the open transaction")
	tx.commit()
	r.sameSet(valuesOf(m.collect(6)), tx.sent, "after the commit")
	r.judge()
}

func streamProducerFenced(c *C, s broker.Stream) {
	r := newStreamRun(c, s)
	id := c.Name("id")
	other := c.Fresh()
	again, err := other.Stream(c.Context(), s.Name(), nil)
	c.Must(err, "open the stream again")
	c.track("stream", again.Close)
	bystander := r.transactorOf(c.Broker(), c.Name("id"))
	beside := r.begin(bystander, "bystander")
	beside.send(r.pinned("bystander", 2, 0)...)

	old := r.transactorOf(c.Broker(), id)
	lost := r.begin(old, "old")
	lost.send(r.pinned("fenced", 3, 0)...)
	lost.send(r.pinned("fenced", 3, 1)...)
	next := r.transactorOf(other, id)
	err = lost.trySend(s, r.pinned("late", 1, 0)...)
	if err != nil {
		c.WantErr(err, broker.ErrFenced, "publish by the earlier holder of the id")
	}
	err = lost.tryEnd(false)
	c.WantErr(err, broker.ErrFenced, "commit by the earlier holder of the id")
	_, err = r.tryBegin(old, "old")
	c.WantErr(err, broker.ErrFenced, "begin by the earlier holder of the id")

	tx := r.begin(next, "new")
	rs := r.pinned("new", 2, 0)
	c.Must(tx.trySend(again, rs...), "publish by the later holder")
	tx.commit()
	beside.commit()
	want := append(slices.Clone(tx.sent), beside.sent...)
	m := r.join(c.Name("group"), readCommitted, nil) // records may appear a moment after Commit has returned
	r.sameSet(valuesOf(m.collect(len(want))), want, "what a member with ReadCommitted got")
	r.sameSet(valuesOf(r.judge()), want, "what was committed")
}

// streamConsumeTransformProduce copies a stream in transactions, by copiers
// that roll back and die in the middle: first by hand, then by Transformers.
func streamConsumeTransformProduce(c *C, s broker.Stream) {
	r := newStreamRun(c, s)
	values := r.load("source")
	r.copied("copiers", values, 6, (*streamCopier).run)
	r.copied("Transformers", values, 3, (*streamCopier).transform)
	r.judge()
}

// copied copies values by copiers that live again and again, and are killed.
func (r *streamRun) copied(what string, values []string, mostKills int64, live func(k *streamCopier, ctx context.Context, fate func() copyFate)) {
	c := r.C
	target := c.DeclareStream(partitions(3))
	out := newStreamRun(c, target)
	group := c.Name("group")
	var kills, rollbacks atomic.Int64
	ctx, stop := context.WithCancel(c.Context())
	defer stop()
	workers := min(3, c.Harness().Workers)
	stopped := make(chan struct{})
	c.Go(func() {
		defer close(stopped)
		r.parallel(workers, func(w int) {
			id := c.Name("id")
			for ctx.Err() == nil {
				k := &streamCopier{source: r, out: out, id: id, group: group, name: "copier " + itoa(w)}
				live(k, ctx, func() copyFate {
					switch n := c.Rand().IntN(10); {
					case kills.Load() == 0 || n < 2 && kills.Load() < mostKills:
						kills.Add(1)
						return copierDies
					case rollbacks.Load() == 0 || n == 9:
						rollbacks.Add(1)
						return copierRollsBack
					}
					return copierCommits
				})
			}
		})
	})
	watcher := out.join(c.Name("group"), readCommitted, nil)
	var got tally
	endWork := watcher.work(c.Context(), func(rs []*broker.Record) { got.add(rs...) })
	copies := make([]string, len(values))
	for i, v := range values {
		copies[i] = "copy of " + v
	}
	// Members that die and join again take their time, with each kill.
	for range mostKills {
		if c.Until(c.Harness().Soon, func() bool { return got.has(copies) }) {
			break
		}
	}
	if missing := got.missing(copies); len(missing) > 0 {
		c.Fatalf("%s: %d of %d copies are missing: %q", what, len(missing), len(copies), head(missing))
	}
	stop()
	<-stopped
	endWork()
	c.Note("kills of "+what, "%d", kills.Load())
	c.Note("rollbacks of "+what, "%d", rollbacks.Load())
	r.stored(group)
	r.sameSet(valuesOf(out.readAll()), copies, "the copies of the %s, each once", what)
}
