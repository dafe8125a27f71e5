package kafka_test

import (
	"errors"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/kafka"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// A join waits for every member of the group. One that closes meanwhile leaves
// all the same, at once, and the group is told.
func TestCloseAmidJoin(t *testing.T) {
	for _, static := range []bool{false, true} {
		name := "dynamic"
		if static {
			name = "static"
		}
		t.Run(name, func(t *testing.T) {
			onBrokers(t, func(t *testing.T, o *kafka.Options) { closeAmidJoin(t, o, static) })
		})
	}
}

func closeAmidJoin(t *testing.T, o *kafka.Options, static bool) {
	ctx := testContext(t)
	b := open(t, o)
	s := declare(t, b, broker.StreamConfig{Partitions: 2})
	publish(t, s, 2)
	admin := kadm.NewClient(b.Client())
	group := func() kadm.DescribedGroup {
		gs, err := admin.DescribeGroups(ctx, s.Name())
		if err != nil {
			t.Fatal(err)
		}
		return gs[s.Name()]
	}

	var f freezer
	t.Cleanup(f.thaw)
	cold := *o
	cold.Dialer, cold.SessionTimeout = f.dial, 40*time.Second
	frozen, err := open(t, &cold).Stream(ctx, s.Name(), nil)
	if err != nil {
		t.Fatal(err)
	}
	receive(t, member(t, frozen, s.Name(), nil), 2)
	f.freeze()

	own := *o
	if static {
		own.InstanceID = "a"
	}
	mine, err := open(t, &own).Stream(ctx, s.Name(), nil)
	if err != nil {
		t.Fatal(err)
	}
	joins := member(t, mine, s.Name(), nil)
	eventually(t, "the join", func() bool { return len(group().Members) == 2 })
	began := time.Now()
	if err := joins.Close(); err != nil {
		t.Errorf("close amid a join: %v", err)
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("close took %v, as long as the join", took)
	}
	if !static { // that one stays for its next start
		eventually(t, "the leaving", func() bool { return len(group().Members) == 1 })
	}
	f.thaw()
}

// A commit that is under way when its member closes says so, not that the
// context has ended, which would be the client's own.
func TestCloseAmidCommit(t *testing.T) {
	for _, tt := range []struct {
		name string
		hold func(*kfake.Cluster) (held chan struct{}, release func())
	}{
		{"no answer", func(c *kfake.Cluster) (chan struct{}, func()) { return holdBack(c, kmsg.OffsetCommit) }},
		{"no connection", func(c *kfake.Cluster) (chan struct{}, func()) {
			held := make(chan struct{})
			var once sync.Once
			c.ControlKey(kmsg.OffsetCommit.Int16(), func(kmsg.Request) (kmsg.Response, error, bool) { //nolint:revive // kfake's order
				c.KeepControl()
				once.Do(func() { close(held) })
				return nil, io.EOF, true
			})
			return held, func() {}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ctx := testContext(t)
			cluster := fake(t)
			s := declare(t, open(t, &kafka.Options{Brokers: cluster.ListenAddrs()}), broker.StreamConfig{Partitions: 1})
			publish(t, s, 1)
			m := member(t, s, name(t), nil)
			r := receive(t, m, 1)[0]
			held, release := tt.hold(cluster)
			defer release()
			committed, closed := make(chan error, 1), make(chan error, 1)
			go func() { committed <- m.Commit(ctx, r) }()
			<-held
			go func() { closed <- m.Close() }()
			if err := <-committed; !errors.Is(err, broker.ErrClosed) {
				t.Errorf("commit amid Close: %v, want ErrClosed", err)
			}
			release()
			if err := <-closed; err != nil {
				t.Error(err)
			}
		})
	}
}
