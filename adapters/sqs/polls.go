package sqs

import (
	"context"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awssqs "github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
)

// longPolls are the pollers of a Broker's consumers and their polls under way.
// A poll that is cut off may still take messages, which nobody sees until their
// lease ends. So a poll outlives its consumer for as long as it waits, and what
// it brings then goes back at once; only the Broker's Close cuts it off.
type longPolls struct {
	mu      sync.Mutex
	idle    sync.Cond // no poller is left
	ending  bool
	pollers int
	open    map[*longPoll]struct{}
}

type longPoll struct {
	c    *Consumer
	ends time.Time // when the service answers at the latest
	cut  context.CancelFunc
	done chan struct{} // closed once its messages are in the consumer's hands or given back
}

func (l *longPolls) init() {
	l.idle.L = &l.mu
	l.open = map[*longPoll]struct{}{}
}

// start runs a poller.
func (l *longPolls) start(poll func()) {
	l.mu.Lock()
	l.pollers++
	l.mu.Unlock()
	go func() {
		defer func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			if l.pollers--; l.pollers == 0 {
				l.idle.Broadcast()
			}
		}()
		poll()
	}()
}

// begin registers a poll; ctx is to be its own. It returns nil once the Broker closes.
func (l *longPolls) begin(c *Consumer, wait time.Duration) (context.Context, *longPoll) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ending {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), wait+c.q.b.o.RequestTimeout)
	p := &longPoll{c: c, ends: time.Now().Add(wait), cut: cancel, done: make(chan struct{})}
	l.open[p] = struct{}{}
	return ctx, p
}

func (l *longPolls) end(p *longPoll) {
	p.cut()
	l.mu.Lock()
	delete(l.open, p)
	l.mu.Unlock()
	close(p.done)
}

// wait waits for the polls of c that end by themselves within closeTimeout.
func (l *longPolls) wait(c *Consumer) {
	limit := time.NewTimer(closeTimeout)
	defer limit.Stop()
	l.mu.Lock()
	var soon []*longPoll
	for p := range l.open {
		if p.c == c && time.Until(p.ends) < closeTimeout {
			soon = append(soon, p)
		}
	}
	l.mu.Unlock()
	for _, p := range soon {
		select {
		case <-p.done:
		case <-limit.C:
			return
		}
	}
}

// finish cuts off what does not end by itself within closeTimeout, and lets no
// other poll begin.
func (l *longPolls) finish() (done func()) {
	l.mu.Lock()
	l.ending = true
	l.mu.Unlock()
	l.cut(closeTimeout)
	t := time.AfterFunc(closeTimeout, func() { l.cut(0) })
	return func() {
		defer t.Stop()
		l.mu.Lock()
		defer l.mu.Unlock()
		for l.pollers > 0 {
			l.idle.Wait()
		}
	}
}

// cut cuts off the polls that do not end within patience.
func (l *longPolls) cut(patience time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for p := range l.open {
		if time.Until(p.ends) >= patience {
			p.cut()
		}
	}
}

// handBack makes messages visible again that came after their consumer's Close.
func (b *Broker) handBack(ctx context.Context, t *target, ms []types.Message) {
	if len(ms) == 0 {
		return
	}
	entries := make([]types.ChangeMessageVisibilityBatchRequestEntry, len(ms))
	for i := range ms {
		entries[i] = types.ChangeMessageVisibilityBatchRequestEntry{Id: &batchIDs[i], ReceiptHandle: ms[i].ReceiptHandle}
	}
	out, err := b.sqs.ChangeMessageVisibilityBatch(ctx,
		&awssqs.ChangeMessageVisibilityBatchInput{QueueUrl: &t.url, Entries: entries})
	failed := len(ms)
	if err == nil {
		if failed = len(out.Failed); failed == 0 {
			return
		}
		err = judgeEntry(out.Failed[0].Code, out.Failed[0].Message, out.Failed[0].SenderFault)
	}
	b.log.DebugContext(ctx, "sqs: giving back what came after Close failed; it returns when its lease ends",
		"queue", t.name, "messages", failed, "first", aws.ToString(ms[0].MessageId), "error", err)
}
