package sqs

import (
	"context"
	"time"
)

// SQS hands out several messages of a FIFO group at once; all but the first
// wait in the inbox. While the program holds that one their leases are kept
// alive here: nobody else could have them, since SQS locks the group, and
// giving them back would cost each an attempt.

// A window is when a message that was given back is to come again, or, once
// that is over, how long to be careful still.
type window struct {
	from, to time.Time
	over     bool
}

// openGroups returns the FIFO groups of which the program holds a delivery.
// c.mu is held.
func (c *Consumer) openGroups(now time.Time) map[string]bool {
	groups := map[string]bool{}
	if !c.q.t.fifo {
		return groups
	}
	for _, h := range c.held {
		if h.handed && h.d.GroupID != "" && !h.d.Settled() && now.Before(h.d.LeaseExpires()) {
			groups[h.d.GroupID] = true
		}
	}
	return groups
}

// watchWaiting sees to it that leases of what waits are kept alive.
func (c *Consumer) watchWaiting() {
	if c.inbox.Len() == c.inbox.Ready() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waiting == nil && !c.closed {
		c.waiting = time.AfterFunc(c.lease/3, c.keepWaiting)
	}
}

// keepWaiting extends the leases of what waits, and frees the groups whose
// open delivery was lost.
func (c *Consumer) keepWaiting() {
	c.mu.Lock()
	c.waiting = nil
	if c.closed {
		c.mu.Unlock()
		return
	}
	now := time.Now()
	done := make(chan struct{})
	groups := c.openGroups(now)
	var tokens []uint64
	var items []settlement
	var leases []time.Time
	for token, h := range c.held {
		lease := h.d.LeaseExpires()
		if h.handed || !groups[h.d.GroupID] || !now.Before(lease) || now.Add(c.lease).Sub(h.since) > maxLease {
			continue
		}
		h.kept = done
		c.held[token] = h
		tokens = append(tokens, token)
		items = append(items, settlement{receipt: h.receipt, seconds: seconds(c.lease)})
		leases = append(leases, lease)
	}
	c.mu.Unlock()
	// Neither c.ctx nor a short time: an extension that nobody waits for any
	// more could be carried out after the message was given back.
	ctx, cancel := context.WithTimeout(context.Background(), 2*c.q.b.o.RequestTimeout)
	defer cancel()
	errs := c.q.settles.many(ctx, c.q.settles.changes, items, leases)
	c.mu.Lock()
	for i, token := range tokens {
		h, ok := c.held[token]
		if !ok {
			continue
		}
		if h.kept == done {
			h.kept = nil
			c.held[token] = h
		}
		if errs[i] == nil {
			h.d.SetLease(now.Add(c.lease))
		} else {
			c.q.b.log.DebugContext(ctx, "sqs: extending a message that waits for its group failed; it returns when its lease ends",
				"queue", c.q.t.name, "id", h.d.ID, "error", errs[i])
		}
	}
	c.mu.Unlock()
	close(done)
	c.inbox.Sweep()
	c.watchWaiting()
}

// expect notes that a message of a FIFO group comes again after delay. Polls
// around that time ask for one message each, since its successors would come
// with it, and be given back with it, at an attempt each.
func (c *Consumer) expect(group string, delay time.Duration) {
	if group == "" || !c.q.t.fifo {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	at := time.Now().Add(delay)
	c.again[group] = window{from: at.Add(-c.q.b.o.PollWait - time.Second), to: at.Add(c.lease)}
}

// settled notes that a message of a group is gone, and with it the reason to
// expect it; the next of the group may be in the inbox now. Where one message
// came again others often follow, so for another lease polls ask for one each.
func (c *Consumer) settled(group string) {
	if group == "" || !c.q.t.fifo {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if w, ok := c.again[group]; ok && !w.over {
		c.again[group] = window{to: time.Now().Add(c.lease), over: true}
	}
}

// expecting tells whether polls should ask for one message. c.mu is held.
func (c *Consumer) expecting() bool {
	now, is := time.Now(), false
	for group, w := range c.again {
		if now.After(w.to) {
			delete(c.again, group)
		}
		is = is || now.After(w.from) && now.Before(w.to)
	}
	return is
}
