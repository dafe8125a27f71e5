package conformance

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"github.com/queuestream/broker"
)

var queueLife = map[int]QueueCase{
	73: {Run: contextCancel},
	74: {Run: closeTwice},
	75: {Run: closeFlushes},
	76: {Run: useAfterClose},
	77: {Run: concurrentUse},
	78: {Run: noLeaks},
	79: {Run: closeWithUnread},
	80: {Run: closeWhileDown},
}

// Prompt fails the case unless f returns within bound. A call that hangs is
// left behind and ends the case.
func (c *C) Prompt(what string, bound time.Duration, f func()) {
	done := make(chan struct{})
	start := time.Now()
	go func() {
		defer close(done)
		defer c.recover()
		f()
	}()
	timer := time.NewTimer(bound + c.h.Soon)
	defer timer.Stop()
	select {
	case <-done:
		if took := time.Since(start); took > bound {
			c.Errorf("%s took %v, at most %v is prompt", what, took, bound)
		}
	case <-timer.C:
		c.Fatalf("%s hangs: it did not return within %v", what, bound+c.h.Soon)
	}
}

// prompt is how soon a call returns whose context has ended.
const prompt = 2 * time.Second

func contextCancel(c *C, q broker.Queue) {
	ended, cancel := context.WithCancel(c.ctx)
	cancel()
	isEnded := func(err error, what string) {
		if !errors.Is(err, context.Canceled) {
			c.Errorf("%s with an ended context: %v, want context.Canceled", what, err)
		}
	}
	k := c.Consumer(q, nil)
	never := func() {
		_, err := q.Publish(ended, broker.Message{Body: []byte("never")})
		isEnded(err, "publish")
		rs, err := q.PublishBatch(ended, []broker.Message{{Body: []byte("never")}, {Body: []byte("never")}})
		isEnded(broker.ErrorAt(err, 1), "publish a batch")
		if len(rs) != 2 {
			c.Errorf("publish a batch of 2 with an ended context: %d receipts", len(rs))
		}
	}
	c.Prompt("publish", prompt, never)
	c.Nothing(k, "it was published with an ended context")
	c.Publish(q, broker.Message{Body: []byte("there")})
	c.Prompt("publish once the handle has published", prompt, never)
	c.Prompt("receive", prompt, func() {
		ds, err := k.Receive(ended, 1)
		isEnded(err, "receive")
		if len(ds) > 0 {
			c.Errorf("receive with an ended context took %d deliveries", len(ds))
		}
	})
	d := c.ReceiveOne(k)
	c.Prompt("acknowledge", prompt, func() {
		if err := d.Ack(ended); err != nil {
			isEnded(err, "acknowledge")
			if err := d.Ack(c.ctx); err != nil && !errors.Is(err, broker.ErrSettled) {
				c.Errorf("acknowledge again after an ended context: %v", err)
			}
		}
	})
	c.quiet(k, "it was acknowledged")

	for _, patience := range []time.Duration{0, time.Millisecond, 50 * time.Millisecond} {
		ctx, cancel := c.Within(patience)
		c.Prompt(fmt.Sprintf("receive for %v from an empty queue", patience), patience+prompt, func() {
			ds, err := k.Receive(ctx, 1)
			if !errors.Is(err, context.DeadlineExceeded) || len(ds) > 0 {
				c.Errorf("receive for %v from an empty queue: %d deliveries, %v", patience, len(ds), err)
			}
		})
		cancel()
	}
	blocked, giveUp := context.WithCancelCause(c.ctx)
	reason := errors.New("no longer wanted")
	c.Go(func() { c.pass(5 * time.Millisecond); giveUp(reason) })
	c.Prompt("receive whose context is cancelled", prompt, func() {
		if _, err := k.Receive(blocked, 1); !errors.Is(err, context.Canceled) {
			c.Errorf("receive: %v, want context.Canceled", err)
		}
	})

	// Cancelled receives lose nothing.
	h := &QueueHistory{QueueRules: c.rules(q)}
	c.publish(q, h, workload{messages: 50, prefix: "m"})
	for h.Acked() < 50 && !c.Failed() {
		ctx, cancel := c.Within(time.Duration(c.rng.IntN(3000)) * time.Microsecond)
		ds, err := k.Receive(ctx, 3)
		cancel()
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			c.Errorf("receive: %v", err)
		}
		h.Received("consumer", ds...)
		for _, d := range ds {
			c.Must(h.Settle(c.ctx, "consumer", d, ackVerdict), "acknowledge")
		}
		if c.ctx.Err() != nil {
			c.Fatalf("cancelled receives have lost messages: %d of 50 came", h.Acked())
		}
	}
	c.Wait()
	h.Drained = true
	c.Check(CheckQueue(h))
}

func closeTwice(c *C, q broker.Queue) {
	own := c.OpenBroker()
	mine := c.DeclareQueueOn(own, nil)
	k := c.Consumer(mine, nil)
	closed := func(what string, closer func() error) {
		c.Prompt("close the "+what, closeBound, func() {
			var group sync.WaitGroup
			for range 4 {
				group.Add(1)
				go func() {
					defer group.Done()
					if err := closer(); err != nil {
						c.Errorf("close the %s concurrently: %v", what, err)
					}
				}()
			}
			group.Wait()
			if err := closer(); err != nil {
				c.Errorf("close the %s again: %v", what, err)
			}
		})
	}
	closed("consumer", k.Close)
	closed("queue", mine.Close)
	closed("broker", own.Close)
	closed("case's queue", q.Close)
}

// closeBound is how long a Close may take.
const closeBound = 10 * time.Second

func closeFlushes(c *C, q broker.Queue) {
	client := c.Fresh()
	mine, err := client.Queue(c.ctx, q.Name(), nil)
	c.Must(err, "open the queue")
	const n = 50
	for i := range n {
		c.Publish(mine, broker.Message{Body: fmt.Appendf(nil, "m%d", i)})
	}
	c.closeClient(client, mine)
	client = c.Fresh()
	mine, err = client.Queue(c.ctx, q.Name(), nil)
	c.Must(err, "open the queue")
	k := c.Consumer(mine, nil)
	ds := c.ReceiveN(k, n)
	c.Ack(ds[:n/2]...)
	c.Must(broker.AckAll(c.ctx, ds[n/2:]...), "acknowledge the rest at once")
	c.Must(k.Close(), "close the consumer")
	c.closeClient(client, mine)
	c.quiet(c.Consumer(q, nil), "everything was acknowledged before the close")

	// Shutdown waits for what is in hand.
	own := c.OpenBroker()
	mine = c.DeclareQueueOn(own, nil)
	k = c.Consumer(mine, nil)
	c.Publish(mine, broker.Message{Body: []byte("in hand")})
	d := c.ReceiveOne(k)
	done := make(chan error, 1)
	c.Go(func() {
		ctx, cancel := c.Soon()
		defer cancel()
		done <- own.Shutdown(ctx)
	})
	select {
	case err := <-done:
		c.Errorf("Shutdown did not wait for a delivery in hand: %v", err)
	case <-time.After(c.h.Quiet):
	}
	if err := d.Ack(c.ctx); err != nil {
		c.Errorf("acknowledge during Shutdown: %v", err)
	}
	c.Wait()
	if err := <-done; err != nil {
		c.Errorf("Shutdown after everything was settled: %v", err)
	}

	// And gives up when its context ends.
	own = c.OpenBroker()
	mine = c.DeclareQueueOn(own, nil)
	k = c.Consumer(mine, nil)
	c.Publish(mine, broker.Message{Body: []byte("never settled")})
	c.ReceiveOne(k)
	c.Prompt("Shutdown whose context ends", c.h.Quiet+closeBound, func() {
		ctx, cancel := c.Within(c.h.Quiet)
		defer cancel()
		if err := own.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
			c.Errorf("Shutdown with a delivery that nobody settles: %v, want the context's error", err)
		}
	})
}

// closeClient closes the client, or only the queue where the broker lives in it.
func (c *C) closeClient(b broker.Broker, q broker.Queue) {
	if c.h.Embedded {
		c.Must(q.Close(), "close the queue")
		return
	}
	c.Must(b.Close(), "close the client")
}

func useAfterClose(c *C, q broker.Queue) {
	own := c.OpenBroker()
	mine := c.DeclareQueueOn(own, nil)
	k := c.Consumer(mine, nil)
	c.Publish(mine, broker.Message{Body: []byte("held")})
	d := c.ReceiveOne(k)
	blocked := make(chan error, 1)
	other := c.Consumer(mine, nil)
	c.Go(func() {
		_, err := other.Receive(c.ctx, 1)
		blocked <- err
	})
	c.pass(5 * time.Millisecond)
	c.Must(other.Close(), "close a consumer that waits")
	c.Prompt("Receive of a closed consumer", prompt, func() { c.WantErr(<-blocked, broker.ErrClosed, "receive that waits while its consumer is closed") })
	c.Must(k.Close(), "close the consumer")
	_, err := k.Receive(c.ctx, 1)
	c.WantErr(err, broker.ErrClosed, "receive from a closed consumer")
	c.WantErr(d.Ack(c.ctx), broker.ErrLeaseLost, "acknowledge a delivery of a closed consumer")

	waiting := c.Consumer(mine, nil)
	c.Must(mine.Close(), "close the queue")
	_, err = mine.Publish(c.ctx, broker.Message{})
	c.WantErr(err, broker.ErrClosed, "publish to a closed queue")
	rs, err := mine.PublishBatch(c.ctx, make([]broker.Message, 2))
	c.WantErr(err, broker.ErrClosed, "publish a batch to a closed queue")
	if len(rs) != 2 {
		c.Errorf("publish a batch of 2 to a closed queue: %d receipts", len(rs))
	}
	_, err = mine.Consumer(c.ctx, nil)
	c.WantErr(err, broker.ErrClosed, "open a consumer of a closed queue")
	_ = waiting.Close()

	again, err := own.Queue(c.ctx, mine.Name(), nil)
	c.Must(err, "open the queue again")
	k = c.Consumer(again, nil)
	c.Ack(c.ReceiveOne(k)) // a closed handle closes no other
	admin, _ := broker.As[broker.Admin](own)
	c.Must(admin.DeleteQueue(c.ctx, mine.Name()), "delete the queue")
	c.Must(own.Close(), "close the broker")
	_, err = own.Queue(c.ctx, q.Name(), nil)
	c.WantErr(err, broker.ErrClosed, "open a queue of a closed broker")
	c.WantErr(own.Ping(c.ctx), broker.ErrClosed, "ping a closed broker")
	_, err = again.Publish(c.ctx, broker.Message{})
	c.WantErr(err, broker.ErrClosed, "publish to a queue of a closed broker")
	_, err = k.Receive(c.ctx, 1)
	c.WantErr(err, broker.ErrClosed, "receive from a consumer of a closed broker")
	if c.h.Embedded {
		return
	}
	c.Must(c.broker.Ping(c.ctx), "ping another client")
}

func concurrentUse(c *C, q broker.Queue) {
	h := &QueueHistory{QueueRules: c.rules(q)}
	h.Attempts = false
	const n = 100
	k := c.Consumer(q, nil)
	seen := newCounter()
	admin := c.Admin()
	for range 4 { // all of them wait at once
		c.Go(func() { c.TryReceive(k, 1, c.h.Quiet) })
	}
	c.Wait()
	c.publish(q, h, workload{messages: n, producers: 4, prefix: "m"})
	for i := range 4 {
		who := fmt.Sprintf("consumer %d", i)
		c.Go(func() { // several goroutines share one consumer
			for wait := c.patience(); h.Acked() < n && wait.more(); {
				for _, d := range wait.receive(k, 5) {
					h.Received(who, d)
					v := ackVerdict
					if seen.add(string(d.Body)) == 1 && c.rng.IntN(4) == 0 {
						v.Kind = broker.VerdictNack
					}
					c.Must(h.Settle(c.ctx, who, d, v), "%s", v.Kind)
				}
			}
		})
	}
	for range 2 {
		c.Go(func() {
			for range 5 {
				again, err := c.broker.Queue(c.ctx, q.Name(), nil)
				c.Must(err, "open the queue")
				more, err := again.Consumer(c.ctx, nil)
				c.Must(err, "open a consumer")
				c.Must(more.Close(), "close a consumer")
				c.Must(again.Close(), "close a queue")
				if _, err := admin.QueueStats(c.ctx, q.Name()); err != nil && !errors.Is(err, broker.ErrUnsupported) {
					c.Errorf("statistics: %v", err)
				}
				c.Must(c.broker.Ping(c.ctx), "ping")
			}
		})
	}
	c.Wait()
	h.Drained = true
	c.Check(CheckQueue(h))
}

func noLeaks(c *C, _ broker.Queue) {
	cycle := func() {
		b, err := c.h.Open(c.ctx)
		c.Must(err, "open")
		q := c.DeclareQueueOn(b, nil)
		k := c.Consumer(q, nil)
		for i := range 10 {
			c.Publish(q, broker.Message{Body: fmt.Appendf(nil, "m%d", i)})
		}
		c.Ack(c.ReceiveN(k, 5)...)
		ctx, cancel := c.Within(time.Millisecond)
		_, _ = c.Consumer(q, nil).Receive(ctx, 1) // whether it gets one does not matter
		cancel()
		admin, _ := broker.As[broker.Admin](b)
		c.Must(admin.DeleteQueue(c.ctx, q.Name()), "delete the queue")
		c.Must(b.Close(), "close the broker without closing its handles")
	}
	cycle() // what is started once and for all
	before := runtime.NumGoroutine()
	const cycles = 8
	for range cycles {
		cycle()
	}
	// One for each second cycle is a leak; less is what comes and goes beside
	// the case, a connection of the harness' say.
	if !c.Until(c.h.Soon, func() bool { return runtime.NumGoroutine() < before+cycles/2 }) {
		buf := make([]byte, 256<<10)
		c.Errorf("%d goroutines before, %d after the broker was opened and closed %d times:\n%s",
			before, runtime.NumGoroutine(), cycles, prose(buf[:runtime.Stack(buf, true)]))
	}
}

func closeWithUnread(c *C, q broker.Queue) {
	k := c.Consumer(q, nil)
	const n = 200
	for i := 0; i < n; i += 50 {
		var ms []broker.Message
		for j := range 50 {
			ms = append(ms, broker.Message{Body: fmt.Appendf(nil, "m%d", i+j)})
		}
		c.PublishAll(q, ms...)
	}
	c.ReceiveN(k, 3)
	c.Prompt("close a consumer with unread messages", closeBound, func() { c.Must(k.Close(), "close the consumer") })
	k = c.Consumer(q, nil)
	h := &QueueHistory{QueueRules: QueueRules{ExactlyOnce: !c.h.Duplicates}}
	for i := range n {
		h.Add(QueueEvent{Op: QueueSend, Value: fmt.Sprintf("m%d", i)})
	}
	for h.Acked() < n {
		ds := c.TryReceive(k, 50, c.h.Soon)
		if ds == nil {
			break
		}
		h.Received("consumer", ds...)
		for _, d := range ds {
			c.Must(h.Settle(c.ctx, "consumer", d, ackVerdict), "acknowledge")
		}
	}
	h.Drained = true
	c.Check(CheckQueue(h))
	own := c.OpenBroker()
	mine := c.DeclareQueueOn(own, nil)
	for i := range 20 {
		c.Publish(mine, broker.Message{Body: fmt.Appendf(nil, "m%d", i)})
	}
	k = c.Consumer(mine, nil)
	c.ReceiveOne(k)
	if c.h.Embedded {
		c.Prompt("close the broker with unread messages", closeBound, func() { c.Must(own.Close(), "close the broker") })
		return
	}
	c.Prompt("close the broker with unread messages", closeBound, func() { c.Must(own.Close(), "close the broker") })
	c.ReceiveN(c.Consumer(c.OpenQueue(c.broker, mine.Name(), nil), nil), 20)
}

func closeWhileDown(c *C, _ broker.Queue) {
	var kind FaultKind
	for _, k := range []FaultKind{FaultBlackHole, FaultPause, FaultKill} {
		if c.h.Faults[k] != nil {
			kind = k
			break
		}
	}
	if kind == "" {
		c.Skip("the harness can neither kill nor stall the broker")
	}
	own := c.OpenBroker()
	mine := c.DeclareQueueOn(own, nil)
	k := c.Consumer(mine, nil)
	for i := range 20 {
		c.Publish(mine, broker.Message{Body: fmt.Appendf(nil, "m%d", i)})
	}
	held := c.ReceiveN(k, 3)
	in := c.Inject(kind)
	c.callsEnd(own, mine, k, held)
	c.Go(func() {
		ctx, cancel := c.Within(closeBound)
		defer cancel()
		// Whatever comes of it: it must not keep Close waiting.
		_, _ = mine.Publish(ctx, broker.Message{Body: []byte("into the void")})
	})
	c.pass(c.h.Quiet)
	c.Prompt("close the consumer while the broker is down", closeBound, func() { _ = k.Close() })
	c.Prompt("close the queue while the broker is down", closeBound, func() { _ = mine.Close() })
	c.Prompt("close the broker while the broker is down", closeBound, func() { _ = own.Close() })
	c.Must(in.Stop(context.WithoutCancel(c.ctx)), "end the fault")
	c.Wait()
}

// callsEnd checks that each call returns when its context ends, whatever the
// broker does not answer.
func (c *C) callsEnd(b broker.Broker, q broker.Queue, k broker.Consumer, held []*broker.Delivery) {
	admin, _ := broker.As[broker.Admin](b)
	c.endWithin([]endingCall{
		{"publish", func(ctx context.Context) error {
			_, err := q.Publish(ctx, broker.Message{Body: []byte("into the void")})
			return err
		}},
		{"publish a batch", func(ctx context.Context) error {
			_, err := q.PublishBatch(ctx, []broker.Message{{Body: []byte("into the void")}, {Body: []byte("into the void")}})
			return err
		}},
		{"receive", func(ctx context.Context) error {
			for {
				if _, err := k.Receive(ctx, 100); err != nil {
					return err
				}
			}
		}},
		{"extend", func(ctx context.Context) error { return held[0].Extend(ctx, 0) }},
		{"nack", func(ctx context.Context) error { return held[1].Nack(ctx, 0) }},
		{"acknowledge", func(ctx context.Context) error { return broker.AckAll(ctx, held[2]) }},
		{"open a consumer", func(ctx context.Context) error {
			more, err := q.Consumer(ctx, nil)
			if err == nil {
				c.track("consumer", more.Close)
			}
			return err
		}},
		{"open a queue", func(ctx context.Context) error {
			again, err := b.Queue(ctx, q.Name(), nil)
			if err == nil {
				c.track("queue", again.Close)
			}
			return err
		}},
		{"ping", b.Ping},
		{"statistics", func(ctx context.Context) error { _, err := admin.QueueStats(ctx, q.Name()); return err }},
		{"declare a queue", func(ctx context.Context) error { return admin.DeclareQueue(ctx, q.Name(), broker.QueueConfig{}) }},
	})
}

// An endingCall is a call whose context ends before the broker answers.
type endingCall struct {
	what string
	f    func(ctx context.Context) error
}

// endWithin makes the calls all at once: the fault may not last long.
func (c *C) endWithin(calls []endingCall) {
	for _, call := range calls {
		c.Go(func() {
			c.Prompt(call.what+" while the broker is down", c.h.Quiet+prompt, func() {
				ctx, cancel := c.Within(c.h.Quiet)
				defer cancel()
				_ = call.f(ctx) // it may know the answer; whatever it says, it says it in time
			})
		})
	}
	c.Wait()
}
