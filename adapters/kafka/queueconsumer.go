package kafka

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/queuestream/broker"
	"github.com/twmb/franz-go/pkg/kgo"
)

// A Consumer is a member of a queue's share group.
//
// It fetches on demand: while a Receive waits, or to keep Prefetch deliveries
// ahead. What was fetched and is not received soon goes back.
type Consumer struct {
	q        *Queue
	client   *kgo.Client
	member   *shareMember
	inbox    *broker.Inbox
	prefetch int
	lease    time.Duration // of a delivery

	ctx     context.Context //nolint:containedctx // the consumer's own life
	cancel  context.CancelFunc
	leave   context.CancelFunc // ends the membership
	work    sync.WaitGroup
	closing sync.Once

	mu       sync.Mutex
	closed   bool
	draining bool
	wanted   int       // by Receives that wait
	stock    int       // deliveries that lie ready for them
	deadline time.Time // of the last of them
	since    time.Time // when the last of them ended
	busy     time.Time // when a fetch last brought something
	seq      uint64
	lock     time.Duration         // how long the broker's last: as configured, then as it tells with each fetch
	locks    map[uint64]*shareLock // by token
	nodes    map[int32]*shareNode
	parts    map[topicPartition]*sharePart
	delayed  delayed
	timer    *time.Timer   // for what is due next
	ready    chan struct{} // closed with the first assignment, or a refusal
	tick     *time.Timer   // looks after what is held
	looks    time.Time     // when it does so next
}

type topicPartition struct {
	topic     [16]byte
	partition int32
}

// A sharePart is a partition that is assigned to this member, or was while
// one of its records is held. Guarded by Consumer.mu.
type sharePart struct {
	key   topicPartition
	name  string
	retry bool
	node  *shareNode // its leader; nil: not known
	locks map[int64]*shareLock
}

// A shareLock is one record that this member holds. Guarded by Consumer.mu.
type shareLock struct {
	d        broker.Delivery
	part     *sharePart
	node     *shareNode
	offset   int64
	token    uint64
	locked   time.Time // until when the broker holds it for us, unless renewed
	stocked  bool      // ready to be received
	handed   bool      // to the program
	moving   bool      // to another topic, by the consumer itself
	gone     bool
	renewing bool
	due      time.Time // of a delayed message
	time     time.Time // accepted by the broker, in the first copy
	before   int       // attempts before this copy
}

const (
	// unwantedAfter is how long what nobody receives is kept without Prefetch.
	unwantedAfter = 250 * time.Millisecond
	// heldWait is how long a fetch may wait while the consumer itself holds records.
	heldWait = 250 * time.Millisecond
	// joinWait is how long opening a consumer waits for its first assignment.
	joinWait = 5 * time.Second
	// handedWait is how long a fetch may wait while deliveries are open:
	// settling them waits behind it.
	handedWait = 25 * time.Millisecond
	// busyWait is how long a fetch may wait while there was work a moment ago,
	// idleWait how long it may at most: what another consumer gives back ends
	// no fetch that waits already, so that is how late it may be seen.
	busyWait = 50 * time.Millisecond
	idleWait = 500 * time.Millisecond
	// mostAhead is the most that one Receive, or Prefetch, asks for at a time.
	mostAhead = 1 << 20
	// calmDown is what part of the time without work a fetch waits.
	calmDown = 8
)

func newConsumer(q *Queue, o *broker.ConsumerOptions) (*Consumer, error) {
	opts := append(q.b.opts.client(),
		kgo.ConnIdleTimeout(15*time.Minute), // the longest there is: closing a connection gives back what it holds
	)
	client, err := kgo.NewClient(append(opts, q.b.opts.Client...)...)
	if err != nil {
		return nil, broker.Invalid("%v", err)
	}
	c := &Consumer{
		q: q, client: client, prefetch: min(o.Prefetch, mostAhead), lease: o.Lease, lock: q.lock,
		inbox: broker.NewInbox(nil), ready: make(chan struct{}), since: time.Now(),
		locks: map[uint64]*shareLock{}, nodes: map[int32]*shareNode{}, parts: map[topicPartition]*sharePart{},
	}
	if c.lease == 0 {
		c.lease = q.lock
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.member = newShareMember(c)
	c.mu.Lock() // the timers run what waits for it
	c.timer = time.AfterFunc(time.Hour, c.moveDue)
	c.timer.Stop()
	c.tick = time.AfterFunc(unwantedAfter, c.tend)
	c.mu.Unlock()
	stay, leave := context.WithCancel(c.ctx)
	c.leave = leave
	c.work.Go(func() { c.member.run(stay) })
	return c, nil
}

// Name returns the queue's name.
func (c *Consumer) Name() string { return c.q.name }

// Adapter returns the name that errors carry.
func (c *Consumer) Adapter() string { return adapter }

// Receive does what broker.Consumer promises.
func (c *Consumer) Receive(ctx context.Context, max int) ([]*broker.Delivery, error) {
	for {
		wanted := 0
		if max > 0 && ctx.Err() == nil {
			wanted = min(max, mostAhead)
			c.want(ctx, wanted)
		}
		ds, err := c.inbox.Receive(ctx, max)
		if ds = c.hand(ds, wanted); len(ds) > 0 || err != nil {
			return ds, fail("receive", c.q.name, err)
		}
	}
}

// want notes that a Receive waits for at most n.
func (c *Consumer) want(ctx context.Context, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wanted += n
	c.since = time.Now()
	until, ok := ctx.Deadline()
	if !ok {
		until = c.since.Add(broker.MaxDuration)
	}
	if until.After(c.deadline) {
		c.deadline = until
	}
	c.wakeAll()
}

// hand notes what the program gets for the wanted ones, and leaves out what
// was lost meanwhile.
func (c *Consumer) hand(ds []*broker.Delivery, wanted int) []*broker.Delivery {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	c.wanted -= wanted
	c.since = now
	if c.wanted == 0 {
		c.deadline = time.Time{}
	}
	out := ds[:0]
	for _, d := range ds {
		l := c.locks[d.Token()]
		switch {
		case l == nil:
			continue
		case !l.locked.After(now): // another consumer may have it by now
			c.lose(l)
			continue
		case c.q.b.begin() != nil:
			continue
		}
		c.unstock(l)
		l.handed = true
		l.node.handed++
		lease := c.leaseFrom(now, c.lease, l)
		d.SetLease(lease)
		c.lookAt(lease)
		c.lookAt(l.locked.Add(-c.lock / 2))
		out = append(out, d)
	}
	if len(ds) > 0 {
		c.wakeAll()
	}
	return out
}

// lookAt makes tend look after what is held at t, unless it does so before.
// c.mu is held.
func (c *Consumer) lookAt(t time.Time) {
	if !c.closed && t.Before(c.looks) {
		c.looks = t
		c.tick.Reset(max(0, time.Until(t)))
	}
}

// unstock notes that a delivery does not lie ready any more. c.mu is held.
func (c *Consumer) unstock(l *shareLock) {
	if l.stocked {
		l.stocked = false
		c.stock--
	}
}

// demand returns how many records a node is to fetch: for the Receives that
// wait, if nothing is ready for them, and to keep Prefetch ready beyond. c.mu
// is held.
func (c *Consumer) demand() int {
	if c.closed || c.draining || c.unwanted(time.Now()) {
		return 0
	}
	n := c.wanted + c.prefetch
	if c.stock > 0 { // which ends the Receive that waits
		n = c.prefetch - max(0, c.stock-c.wanted)
	}
	if n <= 0 {
		return 0
	}
	nodes := 0
	for _, node := range c.nodes {
		if node.assigned > 0 {
			nodes++
		}
	}
	return (n + max(1, nodes) - 1) / max(1, nodes)
}

// wakeAll makes every node look for work. c.mu is held.
func (c *Consumer) wakeAll() {
	for _, n := range c.nodes {
		n.signal()
	}
}

// arrived takes a record that was acquired for the attempt-th time. c.mu is held.
func (c *Consumer) arrived(part *sharePart, node *shareNode, r *kgo.Record, l *shareLock, count int, lease time.Time, out *sorting) {
	a := decode(r)
	if old := part.locks[r.Offset]; old != nil {
		c.lose(old) // it was given back without our knowing
	}
	c.seq++
	l.part, l.node, l.offset, l.token = part, node, r.Offset, c.seq
	l.time, l.before, l.due = a.time, a.attempts, a.due
	d := &l.d
	d.Message, d.Time, d.Attempt = a.message, a.time, a.attempts+count
	d.Bind(c, l.token, 0)
	d.SetLease(lease)
	l.locked = lease
	c.locks[l.token], part.locks[l.offset] = l, l
	switch {
	case part.retry:
		d.Attempt = a.attempts
		switch {
		case !a.due.After(time.Now()):
			out.move(l, copyOut{topic: c.q.topic.name, message: &d.Message, attempts: a.attempts, time: a.time})
		case count >= c.q.limit-1: // before the broker drops it
			out.move(l, copyOut{topic: c.q.retry.name, message: &d.Message, attempts: a.attempts, due: a.due, time: a.time})
		default:
			c.delayed.push(l)
		}
	case c.q.caps.MaxAttempts > 0 && d.Attempt > c.q.caps.MaxAttempts && c.q.dead != "":
		out.move(l, c.q.deadLetter(&d.Message, "attempts exhausted", d.Attempt-1, a.time))
	case count >= max(2, c.q.limit-1):
		// The broker would drop it when this delivery fails: go on with a copy,
		// whose deliveries it counts from one.
		out.move(l, copyOut{topic: c.q.topic.name, message: &d.Message, attempts: d.Attempt - 1, time: a.time})
	default:
		l.stocked = true
		c.stock++
		out.ready = append(out.ready, d)
	}
	c.lookAt(lease.Add(-c.lock / 2))
}

// A sorting is what becomes of the records of one fetch.
type sorting struct {
	ready  []*broker.Delivery
	moves  []copyOut
	movers []*shareLock
}

func (s *sorting) move(l *shareLock, out copyOut) {
	l.moving = true
	s.moves, s.movers = append(s.moves, out), append(s.movers, l)
}

// deal hands on what sorting has found.
func (c *Consumer) deal(s *sorting) {
	if len(s.ready) > 0 {
		c.inbox.Put(s.ready...)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(s.moves) > 0 && !c.closed {
		c.work.Go(func() { c.moveAll(s) })
	}
}

// moveAll writes copies, confirmed, and then removes the records themselves.
func (c *Consumer) moveAll(s *sorting) {
	c.mu.Lock()
	lock := c.lock
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(c.ctx, max(time.Second, lock*3/4))
	defer cancel()
	errs := c.q.b.send(ctx, s.moves)
	failed := false
	var denied error
	c.mu.Lock()
	for i, l := range s.movers {
		if errs[i] == nil {
			c.enqueue(&ackOp{lock: l, kind: ackAccept})
			continue
		}
		failed = true
		if isUnauthorized(errs[i]) {
			denied = errs[i]
		}
		c.logLocked(slog.LevelWarn, "kafka: moving a message failed; it is tried again", "to", s.moves[i].topic, "id", l.d.ID, "error", errs[i])
	}
	c.mu.Unlock()
	if denied != nil {
		c.refuse(fail("receive", c.q.name, fmt.Errorf("moving a message: %w", denied)))
	}
	if !failed || sleep(c.ctx, time.Second) != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, l := range s.movers {
		if errs[i] != nil && !l.gone {
			c.enqueue(&ackOp{lock: l, kind: ackRelease})
		}
	}
}

// lose forgets a lock that the broker has given up. c.mu is held.
func (c *Consumer) lose(l *shareLock) {
	l.d.Lose()
	c.forget(l)
}

// forget removes a lock. c.mu is held.
func (c *Consumer) forget(l *shareLock) {
	if l.gone {
		return
	}
	l.gone = true
	c.unstock(l)
	delete(c.locks, l.token)
	if l.part.locks[l.offset] == l {
		delete(l.part.locks, l.offset)
	}
	if l.part.retry {
		c.delayed.remove(l)
	}
	if l.handed {
		l.node.handed--
		c.q.b.end()
	}
}

// exhausted tells whether d was the last attempt.
func (q *Queue) exhausted(d *broker.Delivery) bool {
	return q.caps.MaxAttempts > 0 && d.Attempt >= q.caps.MaxAttempts && q.dead != ""
}

// leaseFrom returns when a lease that begins now ends. The broker's lock is
// renewed for as long as it lasts, where the cluster can do that.
func (c *Consumer) leaseFrom(now time.Time, lease time.Duration, l *shareLock) time.Time {
	end := now.Add(lease)
	if !c.q.caps.Lease && end.After(l.locked) {
		return l.locked
	}
	return end
}

const (
	tendLeast = 10 * time.Millisecond
	tendMost  = time.Second
)

// unwanted tells whether the program has stopped receiving: what it has not
// received goes back, and nothing more is fetched ahead, since each time a
// record is handed out counts as an attempt. c.mu is held.
func (c *Consumer) unwanted(now time.Time) bool {
	idle := now.Sub(c.since)
	return c.wanted == 0 && (c.prefetch == 0 && idle > unwantedAfter || idle > c.lock)
}

// tend looks after what is held: a lease that has ended gives the record back,
// a lock that ends before its lease is renewed, and what nobody receives goes
// back after a while.
func (c *Consumer) tend() {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return
	}
	now := time.Now()
	unwanted := c.unwanted(now)
	next := tendMost
	var out sorting
	for _, l := range c.locks {
		next = min(next, c.tendLock(l, now, unwanted, &out))
	}
	if c.inbox.Ready() > 0 {
		next = min(next, unwantedAfter)
	}
	next = max(tendLeast, next)
	c.looks = now.Add(next)
	c.tick.Reset(next)
	c.mu.Unlock()
	c.deal(&out)
	if unwanted && c.inbox.Ready() > 0 {
		c.giveBackReady()
	}
}

// tendLock looks after one lock and returns when to look again. c.mu is held.
func (c *Consumer) tendLock(l *shareLock, now time.Time, unwanted bool, out *sorting) time.Duration {
	if l.handed && !l.moving {
		if left := l.d.LeaseExpires().Sub(now); left > 0 {
			return min(left, c.renew(l, now))
		}
		switch {
		case !l.d.Lose(): // it is being settled, or given back already
		case c.q.exhausted(&l.d):
			out.move(l, c.q.deadLetter(&l.d.Message, "attempts exhausted", l.d.Attempt, l.time))
		default:
			c.enqueue(&ackOp{lock: l, kind: ackRelease})
		}
		return tendMost
	}
	switch {
	case !l.locked.After(now):
		c.lose(l)
		return tendMost
	case l.moving, l.due.IsZero() && unwanted:
		return tendMost
	}
	return c.renew(l, now)
}

// renew renews the broker's lock when half of it is over, and returns when
// that will be. c.mu is held.
func (c *Consumer) renew(l *shareLock, now time.Time) time.Duration {
	left := l.locked.Sub(now) - c.lock/2
	if left > 0 || !c.q.caps.Lease {
		return max(left, tendLeast)
	}
	if !l.renewing {
		l.renewing = true
		c.enqueue(&ackOp{lock: l, kind: ackRenew})
	}
	return min(tendMost, c.lock/4) // well before the renewed lock needs it again
}

// giveBackReady releases what lies ready and nobody receives.
func (c *Consumer) giveBackReady() {
	ctx, cancel := context.WithTimeout(c.ctx, 10*time.Millisecond)
	defer cancel()
	ds, err := c.inbox.Receive(ctx, 1<<20)
	if err != nil {
		return // somebody was faster
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, d := range ds {
		if l := c.locks[d.Token()]; l != nil {
			d.Lose()
			c.unstock(l)
			c.enqueue(&ackOp{lock: l, kind: ackRelease})
		}
	}
}

// refuse makes Receive fail with err until all is well again (nil).
func (c *Consumer) refuse(err error) {
	c.mu.Lock()
	draining := c.draining
	if isUnauthorized(err) {
		c.begun()
	}
	c.mu.Unlock()
	if !draining {
		c.inbox.SetErr(err)
	}
}

func (c *Consumer) log(level slog.Level, msg string, args ...any) { c.logLocked(level, msg, args...) }

func (c *Consumer) logLocked(level slog.Level, msg string, args ...any) {
	if l := c.q.b.opts.Logger; l != nil {
		l.Log(context.Background(), level, msg, append(args, "queue", c.q.name)...)
	}
}

// drain stops fetching; settling works on.
func (c *Consumer) drain() {
	c.inbox.SetErr(broker.ErrShutdown)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.draining = true
}

// begun ends the wait of joined. c.mu is held.
func (c *Consumer) begun() {
	select {
	case <-c.ready:
	default:
		close(c.ready)
	}
}

// joined waits until the group has taken the consumer in, so that its first
// Receive begins at once, or until it is not allowed to; what goes wrong with
// that, Receive tells.
func (c *Consumer) joined(ctx context.Context) error {
	t := time.NewTimer(joinWait)
	defer t.Stop()
	select {
	case <-c.ready:
	case <-t.C:
	case <-ctx.Done():
		return broker.ContextError(ctx)
	}
	return nil
}

// Close gives back what is unsettled and leaves the group.
func (c *Consumer) Close() error {
	var err error
	c.closing.Do(func() {
		c.mu.Lock()
		c.closed = true
		c.tick.Stop()
		c.timer.Stop()
		for _, l := range c.locks {
			c.lose(l)
		}
		for _, n := range c.nodes {
			n.failAll(errGivenBack)
			n.signal()
		}
		c.mu.Unlock()
		c.inbox.Close(nil)
		c.leave()
		// A fetch under way ends soon, and the session then in good order. If
		// the broker does not answer, the connection goes.
		cut := time.AfterFunc(closeTimeout/3, c.cancel)
		err = fail("close", c.q.name, within(closeTimeout, func() {
			c.work.Wait()
			c.client.Close()
		}))
		cut.Stop()
		c.cancel()
		c.q.left(c)
	})
	return err
}
