// Package faultproxy breaks the connections between a client and its broker,
// as networks do, for the fault cases of the conformance suite: see
// conformance.Harness.Faults.
package faultproxy

import (
	"context"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	toxiproxy "github.com/Shopify/toxiproxy/v2" // the proxy itself, in process
	"github.com/rs/zerolog"                     // what it logs with
	"go.uber.org/goleak"                        // Leftovers are options of it
)

// A Proxy passes TCP connections on. Its methods may be called concurrently.
type Proxy struct {
	t  testing.TB
	p  *toxiproxy.Proxy
	mu sync.Mutex // starts and stops
}

// silence: some toxics write to the global logger.
var silence = sync.OnceFunc(func() { zerolog.SetGlobalLevel(zerolog.Disabled) })

// New passes connections to the address listen ("127.0.0.1:0": any free port)
// on to the address upstream, until the test ends.
func New(t testing.TB, listen, upstream string) *Proxy {
	t.Helper()
	silence()
	registered()
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	p := &Proxy{t: t, p: toxiproxy.NewProxy(server, t.Name(), listen, upstream)}
	if err := p.p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.p.Stop)
	return p
}

// Addr is where it listens, host and port.
func (p *Proxy) Addr() string { return p.p.Listen }

// Cut breaks every connection; new ones work.
func (p *Proxy) Cut() {
	p.Down()
	p.Up()
}

// Down breaks every connection and refuses new ones, until Up.
func (p *Proxy) Down() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.p.Stop()
}

// Up ends Down.
func (p *Proxy) Up() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for range 50 { // the port may still be closing
		if p.p.Start() == nil {
			return
		}
		<-time.After(20 * time.Millisecond)
	}
	p.t.Error("the proxy does not come back")
}

// LoseAnswers lets requests through and drops what the broker says, for 0.1 s,
// and then breaks every connection.
func (p *Proxy) LoseAnswers() {
	end := p.toxics(toxic{"timeout", "downstream", `"timeout":0`})
	<-time.After(100 * time.Millisecond)
	p.Down()
	end()
	p.Up()
}

// BlackHole drops everything in both directions and closes nothing.
func (p *Proxy) BlackHole() (end func()) {
	end, _ = p.blackHole()
	return end
}

func (p *Proxy) blackHole() (end func(), bites func() int64) {
	return p.counted(toxic{"timeout", "upstream", `"timeout":0`}, toxic{"timeout", "downstream", `"timeout":0`})
}

// SlowLink delays answers by 10 to 30 ms and passes 500 kB/s of requests on.
func (p *Proxy) SlowLink() (end func()) {
	end, _ = p.slowLink()
	return end
}

func (p *Proxy) slowLink() (end func(), bites func() int64) {
	return p.counted(toxic{"latency", "downstream", `"latency":20,"jitter":10`}, toxic{"bandwidth", "upstream", `"rate":500`})
}

type toxic struct{ kind, direction, attributes string }

// counted begins all, and counts what of the requests meets them.
func (p *Proxy) counted(all ...toxic) (end func(), bites func() int64) {
	id, n := lastID.Add(1), new(atomic.Int64)
	counters.Store(id, n)
	first := toxic{countToxicName, "upstream", `"id":` + strconv.FormatInt(id, 10)}
	stop := p.toxics(append([]toxic{first}, all...)...)
	return func() { stop(); counters.Delete(id) }, n.Load
}

// toxics begins all; end ends whatever there is.
func (p *Proxy) toxics(all ...toxic) (end func()) {
	for _, x := range all {
		j := `{"type":"` + x.kind + `","stream":"` + x.direction + `","attributes":{` + x.attributes + `}}`
		if _, err := p.p.Toxics.AddToxicJson(strings.NewReader(j)); err != nil {
			p.t.Error(err)
		}
	}
	return func() { p.p.Toxics.ResetToxics(context.WithoutCancel(p.t.Context())) }
}

// Leftovers tells goleak what the proxy leaves behind: it ends its links in the
// background, and never the readers of broken ones.
func Leftovers() []goleak.Option {
	return []goleak.Option{
		goleak.IgnoreAnyFunction("github.com/Shopify/toxiproxy/v2.(*ToxicLink).read"),
		goleak.IgnoreAnyFunction("github.com/Shopify/toxiproxy/v2.(*ToxicLink).Start.func2"),
		goleak.IgnoreAnyFunction("github.com/Shopify/toxiproxy/v2/toxics.(*ToxicStub).Run"),
	}
}
