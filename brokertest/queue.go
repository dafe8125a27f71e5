package brokertest

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/queuestream/broker"
)

// A Queue is a Queue without a broker: what is published is received by its
// consumers, an ack removes it, a nack delivers it again after its delay, at its
// old place, a reject keeps it for DeadLetters. It never expires a lease by itself. Use
// NewQueue.
type Queue struct {
	// Recorder sees every settlement, and can refuse it.
	Recorder Recorder
	// Caps are what Capabilities returns; change them before use.
	Caps broker.QueueCapabilities
	// Lease, unless 0, is given to each delivery.
	Lease time.Duration
	// ReceiveErr, unless nil, is asked at the beginning of each Receive.
	ReceiveErr func() error

	name   string
	mu     sync.Mutex
	inbox  []entry // by place
	places uint64
	dead   []broker.Message
	groups map[string]bool // with an open delivery
	wake   chan struct{}
	closed bool
}

const adapter = "brokertest" // in errors

type entry struct {
	m       broker.Message
	attempt int
	place   uint64 // in the queue
}

// NewQueue returns a queue with ms in it.
func NewQueue(name string, ms ...broker.Message) *Queue {
	q := &Queue{
		name: name, groups: map[string]bool{}, wake: make(chan struct{}),
		Caps: broker.QueueCapabilities{
			Groups: true, Headers: true, FIFO: true, Lease: true, NackDelay: true, Snooze: true,
			Reject: true, Attempts: true,
		},
	}
	for _, m := range ms {
		q.push(m)
	}
	return q
}

// Name implements [broker.Queue].
func (q *Queue) Name() string { return q.name }

// Adapter returns the name that errors carry.
func (q *Queue) Adapter() string { return adapter }

// Capabilities implements [broker.Queue].
func (q *Queue) Capabilities() broker.QueueCapabilities { return q.Caps }

// Publish implements [broker.Publisher].
func (q *Queue) Publish(ctx context.Context, m broker.Message) (broker.Receipt, error) {
	if m.ID == "" {
		m.ID = broker.NewID()
	}
	err := broker.ContextError(ctx)
	if err == nil {
		err = broker.ValidateMessage(&m, &q.Caps)
	}
	if err == nil && q.isClosed() {
		err = broker.ErrClosed
	}
	if err != nil {
		return broker.Receipt{ID: m.ID}, q.fail("publish", err)
	}
	m.Body = slices.Clone(m.Body)
	q.push(m)
	return broker.Receipt{ID: m.ID}, nil
}

// PublishBatch implements [broker.Publisher].
func (q *Queue) PublishBatch(ctx context.Context, ms []broker.Message) ([]broker.Receipt, error) {
	receipts, errs := make([]broker.Receipt, len(ms)), make([]error, len(ms))
	for i, m := range ms {
		receipts[i], errs[i] = q.Publish(ctx, m)
	}
	return receipts, broker.NewBatchError(errs)
}

// Consumer implements [broker.Queue].
func (q *Queue) Consumer(_ context.Context, opts *broker.ConsumerOptions) (broker.Consumer, error) {
	if err := broker.ValidateConsumer(opts, &q.Caps); err != nil {
		return nil, q.fail("consumer", err)
	}
	if q.isClosed() {
		return nil, q.fail("consumer", broker.ErrClosed)
	}
	return &consumer{q: q, open: map[*broker.Delivery]uint64{}}, nil
}

// Close implements [broker.Queue].
func (q *Queue) Close() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.wakeAll()
	return nil
}

// Waiting returns the messages that no consumer holds and that are due.
func (q *Queue) Waiting() []broker.Message {
	q.mu.Lock()
	defer q.mu.Unlock()
	ms := make([]broker.Message, len(q.inbox))
	for i, e := range q.inbox {
		ms[i] = e.m
	}
	return ms
}

// DeadLetters returns what was rejected, with the headers of a dead letter.
func (q *Queue) DeadLetters() []broker.Message {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.Clone(q.dead)
}

func (q *Queue) fail(op string, err error) error {
	return &broker.Error{Op: op, Adapter: adapter, Name: q.name, Err: err}
}

func (q *Queue) isClosed() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.closed
}

func (q *Queue) push(m broker.Message) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if m.ID == "" {
		m.ID = broker.NewID()
	}
	q.places++
	q.inbox = append(q.inbox, entry{m, 0, q.places})
	q.wakeAll()
}

func (q *Queue) wakeAll() {
	close(q.wake)
	q.wake = make(chan struct{})
}

type consumer struct {
	q      *Queue
	open   map[*broker.Delivery]uint64 // their places; guarded by q.mu
	closed bool
}

// Name and Adapter are what errors of a Delivery carry.
func (c *consumer) Name() string { return c.q.name }

func (c *consumer) Adapter() string { return adapter }

func (c *consumer) Receive(ctx context.Context, max int) ([]*broker.Delivery, error) {
	q := c.q
	if max <= 0 {
		return nil, q.fail("receive", broker.Invalid("max %d: want at least 1", max))
	}
	if q.ReceiveErr != nil {
		if err := q.ReceiveErr(); err != nil {
			return nil, err
		}
	}
	for {
		if err := broker.ContextError(ctx); err != nil {
			return nil, q.fail("receive", err)
		}
		q.mu.Lock()
		if q.closed || c.closed {
			q.mu.Unlock()
			return nil, q.fail("receive", broker.ErrClosed)
		}
		if ds := c.take(max); len(ds) > 0 {
			q.mu.Unlock()
			return ds, nil
		}
		wake := q.wake
		q.mu.Unlock()
		select {
		case <-wake:
		case <-ctx.Done():
		}
	}
}

func (c *consumer) take(max int) []*broker.Delivery {
	q := c.q
	var ds []*broker.Delivery
	rest := q.inbox[:0:0]
	skipped := map[string]bool{}
	for i, e := range q.inbox {
		g := e.m.GroupID
		if len(ds) == max {
			rest = append(rest, q.inbox[i:]...)
			break
		}
		if g != "" && (q.groups[g] || skipped[g]) {
			skipped[g] = true
			rest = append(rest, e)
			continue
		}
		if g != "" {
			q.groups[g] = true
		}
		d := &broker.Delivery{Message: e.m, Attempt: e.attempt + 1, Time: time.Now()}
		d.Bind(c, 0, 0)
		if q.Lease > 0 {
			d.SetLease(time.Now().Add(q.Lease))
		}
		c.open[d] = e.place
		ds = append(ds, d)
	}
	q.inbox = rest
	return ds
}

func (c *consumer) SettleOne(ctx context.Context, d *broker.Delivery, v broker.Verdict) error {
	batch := []broker.Outcome{{Delivery: d, Verdict: v}}
	c.Settle(ctx, batch)
	return batch[0].Err
}

func (c *consumer) Settle(ctx context.Context, batch []broker.Outcome) {
	q := c.q
	for i := range batch {
		o := &batch[i]
		if err := broker.ValidateVerdict(&o.Verdict, &q.Caps); err != nil {
			o.Err = q.fail(o.Verdict.Kind.String(), err)
			continue
		}
		one := []broker.Outcome{*o}
		q.Recorder.Settle(ctx, one)
		if o.Err = one[0].Err; o.Err == nil {
			o.Err = c.apply(o.Delivery, o.Verdict)
		}
	}
}

func (c *consumer) apply(d *broker.Delivery, v broker.Verdict) error {
	q := c.q
	q.mu.Lock()
	defer q.mu.Unlock()
	place, ok := c.open[d]
	if !ok {
		return q.fail(v.Kind.String(), broker.ErrLeaseLost)
	}
	if v.Kind == broker.VerdictExtend {
		if v.Lease == 0 && q.Lease > 0 {
			d.SetLease(time.Now().Add(q.Lease))
		}
		return nil
	}
	delete(c.open, d)
	again := entry{d.Message, d.Attempt, place}
	switch v.Kind {
	case broker.VerdictReject:
		q.dead = append(q.dead, broker.DeadLetterMessage(d.Message, broker.DeadLetter{
			Reason: v.Reason, Queue: q.name, Attempts: d.Attempt, Time: time.Now(),
		}))
		delete(q.groups, d.GroupID)
	case broker.VerdictNack:
		if v.Snooze {
			again.attempt--
		}
		if v.Delay > 0 {
			time.AfterFunc(v.Delay, func() {
				q.mu.Lock()
				defer q.mu.Unlock()
				q.back(again)
			})
			return nil // its group waits for it
		}
		q.back(again)
	default:
		delete(q.groups, d.GroupID)
	}
	q.wakeAll()
	return nil
}

// back puts e at its old place again and frees its group.
func (q *Queue) back(e entry) {
	delete(q.groups, e.m.GroupID)
	i, _ := slices.BinarySearchFunc(q.inbox, e, func(a, b entry) int { return cmp.Compare(a.place, b.place) })
	q.inbox = slices.Insert(q.inbox, i, e)
	q.wakeAll()
}

func (c *consumer) Close() error {
	q := c.q
	q.mu.Lock()
	defer q.mu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	for d, place := range c.open {
		d.Lose() // or it is lost already, or a verdict on its way comes too late
		q.back(entry{d.Message, d.Attempt, place})
	}
	clear(c.open)
	q.wakeAll()
	return nil
}

// ErrInjected is for tests that make something fail on purpose.
var ErrInjected = errors.New("injected failure")

var _ broker.Queue = (*Queue)(nil)
