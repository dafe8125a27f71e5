package rabbitmq

import (
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"
)

// A testProxy stands between a test and the broker.
type testProxy struct {
	t    testing.TB
	p    *toxiproxy.Proxy
	url  string
	bite atomic.Int64
	mu   sync.Mutex
}

func newTestProxy(t testing.TB, raw string) *testProxy {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	p := &testProxy{t: t, p: toxiproxy.NewProxy(server, "rabbitmq", "127.0.0.1:0", u.Host)}
	if err := p.p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.p.Stop)
	u.Host = p.p.Listen
	p.url = u.String()
	return p
}

// cut breaks every connection; new ones work.
func (p *testProxy) cut() {
	p.down()
	p.up()
	p.bite.Add(1)
}

// down breaks every connection and refuses new ones until up.
func (p *testProxy) down() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.p.Stop()
}

func (p *testProxy) up() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for range 50 { // the port may still be closing
		if err := p.p.Start(); err == nil {
			return
		}
		<-time.After(20 * time.Millisecond)
	}
	p.t.Error("the proxy does not come back")
}

// blackHole drops everything in both directions, and closes nothing, until the
// function that it returns is called.
func (p *testProxy) blackHole() (stop func()) {
	p.t.Helper()
	for _, stream := range []string{"upstream", "downstream"} {
		j := `{"name":"hole-` + stream + `","type":"timeout","stream":"` + stream + `","attributes":{"timeout":0}}`
		if _, err := p.p.Toxics.AddToxicJson(strings.NewReader(j)); err != nil {
			p.t.Error(err)
		}
	}
	p.bite.Add(1)
	return func() { p.p.Toxics.ResetToxics(p.t.Context()) }
}

// loseAnswers lets requests through and drops what the broker says, for a
// moment, and then breaks every connection.
func (p *testProxy) loseAnswers() {
	const j = `{"name":"deaf","type":"timeout","stream":"downstream","attributes":{"timeout":0}}`
	if _, err := p.p.Toxics.AddToxicJson(strings.NewReader(j)); err != nil {
		p.t.Error(err)
	}
	<-time.After(100 * time.Millisecond)
	p.down()
	p.p.Toxics.ResetToxics(p.t.Context())
	p.up()
	p.bite.Add(1)
}

// slow adds latency and takes bandwidth away.
func (p *testProxy) slow() (stop func()) {
	p.t.Helper()
	for _, j := range []string{
		`{"name":"latency","type":"latency","stream":"downstream","attributes":{"latency":20,"jitter":10}}`,
		`{"name":"bandwidth","type":"bandwidth","stream":"upstream","attributes":{"rate":500}}`,
	} {
		if _, err := p.p.Toxics.AddToxicJson(strings.NewReader(j)); err != nil {
			p.t.Error(err)
		}
	}
	p.bite.Add(1)
	return func() { p.p.Toxics.ResetToxics(p.t.Context()) }
}
