package memory

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/queuestream/broker"
)

func open(t *testing.T, o *Options) *Broker {
	t.Helper()
	b, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { check(t, b.Close()) })
	return b
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error %v, want %v", err, want)
	}
	if e, ok := errors.AsType[*broker.Error](err); !ok || e.Op == "" {
		t.Fatalf("error %v is not a *broker.Error with an operation", err)
	}
}

func declare(t *testing.T, b *Broker, name string, cfg broker.QueueConfig) *Queue {
	t.Helper()
	check(t, b.DeclareQueue(t.Context(), name, cfg))
	q, err := b.Queue(t.Context(), name, nil)
	check(t, err)
	return q.(*Queue)
}

func consume(t *testing.T, q broker.Queue, o *broker.ConsumerOptions) *Consumer {
	t.Helper()
	c, err := q.Consumer(t.Context(), o)
	check(t, err)
	return c.(*Consumer)
}

func send(t *testing.T, p broker.Publisher, ms ...broker.Message) {
	t.Helper()
	for _, m := range ms {
		if _, err := p.Publish(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
}

func body(s string) broker.Message { return broker.Message{Body: []byte(s)} }

// one receives a single delivery and checks its body.
func one(t *testing.T, c *Consumer, want string) *broker.Delivery {
	t.Helper()
	ds, err := c.Receive(t.Context(), 1)
	check(t, err)
	if len(ds) != 1 || string(ds[0].Body) != want {
		t.Fatalf("received %d, first %q, want %q", len(ds), ds[0].Body, want)
	}
	return ds[0]
}

// none checks that nothing can be received for d.
func none(t *testing.T, c *Consumer, d time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	ds, err := c.Receive(ctx, 10)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("received %v, %v, want nothing", ds, err)
	}
}

func TestQueueBasics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, nil)
		declare(t, b, "dead", broker.QueueConfig{})
		q := declare(t, b, "q", broker.QueueConfig{MaxAttempts: 3, DeadLetter: "dead"})
		c := consume(t, q, nil)
		send(t, q, body("a"), body("b"))
		d := one(t, c, "a")
		check(t, d.Nack(t.Context(), 0))
		d = one(t, c, "a")
		if d.Attempt != 2 {
			t.Fatalf("attempt %d", d.Attempt)
		}
		d2 := one(t, c, "b")
		check(t, d2.Ack(t.Context()))
		wantErr(t, d2.Ack(t.Context()), broker.ErrSettled)
		start := time.Now()
		d3 := one(t, c, "a") // the lease of d ends
		if got := time.Since(start); got != 30*time.Second {
			t.Fatalf("redelivered after %v", got)
		}
		wantErr(t, d.Ack(t.Context()), broker.ErrLeaseLost)
		check(t, d3.Extend(t.Context(), time.Minute))
		none(t, c, 59*time.Second)
		dead, err := b.Queue(t.Context(), "dead", nil)
		check(t, err)
		dc := consume(t, dead, nil)
		start = time.Now()
		dl := one(t, dc, "a") // by itself, while nobody looks at q
		if got := time.Since(start); got != time.Second {
			t.Fatalf("dead-lettered after %v", got)
		}
		why, ok := broker.DeadLetterOf(&dl.Message)
		if !ok || why.Attempts != 3 || why.Queue != "q" {
			t.Fatalf("dead letter %+v", why)
		}
		check(t, dl.Nack(t.Context(), 0))
		n, err := b.Redrive(t.Context(), "dead", "", 0)
		check(t, err)
		if n != 1 {
			t.Fatalf("redrove %d", n)
		}
		if d := one(t, c, "a"); d.Attempt != 1 || len(d.Headers) != 0 {
			t.Fatalf("redriven %+v", d)
		}
	})
}

func TestGroups(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, nil)
		q := declare(t, b, "q", broker.QueueConfig{})
		c := consume(t, q, nil)
		for i := range 3 {
			for _, g := range []string{"x", "y"} {
				send(t, q, broker.Message{GroupID: g, Body: fmt.Appendf(nil, "%s%d", g, i)})
			}
		}
		ds, err := c.Receive(t.Context(), 10)
		check(t, err)
		if len(ds) != 2 || string(ds[0].Body) != "x0" || string(ds[1].Body) != "y0" {
			t.Fatalf("received %v", ds)
		}
		check(t, ds[0].Nack(t.Context(), time.Second))
		check(t, ds[1].Ack(t.Context()))
		check(t, one(t, c, "y1").Ack(t.Context()))
		check(t, one(t, c, "y2").Ack(t.Context()))
		none(t, c, 900*time.Millisecond)
		for _, want := range []string{"x0", "x1", "x2"} {
			check(t, one(t, c, want).Ack(t.Context()))
		}
		if len(q.q.groups) != 0 {
			t.Fatalf("%d groups left", len(q.q.groups))
		}
	})
}

func TestStreamBasics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, nil)
		check(t, b.DeclareStream(t.Context(), "s", broker.StreamConfig{Partitions: 3}))
		s, err := b.Stream(t.Context(), "s", nil)
		check(t, err)
		for i := range 30 {
			_, err := s.Publish(t.Context(), broker.Record{Key: fmt.Appendf(nil, "k%d", i%7), Value: fmt.Append(nil, i)})
			check(t, err)
		}
		m, err := s.Consumer(t.Context(), "g", nil)
		check(t, err)
		var rs []*broker.Record
		for len(rs) < 30 {
			got, err := m.Receive(t.Context(), 7)
			check(t, err)
			rs = append(rs, got...)
		}
		check(t, m.Commit(t.Context(), rs...))
		lags, err := s.Lag(t.Context(), "g")
		check(t, err)
		for _, l := range lags {
			if l.Lag != 0 || !l.HasCommit {
				t.Fatalf("lag %+v", l)
			}
		}
		m2, err := s.Consumer(t.Context(), "g", nil)
		check(t, err)
		if len(m.Partitions()) != 2 || len(m2.Partitions()) != 1 {
			t.Fatalf("assigned %v and %v", m.Partitions(), m2.Partitions())
		}
		n := 0
		for r, err := range s.Read(t.Context(), broker.Range{}) {
			check(t, err)
			if r.Assignment() != nil {
				t.Fatal("a read record has an assignment")
			}
			n++
		}
		if n != 30 {
			t.Fatalf("read %d", n)
		}
	})
}
