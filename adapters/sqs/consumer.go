package sqs

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/queuestream/broker"
)

// maxWaiting bounds what a consumer holds behind open deliveries of FIFO
// groups: SQS hands out several of a group at once.
const maxWaiting = 1000

// A Consumer receives from one queue. Pollers (see poll.go) put what they
// receive into the inbox, which keeps the group gate.
type Consumer struct {
	q        *Queue
	lease    time.Duration
	prefetch int // most deliveries ahead of Receive
	total    int // and with those that wait for their group
	inbox    *broker.Inbox
	room     chan struct{} // a token when pollers should look again

	// ctx ends when Close begins: no poll is begun any more. last ends what
	// pollers do with what they have received.
	ctx, last       context.Context
	stopped, cancel context.CancelFunc
	work            sync.WaitGroup // deliveries being taken, given back or sent on
	moves           chan struct{}  // a token for each batch being sent on

	mu       sync.Mutex
	held     map[uint64]hold // by token
	sweepAt  int             // size of held at which expired ones are dropped
	token    uint64
	received time.Time // the last Receive began or ended
	waits    int       // Receives that have not ended
	tried    bool      // a Receive has begun since the last poll
	reserved int       // of polls under way
	pollers  int
	long     bool // a poll of the full PollWait is under way
	handed   rate
	unread   *time.Timer       // runs while something is buffered and nobody receives
	waiting  *time.Timer       // runs while something waits for its group, see waiting.go
	again    map[string]window // by FIFO group: a message that was given back comes again
	closed   bool
	released chan struct{} // closed and dropped when held shrinks, if drain waits
}

// A hold is a delivery that was received and not settled.
type hold struct {
	d       *broker.Delivery
	receipt string
	since   time.Time       // received: a receipt holds 12 h from then at most
	lock    string          // the FIFO group as SQS has it
	tenant  string          // GroupID of a fair queue
	handed  bool            // to the program
	kept    <-chan struct{} // closed when an extension under way has its answer
	decided bool            // a verdict is under way: it is too late for an extension
}

func newConsumer(q *Queue, opts *broker.ConsumerOptions) (*Consumer, error) {
	if err := broker.ValidateConsumer(opts, &q.caps); err != nil {
		return nil, err
	}
	c := &Consumer{
		q:        q,
		lease:    q.t.lease,
		prefetch: defaultPrefetch,
		total:    defaultPrefetch + maxWaiting,
		room:     make(chan struct{}, 1),
		moves:    make(chan struct{}, q.b.o.SendConcurrency),
		held:     map[uint64]hold{},
		sweepAt:  1024,
		again:    map[string]window{},
	}
	if opts != nil && opts.Lease > 0 {
		c.lease = opts.Lease
	}
	if c.lease <= 0 {
		c.lease = defaultLease
	}
	c.lease = time.Duration(seconds(c.lease)) * time.Second
	if opts != nil && opts.Prefetch > 0 {
		c.prefetch, c.total = opts.Prefetch, opts.Prefetch
	}
	c.inbox = broker.NewInbox(c.giveBack)
	c.inbox.OnWait(c.signal)
	c.last, c.cancel = context.WithCancel(context.Background())
	c.ctx, c.stopped = context.WithCancel(c.last)
	return c, nil
}

// Name returns the queue's name.
func (c *Consumer) Name() string { return c.q.t.name }

// Adapter returns the name that errors carry.
func (c *Consumer) Adapter() string { return adapterName }

// Receive does what [broker.Consumer] says.
func (c *Consumer) Receive(ctx context.Context, max int) ([]*broker.Delivery, error) {
	c.want()
	ds, err := c.inbox.Receive(ctx, max)
	c.got(ds)
	return ds, fail("receive", c.q.t.name, err)
}

// want notes that a Receive has begun, and sees to it that there is a poller.
func (c *Consumer) want() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.received = time.Now()
	c.waits++
	c.tried = true
	if c.pollers == 0 && !c.closed {
		c.startPoller()
	}
}

func (c *Consumer) got(ds []*broker.Delivery) {
	c.mu.Lock()
	c.received = time.Now()
	c.waits--
	c.handed.add(len(ds))
	for _, d := range ds {
		if h, ok := c.held[d.Token()]; ok {
			h.handed = true
			c.held[d.Token()] = h
			if h.tenant != "" {
				d.GroupID = h.tenant
			}
		}
	}
	c.mu.Unlock()
	c.signal()
	if c.inbox.Ready() > 0 {
		c.watchUnread()
	}
}

// watchUnread sees to it that what nobody receives for an eighth of the lease
// goes back to the queue, so that a program that stands still does not keep
// messages from others, but for what waits behind an open one of its group. It
// costs them an attempt, as the lease's end would.
func (c *Consumer) watchUnread() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.unread == nil && !c.closed {
		c.unread = time.AfterFunc(c.patience(), c.returnUnread)
	}
}

func (c *Consumer) patience() time.Duration { return max(time.Second, c.lease/8) }

func (c *Consumer) returnUnread() {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return
	}
	if left := c.patience() - time.Since(c.received); c.waits > 0 || left > 0 {
		c.unread = nil
		if c.inbox.Ready() > 0 {
			c.unread = time.AfterFunc(max(left, c.patience()/2), c.returnUnread)
		}
		c.mu.Unlock()
		return
	}
	c.unread = nil
	var ds []*broker.Delivery
	groups := c.openGroups(time.Now())
	for _, h := range c.held {
		if !h.handed && !groups[h.d.GroupID] {
			ds = append(ds, h.d)
		}
	}
	c.mu.Unlock()
	c.giveBack(ds)
	c.inbox.Sweep()
	c.signal()
}

func (c *Consumer) signal() {
	select {
	case c.room <- struct{}{}:
	default:
	}
}

// hold makes a delivery of what was received.
func (c *Consumer) hold(r *received, receipt string, at time.Time) *broker.Delivery {
	d := &broker.Delivery{Message: r.Message, Attempt: r.attempt, Time: r.time}
	h := hold{d: d, receipt: receipt, since: at, lock: r.lock}
	if !c.q.t.fifo { // a group there is a tenant: no order, no gate
		h.tenant, d.GroupID = d.GroupID, ""
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.token++
	d.Bind(c, c.token, 0)
	d.SetLease(at.Add(c.lease))
	if len(c.held) >= c.sweepAt {
		c.sweep()
		c.sweepAt = max(1024, 2*len(c.held))
	}
	c.held[c.token] = h
	return d
}

// sweep drops what nobody can settle any more. c.mu is held.
func (c *Consumer) sweep() {
	now := time.Now()
	for token, h := range c.held {
		if h.d.Settled() || !now.Before(h.d.LeaseExpires()) {
			c.release(token)
		}
	}
}

// release drops a hold. c.mu is held.
func (c *Consumer) release(token uint64) {
	delete(c.held, token)
	if c.released != nil {
		close(c.released)
		c.released = nil
	}
}

// settling returns what is held of d for a verdict. One that settles shuts out
// extensions until it has failed.
func (c *Consumer) settling(d *broker.Delivery, settles bool) (hold, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	h, ok := c.held[d.Token()]
	switch {
	case !ok || h.d != d:
		return h, fmt.Errorf("%w: %w", broker.ErrLeaseLost, errGone)
	case settles:
		h.decided = true
		c.held[d.Token()] = h
	}
	return h, nil
}

// undecided tells that a verdict on d has failed.
func (c *Consumer) undecided(d *broker.Delivery) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if h, ok := c.held[d.Token()]; ok {
		h.decided = false
		c.held[d.Token()] = h
	}
}

// extending returns an extension of d, unless a verdict came first. What gives d
// away from now on waits for its answer, and ends its tries.
func (c *Consumer) extending(d *broker.Delivery, sec int32) (settlement, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	h, ok := c.held[d.Token()]
	if !ok || h.decided {
		return settlement{}, false
	}
	s := settlement{receipt: h.receipt, seconds: sec, after: h.kept, answered: make(chan struct{})}
	s.wanted = func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		h, ok := c.held[d.Token()]
		return ok && !h.decided
	}
	h.kept = s.answered
	c.held[d.Token()] = h
	return s, true
}

// drop forgets a delivery that is settled or lost.
func (c *Consumer) drop(d *broker.Delivery) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.release(d.Token())
}

// begin begins work that Close waits for, unless that has begun.
func (c *Consumer) begin() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.work.Add(1)
	}
	return !c.closed
}

// giveBack returns deliveries that were never handed out.
func (c *Consumer) giveBack(ds []*broker.Delivery) {
	if !c.begin() {
		return // Close gives back all that is held
	}
	items := c.disown(ds)
	if len(items) == 0 {
		c.work.Done()
		return
	}
	go func() {
		defer c.work.Done()
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		c.makeVisible(ctx, items)
	}()
}

// disown takes deliveries out of the program's reach and returns their
// receipts, made to be visible at once.
func (c *Consumer) disown(ds []*broker.Delivery) []settlement {
	c.mu.Lock()
	defer c.mu.Unlock()
	items := make([]settlement, 0, len(ds))
	for _, d := range ds {
		h, ok := c.held[d.Token()]
		if !ok || h.d != d {
			continue
		}
		if d.Lose() {
			items = append(items, giveAway(&h, 0))
			c.release(d.Token())
		} else if d.Settled() {
			c.release(d.Token())
		}
	}
	return items
}

// makeVisible gives receipts back; what fails comes back when its lease ends.
func (c *Consumer) makeVisible(ctx context.Context, items []settlement) {
	until := time.Now().Add(c.lease)
	leases := make([]time.Time, len(items))
	for i := range leases {
		leases[i] = until
	}
	for _, err := range c.q.settles.many(ctx, c.q.settles.changes, items, leases) {
		if err != nil {
			c.q.b.log.DebugContext(ctx, "sqs: giving a message back failed; it returns when its lease ends",
				"queue", c.q.t.name, "error", err)
		}
	}
}

// stop ends fetching, and waits for the polls that are soon over. The others
// give back what they bring; see longPolls.
func (c *Consumer) stop() {
	c.mu.Lock()
	c.closed = true
	for _, t := range []*time.Timer{c.unread, c.waiting} {
		if t != nil {
			t.Stop()
		}
	}
	c.mu.Unlock()
	c.stopped()
	c.inbox.Close(nil) // what it held is in held
	t := time.AfterFunc(closeTimeout, c.cancel)
	c.q.b.polls.wait(c)
	c.work.Wait()
	t.Stop()
	c.cancel()
}

// drain stops fetching and waits until what is in hand is settled or lost.
func (c *Consumer) drain(ctx context.Context) error {
	c.stop()
	c.returnHeld(ctx, false)
	for {
		c.mu.Lock()
		c.sweep()
		if c.released == nil {
			c.released = make(chan struct{})
		}
		left, released := len(c.held), c.released
		next := time.Now().Add(c.lease)
		for _, h := range c.held {
			if e := h.d.LeaseExpires(); e.Before(next) {
				next = e
			}
		}
		c.mu.Unlock()
		if left == 0 {
			return nil
		}
		t := time.NewTimer(time.Until(next))
		select {
		case <-released:
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return fail("shutdown", c.q.t.name, broker.ContextError(ctx))
		}
		t.Stop()
	}
}

// returnHeld gives back what is held, or only what was never handed out.
func (c *Consumer) returnHeld(ctx context.Context, all bool) {
	c.mu.Lock()
	ds := make([]*broker.Delivery, 0, len(c.held))
	for _, h := range c.held {
		if all || !h.handed {
			ds = append(ds, h.d)
		}
	}
	c.mu.Unlock()
	if items := c.disown(ds); len(items) > 0 {
		c.makeVisible(ctx, items)
	}
}

// Close stops polling and makes everything unsettled visible at once. What
// SQS does not confirm within 3 s returns when its lease ends.
func (c *Consumer) Close() error {
	c.stop()
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	c.returnHeld(ctx, true)
	c.q.removeConsumer(c)
	return nil
}

// A rate counts over about the last second.
type rate struct {
	start    time.Time // of now's second
	now, old int
}

func (r *rate) add(n int) {
	r.roll()
	r.now += n
}

// perSecond returns the count of the last full second, or of this one if that
// is more already.
func (r *rate) perSecond() int {
	r.roll()
	return max(r.now, r.old)
}

func (r *rate) roll() {
	t := time.Now()
	switch age := t.Sub(r.start); {
	case age < time.Second:
	case age < 2*time.Second:
		r.start, r.old, r.now = t, r.now, 0
	default:
		r.start, r.old, r.now = t, 0, 0
	}
}
