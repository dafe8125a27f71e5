package bridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"strconv"
	"time"

	"github.com/queuestream/broker"
)

// handle enqueues one record. nil lets its offset be committed.
func (rt *Route) handle(ctx context.Context, r *broker.Record) error {
	start := time.Now()
	duplicate, kept, err := rt.enqueue(ctx, r)
	return rt.decide(ctx, r, start, duplicate, kept, err)
}

// A sending is what goes to one queue in one call.
type sending struct {
	queue broker.Queue
	tasks []broker.Message
	index []int // of their records
}

// An outcome is what became of one try of a record.
type outcome struct {
	ended     bool // at an earlier one
	kept      bool
	duplicate bool
	err       error
}

// handleBatch enqueues several records, those of one key in order, with one
// call for each queue; the verdict of each is in a *broker.BatchError.
func (rt *Route) handleBatch(ctx context.Context, rs []*broker.Record) error {
	start := time.Now()
	outcomes := make([]outcome, len(rs))
	sendings := make([]sending, 0, 1)
	for i, r := range rs {
		o := &outcomes[i]
		if o.ended = rt.hasEnded(r); !o.ended {
			if o.kept, o.err = rt.add(ctx, &sendings, r, i, len(rs)-i); o.kept && o.err == nil {
				o.err = errUnsent
			}
		}
	}
	for _, s := range sendings {
		if len(s.tasks) == 0 {
			continue
		}
		receipts, err := s.queue.PublishBatch(ctx, s.tasks)
		for j, i := range s.index {
			receipt, err := receipts[j], broker.ErrorAt(err, j)
			if rt.claims(s.tasks[j], err) {
				receipt, err = rt.publishClaim(ctx, s.queue, rs[i], s.tasks[j])
			}
			outcomes[i].duplicate, outcomes[i].err = receipt.Duplicate, err
		}
	}
	return rt.decideAll(ctx, rs, start, outcomes)
}

// errUnsent is of a task whose queue has said nothing.
var errUnsent = errors.New("not sent")

// add adds the task of r, record i of a batch, to what goes to its queue, which
// has room for that many.
func (rt *Route) add(ctx context.Context, sendings *[]sending, r *broker.Record, i, room int) (kept bool, err error) {
	defer recovered(&err)
	q, kept, err := rt.choose(ctx, r)
	if err != nil || !kept {
		return kept, err
	}
	at := slices.IndexFunc(*sendings, func(s sending) bool { return s.queue == q })
	if at < 0 {
		at = len(*sendings)
		*sendings = append(*sendings, sending{queue: q, tasks: make([]broker.Message, 0, room), index: make([]int, 0, room)})
	}
	s := &(*sendings)[at]
	n := len(s.tasks)
	task := &s.tasks[:n+1][n]
	if err = rt.fill(task, r, q); err == nil {
		err = rt.edit(task, r)
	}
	if err == nil {
		s.tasks, s.index = s.tasks[:n+1], append(s.index, i)
	}
	return true, err
}

// recovered makes an error of a panic of one of the route's functions, so that it
// is its record's alone.
func recovered(err *error) {
	if v := recover(); v != nil {
		*err = &broker.PanicError{Value: v, Stack: debug.Stack()}
	}
}

// A line is what the Processor keeps in order.
type line struct {
	partition int32
	order     string
}

// decideAll decides on the records of a batch. Those behind one that has failed,
// in its line, come again whatever is said of them: what has ended is remembered,
// and what failed too is decided on then.
func (rt *Route) decideAll(ctx context.Context, rs []*broker.Record, start time.Time, outcomes []outcome) error {
	var errs []error
	var failed map[line]bool
	var ended []*broker.Record
	for i, r := range rs {
		o := &outcomes[i]
		var l line
		behind := false
		if failed != nil {
			l = line{r.Partition, rt.order(r)}
			behind = failed[l] && l.order != ""
		}
		err := o.err
		if !o.ended && (err == nil || !behind) {
			err = rt.decide(ctx, r, start, o.duplicate, o.kept, err)
		}
		switch {
		case err == nil && behind:
			ended = append(ended, r)
		case err == nil:
		case failed == nil:
			failed, errs = map[line]bool{{r.Partition, rt.order(r)}: true}, make([]error, len(rs))
			errs[i] = err
		default:
			failed[l], errs[i] = true, err
		}
	}
	rt.remember(ended)
	return broker.NewBatchError(errs)
}

// claims tells whether the task goes again with its body in the blob store.
func (rt *Route) claims(task broker.Message, err error) bool {
	return rt.TooLarge == TooLargeClaimCheck && len(task.Body) > 0 && errors.Is(err, broker.ErrTooLarge)
}

func (rt *Route) publishClaim(ctx context.Context, q broker.Queue, r *broker.Record, task broker.Message) (broker.Receipt, error) {
	task, err := rt.claim(ctx, r, task)
	if err != nil {
		return broker.Receipt{ID: task.ID}, err
	}
	return q.Publish(ctx, task)
}

// enqueue filters, maps and publishes.
func (rt *Route) enqueue(ctx context.Context, r *broker.Record) (duplicate, kept bool, err error) {
	q, task, kept, err := rt.plan(ctx, r)
	if err != nil || !kept {
		return false, kept, err
	}
	receipt, err := q.Publish(ctx, task)
	if rt.claims(task, err) {
		receipt, err = rt.publishClaim(ctx, q, r, task)
	}
	return receipt.Duplicate, true, err
}

// plan tells what r becomes: a task for a queue, or nothing (kept false).
func (rt *Route) plan(ctx context.Context, r *broker.Record) (q broker.Queue, task broker.Message, kept bool, err error) {
	defer recovered(&err)
	if q, kept, err = rt.choose(ctx, r); err != nil || !kept {
		return q, task, kept, err
	}
	if err = rt.fill(&task, r, q); err == nil && rt.Map != nil {
		own := new(broker.Message)
		*own = task
		err = rt.edit(own, r)
		task = *own
	}
	return q, task, true, err
}

// choose tells the queue that r goes to, unless it is filtered (kept false).
func (rt *Route) choose(ctx context.Context, r *broker.Record) (q broker.Queue, kept bool, err error) {
	if rt.Filter != nil {
		if kept, err := rt.Filter(r); err != nil {
			return nil, true, &poison{err}
		} else if !kept {
			return nil, false, nil
		}
	}
	if rt.TargetFor == nil {
		return rt.Target, true, nil
	}
	if q, err = rt.TargetFor(ctx, r); err != nil {
		return nil, true, err
	}
	if _, known := rt.targets.Load(q); !known {
		rt.targets.Store(q, nil)
	}
	return q, true, nil
}

// decide turns the outcome of one try into the Processor's verdict.
func (rt *Route) decide(ctx context.Context, r *broker.Record, start time.Time, duplicate, kept bool, err error) error {
	switch {
	case err == nil && kept:
		rt.forget(r)
		rt.event(Enqueued, r, start, duplicate, nil)
		return nil
	case err == nil:
		rt.event(Filtered, r, start, false, nil)
		return nil
	case !isPoison(err) && (isPassing(err) || ctx.Err() != nil || rt.failed(r) < rt.Attempts):
		rt.event(Retried, r, start, false, err)
		rt.log(slog.LevelWarn, "a send failed and is tried again", r, err)
		return err
	}
	rt.forget(r)
	switch rt.Poison {
	case PoisonSkip:
		rt.event(Skipped, r, start, false, err)
		rt.log(slog.LevelWarn, "a poison record was skipped", r, err)
		return nil
	case PoisonBlockKey:
		rt.event(Blocked, r, start, false, err)
		rt.log(slog.LevelError, "a poison record blocks its key", r, err)
		return err
	case PoisonHalt:
		rt.log(slog.LevelError, "a poison record halts the route", r, err)
	}
	return broker.Reject(err)
}

// deadLetter parks r. An error makes the Processor try again.
func (rt *Route) deadLetter(ctx context.Context, r *broker.Record, cause error) error {
	start := time.Now()
	c := rt.DeadLetter.Capabilities()
	m := broker.DeadLetterMessage(broker.Message{
		ID:      dedupID(r, rt.Salt),
		Body:    r.Value,
		Headers: headers(r),
	}, broker.DeadLetter{Reason: cause.Error(), Queue: rt.targetName(), Attempts: max(1, r.Info().Attempt), Time: time.Now()})
	if c.Dedup {
		m.DedupID = m.ID
	}
	if c.Groups {
		group, err := rt.groupOf(r, m.ID)
		if err != nil { // which may be why it is here
			group = orDefault(string(r.Key), m.ID)
		}
		m.GroupID = group
	}
	_, err := rt.DeadLetter.Publish(ctx, m)
	if isPoison(err) { // it does not fit there either: the stream still has it
		m.Body = nil
		m.Headers = append(broker.SourceHeaders(r),
			broker.Header{Key: broker.HeaderDeadLetterReason, Value: truncate(cause.Error(), 1024)},
			broker.Header{Key: HeaderOmitted, Value: strconv.Itoa(r.Size())})
		_, err = rt.DeadLetter.Publish(ctx, m)
	}
	if err != nil {
		rt.event(Retried, r, start, false, err)
		rt.log(slog.LevelError, "the dead-letter queue refused a record, which blocks its key", r, err)
		return err
	}
	rt.event(Parked, r, start, false, cause)
	rt.log(slog.LevelWarn, "a poison record was parked", r, cause)
	return nil
}

// HeaderOmitted tells that a dead letter lacks body and headers, since they do
// not fit, and how many bytes they are; the coordinates tell where to read them.
const HeaderOmitted = "x-dead-letter-omitted"

func (rt *Route) targetName() string {
	if rt.Target != nil {
		return rt.Target.Name()
	}
	return "(chosen by record)"
}

func (rt *Route) log(level slog.Level, msg string, r *broker.Record, err error) {
	rt.Logger.Log(context.Background(), level, msg,
		"route", rt.Name, "stream", rt.Source.Name(), "partition", r.Partition,
		"offset", r.Offset().String(), "key", fmt.Sprintf("%.64q", r.Key), "error", err)
}

func truncate(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return s[:n]
}
