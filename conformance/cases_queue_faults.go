package conformance

import (
	"fmt"
	"io"
	"time"

	"github.com/queuestream/broker"
)

var queueFaults = map[int]QueueCase{
	90: {Run: func(c *C, q broker.Queue) { c.underFault(q, FaultConnectionCut) }},
	91: {Run: func(c *C, q broker.Queue) { c.underFault(q, FaultAnswerLost) }},
	92: {Needs: broker.QueueCapabilities{Durable: true}, Run: func(c *C, q broker.Queue) { c.underFault(q, FaultKill) }},
	93: {Run: func(c *C, q broker.Queue) { c.underFault(q, FaultPause) }},
	94: {Run: func(c *C, q broker.Queue) { c.underFault(q, FaultBlackHole) }},
	95: {Run: func(c *C, q broker.Queue) { c.underFault(q, FaultSlowLink) }},
	96: {Run: consumerKill},
	97: {Run: million},
	98: {Needs: groups, Config: ordered, Refuse: noGroup, Run: tenThousandGroups},
}

// underFault repeats AckedNotLost, NoPhantom and, where groups are claimed,
// GroupFIFO while the fault bites.
func (c *C) underFault(q broker.Queue, kind FaultKind) {
	if c.h.Faults[kind] == nil {
		c.Skip("the harness cannot inject: %s", kind)
	}
	w := workload{messages: c.h.Messages, producers: 2, prefix: "m"}
	if orderedQueue, err := c.declareQueue(c.broker, ordered); err == nil && orderedQueue.Capabilities().Groups {
		q, w.groups = orderedQueue, 8
	}
	h := &QueueHistory{QueueRules: c.rules(q)}
	h.Faulty, h.ExactlyOnce, h.Attempts = true, false, false
	crew := c.crew(q, h, c.h.Workers, nil, nil)
	before := workload{messages: w.messages / 4, producers: 2, groups: w.groups, prefix: "before "}
	c.publish(q, h, before)
	in := c.Inject(kind)
	c.publish(q, h, w)
	c.Until(c.h.Soon, func() bool { return in.Bites == nil || in.Bites() > 0 })
	c.pass(c.h.Quiet)
	c.stopFaults(c.ctx)
	crew.finish()
}

// consumerKill kills consumers while they hold deliveries.
func consumerKill(c *C, q broker.Queue) {
	h := &QueueHistory{QueueRules: c.rules(q)}
	h.Attempts = false
	victims := 10
	if c.h.Victim != nil {
		victims = 3                           // each may have to be missed
		h.Faulty, h.ExactlyOnce = true, false // an acknowledgement without an answer may die with it
	}
	c.publish(q, h, workload{messages: c.h.Messages, producers: 2, prefix: "m"})
	c.Wait()
	killed := 0
	for i := range victims {
		client, kill := c.victim()
		mine, err := client.Queue(c.ctx, q.Name(), nil)
		c.Must(err, "open the queue")
		k := c.Consumer(mine, c.lease(q))
		who := fmt.Sprintf("victim %d", i)
		ds := c.TryReceive(k, 5, c.h.Soon)
		h.Received(who, ds...)
		for j, d := range ds {
			if j%2 == 0 && j < len(ds)-1 { // one at least is held
				c.Must(h.Settle(c.ctx, who, d, ackVerdict), "acknowledge")
			} else {
				killed++
			}
		}
		h.Closing(who)
		kill(k)
	}
	if killed == 0 {
		c.Errorf("no consumer was killed while it held a delivery: this run shows nothing")
	}
	c.crew(q, h, c.h.Workers, nil, nil).finish()
}

// victim connects a client, and returns what kills it and its consumer.
func (c *C) victim() (broker.Broker, func(consumer io.Closer)) {
	switch {
	case c.h.Victim != nil:
		c.Note("killed", "by cutting it off")
		ctx, cancel := c.Soon()
		defer cancel()
		b, kill, err := c.h.Victim(ctx)
		c.Must(err, "connect a client to be killed")
		c.track("broker", func() error {
			kill()
			_ = b.Close() // which may complain that it is cut off
			return nil
		})
		return b, func(io.Closer) { kill() }
	case c.h.Embedded:
		c.Note("killed", "by Close of the consumer")
		return c.broker, func(k io.Closer) { c.Must(k.Close(), "close the consumer") }
	}
	c.Note("killed", "by Close of the client")
	b := c.OpenBroker()
	return b, func(io.Closer) { c.Must(b.Close(), "close the client at once") }
}

// million moves Harness.Million numbered messages. It keeps two bits for each
// instead of a history.
func million(c *C, q broker.Queue) {
	n := c.h.Million
	if n == 0 {
		c.Skip("Harness.Million is 0")
	}
	start := time.Now()
	var ledger ledger
	ledger.reset(n)
	for w := range c.h.Workers {
		k := c.Consumer(q, nil)
		c.Go(func() {
			for wait := c.patience(); !ledger.complete() && wait.more(); {
				ds := wait.receive(k, 100)
				for _, d := range ds {
					c.deliver(&ledger, d)
				}
				if len(ds) > 0 {
					c.Must(broker.AckAll(c.ctx, ds...), "acknowledge %d", len(ds))
				}
			}
		})
		c.Go(func() {
			for i := w; i < n && !c.Failed(); i += 100 * c.h.Workers {
				var ms []broker.Message
				for j := i; j < min(n, i+100*c.h.Workers); j += c.h.Workers {
					ms = append(ms, broker.Message{Body: []byte(itoa(j))})
				}
				c.PublishAll(q, ms...)
			}
		})
	}
	c.Wait()
	if missing := ledger.missing(); missing > 0 {
		c.Errorf("%d of %d were never delivered", missing, n)
	}
	if ledger.repeated > 0 && !c.h.Duplicates {
		c.Errorf("%d deliveries were repeated", ledger.repeated)
	}
	if start.Year() > 2000 { // else in virtual time, which begins then
		c.Note("rate", "%.0f/s", float64(n)/max(time.Since(start).Seconds(), 1e-9))
	}
}

func (c *C) deliver(l *ledger, d *broker.Delivery) {
	if err := l.mark(string(d.Body)); err != nil {
		c.Errorf("%v", err)
	}
}

func tenThousandGroups(c *C, q broker.Queue) {
	if c.h.Million == 0 {
		c.Skip("Harness.Million is 0")
	}
	groups := min(10_000, c.h.Million)
	const each = 3
	for round := range each {
		for g := 0; g < groups; g += 100 {
			var ms []broker.Message
			for j := g; j < min(groups, g+100); j++ {
				ms = append(ms, broker.Message{GroupID: "g" + itoa(j), Body: []byte(itoa(round))})
			}
			c.PublishAll(q, ms...)
		}
	}
	next := newCounter()
	var ledger ledger
	ledger.reset(groups * each)
	for range c.h.Workers {
		k := c.Consumer(q, nil)
		c.Go(func() {
			for wait := c.patience(); !ledger.complete() && wait.more(); {
				ds := wait.receive(k, 100)
				for _, d := range ds {
					round := next.add(d.GroupID) - 1
					if string(d.Body) != itoa(round) && !c.h.Duplicates {
						c.Errorf("group %s: delivery %d is %q", d.GroupID, round, d.Body)
					}
					if err := ledger.mark(itoa(indexOf(d.GroupID)*each + round)); err != nil {
						c.Errorf("%v", err)
					}
				}
				if len(ds) > 0 {
					c.Must(broker.AckAll(c.ctx, ds...), "acknowledge %d", len(ds))
				}
			}
		})
	}
	c.Wait()
	if missing := ledger.missing(); missing > 0 {
		c.Errorf("%d of %d were never delivered", missing, groups*each)
	}
}
