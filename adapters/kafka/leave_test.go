package kafka_test

import (
	"testing"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/kafka"
	"github.com/twmb/franz-go/pkg/kadm"
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
