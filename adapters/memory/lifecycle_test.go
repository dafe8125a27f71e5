package memory

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/queuestream/broker"
)

func TestOpenURL(t *testing.T) {
	ctx := t.Context()
	b, err := OpenURL(ctx, "memory://orders?profile=sqs-fifo&seed=7&full=refuse&max-queue-bytes=5000&max-partition-bytes=-1"+
		"&session-timeout=1s&rebalance-timeout=2s&transaction-timeout=3s")
	check(t, err)
	want := Options{
		Name: "orders", Profile: SQSFIFO, Seed: 7, WhenFull: Refuse, MaxQueueBytes: 5000,
		SessionTimeout: time.Second, RebalanceTimeout: 2 * time.Second, TransactionTimeout: 3 * time.Second,
	}
	if b.(*Broker).srv.opts != want {
		t.Fatalf("%+v", b.(*Broker).srv.opts)
	}
	check(t, b.Close())
	for _, bad := range []string{
		"kafka://x", "memory://x?profile=none", "memory://x?colour=red", "memory://x?seed=a", "memory://x?full=maybe",
		"memory://x?session-timeout=1", "memory://x?session-timeout=-1s", "memory://%zz", "memory://x?a=%zz",
		"memory://x?full=block&max-queue-bytes=x",
	} {
		_, err := OpenURL(ctx, bad)
		wantErr(t, err, broker.ErrInvalid)
	}
	for _, o := range []Options{
		{Faults: Faults{DropAck: 2}}, {Faults: Faults{Delay: math.NaN()}}, {Faults: Faults{MaxDelay: -1}}, {WhenFull: 9},
	} {
		_, err := Open(ctx, &o)
		wantErr(t, err, broker.ErrInvalid)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	_, err = Open(ended, nil)
	wantErr(t, err, context.Canceled)
}

func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		b, err := Open(ctx, &Options{MaxQueueBytes: 1})
		check(t, err)
		other := b.Connect()
		q := declare(t, b, "q", broker.QueueConfig{})
		send(t, q, body("unread"))
		empty := declare(t, b, "empty", broker.QueueConfig{})
		c := consume(t, empty, nil)
		held := declare(t, b, "held", broker.QueueConfig{})
		send(t, held, body("held"))
		d := one(t, consume(t, held, nil), "held")
		check(t, b.DeclareStream(ctx, "s", broker.StreamConfig{}))
		s, err := b.Stream(ctx, "s", nil)
		check(t, err)
		m, err := s.Consumer(ctx, "g", nil)
		check(t, err)
		var wg sync.WaitGroup
		for _, f := range []func() error{
			func() error { _, err := q.Publish(ctx, body("blocked")); return err },
			func() error { _, err := c.Receive(ctx, 1); return err },
			func() error { _, err := m.Receive(ctx, 1); return err },
		} {
			wg.Add(1)
			go func() {
				defer wg.Done()
				if err := f(); !errors.Is(err, broker.ErrClosed) {
					t.Errorf("error %v", err)
				}
			}()
		}
		synctest.Wait()
		check(t, b.Close())
		wg.Wait()
		check(t, b.Close())
		check(t, q.Close())
		check(t, c.Close())
		check(t, m.Close())
		check(t, s.Close())
		wantErr(t, d.Ack(ctx), broker.ErrLeaseLost)
		for _, f := range []func() error{
			func() error { return b.Ping(ctx) },
			func() error { _, err := b.Queue(ctx, "q", nil); return err },
			func() error { _, err := b.Stream(ctx, "s", nil); return err },
			func() error { _, err := b.Exchange(ctx, "x"); return err },
			func() error { _, err := b.Transactor(ctx, "x"); return err },
			func() error { _, err := b.ReplyQueue(ctx); return err },
			func() error { return b.DeclareQueue(ctx, "x", broker.QueueConfig{}) },
			func() error { _, err := q.Publish(ctx, body("x")); return err },
			func() error { _, err := q.Consumer(ctx, nil); return err },
			func() error { _, err := c.Receive(ctx, 1); return err },
			func() error { _, err := s.Publish(ctx, broker.Record{}); return err },
			func() error { _, err := s.Consumer(ctx, "g", nil); return err },
			func() error { _, err := s.Partitions(ctx); return err },
			func() error { _, err := s.Lag(ctx, "g"); return err },
			func() error { return m.Commit(ctx) },
			func() error { return m.Seek(ctx, 0, broker.Earliest()) },
			func() error { _, err := m.Receive(ctx, 1); return err },
		} {
			wantErr(t, f(), broker.ErrClosed)
		}
		for _, err := range s.Read(ctx, broker.Range{}) {
			wantErr(t, err, broker.ErrClosed)
		}
		// The other connection has all that was stored.
		oq, err := other.Queue(ctx, "held", nil)
		check(t, err)
		if d := one(t, consume(t, oq, nil), "held"); d.Attempt != 2 {
			t.Fatalf("attempt %d", d.Attempt)
		}
		check(t, other.Close())
	})
}

func TestShutdownDrains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		b, err := Open(ctx, nil)
		check(t, err)
		other := b.Connect()
		defer func() { check(t, other.Close()) }()
		q := declare(t, b, "q", broker.QueueConfig{})
		send(t, q, body("a"), body("b"))
		c := consume(t, q, nil)
		d := one(t, c, "a")
		check(t, b.DeclareStream(ctx, "s", broker.StreamConfig{}))
		s, err := b.Stream(ctx, "s", nil)
		check(t, err)
		_, err = s.Publish(ctx, broker.Record{Value: []byte("r")})
		check(t, err)
		var rs []*broker.Record
		var m broker.GroupConsumer
		committed := false
		m, err = s.Consumer(ctx, "g", &broker.GroupOptions{OnRevoked: func(ctx context.Context, _ []int32) {
			committed = m.Commit(ctx, rs...) == nil
		}})
		check(t, err)
		rs, err = m.Receive(ctx, 1)
		check(t, err)
		done := make(chan error)
		go func() { done <- b.Shutdown(ctx) }()
		synctest.Wait()
		_, err = c.Receive(ctx, 1)
		wantErr(t, err, broker.ErrShutdown)
		_, err = m.Receive(ctx, 1)
		wantErr(t, err, broker.ErrClosed)
		send(t, q, body("c")) // a handler may still publish
		<-time.After(time.Second)
		select {
		case err := <-done:
			t.Fatalf("Shutdown returned %v while a delivery is held", err)
		default:
		}
		check(t, d.Ack(ctx))
		check(t, <-done)
		if !committed {
			t.Fatal("OnRevoked did not commit")
		}
		oq, err := other.Queue(ctx, "q", nil)
		check(t, err)
		st, err := other.QueueStats(ctx, "q")
		check(t, err)
		if st.Ready != 2 || st.Consumers != 0 {
			t.Fatalf("%+v", st)
		}
		one(t, consume(t, oq, nil), "b")

		late, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		start := time.Now()
		err = other.Shutdown(late) // b is held
		wantErr(t, err, context.DeadlineExceeded)
		if time.Since(start) != time.Second {
			t.Fatalf("took %v", time.Since(start))
		}
	})
}

func TestShutdownWaitsForBlockedPublishers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		b, err := Open(ctx, &Options{MaxQueueBytes: 1})
		check(t, err)
		other := b.Connect()
		defer func() { check(t, other.Close()) }()
		q := declare(t, b, "q", broker.QueueConfig{})
		send(t, q, body("a"))
		published := make(chan error, 1)
		go func() { _, err := q.Publish(ctx, body("b")); published <- err }()
		synctest.Wait()
		done := make(chan error, 1)
		go func() { done <- b.Shutdown(ctx) }()
		synctest.Wait()
		oq, err := other.Queue(ctx, "q", nil)
		check(t, err)
		c := consume(t, oq, nil)
		check(t, one(t, c, "a").Ack(ctx))
		check(t, <-published)
		check(t, <-done)
		check(t, one(t, c, "b").Ack(ctx))
	})
}

func TestBlockAndRefuse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		big := broker.Message{Body: make([]byte, 10_000)}
		b := open(t, &Options{MaxQueueBytes: 15_000})
		q := declare(t, b, "q", broker.QueueConfig{})
		c := consume(t, q, nil)
		send(t, q, big)
		late, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		_, err := q.Publish(late, big)
		wantErr(t, err, context.DeadlineExceeded)
		if errors.Is(err, broker.ErrUnknownOutcome) {
			t.Fatal("nothing was stored")
		}
		order := make(chan int, 3)
		for i := range 3 { // first come, first served
			go func() {
				m := big
				m.Headers = broker.Headers{{Key: "n", Value: fmt.Sprint(i)}}
				if _, err := q.Publish(ctx, m); err != nil {
					t.Error(err)
				}
				order <- i
			}()
			synctest.Wait()
		}
		for i := -1; i < 3; i++ {
			ds, err := c.Receive(ctx, 1)
			check(t, err)
			if i >= 0 && ds[0].Headers.Get("n") != fmt.Sprint(i) {
				t.Fatalf("received %v", ds[0].Headers)
			}
			check(t, ds[0].Ack(ctx))
			synctest.Wait()
		}
		// Messages that end by themselves make room as well.
		big.TTL = time.Minute
		send(t, q, big)
		start := time.Now()
		send(t, q, big)
		if time.Since(start) != time.Minute {
			t.Fatalf("room after %v", time.Since(start))
		}

		b = open(t, &Options{MaxQueueBytes: 15_000, WhenFull: Refuse})
		q = declare(t, b, "q", broker.QueueConfig{})
		send(t, q, big)
		_, err = q.Publish(ctx, big)
		wantErr(t, err, broker.ErrFull)
		if !broker.IsTemporary(err) {
			t.Fatal("not temporary")
		}

		b = open(t, nil)
		q = declare(t, b, "q", broker.QueueConfig{MaxLength: 2})
		if !q.Capabilities().Bounded {
			t.Fatal("not bounded")
		}
		rs, err := q.PublishBatch(ctx, []broker.Message{body("a"), body("b"), body("c")})
		if broker.ErrorAt(err, 1) != nil || !errors.Is(broker.ErrorAt(err, 2), broker.ErrFull) || rs[2].ID == "" {
			t.Fatalf("%v %v", rs, err)
		}
	})
}

func TestRefusedMessages(t *testing.T) {
	b := open(t, nil)
	ctx := t.Context()
	q := declare(t, b, "q", broker.QueueConfig{MaxBytes: 100})
	for _, c := range []struct {
		m    broker.Message
		want error
	}{
		{broker.Message{Delay: -1}, broker.ErrInvalid},
		{broker.Message{TTL: math.MaxInt64}, broker.ErrInvalid},
		{broker.Message{Priority: -1}, broker.ErrInvalid},
		{broker.Message{Priority: 1}, broker.ErrUnsupported},
		{broker.Message{DedupID: "x"}, broker.ErrUnsupported},
		{broker.Message{Headers: broker.Headers{{}}}, broker.ErrInvalid},
		{broker.Message{Body: make([]byte, 101)}, broker.ErrTooLarge},
	} {
		r, err := q.Publish(ctx, c.m)
		wantErr(t, err, c.want)
		if r.ID == "" {
			t.Fatal("no ID")
		}
	}
	c := consume(t, q, nil)
	for _, max := range []int{0, -1} {
		_, err := c.Receive(ctx, max)
		wantErr(t, err, broker.ErrInvalid)
	}
	_, err := q.Consumer(ctx, &broker.ConsumerOptions{Prefetch: -1})
	wantErr(t, err, broker.ErrInvalid)
	send(t, q, body("x"))
	ended, cancel := context.WithCancel(ctx)
	cancel()
	_, err = c.Receive(ended, 1)
	wantErr(t, err, context.Canceled)
	_, err = q.Publish(ended, body("x"))
	wantErr(t, err, context.Canceled)
	_, err = q.Consumer(ended, nil)
	wantErr(t, err, context.Canceled)
	d := one(t, c, "x")
	wantErr(t, d.Ack(ended), context.Canceled)
	wantErr(t, d.Nack(ctx, -1), broker.ErrInvalid)
	wantErr(t, d.Extend(ctx, math.MaxInt64), broker.ErrInvalid)
	check(t, d.Ack(ctx))
}

// TestCopies checks that neither side sees what the other changes.
func TestCopies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		b := open(t, nil)
		q := declare(t, b, "q", broker.QueueConfig{})
		c := consume(t, q, nil)
		for _, size := range []int{1, 100, 256, 1000, 100_000} {
			want := strings.Repeat("x", size)
			m := broker.Message{Body: []byte(want), Headers: broker.Headers{{Key: "k", Value: "v"}}}
			send(t, q, m)
			m.Body[0], m.Headers[0].Value = 'y', "w"
			for attempt := range 3 {
				d := one(t, c, want)
				if d.Headers.Get("k") != "v" || d.Attempt != attempt+1 {
					t.Fatalf("%v %d", d.Headers, d.Attempt)
				}
				clear(d.Body)
				d.Headers[0].Value = "changed"
				d.Body, d.ID, d.GroupID = append(d.Body, 'z'), "other", "g"
				if attempt == 2 {
					check(t, d.Ack(ctx))
				} else {
					check(t, d.Nack(ctx, 0))
				}
			}
		}
		// A batch shares memory, but not so that an append is seen.
		send(t, q, body("a"), body("b"), body("c"))
		ds, err := c.Receive(ctx, 10)
		check(t, err)
		_ = append(ds[1].Body, "overwritten"...)
		if string(ds[2].Body) != "c" {
			t.Fatalf("%q", ds[2].Body)
		}
		check(t, broker.AckAll(ctx, ds...))
	})
}

func TestWaitersAreServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		b := open(t, nil)
		q := declare(t, b, "q", broker.QueueConfig{})
		c := consume(t, q, nil)
		got := make(chan string, 10)
		for range 5 {
			go func() {
				if ds, err := c.Receive(ctx, 1); err == nil {
					got <- string(ds[0].Body)
				}
			}()
		}
		early, cancel := context.WithCancel(ctx)
		errs := make(chan error)
		go func() { _, err := c.Receive(early, 1); errs <- err }()
		synctest.Wait()
		cancel() // its token, if any, goes to another
		for i := range 5 {
			send(t, q, body(fmt.Sprint(i)))
		}
		wantErr(t, <-errs, context.Canceled)
		synctest.Wait()
		st, err := b.QueueStats(ctx, "q")
		check(t, err)
		if st.InFlight+st.Ready != 5 || st.Ready > 1 || len(got)+int(st.Ready) != 5 {
			t.Fatalf("%+v, %d received", st, len(got))
		}
		check(t, c.Close())
	})
}

func TestConcurrentUse(t *testing.T) {
	ctx := t.Context()
	b := open(t, nil)
	declare(t, b, "dead", broker.QueueConfig{})
	q := declare(t, b, "q", broker.QueueConfig{MaxAttempts: 50, DeadLetter: "dead"})
	const senders, each, receivers = 4, 500, 4
	var mu sync.Mutex
	seen := map[string]bool{}
	open := map[string]bool{} // groups
	all := make(chan struct{})
	var wg sync.WaitGroup
	for s := range senders {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := range each {
				m := broker.Message{Body: fmt.Appendf(nil, "%d-%d", s, i)}
				if i%3 == 0 {
					m.GroupID = fmt.Sprint(i % 7)
				}
				if _, err := q.Publish(ctx, m); err != nil {
					t.Error(err)
				}
			}
		}()
	}
	rctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for r := range receivers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			c, err := q.Consumer(ctx, nil)
			if err != nil {
				t.Error(err)
				return
			}
			for n := 0; ; n++ {
				if n%100 == 99 { // gives back what it holds
					if _, err := c.Receive(rctx, 1); err != nil {
						return
					}
					if err := c.Close(); err != nil {
						t.Error(err)
					}
					if c, err = q.Consumer(ctx, nil); err != nil {
						t.Error(err)
						return
					}
				}
				ds, err := c.Receive(rctx, 1+r*5)
				if err != nil {
					return
				}
				for i, d := range ds {
					mu.Lock()
					if d.GroupID != "" {
						if open[d.GroupID] {
							t.Errorf("two of group %s at once", d.GroupID)
						}
						open[d.GroupID] = true
					}
					mu.Unlock()
					release := func() {
						if d.GroupID != "" {
							delete(open, d.GroupID)
						}
					}
					if (n+i)%5 == 0 {
						mu.Lock()
						release()
						mu.Unlock()
						err = d.Nack(ctx, 0)
					} else {
						mu.Lock()
						release()
						seen[string(d.Body)] = true
						done := len(seen) == senders*each
						mu.Unlock()
						if err = d.Ack(ctx); done {
							close(all)
						}
					}
					if err != nil {
						t.Error(err)
					}
				}
			}
		}()
	}
	select {
	case <-all:
	case <-time.After(30 * time.Second):
		t.Error("not all received")
	}
	cancel()
	wg.Wait()
}

// What one handle waits for at Shutdown takes no time from the others: a group
// commits although a queue's delivery is never settled.
func TestShutdownDrainsAllAtOnce(t *testing.T) {
	for range 8 { // handles have no order
		synctest.Test(t, func(t *testing.T) {
			ctx := t.Context()
			b := open(t, nil)
			q := declare(t, b, "q", broker.QueueConfig{})
			s := declareStream(t, b, broker.StreamConfig{})
			send(t, q, body("stuck"))
			one(t, consume(t, q, nil), "stuck")
			appendTo(t, s, rec("", "a"))
			committed := errors.New("OnRevoked was not called")
			var m *GroupConsumer
			var held []*broker.Record
			m = join(t, s, "g", &broker.GroupOptions{OnRevoked: func(ctx context.Context, _ []int32) {
				committed = m.Commit(ctx, held...)
			}})
			held = take(t, m, 1)
			short, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			wantErr(t, b.Shutdown(short), context.DeadlineExceeded)
			synctest.Wait()
			check(t, committed)
		})
	}
}
