package memory

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/queuestream/broker"
)

// Messages that expire or are purged while nobody receives are let go, not kept
// until somebody does.
func TestDroppedMessagesAreLetGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, &Options{MaxQueueBytes: 100 * (entryOverhead + 100)})
		q := declare(t, b, "q", broker.QueueConfig{})
		kept := func() int {
			q.q.lock()
			defer q.q.unlock()
			return len(q.q.fresh.buf) + len(q.q.back.items) + len(q.q.events.items)
		}
		for range 200 {
			for range 50 {
				send(t, q, broker.Message{Body: make([]byte, 64), TTL: time.Second})
			}
			<-time.After(time.Second)
		}
		if n := kept(); n > 1000 {
			t.Errorf("%d places are kept for at most 100 messages", n)
		}
		for range 100 {
			send(t, q, body("x"), body("x"))
			check(t, b.Purge(t.Context(), "q"))
		}
		send(t, q, body("first"), body("second"))
		if n := kept(); n > 1000 {
			t.Errorf("%d places are kept for two messages", n)
		}
		c := consume(t, q, nil)
		one(t, c, "first")
		one(t, c, "second")
	})
}

// What a queue keeps of acknowledged messages, to use it again, is small: a
// large body goes.
func TestAcknowledgedBodiesAreLetGo(t *testing.T) {
	for _, m := range []broker.Message{
		{Body: make([]byte, smallBody+1)},
		{Body: make([]byte, smallBody+1), ContentType: "x"},
		{Body: make([]byte, smallBody)},
		{Body: []byte("x"), ContentType: "x"},
		{},
	} {
		b := open(t, nil)
		q := declare(t, b, "q", broker.QueueConfig{})
		c := consume(t, q, nil)
		for range 10 {
			send(t, q, m)
		}
		ds, err := c.Receive(t.Context(), 10)
		check(t, err)
		for _, d := range ds {
			if len(d.Body) != len(m.Body) {
				t.Fatalf("received %d bytes of %d", len(d.Body), len(m.Body))
			}
			check(t, d.Ack(t.Context()))
		}
		spare := slices.Concat(q.q.in.spare, q.q.spare)
		for _, e := range spare {
			if cap(e.body) > smallBody || e.extra != nil {
				t.Fatalf("kept: room for a body of %d bytes, %+v", cap(e.body), e.extra)
			}
		}
		if len(ds) != 10 || len(spare) != 10 {
			t.Fatalf("received %d, kept %d: want 10", len(ds), len(spare))
		}
	}
}

// The ring of ready messages keeps its order however many are dropped from it.
func TestDroppedMessagesLeaveTheOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, nil)
		q := declare(t, b, "q", broker.QueueConfig{})
		var want []string
		for i := range 1000 {
			m := body(fmt.Sprint(i))
			if i%10 != 0 {
				m.TTL = time.Duration(1+i%3) * time.Second
			} else {
				want = append(want, fmt.Sprint(i))
			}
			send(t, q, m)
		}
		<-time.After(3 * time.Second)
		c := consume(t, q, nil)
		for _, w := range want {
			check(t, one(t, c, w).Ack(t.Context()))
		}
		none(t, c, time.Second)
		st, err := b.QueueStats(t.Context(), "q")
		check(t, err)
		if st.Ready != 0 || q.q.bytes != 0 {
			t.Errorf("%+v, %d bytes", st, q.q.bytes)
		}
	})
}

// A queue's own time to live holds for dead letters and for what is redriven, too.
func TestDeadLettersExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, nil)
		dead := declare(t, b, "dead", broker.QueueConfig{TTL: time.Minute})
		q := declare(t, b, "q", broker.QueueConfig{DeadLetter: "dead", TTL: time.Hour})
		c := consume(t, q, nil)
		send(t, q, body("a"), body("b"))
		check(t, one(t, c, "a").Reject(t.Context(), "no"))
		check(t, one(t, c, "b").Reject(t.Context(), "no"))
		<-time.After(50 * time.Second)
		n, err := b.Redrive(t.Context(), "dead", "", 1)
		check(t, err)
		if n != 1 {
			t.Fatalf("redrove %d", n)
		}
		<-time.After(10 * time.Second)
		none(t, consume(t, dead, nil), time.Second)
		<-time.After(time.Hour - 11*time.Second)
		none(t, c, time.Second)
	})
}

func TestHugeMaxAttempts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, nil)
		declare(t, b, "dead", broker.QueueConfig{})
		declare(t, b, "q", broker.QueueConfig{})
		for _, n := range []int64{math.MaxInt32 + 2, 1<<32 + 1, math.MaxInt64} {
			q, err := b.Queue(t.Context(), "q", &broker.QueueOptions{MaxAttempts: int(n), DeadLetter: "dead"})
			check(t, err)
			c := consume(t, q, nil)
			send(t, q, body("a"))
			check(t, one(t, c, "a").Nack(t.Context(), 0))
			check(t, one(t, c, "a").Ack(t.Context()))
		}
	})
}

// A transaction that was open for too long ends with its Commit as any other
// that aborts: its members go back, and the next may begin.
func TestCommitOfAnExpiredTransaction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		b := open(t, nil)
		s := declareStream(t, b, broker.StreamConfig{})
		appendTo(t, s, broker.Record{Value: []byte("a")})
		m := join(t, s, "g", nil)
		x, err := b.Transactor(ctx, "x")
		check(t, err)
		tx, err := x.Begin(ctx)
		check(t, err)
		check(t, tx.CommitOffsets(ctx, m, take(t, m, 1)...))
		<-time.After(time.Minute)
		wantErr(t, tx.Commit(ctx), broker.ErrTxAborted)
		if r := take(t, m, 1)[0]; string(r.Value) != "a" {
			t.Errorf("received %q", r.Value)
		}
		tx2, err := x.Begin(ctx)
		check(t, err)
		if err := errors.Join(tx.Rollback(ctx), tx2.Commit(ctx)); err != nil {
			t.Error(err)
		}
	})
}

// What transactions leave in a compacted log when they abort goes away.
func TestCompactionRemovesAbortedRecords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		b := open(t, nil)
		s := declareStream(t, b, broker.StreamConfig{Compact: true})
		x, err := b.Transactor(ctx, "x")
		check(t, err)
		for range 100 {
			tx, err := x.Begin(ctx)
			check(t, err)
			check(t, tx.Publish(ctx, s, broker.Record{Key: []byte("k"), Value: []byte("v")}))
			check(t, tx.Rollback(ctx))
		}
		if p := s.s.parts[0]; p.records != 0 || p.bytes != 0 || p.aborted != 0 {
			t.Errorf("%d records, %d bytes, %d aborted are kept", p.records, p.bytes, p.aborted)
		}
	})
}
