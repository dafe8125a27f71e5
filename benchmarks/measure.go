package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"runtime"
	"runtime/pprof"
	"slices"
	"syscall"
	"time"
)

type options struct {
	rounds int
	scale  float64
}

// A scenario is one piece of work that several contenders do.
type scenario struct {
	name       string
	what       string // in a sentence, for the report
	messages   int    // of one run
	size       int    // bytes of a body; 0: 256
	needs      []string
	contenders []contender
	targets    []target
	// begin prepares what all runs of the scenario share; optional.
	begin func(ctx context.Context, n int) (end func() error, err error)
}

// A contender does the work of a scenario.
type contender struct {
	name string
	open opener
	// fraction of the messages for a contender that is much slower; 0: all.
	fraction float64
}

// An opener prepares a run of n messages (not measured) and returns the work
// (measured) and what to do afterwards: verify, and take all away.
type opener func(ctx context.Context, n int) (work func() error, done func() error, err error)

// A target is a ratio of two contenders' median throughputs, or a bound.
type target struct {
	of, over  string  // contenders; over empty: of's own figure is meant
	figure    float64 // messages a second of "over", which was measured elsewhere
	atLeast   float64 // throughput of / over
	maxAllocs float64 // allocations a message of "of"
	maxCPU    float64 // CPU a message, of / over
	maxP99    time.Duration
	// p99, of / over
	maxP99Ratio float64
}

// A sample is one run.
type sample struct {
	perSecond float64
	cpu       float64 // µs a message
	allocs    float64 // a message
	p50, p99  time.Duration
}

type result struct {
	contender string
	samples   []sample
}

func (s *scenario) missing() string {
	for _, env := range s.needs {
		if os.Getenv(env) == "" {
			return env + " is not set"
		}
	}
	return ""
}

// measure runs all contenders rounds times, interleaved, the order turned each
// round.
func measure(ctx context.Context, s scenario, o options) (res []result, err error) {
	payloadSize = cmp.Or(s.size, defaultSize)
	n := max(int(float64(s.messages)*o.scale), 1)
	if s.begin != nil {
		end, err := s.begin(ctx, n)
		if err != nil {
			return nil, err
		}
		defer func() {
			if eerr := end(); err == nil {
				err = eerr
			}
		}()
	}
	res = make([]result, len(s.contenders))
	for round := range o.rounds {
		for k := range s.contenders {
			i := (k + round) % len(s.contenders)
			c := s.contenders[i]
			var smp sample
			var err error
			pprof.Do(ctx, pprof.Labels("scenario", s.name, "contender", c.name), func(ctx context.Context) {
				smp, err = once(ctx, c, max(int(float64(n)*cmp.Or(c.fraction, 1)), 1))
			})
			if err != nil {
				return nil, fmt.Errorf("%s: %w", c.name, err)
			}
			res[i].contender = c.name
			res[i].samples = append(res[i].samples, smp)
		}
	}
	return res, nil
}

func once(ctx context.Context, c contender, n int) (sample, error) {
	latencies = latencies[:0]
	work, done, err := c.open(ctx, n)
	if err != nil {
		return sample{}, err
	}
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	cpu, start := cpuTime(), time.Now()
	err = work()
	took, used := time.Since(start), cpuTime()-cpu
	runtime.ReadMemStats(&after)
	if derr := done(); err == nil {
		err = derr
	}
	s := sample{
		perSecond: float64(n) / took.Seconds(),
		cpu:       float64(used.Microseconds()) / float64(n),
		allocs:    float64(after.Mallocs-before.Mallocs) / float64(n),
	}
	if len(latencies) > 0 {
		slices.Sort(latencies)
		s.p50, s.p99 = latencies[len(latencies)/2], latencies[len(latencies)*99/100]
	}
	return s, err
}

// latencies are what a contender that measures them has seen in its run.
var latencies []time.Duration

func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// median of a figure over the samples.
func median[T cmp.Ordered](ss []sample, f func(sample) T) T {
	vs := make([]T, len(ss))
	for i, s := range ss {
		vs[i] = f(s)
	}
	slices.Sort(vs)
	return vs[len(vs)/2]
}

func throughput(s sample) float64 { return s.perSecond }
