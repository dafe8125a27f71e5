package kafka_test

import (
	"context"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/queuestream/broker/conformance"
	"github.com/queuestream/broker/conformance/containers"
	"github.com/rs/zerolog"
)

type inject = func(context.Context) (conformance.Injection, error)

// A proxy stands between the clients and a broker that advertises it.
type proxy struct {
	t  testing.TB
	in *containers.KafkaInstance
	p  *toxiproxy.Proxy
	mu sync.Mutex
}

// proxied starts a broker of the test's own behind a proxy.
func proxied(t testing.TB) *proxy {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	in := containers.OwnKafka(t, containers.KafkaOptions{AdvertisedAddr: address})
	zerolog.SetGlobalLevel(zerolog.Disabled) // some toxics write to the global logger
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	p := &proxy{t: t, in: in, p: toxiproxy.NewProxy(server, "kafka", address, in.Addrs[0])}
	if err := p.p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.p.Stop)
	return p
}

func (p *proxy) address() string { return p.p.Listen }

// faults are all that a harness may inject here.
func (p *proxy) faults() map[conformance.FaultKind]inject {
	return map[conformance.FaultKind]inject{
		conformance.FaultConnectionCut: repeated(300*time.Millisecond, p.cut),
		conformance.FaultAnswerLost:    repeated(500*time.Millisecond, p.loseAnswers),
		conformance.FaultBlackHole: lasting(6*time.Second, func() func() {
			return p.toxic("timeout", "upstream", `"timeout":0`, "timeout", "downstream", `"timeout":0`)
		}),
		conformance.FaultSlowLink: lasting(20*time.Second, func() func() {
			return p.toxic("latency", "downstream", `"latency":20,"jitter":10`, "bandwidth", "upstream", `"rate":500`)
		}),
		conformance.FaultKill:  down(p.in.Kill, time.Second, p.in.Start),
		conformance.FaultPause: down(p.in.Pause, session+time.Second, p.in.Resume),
	}
}

// cut breaks every connection; new ones work.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.p.Stop()
	p.up()
}

// up is called with p.mu held.
func (p *proxy) up() {
	for range 50 { // the port may still be closing
		if p.p.Start() == nil {
			return
		}
		<-time.After(20 * time.Millisecond)
	}
	p.t.Error("the proxy does not come back")
}

// loseAnswers lets requests through and drops what the broker says, for a
// moment, and then breaks every connection.
func (p *proxy) loseAnswers() {
	end := p.toxic("timeout", "downstream", `"timeout":0`)
	<-time.After(100 * time.Millisecond)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.p.Stop()
	end()
	p.up()
}

// toxic begins what each kind, direction and attributes name.
func (p *proxy) toxic(what ...string) (end func()) {
	for i := 0; i < len(what); i += 3 {
		j := `{"name":"` + what[i] + what[i+1] + `","type":"` + what[i] + `","stream":"` + what[i+1] + `","attributes":{` + what[i+2] + `}}`
		if _, err := p.p.Toxics.AddToxicJson(strings.NewReader(j)); err != nil {
			p.t.Error(err)
		}
	}
	return func() { p.p.Toxics.ResetToxics(context.WithoutCancel(p.t.Context())) }
}

// repeated bites at once and then every time the interval has passed.
func repeated(every time.Duration, bite func()) inject {
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

// lasting begins at once and ends after at most d.
func lasting(d time.Duration, begin func() (end func())) inject {
	return func(context.Context) (conformance.Injection, error) {
		end := sync.OnceFunc(begin())
		timer := time.AfterFunc(d, end)
		return conformance.Injection{Bites: once, Stop: func(context.Context) error {
			timer.Stop()
			end()
			return nil
		}}, nil
	}
}

func once() int64 { return 1 }

// down takes the broker away for d; Stop waits for its return.
func down(away func(context.Context) error, d time.Duration, back func(context.Context) error) inject {
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
