package kafka_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/kafka"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Members are processes. Three are killed amid their work, one is stopped for
// longer than its session and goes on: every record is handled, and twice only
// what a victim had handled within its window.
func TestMembersKilledAndStopped(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for sessions of 6 s to end: run it without -short")
	}
	onProtocols(t, killAndStop)
}

// onProtocols runs a test with either group protocol on the real broker.
func onProtocols(t *testing.T, test func(t *testing.T, o *kafka.Options)) {
	o := realOptions(t)
	t.Parallel()
	o.SessionTimeout, o.HeartbeatInterval = session, 500*time.Millisecond
	newer := *o
	newer.ServerSideGroups = true
	t.Run("classic", func(t *testing.T) {
		t.Parallel()
		test(t, o)
	})
	t.Run("KIP-848", func(t *testing.T) {
		t.Parallel()
		test(t, &newer)
	})
}

func killAndStop(t *testing.T, o *kafka.Options) {
	const partitions, window, each = 4, 32, 400
	s := declare(t, open(t, o), broker.StreamConfig{Partitions: partitions})
	order := orders{Brokers: o.Brokers, ServerSide: o.ServerSideGroups, Stream: s.Name(), Group: s.Name(), Window: window, Work: 2 * time.Millisecond}
	members := []*process{startChild(t, order), startChild(t, order), startChild(t, order)}
	var all []*process
	victims := map[*process]bool{}
	all = append(all, members...)
	sent := 0
	send := func() {
		rs := make([]broker.Record, each)
		for i := range rs {
			rs[i] = broker.Record{Key: fmt.Appendf(nil, "k%d", i%53), Value: fmt.Appendf(nil, "v%d", sent+i)}
		}
		sent += each
		if _, err := s.PublishBatch(testContext(t), rs); err != nil {
			t.Fatal(err)
		}
	}
	count := func() int {
		seen := map[string]bool{}
		for _, p := range all {
			for _, v := range p.done() {
				seen[v] = true
			}
		}
		return len(seen)
	}
	send()
	eventually(t, "the first records are handled", func() bool { return count() > 0 })
	for i, hit := range []syscall.Signal{syscall.SIGKILL, syscall.SIGSTOP, syscall.SIGKILL, syscall.SIGKILL} {
		before := make([]int, len(members))
		for j, p := range members {
			before[j] = len(p.done())
		}
		send()
		victim := -1
		eventually(t, "a member is amid its work", func() bool {
			for j, p := range members {
				if len(p.done()) > before[j] {
					victim = j
				}
			}
			return victim >= 0
		})
		v := members[victim]
		victims[v] = true
		v.signal(t, hit)
		members[victim] = startChild(t, order)
		all = append(all, members[victim])
		eventually(t, fmt.Sprintf("everything is handled after hit %d", i), func() bool { return count() == sent })
		if hit == syscall.SIGSTOP { // its partitions went to others; now it goes on
			v.signal(t, syscall.SIGCONT)
			members = append(members, v)
		}
	}
	send()
	eventually(t, "everything is handled in the end", func() bool { return count() == sent })
	for _, p := range members {
		p.stop(t)
	}
	lag, err := s.Lag(testContext(t), s.Name())
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range lag {
		if l.Lag != 0 {
			t.Errorf("partition %d: lag %d after every member has ended in good order", l.Partition, l.Lag)
		}
	}
	again := map[*process]int{} // what a victim had handled and others handled too
	by := map[string][]*process{}
	for _, p := range all {
		for _, v := range p.done() {
			by[v] = append(by[v], p)
		}
	}
	for v, ps := range by {
		innocent := 0
		for _, p := range ps {
			switch {
			case !victims[p]:
				innocent++
			case len(ps) > 1:
				again[p]++
			}
		}
		if innocent > 1 {
			t.Errorf("%s was handled by %d members that nobody harmed", v, innocent)
		}
	}
	for p, n := range again {
		if n > partitions*window {
			t.Errorf("%d records of the victim %d were handled again, its windows hold %d", n, p.cmd.Process.Pid, partitions*window)
		}
	}
	if len(by) != sent {
		t.Errorf("%d of %d were handled", len(by), sent)
	}
}

// A member's process is stopped for longer than its session. When it goes on,
// its commit is refused and moves nothing back.
func TestStoppedProcessIsFenced(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for a session of 6 s to end: run it without -short")
	}
	onProtocols(t, stopAndFence)
}

func stopAndFence(t *testing.T, o *kafka.Options) {
	ctx := testContext(t)
	s := declare(t, open(t, o), broker.StreamConfig{Partitions: 1})
	const n = 40
	publish(t, s, n)
	zombie := startChild(t, orders{Brokers: o.Brokers, ServerSide: o.ServerSideGroups, Stream: s.Name(), Group: s.Name(), ByHand: true})
	zombie.says(t, "half", 1)
	had := zombie.done()
	zombie.signal(t, syscall.SIGSTOP)
	other := member(t, s, s.Name(), nil)
	rest := receive(t, other, n-len(had)/2) // behind what was committed
	if want := fmt.Sprintf("v%d", len(had)/2); string(rest[0].Value) != want {
		t.Errorf("the group resumes at %s, want %s, which follows the commit", rest[0].Value, want)
	}
	if err := other.Commit(ctx, rest...); err != nil {
		t.Fatal(err)
	}
	zombie.signal(t, syscall.SIGCONT)
	if _, err := fmt.Fprintln(zombie.in, "commit"); err != nil {
		t.Fatal(err)
	}
	if line := zombie.says(t, "commit", 1); !strings.Contains(line, "fenced=true") {
		t.Errorf("the zombie's commit: %s, want ErrFenced", line)
	}
	lag, err := s.Lag(ctx, s.Name())
	if err != nil {
		t.Fatal(err)
	}
	if lag[0].Lag != 0 {
		t.Errorf("lag %d after everything was committed", lag[0].Lag)
	}
}

// Thirty members come and go while records are published: each is handled, and
// only once, since the members leave in good order.
func TestStormOfJoinsAndLeaves(t *testing.T) {
	onProtocols(t, storm)
}

func storm(t *testing.T, o *kafka.Options) {
	b := open(t, o)
	s := declare(t, b, broker.StreamConfig{Partitions: 6})
	ctx := testContext(t)
	var mu sync.Mutex
	handled := map[string]int{}
	run := func() (stop func()) {
		ctx, cancel := context.WithCancel(ctx)
		done := make(chan error, 1)
		p := &broker.Processor{Stream: s, Group: s.Name(), MaxWindow: 64, Concurrency: 2, Handler: func(_ context.Context, r *broker.Record) error {
			mu.Lock()
			defer mu.Unlock()
			handled[string(r.Value)]++
			return nil
		}}
		go func() { done <- p.Run(ctx) }()
		return func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
	count := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(handled)
	}
	sent := 0
	stops := []func(){run()}
	for i := range 30 {
		rs := make([]broker.Record, 60)
		for j := range rs {
			rs[j] = broker.Record{Key: fmt.Appendf(nil, "k%d", j), Value: fmt.Appendf(nil, "v%d", sent+j)}
		}
		sent += len(rs)
		if _, err := s.PublishBatch(ctx, rs); err != nil {
			t.Fatal(err)
		}
		stops = append(stops, run())
		if i%3 != 0 { // one goes while the next comes
			stops[0]()
			stops = stops[1:]
		}
		if i%5 == 4 {
			eventually(t, "the group keeps up", func() bool { return count() >= sent-len(rs) })
		}
	}
	eventually(t, "everything is handled", func() bool { return count() == sent })
	var all sync.WaitGroup
	for _, stop := range stops {
		all.Go(stop)
	}
	all.Wait()
	mu.Lock()
	defer mu.Unlock()
	twice := 0
	for _, n := range handled {
		if n > 1 {
			twice++
		}
	}
	if twice > 0 {
		t.Errorf("%d of %d records were handled more than once", twice, sent)
	}
	lag, err := s.Lag(ctx, s.Name())
	if err != nil && !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	for _, l := range lag {
		if l.Lag != 0 {
			t.Errorf("partition %d: lag %d in the end", l.Partition, l.Lag)
		}
	}
}

// A join that the broker refuses for the moment is tried again, and no error.
func TestJoinRefusedForTheMoment(t *testing.T) {
	cluster := fake(t)
	b := open(t, &kafka.Options{Brokers: cluster.ListenAddrs()})
	s := declare(t, b, broker.StreamConfig{Partitions: 1})
	publish(t, s, 3)
	var refused atomic.Bool
	cluster.ControlKey(kmsg.JoinGroup.Int16(), func(req kmsg.Request) (kmsg.Response, error, bool) { //nolint:revive // kfake's order
		refused.Store(true)
		resp, ok := req.ResponseKind().(*kmsg.JoinGroupResponse)
		if !ok {
			return nil, fmt.Errorf("answer of type %T to a join", resp), true
		}
		resp.ErrorCode = kerr.RebalanceInProgress.Code
		return resp, nil, true
	})
	receive(t, member(t, s, s.Name(), nil), 3)
	if !refused.Load() {
		t.Error("no join was refused: this test shows nothing")
	}
}
