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
// Options.MaxPollers; one that finds nothing ends, down to one. They ask for
// what waiting Receives are short of. Ahead of that they fetch what the program
// takes in a quarter of a second, batch by batch, if that fills one: a slow program's
// messages neither lose their leases in a buffer nor, when it is given back, an
// attempt. One poll at a time is a long one: it is there for what comes later,
// the others for what is there now, and what a Close leaves under way takes at
// most one batch along. What stays in the buffer for an eighth of the lease while nobody
// receives goes back to the queue.

// startPoller starts one more. c.mu is held.
func (c *Consumer) startPoller() {
	c.pollers++
	c.q.b.polls.start(c.poll)
}

func (c *Consumer) poll() {
	p := poller{c: c}
	defer p.recover()
	for {
		n, wait, end := c.claim(p.broken)
		switch {
		case end:
			return
		case n > 0:
			if !p.fetch(n, wait) {
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

// claim returns how many messages to ask for, of which 0 means not to poll yet,
// how long to wait for them, and whether the poller ends: since all is over, or
// another one can look out. One that is broken tries again when the program
// does: it told Receive not to wait.
func (c *Consumer) claim(broken bool) (n int, wait time.Duration, end bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n = c.free(); c.expecting() && n > 1 || n == 0 && broken && c.tried {
		n = 1
	}
	c.tried = c.tried && n == 0
	if c.closed || n == 0 && c.pollers > 1 {
		c.pollers--
		return 0, 0, true
	}
	c.reserved += n
	if wait = shortPoll; n > 0 && !c.long {
		c.long, wait = true, c.q.b.o.PollWait
	}
	return n, wait, false
}

// free returns for how many more messages there is use. What nobody waits for
// is fetched in full batches, since a request costs the same for one message
// as for ten. c.mu is held.
func (c *Consumer) free() int {
	ready := c.inbox.Ready()
	room := min(c.prefetch-ready, c.total-c.inbox.Len())
	n := min(c.inbox.Demand(), room) - c.reserved
	if ahead := c.handed.perSecond() / 4; ahead >= batchEntries {
		more := min(ahead-ready, room) - c.reserved
		if n > 0 || more >= min(batchEntries, (c.prefetch+1)/2) {
			n = max(n, more)
		}
	}
	return max(0, min(n, batchEntries))
}

// fetched gives back what a poll reserved, and tells whether the poller goes
// on. A full batch starts another poller.
func (c *Consumer) fetched(reserved, got int, wait time.Duration, err error) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reserved -= reserved
	c.long = c.long && wait == shortPoll
	switch {
	case c.closed, err == nil && got == 0 && c.pollers > 1:
		c.pollers--
		return false
	case got == reserved && c.pollers < c.q.b.o.MaxPollers && c.free() > batchEntries/2:
		c.startPoller()
	}
	return true
}

// A poller's state between its polls.
type poller struct {
	c *Consumer
	// attempt is the ReceiveRequestAttemptId of a poll of a FIFO queue that has
	// no answer yet: repeated with it, the poll brings the messages that the
	// lost answer held. asked is how many it asked for, maybe that it may have
	// been carried out.
	attempt string
	asked   int
	maybe   bool
	failed  int  // polls in a row
	empty   int  // polls in a row that came back empty sooner than they should
	broken  bool // Receive was told of an error
}

// fetch polls once, and tells whether the poller goes on.
func (p *poller) fetch(n int, wait time.Duration) bool {
	c := p.c
	start := time.Now()
	ctx, lp := c.q.b.polls.begin(c, wait)
	if lp == nil {
		return c.fetched(n, 0, wait, broker.ErrClosed) && pause(c.ctx, time.Second)
	}
	ms, err := p.receive(ctx, n, wait)
	if err == nil && !c.take(ms, time.Now()) {
		p.handBack(ms)
	}
	c.q.b.polls.end(lp)
	got := len(ms)
	goOn := c.fetched(n, got, wait, err)
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
		if got > 0 || time.Since(start) >= wait/2 {
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

func (p *poller) receive(ctx context.Context, n int, wait time.Duration) ([]types.Message, error) {
	c := p.c
	if p.maybe && c.q.t.fifo {
		n = max(n, p.asked)
	}
	p.asked = n
	in := &awssqs.ReceiveMessageInput{
		QueueUrl:                    &c.q.t.url,
		MaxNumberOfMessages:         int32(p.asked),
		WaitTimeSeconds:             seconds(wait),
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
	out, err := c.q.b.sqs.ReceiveMessage(ctx, in)
	if err != nil {
		p.maybe = p.maybe || ctx.Err() != nil || c.q.b.judge(ctx, err).maybe
		return nil, err
	}
	p.attempt, p.asked, p.maybe = "", 0, false
	return out.Messages, nil
}

// recover gives back what the last poll of a FIFO queue may have taken, if its
// answer is lost: the poll is repeated with its attempt's id. Standard queues
// have no such thing; there it returns when its lease ends.
func (p *poller) recover() {
	if p.attempt == "" || !p.maybe {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout/3)
	defer cancel()
	if ms, err := p.receive(ctx, p.asked, 0); err == nil {
		p.c.q.b.handBack(ctx, p.c.q.t, ms)
	}
}

// handBack gives back what came after Close.
func (p *poller) handBack(ms []types.Message) {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout/3)
	defer cancel()
	p.c.q.b.handBack(ctx, p.c.q.t, ms)
}

var allAttributes = []string{"All"}

// take puts what was received into the inbox, but for what is not due yet or
// was delivered often enough. After Close it returns false and takes nothing.
func (c *Consumer) take(ms []types.Message, at time.Time) bool {
	if !c.begin() {
		return false
	}
	defer c.work.Done()
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
	c.inbox.Put(ds...)
	if len(ds) > 0 {
		c.watchUnread()
		c.watchWaiting()
	}
	c.sendOn("postponing", early, c.q.postpone)
	c.sendOn("dead-lettering", spent, c.q.bury)
	return true
}

// sendOn moves messages elsewhere, behind the poller, which goes on: a queue
// that does not take them may keep this waiting until their leases end.
func (c *Consumer) sendOn(what string, cs []copied, move func(ctx context.Context, cs []copied) []error) {
	if len(cs) == 0 {
		return
	}
	c.moves <- struct{}{}
	c.work.Go(func() {
		defer func() { <-c.moves }()
		for i, err := range move(c.last, cs) {
			if err != nil {
				c.q.b.log.WarnContext(c.ctx, "sqs: "+what+" failed; the message returns when its lease ends",
					"queue", c.q.t.name, "id", cs[i].r.ID, "error", err)
			}
		}
	})
}
