package sqs

import (
	"context"
	"log/slog"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awssqs "github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/queuestream/broker"
)

// Pollers follow the work. One is started by the first Receive; while it finds
// full batches and there is room for more it starts others, up to
// Options.MaxPollers; one that finds nothing ends, down to one. What they
// fetch ahead is what the program takes in a quarter of a second, so that a slow
// one's leases do not pass in a buffer; without a waiting Receive and without
// such a rate nothing is asked for at all. What stays in the buffer for an
// eighth of the lease while nobody receives goes back to the queue.

// startPoller starts one more. c.mu is held.
func (c *Consumer) startPoller() {
	c.pollers++
	c.work.Go(c.poll)
}

func (c *Consumer) poll() {
	p := poller{c: c}
	for {
		n, end := c.claim()
		switch {
		case end:
			return
		case n > 0:
			if !p.fetch(n) {
				return
			}
			continue
		}
		select {
		case <-c.room:
		case <-c.ctx.Done():
		}
	}
}

// claim returns how many messages to ask for, of which 0 means to wait, and
// whether the poller ends: since all is over, or another one can wait.
func (c *Consumer) claim() (n int, end bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n = c.free(); n > 1 && c.expecting() {
		n = 1
	}
	if c.closed || n == 0 && c.pollers > 1 {
		c.pollers--
		return 0, true
	}
	c.reserved += n
	return n, false
}

// free returns for how many more messages there is use. c.mu is held.
func (c *Consumer) free() int {
	want := min(max(c.demand, c.handed.perSecond()/4), c.prefetch)
	n := min(want-c.inbox.Ready(), c.total-c.inbox.Len()) - c.reserved
	return max(0, min(n, batchEntries))
}

// fetched gives back what a poll reserved, and tells whether the poller goes
// on. A full batch starts another poller.
func (c *Consumer) fetched(reserved, got int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reserved -= reserved
	switch {
	case c.closed, got == 0 && c.pollers > 1:
		c.pollers--
		return false
	case got == reserved && c.pollers < c.q.b.o.MaxPollers && c.free() > batchEntries/2:
		c.startPoller()
	}
	return true
}

// A poller's state between its polls.
type poller struct {
	c       *Consumer
	attempt string // ReceiveRequestAttemptId, kept while a poll of a FIFO queue is repeated
	failed  int    // polls in a row
	empty   int    // polls in a row that came back empty sooner than they should
	broken  bool   // Receive was told of an error
}

// fetch polls once, and tells whether the poller goes on.
func (p *poller) fetch(n int) bool {
	c := p.c
	start := time.Now()
	ms, err := p.receive(n)
	got := len(ms)
	if err == nil {
		c.take(ms, time.Now())
	}
	goOn := c.fetched(n, got)
	switch {
	case !goOn:
		return false
	case err != nil:
		p.failed++
		p.report(err)
		pause(c.ctx, backoff(p.failed))
	case p.broken:
		c.inbox.SetErr(nil)
		p.broken = false
		fallthrough
	default:
		p.failed = 0
		if got > 0 || time.Since(start) >= c.q.b.o.PollWait/2 {
			p.empty = 0
			break
		}
		// A full FIFO queue answers at once; do not ask it in a loop.
		p.empty++
		pause(c.ctx, min(backoff(p.empty), time.Second))
	}
	return true
}

// report tells Receive of an error that does not go away by itself.
func (p *poller) report(err error) {
	f := p.c.q.b.judge(p.c.ctx, err)
	level := slog.LevelDebug // what passes by itself is nobody's business
	if p.failed == 5 || !f.retry && p.failed == 1 {
		level = slog.LevelWarn
	}
	p.c.q.b.log.Log(p.c.ctx, level, "sqs: receiving failed; trying again",
		"queue", p.c.q.t.name, "tries", p.failed, "error", err)
	if !f.retry {
		p.broken = true
		p.c.inbox.SetErr(f.cause())
	}
}

func (p *poller) receive(n int) ([]types.Message, error) {
	c := p.c
	in := &awssqs.ReceiveMessageInput{
		QueueUrl:                    &c.q.t.url,
		MaxNumberOfMessages:         int32(n),
		WaitTimeSeconds:             seconds(c.q.b.o.PollWait),
		VisibilityTimeout:           seconds(c.lease),
		MessageAttributeNames:       allAttributes,
		MessageSystemAttributeNames: systemAttributes,
	}
	if c.q.t.fifo {
		if p.attempt == "" {
			p.attempt = broker.NewID()
		}
		in.ReceiveRequestAttemptId = &p.attempt
	}
	ctx, cancel := context.WithTimeout(c.polls, c.q.b.o.PollWait+c.q.b.o.RequestTimeout)
	defer cancel()
	out, err := c.q.b.sqs.ReceiveMessage(ctx, in)
	if err != nil {
		return nil, err
	}
	p.attempt = ""
	return out.Messages, nil
}

var allAttributes = []string{"All"}

// take puts what was received into the inbox, but for what is not due yet or
// was delivered often enough.
func (c *Consumer) take(ms []types.Message, at time.Time) {
	ds := make([]*broker.Delivery, 0, len(ms))
	var early, spent []copied
	for i := range ms {
		r := decode(&ms[i], c.q.b.o.UnwrapSNS)
		c.q.origin(&r)
		receipt := aws.ToString(ms[i].ReceiptHandle)
		switch {
		case !c.q.t.fifo && at.Before(r.due):
			early = append(early, copied{r: r, receipt: receipt, until: at.Add(c.lease)})
		case c.q.dead != nil && c.q.caps.MaxAttempts > 0 && r.attempt > c.q.caps.MaxAttempts:
			spent = append(spent, copied{
				r: r, receipt: receipt, until: at.Add(c.lease),
				reason: spentReason(r.attempt - 1), count: r.attempt - 1,
			})
		default:
			ds = append(ds, c.hold(&r, receipt, at))
		}
	}
	if len(early) > 0 {
		c.logCopies("postponing", early, c.q.postpone(c.polls, early))
	}
	if len(spent) > 0 {
		c.logCopies("dead-lettering", spent, c.q.bury(c.polls, spent))
	}
	c.inbox.Put(ds...)
	if len(ds) > 0 {
		c.watchUnread()
		c.watchWaiting()
	}
}

func (c *Consumer) logCopies(what string, cs []copied, errs []error) {
	for i, err := range errs {
		if err != nil {
			c.q.b.log.WarnContext(c.ctx, "sqs: "+what+" failed; the message returns when its lease ends",
				"queue", c.q.t.name, "id", cs[i].r.ID, "error", err)
		}
	}
}
