package broker_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/brokertest"
)

var errBoom = errors.New("boom")

// fill publishes n records over keys to s.
func fill(t testing.TB, s *brokertest.Stream, n, keys int) {
	t.Helper()
	for i := range n {
		if _, err := s.Publish(t.Context(), broker.Record{
			Key: fmt.Appendf(nil, "k%d", i%keys), Value: fmt.Appendf(nil, "%d", i),
		}); err != nil {
			t.Fatal(err)
		}
	}
}

// journal remembers what was handled.
type journal struct {
	mu     sync.Mutex
	values []string
	byKey  map[string][]string
}

func (j *journal) add(r *broker.Record) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.byKey == nil {
		j.byKey = map[string][]string{}
	}
	j.values = append(j.values, string(r.Value))
	j.byKey[string(r.Key)] = append(j.byKey[string(r.Key)], string(r.Value))
}

func (j *journal) len() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.values)
}

func (j *journal) checkOrder(t *testing.T) {
	t.Helper()
	for k, vs := range j.byKey {
		last := -1
		for _, v := range vs {
			var n int
			if _, err := fmt.Sscan(v, &n); err != nil || n <= last {
				t.Errorf("key %s: %s after %d", k, v, last)
			}
			last = n
		}
	}
}

func TestProcessorHandlesAllInKeyOrder(t *testing.T) {
	for _, batch := range []bool{false, true} {
		t.Run(fmt.Sprintf("batch=%v", batch), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := brokertest.NewStream("events", 3)
				fill(t, s, 2000, 17)
				var j journal
				p := &broker.Processor{Stream: s, Group: "g", Logger: quiet, MaxWindow: 64}
				if batch {
					p.MaxWait = time.Millisecond
					p.MaxBatch = 20
					p.BatchHandler = func(_ context.Context, rs []*broker.Record) error {
						for _, r := range rs {
							j.add(r)
						}
						return nil
					}
				} else {
					p.Handler = func(_ context.Context, r *broker.Record) error { j.add(r); return nil }
				}
				stop := start(t, p)
				advance(10 * time.Second)
				if err := stop(); err != nil {
					t.Fatal(err)
				}
				if j.len() != 2000 {
					t.Fatalf("handled %d, stats %+v", j.len(), p.Stats())
				}
				j.checkOrder(t)
				lag, _ := s.Lag(t.Context(), "g")
				for _, l := range lag {
					if l.Lag != 0 {
						t.Errorf("lag %+v", l)
					}
				}
				t.Logf("commits: %d", s.Commits("g"))
			})
		})
	}
}

func TestProcessorUntilNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := brokertest.NewStream("events", 3)
		fill(t, s, 100, 7)
		var j journal
		p := &broker.Processor{Stream: s, Group: "rebuild", Until: broker.Now(), Logger: quiet,
			Handler: func(_ context.Context, r *broker.Record) error {
				j.add(r)
				if j.len() == 1 {
					fill(t, s, 50, 7)
				}
				return nil
			}}
		if err := p.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		if j.len() != 100 {
			t.Errorf("handled %d, want 100", j.len())
		}
	})
}

func TestProcessorSlowKeyStallsNothingElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := brokertest.NewStream("events", 1)
		fill(t, s, 100, 10)
		var j journal
		release := make(chan struct{})
		p := &broker.Processor{Stream: s, Group: "g", Logger: quiet, Concurrency: 2,
			Handler: func(_ context.Context, r *broker.Record) error {
				if string(r.Key) == "k3" {
					<-release
				}
				j.add(r)
				return nil
			}}
		stop := start(t, p)
		advance(5 * time.Second)
		if n := j.len(); n != 90 {
			t.Errorf("handled %d, want 90", n)
		}
		if c := s.Committed("g", 0); c != 3 {
			t.Errorf("committed %d, want 3", c)
		}
		close(release)
		advance(5 * time.Second)
		if c := s.Committed("g", 0); c != 100 {
			t.Errorf("committed %d, want 100", c)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		j.checkOrder(t)
	})
}

func TestProcessorRetriesInPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := brokertest.NewStream("events", 1)
		fill(t, s, 40, 4)
		var j journal
		failures := 0
		p := &broker.Processor{Stream: s, Group: "g", Logger: quiet, Concurrency: 1,
			Handler: func(_ context.Context, r *broker.Record) error {
				if string(r.Value) == "5" && failures < 3 {
					failures++
					if got := r.Info().Attempt; got != failures {
						t.Errorf("attempt %d, want %d", got, failures)
					}
					return errBoom
				}
				j.add(r)
				return nil
			}}
		stop := start(t, p)
		advance(time.Minute)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if j.len() != 40 || s.Committed("g", 0) != 40 {
			t.Errorf("handled %d, committed %d", j.len(), s.Committed("g", 0))
		}
		j.checkOrder(t)
		if i, k := slices.Index(j.values, "5"), slices.Index(j.values, "39"); i < k {
			t.Errorf("5 at %d should come after 39 at %d: its key alone waits", i, k)
		}
	})
}

func TestProcessorRejectWithoutDeadLetterEndsRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := brokertest.NewStream("events", 1)
		fill(t, s, 40, 4)
		p := &broker.Processor{Stream: s, Group: "g", Logger: quiet,
			Handler: func(_ context.Context, r *broker.Record) error {
				if string(r.Value) == "7" {
					return broker.Reject(errBoom)
				}
				return nil
			}}
		err := p.Run(t.Context())
		if !errors.Is(err, errBoom) || !strings.Contains(err.Error(), "events/0/7") {
			t.Errorf("Run: %v", err)
		}
		if c := s.Committed("g", 0); c > 7 {
			t.Errorf("committed %d, past the failure", c)
		}
	})
}

func TestProcessorCommitsInBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := brokertest.NewStream("events", 1)
		p := &broker.Processor{Stream: s, Group: "g", Logger: quiet, Concurrency: 2, Handler: func(context.Context, *broker.Record) error { spend(2 * time.Millisecond); return nil }}
		fill(t, s, 5000, 100)
		stop := start(t, p)
		advance(10 * time.Second)
		if n := s.Commits("g"); s.Committed("g", 0) != 5000 || n > 10 {
			t.Errorf("%d commits for 5 s of work, committed %d", n, s.Committed("g", 0))
		}
		fill(t, s, 1, 1)
		advance(60 * time.Millisecond)
		if c := s.Committed("g", 0); c != 5001 {
			t.Errorf("committed %d: a lone record waits for the interval", c)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}
