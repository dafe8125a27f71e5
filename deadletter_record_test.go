package broker_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

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

// An error may quote a whole page: the reason is cut, between two characters,
// so that the dead letter is not refused for it.
func TestDeadLetterCutsTheReason(t *testing.T) {
	page := strings.Repeat("ü", 100_000)
	m := broker.DeadLetterMessage(broker.Message{Body: []byte("b")}, broker.DeadLetter{Reason: page})
	if why, _ := broker.DeadLetterOf(&m); len(why.Reason) > 1024 || len(why.Reason) < 1000 || !strings.HasPrefix(page, why.Reason) || !utf8.ValidString(why.Reason) {
		t.Errorf("%d bytes: %.40q…", len(why.Reason), why.Reason)
	}
	for _, short := range []string{"", "boom", strings.Repeat("x", 1024), "no text: \xff"} {
		m := broker.DeadLetterMessage(broker.Message{}, broker.DeadLetter{Reason: short})
		if why, _ := broker.DeadLetterOf(&m); why.Reason != short {
			t.Errorf("%q became %q", short, why.Reason)
		}
	}
}

// A record that does not fit into its dead-letter target leaves what leads to it
// there, and does not block its key for good.
func TestDeadLetterThatDoesNotFit(t *testing.T) {
	q, s := brokertest.NewQueue("dead"), brokertest.NewStream("dead", 1)
	q.Caps.MaxBytes, s.Caps.MaxBytes = 2000, 2000
	r := brokertest.NewRecord(broker.Record{
		Key: []byte("k"), Value: make([]byte, 1990), Headers: broker.Headers{{Key: "h", Value: "v"}},
	}, "events", "g", 3, 7)
	if err := errors.Join(broker.DeadLetterTo(q)(t.Context(), r, errBoom), broker.DeadLetterStream(s)(t.Context(), r, errBoom)); err != nil {
		t.Fatal(err)
	}
	check := func(where string, body []byte, h broker.Headers) {
		for key, want := range map[string]string{
			broker.HeaderDeadLetterOmitted: "1993", broker.HeaderDeadLetterReason: "boom", // key, value and headers
			broker.HeaderSourceStream: "events", broker.HeaderSourcePartition: "3", broker.HeaderSourceOffset: "7",
		} {
			if h.Get(key) != want {
				t.Errorf("%s: %s is %q, want %q", where, key, h.Get(key), want)
			}
		}
		if len(body) != 0 || h.Get("h") != "" {
			t.Errorf("%s: %d bytes, %v", where, len(body), h)
		}
	}
	for _, m := range q.Waiting() {
		check("queue", m.Body, m.Headers)
	}
	for d, err := range s.Read(t.Context(), broker.Range{}) {
		if err != nil || string(d.Key) != "k" {
			t.Error(d, err)
		}
		check("stream", d.Value, d.Headers)
	}
	q.Caps.MaxBytes = 10 // not even that
	if err := broker.DeadLetterTo(q)(t.Context(), r, errBoom); !errors.Is(err, broker.ErrTooLarge) {
		t.Error(err)
	}
}
