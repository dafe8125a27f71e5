package rabbitmq

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/rabbitmq/internal/streamwire"
)

// testPace heals within 6.6 s.
var testPace = pace{look: time.Second, signs: 200 * time.Millisecond}

// wedgedGroup leaves partition 1 of a group to two single active consumers of
// one connection, and returns a function that cuts it. RabbitMQ 4.0 removes the
// first and asks the second, which is gone as well, to step down in favour of
// whoever is third: from there on the partition has no active consumer, however
// many join.
func wedgedGroup(t *testing.T, s *Stream, group string) (cut func()) {
	t.Helper()
	u, err := url.Parse(s.b.o.StreamURLs[0])
	if err != nil {
		t.Fatal(err)
	}
	ctx := testContext(t)
	socket, err := (&net.Dialer{}).DialContext(ctx, "tcp", u.Host)
	if err != nil {
		t.Fatal(err)
	}
	cfg := streamwire.Config{User: u.User.Username(), VHost: streamVHost(u), Heartbeat: 10 * time.Second}
	cfg.Password, _ = u.User.Password()
	k, err := streamwire.Open(ctx, socket, cfg)
	if err != nil {
		t.Fatal(err)
	}
	cut = func() {
		_ = socket.Close() // perhaps for the second time
		<-k.Done()
	}
	t.Cleanup(cut)
	for range 2 {
		active := make(chan struct{})
		_, err = k.Subscribe(ctx, s.partitions[1], nowhere, streamwire.SubscribeOptions{
			Group: group, SuperStream: s.name, Credits: 1,
			Update: func(on bool) streamwire.Start {
				if on {
					close(active)
				}
				return nowhere
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		await(t, "each is the active one in turn", active)
	}
	return cut
}

func await(t *testing.T, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-testContext(t).Done():
		t.Fatalf("never: %s", what)
	}
}

// groupStream declares a stream of two partitions with a record in each.
func groupStream(t *testing.T) *Stream {
	t.Helper()
	b := testBroker(t, streamOptions)
	if len(b.o.StreamURLs) == 0 {
		t.Skip("BROKER_TEST_RABBITMQ_STREAM is not set")
	}
	s := testStream(t, b, broker.StreamConfig{Partitions: 2})
	for p := range int32(2) {
		publishTo(t, s, p, "first")
	}
	return s
}

func publishTo(t *testing.T, s *Stream, p int32, value string) {
	t.Helper()
	if _, err := s.Publish(testContext(t), broker.Record{Pin: true, Partition: p, Value: []byte(value)}); err != nil {
		t.Fatal(err)
	}
}

// joined waits until the broker has registered the member for every partition.
func joined(t *testing.T, c broker.GroupConsumer) {
	t.Helper()
	m := c.(*member)
	eventually(t, "the member has subscribed", func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		last := m.seats[int32(len(m.s.partitions)-1)] //nolint:gosec // few
		return last != nil && last.sub != nil
	})
	for _, name := range m.s.partitions { // the answer comes after the registration
		k, err := m.s.b.streams.leader(testContext(t), m.role, name)
		if err == nil {
			_, err = k.Locate(testContext(t), name)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestStreamGroupHeals: a partition that the broker leaves without an active
// consumer gets one.
func TestStreamGroupHeals(t *testing.T) {
	for _, members := range []int{1, 2} {
		t.Run(fmt.Sprintf("%d members", members), func(t *testing.T) {
			t.Parallel()
			s := groupStream(t)
			group := testName(t, "g")
			cut := wedgedGroup(t, s, group)
			start := func() broker.GroupConsumer {
				b := testBroker(t, streamOptions)
				b.streams.pace = testPace
				via, err := b.Stream(testContext(t), s.Name(), nil)
				if err != nil {
					t.Fatal(err)
				}
				c, err := via.Consumer(testContext(t), group, nil)
				if err != nil {
					t.Fatal(err)
				}
				joined(t, c)
				return c
			}
			cs := []broker.GroupConsumer{start()}
			cut()
			for range members - 1 {
				cs = append(cs, start())
			}
			ctx, cancel := context.WithCancel(testContext(t))
			defer cancel()
			got := make(chan struct{}, 1)
			began := time.Now()
			for _, c := range cs {
				go func() {
					for {
						rs, err := c.Receive(ctx, 10)
						if err != nil {
							return
						}
						if rs[0].Partition == 1 {
							got <- struct{}{}
							return
						}
					}
				}()
			}
			await(t, "somebody gets the partition", got)
			if took := time.Since(began); took > 20*testPace.look {
				t.Errorf("after %v, want within %v", took, 20*testPace.look)
			} else {
				t.Log("after", took)
			}
		})
	}
}

// TestStreamGroupLeavesSlowMembersAlone: a member that holds records for long,
// and one that does not even receive what it has read, keep their partitions.
func TestStreamGroupLeavesSlowMembersAlone(t *testing.T) {
	t.Parallel()
	s := groupStream(t)
	group := testName(t, "g")
	var changes atomic.Int32
	count := &broker.GroupOptions{
		OnRevoked: func(context.Context, []int32) { changes.Add(1) },
		OnLost:    func([]int32) { changes.Add(1) },
	}
	var cs []*member
	for range 3 {
		b := testBroker(t, streamOptions)
		b.streams.pace = testPace
		via, err := b.Stream(testContext(t), s.Name(), nil)
		if err != nil {
			t.Fatal(err)
		}
		c, err := via.Consumer(testContext(t), group, count)
		if err != nil {
			t.Fatal(err)
		}
		joined(t, c)
		cs = append(cs, c.(*member))
	}
	holder := func(p int32) (h *member) {
		t.Helper()
		eventually(t, "each partition has one member", func() bool {
			n := 0
			for _, c := range cs {
				if slices.Contains(c.Partitions(), p) {
					h = c
					n++
				}
			}
			return n == 1
		})
		return h
	}
	holders := []*member{holder(0), holder(1)}
	if rs, err := holders[0].Receive(testContext(t), 1); err != nil || len(rs) != 1 {
		t.Fatal(rs, err)
	}
	before := changes.Load()
	// The others see both as they were for long enough to act twice.
	sleep(t.Context(), 10*testPace.look)
	if n := changes.Load() - before; n != 0 || holder(0) != holders[0] || holder(1) != holders[1] {
		t.Errorf("%d changes of who has a partition", n)
	}
}

// TestStreamGroupIdleIsSilent: where all is committed, nobody says that it is
// alive, and the others do not count how long it is quiet.
func TestStreamGroupIdleIsSilent(t *testing.T) {
	t.Parallel()
	s := groupStream(t)
	s.b.streams.pace = testPace
	group := testName(t, "g")
	c, err := s.Consumer(testContext(t), group, nil)
	if err != nil {
		t.Fatal(err)
	}
	for n := 0; n < 2; {
		rs, err := c.Receive(testContext(t), 10)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Commit(testContext(t), rs...); err != nil {
			t.Fatal(err)
		}
		n += len(rs)
	}
	m := c.(*member)
	m.slow() // what the commits were before
	other := &member{s: s, group: group, views: map[int32]*view{}}
	for range quietLooks + 1 {
		if hs := m.slow(); len(hs) != 0 {
			t.Errorf("%d signs of life without work", len(hs))
		}
		for p := range int32(2) {
			v, err := other.see(testContext(t), p, other.views[p])
			if err != nil {
				t.Fatal(err)
			}
			if v.quiet > 0 {
				t.Errorf("partition %d has been quiet for %d looks", p, v.quiet)
			}
			other.views[p] = v
		}
	}
	if !other.views[0].done || !other.views[1].done {
		t.Error("there is nothing to do, and it is not seen")
	}
	publishTo(t, s, 0, "second")
	if _, err := c.Receive(testContext(t), 1); err != nil {
		t.Fatal(err)
	}
	if hs := m.slow(); len(hs) != 1 || hs[0].partition != 0 {
		t.Errorf("%d signs of life with a record in hand, want one", len(hs))
	}
	v, err := other.see(testContext(t), 0, other.views[0])
	if err != nil {
		t.Fatal(err)
	}
	if v.done {
		t.Error("there is a record, and it is not seen")
	}
}

// A watchedConn tells when the broker first answered on it, and when a member
// joined over it.
type watchedConn struct {
	net.Conn
	mu               sync.Mutex
	answered, joined time.Time
}

func (c *watchedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.mu.Lock()
	defer c.mu.Unlock()
	if n > 0 && c.answered.IsZero() {
		c.answered = time.Now()
	}
	return n, err
}

func (c *watchedConn) Write(b []byte) (int, error) {
	if bytes.Contains(b, []byte("single-active-consumer")) {
		c.mu.Lock()
		if c.joined.IsZero() {
			c.joined = time.Now()
		}
		c.mu.Unlock()
	}
	return c.Conn.Write(b)
}

// times returns how long after the first answer a member joined, if it has.
func (c *watchedConn) times() (time.Duration, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.joined.Sub(c.answered), !c.joined.IsZero()
}

// TestStreamMemberPausesOnceBrokerAnswers: a member that lost its connection
// joins again some time after the broker has answered on the new one, not after
// the loss.
func TestStreamMemberPausesOnceBrokerAnswers(t *testing.T) {
	t.Parallel()
	s := groupStream(t)
	var mu sync.Mutex
	var conns []*watchedConn
	b := testBroker(t, func(o *Options) {
		streamOptions(o)
		o.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := (&net.Dialer{}).DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			w := &watchedConn{Conn: c}
			mu.Lock()
			defer mu.Unlock()
			conns = append(conns, w)
			return w, nil
		}
	})
	members := func() (cs []*watchedConn) {
		mu.Lock()
		defer mu.Unlock()
		for _, c := range conns {
			if _, ok := c.times(); ok {
				cs = append(cs, c)
			}
		}
		return cs
	}
	via, err := b.Stream(testContext(t), s.Name(), nil)
	if err != nil {
		t.Fatal(err)
	}
	c, err := via.Consumer(testContext(t), testName(t, "g"), nil)
	if err != nil {
		t.Fatal(err)
	}
	joined(t, c)
	first := members()
	if err := first[0].Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the member joins again", func() bool { return len(members()) == 2 })
	if after, _ := members()[1].times(); after < rejoinPause {
		t.Errorf("joined again %v after the broker had answered, want %v at least", after, rejoinPause)
	}
	eventually(t, "the member has both partitions", func() bool { return len(c.Partitions()) == 2 })
}
