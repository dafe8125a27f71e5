package rabbitmq

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/queuestream/broker"
)

// An injector puts what the broker would send between the frames that it sends.
type injector struct {
	net.Conn

	mu      sync.Mutex
	buf     []byte // read from the broker, up to here whole frames for the client
	whole   int
	consume []byte // the last basic.consume-ok
}

const (
	consumeOK    = 60<<16 | 21
	basicCancel  = 60<<16 | 30
	frameExtra   = 8 // type, channel, size, end
	frameMethod  = 1
	frameEndMark = 0xCE
)

func (c *injector) Read(b []byte) (int, error) {
	for {
		c.mu.Lock()
		if c.whole > 0 {
			n := copy(b, c.buf[:c.whole])
			c.buf, c.whole = c.buf[n:], c.whole-n
			c.mu.Unlock()
			return n, nil
		}
		c.mu.Unlock()
		some := make([]byte, 4096)
		n, err := c.Conn.Read(some)
		if n == 0 {
			return 0, err
		}
		c.mu.Lock()
		c.buf = append(c.buf, some[:n]...)
		for rest := c.buf[c.whole:]; len(rest) >= 7; rest = c.buf[c.whole:] {
			size := int(binary.BigEndian.Uint32(rest[3:])) + frameExtra
			if len(rest) < size {
				break
			}
			if rest[0] == frameMethod && binary.BigEndian.Uint32(rest[7:]) == consumeOK {
				c.consume = append([]byte(nil), rest[:size]...)
			}
			c.whole += size
		}
		c.mu.Unlock()
	}
}

// cancel makes the broker end the last subscription, as 4.3 does when a
// delivery is held for longer than consumer_timeout.
func (c *injector) cancel() {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := append([]byte(nil), c.consume[:len(c.consume)-1]...) // channel and tag are the same
	binary.BigEndian.PutUint32(f[7:], basicCancel)
	f = append(f, 1, frameEndMark) // no-wait
	binary.BigEndian.PutUint32(f[3:], uint32(len(f)-frameExtra))
	c.buf = append(append(append([]byte(nil), c.buf[:c.whole]...), f...), c.buf[c.whole:]...)
	c.whole += len(f)
}

// TestSubscriptionEndedByBroker while the queue is there: what was delivered is
// lost to its holder and comes again, and Receive goes on without an error.
func TestSubscriptionEndedByBroker(t *testing.T) {
	var all []*injector
	var mu sync.Mutex
	b := testBroker(t, func(o *Options) {
		o.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := (&net.Dialer{}).DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, &injector{Conn: c})
			return all[len(all)-1], nil
		}
	})
	q := testQueue(t, b, broker.QueueConfig{})
	c := testConsumer(t, q, nil)
	publish(t, q, broker.Message{Body: []byte("1")})
	d := receive(t, c)
	mu.Lock()
	all[0].cancel() // the first connection consumes
	mu.Unlock()
	publish(t, q, broker.Message{Body: []byte("2")}) // makes the broker send, and the client read
	ctx := testContext(t)
	for seen := 0; seen < 2; {
		ds, err := c.Receive(ctx, 10)
		if err != nil {
			t.Fatal(err)
		}
		for _, again := range ds {
			if err := again.Ack(ctx); err == nil {
				seen++
			} else if !errors.Is(err, broker.ErrLeaseLost) {
				t.Fatal(err)
			}
		}
	}
	if err := d.Ack(ctx); !errors.Is(err, broker.ErrLeaseLost) {
		t.Errorf("a delivery from before: %v", err)
	}
}

// logTimes are the times of what is logged as an error.
type logTimes struct {
	slog.Handler
	times chan time.Time
}

func (l *logTimes) Handle(_ context.Context, r slog.Record) error {
	if r.Level >= slog.LevelError {
		select {
		case l.times <- r.Time:
		default:
		}
	}
	return nil
}
func (l *logTimes) Enabled(context.Context, slog.Level) bool { return true }
func (l *logTimes) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l *logTimes) WithGroup(string) slog.Handler            { return l }

// TestDeadLetterQueueGone: a message that should go to a dead-letter queue that
// was deleted is neither lost nor tried without a pause.
func TestDeadLetterQueueGone(t *testing.T) {
	log := &logTimes{times: make(chan time.Time, 100)}
	b := testBroker(t, func(o *Options) { o.Logger = slog.New(log) })
	dead := testQueue(t, b, broker.QueueConfig{})
	q := testQueue(t, b, broker.QueueConfig{MaxAttempts: 1, DeadLetter: dead.Name()})
	publish(t, q, broker.Message{ID: "id"})
	c := testConsumer(t, q, nil)
	receive(t, c) // given back below: its second attempt
	if err := b.DeleteQueue(testContext(t), dead.Name()); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	c = testConsumer(t, q, nil)
	ctx, cancel := context.WithCancel(testContext(t))
	done := make(chan struct{})
	go func() {
		defer close(done)
		if ds, err := c.Receive(ctx, 1); len(ds) > 0 || err == nil {
			t.Errorf("received %v, %v", ds, err)
		}
	}()
	first := <-log.times
	if pause := (<-log.times).Sub(first); pause < retireAgain/2 {
		t.Errorf("tried again after %v", pause)
	}
	cancel()
	<-done
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the message is in its queue", func() bool {
		n, _, err := b.inspect(t.Context(), q.Name())
		return err == nil && n == 1
	})
}
