package memory

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/queuestream/broker"
)

// fill appends n records to each partition.
func fill(t *testing.T, s *Stream, n int) {
	t.Helper()
	for p := range s.s.parts {
		for i := range n {
			appendTo(t, s, broker.Record{Pin: true, Partition: int32(p), Value: fmt.Appendf(nil, "%d.%d", p, i)})
		}
	}
}

func TestRebalance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		b := open(t, nil)
		s := declareStream(t, b, broker.StreamConfig{Partitions: 4})
		fill(t, s, 2)
		var mu sync.Mutex
		var log []string
		note := func(format string, args ...any) {
			mu.Lock()
			defer mu.Unlock()
			log = append(log, fmt.Sprintf(format, args...))
		}
		events := func() []string {
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			l := log
			log = nil
			return l
		}
		release := make(chan struct{})
		var a, b2 *GroupConsumer
		var held []*broker.Record
		opts := func(name string) *broker.GroupOptions {
			return &broker.GroupOptions{
				OnAssigned: func(ps []int32) { note("%s+%v", name, ps) },
				OnRevoked: func(ctx context.Context, ps []int32) {
					note("%s-%v", name, ps)
					if name == "a" {
						<-release
						held := slices.DeleteFunc(slices.Clone(held), func(r *broker.Record) bool { return r.Assignment().Ended() })
						if err := a.Commit(ctx, held...); err != nil {
							t.Error(err)
						}
					}
				},
				OnLost: func(ps []int32) { note("%s lost %v", name, ps) },
			}
		}
		a = join(t, s, "g", opts("a"))
		held = take(t, a, 8)
		if got := events(); !slices.Equal(got, []string{"a+[0 1 2 3]"}) {
			t.Fatal(got)
		}
		b2 = join(t, s, "g", opts("b"))
		if got := events(); !slices.Equal(got, []string{"a-[2 3]"}) {
			t.Fatal(got) // b waits for the hand-over
		}
		if ps := b2.Partitions(); len(ps) != 0 {
			t.Fatal(ps)
		}
		if ps := a.Partitions(); !slices.Equal(ps, []int32{0, 1}) {
			t.Fatal(ps)
		}
		nothing(t, b2)
		close(release)
		if got := events(); !slices.Equal(got, []string{"b+[2 3]"}) {
			t.Fatal(got)
		}
		nothing(t, b2) // all is committed
		for _, r := range held {
			if fenced := r.Partition >= 2; r.Assignment().Ended() != fenced {
				t.Fatalf("partition %d: ended %v", r.Partition, !fenced)
			}
		}
		wantErr(t, a.Commit(ctx, held...), broker.ErrFenced)
		wantErr(t, a.Seek(ctx, 2, broker.Earliest()), broker.ErrFenced)
		// Idle members: more than partitions.
		var idle []*GroupConsumer
		for range 4 {
			idle = append(idle, join(t, s, "g", nil))
			synctest.Wait()
		}
		n := 0
		for _, m := range append(idle, a, b2) {
			n += len(m.Partitions())
			if len(m.Partitions()) > 1 {
				t.Fatalf("%v", m.Partitions())
			}
		}
		if n != 4 {
			t.Fatalf("%d assigned", n)
		}
		for _, m := range idle {
			check(t, m.Close())
			check(t, m.Close())
		}
		check(t, b2.Close())
		synctest.Wait()
		if ps := a.Partitions(); len(ps) != 4 {
			t.Fatal(ps)
		}
	})
}

func TestRebalanceTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		b := open(t, &Options{RebalanceTimeout: 10 * time.Second})
		s := declareStream(t, b, broker.StreamConfig{Partitions: 2})
		fill(t, s, 1)
		var commit error
		lost := make(chan []int32, 1)
		var a *GroupConsumer
		var held []*broker.Record
		a = join(t, s, "g", &broker.GroupOptions{
			OnRevoked: func(ctx context.Context, _ []int32) {
				<-ctx.Done()
				<-time.After(time.Second)
				commit = a.Commit(context.WithoutCancel(ctx), held...)
			},
			OnLost: func(ps []int32) { lost <- ps },
		})
		held = take(t, a, 2)
		start := time.Now()
		m := join(t, s, "g", nil)
		if got := values(take(t, m, 1)); got != "1.0" {
			t.Fatal(got)
		}
		if d := time.Since(start); d != 10*time.Second {
			t.Fatalf("handed over after %v", d)
		}
		if ps := <-lost; !slices.Equal(ps, []int32{1}) {
			t.Fatal(ps)
		}
		wantErr(t, commit, broker.ErrFenced)
		ls, err := s.Lag(ctx, "g")
		check(t, err)
		if !ls[0].HasCommit || ls[1].HasCommit {
			t.Fatalf("%+v", ls)
		}
	})
}

func TestZombieIsFenced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		b := open(t, &Options{SessionTimeout: 10 * time.Second})
		s := declareStream(t, b, broker.StreamConfig{})
		fill(t, s, 3)
		lost := 0
		zombie := join(t, s, "g", &broker.GroupOptions{OnLost: func([]int32) { lost++ }})
		rs := take(t, zombie, 2)
		check(t, zombie.Commit(ctx, rs[0]))
		m := join(t, s, "g", nil)
		start := time.Now()
		if got := values(take(t, m, 2)); got != "0.1 0.2" {
			t.Fatal(got)
		}
		if d := time.Since(start); d != 10*time.Second {
			t.Fatalf("evicted after %v", d)
		}
		wantErr(t, zombie.Commit(ctx, rs[1]), broker.ErrFenced)
		synctest.Wait()
		if lost != 1 || !rs[1].Assignment().Ended() {
			t.Fatal("OnLost did not run")
		}
		check(t, m.Close())
		if got := values(take(t, zombie, 2)); got != "0.1 0.2" { // joins again
			t.Fatal(got)
		}
		// A member that waits in Receive is alive.
		got := make(chan string)
		go func() { got <- values(take(t, zombie, 1)) }()
		<-time.After(time.Minute)
		appendTo(t, s, rec("", "x"))
		if v := <-got; v != "x" {
			t.Fatal(v)
		}
	})
}

func TestDisconnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		b := open(t, nil)
		q := declare(t, b, "q", broker.QueueConfig{})
		send(t, q, body("a"))
		c := consume(t, q, nil)
		d := one(t, c, "a")
		s := declareStream(t, b, broker.StreamConfig{})
		fill(t, s, 1)
		m := join(t, s, "g", nil)
		rs := take(t, m, 1)
		tr, err := b.Transactor(ctx, "t")
		check(t, err)
		tx, err := tr.Begin(ctx)
		check(t, err)
		b.Disconnect()
		wantErr(t, d.Ack(ctx), broker.ErrLeaseLost)
		wantErr(t, m.Commit(ctx, rs...), broker.ErrFenced)
		wantErr(t, tx.Commit(ctx), broker.ErrTxAborted)
		check(t, one(t, c, "a").Ack(ctx))
		check(t, m.Commit(ctx, take(t, m, 1)...))
	})
}

// TestRebalanceStorm has members come and go while all of them work: no
// partition has two owners, and what is committed was processed.
func TestRebalanceStorm(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			ctx := t.Context()
			random := rand.New(rand.NewPCG(seed, 2))
			b := open(t, nil)
			s := declareStream(t, b, broker.StreamConfig{Partitions: 5})
			const each = 40
			fill(t, s, each)
			var mu sync.Mutex
			owner := map[int32]*GroupConsumer{}
			closed := map[*GroupConsumer]bool{}
			processed := map[string]int{}
			var members []*GroupConsumer
			var wg sync.WaitGroup
			start := func() {
				var m *GroupConsumer
				ready := make(chan struct{})
				m = join(t, s, "g", &broker.GroupOptions{
					OnAssigned: func(ps []int32) {
						<-ready
						mu.Lock()
						defer mu.Unlock()
						for _, p := range ps {
							if closed[m] {
								continue // Close does not wait for this
							}
							if owner[p] != nil {
								t.Errorf("partition %d has an owner", p)
							}
							owner[p] = m
						}
					},
					OnRevoked: func(_ context.Context, ps []int32) {
						<-time.After(time.Second)
						mu.Lock()
						defer mu.Unlock()
						for _, p := range ps {
							if closed[m] {
								continue
							}
							if owner[p] != m {
								t.Errorf("partition %d: not the owner", p)
							}
							delete(owner, p)
						}
					},
				})
				close(ready)
				members = append(members, m)
				wg.Add(1)
				go func() {
					defer wg.Done()
					for {
						rs, err := m.Receive(ctx, 3)
						if err != nil {
							return
						}
						<-time.After(100 * time.Millisecond)
						mu.Lock()
						for _, r := range rs {
							processed[string(r.Value)]++
						}
						mu.Unlock()
						_ = m.Commit(ctx, rs...) // may be fenced
					}
				}()
			}
			leave := func(m *GroupConsumer) {
				mu.Lock() // nobody is assigned what it had before this is noted
				defer mu.Unlock()
				closed[m] = true
				check(t, m.Close())
				for p, o := range owner {
					if o == m {
						delete(owner, p)
					}
				}
			}
			start()
			for range 30 {
				<-time.After(time.Duration(random.IntN(1500)) * time.Millisecond)
				if len(members) > 1 && random.IntN(2) == 0 {
					i := random.IntN(len(members))
					leave(members[i])
					members = slices.Delete(members, i, i+1)
					continue
				}
				start()
			}
			<-time.After(2 * time.Minute)
			for _, m := range members {
				leave(m)
			}
			wg.Wait()
			if len(processed) != 5*each {
				t.Fatalf("processed %d", len(processed))
			}
			ls, err := s.Lag(ctx, "g")
			check(t, err)
			for _, l := range ls {
				if l.Lag != 0 {
					t.Fatalf("%+v", l)
				}
			}
		})
	}
}

func TestGroupsAreIndependent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, nil)
		s := declareStream(t, b, broker.StreamConfig{})
		fill(t, s, 2)
		m1, m2 := join(t, s, "g1", nil), join(t, s, "g2", nil)
		check(t, m1.Commit(t.Context(), take(t, m1, 2)...))
		wantErr(t, m2.Commit(t.Context(), take(t, join(t, s, "g3", nil), 1)...), broker.ErrInvalid)
		if got := values(take(t, m2, 2)); got != "0.0 0.1" {
			t.Fatal(got)
		}
	})
}
