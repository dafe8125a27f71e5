package broker_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/brokertest"
)

// A dead letter says where its record was read last, however far it has come,
// and a tombstone's says so, on a queue as on a stream.
func TestDeadLettersNameTheirSource(t *testing.T) {
	q, s := brokertest.NewQueue("dead"), brokertest.NewStream("dead", 1)
	headers := broker.Headers{{Key: "k", Value: "v"}, {Key: broker.HeaderSourceStream, Value: "earlier"}, {Key: broker.HeaderSourceOffset, Value: "1"}, {Key: broker.HeaderSourceTombstone, Value: "true"}}
	letters := func(r broker.Record) map[string]broker.Headers {
		t.Helper()
		rec := brokertest.NewRecord(r, "events", "g", 3, 7)
		given := slices.Clone(rec.Headers)
		if err := errors.Join(broker.DeadLetterTo(q)(t.Context(), rec, errBoom), broker.DeadLetterStream(s)(t.Context(), rec, errBoom)); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(rec.Headers, given) {
			t.Errorf("the record's headers became %v", rec.Headers)
		}
		out := map[string]broker.Headers{}
		for _, m := range q.Waiting() {
			out["queue"] = m.Headers
		}
		for d, err := range s.Read(t.Context(), broker.Range{}) {
			if err != nil {
				t.Fatal(err)
			}
			out["stream"] = d.Headers
		}
		return out
	}
	for where, h := range letters(broker.Record{Key: []byte("k"), Value: []byte("v"), Headers: headers}) {
		for key, want := range map[string]string{"k": "v", broker.HeaderSourceStream: "events", broker.HeaderSourcePartition: "3", broker.HeaderSourceOffset: "7", broker.HeaderDeadLetterReason: "boom"} {
			if n := len(slices.DeleteFunc(slices.Clone(h), func(e broker.Header) bool { return e.Key != key })); h.Get(key) != want || n != 1 {
				t.Errorf("%s: %s is %q, %d times, want %q once", where, key, h.Get(key), n, want)
			}
		}
		if _, ok := h.Lookup(broker.HeaderSourceTombstone); ok {
			t.Errorf("%s: the record is no tombstone: %v", where, h)
		}
	}
	for where, h := range letters(broker.Record{Key: []byte("k"), Tombstone: true}) {
		if h.Get(broker.HeaderSourceTombstone) != "true" {
			t.Errorf("%s: nothing says that it was a tombstone: %v", where, h)
		}
	}
}

func TestDeadLetterStreamKeepsTombstonesApart(t *testing.T) {
	dead := brokertest.NewStream("dead", 1)
	r := brokertest.NewRecord(broker.Record{Key: []byte("k"), Tombstone: true}, "s", "g", 0, 7)
	if err := broker.DeadLetterStream(dead)(t.Context(), r, nil); err != nil {
		t.Fatal(err)
	}
	for d, err := range dead.Read(t.Context(), broker.Range{}) {
		if err != nil || d.Tombstone || d.Headers.Get(broker.HeaderSourceTombstone) != "true" || d.Headers.Get(broker.HeaderSourceOffset) != "7" {
			t.Errorf("%+v, %v", d, err)
		}
	}
}
