package memory

import (
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/queuestream/broker"
)

// ids returns how many transactional ids the broker remembers.
func (b *Broker) ids() int {
	b.srv.mu.Lock()
	defer b.srv.mu.Unlock()
	return len(b.srv.producers)
}

// use takes an id and ends a transaction with it.
func use(t *testing.T, b *Broker, id string) broker.Transactor {
	t.Helper()
	tr := transactor(t, b, id)
	check(t, begin(t, tr).Commit(t.Context()))
	return tr
}

// A transactional id is forgotten when its holder closes, or a week after its
// last use.
func TestTransactionalIDsAreForgotten(t *testing.T) {
	for _, test := range []struct {
		name  string
		close bool
		most  int
	}{
		{"holders that close", true, 0},
		{"holders that vanish", false, 7 * 24 * 8 / 7},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := open(t, nil)
				for i := range 4 * 7 * 24 { // one an hour, for four weeks
					tr := use(t, b, fmt.Sprint("id", i))
					if test.close {
						check(t, tr.Close())
						check(t, tr.Close())
					}
					time.Sleep(time.Hour)
				}
				if n := b.ids(); n > test.most {
					t.Errorf("%d ids are remembered, want at most %d", n, test.most)
				}
			})
		})
	}
}

// sweep lets the broker look at every transactional id.
func sweep(t *testing.T, b *Broker) {
	t.Helper()
	for range 1 + b.ids()/idsLookedAt {
		check(t, transactor(t, b, "sweep").Close())
	}
}

func TestTransactionalIDExpires(t *testing.T) {
	const day = 24 * time.Hour
	for _, test := range []struct {
		name    string
		timeout time.Duration // of transactions
		open    bool          // a transaction stays open, from the first day
		uses    int           // so many transactions, one every six days
		idle    time.Duration
		want    error // of the next use
	}{
		{name: "used", idle: 7*day - 1},
		{name: "not used", idle: 7 * day, want: broker.ErrFenced},
		{name: "used now and then", uses: 5, idle: 7*day - 1},
		{name: "used, then not", uses: 5, idle: 7 * day, want: broker.ErrFenced},
		{name: "a transaction is open", timeout: 30 * day, open: true, idle: 30*day - 1},
		{name: "a transaction was open for too long", timeout: 30 * day, open: true, idle: 37*day - 1, want: broker.ErrTxAborted},
		{name: "and then not used", timeout: 30 * day, open: true, idle: 37 * day, want: broker.ErrFenced},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx := t.Context()
				b := open(t, &Options{TransactionTimeout: test.timeout})
				s := declareStream(t, b, broker.StreamConfig{})
				tr := transactor(t, b, "id")
				var tx broker.Tx
				if test.open {
					tx = begin(t, tr)
					check(t, tx.Publish(ctx, s, rec("", "a")))
				}
				for range test.uses {
					time.Sleep(6 * day)
					sweep(t, b)
					check(t, begin(t, tr).Commit(ctx))
				}
				time.Sleep(test.idle)
				sweep(t, b)
				err := error(nil)
				if !test.open {
					tx, err = tr.Begin(ctx)
				}
				if err == nil {
					err = tx.Commit(ctx)
				}
				if test.want == nil {
					check(t, err)
				} else {
					wantErr(t, err, test.want)
				}
				if test.open {
					want := map[bool]string{true: "a b", false: "b"}[test.want == nil]
					appendTo(t, s, rec("", "b"))
					if got := read(t, s, broker.Range{ReadCommitted: true}); got != want {
						t.Errorf("read %q, want %q", got, want)
					}
				}
				// Whoever takes it next has it, and the one before has not.
				next := use(t, b, "id")
				_, err = tr.Begin(ctx)
				wantErr(t, err, broker.ErrFenced)
				check(t, tr.Close())
				check(t, begin(t, next).Commit(ctx))
			})
		})
	}
}

// One holder at a time has an id, however many take it and close at once.
func TestTransactionalIDHasOneHolder(t *testing.T) {
	b := open(t, nil)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 200 {
				tr, err := b.transactor(t.Context(), "id")
				if err != nil {
					t.Error(err)
					return
				}
				b.srv.mu.Lock()
				tr.p.mu.Lock()
				if tr.p.owner == tr && b.srv.producers["id"] != tr.p {
					t.Error("a holder of an id that was forgotten")
				}
				tr.p.mu.Unlock()
				b.srv.mu.Unlock()
				if err := tr.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if n := b.ids(); n != 0 {
		t.Errorf("%d ids are remembered", n)
	}
}
