package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/queuestream/broker"
)

// proxied makes a broker go through a proxy.
func proxied(through string) func(*Options) {
	return func(o *Options) {
		o.URLs = []string{through}
		o.Management = ""
		o.MinBackoff, o.MaxBackoff = 10*time.Millisecond, 100*time.Millisecond
		o.Heartbeat = 2 * time.Second
	}
}

// TestCutEverySecond publishes and consumes while connections are cut: every
// accepted message arrives, and none that was acknowledged is lost to a stale
// tag.
func TestCutEverySecond(t *testing.T) {
	direct := testBroker(t, nil)
	q := testQueue(t, direct, broker.QueueConfig{})
	p, through := testProxy(t, testURL(t))
	b := testBroker(t, proxied(through))
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()

	const total = 100_000
	var mu sync.Mutex
	seen := make([]int, total)
	left, duplicates := total, 0
	consumed := make(chan struct{})
	via, err := b.Queue(ctx, q.Name(), nil)
	if err != nil {
		t.Fatal(err)
	}
	c := testConsumer(t, via.(*Queue), &broker.ConsumerOptions{Prefetch: 2000})
	note := func(ds []*broker.Delivery) (all bool) {
		mu.Lock()
		defer mu.Unlock()
		for _, d := range ds {
			i, err := strconv.Atoi(string(d.Body))
			if err != nil || i < 0 || i >= total {
				t.Errorf("phantom %q", d.Body)
				continue
			}
			if seen[i]++; seen[i] == 1 {
				left--
			} else {
				duplicates++
			}
		}
		return left == 0
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			ds, err := c.Receive(ctx, 500)
			if err != nil {
				t.Errorf("receive: %v", err)
				return
			}
			acked := broker.AckAll(ctx, ds...)
			for i, d := range ds {
				switch err := broker.ErrorAt(acked, i); {
				case errors.Is(err, broker.ErrLeaseLost): // comes again
				case err != nil:
					t.Errorf("ack: %v", err)
				case d.Ack(ctx) == nil:
					t.Error("settled twice")
				}
			}
			if note(ds) {
				close(consumed)
				return
			}
		}
	})
	const batch, writers = 500, 4
	for w := range writers {
		wg.Go(func() {
			for i := w * total / writers; i < (w+1)*total/writers; i += batch {
				ms := make([]broker.Message, batch)
				for j := range ms {
					ms[j].Body = strconv.AppendInt(nil, int64(i+j), 10)
				}
				if _, err := via.PublishBatch(ctx, ms); err != nil {
					t.Errorf("publish: %v", err)
					return
				}
			}
		})
	}
	cuts, tick := 0, time.NewTicker(time.Second)
	defer tick.Stop()
	p.Cut()
	for done := false; !done; {
		select {
		case <-consumed:
			done = true
		case <-tick.C:
			p.Cut()
			cuts++
		case <-ctx.Done():
			mu.Lock()
			defer mu.Unlock()
			t.Fatalf("%d of %d messages did not arrive in time", left, total)
		}
	}
	wg.Wait()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	t.Logf("%d messages, %d cuts, %d duplicates", total, cuts+1, duplicates)
}

// TestStaleAckSettlesNothing: after a reconnect tags begin at 1 again; the old
// delivery's verdict must not reach the new one.
func TestStaleAckSettlesNothing(t *testing.T) {
	p, through := testProxy(t, testURL(t))
	b := testBroker(t, proxied(through))
	q := testQueue(t, b, broker.QueueConfig{})
	publish(t, q, broker.Message{Body: []byte("one")})
	c := testConsumer(t, q, nil)
	old := receive(t, c)
	p.Cut()
	again := receive(t, c)
	if again.Token() != old.Token() {
		t.Logf("tags differ: %d, %d", old.Token(), again.Token())
	}
	for _, err := range []error{old.Ack(t.Context()), old.Nack(t.Context(), 0)} {
		if !errors.Is(err, broker.ErrLeaseLost) {
			t.Fatalf("stale verdict: %v", err)
		}
	}
	if again.Attempt != 2 {
		t.Errorf("attempt %d", again.Attempt)
	}
	ack(t, again)
	receiveNone(t, c, 200*time.Millisecond)
}

// TestCloseWhileDown: Close ends within its deadline when the broker is gone,
// and when it is silent.
func TestCloseWhileDown(t *testing.T) {
	for _, how := range []string{"refused", "half-open"} {
		t.Run(how, func(t *testing.T) {
			direct := testBroker(t, nil)
			name := testQueue(t, direct, broker.QueueConfig{}).Name()
			p, through := testProxy(t, testURL(t))
			b := testBroker(t, proxied(through))
			q, err := b.Queue(t.Context(), name, nil)
			if err != nil {
				t.Fatal(err)
			}
			publish(t, q, broker.Message{Body: []byte("unread")})
			c := testConsumer(t, q.(*Queue), nil)
			d := receive(t, c)
			if how == "refused" {
				p.Down()
			} else {
				defer p.BlackHole()()
			}
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			_, err = q.Publish(ctx, broker.Message{Body: []byte("x")})
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("publish while down: %v", err)
			}
			start := time.Now()
			if err := b.Close(); err != nil {
				t.Error(err)
			}
			if took := time.Since(start); took > 6*time.Second {
				t.Errorf("Close took %v", took)
			}
			if err := d.Ack(t.Context()); !errors.Is(err, broker.ErrLeaseLost) {
				t.Errorf("ack after close: %v", err)
			}
			if _, err := c.Receive(t.Context(), 1); !errors.Is(err, broker.ErrClosed) {
				t.Errorf("receive after close: %v", err)
			}
		})
	}
}

// TestHalfOpen: a silent connection is found by heartbeats, and publishing and
// consuming go on over the next one.
func TestHalfOpen(t *testing.T) {
	direct := testBroker(t, nil)
	q := testQueue(t, direct, broker.QueueConfig{})
	p, through := testProxy(t, testURL(t))
	b := testBroker(t, proxied(through))
	via, err := b.Queue(t.Context(), q.Name(), nil)
	if err != nil {
		t.Fatal(err)
	}
	publish(t, via, broker.Message{Body: []byte("before")})
	c := testConsumer(t, via.(*Queue), nil)
	ack(t, receive(t, c))
	stop := p.BlackHole()
	done := make(chan error, 1)
	go func() {
		_, err := via.Publish(testContext(t), broker.Message{Body: []byte("during")})
		done <- err
	}()
	eventually(t, "the supervisor notices", func() bool { return b.Health().Publishing.State == "reconnecting" })
	stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if d := receive(t, c); string(d.Body) != "during" && string(d.Body) != "before" {
		t.Fatalf("got %q", d.Body)
	}
}

// A cutter breaks a program's connections without a process in between, whose
// own goroutines and buffers would be measured too.
type cutter struct {
	mu    sync.Mutex
	conns []net.Conn
}

func (c *cutter) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conns = append(c.conns, conn)
	return conn, nil
}

func (c *cutter) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.conns {
		_ = conn.Close() // also of those that are gone already
	}
	c.conns = nil
}

// TestReconnectsLeakNothing: goroutines and memory are flat over 200 reconnects.
func TestReconnectsLeakNothing(t *testing.T) {
	direct := testBroker(t, nil)
	name := testQueue(t, direct, broker.QueueConfig{}).Name()
	var p cutter
	b := testBroker(t, func(o *Options) {
		o.Dial = p.dial
		o.Management = ""
		o.MinBackoff, o.MaxBackoff = time.Millisecond, 10*time.Millisecond
	})
	q, err := b.Queue(t.Context(), name, nil)
	if err != nil {
		t.Fatal(err)
	}
	c := testConsumer(t, q.(*Queue), nil)
	round := func() {
		publish(t, q, broker.Message{Body: make([]byte, 1000)})
		for {
			if d := receive(t, c); d.Ack(t.Context()) == nil {
				break
			}
		}
		g := b.Health()
		p.cut()
		eventually(t, "both connections are new", func() bool {
			n := b.Health()
			return n.Consuming.Generation > g.Consuming.Generation && n.Publishing.Generation > g.Publishing.Generation &&
				n.Consuming.State == "connected" && n.Publishing.State == "connected"
		})
	}
	flat(t, 200, 10, round)
}

// TestStreamReconnectsLeakNothing is the same over the stream protocol. Most of
// a reconnect is the pause before a member joins again: four programs are cut
// side by side, fifty times.
func TestStreamReconnectsLeakNothing(t *testing.T) {
	direct := testBroker(t, streamOptions)
	const programs = 4
	var rounds []func()
	for range programs {
		s := testStream(t, direct, broker.StreamConfig{Partitions: 2})
		var p cutter
		b := testBroker(t, func(o *Options) {
			streamOptions(o)
			o.Dial = p.dial
			o.MinBackoff, o.MaxBackoff = time.Millisecond, 10*time.Millisecond
		})
		via, err := b.Stream(testContext(t), s.Name(), nil)
		if err != nil {
			t.Fatal(err)
		}
		c, err := via.Consumer(testContext(t), testName(t, "g"), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		rounds = append(rounds, func() {
			value := broker.NewID()
			if _, err := via.Publish(testContext(t), broker.Record{Key: []byte(value), Value: []byte(value)}); err != nil {
				t.Error(err)
				return
			}
			for {
				rs, err := c.Receive(testContext(t), 100)
				if err != nil {
					t.Error(err)
					return
				}
				if err := c.Commit(testContext(t), rs...); err == nil && string(rs[len(rs)-1].Value) == value {
					break
				}
			}
			p.cut()
		})
	}
	flat(t, 200/programs, 10*programs, func() {
		t.Helper()
		var all sync.WaitGroup
		for _, round := range rounds {
			all.Go(round)
		}
		all.Wait()
		if t.Failed() {
			t.FailNow()
		}
	})
}

// flat runs round, which reconnects, many times, and checks that goroutines and
// heap do not grow. A connection that is up has more goroutines than one that was
// cut: slack is how many of them all programs may have.
func flat(t *testing.T, rounds, slack int, round func()) {
	t.Helper()
	measure := func() (int, uint64) {
		runtime.GC()
		runtime.GC() // what a pool or a finalizer held on to
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return runtime.NumGoroutine(), m.HeapAlloc
	}
	if testing.Short() {
		rounds /= 10
	}
	for range max(5, rounds/10) { // what is made once
		round()
	}
	goroutines, heap := measure()
	for range rounds {
		round()
	}
	var g int
	var h uint64
	// A goroutine left behind by each reconnect would be 200 of them; a connection with
	// its buffers, which have tens of kilobytes, several megabytes.
	eventually(t, "goroutines and heap are as before", func() bool {
		g, h = measure()
		return g <= goroutines+slack && h <= heap+3<<20
	})
	t.Logf("goroutines %d to %d, heap %d to %d", goroutines, g, heap, h)
}

// TestBadCredentials, a missing virtual host: typed, and found at once.
func TestBadCredentials(t *testing.T) {
	t.Parallel()
	raw := testURL(t)
	host := raw[strings.LastIndex(raw, "@")+1:]
	for _, c := range []struct {
		url  string
		want error
	}{
		{"amqp://nobody:wrong@" + host, broker.ErrUnauthorized},
		{strings.TrimSuffix(raw, "/") + "/no-such-vhost", broker.ErrNotFound},
	} {
		_, err := OpenURL(testContext(t), c.url)
		if !errors.Is(err, c.want) || broker.IsTemporary(err) || strings.Contains(err.Error(), "wrong") {
			t.Errorf("%v, want %v", err, c.want)
		}
	}
}

// TestErrorsHurtNobodyElse: what the broker closes a channel for is the error of
// the call at fault; the connection and other calls go on.
func TestErrorsHurtNobodyElse(t *testing.T) {
	b := testBroker(t, nil)
	q := testQueue(t, b, broker.QueueConfig{TTL: time.Minute})
	ctx := testContext(t)
	if _, err := b.Queue(ctx, testName(t, "missing"), nil); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("missing queue: %v", err)
	}
	if _, err := b.Exchange(ctx, testName(t, "missing")); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("missing exchange: %v", err)
	}
	err := b.DeclareQueue(ctx, q.Name(), broker.QueueConfig{TTL: time.Hour})
	if !errors.Is(err, broker.ErrConflict) || !strings.Contains(err.Error(), "x-message-ttl") {
		t.Errorf("another TTL: %v", err)
	}
	// An exchange that is deleted under its users closes the shared channel.
	ex := testName(t, "x")
	if err := b.DeclareExchange(ctx, ex, broker.ExchangeFanout); err != nil {
		t.Fatal(err)
	}
	e, err := b.Exchange(ctx, ex)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.DeleteExchange(ctx, ex); err != nil {
		t.Fatal(err)
	}
	generation := b.Health().Publishing.Generation
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20 {
				if _, err := q.Publish(ctx, broker.Message{Body: []byte("innocent")}); err != nil {
					t.Errorf("a neighbour: %v", err)
				}
			}
		})
	}
	for range 5 {
		if _, err := e.RouteTo("").Publish(ctx, broker.Message{}); !errors.Is(err, broker.ErrNotFound) {
			t.Errorf("deleted exchange: %v", err)
		}
	}
	wg.Wait()
	if g := b.Health().Publishing.Generation; generation != 0 && g != generation {
		t.Errorf("the connection was replaced")
	}
	if _, err := q.Publish(ctx, broker.Message{Body: make([]byte, 16<<20+1)}); !errors.Is(err, broker.ErrTooLarge) {
		t.Errorf("oversize: %v", err)
	}
}

// TestOversizeForBroker: a limit that only the broker knows of.
func TestOversizeForBroker(t *testing.T) {
	if testing.Short() {
		t.Skip("sends 17 MB")
	}
	b := testBroker(t, func(o *Options) { o.MaxMessageBytes = 64 << 20 })
	q := testQueue(t, b, broker.QueueConfig{})
	ms := []broker.Message{{Body: []byte("a")}, {Body: make([]byte, 17<<20)}, {Body: []byte("b")}}
	_, err := q.PublishBatch(testContext(t), ms)
	if broker.ErrorAt(err, 0) != nil || !errors.Is(broker.ErrorAt(err, 1), broker.ErrTooLarge) || broker.ErrorAt(err, 2) != nil {
		t.Fatalf("%v", err)
	}
}

// TestDeletedQueue: the waiting Receive gets ErrNotFound and no phantom.
func TestDeletedQueue(t *testing.T) {
	b := testBroker(t, nil)
	q := testQueue(t, b, broker.QueueConfig{})
	c := testConsumer(t, q, nil)
	got := make(chan error, 1)
	go func() {
		ds, err := c.Receive(testContext(t), 1)
		if len(ds) > 0 {
			err = fmt.Errorf("phantom %+v", ds[0].Message)
		}
		got <- err
	}()
	eventually(t, "the consumer is there", func() bool {
		_, n, err := b.inspect(t.Context(), q.Name())
		return err == nil && n == 1
	})
	if err := b.DeleteQueue(testContext(t), q.Name()); err != nil {
		t.Fatal(err)
	}
	if err := <-got; !errors.Is(err, broker.ErrNotFound) {
		t.Fatal(err)
	}
	if _, err := q.Publish(testContext(t), broker.Message{}); !errors.Is(err, broker.ErrNotFound) {
		t.Fatalf("publish: %v", err)
	}
}

// TestManyHandles: handles and failed calls use up no channels.
func TestManyHandles(t *testing.T) {
	b := testBroker(t, nil)
	q := testQueue(t, b, broker.QueueConfig{})
	n := 2500 // a connection has 2047 channels
	if testing.Short() {
		n = 50
	}
	for range n {
		if _, err := b.Queue(t.Context(), "no.such.queue", nil); !errors.Is(err, broker.ErrNotFound) {
			t.Fatal(err)
		}
	}
	publish(t, q, broker.Message{})
	ack(t, receive(t, testConsumer(t, q, nil)))
}

// TestPrefetchBatches: what is there comes in batches, not one by one.
func TestPrefetchBatches(t *testing.T) {
	b := testBroker(t, nil)
	q := testQueue(t, b, broker.QueueConfig{})
	if _, err := q.PublishBatch(testContext(t), make([]broker.Message, 500)); err != nil {
		t.Fatal(err)
	}
	c := testConsumer(t, q, &broker.ConsumerOptions{Prefetch: 200})
	calls := 0
	for got := 0; got < 500; calls++ {
		ds, err := c.Receive(testContext(t), 100)
		if err != nil {
			t.Fatal(err)
		}
		got += len(ds)
		eventually(t, "prefetched", func() bool { return got == 500 || c.(*consumer).inbox.Len() >= min(50, 500-got) })
		if err := broker.AckAll(t.Context(), ds...); err != nil {
			t.Fatal(err)
		}
	}
	if calls > 50 {
		t.Errorf("%d calls for 500 messages", calls)
	}
}

// TestAckThenClose: what was acknowledged just before Close does not come again.
func TestAckThenClose(t *testing.T) {
	b := testBroker(t, nil)
	for range 5 {
		q := testQueue(t, b, broker.QueueConfig{})
		ms := make([]broker.Message, 200)
		for i := range ms {
			ms[i].Body = fmt.Append(nil, i)
		}
		if _, err := q.PublishBatch(testContext(t), ms); err != nil {
			t.Fatal(err)
		}
		acked := map[string]string{}
		for v := range 10 {
			client, err := Open(t.Context(), &Options{URLs: []string{testURL(t)}})
			if err != nil {
				t.Fatal(err)
			}
			mine, err := client.Queue(t.Context(), q.Name(), nil)
			if err != nil {
				t.Fatal(err)
			}
			k, err := mine.Consumer(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			ds, err := k.Receive(t.Context(), 5)
			if err != nil {
				t.Fatal(err)
			}
			for j, d := range ds {
				me := fmt.Sprintf("victim %d, %d of %d, id %s tag %d attempt %d", v, j, len(ds), d.ID, d.Token(), d.Attempt)
				if was, ok := acked[string(d.Body)]; ok {
					t.Errorf("%s: acked by %s, again by %s", d.Body, was, me)
				}
				if j%2 == 0 {
					ack(t, d)
					acked[string(d.Body)] = me
				}
			}
			if err := client.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// A publisher that waits for a channel of a connection that dies in the
// meantime takes one of the next connection.
func TestChannelOfADeadConnectionIsOpenedAgain(t *testing.T) {
	b := testBroker(t, nil)
	dead := &generation{dead: make(chan struct{})}
	close(dead.dead)
	for range 50 { // the waiter is there before the end of the opening, in most
		op := &channelOpening{gen: dead, done: make(chan struct{})}
		b.pub.mu.Lock()
		b.pub.cur, b.pub.opening = nil, op
		b.pub.mu.Unlock()
		result := make(chan error, 1)
		go func() {
			_, err := b.pub.channel(testContext(t))
			result <- err
		}()
		for range 100 {
			runtime.Gosched()
		}
		b.pub.mu.Lock()
		op.err, b.pub.opening = amqp.ErrClosed, nil
		close(op.done)
		b.pub.mu.Unlock()
		if err := <-result; err != nil {
			t.Fatal(err)
		}
	}
}
