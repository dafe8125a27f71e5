package memory

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/queuestream/broker"
)

func begin(t *testing.T, tr broker.Transactor) broker.Tx {
	t.Helper()
	tx, err := tr.Begin(t.Context())
	check(t, err)
	return tx
}

func transactor(t *testing.T, b *Broker, id string) broker.Transactor {
	t.Helper()
	tr, err := b.Transactor(t.Context(), id)
	check(t, err)
	return tr
}

func TestTransactions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		b := open(t, nil)
		s := declareStream(t, b, broker.StreamConfig{})
		check(t, b.DeclareStream(ctx, "s2", broker.StreamConfig{}))
		s2, err := b.Stream(ctx, "s2", nil)
		check(t, err)
		committed := broker.Range{ReadCommitted: true}
		tr := transactor(t, b, "id")
		appendTo(t, s, rec("", "a"))
		tx := begin(t, tr)
		_, err = tr.Begin(ctx)
		wantErr(t, err, broker.ErrConflict)
		check(t, tx.Publish(ctx, s, rec("", "b"), rec("", "c")))
		check(t, tx.Publish(ctx, s2, rec("", "z")))
		appendTo(t, s, rec("", "d"))
		// Committed reads stop before the open transaction; others see all.
		if got := read(t, s, committed) + "|" + read(t, s, broker.Range{}); got != "a|a b c d" {
			t.Fatal(got)
		}
		m := join(t, s, "g", &broker.GroupOptions{ReadCommitted: true})
		if got := values(take(t, m, 1)); got != "a" {
			t.Fatal(got)
		}
		ls, err := s.Lag(ctx, "g")
		check(t, err)
		if ls[0].Lag != 1 || ls[0].Next != broker.NewOffset(1) {
			t.Fatalf("%+v", ls)
		}
		got := make(chan string)
		go func() { got <- values(take(t, m, 3)) }()
		synctest.Wait()
		check(t, tx.Commit(ctx))
		if v := <-got; v != "b c d" {
			t.Fatal(v)
		}
		if got := read(t, s, committed) + "|" + read(t, s2, committed); got != "a b c d|z" {
			t.Fatal(got)
		}
		wantErr(t, tx.Publish(ctx, s, rec("", "x")), broker.ErrClosed)
		wantErr(t, tx.Commit(ctx), broker.ErrClosed)
		wantErr(t, tx.Rollback(ctx), broker.ErrClosed)

		tx = begin(t, tr)
		wantErr(t, tx.Publish(ctx, s, rec("", "y"), broker.Record{Pin: true, Partition: 7}), broker.ErrNotFound)
		wantErr(t, tx.Publish(ctx, s, rec("", "y"), broker.Record{Tombstone: true}), broker.ErrInvalid)
		check(t, tx.Publish(ctx, s, rec("", "y")))
		check(t, tx.Rollback(ctx))
		check(t, tx.Rollback(ctx))
		wantErr(t, tx.Commit(ctx), broker.ErrTxAborted)
		appendTo(t, s, rec("", "e"))
		if got := read(t, s, committed) + "|" + read(t, s, broker.Range{}); got != "a b c d e|a b c d y e" {
			t.Fatal(got)
		}
		ls, err = s.Lag(ctx, "g")
		check(t, err)
		if ls[0].Lag != 5 { // aborted records are not counted
			t.Fatalf("%+v", ls)
		}
		if got := values(take(t, m, 1)); got != "e" {
			t.Fatal(got)
		}
		check(t, tr.Close())
		check(t, tr.Close())
		_, err = tr.Begin(ctx)
		wantErr(t, err, broker.ErrClosed)
		other := open(t, nil)
		foreign := declareStream(t, other, broker.StreamConfig{})
		tx = begin(t, transactor(t, b, "id"))
		wantErr(t, tx.Publish(ctx, foreign, rec("", "x")), broker.ErrInvalid)
		wantErr(t, tx.CommitOffsets(ctx, join(t, foreign, "g", nil)), broker.ErrInvalid)
		ended, cancel := context.WithCancel(ctx)
		cancel()
		wantErr(t, tx.Commit(ended), context.Canceled)
		wantErr(t, tx.Rollback(ended), context.Canceled)
	})
}

func TestTransactionOffsets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		b := open(t, nil)
		s := declareStream(t, b, broker.StreamConfig{})
		fill(t, s, 5)
		m := join(t, s, "g", nil)
		tr := transactor(t, b, "id")
		rs := take(t, m, 3)
		tx := begin(t, tr)
		check(t, tx.CommitOffsets(ctx, m, rs[1]))
		check(t, tx.Rollback(ctx))
		if got := values(take(t, m, 3)); got != "0.0 0.1 0.2" { // rewound
			t.Fatal(got)
		}
		check(t, m.Seek(ctx, 0, broker.Committed()))
		rs = take(t, m, 3)
		tx = begin(t, tr)
		check(t, tx.CommitOffsets(ctx, m, rs[0], rs[1]))
		ls, err := s.Lag(ctx, "g")
		check(t, err)
		if ls[0].HasCommit {
			t.Fatal("stored before Commit")
		}
		check(t, tx.Commit(ctx))
		rs = take(t, m, 3)
		if got := values(rs); got != "0.2 0.3 0.4" { // what was not committed comes again
			t.Fatal(got)
		}
		// Another member takes the partition: the transaction aborts.
		tx = begin(t, tr)
		check(t, tx.Publish(ctx, s, rec("", "torn")))
		check(t, tx.CommitOffsets(ctx, m, rs...))
		check(t, m.Close())
		err = tx.Commit(ctx)
		wantErr(t, err, broker.ErrTxAborted)
		wantErr(t, err, broker.ErrFenced)
		ls, err = s.Lag(ctx, "g")
		check(t, err)
		if ls[0].Committed != broker.NewOffset(2) {
			t.Fatalf("%+v", ls)
		}
		if got := read(t, s, broker.Range{ReadCommitted: true}); strings.Contains(got, "torn") {
			t.Fatal(got)
		}
		tx = begin(t, tr)
		wantErr(t, tx.CommitOffsets(ctx, m, rs...), broker.ErrClosed)
	})
}

// A seek outlasts the transaction after it: what nobody committed yet is where
// the members go back to.
func TestTransactionsKeepSeeks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		b := open(t, nil)
		s := declareStream(t, b, broker.StreamConfig{})
		fill(t, s, 5)
		m := join(t, s, "g", nil)
		check(t, m.Commit(ctx, take(t, m, 1)...))
		check(t, m.Seek(ctx, 0, broker.AtOffset(broker.NewOffset(3))))
		for range 2 {
			rs := take(t, m, 2)
			if got := values(rs); got != "0.3 0.4" {
				t.Fatal(got)
			}
			tx := begin(t, transactor(t, b, "id"))
			check(t, tx.CommitOffsets(ctx, m, rs...))
			check(t, tx.Rollback(ctx))
		}
	})
}

func TestProducerFencing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		b := open(t, &Options{TransactionTimeout: time.Minute})
		s := declareStream(t, b, broker.StreamConfig{})
		first := transactor(t, b, "id")
		tx := begin(t, first)
		check(t, tx.Publish(ctx, s, rec("", "a")))
		second := transactor(t, b, "id")
		wantErr(t, tx.Publish(ctx, s, rec("", "b")), broker.ErrFenced)
		wantErr(t, tx.Commit(ctx), broker.ErrFenced)
		wantErr(t, tx.Rollback(ctx), broker.ErrFenced)
		_, err := first.Begin(ctx)
		wantErr(t, err, broker.ErrFenced)
		check(t, first.Close())
		tx = begin(t, second)
		check(t, tx.Publish(ctx, s, rec("", "c")))
		// One that is forgotten ends by itself, and lets readers on.
		appendTo(t, s, rec("", "d"))
		m := join(t, s, "g", &broker.GroupOptions{ReadCommitted: true})
		start := time.Now()
		if got := values(take(t, m, 1)); got != "d" || time.Since(start) != time.Minute {
			t.Fatalf("%q after %v", got, time.Since(start))
		}
		wantErr(t, tx.Commit(ctx), broker.ErrTxAborted)
		check(t, tx.Rollback(ctx))
		check(t, begin(t, second).Commit(ctx))
		_, err = b.Transactor(ctx, "")
		wantErr(t, err, broker.ErrInvalid)
	})
}

func TestTransactionsAndCompaction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		b := open(t, nil)
		s := declareStream(t, b, broker.StreamConfig{Compact: true})
		tr := transactor(t, b, "id")
		appendTo(t, s, rec("k", "0"))
		for i := 1; i <= 3; i++ {
			tx := begin(t, tr)
			check(t, tx.Publish(ctx, s, rec("k", fmt.Sprint(i)), rec("j", fmt.Sprint("j", i))))
			if i == 2 {
				check(t, tx.Rollback(ctx))
			} else {
				check(t, tx.Commit(ctx))
			}
			if got := read(t, s, broker.Range{ReadCommitted: true}); i == 2 && got != "1 j1" || i == 3 && got != "3 j3" {
				t.Fatalf("%d: %s", i, got)
			}
		}
	})
}

// TestConsumeTransformProduce copies one stream to another with a copier that
// fails now and then: each record arrives once.
func TestConsumeTransformProduce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		b := open(t, nil)
		in := declareStream(t, b, broker.StreamConfig{Partitions: 3})
		check(t, b.DeclareStream(ctx, "out", broker.StreamConfig{Partitions: 3}))
		out, err := b.Stream(ctx, "out", nil)
		check(t, err)
		fill(t, in, 30)
		for round := range 100 {
			ls, err := in.Lag(ctx, "g")
			check(t, err)
			if ls[0].Lag+ls[1].Lag+ls[2].Lag == 0 {
				break
			}
			m := join(t, in, "g", nil)
			tx := begin(t, transactor(t, b, "copier"))
			rs, err := m.Receive(ctx, 1+round%4)
			check(t, err)
			for _, r := range rs {
				check(t, tx.Publish(ctx, out, broker.Record{Key: r.Value, Value: r.Value}))
			}
			check(t, tx.CommitOffsets(ctx, m, rs...))
			if round%3 != 0 {
				check(t, tx.Commit(ctx))
			} // else it dies
			check(t, m.Close())
		}
		seen := map[string]bool{}
		for r, err := range out.Read(ctx, broker.Range{ReadCommitted: true}) {
			check(t, err)
			if seen[string(r.Value)] {
				t.Fatalf("%s twice", r.Value)
			}
			seen[string(r.Value)] = true
		}
		if len(seen) != 90 {
			t.Fatalf("%d arrived", len(seen))
		}
	})
}
