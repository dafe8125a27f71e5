package rabbitmq

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/queuestream/broker"
)

// silence makes a queue of the broker not answer who subscribes to it, as one
// whose leader is gone: the broker serves a channel one call at a time, so that
// nothing else passes on that channel in either direction.
type silence struct {
	mu    sync.Mutex
	queue string // "": none
	conns []*silentConn
}

func (s *silence) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c := &silentConn{Conn: conn, s: s, mute: map[uint16]bool{}, channels: map[string]uint16{}}
	s.conns = append(s.conns, c)
	return c, nil
}

// of begins with the next subscription to the queue.
func (s *silence) of(queue string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queue = queue
}

// begin has a queue answer nothing more to who has subscribed to it.
func (s *silence) begin(queue string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.conns {
		if channel, ok := c.channels[queue]; ok {
			c.mute[channel] = true
		}
	}
}

// reached tells whether a client waits for the answer to a subscription.
func (s *silence) reached() bool { return s.asked(basicConsume) }

// asked tells whether a client waits for the answer to a method.
func (s *silence) asked(method uint32) (ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.conns {
		frames(c.heldOut, func(f []byte, _ uint16) {
			ok = ok || f[0] == frameMethod && binary.BigEndian.Uint32(f[7:]) == method
		})
	}
	return ok
}

// end has the queue answer, also what it was asked meanwhile.
func (s *silence) end(t *testing.T) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queue = ""
	for _, c := range s.conns {
		clear(c.mute)
		if _, err := c.Conn.Write(c.heldOut); err != nil {
			t.Log(err) // the client closed it
		}
		c.say(c.heldIn)
		c.heldOut, c.heldIn = nil, nil
	}
}

// fail has the broker give up: it closes the connections that wait with an
// internal error, as 4.0.5 does after 65 s.
func (s *silence) fail() {
	s.mu.Lock()
	defer s.mu.Unlock()
	const text = "INTERNAL_ERROR"
	payload := append([]byte{0, 10, 0, 50, 541 >> 8, 541 & 0xff, byte(len(text))}, text...)
	payload = append(payload, 0, 0, 0, 0) // because of no method
	f := binary.BigEndian.AppendUint32([]byte{frameMethod, 0, 0}, uint32(len(payload)))
	f = append(append(f, payload...), frameEndMark)
	s.conns = slices.DeleteFunc(s.conns, func(c *silentConn) bool {
		if len(c.mute) == 0 {
			return false
		}
		c.say(f)
		return true
	})
}

// A silentConn passes whole frames on, but for those of mute channels.
type silentConn struct {
	net.Conn
	s *silence

	// By s.mu.
	mute            map[uint16]bool
	channels        map[string]uint16 // by the queue that was subscribed to
	heldOut, heldIn []byte
	ready           []byte // for the client
	woken           bool   // Read ends for the sake of ready

	written []byte // by the client, up to a whole frame
	read    []byte // from the broker, up to a whole frame
	greeted bool
}

const basicConsume = 60<<16 | 20

// say has the client read b. s.mu is held.
func (c *silentConn) say(b []byte) {
	c.ready, c.woken = append(c.ready, b...), true
	_ = c.SetReadDeadline(time.Now()) // wakes Read; where it fails, the connection is gone
}

// frames takes the whole frames off b.
func frames(b []byte, each func(frame []byte, channel uint16)) (rest []byte) {
	for len(b) >= 7 {
		size := int(binary.BigEndian.Uint32(b[3:])) + frameExtra
		if len(b) < size {
			break
		}
		each(b[:size], binary.BigEndian.Uint16(b[1:]))
		b = b[size:]
	}
	return b
}

func (c *silentConn) Write(b []byte) (int, error) {
	c.written = append(c.written, b...)
	var out []byte
	if n := len("AMQP0091"); !c.greeted && len(c.written) >= n {
		c.greeted = true
		out, c.written = append(out, c.written[:n]...), c.written[n:]
	}
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.written = append([]byte(nil), frames(c.written, func(f []byte, channel uint16) {
		if f[0] == frameMethod && binary.BigEndian.Uint32(f[7:]) == basicConsume {
			queue := string(f[14 : 14+f[13]])
			c.channels[queue] = channel
			if queue == c.s.queue {
				c.mute[channel] = true
			}
		}
		if c.mute[channel] {
			c.heldOut = append(c.heldOut, f...)
		} else {
			out = append(out, f...)
		}
	})...)
	if _, err := c.Conn.Write(out); err != nil {
		return 0, err
	}
	return len(b), nil
}

func (c *silentConn) Read(b []byte) (int, error) {
	for {
		c.s.mu.Lock()
		if len(c.ready) > 0 {
			n := copy(b, c.ready)
			c.ready = c.ready[n:]
			c.s.mu.Unlock()
			return n, nil
		}
		c.s.mu.Unlock()
		some := make([]byte, 4096)
		n, err := c.Conn.Read(some)
		if n == 0 {
			c.s.mu.Lock()
			woken := errors.Is(err, os.ErrDeadlineExceeded) && c.woken
			c.woken = false
			c.s.mu.Unlock()
			if woken && c.SetReadDeadline(time.Time{}) == nil {
				continue
			}
			return 0, err
		}
		c.read = append(c.read, some[:n]...)
		c.s.mu.Lock()
		c.read = append([]byte(nil), frames(c.read, func(f []byte, channel uint16) {
			if c.mute[channel] {
				c.heldIn = append(c.heldIn, f...)
			} else {
				c.ready = append(c.ready, f...)
			}
		})...)
		c.s.mu.Unlock()
	}
}

// groupOf returns a group of a shard.
func groupOf(q *Queue, shard int) string {
	for i := 0; ; i++ {
		m := broker.Message{GroupID: fmt.Sprint("g", i)}
		if q.info.route(&m) == shardName(q.info.name, shard) {
			return m.GroupID
		}
	}
}

// A silentConsumer receives from a queue with groups, one of whose queues in the
// broker is silent.
type silentConsumer struct {
	silence
	b      *Broker
	direct *Queue // by another connection
	c      broker.Consumer
	quiet  string   // a group of the silent queue
	groups []string // of each of the others
	ctx    context.Context
	got    chan *broker.Delivery
	rest   func() // stops receiving
}

func newSilentConsumer(t *testing.T, grouped bool) *silentConsumer {
	const shards = 3
	s := &silentConsumer{got: make(chan *broker.Delivery)}
	s.direct = testQueue(t, testBroker(t, nil), broker.QueueConfig{Ordered: true, Shards: shards})
	s.b = testBroker(t, func(o *Options) { o.Dial, o.MaxBackoff = s.dial, 100*time.Millisecond })
	q := openQueue(t, s.b, s.direct.Name())
	s.groups = []string{""}
	for i := range shards {
		s.groups = append(s.groups, groupOf(q, i))
	}
	i := 0
	if grouped {
		i = 1
	}
	s.quiet = s.groups[i]
	s.of(q.info.route(&broker.Message{GroupID: s.quiet}))
	s.groups = slices.Delete(s.groups, i, i+1)
	s.c = testConsumer(t, q, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			ds, err := s.c.Receive(ctx, 1)
			if err != nil {
				return
			}
			select {
			case s.got <- ds[0]:
			case <-ctx.Done():
			}
		}
	}()
	s.ctx, s.rest = ctx, func() { cancel(); <-done }
	t.Cleanup(s.rest)
	eventually(t, "the consumer waits for the silent queue", s.reached)
	return s
}

// next returns the next delivery, which is of a group.
func (s *silentConsumer) next(t *testing.T, group string) *broker.Delivery {
	t.Helper()
	select {
	case d := <-s.got:
		if d.GroupID != group {
			t.Fatalf("group %q, want %q", d.GroupID, group)
		}
		return d
	case <-s.ctx.Done():
		t.Fatalf("no message of group %q", group)
		return nil
	}
}

// others publishes to the queues that answer, and returns what is received.
func (s *silentConsumer) others(t *testing.T) (ds []*broker.Delivery) {
	t.Helper()
	for _, g := range s.groups {
		publish(t, s.direct, broker.Message{GroupID: g})
		ds = append(ds, s.next(t, g))
	}
	return ds
}

// TestSilentQueue: a queue in the broker that does not answer holds up no other of
// the consumer, and what it has is received once it answers.
func TestSilentQueue(t *testing.T) {
	for name, grouped := range map[string]bool{"a shard": true, "without a group": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSilentConsumer(t, grouped)
			publish(t, s.direct, broker.Message{GroupID: s.quiet})
			hands := s.others(t)
			s.end(t)
			for _, d := range append(hands, s.next(t, s.quiet)) {
				if ack(t, d); d.Attempt != 1 {
					t.Errorf("attempt %d", d.Attempt)
				}
			}
			s.rest()
			if err := s.c.Close(); err != nil {
				t.Error(err)
			}
			receiveNone(t, testConsumer(t, s.direct, nil), 200*time.Millisecond)
		})
	}
}

// TestSilentQueueGivenUp: the broker ends the connection that asked a silent queue.
// That happens once to what the other queues delivered.
func TestSilentQueueGivenUp(t *testing.T) {
	t.Parallel()
	s := newSilentConsumer(t, true)
	generation := s.b.Health().Consuming.Generation
	s.fail()
	eventually(t, "the connection is replaced", func() bool { return s.b.Health().Consuming.Generation > generation })
	for range 2 {
		eventually(t, "the consumer waits for the silent queue", s.reached)
		hands := s.others(t)
		s.fail()
		eventually(t, "the consumer waits for the silent queue", s.reached)
		for _, d := range hands {
			ack(t, d)
		}
	}
	publish(t, s.direct, broker.Message{GroupID: s.quiet})
	s.end(t)
	ack(t, s.next(t, s.quiet))
}

// TestSilentQueueIsLeft: a consumer with a silent queue gives the others to those
// who receive, and its end is bounded.
func TestSilentQueueIsLeft(t *testing.T) {
	for name, leave := range map[string]func(t *testing.T, s *silentConsumer, d *broker.Delivery){
		"idle": func(t *testing.T, _ *silentConsumer, d *broker.Delivery) { ack(t, d) },
		"Close": func(t *testing.T, s *silentConsumer, d *broker.Delivery) {
			ack(t, d)
			if err := s.c.Close(); err != nil {
				t.Error(err)
			}
		},
		"Shutdown": func(t *testing.T, s *silentConsumer, d *broker.Delivery) {
			done := shutdown(t, s.b)
			eventually(t, "the broker drains", func() bool { return draining(s.b) })
			ack(t, d)
			if err := <-done; err != nil {
				t.Error(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSilentConsumer(t, true)
			group := s.groups[len(s.groups)-1]
			publish(t, s.direct, broker.Message{GroupID: group})
			publish(t, s.direct, broker.Message{GroupID: group})
			d := s.next(t, group)
			s.rest()
			began := time.Now()
			leave(t, s, d)
			if took := time.Since(began); took > 6*time.Second {
				t.Errorf("took %v", took)
			}
			next := receive(t, testConsumer(t, s.direct, nil))
			if ack(t, next); next.GroupID != group || next.ID == d.ID {
				t.Errorf("got %+v", next.Message)
			}
		})
	}
}
