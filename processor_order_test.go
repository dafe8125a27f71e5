package broker_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/brokertest"
)

// OrderBy orders records across keys: those of one group run one at a time and
// in order, one by one and in batches, also when some fail; those without a
// group run freely, and where OrderBy panics the key orders.
func TestProcessorOrderBy(t *testing.T) {
	const groups, free, n = 4, 4, 600 // the numbers modulo groups+free+1: grouped, free, panicking
	for _, batch := range []bool{false, true} {
		t.Run(fmt.Sprintf("batch=%v", batch), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := brokertest.NewStream("events", 1)
				for i := range n {
					key := fmt.Sprint("own-", i)
					if i%(groups+free+1) >= groups {
						key = "shared"
					}
					if _, err := s.Publish(t.Context(), broker.Record{Key: []byte(key), Value: []byte(strconv.Itoa(i))}); err != nil {
						t.Fatal(err)
					}
				}
				var mu sync.Mutex
				rnd := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // a fixed seed
				last, running := map[int]int{}, map[int]int{}
				mostFree := 0
				one := func(r *broker.Record) error {
					i, _ := strconv.Atoi(string(r.Value))
					group := min(i%(groups+free+1), groups+free)
					isFree := group >= groups && group < groups+free
					if isFree {
						group = groups
					}
					mu.Lock()
					running[group]++
					if !isFree && !batch && running[group] > 1 {
						t.Errorf("two of group %d run at once", group)
					}
					mostFree = max(mostFree, running[groups])
					wait, fail := time.Duration(rnd.IntN(20))*time.Millisecond, rnd.IntN(10) == 0
					mu.Unlock()
					spend(wait)
					mu.Lock()
					defer mu.Unlock()
					running[group]--
					if fail {
						return fmt.Errorf("number %d failed", i)
					}
					if prev, ok := last[group]; ok && !isFree && i < prev {
						t.Errorf("group %d: %d after %d", group, i, prev)
					}
					last[group] = i
					return nil
				}
				p := &broker.Processor{
					Stream: s, Group: "g", Logger: quiet, Concurrency: 16, Retry: broker.RetryPolicy{Min: time.Millisecond, Max: time.Millisecond},
					OrderBy: func(r *broker.Record) string {
						i, _ := strconv.Atoi(string(r.Value))
						switch m := i % (groups + free + 1); {
						case m < groups:
							return strconv.Itoa(m)
						case m < groups+free:
							return ""
						}
						panic("cannot tell")
					},
				}
				if batch {
					p.MaxBatch = 5
					p.BatchHandler = func(_ context.Context, rs []*broker.Record) error {
						errs := make([]error, len(rs))
						failed := map[string]bool{} // what follows a failed one of its group comes again anyway
						for i, r := range rs {
							by := "panicked"
							func() {
								defer func() { _ = recover() }()
								by = p.OrderBy(r)
							}()
							if by != "" && failed[by] {
								continue
							}
							if errs[i] = one(r); errs[i] != nil {
								failed[by] = true
							}
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
				if c := p.Stats().Committed; c != n {
					t.Errorf("%d of %d records were committed", c, n)
				}
				if mostFree < 2 {
					t.Error("records that nothing orders ran one at a time")
				}
			})
		})
	}
}
