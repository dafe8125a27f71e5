package broker_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/memory"
)

func openMemory(t testing.TB) *memory.Broker {
	t.Helper()
	b, err := memory.Open(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

func declareStream(t testing.TB, b broker.Broker, name string, partitions int) broker.Stream {
	t.Helper()
	a, _ := broker.As[broker.Admin](b)
	if err := a.DeclareStream(t.Context(), name, broker.StreamConfig{Partitions: partitions}); err != nil {
		t.Fatal(err)
	}
	s, err := b.Stream(t.Context(), name, nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// upper is a hook that changes payload and headers, and refuses "bad".
func upper(log *[]string) broker.PublishHook {
	return func(_ context.Context, to string, out broker.Outgoing) (func(broker.Receipt, error), error) {
		if string(out.Payload()) == "bad" {
			return nil, errBoom
		}
		if (out.Message() == nil) == (out.Record() == nil) {
			return nil, errors.New("want a message or a record")
		}
		out.SetPayload([]byte(strings.ToUpper(string(out.Payload()))))
		*out.HeaderSet() = out.HeaderSet().With("hooked", to)
		return func(_ broker.Receipt, err error) {
			if err == nil {
				*log = append(*log, to)
			}
		}, nil
	}
}

func TestUseHooksEveryWayToPublish(t *testing.T) {
	ctx := t.Context()
	var log []string
	b := broker.Use(openMemory(t), upper(&log))
	q, err := broker.DeclareQueue(ctx, b, "q", broker.QueueConfig{})
	if err != nil {
		t.Fatal(err)
	}
	s := declareStream(t, b, "s", 1)
	a, _ := broker.As[broker.Admin](b)
	if err := errors.Join(a.DeclareExchange(ctx, "x", broker.ExchangeFanout), a.Bind(ctx, "q", "x", broker.Binding{})); err != nil {
		t.Fatal(err)
	}
	xs, _ := broker.As[broker.Exchanger](b)
	x, err := xs.Exchange(ctx, "x")
	if err != nil {
		t.Fatal(err)
	}
	rq, _ := broker.As[broker.ReplyQueuer](b)
	reply, err := rq.ReplyQueue(ctx)
	if err != nil {
		t.Fatal(err)
	}
	mine := broker.Message{Body: []byte("a"), Headers: make(broker.Headers, 0, 4)}
	if _, err := q.Publish(ctx, mine); err != nil {
		t.Fatal(err)
	}
	if string(mine.Body) != "a" || len(mine.Headers[:1:1]) != 1 || mine.Headers[:1][0].Key != "" {
		t.Error("the caller's message was changed")
	}
	if _, err := x.RouteTo("").Publish(ctx, broker.Message{Body: []byte("b")}); err != nil {
		t.Fatal(err)
	}
	if _, err := reply.Publish(ctx, broker.Message{Body: []byte("c")}); err != nil {
		t.Fatal(err)
	}
	batch := []broker.Message{{Body: []byte("d")}, {ID: "id", Body: []byte("bad")}, {Body: []byte("e")}}
	receipts, err := q.PublishBatch(ctx, batch)
	if len(receipts) != 3 || !errors.Is(broker.ErrorAt(err, 1), errBoom) || broker.ErrorAt(err, 0) != nil || broker.ErrorAt(err, 2) != nil || receipts[1].ID != "id" {
		t.Errorf("batch: %v, %v", receipts, err)
	}
	if string(batch[0].Body) != "d" {
		t.Error("the caller's batch was changed")
	}
	if r, err := q.Publish(ctx, broker.Message{Body: []byte("bad")}); !errors.Is(err, errBoom) || r.ID == "" {
		t.Errorf("refused: %+v, %v", r, err)
	}
	ms, err := a.Peek(ctx, "q", 10)
	if err != nil {
		t.Fatal(err)
	}
	var bodies []string
	for _, m := range ms {
		bodies = append(bodies, string(m.Body))
		if m.Headers.Get("hooked") == "" {
			t.Errorf("%q has no header of the hook", m.Body)
		}
	}
	if !slices.Equal(bodies, []string{"A", "B", "D", "E"}) {
		t.Errorf("queue holds %v", bodies)
	}

	if _, err := s.Publish(ctx, broker.Record{Value: []byte("f")}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.PublishBatch(ctx, []broker.Record{{Value: []byte("g")}, {Value: []byte("bad")}}); !errors.Is(broker.ErrorAt(err, 1), errBoom) {
		t.Errorf("batch: %v", err)
	}
	if _, err := s.Publish(ctx, broker.Record{Value: []byte("bad")}); !errors.Is(err, errBoom) {
		t.Error(err)
	}
	tr, _ := broker.As[broker.Transactional](b)
	txr, err := tr.Transactor(ctx, "id")
	if err != nil {
		t.Fatal(err)
	}
	tx, err := txr.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := tx.Publish(ctx, s, broker.Record{Value: []byte("h")}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(tx.Commit(ctx), txr.Close(), x.Close(), reply.Close()); err != nil {
		t.Fatal(err)
	}
	var values []string
	for r, err := range s.Read(ctx, broker.Range{ReadCommitted: true}) {
		if err != nil {
			t.Fatal(err)
		}
		values = append(values, string(r.Value))
	}
	if !slices.Equal(values, []string{"F", "G", "H"}) {
		t.Errorf("stream holds %v", values)
	}
	if len(log) != 8 {
		t.Errorf("dones: %v", log)
	}
	if _, ok := broker.As[broker.AsyncPublishing](q); ok {
		t.Error("a way around the hooks")
	}
	if plain := openMemory(t); broker.Use(plain) != broker.Broker(plain) {
		t.Error("no hooks, and another broker")
	}
	if _, err := b.Queue(ctx, "missing", nil); !errors.Is(err, broker.ErrNotFound) {
		t.Error(err)
	}
	if _, err := b.Stream(ctx, "missing", nil); !errors.Is(err, broker.ErrNotFound) {
		t.Error(err)
	}
}

// A hook may write to the headers that it is given: they are a copy.
func TestUseHooksWriteToACopy(t *testing.T) {
	ctx := t.Context()
	b := broker.Use(openMemory(t), func(_ context.Context, _ string, out broker.Outgoing) (func(broker.Receipt, error), error) {
		for i, h := range *out.HeaderSet() {
			(*out.HeaderSet())[i].Value = strings.ToUpper(h.Value)
		}
		return nil, nil
	})
	q, err := broker.DeclareQueue(ctx, b, "q", broker.QueueConfig{})
	if err != nil {
		t.Fatal(err)
	}
	s := declareStream(t, b, "s", 1)
	mine := broker.Headers{{Key: "k", Value: "v"}}
	_, err1 := q.Publish(ctx, broker.Message{Headers: mine})
	_, err2 := q.PublishBatch(ctx, []broker.Message{{Headers: mine}})
	_, err3 := s.Publish(ctx, broker.Record{Headers: mine})
	_, err4 := s.PublishBatch(ctx, []broker.Record{{Headers: mine}})
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		t.Fatal(err)
	}
	if mine[0].Value != "v" {
		t.Error("the caller's headers were changed")
	}
	a, _ := broker.As[broker.Admin](b)
	ms, err := a.Peek(ctx, "q", 10)
	if err != nil || len(ms) != 2 || ms[0].Headers.Get("k") != "V" || ms[1].Headers.Get("k") != "V" {
		t.Errorf("%+v, %v", ms, err)
	}
}

func TestUseOrderOfHooks(t *testing.T) {
	var order []string
	hook := func(name string, fail error) broker.PublishHook {
		return func(context.Context, string, broker.Outgoing) (func(broker.Receipt, error), error) {
			order = append(order, name)
			return func(broker.Receipt, error) { order = append(order, "done "+name) }, fail
		}
	}
	b := openMemory(t)
	if err := b.DeclareQueue(t.Context(), "q", broker.QueueConfig{}); err != nil {
		t.Fatal(err)
	}
	q, err := broker.Use(b, hook("1", nil), hook("2", nil)).Queue(t.Context(), "q", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := q.Publish(t.Context(), broker.Message{}); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(order, []string{"1", "2", "done 2", "done 1"}) {
		t.Error(order)
	}
	order = nil
	q, err = broker.Use(b, hook("1", nil), hook("2", errBoom), hook("3", nil)).Queue(t.Context(), "q", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := q.Publish(t.Context(), broker.Message{}); !errors.Is(err, errBoom) {
		t.Error(err)
	}
	if !slices.Equal(order, []string{"1", "2", "done 1"}) {
		t.Error(order)
	}
}

func TestDeclareQueueAndOpeners(t *testing.T) {
	ctx := t.Context()
	openers := broker.Openers{"memory": memory.OpenURL}
	b, err := openers.Open(ctx, "memory://declare")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = b.Close() }()
	q, err := broker.DeclareQueue(ctx, b, "jobs", broker.QueueConfig{MaxAttempts: 3})
	if err != nil || !q.Capabilities().Reject || q.Capabilities().MaxAttempts != 3 {
		t.Fatalf("%v, %+v", err, q)
	}
	if _, err := b.Queue(ctx, "jobs-dead", nil); err != nil {
		t.Error(err)
	}
	if _, err := broker.DeclareQueue(ctx, b, "", broker.QueueConfig{}); !errors.Is(err, broker.ErrInvalid) {
		t.Error(err)
	}
	if _, err := broker.DeclareQueue(ctx, b, "", broker.QueueConfig{MaxAttempts: 3}); !errors.Is(err, broker.ErrInvalid) {
		t.Error(err)
	}
	if _, err := b.Queue(ctx, broker.DeadLetterName(""), nil); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("a dead-letter queue is left behind: %v", err)
	}
	if same, err := openers.Open(ctx, "Memory://declare"); err != nil {
		t.Error(err)
	} else if err := errors.Join(same.Ping(ctx), same.Close()); err != nil {
		t.Error(err)
	}
	if _, err := broker.DeclareQueue(ctx, noAdmin{b}, "x", broker.QueueConfig{}); !errors.Is(err, broker.ErrUnsupported) {
		t.Error(err)
	}
	if n := broker.DeadLetterName("a.fifo"); n != "a-dead.fifo" {
		t.Error(n)
	}
	for url, want := range map[string]error{
		"": broker.ErrInvalid, "memory": broker.ErrInvalid, "://x": broker.ErrInvalid,
		"nats://user:secret@host": broker.ErrUnsupported, "nats://%zz": broker.ErrUnsupported,
	} {
		_, err := openers.Open(ctx, url)
		if !errors.Is(err, want) || !strings.Contains(err.Error(), "memory") || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v", url, err)
		}
	}
}

// Behind hooks a queue gets the same name as without.
func TestDeclareQueueBehindHooks(t *testing.T) {
	ctx := t.Context()
	inner, err := memory.Open(ctx, &memory.Options{Profile: memory.SQSFIFO})
	if err != nil {
		t.Fatal(err)
	}
	defer inner.Close() //nolint:errcheck // the test is over
	b := broker.Use(inner, func(context.Context, string, broker.Outgoing) (func(broker.Receipt, error), error) { return nil, nil })
	q, err := broker.DeclareQueue(ctx, b, "orders", broker.QueueConfig{Ordered: true, MaxAttempts: 3})
	if err != nil {
		t.Fatal(err)
	}
	if q.Name() != "orders.fifo" || !q.Capabilities().Reject {
		t.Errorf("%q, %+v", q.Name(), q.Capabilities())
	}
}

type noAdmin struct{ broker.Broker }

type email struct{ To string }

func TestTyped(t *testing.T) {
	ctx := t.Context()
	b := openMemory(t)
	q, err := broker.DeclareQueue(ctx, b, "mail", broker.QueueConfig{MaxAttempts: 2})
	if err != nil {
		t.Fatal(err)
	}
	send := broker.NewType[email]("send-email")
	if _, err := send.Publish(ctx, q, email{"ann"}, func(m *broker.Message) { m.ID = "1" }); err != nil {
		t.Fatal(err)
	}
	for _, m := range []broker.Message{
		{ID: "bad", Body: []byte("{"), Headers: broker.Headers{{broker.HeaderType, "send-email"}}},
		{ID: "other", Body: []byte("{}"), Headers: broker.Headers{{broker.HeaderType, "other"}}},
	} {
		if _, err := q.Publish(ctx, m); err != nil {
			t.Fatal(err)
		}
	}
	got := make(chan string, 1)
	w := &broker.Worker{Queue: q, Logger: quiet, Handler: broker.Mux{
		send.Name: send.Handler(func(_ context.Context, j broker.Job[email]) error { got <- j.ID + " " + j.Value.To; return nil }),
	}.Handle}
	stop := start(t, w)
	if s := <-got; s != "1 ann" {
		t.Error(s)
	}
	waitUntil(t, func() bool { return w.Stats().Rejected == 2 })
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if err := (broker.Mux{"": func(context.Context, *broker.Delivery) error { return errBoom }}).Handle(ctx, delivery("1", "")); !errors.Is(err, errBoom) {
		t.Error(err)
	}

	s := declareStream(t, b, "events", 1)
	if _, err := send.Append(ctx, s, "k", email{"bob"}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Publish(ctx, broker.Record{Key: []byte("k"), Tombstone: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Publish(ctx, broker.Record{Value: []byte("?")}); err != nil {
		t.Fatal(err)
	}
	h := send.RecordHandler(func(_ context.Context, e broker.Event[email]) error {
		if e.Tombstone != (e.Value.To == "") || string(e.Key) != "k" {
			t.Errorf("%+v", e)
		}
		return nil
	})
	mux := broker.RecordMux{send.Name: h}
	n := 0
	for r, err := range s.Read(ctx, broker.Range{}) {
		if err != nil {
			t.Fatal(err)
		}
		v, rejected := broker.VerdictOf(h(ctx, r))
		if bad := n == 2; (v.Kind == broker.VerdictReject) != bad || !rejected {
			t.Errorf("record %d: %+v", n, v)
		}
		if err := mux.Handle(ctx, r); (err == nil) != (n == 0) {
			t.Errorf("record %d: %v", n, err)
		}
		n++
	}
	if n != 3 {
		t.Errorf("%d records", n)
	}
	if err := (broker.RecordMux{"": h}).Handle(ctx, &broker.Record{Key: []byte("k"), Tombstone: true}); err != nil {
		t.Error(err)
	}
	if _, err := send.Decode([]byte("{}"), broker.Headers{{broker.HeaderType, "x"}}); !errors.Is(err, broker.ErrInvalid) {
		t.Error(err)
	}
	bad := broker.NewType[chan int]("c")
	if _, err := bad.Publish(ctx, q, nil); err == nil {
		t.Error("a channel was encoded")
	}
	if _, err := bad.Append(ctx, s, "", nil); err == nil {
		t.Error("a channel was encoded")
	}
	plain := broker.MessageType[string]{Codec: broker.Raw}
	if m, err := plain.Message("x"); err != nil || len(m.Headers) != 0 || string(m.Body) != "x" {
		t.Errorf("%+v, %v", m, err)
	}
}

// waitUntil waits for a condition on real time.
func waitUntil(t testing.TB, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	end := time.After(20 * time.Second)
	for !cond() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatal("waited 20 s in vain")
		}
	}
}

// Errors made over a handle with hooks carry its adapter.
func TestUseKeepsTheAdapter(t *testing.T) {
	hooked := broker.Use(openMemory(t), upper(new([]string)))
	q, err := broker.DeclareQueue(t.Context(), hooked, "q", broker.QueueConfig{})
	if err != nil {
		t.Fatal(err)
	}
	s := declareStream(t, hooked, "s", 1)
	p, a := broker.NewAsyncPublisher(q, nil), broker.NewAsyncAppender(s, nil)
	if err := errors.Join(p.Close(t.Context()), a.Close(t.Context())); err != nil {
		t.Fatal(err)
	}
	want := func(_ broker.Receipt, err error) {
		if e, ok := errors.AsType[*broker.Error](err); !ok || e.Adapter != "memory" {
			t.Errorf("%v, want one of memory", err)
		}
	}
	p.Publish(t.Context(), broker.Message{}, want)
	a.Publish(t.Context(), broker.Record{}, want)
}
