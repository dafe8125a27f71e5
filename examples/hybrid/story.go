package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/bridge"
)

// An OrderCreated is the event; one per order.
type OrderCreated struct {
	ID       string `json:"id"`
	Customer string `json:"customer"`
	Email    string `json:"email"`
	Cents    int    `json:"cents"`
}

// OrderEvent is the event's type: its name, and JSON as its encoding.
var OrderEvent = broker.NewType[OrderCreated]("OrderCreated")

type story struct {
	out             io.Writer
	streams, queues broker.Broker
	orders          int
	prefix          string  // so that two runs on one broker do not meet
	worker          *worked // does the bridging; nil: package bridge does

	orderLog broker.Stream
	tasks    broker.Queue
	dead     broker.Queue

	mu       sync.Mutex
	counted  int            // analytics: orders
	revenue  int            // and what they are worth
	index    map[string]int // search: customer → orders
	pings    int            // notification
	sent     map[string]int // order → e-mails
	byWorker [2]int
	repaired bool // the bad address has been mended
}

func (s *story) say(format string, args ...any) {
	fmt.Fprintf(s.out, format+"\n", args...) //nolint:errcheck // a story told to nobody is no failure
}

// tell is the whole story, a paragraph each.
func (s *story) tell(ctx context.Context) (err error) {
	s.index, s.sent = map[string]int{}, map[string]int{}
	if err := s.declare(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.cleanUp(context.WithoutCancel(ctx))) }()

	s.say("1. The order service publishes %d OrderCreated events to the stream %q (3 partitions).", s.orders, s.orderLog.Name())
	if err := s.placeOrders(ctx); err != nil {
		return err
	}

	s.say("2. Three groups read all of them, each at its own pace; a bridge group puts one")
	s.say("   send-confirmation task per order on the queue %q, where two e-mail workers compete.", s.tasks.Name())
	running, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- broker.Run(running, s.runners()...) }()
	if err := s.until(ctx, ended, s.caughtUp); err != nil {
		return err
	}
	s.say("   analytics counted %d orders worth %d.%02d, search indexed %d customers, notification sent %d pings.",
		s.counted, s.revenue/100, s.revenue%100, len(s.index), s.pings)
	s.say("   worker A sent %d e-mails, worker B %d; one task failed for good.", s.byWorker[0], s.byWorker[1])

	if err := s.redrive(ctx, ended); err != nil {
		return err
	}
	if err := s.rebuildIndex(ctx); err != nil {
		return err
	}
	stop()
	if err := <-ended; err != nil {
		return err
	}
	return s.prove(ctx)
}

func (s *story) declare(ctx context.Context) error {
	admin, ok := broker.As[broker.Admin](s.streams)
	if !ok {
		return errors.New("the broker of the stream cannot declare one")
	}
	name := s.prefix + "orders"
	err := admin.DeclareStream(ctx, name, broker.StreamConfig{Partitions: 3})
	if err != nil {
		return err
	}
	if s.orderLog, err = s.streams.Stream(ctx, name, nil); err != nil {
		return err
	}
	cfg := broker.QueueConfig{Ordered: true, Dedup: true, MaxAttempts: 3}
	s.tasks, err = broker.DeclareQueue(ctx, s.queues, s.prefix+"confirmations", cfg)
	if errors.Is(err, broker.ErrUnsupported) { // not every broker has ordered queues that dedup
		s.tasks, err = broker.DeclareQueue(ctx, s.queues, s.prefix+"confirmations", broker.QueueConfig{MaxAttempts: 3})
	}
	if err != nil {
		return err
	}
	s.dead, err = s.queues.Queue(ctx, broker.DeadLetterName(s.tasks.Name()), nil)
	return err
}

func (s *story) placeOrders(ctx context.Context) error {
	batch := make([]broker.Record, s.orders)
	for i := range batch {
		customer := fmt.Sprintf("customer-%d", i%7)
		o := OrderCreated{ID: fmt.Sprintf("order-%02d", i+1), Customer: customer, Email: customer + "@example.com", Cents: 1000 + 25*i}
		if i == s.orders/2 {
			o.Email = "not an address"
		}
		r, err := OrderEvent.Record(customer, o) // the key keeps a customer's orders in order
		if err != nil {
			return err
		}
		batch[i] = r
	}
	_, err := s.orderLog.PublishBatch(ctx, batch)
	return err
}

// runners are the programs of the shop; in real life each is a process.
func (s *story) runners() []broker.Runner {
	group := func(name string, fn func(o OrderCreated)) *broker.Processor {
		return &broker.Processor{Stream: s.orderLog, Group: s.prefix + name, Handler: s.each(fn)}
	}
	worker := func(i int) *broker.Worker {
		return &broker.Worker{Queue: s.tasks, Concurrency: 4, Handler: s.email(i)}
	}
	return []broker.Runner{
		group("analytics", func(o OrderCreated) { s.counted++; s.revenue += o.Cents }),
		group("search", func(o OrderCreated) { s.index[o.Customer]++ }),
		group("notification", func(OrderCreated) { s.pings++ }),
		s.bridge(s.prefix + "bridge"),
		worker(0), worker(1),
	}
}

// bridge turns every order into a task.
func (s *story) bridge(group string) broker.Runner {
	if s.worker != nil {
		return s.worker.route(s.orderLog.Name(), group, s.tasks.Name(), s.dead.Name())
	}
	return &bridge.Route{
		Name: "confirmations", Group: group, Source: s.orderLog, Target: s.tasks, DeadLetter: s.dead,
	}
}

func (s *story) each(fn func(o OrderCreated)) broker.RecordHandler {
	return OrderEvent.RecordHandler(func(_ context.Context, e broker.Event[OrderCreated]) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		fn(e.Value)
		return nil
	})
}

// email is an e-mail worker: it sends one confirmation per task.
func (s *story) email(worker int) broker.Handler {
	return func(_ context.Context, d *broker.Delivery) error {
		var o OrderCreated
		if err := json.Unmarshal(d.Body, &o); err != nil {
			return broker.Reject(err)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if !strings.Contains(o.Email, "@") && !s.repaired {
			return broker.Reject(fmt.Errorf("%s: %q is no e-mail address", o.ID, o.Email))
		}
		s.sent[o.ID]++
		s.byWorker[worker]++
		return nil
	}
}

func (s *story) caughtUp() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	total := 0
	for _, n := range s.index {
		total += n
	}
	return total == s.orders && s.pings == s.orders && s.counted == s.orders && len(s.sent) == s.orders-1
}

func (s *story) allSent() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sent) == s.orders
}

// redrive looks at the dead-letter queue, mends the cause and sends the task
// back to its queue.
func (s *story) redrive(ctx context.Context, ended <-chan error) error {
	admin, ok := broker.As[broker.Admin](s.queues)
	if !ok {
		return errors.New("the broker of the queue cannot redrive")
	}
	var letters []broker.Message
	err := s.until(ctx, ended, func() bool {
		var err error
		letters, err = admin.Peek(ctx, s.dead.Name(), 10)
		return err == nil && len(letters) > 0
	})
	if err != nil {
		return err
	}
	s.say("3. The dead-letter queue %q holds:", s.dead.Name())
	for _, m := range letters {
		why, _ := broker.DeadLetterOf(&m)
		s.say("   - after %d attempt(s): %s", why.Attempts, why.Reason)
	}
	s.mu.Lock()
	s.repaired = true
	s.mu.Unlock()
	// What was peeked at may stay invisible for a moment on some brokers.
	moved := 0
	err = s.until(ctx, ended, func() bool {
		n, err := admin.Redrive(ctx, s.dead.Name(), s.tasks.Name(), 0)
		moved += n
		return err == nil && moved >= len(letters)
	})
	if err != nil {
		return err
	}
	if err := s.until(ctx, ended, s.allSent); err != nil {
		return err
	}
	s.say("   The address is mended and %d task redriven: its e-mail went out.", moved)
	return nil
}

// rebuildIndex reads the stream from the beginning, in a group of its own, up
// to where it ends now. No other group notices.
func (s *story) rebuildIndex(ctx context.Context) error {
	s.mu.Lock()
	s.index = map[string]int{}
	s.mu.Unlock()
	rebuild := &broker.Processor{
		Stream: s.orderLog, Group: s.prefix + "search-rebuild",
		Start: broker.Earliest(), Until: broker.Now(),
		Handler: s.each(func(o OrderCreated) { s.index[o.Customer]++ }),
	}
	if err := rebuild.Run(ctx); err != nil {
		return err
	}
	s.say("4. Search lost its index and rebuilt it by replay: %d customers again. The other groups", len(s.index))
	s.say("   did not notice: notification is still at %d pings.", s.pings)
	return nil
}

// prove counts.
func (s *story) prove(ctx context.Context) error {
	once, indexed := 0, 0
	for _, n := range s.sent {
		if n == 1 {
			once++
		}
	}
	for _, n := range s.index {
		indexed += n
	}
	s.say("5. The proof:")
	for _, name := range []string{"analytics", "search", "notification", "bridge"} {
		lag, err := s.orderLog.Lag(ctx, s.prefix+name)
		if err != nil {
			return err
		}
		var behind int64
		for _, l := range lag {
			behind += l.Lag
		}
		s.say("   %-13s is %d records behind", name, behind)
	}
	s.say("   %d orders, %d in the index, %d pings, %d got exactly one e-mail", s.orders, indexed, s.pings, once)
	if once != s.orders || indexed != s.orders || s.pings != s.orders {
		return fmt.Errorf("the counts differ: the story is not true")
	}
	return nil
}

// until waits for a condition, or for a runner that failed.
func (s *story) until(ctx context.Context, ended <-chan error, done func() bool) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if done() {
			return nil
		}
		select {
		case err := <-ended:
			return fmt.Errorf("a runner ended early: %w", err)
		case <-ctx.Done():
			return fmt.Errorf("the story did not go on: %w", ctx.Err())
		case <-tick.C:
		}
	}
}

func (s *story) cleanUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	streams, _ := broker.As[broker.Admin](s.streams)
	queues, _ := broker.As[broker.Admin](s.queues)
	return errors.Join(
		streams.DeleteStream(ctx, s.orderLog.Name()),
		queues.DeleteQueue(ctx, s.tasks.Name()),
		queues.DeleteQueue(ctx, s.dead.Name()),
	)
}
