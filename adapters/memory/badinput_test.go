package memory

import (
	"context"
	"errors"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/queuestream/broker"
)

// A world is a broker with a message and a record in it, both in hand, and the
// same once more, closed.
type world struct {
	b, closed       *Broker
	q, shutQ        *Queue
	c, shutC        *Consumer
	d               *broker.Delivery
	s, shutS        *Stream
	m, shutM        broker.GroupConsumer
	r               *broker.Record
	x, shutX        broker.Exchange
	tx              broker.Transactor
	ended           context.Context
	settled, passed *broker.Delivery
}

const limit = 1000

func newWorld(t *testing.T) *world {
	t.Helper()
	ctx := t.Context()
	w := &world{b: open(t, nil)}
	w.q = declare(t, w.b, "q", broker.QueueConfig{MaxBytes: limit, Lease: time.Minute})
	w.s = declareStream(t, w.b, broker.StreamConfig{MaxBytes: limit})
	check(t, w.b.DeclareExchange(ctx, "x", broker.ExchangeFanout))
	check(t, w.b.Bind(ctx, "q", "x", broker.Binding{}))
	w.c = consume(t, w.q, nil)
	send(t, w.q, body("settled"), body("passed"))
	w.settled, w.passed = one(t, w.c, "settled"), one(t, w.c, "passed")
	check(t, w.settled.Ack(ctx))
	time.Sleep(time.Minute) // virtual: the lease ends
	check(t, one(t, w.c, "passed").Ack(ctx))
	send(t, w.q, body("kept"))
	w.d = one(t, w.c, "kept")
	_, err := w.s.Publish(ctx, rec("k", "kept"))
	check(t, err)
	join := func(s *Stream, group string) broker.GroupConsumer {
		m, err := s.Consumer(ctx, group, nil)
		check(t, err)
		return m
	}
	w.m = join(w.s, "g")
	rs, err := w.m.Receive(ctx, 1)
	check(t, err)
	w.r = rs[0]
	w.x, err = w.b.Exchange(ctx, "x")
	check(t, err)
	w.tx, err = w.b.Transactor(ctx, "tx")
	check(t, err)

	other := w.b.Connect()
	shut, err := other.Queue(ctx, "q", nil)
	check(t, err)
	w.shutQ = shut.(*Queue)
	w.shutC = consume(t, shut, nil)
	stream, err := other.Stream(ctx, "s", nil)
	check(t, err)
	w.shutS = stream.(*Stream)
	w.shutM = join(w.shutS, "other")
	w.shutX, err = other.Exchange(ctx, "x")
	check(t, err)
	w.closed = other
	check(t, other.Close())
	ended, cancel := context.WithCancel(ctx)
	cancel()
	w.ended = ended
	return w
}

// second drops what a call returns besides its error.
func second[T any](_ T, err error) error { return err }

// Bad input is a typed error that names the operation, the adapter and the
// resource, and costs nothing that is stored or in hand.
func TestBadInput(t *testing.T) {
	const huge = time.Duration(math.MaxInt64)
	long := strings.Repeat("n", 256)
	over := make([]byte, limit+1)
	publish := func(m broker.Message) func(*world, context.Context) error {
		return func(w *world, ctx context.Context) error { return second(w.q.Publish(ctx, m)) }
	}
	route := func(m broker.Message) func(*world, context.Context) error {
		return func(w *world, ctx context.Context) error { return second(w.x.RouteTo("").Publish(ctx, m)) }
	}
	appends := func(r broker.Record) func(*world, context.Context) error {
		return func(w *world, ctx context.Context) error { return second(w.s.Publish(ctx, r)) }
	}
	declares := func(cfg broker.QueueConfig) func(*world, context.Context) error {
		return func(w *world, ctx context.Context) error { return w.b.DeclareQueue(ctx, "new", cfg) }
	}
	streams := func(cfg broker.StreamConfig) func(*world, context.Context) error {
		return func(w *world, ctx context.Context) error { return w.b.DeclareStream(ctx, "new", cfg) }
	}
	consumer := func(o broker.ConsumerOptions) func(*world, context.Context) error {
		return func(w *world, ctx context.Context) error { return second(w.q.Consumer(ctx, &o)) }
	}
	for _, test := range []struct {
		what string
		name string // in the error
		call func(w *world, ctx context.Context) error
		want error
	}{
		{"an oversized body", "q", publish(broker.Message{Body: over}), broker.ErrTooLarge},
		{"oversized headers", "q", publish(broker.Message{Headers: broker.Headers{{Key: "k", Value: string(over)}}}), broker.ErrTooLarge},
		{"body and headers that are oversized together", "q", publish(broker.Message{Body: over[:limit-1], Headers: broker.Headers{{Key: "k", Value: "v"}}}), broker.ErrTooLarge},
		{"an oversized content type", "q", publish(broker.Message{ContentType: string(over)}), broker.ErrTooLarge},
		{"an oversized entry of a batch", "q", func(w *world, ctx context.Context) error {
			return second(w.q.PublishBatch(ctx, []broker.Message{{Body: over}}))
		}, broker.ErrTooLarge},
		{"a header without a name", "q", publish(broker.Message{Headers: broker.Headers{{Value: "v"}}}), broker.ErrInvalid},
		{"a negative delay", "q", publish(broker.Message{Delay: -1}), broker.ErrInvalid},
		{"a huge delay", "q", publish(broker.Message{Delay: huge}), broker.ErrInvalid},
		{"a negative time to live", "q", publish(broker.Message{TTL: -1}), broker.ErrInvalid},
		{"a huge time to live", "q", publish(broker.Message{TTL: huge}), broker.ErrInvalid},
		{"a negative priority", "q", publish(broker.Message{Priority: -1}), broker.ErrInvalid},
		{"a huge priority", "q", publish(broker.Message{Priority: math.MaxInt}), broker.ErrInvalid},
		{"an oversized body to an exchange", "x", route(broker.Message{Body: over}), broker.ErrTooLarge},
		{"a huge delay to an exchange", "x", route(broker.Message{Delay: huge}), broker.ErrInvalid},
		{"an oversized value", "s", appends(broker.Record{Value: over}), broker.ErrTooLarge},
		{"an oversized key", "s", appends(broker.Record{Key: over}), broker.ErrTooLarge},
		{"a record's header without a name", "s", appends(broker.Record{Headers: broker.Headers{{Value: "v"}}}), broker.ErrInvalid},
		{"a negative partition", "s", appends(broker.Record{Pin: true, Partition: -1}), broker.ErrInvalid},
		{"a missing partition", "s", appends(broker.Record{Pin: true, Partition: 1}), broker.ErrNotFound},
		{"a tombstone with a value", "s", appends(broker.Record{Key: []byte("k"), Tombstone: true, Value: []byte("v")}), broker.ErrInvalid},
		{"a tombstone without a key", "s", appends(broker.Record{Tombstone: true}), broker.ErrInvalid},

		{"no name", "", func(w *world, ctx context.Context) error { return second(w.b.Queue(ctx, "", nil)) }, broker.ErrInvalid},
		{"a long name", long, func(w *world, ctx context.Context) error { return second(w.b.Queue(ctx, long, nil)) }, broker.ErrInvalid},
		{"a control character in a name", "a\n", func(w *world, ctx context.Context) error {
			return w.b.DeclareQueue(ctx, "a\n", broker.QueueConfig{})
		}, broker.ErrInvalid},
		{"a missing queue", "nobody", func(w *world, ctx context.Context) error { return second(w.b.Queue(ctx, "nobody", nil)) }, broker.ErrNotFound},
		{"a missing stream", "nobody", func(w *world, ctx context.Context) error { return second(w.b.Stream(ctx, "nobody", nil)) }, broker.ErrNotFound},
		{"a missing exchange", "nobody", func(w *world, ctx context.Context) error { return second(w.b.Exchange(ctx, "nobody")) }, broker.ErrNotFound},
		{"a group without a name", "", func(w *world, ctx context.Context) error { return second(w.s.Consumer(ctx, "", nil)) }, broker.ErrInvalid},
		{"a long transactional id", long, func(w *world, ctx context.Context) error { return second(w.b.Transactor(ctx, long)) }, broker.ErrInvalid},

		{"a negative lease of a queue", "new", declares(broker.QueueConfig{Lease: -1}), broker.ErrInvalid},
		{"a huge lease of a queue", "new", declares(broker.QueueConfig{Lease: huge}), broker.ErrUnsupported},
		{"a negative delay of a queue", "new", declares(broker.QueueConfig{Delay: -1}), broker.ErrInvalid},
		{"a negative time to live of a queue", "new", declares(broker.QueueConfig{TTL: -1}), broker.ErrInvalid},
		{"a negative limit of attempts", "new", declares(broker.QueueConfig{MaxAttempts: -1}), broker.ErrInvalid},
		{"attempts without dead letters", "new", declares(broker.QueueConfig{MaxAttempts: 1}), broker.ErrInvalid},
		{"a negative retention", "new", streams(broker.StreamConfig{Retention: -1}), broker.ErrInvalid},
		{"a huge retention", "new", streams(broker.StreamConfig{Retention: huge}), broker.ErrInvalid},
		{"negative partitions", "new", streams(broker.StreamConfig{Partitions: -1}), broker.ErrInvalid},
		{"too many partitions", "new", streams(broker.StreamConfig{Partitions: math.MaxInt32}), broker.ErrInvalid},

		{"a negative lease", "q", consumer(broker.ConsumerOptions{Lease: -1}), broker.ErrInvalid},
		{"a huge lease", "q", consumer(broker.ConsumerOptions{Lease: huge}), broker.ErrInvalid},
		{"a negative prefetch", "q", consumer(broker.ConsumerOptions{Prefetch: -1}), broker.ErrInvalid},
		{"receive none", "q", func(w *world, ctx context.Context) error { return second(w.c.Receive(ctx, 0)) }, broker.ErrInvalid},
		{"receive fewer than none", "s", func(w *world, ctx context.Context) error { return second(w.m.Receive(ctx, -1)) }, broker.ErrInvalid},
		{"nack with a negative delay", "q", func(w *world, ctx context.Context) error { return w.d.Nack(ctx, -1) }, broker.ErrInvalid},
		{"nack with a huge delay", "q", func(w *world, ctx context.Context) error { return w.d.Nack(ctx, huge) }, broker.ErrInvalid},
		{"extend by a negative lease", "q", func(w *world, ctx context.Context) error { return w.d.Extend(ctx, -1) }, broker.ErrInvalid},
		{"extend by a huge lease", "q", func(w *world, ctx context.Context) error { return w.d.Extend(ctx, huge) }, broker.ErrInvalid},
		{"reject without dead letters", "q", func(w *world, ctx context.Context) error { return w.d.Reject(ctx, "why") }, broker.ErrUnsupported},
		{"settle twice", "q", func(w *world, ctx context.Context) error { return w.settled.Ack(ctx) }, broker.ErrSettled},
		{"settle after the lease", "q", func(w *world, ctx context.Context) error { return w.passed.Ack(ctx) }, broker.ErrLeaseLost},
		{"seek before the first record", "s", func(w *world, ctx context.Context) error {
			return w.m.Seek(ctx, 0, broker.AtOffset(broker.NewOffset(-1)))
		}, broker.ErrOutOfRange},
		{"seek in a missing partition", "s", func(w *world, ctx context.Context) error { return w.m.Seek(ctx, 7, broker.Earliest()) }, broker.ErrNotFound},
		{"commit of what nobody received", "s", func(w *world, ctx context.Context) error { return w.m.Commit(ctx, &broker.Record{}) }, broker.ErrInvalid},

		{"publish on a closed queue", "q", func(w *world, ctx context.Context) error { return second(w.shutQ.Publish(ctx, body("m"))) }, broker.ErrClosed},
		{"a batch on a closed queue", "q", func(w *world, ctx context.Context) error {
			return second(w.shutQ.PublishBatch(ctx, []broker.Message{body("m")}))
		}, broker.ErrClosed},
		{"a consumer of a closed queue", "q", func(w *world, ctx context.Context) error { return second(w.shutQ.Consumer(ctx, nil)) }, broker.ErrClosed},
		{"receive by a closed consumer", "q", func(w *world, ctx context.Context) error { return second(w.shutC.Receive(ctx, 1)) }, broker.ErrClosed},
		{"publish on a closed stream", "s", func(w *world, ctx context.Context) error { return second(w.shutS.Publish(ctx, rec("", "m"))) }, broker.ErrClosed},
		{"lag of a closed stream", "s", func(w *world, ctx context.Context) error { return second(w.shutS.Lag(ctx, "g")) }, broker.ErrClosed},
		{"receive by a closed member", "s", func(w *world, ctx context.Context) error { return second(w.shutM.Receive(ctx, 1)) }, broker.ErrClosed},
		{"commit by a closed member", "s", func(w *world, ctx context.Context) error { return w.shutM.Commit(ctx) }, broker.ErrClosed},
		{"publish on a closed exchange", "x", func(w *world, ctx context.Context) error { return second(w.shutX.RouteTo("").Publish(ctx, body("m"))) }, broker.ErrClosed},
		{"open on a closed connection", "q", func(w *world, ctx context.Context) error { return second(w.closed.Queue(ctx, "q", nil)) }, broker.ErrClosed},
		{"ping on a closed connection", "", func(w *world, ctx context.Context) error { return w.closed.Ping(ctx) }, broker.ErrClosed},

		{"publish, cancelled", "q", func(w *world, _ context.Context) error { return second(w.q.Publish(w.ended, body("m"))) }, context.Canceled},
		{"receive, cancelled", "q", func(w *world, _ context.Context) error { return second(w.c.Receive(w.ended, 1)) }, context.Canceled},
		{"acknowledge, cancelled", "q", func(w *world, _ context.Context) error { return w.d.Ack(w.ended) }, context.Canceled},
		{"publish to an exchange, cancelled", "x", func(w *world, _ context.Context) error { return second(w.x.RouteTo("").Publish(w.ended, body("m"))) }, context.Canceled},
		{"append, cancelled", "s", func(w *world, _ context.Context) error { return second(w.s.Publish(w.ended, rec("", "m"))) }, context.Canceled},
		{"receive records, cancelled", "s", func(w *world, _ context.Context) error { return second(w.m.Receive(w.ended, 1)) }, context.Canceled},
		{"commit, cancelled", "s", func(w *world, _ context.Context) error { return w.m.Commit(w.ended, w.r) }, context.Canceled},
		{"begin, cancelled", "tx", func(w *world, _ context.Context) error { return second(w.tx.Begin(w.ended)) }, context.Canceled},
		{"declare, cancelled", "new", func(w *world, _ context.Context) error {
			return w.b.DeclareQueue(w.ended, "new", broker.QueueConfig{})
		}, context.Canceled},
	} {
		t.Run(test.what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				err := test.call(w, t.Context())
				e, ok := errors.AsType[*broker.Error](err)
				switch {
				case !errors.Is(err, test.want):
					t.Errorf("%v, want %v", err, test.want)
				case !ok || e.Op == "" || e.Adapter != adapter || e.Name != test.name:
					t.Errorf("%#v: want a *broker.Error with an operation, of %s and %q", err, adapter, test.name)
				case broker.IsTemporary(err):
					t.Errorf("%v: the same call will never succeed", err)
				}
				w.intact(t)
			})
		})
	}
}

// intact checks that nothing was stored, lost or settled.
func (w *world) intact(t *testing.T) {
	t.Helper()
	ctx := t.Context()
	none(t, w.c, time.Second)
	check(t, w.d.Ack(ctx))
	stats, err := w.b.QueueStats(ctx, "q")
	check(t, err)
	if stats.Ready+stats.InFlight+stats.Delayed != 0 {
		t.Errorf("the queue holds %+v", stats)
	}
	if got := read(t, w.s, broker.Range{}); got != "kept" {
		t.Errorf("the stream holds %q", got)
	}
	check(t, w.m.Commit(ctx, w.r))
	if _, err := w.b.Queue(ctx, "new", nil); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("a queue was declared: %v", err)
	}
	if _, err := w.b.Stream(ctx, "new", nil); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("a stream was declared: %v", err)
	}
}

// A nil body is an empty one, and no tombstone.
func TestNilBodies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		ctx := t.Context()
		check(t, second(w.q.Publish(ctx, broker.Message{})))
		check(t, second(w.x.RouteTo("").Publish(ctx, broker.Message{})))
		for range 2 {
			if d := one(t, w.c, ""); len(d.Body) != 0 {
				t.Errorf("body %q", d.Body)
			}
		}
		check(t, second(w.s.Publish(ctx, broker.Record{Key: []byte("k")})))
		rs, err := w.m.Receive(ctx, 1)
		check(t, err)
		if r := rs[0]; len(r.Value) != 0 || r.Tombstone {
			t.Errorf("value %q, tombstone %v", r.Value, r.Tombstone)
		}
		check(t, second(w.q.PublishBatch(ctx, nil)))
		check(t, second(w.s.PublishBatch(ctx, nil)))
	})
}

// A handler that panics, and one that never returns: the message is still there.
func TestBadHandlers(t *testing.T) {
	for _, test := range []struct {
		what    string
		handler func(attempt int, forever chan struct{}) error
		want    error // of Run
	}{
		{"panics", func(attempt int, _ chan struct{}) error {
			if attempt == 1 {
				panic("oops")
			}
			return nil
		}, nil},
		{"never returns", func(_ int, forever chan struct{}) error { <-forever; return nil }, broker.ErrShutdown},
	} {
		t.Run(test.what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := open(t, nil)
				q := declare(t, b, "q", broker.QueueConfig{})
				send(t, q, body("m"))
				forever := make(chan struct{})
				w := &broker.Worker{Queue: q, DrainTimeout: time.Second, Handler: func(_ context.Context, d *broker.Delivery) error {
					return test.handler(d.Attempt, forever)
				}}
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				start := time.Now()
				err := w.Run(ctx)
				if took := time.Since(start); took > 2*time.Minute {
					t.Errorf("Run ended after %v", took)
				}
				if test.want == nil {
					check(t, err)
					stats, err := b.QueueStats(t.Context(), "q")
					check(t, err)
					if stats.Ready+stats.InFlight+stats.Delayed != 0 || w.Stats().Panics != 1 {
						t.Errorf("%+v, %+v", stats, w.Stats())
					}
					return
				}
				wantErr(t, err, test.want)
				if e, _ := errors.AsType[*broker.Error](err); e.Name != "q" {
					t.Errorf("%v names %q", err, e.Name)
				}
				check(t, one(t, consume(t, q, nil), "m").Ack(t.Context()))
				close(forever)
			})
		})
	}
}
