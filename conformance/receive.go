package conformance

import (
	"context"
	"errors"
	"time"

	"github.com/queuestream/broker"
)

// Publish publishes to p and ends the case if that fails.
func (c *C) Publish(p broker.Publisher, m broker.Message) broker.Receipt {
	ctx, cancel := c.Soon()
	defer cancel()
	r, err := p.Publish(ctx, m)
	c.Must(err, "publish")
	return r
}

// PublishAll publishes a batch and ends the case unless all of it succeeds.
func (c *C) PublishAll(p broker.Publisher, ms ...broker.Message) []broker.Receipt {
	ctx, cancel := c.Soon()
	defer cancel()
	rs, err := p.PublishBatch(ctx, ms)
	c.Must(err, "publish a batch of %d", len(ms))
	if len(rs) != len(ms) {
		c.Fatalf("publish a batch of %d: %d receipts", len(ms), len(rs))
	}
	return rs
}

// TryReceive returns what comes within d, or nil. Any error but the end of the
// wait ends the case.
func (c *C) TryReceive(k broker.Consumer, max int, d time.Duration) []*broker.Delivery {
	ctx, cancel := c.Within(d)
	defer cancel()
	ds, err := k.Receive(ctx, max)
	switch {
	case err == nil && len(ds) == 0:
		c.Fatalf("receive: neither a delivery nor an error")
	case err != nil && len(ds) > 0:
		c.Fatalf("receive: %d deliveries and the error %v", len(ds), err)
	case len(ds) > max:
		c.Fatalf("receive at most %d: %d deliveries", max, len(ds))
	case err != nil && ctx.Err() == nil:
		c.Fatalf("receive: %v", err)
	case err != nil && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled):
		c.Fatalf("receive with an ended context: %v, want the context's error", err)
	}
	return ds
}

// Receive waits for deliveries, at most max, and ends the case if none come
// within Harness.Soon.
func (c *C) Receive(k broker.Consumer, max int) []*broker.Delivery {
	ds := c.TryReceive(k, max, c.h.Soon)
	if ds == nil {
		c.Fatalf("nothing was delivered within %v", c.h.Soon)
	}
	return ds
}

// ReceiveOne waits for one delivery.
func (c *C) ReceiveOne(k broker.Consumer) *broker.Delivery { return c.Receive(k, 1)[0] }

// ReceiveN waits for n deliveries and holds them all.
func (c *C) ReceiveN(k broker.Consumer, n int) []*broker.Delivery {
	var all []*broker.Delivery
	for len(all) < n {
		ds := c.TryReceive(k, n-len(all), c.h.Soon)
		if ds == nil {
			c.Fatalf("%d of %d were delivered, and no more within %v", len(all), n, c.h.Soon)
		}
		all = append(all, ds...)
	}
	return all
}

// A patience bounds a loop that receives until something is complete: it ends
// when nothing has come for a while, or the case has failed.
type patience struct {
	c     *C
	empty time.Time // since when nothing has come
}

func (c *C) patience() *patience { return &patience{c: c, empty: time.Now()} }

func (p *patience) more() bool {
	return !p.c.Failed() && p.c.ctx.Err() == nil && time.Since(p.empty) < 3*p.c.h.Soon+3*p.c.h.Lease
}

func (p *patience) receive(k broker.Consumer, max int) []*broker.Delivery {
	ds := p.c.TryReceive(k, max, p.c.h.Quiet)
	if len(ds) > 0 {
		p.empty = time.Now()
	}
	return ds
}

// Nothing ends the case if anything is delivered within Harness.Quiet.
func (c *C) Nothing(k broker.Consumer, why string) {
	if ds := c.TryReceive(k, 10, c.h.Quiet); len(ds) > 0 {
		c.Fatalf("%d deliveries, the first %q, where none may come: %s", len(ds), clip(ds[0].Body), why)
	}
}

// Ack acknowledges and ends the case if that fails.
func (c *C) Ack(ds ...*broker.Delivery) {
	ctx, cancel := c.Soon()
	defer cancel()
	for _, d := range ds {
		c.Must(d.Ack(ctx), "acknowledge %q", clip(d.Body))
	}
}

// Nack gives d back and ends the case if that fails.
func (c *C) Nack(d *broker.Delivery, delay time.Duration) {
	ctx, cancel := c.Soon()
	defer cancel()
	c.Must(d.Nack(ctx, delay), "nack %q", clip(d.Body))
}
