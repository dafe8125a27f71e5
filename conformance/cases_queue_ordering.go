package conformance

import (
	"fmt"
	"slices"
	"time"

	"github.com/queuestream/broker"
)

var (
	ordered = func(_ *C, cfg *broker.QueueConfig) { cfg.Ordered = true }
	groups  = broker.QueueCapabilities{Groups: true}
	noGroup = refuseField(broker.Message{GroupID: "g"})
)

var queueOrdering = map[int]QueueCase{
	13: {Needs: broker.QueueCapabilities{FIFO: true}, Run: fifoSingle},
	14: {Needs: groups, Config: ordered, Refuse: noGroup, Run: groupFIFO},
	15: {Needs: groups, Config: ordered, Refuse: noGroup, Run: groupExclusive},
	16: {Needs: groups, Config: ordered, Refuse: noGroup, Run: groupHeadBlocks},
	17: {Needs: groups, Config: ordered, Refuse: noGroup, Run: groupsIndependent},
	18: {Needs: groups, Config: ordered, Refuse: noGroup, Run: noGroupStarves},
	22: {Run: requeuePosition},
}

func fifoSingle(c *C, q broker.Queue) {
	h := &QueueHistory{QueueRules: c.rules(q)}
	h.FIFO = true
	c.publish(q, h, workload{messages: c.h.Messages, prefix: "m"})
	c.Wait()
	c.crew(q, h, 1, nil, nil).finish()
}

func groupFIFO(c *C, q broker.Queue) {
	seen := newCounter()
	c.work(q, workload{messages: c.h.Messages, producers: 2, groups: 8, prefix: "m"}, func(d *broker.Delivery) broker.Verdict {
		if seen.add(string(d.Body)) == 1 && c.rng.IntN(10) == 0 {
			return broker.Verdict{Kind: broker.VerdictNack}
		}
		return ackVerdict
	})
}

func groupExclusive(c *C, q broker.Queue) {
	a, b := c.Consumer(q, nil), c.Consumer(q, nil)
	c.PublishAll(q, groupOf("g", "1", "2", "3")...)
	first := c.Receive(a, 10)
	if len(first) != 1 {
		c.Fatalf("%d deliveries of one group at once", len(first))
	}
	c.Nothing(a, "the first of the group is open, the same consumer asks")
	c.Nothing(b, "the first of the group is open, another consumer asks")
	c.Ack(first[0])
	for _, want := range []string{"2", "3"} {
		d := c.TryReceive(a, 10, c.h.Quiet/2) // whoever gets it
		if len(d) == 0 {
			d = c.Receive(b, 10)
		}
		if len(d) != 1 || string(d[0].Body) != want {
			c.Fatalf("received %d deliveries, the first %q: want %q alone", len(d), d[0].Body, want)
		}
		c.Ack(d[0])
	}
	c.Must(a.Close(), "close a consumer")
	c.Must(b.Close(), "close a consumer")
	h := &QueueHistory{QueueRules: c.rules(q)}
	w := c.crew(q, h, c.h.Workers, nil, func(*broker.Delivery) broker.Verdict {
		c.pass(2 * time.Millisecond) // the work that it does
		return ackVerdict
	})
	c.publish(q, h, workload{messages: min(c.h.Messages, 100), producers: 2, groups: 6, prefix: "m"})
	w.finish()
}

// groupOf returns a message for each body, all of one group.
func groupOf(group string, bodies ...string) []broker.Message {
	ms := make([]broker.Message, len(bodies))
	for i, b := range bodies {
		ms[i] = broker.Message{GroupID: group, Body: []byte(b)}
	}
	return ms
}

func groupHeadBlocks(c *C, q broker.Queue) {
	k := c.Consumer(q, nil)
	expect := func(k broker.Consumer, want string) *broker.Delivery {
		d := c.ReceiveOne(k)
		if string(d.Body) != want {
			c.Fatalf("received %q, and %q comes first in its group", d.Body, want)
		}
		return d
	}
	for _, m := range groupOf("g", "1", "2", "3", "4") {
		c.Publish(q, m)
	}
	for range 3 {
		c.Nack(expect(k, "1"), 0)
	}
	c.Ack(expect(k, "1"))
	d := expect(k, "2")
	c.Must(k.Close(), "close the consumer that holds the head")
	k = c.Consumer(q, nil)
	c.WantErr(d.Ack(c.ctx), broker.ErrLeaseLost, "acknowledge after the consumer was closed")
	if caps := q.Capabilities(); caps.NackDelay {
		d = expect(k, "2")
		start := time.Now()
		c.Nack(d, c.h.Delay)
		d = expect(k, "2")
		if took := time.Since(start); took < c.h.Delay-c.h.Tick {
			c.Errorf("the head came again after %v, nacked with a delay of %v", took, c.h.Delay)
		}
		c.Ack(d)
	} else {
		c.Ack(expect(k, "2"))
	}
	c.Ack(expect(k, "3"))
	c.Ack(expect(k, "4"))
	if q.Capabilities().Lease {
		c.PublishAll(q, groupOf("h", "1", "2")...)
		lapsing := c.Consumer(q, c.lease(q))
		c.Must(k.Close(), "close the other consumer")
		expect(lapsing, "1")
		c.Sleep(c.h.Lease)
		c.Ack(expect(lapsing, "1"))
		c.Ack(expect(lapsing, "2"))
	}
}

func groupsIndependent(c *C, q broker.Queue) {
	k := c.Consumer(q, nil)
	c.PublishAll(q, groupOf("held", "1", "2", "3")...)
	head := c.ReceiveOne(k)
	var want []string
	for i := range 20 {
		m := broker.Message{GroupID: fmt.Sprintf("free%d", i%5), Body: fmt.Appendf(nil, "f%d", i)}
		want = append(want, string(m.Body))
		c.Publish(q, m)
	}
	c.Publish(q, broker.Message{Body: []byte("no group")})
	want = append(want, "no group")
	var got []string
	for len(got) < len(want) {
		for _, d := range c.Receive(k, 1) {
			if d.GroupID == "held" {
				c.Fatalf("received %q of the group whose head is open", d.Body)
			}
			got = append(got, string(d.Body))
			c.Ack(d)
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		c.Errorf("received %q, want %q", got, want)
	}
	c.Ack(head)
}

func noGroupStarves(c *C, q broker.Queue) {
	h := &QueueHistory{QueueRules: c.rules(q)}
	n := 0
	busy := func(count int) {
		var ms []broker.Message
		for range count {
			n++
			ms = append(ms, broker.Message{GroupID: "busy", Body: fmt.Appendf(nil, "busy %d", n)})
		}
		_, err := h.PublishBatch(c.ctx, q, "producer", ms)
		c.Must(err, "publish")
	}
	busy(50)
	k := c.Consumer(q, nil)
	const others = 5
	for i := range others {
		_, err := h.Publish(c.ctx, q, "producer", broker.Message{GroupID: fmt.Sprintf("other %d", i), Body: fmt.Appendf(nil, "other %d", i)})
		c.Must(err, "publish")
	}
	served, handled := 0, 0
	for served < others {
		if handled++; handled > 1000 {
			c.Fatalf("%d of %d groups were served while the busy one had %d deliveries", served, others, handled-served)
		}
		d := c.ReceiveOne(k)
		h.Received("consumer", d)
		c.Must(h.Settle(c.ctx, "consumer", d, ackVerdict), "acknowledge")
		if d.GroupID != "busy" {
			served++
		} else {
			busy(1) // its backlog never ends
		}
	}
	c.Note("served after", "%d deliveries", handled)
	c.Check(CheckQueue(h))
}

func requeuePosition(c *C, q broker.Queue) {
	want := q.Capabilities().Requeue
	if want == broker.RequeueUnspecified {
		got, err := c.broker.Queue(c.ctx, q.Name(), &broker.QueueOptions{Require: broker.QueueCapabilities{Requeue: broker.RequeueFront}})
		c.WantErr(err, broker.ErrUnsupported, "open a queue with Require Requeue")
		if err == nil {
			c.track("queue", got.Close)
		}
		c.Refused("the queue declares no position")
	}
	a := c.Consumer(q, nil)
	c.Publish(q, broker.Message{Body: []byte("a")})
	d := c.ReceiveOne(a)
	for _, body := range []string{"b", "c"} {
		c.Publish(q, broker.Message{Body: []byte(body)})
	}
	c.Nack(d, 0)
	c.Must(a.Close(), "close the consumer")
	var got []string
	k := c.Consumer(q, nil)
	for _, d := range c.ReceiveN(k, 3) {
		got = append(got, string(d.Body))
		c.Ack(d)
	}
	if front := slices.Index(got, "a") < slices.Index(got, "c"); front != (want == broker.RequeueFront) {
		c.Errorf("a was given back before b and c, the queue declares %v, and the order is %q", map[bool]string{true: "the front", false: "the back"}[want == broker.RequeueFront], got)
	}
}
