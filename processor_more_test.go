package broker_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/brokertest"
)

func TestProcessorMisconfigured(t *testing.T) {
	ok := func(context.Context, *broker.Record) error { return nil }
	okBatch := func(context.Context, []*broker.Record) error { return nil }
	for _, tc := range []struct {
		name string
		edit func(p *broker.Processor)
		want string
	}{
		{"no stream", func(p *broker.Processor) { p.Stream = nil }, "Stream is nil"},
		{"no group", func(p *broker.Processor) { p.Group = "" }, "Group is empty"},
		{"no handler", func(p *broker.Processor) { p.Handler = nil }, "Handler is nil"},
		{"both", func(p *broker.Processor) { p.BatchHandler = okBatch }, "both"},
		{"concurrency", func(p *broker.Processor) { p.Concurrency = -1 }, "Concurrency"},
		{"window", func(p *broker.Processor) { p.MaxWindow = -1 }, "MaxWindow"},
		{"window's bytes", func(p *broker.Processor) { p.MaxWindowBytes = -1 }, "MaxWindowBytes"},
		{"batch", func(p *broker.Processor) { p.Handler, p.BatchHandler, p.MaxBatch = nil, okBatch, -1 }, "MaxBatch -1"},
		{"batch over window", func(p *broker.Processor) {
			p.Handler, p.BatchHandler, p.MaxBatch, p.MaxWindow = nil, okBatch, 20, 10
		}, "larger than MaxWindow"},
		{"wait without batch", func(p *broker.Processor) { p.MaxWait = 1 }, "need a BatchHandler"},
		{"attempts", func(p *broker.Processor) { p.Retry.MaxAttempts = 3 }, "without DeadLetter"},
		{"age", func(p *broker.Processor) { p.MaxAge = -1 }, "MaxAge"},
		{"interval", func(p *broker.Processor) { p.CommitInterval = -1 }, "CommitInterval"},
		{"start", func(p *broker.Processor) { p.Start = broker.Now() }, "Start now"},
		{"until", func(p *broker.Processor) { p.Until = broker.Earliest() }, "Until earliest"},
		{"retry", func(p *broker.Processor) { p.Retry.Max = -1 }, "Retry.Max"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := &broker.Processor{Stream: brokertest.NewStream("s", 1), Group: "g", Handler: ok, Logger: quiet}
			tc.edit(p)
			err := p.Run(t.Context())
			e, isError := errors.AsType[*broker.Error](err)
			if !isError || e.Op != "run processor" || !errors.Is(err, broker.ErrInvalid) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Run: %v; want ErrInvalid with %q", err, tc.want)
			}
		})
	}
}

func TestProcessorHandsOverWithoutDuplicates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := brokertest.NewStream("events", 2)
		fill(t, s, 1000, 50)
		var j journal
		p := &broker.Processor{Stream: s, Group: "g", Logger: quiet, Handler: func(_ context.Context, r *broker.Record) error {
			spend(time.Duration(1+len(r.Value)) * time.Millisecond)
			j.add(r)
			return nil
		}}
		stop := start(t, p)
		for range 5 {
			spend(100 * time.Millisecond)
			s.Revoke(t.Context(), "g", 0)
			synctest.Wait()
			s.Assign("g", 0)
		}
		advance(time.Minute)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if j.len() != 1000 {
			t.Errorf("handled %d of 1000: the hand-overs lost or repeated some", j.len())
		}
		j.checkOrder(t)
		if n := p.Stats().Revoked; n != 5 {
			t.Errorf("%d revocations", n)
		}
	})
}

// A commit that takes long, since the group is in a rebalance, is waited for
// when its partition is revoked: otherwise it would come too late.
func TestProcessorHandsOverBehindACommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := brokertest.NewStream("events", 1)
		fill(t, s, 10, 10)
		began, release := make(chan struct{}), make(chan struct{})
		first := sync.OnceFunc(func() {
			close(began)
			<-release
		})
		s.CommitErr = func([]*broker.Record) error {
			first()
			return nil
		}
		p := &broker.Processor{Stream: s, Group: "g", Logger: quiet, Handler: func(context.Context, *broker.Record) error { return nil }}
		stop := start(t, p)
		<-began
		revoked := make(chan struct{})
		go func() {
			defer close(revoked)
			s.Revoke(t.Context(), "g", 0)
		}()
		synctest.Wait()
		select {
		case <-revoked:
			t.Error("the partition was handed over before its commit was stored")
		default:
		}
		close(release)
		<-revoked
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if n := s.Committed("g", 0); n != 10 {
			t.Errorf("committed %d of 10", n)
		}
	})
}

// A lateStream does something after a member has handed over and before it
// loses its hold.
type lateStream struct {
	broker.Stream
	late func()
}

func (s lateStream) Consumer(ctx context.Context, group string, opts *broker.GroupOptions) (broker.GroupConsumer, error) {
	o := *opts
	o.OnRevoked = func(ctx context.Context, ids []int32) {
		opts.OnRevoked(ctx, ids)
		s.late()
	}
	return s.Stream.Consumer(ctx, group, &o)
}

// Records that were received and not looked at when their partition was
// revoked, the first ones of it, belong to the next member.
func TestProcessorHandsOverWhatItHasJustReceived(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := brokertest.NewStream("events", 1)
		fill(t, s, 10, 10)
		began, release := make(chan struct{}), make(chan struct{})
		first := sync.OnceFunc(func() {
			close(began)
			<-release
		})
		var j journal
		late := lateStream{s, func() {
			close(release)
			synctest.Wait()
		}}
		p := &broker.Processor{
			Stream: late, Group: "g", Logger: quiet,
			OrderBy: func(r *broker.Record) string { first(); return string(r.Key) },
			Handler: func(_ context.Context, r *broker.Record) error { j.add(r); return nil },
		}
		stop := start(t, p)
		<-began
		s.Revoke(t.Context(), "g", 0)
		synctest.Wait()
		if n := j.len(); n != 0 {
			t.Errorf("%d records were handled after the hand-over", n)
		}
		s.Assign("g", 0)
		advance(time.Minute)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if n, c := j.len(), s.Committed("g", 0); n != 10 || c != 10 {
			t.Errorf("handled %d and committed %d of 10", n, c)
		}
	})
}

func TestProcessorFencesLostPartitions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := brokertest.NewStream("events", 1)
		fill(t, s, 10, 1)
		var cause atomic.Value
		var calls atomic.Int64
		var seen watch
		p := &broker.Processor{Stream: s, Group: "g", Logger: quiet, Observe: seen.observe, Handler: func(ctx context.Context, _ *broker.Record) error {
			if calls.Add(1) == 1 {
				<-ctx.Done()
				cause.Store(context.Cause(ctx))
			}
			return nil // done, but too late
		}}
		stop := start(t, p)
		advance(time.Second)
		s.Lose("g", 0)
		advance(time.Second)
		if c, _ := cause.Load().(error); !errors.Is(c, broker.ErrFenced) {
			t.Errorf("cause %v", c)
		}
		if c := s.Committed("g", 0); c != 0 {
			t.Errorf("committed %d for a lost partition", c)
		}
		if len(seen.of(broker.ObservedLost)) != 1 || len(p.Stats().Partitions) != 0 {
			t.Errorf("stats %+v", p.Stats())
		}
		s.Assign("g", 0)
		advance(3 * time.Second)
		if c := s.Committed("g", 0); c != 10 {
			t.Errorf("committed %d after assigned anew", c)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestProcessorFencedCommitDropsThePartition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := brokertest.NewStream("events", 2)
		fill(t, s, 20, 20)
		s.CommitErr = func(rs []*broker.Record) error {
			for _, r := range rs {
				if r.Partition == 0 {
					return broker.ErrFenced
				}
			}
			return nil
		}
		var seen watch
		p := &broker.Processor{Stream: s, Group: "g", Logger: quiet, Observe: seen.observe, Handler: func(context.Context, *broker.Record) error { return nil }}
		stop := start(t, p)
		advance(5 * time.Second)
		if got := seen.of(broker.ObservedLost); len(got) != 1 || got[0].Partition != 0 {
			t.Errorf("lost: %+v", got)
		}
		if parts := p.Stats().Partitions; len(parts) != 1 || parts[0].Partition != 1 || !parts[0].HasCommitted {
			t.Errorf("partitions %+v", parts)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestProcessorWindowAndPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := brokertest.NewStream("events", 2)
		for i := range 400 { // the even ones to partition 0
			if _, err := s.Publish(t.Context(), broker.Record{Key: fmt.Appendf(nil, "k%d", i), Value: []byte{1}, Pin: true, Partition: int32(i % 2)}); err != nil {
				t.Fatal(err)
			}
		}
		release := make(chan struct{})
		var other atomic.Int64
		p := &broker.Processor{Stream: s, Group: "g", Logger: quiet, MaxWindow: 40, Handler: func(_ context.Context, r *broker.Record) error {
			if r.Partition == 0 {
				if string(r.Key) == "k0" {
					<-release
				}
				return nil
			}
			other.Add(1)
			return nil
		}}
		stop := start(t, p)
		advance(10 * time.Second)
		st := p.Stats().Partitions
		if len(st) != 2 || st[0].Window > 40 || st[0].Window < 20 || !st[0].Paused || st[0].HasCommitted {
			t.Errorf("partition 0: %+v", st[0])
		}
		if age := st[0].OldestAge; age != 10*time.Second {
			t.Errorf("oldest age %v", age)
		}
		if other.Load() != 200 || s.Committed("g", 1) != 200 {
			t.Errorf("partition 1 stalled: %d handled, %d committed", other.Load(), s.Committed("g", 1))
		}
		close(release)
		advance(10 * time.Second)
		if c := s.Committed("g", 0); c != 200 {
			t.Errorf("partition 0: committed %d", c)
		}
		p.Pause()
		synctest.Wait()
		fill(t, s, 10, 10)
		advance(time.Second)
		if n := p.Stats().Received; n != 400 {
			t.Errorf("received %d while paused", n)
		}
		p.Resume()
		advance(time.Second)
		if st := p.Stats(); st.Committed != 410 || p.Ready() != nil {
			t.Errorf("stats %+v", st)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestProcessorMaxAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := brokertest.NewStream("events", 1)
		fill(t, s, 1, 1)
		release := make(chan struct{})
		var n atomic.Int64
		p := &broker.Processor{Stream: s, Group: "g", Logger: quiet, MaxAge: 10 * time.Second, Handler: func(_ context.Context, r *broker.Record) error {
			if string(r.Key) == "k0" {
				<-release
			}
			n.Add(1)
			return nil
		}}
		stop := start(t, p)
		publish := func() {
			if _, err := s.Publish(t.Context(), broker.Record{Key: []byte("other")}); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		publish()
		advance(11 * time.Second)
		publish() // finds the window too old, and pauses
		publish()
		advance(time.Second)
		if n.Load() != 2 || !p.Stats().Partitions[0].Paused {
			t.Errorf("handled %d, stats %+v", n.Load(), p.Stats())
		}
		close(release)
		advance(2 * time.Second)
		if n.Load() != 4 || s.Committed("g", 0) != 4 {
			t.Errorf("handled %d, committed %d", n.Load(), s.Committed("g", 0))
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestProcessorDeadLetters(t *testing.T) {
	for _, batch := range []bool{false, true} {
		t.Run(fmt.Sprintf("batch=%v", batch), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := brokertest.NewStream("events", 1)
				fill(t, s, 30, 3)
				dead := brokertest.NewQueue("dead")
				toDead := broker.DeadLetterTo(dead)
				tries, attempts := 0, 0
				one := func(r *broker.Record) error {
					switch string(r.Value) {
					case "4":
						return broker.Reject(errBoom)
					case "11":
						attempts++
						return errBoom
					}
					return nil
				}
				p := &broker.Processor{
					Stream: s, Group: "g", Logger: quiet, Concurrency: 1, Retry: broker.RetryPolicy{MaxAttempts: 3, Max: time.Second},
					DeadLetter: func(ctx context.Context, r *broker.Record, cause error) error {
						if tries++; tries < 4 {
							return broker.ErrUnavailable
						}
						return toDead(ctx, r, cause)
					},
				}
				if batch {
					p.BatchHandler = func(_ context.Context, rs []*broker.Record) error {
						errs := make([]error, len(rs))
						for i, r := range rs {
							errs[i] = one(r)
						}
						return broker.NewBatchError(errs)
					}
				} else {
					p.Handler = func(_ context.Context, r *broker.Record) error { return one(r) }
				}
				stop := start(t, p)
				advance(time.Minute)
				if err := stop(); err != nil {
					t.Fatal(err)
				}
				if attempts != 3 || s.Committed("g", 0) != 30 || p.Stats().DeadLettered != 2 {
					t.Errorf("%d attempts, committed %d, stats %+v", attempts, s.Committed("g", 0), p.Stats())
				}
				got := dead.Waiting()
				if len(got) != 2 {
					t.Fatalf("dead letters: %+v", got)
				}
				for _, m := range got {
					why, ok := broker.DeadLetterOf(&m)
					if !ok || why.Reason != "boom" || why.Queue != "events" || m.Headers.Get(broker.HeaderSourceOffset) != string(m.Body) || m.ID != "events/0/"+string(m.Body) {
						t.Errorf("dead letter %+v", m)
					}
				}
			})
		})
	}
}

func TestProcessorBatchFailureKeepsKeyOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := brokertest.NewStream("events", 1)
		fill(t, s, 40, 2)
		failed := false
		var runs []string
		p := &broker.Processor{
			Stream: s, Group: "g", Logger: quiet, Concurrency: 1, MaxBatch: 40,
			BatchHandler: func(_ context.Context, rs []*broker.Record) error {
				errs := make([]error, len(rs))
				for i, r := range rs {
					if string(r.Key) == "k0" {
						runs = append(runs, string(r.Value))
					}
					if string(r.Value) == "6" && !failed {
						failed, errs[i] = true, errBoom
					}
				}
				return broker.NewBatchError(errs)
			},
		}
		stop := start(t, p)
		advance(5 * time.Second)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		got := strings.Join(runs, " ")
		want := "0 2 4 6 8 10 12 14 16 18 20 22 24 26 28 30 32 34 36 38 6 8 10 12 14 16 18 20 22 24 26 28 30 32 34 36 38"
		if got != want || s.Committed("g", 0) != 40 {
			t.Errorf("key k0 was handled as\n%s, want\n%s\ncommitted %d", got, want, s.Committed("g", 0))
		}
	})
}

func TestProcessorCommitErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := brokertest.NewStream("events", 1)
		fill(t, s, 10, 3)
		var n atomic.Int64
		s.CommitErr = func([]*broker.Record) error {
			if n.Add(1) < 4 {
				return &broker.Error{Op: "commit", Temporary: true, Err: broker.ErrUnavailable}
			}
			return nil
		}
		p := &broker.Processor{Stream: s, Group: "g", Logger: quiet, Handler: func(context.Context, *broker.Record) error { return nil }}
		stop := start(t, p)
		advance(10 * time.Second)
		if st := p.Stats(); s.Committed("g", 0) != 10 || st.CommitErrors != 3 || st.Committed != 10 || st.Partitions[0].Window != 0 {
			t.Errorf("committed %d, stats %+v", s.Committed("g", 0), st)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		s := brokertest.NewStream("events", 1)
		fill(t, s, 10, 3)
		s.CommitErr = func([]*broker.Record) error { return broker.ErrUnauthorized }
		p := &broker.Processor{Stream: s, Group: "g", Logger: quiet, Handler: func(context.Context, *broker.Record) error { return nil }}
		if err := p.Run(t.Context()); !errors.Is(err, broker.ErrUnauthorized) {
			t.Errorf("Run: %v", err)
		}
	})
}

func TestProcessorDrains(t *testing.T) {
	for _, tc := range []struct {
		name    string
		handle  func(ctx context.Context, release chan struct{}) error
		took    time.Duration
		want    int64
		wantErr error
	}{
		{"a handler that ends", func(context.Context, chan struct{}) error { spend(10 * time.Second); return nil }, 9 * time.Second, 4, nil},
		{"a handler that is told", func(ctx context.Context, _ chan struct{}) error { <-ctx.Done(); return ctx.Err() }, 20 * time.Second, 3, nil},
		{"a handler that does not listen", func(_ context.Context, release chan struct{}) error { <-release; return nil }, 25 * time.Second, 3, broker.ErrShutdown},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := brokertest.NewStream("events", 1)
				fill(t, s, 100, 100)
				release := make(chan struct{})
				p := &broker.Processor{Stream: s, Group: "g", Logger: quiet, Concurrency: 1, DrainTimeout: 20 * time.Second, Handler: func(ctx context.Context, r *broker.Record) error {
					if string(r.Value) == "3" {
						return tc.handle(ctx, release)
					}
					return nil
				}}
				stop := start(t, p)
				advance(time.Second)
				began := time.Now()
				if err := stop(); !errors.Is(err, tc.wantErr) {
					t.Errorf("Run: %v, want %v", err, tc.wantErr)
				}
				if took := time.Since(began); took != tc.took {
					t.Errorf("drained in %v, want %v", took, tc.took)
				}
				if c := s.Committed("g", 0); c != tc.want {
					t.Errorf("committed %d, want %d", c, tc.want)
				}
				close(release)
				synctest.Wait()
			})
		})
	}
}

func TestProcessorReceiveErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := brokertest.NewStream("events", 1)
		fill(t, s, 5, 1)
		var fail atomic.Bool
		fail.Store(true)
		s.ReceiveErr = func() error {
			if fail.Load() {
				return broker.ErrUnavailable
			}
			return nil
		}
		p := &broker.Processor{Stream: s, Group: "g", Logger: quiet, Handler: func(context.Context, *broker.Record) error { return nil }}
		stop := start(t, p)
		advance(30 * time.Second)
		if err := p.Ready(); !errors.Is(err, broker.ErrUnavailable) || p.Stats().ReceiveErrors > 20 {
			t.Errorf("Ready: %v, stats %+v", err, p.Stats())
		}
		fail.Store(false)
		advance(30 * time.Second)
		if p.Ready() != nil || s.Committed("g", 0) != 5 {
			t.Errorf("Ready: %v, committed %d", p.Ready(), s.Committed("g", 0))
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
	s := brokertest.NewStream("events", 1)
	s.ReceiveErr = func() error { return broker.ErrUnauthorized }
	p := &broker.Processor{Stream: s, Group: "g", Logger: quiet, Handler: func(context.Context, *broker.Record) error { return nil }}
	if err := p.Run(t.Context()); !errors.Is(err, broker.ErrUnauthorized) {
		t.Errorf("Run: %v", err)
	}
}

func TestProcessorSnoozeAndPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := brokertest.NewStream("events", 1)
		fill(t, s, 3, 3)
		var mu sync.Mutex
		attempts := map[string][]int{}
		p := &broker.Processor{Stream: s, Group: "g", Logger: quiet, Handler: func(_ context.Context, r *broker.Record) error {
			mu.Lock()
			defer mu.Unlock()
			v := string(r.Value)
			attempts[v] = append(attempts[v], r.Info().Attempt)
			if len(attempts[v]) > 2 {
				return nil
			}
			switch v {
			case "0":
				return broker.Snooze(time.Second)
			case "1":
				panic("oops")
			}
			return broker.RetryAfter(time.Second, errBoom)
		}}
		stop := start(t, p)
		advance(20 * time.Second)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(attempts); got != "map[0:[1 1 1] 1:[1 2 3] 2:[1 2 3]]" {
			t.Errorf("attempts %s", got)
		}
		if p.Stats().Panics != 2 || s.Committed("g", 0) != 3 {
			t.Errorf("stats %+v", p.Stats())
		}
	})
}
