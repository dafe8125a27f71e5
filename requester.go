package broker

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

// A Requester does request-reply over a queue: Do publishes a request that
// names a reply queue and waits for the reply with the same correlation id. All
// callers share one reply queue, made at the first Do. Set the fields before
// use; the methods may be called from any goroutine.
type Requester struct {
	Broker Broker // that makes the reply queue: it must be a ReplyQueuer
	Target Queue

	late atomic.Int64

	mu      sync.Mutex
	closed  bool
	session *replySession
}

// A replySession is one reply queue with its receiving goroutine.
type replySession struct {
	q      *Requester
	queue  Queue
	cancel context.CancelFunc
	done   chan struct{}

	mu      sync.Mutex
	waiting map[string]chan *Delivery // by correlation id
	err     error                     // why it ended
	ended   chan struct{}
}

// Late returns how many replies came that nobody waited for (any more). They
// are dropped.
func (q *Requester) Late() int64 { return q.late.Load() }

// Do publishes m and waits for its reply until ctx ends. The reply is
// acknowledged already. A missing CorrelationID is set; it must not be that of
// another call under way. When ctx ends the request may still be carried out.
func (q *Requester) Do(ctx context.Context, m Message) (*Delivery, error) {
	s, err := q.open(ctx)
	if err != nil {
		return nil, q.fail(err)
	}
	if m.CorrelationID == "" {
		m.CorrelationID = NewID()
	}
	m.ReplyTo = s.queue.Name()
	reply, err := s.expect(m.CorrelationID)
	if err != nil {
		return nil, q.fail(err)
	}
	defer s.forget(m.CorrelationID)
	if _, err := q.Target.Publish(ctx, m); err != nil {
		return nil, err
	}
	select {
	case d := <-reply:
		return d, nil
	case <-s.ended:
		return nil, q.fail(s.err)
	case <-ctx.Done():
		return nil, q.fail(ContextError(ctx))
	}
}

func (q *Requester) fail(err error) error {
	name := ""
	if q.Target != nil {
		name = q.Target.Name()
	}
	return &Error{Op: "request", Name: name, Temporary: IsTemporary(err), Err: err}
}

func (q *Requester) open(ctx context.Context) (*replySession, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.closed:
		return nil, ErrClosed
	case q.Broker == nil || q.Target == nil:
		return nil, Invalid("Broker and Target must be set")
	case q.session != nil && !q.session.isEnded():
		return q.session, nil
	}
	r, ok := As[ReplyQueuer](q.Broker)
	if !ok {
		return nil, Unsupported("the broker has no reply queues")
	}
	queue, err := r.ReplyQueue(ctx)
	if err != nil {
		return nil, err
	}
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	consumer, err := queue.Consumer(ctx, nil)
	if err != nil {
		cancel()
		return nil, errors.Join(err, queue.Close())
	}
	s := &replySession{
		q: q, queue: queue, cancel: cancel, done: make(chan struct{}),
		waiting: map[string]chan *Delivery{}, ended: make(chan struct{}),
	}
	q.session = s
	go s.receive(run, consumer)
	return s, nil
}

// Close fails the calls under way with ErrClosed and removes the reply queue.
// It may be called again.
func (q *Requester) Close() error {
	q.mu.Lock()
	s := q.session
	q.closed, q.session = true, nil
	q.mu.Unlock()
	if s == nil {
		return nil
	}
	s.end(ErrClosed)
	s.cancel()
	<-s.done
	return s.queue.Close()
}

const replyBatch = 64

func (s *replySession) receive(ctx context.Context, c Consumer) {
	defer close(s.done)
	defer s.cancel()
	defer func() { _ = c.Close() }() // the queue goes with it
	failures := 0
	for ctx.Err() == nil {
		ds, err := c.Receive(ctx, replyBatch)
		if len(ds) > 0 {
			failures = 0
			// A reply that stays unacknowledged comes again and counts as late.
			_ = AckAll(ctx, ds...)
			for _, d := range ds {
				s.hand(d)
			}
			continue
		}
		if err != nil && ctx.Err() == nil && !IsTemporary(err) {
			s.end(err)
			if s.q.drop(s) {
				_ = s.queue.Close() // what it is closed for is in err
			}
			return
		}
		failures++
		sleep(ctx, connectionRetry.After(failures, err))
	}
}

// drop forgets a session that ended by itself; the next Do opens another.
func (q *Requester) drop(s *replySession) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.session != s {
		return false
	}
	q.session = nil
	return true
}

func (s *replySession) expect(id string) (chan *Delivery, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.waiting[id]; ok {
		return nil, Invalid("CorrelationID %q: another call with it is under way", id)
	}
	c := make(chan *Delivery, 1)
	s.waiting[id] = c
	return c, nil
}

func (s *replySession) forget(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.waiting, id)
}

func (s *replySession) hand(d *Delivery) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.waiting[d.CorrelationID]
	if !ok {
		s.q.late.Add(1)
		return
	}
	delete(s.waiting, d.CorrelationID)
	c <- d
}

func (s *replySession) end(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
		close(s.ended)
	}
}

func (s *replySession) isEnded() bool {
	select {
	case <-s.ended:
		return true
	default:
		return false
	}
}

// replyTimeout bounds the publishing of a reply beyond the handler's ctx.
const replyTimeout = 30 * time.Second

// Respond returns a Handler that answers requests: fn's message goes to the
// request's ReplyTo with its correlation id, and then the request is
// acknowledged. An error of fn is a verdict as any handler's. A request without
// ReplyTo is rejected; where the reply queue is gone the requester has given
// up, and the reply is dropped.
func Respond(b Broker, fn func(ctx context.Context, d *Delivery) (Message, error)) Handler {
	return func(ctx context.Context, d *Delivery) error {
		if d.ReplyTo == "" {
			return Reject(Invalid("a request without ReplyTo"))
		}
		m, err := fn(ctx, d)
		if err != nil {
			return err
		}
		m.CorrelationID = d.CorrelationID
		ctx, cancel := context.WithTimeout(ctx, replyTimeout)
		defer cancel()
		q, err := b.Queue(ctx, d.ReplyTo, nil)
		if err == nil {
			_, err = q.Publish(ctx, m)
			err = errors.Join(err, q.Close())
		}
		if errors.Is(err, ErrNotFound) {
			return nil
		}
		return err
	}
}
