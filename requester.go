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
	opening chan struct{}      // closed when the opening of a session has ended; nil: none is under way
	abort   context.CancelFunc // of that
}

// A replySession is one reply queue with its receiving goroutine.
type replySession struct {
	q        *Requester
	queue    Queue
	consumer Consumer
	run      context.Context // of receive
	cancel   context.CancelFunc
	done     chan struct{}

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
	if _, err = q.Target.Publish(ctx, m); err == nil {
		select {
		case d := <-reply:
			return d, nil
		case <-s.ended:
			err = q.fail(s.err)
		case <-ctx.Done():
			err = q.fail(ContextError(ctx))
		}
	}
	if d := s.forget(m.CorrelationID, reply); d != nil { // it came meanwhile, and is acknowledged
		return d, nil
	}
	return nil, err
}

func (q *Requester) fail(err error) error {
	name := ""
	if q.Target != nil {
		name = q.Target.Name()
	}
	return &Error{Op: "request", Adapter: adapterOf(q.Target), Name: name, Temporary: IsTemporary(err), Err: err}
}

// open returns the session, a new one if need be: one caller opens it, with
// its own ctx, and the others wait for that or for the end of theirs.
func (q *Requester) open(ctx context.Context) (*replySession, error) {
	for {
		if err := ContextError(ctx); err != nil {
			return nil, err
		}
		q.mu.Lock()
		switch {
		case q.closed:
			q.mu.Unlock()
			return nil, ErrClosed
		case q.Broker == nil || q.Target == nil:
			q.mu.Unlock()
			return nil, Invalid("Broker and Target must be set")
		case q.session != nil && !q.session.isEnded():
			defer q.mu.Unlock()
			return q.session, nil
		case q.opening == nil:
			ctx, cancel := context.WithCancel(ctx) //nolint:fatcontext // the last iteration
			defer cancel()
			q.opening, q.abort = make(chan struct{}), cancel
			q.mu.Unlock()
			return q.opened(q.start(ctx))
		}
		opening := q.opening
		q.mu.Unlock()
		select {
		case <-opening:
		case <-ctx.Done():
		}
	}
}

// opened ends an opening.
func (q *Requester) opened(s *replySession, err error) (*replySession, error) {
	q.mu.Lock()
	closed := q.closed
	if !closed {
		q.session = s
	}
	if s != nil {
		go s.receive()
	}
	q.mu.Unlock()
	if closed { // Close waits for this
		if s != nil {
			_ = s.close()
		}
		s, err = nil, ErrClosed
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	close(q.opening)
	q.opening, q.abort = nil, nil
	return s, err
}

// start makes a reply queue and a consumer of it.
func (q *Requester) start(ctx context.Context) (*replySession, error) {
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
	return &replySession{
		q: q, queue: queue, consumer: consumer, run: run, cancel: cancel, done: make(chan struct{}),
		waiting: map[string]chan *Delivery{}, ended: make(chan struct{}),
	}, nil
}

// Close fails the calls under way with ErrClosed and removes the reply queue.
// It may be called again.
func (q *Requester) Close() error {
	q.mu.Lock()
	s, opening := q.session, q.opening
	q.closed, q.session = true, nil
	if opening != nil {
		q.abort()
	}
	q.mu.Unlock()
	if opening != nil {
		<-opening
	}
	if s == nil {
		return nil
	}
	return s.close()
}

func (s *replySession) close() error {
	s.end(ErrClosed)
	s.cancel()
	<-s.done
	return s.queue.Close()
}

const replyBatch = 64

func (s *replySession) receive() {
	ctx, c := s.run, s.consumer
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
			s.end(err)          // the next Do opens another
			_ = s.queue.Close() // what it is closed for is in err
			return
		}
		failures++
		sleep(ctx, connectionRetry.After(failures, err))
	}
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

// forget ends the waiting for a reply and returns one that has come.
func (s *replySession) forget(id string, reply chan *Delivery) *Delivery {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waiting[id] == reply {
		delete(s.waiting, id)
	}
	select {
	case d := <-reply:
		return d
	default:
		return nil
	}
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
