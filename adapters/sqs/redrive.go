package sqs

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awssqs "github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/queuestream/broker"
)

// Redrive moves messages back. All of them to where each came from is what SQS
// does itself (StartMessageMoveTask); what it refuses (messages that Reject
// dead-lettered, which the service did not see coming), a number of messages,
// and another target, are received, sent, and deleted here, at least once. The
// headers that tell why a message was dead-lettered go here, and else when the
// message is received. An error comes with how many were moved before it.
func (b *Broker) Redrive(ctx context.Context, deadLetterQueue, to string, max int) (int, error) {
	moved := 0
	err := b.admin(ctx, "redrive", deadLetterQueue, func() error {
		if max < 0 {
			return broker.Invalid("max %d: must not be negative", max)
		}
		dead, err := b.resolve(ctx, deadLetterQueue)
		if err != nil {
			return err
		}
		if to == "" && max == 0 {
			n, err := b.moveTask(ctx, dead)
			moved = n
			if ctx.Err() != nil {
				return err
			}
			if err != nil {
				b.log.DebugContext(ctx, "sqs: the service does not redrive; doing it here",
					"queue", deadLetterQueue, "moved", n, "error", err)
			}
		}
		n, err := b.moveBack(ctx, dead, to, max)
		moved += n
		return err
	})
	return moved, err
}

// moveTask has the service move what it can, and waits for it.
func (b *Broker) moveTask(ctx context.Context, dead *target) (int, error) {
	task, err := control(ctx, b, func(ctx context.Context) (*awssqs.StartMessageMoveTaskOutput, error) {
		return b.sqs.StartMessageMoveTask(ctx, &awssqs.StartMessageMoveTaskInput{SourceArn: &dead.arn})
	})
	if err != nil {
		return 0, err
	}
	for try := 1; ; try++ {
		out, err := control(ctx, b, func(ctx context.Context) (*awssqs.ListMessageMoveTasksOutput, error) {
			return b.sqs.ListMessageMoveTasks(ctx, &awssqs.ListMessageMoveTasksInput{SourceArn: &dead.arn, MaxResults: aws.Int32(1)})
		})
		if err != nil {
			return 0, err
		}
		if len(out.Results) == 0 {
			return 0, fmt.Errorf("%w: the message move task %.40q", broker.ErrNotFound, aws.ToString(task.TaskHandle))
		}
		r := out.Results[0] // the newest first
		n := int(r.ApproximateNumberOfMessagesMoved)
		switch aws.ToString(r.Status) {
		case "COMPLETED":
			return n, nil
		case "RUNNING", "CANCELLING":
		default:
			return n, fmt.Errorf("%w: the message move task ended as %s: %s",
				broker.ErrUnavailable, aws.ToString(r.Status), aws.ToString(r.FailureReason))
		}
		if !pause(ctx, min(backoff(try), time.Second)) {
			return n, gaveUp(ctx, nil, false)
		}
	}
}

// A mover moves messages from one queue to others.
type mover struct {
	b     *Broker
	dead  *target
	from  *settler
	to    string
	ends  map[string]*moveEnd
	moved int
}

type moveEnd struct {
	t    *target
	send *sender
}

func (b *Broker) moveBack(ctx context.Context, dead *target, to string, max int) (int, error) {
	m := &mover{b: b, dead: dead, from: newSettler(b, dead), to: to, ends: map[string]*moveEnd{}}
	defer m.close()
	if to != "" {
		if _, err := m.end(ctx, to); err != nil {
			return 0, fmt.Errorf("to %q: %w", to, err)
		}
	}
	var stay []settlement
	var failed error
	for max == 0 || m.moved < max {
		n := batchEntries
		if max > 0 {
			n = min(n, max-m.moved)
		}
		ms, err := b.receiveSome(ctx, dead, n)
		if err != nil {
			failed = err
			break
		}
		if len(ms) == 0 {
			break
		}
		left, err := m.batch(ctx, ms)
		stay = append(stay, left...)
		if failed = errors.Join(failed, err); ctx.Err() != nil || len(stay) >= maxWaiting {
			break
		}
	}
	return m.moved, errors.Join(failed, m.giveBack(ctx, stay))
}

// giveBack makes what stays visible again, also once ctx has ended.
func (m *mover) giveBack(ctx context.Context, stay []settlement) error {
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	leases := make([]time.Time, len(stay))
	for i := range leases {
		leases[i] = time.Now().Add(peekLease)
	}
	return broker.NewBatchError(m.from.many(bounded, m.from.changes, stay, leases))
}

func (m *mover) close() {
	ended, cancel := context.WithCancel(context.Background())
	cancel() // nothing is under way any more
	m.from.close(ended)
	for _, e := range m.ends {
		_ = e.send.close(ended) // as above
	}
}

// batch moves what it can of ms and returns the receipts of the rest.
func (m *mover) batch(ctx context.Context, ms []types.Message) (stay []settlement, failed error) {
	until := time.Now().Add(peekLease)
	cs, ws := map[*moveEnd][]copied{}, map[*moveEnd][]wire{}
	refuse := func(id, receipt string, err error) {
		stay = append(stay, settlement{receipt: receipt, release: true})
		failed = errors.Join(failed, fmt.Errorf("message %s: %w", id, err))
	}
	for i := range ms {
		r := decode(&ms[i], false)
		receipt := aws.ToString(ms[i].ReceiptHandle)
		name := m.to
		if why, ok := broker.DeadLetterOf(&r.Message); name == "" && ok {
			name = why.Queue
		} else if name == "" {
			name = arnName(r.source)
		}
		if name == "" {
			refuse(r.ID, receipt, broker.Invalid("where it came from is not known; say where to"))
			continue
		}
		end, err := m.end(ctx, name)
		if err != nil {
			refuse(r.ID, receipt, err)
			continue
		}
		out := broker.RedriveMessage(r.Message)
		code := codec{fifo: end.t.fifo, contentDedup: end.t.contentDedup, groups: true}
		w, err := code.encode(&out, extra{dedup: receiptHash(receipt), sent: r.time})
		if err == nil && w.size > end.t.maxBytes {
			err = &broker.SizeError{Size: w.size, Limit: end.t.maxBytes}
		}
		if err != nil {
			refuse(r.ID, receipt, err)
			continue
		}
		cs[end] = append(cs[end], copied{r: r, receipt: receipt, until: until})
		ws[end] = append(ws[end], w)
	}
	for end := range cs {
		for i, err := range move(ctx, end.send, m.from, cs[end], ws[end], make([]error, len(cs[end]))) {
			if err != nil {
				refuse(cs[end][i].r.ID, cs[end][i].receipt, err)
				continue
			}
			m.moved++
		}
	}
	return stay, failed
}

func (m *mover) end(ctx context.Context, name string) (*moveEnd, error) {
	if e := m.ends[name]; e != nil {
		return e, nil
	}
	t, err := m.b.resolve(ctx, name)
	if err != nil {
		return nil, err
	}
	e := &moveEnd{t: t, send: m.b.queueSender(t)}
	m.ends[name] = e
	return e, nil
}
