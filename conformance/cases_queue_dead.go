package conformance

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/queuestream/broker"
)

const attemptLimit = 3

var queueDead = map[int]QueueCase{
	47: {Needs: broker.QueueCapabilities{Attempts: true}, Refuse: attemptsRise, Run: attemptCount},
	48: {Needs: broker.QueueCapabilities{Reject: true, MaxAttempts: attemptLimit}, Config: limited, Refuse: noReject, Run: deadLetterAfterN},
	49: {Needs: broker.QueueCapabilities{Reject: true}, Config: limited, Refuse: noReject, Run: deadLetterKeeps},
	50: {Needs: broker.QueueCapabilities{Reject: true}, Config: limited, Refuse: noReject, Run: redrive},
	51: {Needs: broker.QueueCapabilities{Reject: true, MaxAttempts: attemptLimit}, Config: limited, Refuse: noReject, Run: poisonDoesNotBlock},
}

// limited declares a dead-letter queue and points to it after three attempts.
// Where the case's queue is ordered, so is its dead-letter queue.
func limited(c *C, cfg *broker.QueueConfig) {
	isOrdered := cfg.Ordered
	dead := c.DeclareQueue(func(_ *C, cfg *broker.QueueConfig) { cfg.Ordered = isOrdered })
	cfg.MaxAttempts, cfg.DeadLetter = attemptLimit, dead.Name()
	c.deadLetter = dead
}

func noReject(c *C, q broker.Queue) {
	if q.Capabilities().Reject {
		return
	}
	k := c.Consumer(q, nil)
	c.Publish(q, broker.Message{Body: []byte("held")})
	d := c.ReceiveOne(k)
	c.WantErr(d.Reject(c.ctx, "no"), broker.ErrUnsupported, "reject without a dead-letter queue")
	c.Ack(d)
}

// attemptsRise is what holds where not every delivery is counted.
func attemptsRise(c *C, q broker.Queue) {
	k := c.Consumer(q, nil)
	c.Publish(q, broker.Message{Body: []byte("again")})
	last := 0
	for range 3 {
		d := c.ReceiveOne(k)
		if d.Attempt < 1 || d.Attempt < last {
			c.Errorf("attempt %d after attempt %d", d.Attempt, last)
		}
		last = d.Attempt
		c.Nack(d, 0)
	}
	c.Ack(c.ReceiveOne(k))
}

func attemptCount(c *C, q broker.Queue) {
	caps := q.Capabilities()
	k := c.Consumer(q, nil)
	c.Publish(q, broker.Message{Body: []byte("again")})
	next := func(k broker.Consumer, want int, why string) *broker.Delivery {
		ds := c.TryReceive(k, 1, c.h.Soon+c.h.Lease)
		if ds == nil {
			c.Fatalf("%s: nothing came", why)
		}
		if ds[0].Attempt != want {
			c.Errorf("%s: attempt %d, want %d", why, ds[0].Attempt, want)
		}
		return ds[0]
	}
	c.Nack(next(k, 1, "the first delivery"), 0)
	c.Nack(next(k, 2, "after one nack"), 0)
	d := next(k, 3, "after two nacks")
	if caps.Snooze {
		batch := []broker.Outcome{{Delivery: d, Verdict: broker.Verdict{Kind: broker.VerdictNack, Snooze: true}}}
		c.Must(broker.SettleAll(c.ctx, batch), "snooze")
		d = next(k, 3, "after a snooze, which costs no attempt")
	}
	c.Nack(d, 0)
	next(k, 4, "after three nacks")
	c.Must(k.Close(), "close the holder")
	k = c.Consumer(q, nil)
	d = next(k, 5, "after its holder was closed")
	if caps.Lease {
		c.Nack(d, 0)
		c.Must(k.Close(), "close the consumer")
		k = c.Consumer(q, c.lease(q))
		next(k, 6, "after four nacks and a close")
		d = next(k, 7, "after its lease has passed")
	}
	c.Ack(d)
}

func deadLetterAfterN(c *C, q broker.Queue) {
	if got := q.Capabilities().MaxAttempts; got != attemptLimit {
		c.Errorf("declared with %d attempts, the queue claims %d", attemptLimit, got)
	}
	dead := c.deadLetter
	h := &QueueHistory{QueueRules: c.rules(q)}
	k := c.Consumer(q, nil)
	const n = 5
	for i := range n {
		_, err := h.Publish(c.ctx, q, "producer", broker.Message{Body: fmt.Appendf(nil, "bad %d", i)})
		c.Must(err, "publish")
	}
	for range n * attemptLimit {
		d := c.ReceiveOne(k)
		h.Received("consumer", d)
		c.Must(h.Settle(c.ctx, "consumer", d, broker.Verdict{Kind: broker.VerdictNack}), "nack")
	}
	c.buried(h, dead, n)
	for _, d := range c.TryReceive(k, 10, c.h.Quiet) { // one delivery too many, if any
		h.Received("consumer", d)
	}
	h.Drained = true
	c.Check(CheckQueue(h))

	if q.Capabilities().Lease {
		// A lease that passes is an attempt, too.
		c.Must(k.Close(), "close the consumer")
		h := &QueueHistory{QueueRules: c.rules(q)}
		k := c.Consumer(q, c.lease(q))
		_, err := h.Publish(c.ctx, q, "producer", broker.Message{Body: []byte("never answered")})
		c.Must(err, "publish")
		for range attemptLimit {
			ds := c.TryReceive(k, 1, c.h.Lease+c.h.Soon)
			if ds == nil {
				c.Fatalf("nothing came after the lease")
			}
			h.Received("consumer", ds...)
		}
		if ds := c.TryReceive(k, 1, c.h.Lease+c.h.Quiet); ds != nil {
			h.Received("consumer", ds...)
		}
		c.buried(h, dead, 1)
		h.Drained = true
		c.Check(CheckQueue(h))
	}
}

// buried receives n dead letters into the history, and more if there are more.
func (c *C) buried(h *QueueHistory, dead broker.Queue, n int) {
	k := c.Consumer(dead, nil)
	for range n {
		ds := c.TryReceive(k, 1, c.h.Soon+c.h.Lease)
		if ds == nil {
			break // the checker says which is missing
		}
		h.Dead(ds...)
		c.Ack(ds...)
	}
	for _, d := range c.TryReceive(k, 10, c.h.Quiet) {
		h.Dead(d)
		c.Ack(d)
	}
	c.Must(k.Close(), "close the consumer of dead letters")
}

func deadLetterKeeps(c *C, q broker.Queue) {
	caps := q.Capabilities()
	k, dead := c.Consumer(q, nil), c.Consumer(c.deadLetter, nil)
	m := broker.Message{ID: broker.NewID(), Body: []byte("\x00kept\xff"), ContentType: "text/x", CorrelationID: "c1"}
	if caps.Headers {
		m.Headers = broker.Headers{{Key: "k", Value: "1"}, {Key: "k", Value: "2"}, {Key: "b", Value: "\x00"}}
	}
	reason := "does not parse: ünexpected\n" + strings.Repeat("x", 300)
	for _, way := range []string{"reject", "attempts"} {
		c.Publish(q, m)
		start := time.Now()
		attempts := 2
		c.Nack(c.ReceiveOne(k), 0)
		d := c.ReceiveOne(k)
		if way == "reject" {
			c.Must(d.Reject(c.ctx, reason), "reject")
		} else {
			if caps.MaxAttempts != attemptLimit {
				c.Ack(d)
				break
			}
			c.Nack(d, 0)
			c.Nack(c.ReceiveOne(k), 0)
			attempts = 3
		}
		got := c.ReceiveOne(dead)
		c.Ack(got)
		why, ok := broker.DeadLetterOf(&got.Message)
		orig := broker.RedriveMessage(got.Message)
		if got.ID != m.ID || !bytes.Equal(got.Body, m.Body) || got.ContentType != m.ContentType || got.CorrelationID != m.CorrelationID || !slices.Equal(orig.Headers, m.Headers) {
			c.Errorf("%s: published %+v, the dead letter is %+v", way, m, got.Message)
		}
		switch {
		case !ok && way == "reject":
			c.Errorf("%s: the dead letter does not say why", way)
		case !ok:
			c.Note("reason by the attempt limit", "not kept")
		default:
			if way == "reject" && why.Reason != reason || why.Reason == "" {
				c.Errorf("%s: reason %q", way, why.Reason)
			}
			if why.Queue != q.Name() || why.Attempts < attempts || caps.Attempts && why.Attempts != attempts {
				c.Errorf("%s: the dead letter says queue %q and %d attempts, want %q and %d", way, why.Queue, why.Attempts, q.Name(), attempts)
			}
			if why.Time.Before(start.Add(-time.Minute)) || why.Time.After(time.Now().Add(time.Minute)) {
				c.Errorf("%s: dead-lettered now, it says %v", way, why.Time)
			}
		}
		c.quiet(dead, "there is one copy of it")
		c.quiet(k, "it is in the dead-letter queue")
		m.ID = broker.NewID()
	}

	// An error may quote a whole page. That is no reason to keep the message.
	page := strings.Repeat("page ", 100_000)
	c.Publish(q, m)
	c.Must(c.ReceiveOne(k).Reject(c.ctx, page), "reject with a reason of %d bytes", len(page))
	got := c.ReceiveOne(dead)
	c.Ack(got)
	why, _ := broker.DeadLetterOf(&got.Message)
	if got.ID != m.ID || !bytes.Equal(got.Body, m.Body) || why.Reason == "" || !strings.HasPrefix(page, why.Reason) {
		c.Errorf("rejected with a long reason: %q, reason %.40q of %d bytes", got.Body, why.Reason, len(why.Reason))
	}
}

func redrive(c *C, q broker.Queue) {
	admin, dead := c.Admin(), c.deadLetter
	k := c.Consumer(q, nil)
	want := map[string]broker.Headers{}
	const n = 6
	for i := range n {
		m := broker.Message{Body: fmt.Appendf(nil, "m%d", i)}
		if q.Capabilities().Headers {
			m.Headers = broker.Headers{{Key: "n", Value: fmt.Sprint(i)}}
		}
		want[string(m.Body)] = m.Headers
		c.Publish(q, m)
		c.Must(c.ReceiveOne(k).Reject(c.ctx, "later"), "reject")
	}
	ready := func(name string) int64 {
		stats, err := admin.QueueStats(c.ctx, name)
		c.Must(err, "statistics")
		return stats.Ready
	}
	c.Eventually("the dead-letter queue holds all", func() bool { r := ready(dead.Name()); return r == n || r == broker.Unknown })
	if ms, err := admin.Peek(c.ctx, dead.Name(), 10); err == nil {
		if len(ms) == 0 || len(ms) > n {
			c.Errorf("peek showed %d of %d dead letters", len(ms), n)
		}
		for i := range ms {
			if why, ok := broker.DeadLetterOf(&ms[i]); !ok || why.Reason != "later" {
				c.Errorf("peek shows the reason %q", why.Reason)
			}
		}
		c.Eventually("peek leaves what it showed", func() bool { r := ready(dead.Name()); return r == n || r == broker.Unknown })
	} else {
		c.WantErr(err, broker.ErrUnsupported, "peek")
	}
	moved, err := admin.Redrive(c.ctx, dead.Name(), "", 2)
	switch {
	case errors.Is(err, broker.ErrUnsupported):
		c.Note("redrive", "all at once")
		moved = 0
	case err != nil || moved != 2:
		c.Fatalf("redrive two of %d: %d, %v", n, moved, err)
	default:
		c.Eventually("the rest stays", func() bool { r := ready(dead.Name()); return r == n-2 || r == broker.Unknown })
	}
	if rest, err := admin.Redrive(c.ctx, dead.Name(), q.Name(), 0); err != nil || rest != n-moved {
		c.Fatalf("redrive all that is left: %d, %v, want %d", rest, err, n-moved)
	}
	for range n {
		d := c.ReceiveOne(k)
		h, ok := want[string(d.Body)]
		if !ok || !slices.Equal(d.Headers, h) {
			c.Errorf("redriven: %+v, want headers %q (expected at all: %t)", d.Message, h, ok)
		}
		delete(want, string(d.Body))
		c.Ack(d)
	}
	c.quiet(k, "each came back once")
	c.empty(dead.Name())
	if moved, err := admin.Redrive(c.ctx, dead.Name(), "", 0); err != nil || moved != 0 {
		c.Errorf("redrive an empty queue: %d, %v", moved, err)
	}
}

func poisonDoesNotBlock(c *C, q broker.Queue) {
	h := &QueueHistory{QueueRules: c.rules(q)}
	groups := q.Capabilities().Groups
	const n, every = 60, 10
	var ms []broker.Message
	for i := range n {
		m := broker.Message{Body: fmt.Appendf(nil, "m%d", i)}
		if i%every == 0 {
			m.Body = fmt.Appendf(nil, "poison %d", i)
		}
		if groups {
			m.GroupID = fmt.Sprintf("g%d", i%4)
		}
		ms = append(ms, m)
	}
	seen := newCounter()
	w := c.crew(q, h, 2, nil, func(d *broker.Delivery) broker.Verdict {
		if strings.HasPrefix(string(d.Body), "poison") && seen.add(string(d.Body)) <= 3*attemptLimit {
			return broker.Verdict{Kind: broker.VerdictNack}
		}
		return ackVerdict
	})
	c.publishSome(q, h, "producer", ms)
	c.Eventually("everything else is done", func() bool { return c.Failed() || h.Acked() == n-n/every })
	c.buried(h, c.deadLetter, n/every)
	w.finish()
}
