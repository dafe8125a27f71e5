package sqs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/queuestream/broker"
)

// A copied message is one that is received and sent on: to the dead-letter
// queue, to the same queue for later, or back by a redrive. Its copy is stored
// before it is deleted, so that a crash in between duplicates and never loses.
type copied struct {
	r       received
	receipt string
	until   time.Time // the lease
	reason  string
	count   int // deliveries of it so far
}

// move sends ws[i] and then deletes cs[i], and returns an error for each. It
// ends with the last of their leases: a queue that takes no copy must not hold
// up its caller for ever.
func move(ctx context.Context, to *sender, from *settler, cs []copied, ws []wire, errs []error) []error {
	var last time.Time
	for i := range cs {
		if cs[i].until.After(last) {
			last = cs[i].until
		}
	}
	bounded, cancel := context.WithDeadline(ctx, last)
	to.many(bounded, ws, make([]string, len(ws)), errs)
	cancel()
	for i, err := range errs {
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			errs[i] = fmt.Errorf("%w: no copy of it could be stored until then: %w", broker.ErrLeaseLost, err)
		}
	}
	var items []settlement
	var leases []time.Time
	var at []int
	for i := range cs {
		if errs[i] == nil {
			items = append(items, settlement{receipt: cs[i].receipt})
			leases, at = append(leases, cs[i].until), append(at, i)
		}
	}
	for j, err := range from.many(ctx, from.deletes, items, leases) {
		errs[at[j]] = err
	}
	return errs
}

// copyCodec encodes copies: never plain, since they carry what plain cannot.
func (q *Queue) copyCodec(t *target) codec {
	return codec{fifo: t.fifo, contentDedup: t.contentDedup, groups: true}
}

// bury moves messages to the dead-letter queue.
func (q *Queue) bury(ctx context.Context, cs []copied) []error {
	ws, errs := make([]wire, len(cs)), make([]error, len(cs))
	code := q.copyCodec(q.dead)
	for i := range cs {
		c := &cs[i]
		x := extra{dedup: receiptHash(c.receipt), sent: c.r.time}
		m := broker.DeadLetterMessage(c.r.Message, broker.DeadLetter{
			Reason: c.reason, Queue: q.t.name, Attempts: c.count, Time: time.Now(),
		})
		ws[i], errs[i] = code.encode(&m, x)
		if errs[i] == nil && ws[i].size > q.dead.maxBytes {
			// No room for the reason: the message itself matters more.
			q.b.log.WarnContext(ctx, "sqs: the dead-lettered message has no room for its reason",
				"queue", q.t.name, "id", m.ID, "reason", c.reason)
			ws[i], errs[i] = code.encode(&c.r.Message, x)
		}
		if errs[i] == nil && ws[i].size > q.dead.maxBytes {
			errs[i] = &broker.SizeError{Size: ws[i].size, Limit: q.dead.maxBytes}
		}
	}
	return move(ctx, q.deadSend(), q.settles, cs, ws, errs)
}

// postpone sends messages that are not due yet on their next hop.
func (q *Queue) postpone(ctx context.Context, cs []copied) []error {
	ws, errs := make([]wire, len(cs)), make([]error, len(cs))
	code := q.copyCodec(q.t)
	for i := range cs {
		r := &cs[i].r
		m := r.Message
		m.Delay = max(time.Second, time.Until(r.due))
		ws[i], errs[i] = code.encode(&m, extra{due: r.due, sent: r.time, attempts: r.attempt - 1})
		if errs[i] == nil && ws[i].size > q.t.maxBytes {
			errs[i] = &broker.SizeError{Size: ws[i].size, Limit: q.t.maxBytes}
		}
	}
	return move(ctx, q.sends, q.settles, cs, ws, errs)
}

// receiptHash is a deduplication id that is the same when the same delivery
// is moved again, and another one for the next delivery of the message.
func receiptHash(receipt string) string {
	sum := sha256.Sum256([]byte(receipt))
	return hex.EncodeToString(sum[:])
}

// origin writes or removes the headers of a dead-lettered message where the
// service has moved it by itself.
func (q *Queue) origin(r *received) { origin(r, q.t.name) }

func origin(r *received, name string) {
	why, ok := broker.DeadLetterOf(&r.Message)
	switch source := arnName(r.source); {
	case ok && why.Queue == name: // redriven by the service
		r.Message = broker.RedriveMessage(r.Message)
	case !ok && source != "" && source != name: // dead-lettered by the service
		r.Headers = append(r.Headers,
			broker.Header{Key: broker.HeaderDeadLetterReason, Value: "received maxReceiveCount times without being deleted"},
			broker.Header{Key: broker.HeaderDeadLetterQueue, Value: source})
	}
}

var errGone = errors.New("the consumer does not hold it any more")
