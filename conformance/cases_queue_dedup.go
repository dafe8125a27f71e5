package conformance

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/queuestream/broker"
)

var (
	deduped = func(_ *C, cfg *broker.QueueConfig) { cfg.Dedup = true }
	dedup   = broker.QueueCapabilities{Dedup: true}
	noDedup = refuseField(broker.Message{DedupID: "id"})
)

var queueDedup = map[int]QueueCase{
	32: {Needs: dedup, Config: deduped, Refuse: noDedup, Run: dedupWindow},
	33: {Needs: dedup, Config: deduped, Refuse: noDedup, Run: dedupAfterAck},
	34: {Needs: dedup, Config: deduped, Refuse: noDedup, Run: dedupExpires},
	35: {Needs: broker.QueueCapabilities{Dedup: true, Groups: true}, Config: func(_ *C, cfg *broker.QueueConfig) { cfg.Dedup, cfg.Ordered = true, true }, Refuse: noDedup, Run: dedupScope},
	36: {Needs: broker.QueueCapabilities{ContentDedup: true}, Config: func(_ *C, cfg *broker.QueueConfig) { cfg.ContentDedup = true }, Run: contentDedup},
	37: {Needs: broker.QueueCapabilities{Idempotent: true}, Run: retryDedup},
	38: {Run: dedupReceipt},
}

// bodies receives everything there is, acknowledges it, and returns the bodies.
func (c *C) bodies(k broker.Consumer) []string { return c.atLeast(k, 0) }

// atLeast does the same, and waits until at least n have come.
func (c *C) atLeast(k broker.Consumer, n int) []string {
	var got []string
	for {
		wait := c.h.Quiet
		if len(got) < n {
			wait = c.h.Soon // large ones take their time
		}
		ds := c.TryReceive(k, 10, wait)
		if ds == nil {
			slices.Sort(got)
			return got
		}
		for _, d := range ds {
			got = append(got, string(d.Body))
			c.Ack(d)
		}
	}
}

func (c *C) expectBodies(k broker.Consumer, why string, want ...string) {
	slices.Sort(want)
	if got := c.atLeast(k, len(want)); !slices.Equal(got, want) {
		c.Errorf("%s: received %q, want %q", why, got, want)
	}
}

func dedupWindow(c *C, q broker.Queue) {
	k := c.Consumer(q, nil)
	c.Note("window", "%v", q.Capabilities().DedupWindow)
	id := func(s string) string { return c.Name("id") + s }
	x, y, z := id("x"), id("y"), id("z")
	c.Publish(q, broker.Message{Body: []byte("first"), DedupID: x})
	c.Publish(q, broker.Message{Body: []byte("second"), DedupID: x})
	c.Publish(q, broker.Message{Body: []byte("other"), DedupID: y})
	c.expectBodies(k, "one DedupID twice and another", "first", "other")
	c.PublishAll(q, broker.Message{Body: []byte("b1"), DedupID: z}, broker.Message{Body: []byte("b2"), DedupID: z}, broker.Message{Body: []byte("b3"), DedupID: x})
	c.expectBodies(k, "one DedupID twice in a batch, and one of before", "b1")
	w := id("w")
	for i := range 10 {
		c.Go(func() { c.Publish(q, broker.Message{Body: fmt.Appendf(nil, "c%d", i), DedupID: w}) })
	}
	c.Wait()
	if got := c.bodies(k); len(got) != 1 {
		c.Errorf("one DedupID ten times concurrently: received %q, want one of them", got)
	}
	if !q.Capabilities().ContentDedup {
		c.Publish(q, broker.Message{Body: []byte("same")})
		c.Publish(q, broker.Message{Body: []byte("same")})
		c.expectBodies(k, "equal messages without a DedupID", "same", "same")
	}
}

func dedupAfterAck(c *C, q broker.Queue) {
	k := c.Consumer(q, nil)
	id := c.Name("id")
	c.Publish(q, broker.Message{Body: []byte("first"), DedupID: id})
	c.Ack(c.ReceiveOne(k))
	c.Publish(q, broker.Message{Body: []byte("after the ack"), DedupID: id})
	c.Nothing(k, "its DedupID was stored before, and acknowledged")
	id = c.Name("id")
	c.Publish(q, broker.Message{Body: []byte("nacked"), DedupID: id})
	c.Nack(c.ReceiveOne(k), 0)
	c.Publish(q, broker.Message{Body: []byte("twice"), DedupID: id})
	c.expectBodies(k, "a nack is no new publish", "nacked")
}

func dedupExpires(c *C, q broker.Queue) {
	window := q.Capabilities().DedupWindow
	if window <= 0 {
		c.Fatalf("the queue claims Dedup and says no DedupWindow")
	}
	k := c.Consumer(q, nil)
	id := c.Name("id")
	c.Publish(q, broker.Message{Body: []byte("first"), DedupID: id})
	c.Sleep(window - window/10)
	c.Publish(q, broker.Message{Body: []byte("within"), DedupID: id})
	c.Sleep(window/10 + c.h.Tick)
	c.Publish(q, broker.Message{Body: []byte("after"), DedupID: id})
	c.expectBodies(k, "within the window and after it", "first", "after")
}

func dedupScope(c *C, q broker.Queue) {
	id := c.Name("id")
	both := []broker.Message{{Body: []byte("g"), GroupID: "g", DedupID: id}, {Body: []byte("h"), GroupID: "h", DedupID: id}}
	c.PublishAll(q, both...)
	c.expectBodies(c.Consumer(q, nil), "the scope is the queue", "g")
	perGroup, err := c.declareQueue(c.broker, func(_ *C, cfg *broker.QueueConfig) {
		cfg.Dedup, cfg.Ordered, cfg.DedupPerGroup = true, true, true
	})
	if err != nil {
		c.WantErr(err, broker.ErrUnsupported, "declare a queue with DedupPerGroup")
		c.Note("scope", "queue")
		return
	}
	c.Note("scope", "queue or group")
	c.PublishAll(perGroup, both...)
	c.PublishAll(perGroup, both...)
	c.expectBodies(c.Consumer(perGroup, nil), "the scope is the group", "g", "h")
}

func contentDedup(c *C, q broker.Queue) {
	k := c.Consumer(q, nil)
	publish := func(bodies ...string) {
		for _, b := range bodies {
			c.Publish(q, broker.Message{Body: []byte(b)})
		}
	}
	publish("a", "b", "a")
	c.expectBodies(k, "equal bodies", "a", "b")
	publish("a", "a ", "A", "\x00a")
	c.expectBodies(k, "bodies that differ a little", "a ", "A", "\x00a")
	long := string(bytes.Repeat([]byte("x"), 10_000))
	publish(long+"1", long+"2", long+"1")
	c.expectBodies(k, "long bodies that differ at the end", long+"1", long+"2")
	if q.Capabilities().Dedup {
		c.Publish(q, broker.Message{Body: []byte("same body"), DedupID: c.Name("id")})
		c.Publish(q, broker.Message{Body: []byte("same body"), DedupID: c.Name("id")})
		c.expectBodies(k, "a DedupID counts where there is one", "same body", "same body")
	}
}

// retryDedup publishes with one ID again and again, as a client does that lost
// the answers; the broker cannot tell that from a program which does the same.
func retryDedup(c *C, q broker.Queue) {
	k := c.Consumer(q, nil)
	m := broker.Message{ID: broker.NewID(), Body: []byte("one")}
	for range 3 {
		c.Publish(q, m)
	}
	c.PublishAll(q, m, m)
	c.expectBodies(k, "one ID published five times", "one")
	c.Publish(q, m)
	c.Nothing(k, "its ID was published and acknowledged before")
	c.Publish(q, broker.Message{Body: []byte("one")})
	c.expectBodies(k, "another ID", "one")
}

func dedupReceipt(c *C, q broker.Queue) {
	k := c.Consumer(q, nil)
	ids := map[string]bool{}
	for i := range 20 {
		m := broker.Message{Body: fmt.Appendf(nil, "m%d", i)}
		if i%2 == 0 {
			m.ID = c.Name("id")
		}
		r := c.Publish(q, m)
		if r.ID == "" || ids[r.ID] || m.ID != "" && r.ID != m.ID {
			c.Errorf("published id %q, the receipt says %q (seen before: %t)", m.ID, r.ID, ids[r.ID])
		}
		if r.Duplicate {
			c.Errorf("a message published once is called a duplicate")
		}
		ids[r.ID] = true
	}
	for _, d := range c.ReceiveN(k, 20) {
		if !ids[d.ID] {
			c.Errorf("the id %q was delivered, and no receipt names it", d.ID)
		}
		delete(ids, d.ID)
		c.Ack(d)
	}
	if rs, err := q.PublishBatch(c.ctx, []broker.Message{{Delay: -1}, {ID: "kept", Delay: -1}}); err == nil || len(rs) != 2 || rs[0].ID == "" || rs[1].ID != "kept" {
		c.Errorf("receipts of failed publishes carry the id for a retry: %+v (%v)", rs, err)
	}
	dq, err := c.declareQueue(c.broker, deduped)
	if err != nil {
		c.WantErr(err, broker.ErrUnsupported, "declare a queue with Dedup")
		return
	}
	dedupID := c.Name("id")
	first := c.Publish(dq, broker.Message{Body: []byte("first"), DedupID: dedupID})
	second := c.Publish(dq, broker.Message{Body: []byte("second"), DedupID: dedupID})
	if first.Duplicate {
		c.Errorf("the first with its DedupID is called a duplicate")
	}
	if second.Duplicate && second.Sequence != first.Sequence {
		c.Errorf("the duplicate's receipt says sequence %q, the first copy's %q", second.Sequence, first.Sequence)
	}
	c.Note("duplicate told", "%t", second.Duplicate)
	c.expectBodies(c.Consumer(dq, nil), "one DedupID twice", "first")
}
