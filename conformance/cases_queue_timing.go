package conformance

import (
	"fmt"
	"time"

	"github.com/queuestream/broker"
)

var (
	delays  = broker.QueueCapabilities{Delay: true}
	noDelay = refuseField(broker.Message{Delay: time.Second})
	leases  = broker.QueueCapabilities{Lease: true}
)

var queueTiming = map[int]QueueCase{
	39: {Needs: delays, Refuse: noDelay, Run: delayNeverEarly},
	40: {Needs: delays, Refuse: noDelay, Run: delayNotLate},
	41: {Needs: delays, Refuse: noDelay, Run: delayMixed},
	42: {Run: invisibleWhileHeld},
	43: {Needs: leases, Refuse: noLease, Run: leaseExpires},
	44: {Needs: leases, Refuse: noLease, Run: extendLease},
	45: {Run: releaseNow},
	46: {Run: staleReceipt},
	59: {Needs: broker.QueueCapabilities{TTL: true}, Refuse: refuseField(broker.Message{TTL: time.Minute}), Run: ttlExpires},
}

// noLease checks that a queue without leases refuses them, and that a refused
// extension settles nothing.
func noLease(c *C, q broker.Queue) {
	k, err := q.Consumer(c.ctx, &broker.ConsumerOptions{Lease: c.h.Lease})
	c.WantErr(err, broker.ErrUnsupported, "open a consumer with a lease")
	if err == nil {
		c.track("consumer", k.Close)
	}
	k = c.Consumer(q, nil)
	c.Publish(q, broker.Message{Body: []byte("held")})
	d := c.ReceiveOne(k)
	if !d.LeaseExpires().IsZero() {
		c.Errorf("the queue claims no lease, and the delivery's ends at %v", d.LeaseExpires())
	}
	c.WantErr(d.Extend(c.ctx, time.Minute), broker.ErrUnsupported, "extend")
	c.Ack(d)
}

// delayed publishes a message for each delay and returns when each is due, by
// its body: the earliest moment at which it may come.
func (c *C) delayed(q broker.Queue, delays ...time.Duration) map[string]time.Time {
	due := map[string]time.Time{}
	for i, delay := range delays {
		body := fmt.Sprintf("%d: %v", i, delay)
		due[body] = time.Now().Add(delay)
		c.Publish(q, broker.Message{Body: []byte(body), Delay: delay})
	}
	return due
}

func delayNeverEarly(c *C, q broker.Queue) {
	k := c.Consumer(q, nil)
	unit := c.h.Delay
	due := c.delayed(q, unit, 2*unit, 0, unit, unit+unit/2)
	for range due {
		d := c.ReceiveOne(k)
		if early := time.Until(due[string(d.Body)]); early > c.h.Tick {
			c.Errorf("%q came %v early", d.Body, early)
		}
		c.Ack(d)
	}
	c.quiet(k, "all have come")
}

func delayNotLate(c *C, q broker.Queue) {
	k := c.Consumer(q, nil)
	due := c.delayed(q, c.h.Delay, c.h.Delay, 2*c.h.Delay)
	var worst time.Duration
	for range due {
		ds := c.TryReceive(k, 1, 2*c.h.Delay+c.h.Soon)
		if ds == nil {
			c.Fatalf("nothing came %v after the last was due", c.h.Soon)
		}
		worst = max(worst, time.Since(due[string(ds[0].Body)]))
		c.Ack(ds[0])
	}
	if worst > c.h.Soon {
		c.Errorf("came %v late", worst)
	}
	c.Note("latest", "%v", worst.Round(time.Millisecond))
}

func delayMixed(c *C, q broker.Queue) {
	k := c.Consumer(q, nil)
	long := 10*c.h.Delay + 2*c.h.Soon
	if limit := q.Capabilities().MaxDelay; limit > 0 {
		long = min(long, limit)
	}
	start := time.Now()
	c.Publish(q, broker.Message{Body: []byte("long"), Delay: long})
	c.Publish(q, broker.Message{Body: []byte("short"), Delay: c.h.Delay})
	c.Publish(q, broker.Message{Body: []byte("none")})
	for _, want := range []string{"none", "short"} {
		d := c.ReceiveOne(k)
		if string(d.Body) != want {
			c.Errorf("received %q after %v, want %q", d.Body, time.Since(start), want)
		}
		c.Ack(d)
	}
	if time.Since(start) < long-c.h.Tick {
		c.Nothing(k, "the long delay has not passed")
	}
	c.Must(c.Admin().DeleteQueue(c.ctx, q.Name()), "delete the queue with the delayed message")
}

func invisibleWhileHeld(c *C, q broker.Queue) {
	a, b := c.Consumer(q, nil), c.Consumer(q, nil)
	c.Publish(q, broker.Message{Body: []byte("held")})
	d := c.ReceiveOne(a)
	c.Nothing(b, "another consumer holds the only message")
	c.Nothing(a, "this consumer holds the only message")
	c.Nothing(c.Consumer(q, nil), "another consumer held it before this one came")
	c.Ack(d)
	if q.Capabilities().Lease {
		// All through the lease, not only at its beginning.
		k := c.Consumer(q, &broker.ConsumerOptions{Lease: 4 * c.h.Lease})
		c.Publish(q, broker.Message{Body: []byte("held")})
		d := c.ReceiveOne(k)
		if ds := c.TryReceive(b, 1, 3*c.h.Lease); ds != nil {
			c.Errorf("%q was delivered again %v before its lease ended", ds[0].Body, time.Until(d.LeaseExpires()))
		}
		c.Ack(d)
	}
}

func leaseExpires(c *C, q broker.Queue) {
	lease := 2 * c.h.Lease
	a := c.Consumer(q, &broker.ConsumerOptions{Lease: lease})
	c.Publish(q, broker.Message{Body: []byte("held")})
	asked := time.Now()
	d := c.ReceiveOne(a)
	ends := d.LeaseExpires()
	if ends.Before(asked.Add(lease-c.h.Tick)) || ends.After(time.Now().Add(lease+c.h.Tick)) {
		c.Errorf("received between %v and %v with a lease of %v, and LeaseExpires is %v", asked, time.Now(), lease, ends)
	}
	b := c.Consumer(q, &broker.ConsumerOptions{Lease: lease})
	ds := c.TryReceive(b, 1, lease+c.h.Soon)
	if ds == nil {
		c.Fatalf("nothing was delivered %v after the lease had ended", c.h.Soon)
	}
	if early := time.Until(ends); early > c.h.Tick {
		c.Errorf("the message was delivered again %v before its lease ended", early)
	}
	c.Note("late", "%v", time.Since(ends).Round(time.Millisecond))
	c.WantErr(d.Ack(c.ctx), broker.ErrLeaseLost, "acknowledge after the lease has passed")
	c.Ack(ds[0])
	c.quiet(b, "the second holder acknowledged it")
}

func extendLease(c *C, q broker.Queue) {
	lease := 2 * c.h.Lease
	a := c.Consumer(q, &broker.ConsumerOptions{Lease: lease})
	b := c.Consumer(q, &broker.ConsumerOptions{Lease: lease})
	c.Publish(q, broker.Message{Body: []byte("held")})
	d := c.ReceiveOne(a)
	first := d.LeaseExpires()
	for range 3 {
		if ds := c.TryReceive(b, 1, lease/2); ds != nil {
			c.Fatalf("%q was delivered again although its lease was extended until %v", ds[0].Body, d.LeaseExpires())
		}
		asked := time.Now()
		c.Must(d.Extend(c.ctx, 0), "extend by the consumer's lease")
		if ends := d.LeaseExpires(); ends.Before(asked.Add(lease-c.h.Tick)) || ends.After(time.Now().Add(lease+c.h.Tick)) {
			c.Errorf("extended by %v at %v, and LeaseExpires is %v", lease, asked, ends)
		}
	}
	if !time.Now().After(first) {
		c.Errorf("the case is wrong: the first lease has not passed")
	}
	if err := d.Extend(c.ctx, 2*lease); err == nil {
		if ds := c.TryReceive(b, 1, lease+lease/2); ds != nil {
			c.Errorf("%q was delivered again although its lease was extended until %v", ds[0].Body, d.LeaseExpires())
		}
	} else {
		c.WantErr(err, broker.ErrUnsupported, "extend by another length than the queue's")
		c.Note("length", "fixed")
	}
	last := d.LeaseExpires()
	ds := c.TryReceive(b, 1, 2*lease+c.h.Soon)
	if ds == nil {
		c.Fatalf("nothing was delivered %v after the extended lease had ended", c.h.Soon)
	}
	if early := time.Until(last); early > c.h.Tick {
		c.Errorf("the message was delivered again %v before its lease ended", early)
	}
	c.WantErr(d.Extend(c.ctx, 0), broker.ErrLeaseLost, "extend after the lease has passed")
	c.Ack(ds[0])
}

func releaseNow(c *C, q broker.Queue) {
	caps := q.Capabilities()
	var opts *broker.ConsumerOptions
	lease := 5 * c.h.Soon
	if caps.Lease {
		if caps.MaxLease > 0 {
			lease = min(lease, caps.MaxLease)
		}
		opts = &broker.ConsumerOptions{Lease: lease}
	}
	k := c.Consumer(q, opts)
	c.Publish(q, broker.Message{Body: []byte("given back")})
	d := c.ReceiveOne(k)
	start := time.Now()
	c.Nack(d, 0)
	d = c.ReceiveOne(k)
	c.Note("nack", "%v", time.Since(start).Round(time.Millisecond))
	if !caps.NackDelay {
		c.WantErr(d.Nack(c.ctx, time.Second), broker.ErrUnsupported, "nack with a delay")
		c.Ack(d)
		return
	}
	start = time.Now()
	c.Nack(d, 2*c.h.Delay)
	ds := c.TryReceive(k, 1, 2*c.h.Delay+c.h.Soon)
	took := time.Since(start)
	switch {
	case ds == nil:
		c.Fatalf("nacked with a delay of %v, nothing came within %v", 2*c.h.Delay, took)
	case took < 2*c.h.Delay-c.h.Tick:
		c.Errorf("nacked with a delay of %v, it came after %v", 2*c.h.Delay, took)
	}
	c.Note("nack with delay", "%v late", (took - 2*c.h.Delay).Round(time.Millisecond))
	c.Ack(ds[0])
}

func staleReceipt(c *C, q broker.Queue) {
	stale := func(d *broker.Delivery, why string) {
		c.WantErr(d.Ack(c.ctx), broker.ErrLeaseLost, "ack %s", why)
		c.WantErr(d.Nack(c.ctx, 0), broker.ErrLeaseLost, "nack %s", why)
		c.WantErr(broker.AckAll(c.ctx, d), broker.ErrLeaseLost, "ack in a batch %s", why)
	}
	a, b := c.Consumer(q, nil), c.Consumer(q, nil)
	c.Publish(q, broker.Message{Body: []byte("one")})
	c.Must(b.Close(), "close an idle consumer")
	old := c.ReceiveOne(a)
	c.Must(a.Close(), "close the holder")
	b = c.Consumer(q, nil)
	holder := c.ReceiveOne(b)
	stale(old, "after its consumer was closed")
	c.Nothing(c.Consumer(q, nil), "a stale nack does not free what another holds")
	c.Must(b.Close(), "close the second holder")
	k := c.Consumer(q, nil)
	again := c.ReceiveOne(k) // the stale ack has not removed it
	stale(holder, "after its consumer was closed")
	c.Ack(again)

	if !q.Capabilities().Lease {
		c.quiet(k, "it was acknowledged")
		return
	}
	short := c.Consumer(q, c.lease(q))
	c.Must(k.Close(), "close the other consumer")
	c.Publish(q, broker.Message{Body: []byte("two")})
	old = c.ReceiveOne(short)
	b = c.Consumer(q, &broker.ConsumerOptions{Lease: 20 * c.h.Lease})
	ds := c.TryReceive(b, 1, c.h.Lease+c.h.Soon)
	if ds == nil {
		c.Fatalf("nothing came after the lease")
	}
	stale(old, "after its lease has passed")
	c.WantErr(old.Extend(c.ctx, 0), broker.ErrLeaseLost, "extend after its lease has passed")
	c.Nothing(short, "a stale nack does not free what another holds")
	c.Must(b.Close(), "close the second holder")
	c.Ack(c.ReceiveOne(short)) // the stale ack has not removed it
	c.quiet(short, "it was acknowledged")
}

func ttlExpires(c *C, q broker.Queue) {
	k := c.Consumer(q, nil)
	ttl := 2 * c.h.Delay
	c.Publish(q, broker.Message{Body: []byte("in time"), TTL: ttl})
	c.Ack(c.ReceiveOne(k))
	c.Must(k.Close(), "close the consumer")
	c.Publish(q, broker.Message{Body: []byte("too late"), TTL: ttl})
	c.Publish(q, broker.Message{Body: []byte("stays"), TTL: 100*ttl + time.Hour})
	c.Publish(q, broker.Message{Body: []byte("stays too")})
	c.Sleep(ttl + c.h.Tick)
	k = c.Consumer(q, nil)
	c.expectBodies(k, "after the time to live of one", "stays", "stays too")
}
