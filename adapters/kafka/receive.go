package kafka

import (
	"context"
	"errors"
	"log/slog"
	"slices"

	"github.com/queuestream/broker"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Receive does what broker.GroupConsumer promises.
func (c *GroupConsumer) Receive(ctx context.Context, max int) ([]*broker.Record, error) {
	rs, err := c.receive(ctx, max)
	return rs, fail("receive", c.s.topic.name, err)
}

// receive hands out what was fetched before, and fetches if that is nothing.
// A poll takes all that there is: the client fetches on once it has given away
// everything, and so it does meanwhile.
func (c *GroupConsumer) receive(ctx context.Context, max int) ([]*broker.Record, error) {
	if max <= 0 {
		return nil, broker.Invalid("max %d: want at least 1", max)
	}
	for {
		if err := broker.ContextError(ctx); err != nil {
			return nil, err
		}
		if c.stop.Err() != nil {
			return nil, context.Cause(c.stop)
		}
		if err := c.again(ctx); err != nil {
			return nil, err
		}
		if rs := c.hand(max); len(rs) > 0 {
			return rs, nil
		}
		if err := c.poll(ctx); err != nil {
			return nil, err
		}
	}
}

// poll adds to what is ahead, unless another call of it does so.
func (c *GroupConsumer) poll(ctx context.Context) error {
	select {
	case c.polls <- struct{}{}:
		defer func() { <-c.polls }()
	case <-ctx.Done():
		return nil
	case <-c.stop.Done():
		return nil
	}
	seq, more := c.now()
	if more {
		return nil
	}
	c.pauseClient()
	fetches := c.client.PollFetches(nil) //nolint:staticcheck // nil: what is there, without waiting
	long := false
	if len(fetches) == 0 {
		fetches, long = c.wait(ctx)
	}
	if c.stock(fetches, seq) {
		return nil // an error repeats with the next fetch
	}
	if err := c.fetchError(fetches); err != nil {
		return err
	}
	if long {
		return c.checkTopic(ctx)
	}
	return nil
}

// wait polls until something comes, ctx ends, the consumer stops, there is
// something to do before, or it took long: then it is time to look after the
// topic.
func (c *GroupConsumer) wait(ctx context.Context) (fetches kgo.Fetches, long bool) {
	ctx, cancel := context.WithTimeout(ctx, idleCheck)
	defer cancel()
	defer context.AfterFunc(c.stop, cancel)()
	if !c.waiting(cancel) {
		return nil, false
	}
	defer c.waiting(nil)
	fetches = c.client.PollFetches(ctx)
	if ctx.Err() != nil && fetches.NumRecords() == 0 {
		return nil, errors.Is(ctx.Err(), context.DeadlineExceeded)
	}
	return fetches, false
}

// waiting notes how to end the poll that waits, and whether it has to wait.
func (c *GroupConsumer) waiting(wake context.CancelFunc) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wake = wake
	return !c.stocked() && len(c.retry) == 0
}

// awake ends the poll that waits. c.mu is held.
func (c *GroupConsumer) awake() {
	if c.wake != nil {
		c.wake()
	}
}

// now returns what counts the changes of holds, and whether there is something
// to hand out.
func (c *GroupConsumer) now() (seq uint64, more bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.seq, c.stocked()
}

// stocked tells whether hand has something. c.mu is held.
func (c *GroupConsumer) stocked() bool {
	return slices.ContainsFunc(c.ahead, c.open)
}

// open tells whether the program has not paused a partition. c.mu is held.
func (c *GroupConsumer) open(h *hold) bool {
	_, paused := c.paused[h.a.Partition]
	return !paused
}

// stock keeps what was fetched with the holds under which it was, and reports
// whether there is something. Records of holds that are gone are dropped:
// another member reads them. Where a hold was replaced or moved while the poll
// ran, nobody can tell of which the records are: they are dropped too, and the
// position is set again.
func (c *GroupConsumer) stock(fetches kgo.Fetches, seq uint64) (some bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fetches.EachTopic(func(t kgo.FetchTopic) {
		t.EachPartition(func(p kgo.FetchPartition) {
			h := c.holds[p.Partition]
			switch {
			case len(p.Records) == 0 || h == nil || h.revoking:
				return
			case h.moved > seq && (c.ended[p.Partition] > seq || h.next >= 0):
				c.retry = append(c.retry, p.Partition)
				return
			}
			if h.a.Identity == "" { // before anybody has it
				h.a.Identity = c.s.topic.identity(t.TopicID)
			}
			if len(h.ahead) == 0 {
				c.ahead = append(c.ahead, h)
				h.ahead, h.parts = p.Records, 0
			} else {
				h.ahead = append(h.ahead, p.Records...)
			}
			h.parts++
			some = true
		})
	})
	return some
}

// hand takes up to max records of those that are ahead, of one partition after
// the other: the one that has more left is the last in turn.
func (c *GroupConsumer) hand(max int) []*broker.Record {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, h := range c.ahead {
		if c.open(h) {
			n += len(h.ahead)
		}
	}
	if n == 0 {
		return nil
	}
	out := make([]*broker.Record, 0, min(n, max))
	var cut *hold
	c.ahead = slices.DeleteFunc(c.ahead, func(h *hold) bool {
		if n := min(max-len(out), len(h.ahead)); n > 0 && c.open(h) {
			h.next = h.ahead[n-1].Offset + 1
			out = appendRecords(out, h.ahead[:n], h.a)
			clear(h.ahead[:n])
			h.ahead = h.ahead[n:]
			cut = h
		}
		return len(h.ahead) == 0
	})
	if cut != nil && len(cut.ahead) > 0 {
		i := slices.Index(c.ahead, cut)
		copy(c.ahead[i:], c.ahead[i+1:])
		c.ahead[len(c.ahead)-1] = cut
	}
	return out
}

// drop forgets what is ahead of a hold. c.mu is held.
func (c *GroupConsumer) drop(h *hold) {
	if len(h.ahead) > 0 {
		h.ahead = nil
		c.ahead = slices.DeleteFunc(c.ahead, func(o *hold) bool { return o == h })
	}
}

// again sets the positions that stock could not make out.
func (c *GroupConsumer) again(ctx context.Context) error {
	for {
		c.mu.Lock()
		if len(c.retry) == 0 {
			c.mu.Unlock()
			return nil
		}
		p := c.retry[0]
		h := c.holds[p]
		to := broker.Committed()
		if h != nil && h.start >= 0 {
			to = broker.AtOffset(broker.NewOffset(h.start))
		}
		c.mu.Unlock()
		if h != nil {
			if err := c.seek(ctx, h, to, false); err != nil {
				return err
			}
		}
		c.mu.Lock()
		c.retry = slices.DeleteFunc(c.retry, func(q int32) bool { return q == p })
		c.mu.Unlock()
	}
}

// fetchError returns what the program must know of; what the client deals with
// by itself is logged.
func (c *GroupConsumer) fetchError(fetches kgo.Fetches) error {
	var out error
	fetches.EachError(func(_ string, partition int32, err error) {
		var loss *kgo.ErrDataLoss
		switch {
		case errors.Is(err, kgo.ErrClientClosed):
			out = errors.Join(out, broker.ErrClosed)
		case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		case errors.As(err, &loss):
			c.log(slog.LevelWarn, "kafka: records were lost or expired before this group read them", "partition", partition, "error", err)
		case errors.Is(err, kerr.UnknownTopicOrPartition), errors.Is(err, kerr.UnknownTopicID):
			out = errors.Join(out, err)
		default:
			if err = classify(err); inRebalance(err) || temporary(err) || errors.Is(err, broker.ErrFenced) || errors.Is(err, broker.ErrOutOfRange) {
				c.log(slog.LevelWarn, "kafka: fetching failed; the client tries again", "partition", partition, "error", err)
				return
			}
			out = errors.Join(out, err)
		}
	})
	return out
}

// checkTopic tells a topic that is gone. One that was created again under the
// same name needs a new consumer: the client reads the first one alone.
func (c *GroupConsumer) checkTopic(ctx context.Context) error {
	name := c.s.topic.name
	ctx, cancel := context.WithTimeout(ctx, idleCheck)
	defer cancel()
	defer context.AfterFunc(c.stop, cancel)()
	details, err := c.s.b.admin.ListTopics(ctx, name)
	if err != nil {
		return nil //nolint:nilerr // the broker is away: the client reconnects by itself
	}
	if err := details[name].Err; err != nil && !temporary(classify(err)) {
		return err
	}
	return nil
}
