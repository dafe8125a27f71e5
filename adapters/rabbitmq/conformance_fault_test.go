package rabbitmq

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/conformance"
	"github.com/queuestream/broker/conformance/containers"
)

// TestConformanceFaults runs the fault cases with a network that breaks.
func TestConformanceFaults(t *testing.T) {
	in := containers.NeedRabbitMQ(t)
	var all sync.WaitGroup
	for _, s := range suites {
		all.Go(func() {
			t.Run(s.name, func(t *testing.T) {
				h := s.harness(t, in, "80", "90", "91", "94", "95")
				o := Options{MinBackoff: 10 * time.Millisecond, MaxBackoff: 200 * time.Millisecond, Heartbeat: 2 * time.Second}
				ps := proxies{newTestProxy(t, in.URL)}
				o.URLs = []string{ps[0].url}
				if s.kinds == conformance.Stream {
					ps = append(ps, newTestProxy(t, in.StreamURL))
					o.StreamURLs, o.StreamDirect = []string{ps[1].url}, true
				}
				h.Open = opener(o)
				h.Faults = ps.faults()
				conformance.Run(t, h)
			})
		})
	}
	all.Wait()
}

// proxies break together.
type proxies []*testProxy

func (ps proxies) faults() map[conformance.FaultKind]func(context.Context) (conformance.Injection, error) {
	return map[conformance.FaultKind]func(context.Context) (conformance.Injection, error){
		conformance.FaultConnectionCut: repeated(300*time.Millisecond, ps.each((*testProxy).cut)),
		conformance.FaultAnswerLost:    repeated(500*time.Millisecond, ps.each((*testProxy).loseAnswers)),
		conformance.FaultBlackHole:     lasting(6*time.Second, ps.begin((*testProxy).blackHole)),
		conformance.FaultSlowLink:      lasting(20*time.Second, ps.begin((*testProxy).slow)),
	}
}

func (ps proxies) each(do func(*testProxy)) func() {
	return func() {
		var wg sync.WaitGroup
		for _, p := range ps {
			wg.Go(func() { do(p) })
		}
		wg.Wait()
	}
}

func (ps proxies) begin(do func(*testProxy) (end func())) func() func() {
	return func() func() {
		var ends []func()
		for _, p := range ps {
			ends = append(ends, do(p))
		}
		return func() {
			for _, end := range ends {
				end()
			}
		}
	}
}

// repeated bites at once and then every time the interval has passed.
func repeated(every time.Duration, bite func()) func(context.Context) (conformance.Injection, error) {
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
		return conformance.Injection{
			Bites: bites.Load,
			Stop: func(context.Context) error {
				close(end)
				<-ended
				return nil
			},
		}, nil
	}
}

// lasting begins at once and ends after at most d.
func lasting(d time.Duration, begin func() (end func())) func(context.Context) (conformance.Injection, error) {
	return func(context.Context) (conformance.Injection, error) {
		end := sync.OnceFunc(begin())
		timer := time.AfterFunc(d, end)
		return conformance.Injection{
			Bites: func() int64 { return 1 },
			Stop: func(context.Context) error {
				timer.Stop()
				end()
				return nil
			},
		}, nil
	}
}

// TestConformanceBroken runs the cases that stop a broker, on one of its own.
func TestConformanceBroken(t *testing.T) {
	in := containers.OwnRabbitMQ(t)
	for _, s := range suites {
		if strings.Contains(s.name, "ordered") || strings.Contains(s.name, "classic") {
			continue // the queue's kind makes no difference that these cases could see
		}
		t.Run(s.name, func(t *testing.T) {
			h := s.harness(t, in, "6", "92", "93")
			h.OpenBad = nil
			o := Options{URLs: []string{in.URL}, MaxBackoff: 500 * time.Millisecond, Heartbeat: 2 * time.Second}
			if s.kinds == conformance.Stream {
				o.StreamURLs = []string{in.StreamURL}
			}
			h.Open = opener(o)
			h.Restart = in.Restart
			var mu sync.Mutex
			var last string
			h.NewName = func(kind string) string {
				name := "qs-" + kind + "-" + broker.NewID()
				if kind == "queue" {
					mu.Lock()
					defer mu.Unlock()
					last = name
				}
				return name
			}
			h.Faults = map[conformance.FaultKind]func(context.Context) (conformance.Injection, error){
				conformance.FaultKill: func(ctx context.Context) (conformance.Injection, error) {
					mu.Lock()
					queue := last
					mu.Unlock()
					if queue != "" {
						wait, cancel := context.WithTimeout(ctx, 10*time.Second)
						defer cancel()
						if err := in.AwaitQueueOnDisk(wait, queue); err != nil {
							return conformance.Injection{}, err
						}
					}
					if err := in.Kill(ctx); err != nil {
						return conformance.Injection{}, err
					}
					return backAfter(time.Second, in.Start), nil
				},
				conformance.FaultPause: func(ctx context.Context) (conformance.Injection, error) {
					if err := in.Pause(ctx); err != nil {
						return conformance.Injection{}, err
					}
					return backAfter(6*time.Second, in.Resume), nil
				},
			}
			conformance.Run(t, h)
		})
	}
}

// backAfter brings the broker back after d; Stop waits for it.
func backAfter(d time.Duration, back func(context.Context) error) conformance.Injection {
	done := make(chan error, 1)
	time.AfterFunc(d, func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		done <- back(ctx)
	})
	return conformance.Injection{
		Bites: func() int64 { return 1 },
		Stop: func(ctx context.Context) error {
			select {
			case err := <-done:
				return err
			case <-ctx.Done():
				return ctx.Err()
			}
		},
	}
}
