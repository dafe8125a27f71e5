package memory

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/queuestream/broker"
)

func faulty(t *testing.T, f Faults) (*Broker, *Queue, *Consumer) {
	t.Helper()
	b := open(t, &Options{Faults: f, Seed: 7})
	q := declare(t, b, "q", broker.QueueConfig{})
	return b, q, consume(t, q, nil)
}

func TestFaults(t *testing.T) {
	run := func(name string, f func(t *testing.T)) {
		t.Run(name, func(t *testing.T) { synctest.Test(t, f) })
	}
	run("DropAck", func(t *testing.T) {
		_, q, c := faulty(t, Faults{DropAck: 1})
		send(t, q, body("a"))
		check(t, one(t, c, "a").Ack(t.Context()))
		start := time.Now()
		if d := one(t, c, "a"); d.Attempt != 2 || time.Since(start) != 30*time.Second {
			t.Fatalf("attempt %d after %v", d.Attempt, time.Since(start))
		}
	})
	run("DropAck without a lease", func(t *testing.T) {
		b := open(t, &Options{Profile: RabbitMQQuorum, Faults: Faults{DropAck: 1}})
		q := declare(t, b, "q", broker.QueueConfig{})
		c := consume(t, q, nil)
		send(t, q, body("a"))
		check(t, one(t, c, "a").Ack(t.Context()))
		one(t, c, "a")
	})
	run("LoseAnswer", func(t *testing.T) {
		b, q, c := faulty(t, Faults{LoseAnswer: 1})
		r, err := q.Publish(t.Context(), body("a"))
		wantErr(t, err, broker.ErrUnknownOutcome)
		if d := one(t, c, "a"); d.ID != r.ID {
			t.Fatal("another ID")
		}
		s := declareStream(t, b, broker.StreamConfig{})
		_, err = s.Publish(t.Context(), rec("", "a"))
		wantErr(t, err, broker.ErrUnknownOutcome)
		if got := read(t, s, broker.Range{}); got != "a" {
			t.Fatal(got)
		}
	})
	run("Fail", func(t *testing.T) {
		b, q, c := faulty(t, Faults{Fail: 1})
		_, err := q.Publish(t.Context(), body("a"))
		wantErr(t, err, broker.ErrUnavailable)
		if !broker.IsTemporary(err) {
			t.Fatal("not temporary")
		}
		none(t, c, time.Second)
		_, err = declareStream(t, b, broker.StreamConfig{}).Publish(t.Context(), rec("", "a"))
		wantErr(t, err, broker.ErrUnavailable)
	})
	run("Duplicate", func(t *testing.T) {
		_, q, c := faulty(t, Faults{Duplicate: 1})
		send(t, q, body("a"))
		d := one(t, c, "a")
		if d2 := one(t, c, "a"); d2.ID != d.ID || d2.Attempt != 2 {
			t.Fatalf("%+v", d2)
		}
		check(t, d.Ack(t.Context()))
	})
	run("Delay", func(t *testing.T) {
		_, q, c := faulty(t, Faults{Delay: 1, MaxDelay: time.Minute})
		start := time.Now()
		for i := range 20 {
			send(t, q, body(fmt.Sprint(i)))
		}
		for range 20 {
			ds, err := c.Receive(t.Context(), 1)
			check(t, err)
			check(t, ds[0].Ack(t.Context()))
		}
		if d := time.Since(start); d < 30*time.Second || d > time.Minute {
			t.Fatalf("took %v", d)
		}
	})
	run("Disconnect", func(t *testing.T) {
		_, q, c := faulty(t, Faults{Disconnect: 1})
		send(t, q, body("a"))
		d := one(t, c, "a")
		one(t, c, "a")
		wantErr(t, d.Ack(t.Context()), broker.ErrLeaseLost)
	})
	run("PartialBatch", func(t *testing.T) {
		_, q, c := faulty(t, Faults{PartialBatch: 0.5})
		for range 20 {
			send(t, q, body("x"))
		}
		ds, err := c.Receive(t.Context(), 20)
		check(t, err)
		left := 20
		for round := 0; left > 0; round++ {
			err = broker.AckAll(t.Context(), ds...)
			var again []*broker.Delivery
			for i := range ds {
				switch e := broker.ErrorAt(err, i); {
				case e == nil:
					left--
				case errors.Is(e, broker.ErrUnavailable) && broker.IsTemporary(e):
					again = append(again, ds[i])
				default:
					t.Fatal(e)
				}
			}
			if round == 0 && (len(again) == 0 || len(again) == 20) {
				t.Fatalf("%d failed", len(again))
			}
			ds = again
		}
	})
}
