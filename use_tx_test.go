package broker_test

import (
	"errors"
	"testing"

	"github.com/queuestream/broker"
)

// A transaction behind one Use is no way around the hooks of another, whichever
// of the two is outside.
func TestUseTransactionKeepsTheStreamsHooks(t *testing.T) {
	ctx := t.Context()
	var inner, outer, other []string
	plain := openMemory(t)
	declareStream(t, plain, "s", 1)
	first := broker.Use(plain, upper(&inner))
	around := broker.Use(first, upper(&outer))
	apart := broker.Use(plain, upper(&other))
	for _, test := range []struct {
		name         string
		tx, stream   broker.Broker
		inner, outer int // hooks run; -1: it is refused
	}{
		{"the same", first, first, 1, 0},
		{"the same, twice", around, around, 1, 1},
		{"the stream of the inner", around, first, 1, 1},
		{"the stream of none", first, plain, 1, 0},
		{"the transaction of another", apart, first, -1, 0},
		{"the transaction of none", plain, first, -1, 0},
		{"the transaction of the inner", first, around, -1, 0},
	} {
		inner, outer = nil, nil
		s, err := test.stream.Stream(ctx, "s", nil)
		if err != nil {
			t.Fatal(err)
		}
		x, _ := broker.As[broker.Transactional](test.tx)
		txr, err := x.Transactor(ctx, "id")
		if err != nil {
			t.Fatal(err)
		}
		tx, err := txr.Begin(ctx)
		if err != nil {
			t.Fatal(err)
		}
		err = tx.Publish(ctx, s, broker.Record{Value: []byte("v")})
		switch {
		case test.inner < 0:
			if !errors.Is(err, broker.ErrInvalid) {
				t.Errorf("%s: %v, want ErrInvalid", test.name, err)
			}
		case err != nil || len(inner) != test.inner || len(outer) != test.outer:
			t.Errorf("%s: hooks ran %d and %d times, %v", test.name, len(inner), len(outer), err)
		}
		if err := errors.Join(tx.Rollback(ctx), txr.Close(), s.Close()); err != nil {
			t.Error(err)
		}
	}
}
