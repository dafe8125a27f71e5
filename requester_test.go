package broker_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/brokertest"
)

func TestRequester(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		b := openMemory(t)
		q, err := broker.DeclareQueue(ctx, b, "rpc", broker.QueueConfig{MaxAttempts: 2})
		if err != nil {
			t.Fatal(err)
		}
		w := &broker.Worker{Queue: q, Logger: quiet, Handler: broker.Respond(b, func(_ context.Context, d *broker.Delivery) (broker.Message, error) {
			if string(d.Body) == "slow" {
				spend(10 * time.Second)
			}
			return broker.Message{Body: append([]byte("re: "), d.Body...)}, nil
		})}
		stop := start(t, w)
		r := &broker.Requester{Broker: b, Target: q}
		var wg sync.WaitGroup
		for i := range 50 {
			wg.Go(func() {
				body := fmt.Sprint(i)
				d, err := r.Do(ctx, broker.Message{Body: []byte(body)})
				if err != nil || string(d.Body) != "re: "+body || !d.Settled() {
					t.Errorf("%s: %v, %v", body, d, err)
				}
			})
		}
		wg.Wait()
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if _, err := r.Do(short, broker.Message{Body: []byte("slow"), CorrelationID: "same"}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("slow: %v", err)
		}
		advance(20 * time.Second)
		if r.Late() != 1 {
			t.Errorf("%d late replies", r.Late())
		}
		pending := make(chan error, 1)
		go func() {
			_, err := r.Do(ctx, broker.Message{Body: []byte("slow"), CorrelationID: "same"})
			pending <- err
		}()
		synctest.Wait()
		if _, err := r.Do(ctx, broker.Message{CorrelationID: "same"}); !errors.Is(err, broker.ErrInvalid) {
			t.Errorf("a correlation id twice: %v", err)
		}
		if _, err := q.Publish(ctx, broker.Message{Body: []byte("no ReplyTo")}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if err := errors.Join(r.Close(), r.Close()); err != nil {
			t.Error(err)
		}
		if err := <-pending; !errors.Is(err, broker.ErrClosed) {
			t.Errorf("a call under way at Close: %v", err)
		}
		if _, err := r.Do(ctx, broker.Message{}); !errors.Is(err, broker.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
		advance(time.Minute) // the reply of the slow one finds its queue gone
		if s := w.Stats(); s.Rejected != 1 || s.Retried != 0 || s.Acked != 52 {
			t.Errorf("stats %+v", s)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestRequesterWithout(t *testing.T) {
	q := brokertest.NewQueue("q")
	r := &broker.Requester{Broker: noAdmin{openMemory(t)}, Target: q}
	_, err := r.Do(t.Context(), broker.Message{})
	if e, ok := errors.AsType[*broker.Error](err); !ok || e.Adapter != "brokertest" || e.Name != "q" || !errors.Is(err, broker.ErrUnsupported) {
		t.Error(err)
	}
	if err := (&broker.Requester{}).Close(); err != nil {
		t.Error(err)
	}
	if _, err := (&broker.Requester{}).Do(t.Context(), broker.Message{}); !errors.Is(err, broker.ErrInvalid) {
		t.Error(err)
	}
}

// farBroker takes until its caller gives up to make a reply queue.
type farBroker struct {
	broker.Broker
	asked chan struct{}
}

func (b farBroker) ReplyQueue(ctx context.Context) (broker.Queue, error) {
	close(b.asked)
	<-ctx.Done()
	return nil, ctx.Err()
}

// One caller's way to the broker holds up neither the others, beyond their
// contexts, nor Close.
func TestRequesterWhileItOpens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := farBroker{openMemory(t), make(chan struct{})}
		r := &broker.Requester{Broker: b, Target: brokertest.NewQueue("q")}
		first := make(chan error, 1)
		go func() {
			_, err := r.Do(t.Context(), broker.Message{})
			first <- err
		}()
		<-b.asked
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		second := make(chan error, 1)
		go func() {
			_, err := r.Do(ctx, broker.Message{})
			second <- err
		}()
		advance(2 * time.Second)
		select {
		case err := <-second:
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("the second: %v", err)
			}
		default:
			t.Errorf("a call with a context of a second still waits after %v", time.Since(began))
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if err := <-first; !errors.Is(err, broker.ErrClosed) {
			t.Errorf("the first: %v", err)
		}
	})
}

// earlyReply is a target whose reply is there before Publish has returned.
type earlyReply struct {
	broker.Queue
	b   broker.Broker
	end func() error // what Publish returns
}

func (q *earlyReply) Publish(ctx context.Context, m broker.Message) (broker.Receipt, error) {
	reply, err := q.b.Queue(ctx, m.ReplyTo, nil)
	if err != nil {
		return broker.Receipt{}, err
	}
	defer func() { _ = reply.Close() }()
	if _, err := reply.Publish(ctx, broker.Message{CorrelationID: m.CorrelationID}); err != nil {
		return broker.Receipt{}, err
	}
	synctest.Wait() // until the requester has it
	return broker.Receipt{}, q.end()
}

// A reply that has come is returned, whatever else there would be to say; none
// is acknowledged and then neither returned nor counted.
func TestRequesterLosesNoReply(t *testing.T) {
	for name, end := range map[string]func(cancel func()) error{
		"its ctx ends":                     func(cancel func()) error { cancel(); return nil },
		"the request's outcome is unknown": func(func()) error { return broker.UnknownOutcome(errBoom) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := openMemory(t)
				target := &earlyReply{Queue: brokertest.NewQueue("q"), b: b}
				r := &broker.Requester{Broker: b, Target: target}
				for range 20 { // a select takes either
					ctx, cancel := context.WithCancel(t.Context())
					target.end = func() error { return end(cancel) }
					if d, err := r.Do(ctx, broker.Message{}); err != nil || d == nil {
						t.Errorf("with the reply there: %v", err)
					}
					cancel()
				}
				if r.Late() != 0 {
					t.Errorf("%d late", r.Late())
				}
				if err := r.Close(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// When the reply queue goes away the calls under way hear of it, and the next
// one makes another.
func TestRequesterWhoseReplyQueueIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		b := openMemory(t)
		q, err := broker.DeclareQueue(ctx, b, "rpc", broker.QueueConfig{})
		if err != nil {
			t.Fatal(err)
		}
		r := &broker.Requester{Broker: b, Target: q}
		under := make(chan error, 1)
		go func() {
			_, err := r.Do(ctx, broker.Message{})
			under <- err
		}()
		synctest.Wait()
		ms, err := b.Peek(ctx, "rpc", 1)
		if err != nil || len(ms) != 1 {
			t.Fatal(ms, err)
		}
		if err := b.DeleteQueue(ctx, ms[0].ReplyTo); err != nil {
			t.Fatal(err)
		}
		if err := <-under; !errors.Is(err, broker.ErrNotFound) {
			t.Errorf("the call under way: %v", err)
		}
		stop := start(t, &broker.Worker{Queue: q, Logger: quiet, Handler: broker.Respond(b, func(context.Context, *broker.Delivery) (broker.Message, error) {
			return broker.Message{}, nil
		})})
		if _, err := r.Do(ctx, broker.Message{}); err != nil {
			t.Errorf("the next call: %v", err)
		}
		if err := errors.Join(r.Close(), stop()); err != nil {
			t.Error(err)
		}
	})
}
