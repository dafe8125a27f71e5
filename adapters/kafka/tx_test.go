package kafka_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/kafka"
	"github.com/twmb/franz-go/pkg/kgo"
)

func transactor(t testing.TB, b *kafka.Broker, id string) broker.Transactor {
	t.Helper()
	x, err := b.Transactor(testContext(t), id)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := x.Close(); err != nil {
			t.Errorf("closing the transactor: %v", err)
		}
	})
	return x
}

func begin(t testing.TB, x broker.Transactor) broker.Tx {
	t.Helper()
	tx, err := x.Begin(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	return tx
}

func values(t testing.TB, s broker.Stream, committed bool) []string {
	t.Helper()
	var out []string
	for r, err := range s.Read(testContext(t), broker.Range{ReadCommitted: committed}) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, string(r.Value))
	}
	return out
}

func TestTransactionsHideWhatIsNotCommitted(t *testing.T) {
	onBrokers(t, func(t *testing.T, o *kafka.Options) {
		ctx := testContext(t)
		b := open(t, o)
		s := declare(t, b, broker.StreamConfig{Partitions: 1})
		x := transactor(t, b, name(t))

		tx := begin(t, x)
		if err := tx.Publish(ctx, s, texts(3)...); err != nil {
			t.Fatal(err)
		}
		if err := tx.Rollback(ctx); err != nil {
			t.Fatal(err)
		}
		if got := values(t, s, true); len(got) != 0 {
			t.Errorf("read %v of a transaction that was rolled back", got)
		}
		tx = begin(t, x)
		if err := tx.Publish(ctx, s, broker.Record{Value: []byte("kept")}); err != nil {
			t.Fatal(err)
		}
		if got := values(t, s, true); len(got) != 0 {
			t.Errorf("read %v of a transaction that is open", got)
		}
		if err := tx.Commit(ctx); err != nil {
			t.Fatal(err)
		}
		if err := tx.Commit(ctx); !errors.Is(err, broker.ErrInvalid) {
			t.Errorf("second commit: %v", err)
		}
		eventually(t, "the committed record alone", func() bool {
			got := values(t, s, true)
			return len(got) == 1 && got[0] == "kept"
		})
		// Nothing but markers and aborted records lies behind the only record.
		c := member(t, s, s.Name(), &broker.GroupOptions{ReadCommitted: true})
		if err := c.Commit(ctx, receive(t, c, 1)...); err != nil {
			t.Fatal(err)
		}
		lag, err := s.Lag(ctx, s.Name())
		if err != nil || lag[0].Lag != 0 {
			t.Errorf("lag %+v and %v behind the last record, want 0", lag, err)
		}
	})
}

func TestTransactionCommitsThePrefixAndRewinds(t *testing.T) {
	onBrokers(t, func(t *testing.T, o *kafka.Options) {
		ctx := testContext(t)
		b := open(t, o)
		in := declare(t, b, broker.StreamConfig{Partitions: 1})
		out := declare(t, b, broker.StreamConfig{Partitions: 1})
		publish(t, in, 10)
		c := member(t, in, in.Name(), &broker.GroupOptions{ReadCommitted: true})
		x := transactor(t, b, name(t))
		at := func(want int64) []*broker.Record {
			t.Helper()
			rs := receive(t, c, int(10-want))
			if rs[0].Offset() != broker.NewOffset(want) {
				t.Fatalf("received from %v, want %d", rs[0].Offset(), want)
			}
			return rs
		}
		copyOf := func(rs []*broker.Record) (tx broker.Tx) {
			t.Helper()
			tx = begin(t, x)
			for _, r := range rs {
				if err := tx.Publish(ctx, out, broker.Record{Key: r.Key, Value: r.Value}); err != nil {
					t.Fatal(err)
				}
			}
			if err := tx.CommitOffsets(ctx, c, rs...); err != nil {
				t.Fatal(err)
			}
			return tx
		}
		rs := at(0)
		if err := copyOf(rs[:4]).Rollback(ctx); err != nil {
			t.Fatal(err)
		}
		rs = at(0)
		if err := copyOf(rs[:4]).Commit(ctx); err != nil {
			t.Fatal(err)
		}
		rs = at(4)
		tx := begin(t, x) // nothing is published: a plain commit
		if err := tx.CommitOffsets(ctx, c, rs[:2]...); err != nil {
			t.Fatal(err)
		}
		if err := tx.Commit(ctx); err != nil {
			t.Fatal(err)
		}
		rs = at(6)
		if err := copyOf(rs).Commit(ctx); err != nil {
			t.Fatal(err)
		}
		// The broker makes a transaction visible a moment after its commit.
		eventually(t, "the copies of 0 to 3 and 6 to 9", func() bool {
			return fmt.Sprint(values(t, out, true)) == "[v0 v1 v2 v3 v6 v7 v8 v9]"
		})
	})
}

// A position behind the stored one is not stored by a transaction either: the
// group's next member would read again what is done.
func TestTransactionsNeverMovePositionsBack(t *testing.T) {
	onBrokers(t, func(t *testing.T, o *kafka.Options) {
		ctx := testContext(t)
		b := open(t, o)
		s := declare(t, b, broker.StreamConfig{})
		publish(t, s, 3)
		group := name(t)
		c := member(t, s, group, nil)
		rs := receive(t, c, 3)
		if err := c.Commit(ctx, rs...); err != nil {
			t.Fatal(err)
		}
		tx := begin(t, transactor(t, b, name(t)))
		if err := tx.Publish(ctx, s, texts(1)...); err != nil {
			t.Fatal(err)
		}
		if err := tx.CommitOffsets(ctx, c, rs[0]); err != nil {
			t.Fatal(err)
		}
		if err := tx.Commit(ctx); err != nil {
			t.Fatal(err)
		}
		lags, err := s.Lag(ctx, group)
		if err != nil {
			t.Fatal(err)
		}
		if lags[0].Committed != broker.NewOffset(3) {
			t.Errorf("the stored position is %v, want 3", lags[0].Committed)
		}
	})
}

// A Receive that waits goes on at once with what a rollback gives back.
func TestRollbackEndsTheWaitForRecords(t *testing.T) {
	onBrokers(t, func(t *testing.T, o *kafka.Options) {
		ctx := testContext(t)
		var polls pollCount
		counted := *o
		counted.Client = append(counted.Client, kgo.WithHooks(&polls))
		b := open(t, &counted)
		s := declare(t, b, broker.StreamConfig{Partitions: 1})
		publish(t, s, 1)
		m := member(t, s, name(t), nil)
		tx := begin(t, transactor(t, b, name(t)))
		if err := tx.CommitOffsets(ctx, m, receive(t, m, 1)...); err != nil {
			t.Fatal(err)
		}
		before := polls.n.Load()
		got := make(chan []*broker.Record, 1)
		go func() { got <- receive(t, m, 1) }()
		eventually(t, "a poll that waits", func() bool { return polls.n.Load() >= before+2 })
		began := time.Now()
		if err := tx.Rollback(ctx); err != nil {
			t.Fatal(err)
		}
		wantOffset(t, (<-got)[0], 0)
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("the Receive that waited came %v after the rollback", took)
		}
	})
}

func TestLaterTransactorFencesEarlier(t *testing.T) {
	onBrokers(t, func(t *testing.T, o *kafka.Options) {
		ctx := testContext(t)
		b := open(t, o)
		s := declare(t, b, broker.StreamConfig{Partitions: 1})
		id := name(t)
		old := transactor(t, b, id)
		tx := begin(t, old)
		if err := tx.Publish(ctx, s, broker.Record{Value: []byte("zombie")}); err != nil {
			t.Fatal(err)
		}
		now := transactor(t, b, id)
		if err := tx.Commit(ctx); !errors.Is(err, broker.ErrFenced) {
			t.Errorf("commit of the earlier holder: %v, want ErrFenced", err)
		}
		if _, err := old.Begin(ctx); !errors.Is(err, broker.ErrFenced) {
			t.Errorf("begin of the earlier holder: %v, want ErrFenced", err)
		}
		tx = begin(t, now)
		if err := tx.Publish(ctx, s, broker.Record{Value: []byte("living")}); err != nil {
			t.Fatal(err)
		}
		if err := tx.Commit(ctx); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the record of the later holder alone", func() bool {
			return fmt.Sprint(values(t, s, true)) == "[living]"
		})
	})
}

func TestTransactionOfAFormerOwnerIsRefused(t *testing.T) {
	onBrokers(t, func(t *testing.T, o *kafka.Options) {
		ctx := testContext(t)
		b := open(t, o)
		in := declare(t, b, broker.StreamConfig{Partitions: 1})
		out := declare(t, b, broker.StreamConfig{Partitions: 1})
		publish(t, in, 4)
		c, err := in.Consumer(ctx, in.Name(), nil)
		if err != nil {
			t.Fatal(err)
		}
		rs := receive(t, c, 4)
		x := transactor(t, b, name(t))
		tx := begin(t, x)
		if err := tx.Publish(ctx, out, texts(4)...); err != nil {
			t.Fatal(err)
		}
		if err := tx.CommitOffsets(ctx, c, rs...); err != nil {
			t.Fatal(err)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		if err := tx.Commit(ctx); !errors.Is(err, broker.ErrTxAborted) {
			t.Errorf("commit with offsets of a member that left: %v, want ErrTxAborted", err)
		}
		if got := values(t, out, true); len(got) != 0 {
			t.Errorf("%v of an aborted transaction is visible", got)
		}
		receive(t, member(t, in, in.Name(), nil), 4)
	})
}

func TestBeginBoundedByContext(t *testing.T) {
	b := open(t, &kafka.Options{Brokers: fake(t).ListenAddrs()})
	x := transactor(t, b, "id")
	begin(t, x)
	if _, err := x.Begin(testContext(t)); !errors.Is(err, broker.ErrInvalid) {
		t.Errorf("second open transaction: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := transactor(t, b, "other").Begin(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("begin with an ended context: %v", err)
	}
}
