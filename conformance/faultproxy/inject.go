package faultproxy

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/queuestream/broker/conformance"
)

// An Inject begins a fault: a value of conformance.Harness.Faults.
type Inject = func(context.Context) (conformance.Injection, error)

// Faults are what networks do: connections cut every 0.3 s, answers lost every
// 0.5 s, a black hole of at most 6 s and a slow link of at most 20 s. The
// proxies of a broker that listens on several ports break together.
func Faults(ps ...*Proxy) map[conformance.FaultKind]Inject {
	return map[conformance.FaultKind]Inject{
		conformance.FaultConnectionCut: repeated(300*time.Millisecond, each(ps, (*Proxy).Cut)),
		conformance.FaultAnswerLost:    repeated(500*time.Millisecond, each(ps, (*Proxy).LoseAnswers)),
		conformance.FaultBlackHole:     lasting(6*time.Second, begin(ps, (*Proxy).blackHole)),
		conformance.FaultSlowLink:      lasting(20*time.Second, begin(ps, (*Proxy).slowLink)),
	}
}

func each(ps []*Proxy, do func(*Proxy)) func() {
	return func() {
		var all sync.WaitGroup
		for _, p := range ps {
			all.Go(func() { do(p) })
		}
		all.Wait()
	}
}

func begin(ps []*Proxy, do func(*Proxy) (end func(), bites func() int64)) func() (end func(), bites func() int64) {
	return func() (func(), func() int64) {
		var ends []func()
		var counts []func() int64
		for _, p := range ps {
			end, bites := do(p)
			ends, counts = append(ends, end), append(counts, bites)
		}
		return func() {
				for _, end := range ends {
					end()
				}
			}, func() (n int64) {
				for _, bites := range counts {
					n += bites()
				}
				return n
			}
	}
}

// repeated bites at once and then every time the interval has passed.
func repeated(every time.Duration, bite func()) Inject {
	return func(context.Context) (conformance.Injection, error) {
		var bites atomic.Int64
		end, ended := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(ended)
			tick := time.NewTicker(every)
			defer tick.Stop()
			for {
				bite()
				bites.Add(1)
				select {
				case <-tick.C:
				case <-end:
					return
				}
			}
		}()
		return conformance.Injection{Bites: bites.Load, Stop: func(context.Context) error {
			close(end)
			<-ended
			return nil
		}}, nil
	}
}

// lasting begins at once and ends after at most d. It bites what is sent meanwhile.
func lasting(d time.Duration, begin func() (end func(), bites func() int64)) Inject {
	return func(context.Context) (conformance.Injection, error) {
		stop, bites := begin()
		end := sync.OnceFunc(stop)
		timer := time.AfterFunc(d, end)
		return conformance.Injection{Bites: bites, Stop: func(context.Context) error {
			timer.Stop()
			end()
			return nil
		}}, nil
	}
}

func once() int64 { return 1 }

// Away takes a broker away for d, by the means of whoever runs it, as with a
// kill and a start; Stop of the injection waits for its return.
func Away(away func(context.Context) error, d time.Duration, back func(context.Context) error) Inject {
	return func(ctx context.Context) (conformance.Injection, error) {
		if err := away(ctx); err != nil {
			return conformance.Injection{}, err
		}
		done := make(chan error, 1)
		time.AfterFunc(d, func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			done <- back(ctx)
		})
		return conformance.Injection{Bites: once, Stop: func(ctx context.Context) error {
			select {
			case err := <-done:
				return err
			case <-ctx.Done():
				return ctx.Err()
			}
		}}, nil
	}
}
