package kafka_test

import (
	"maps"
	"net"
	"testing"
	"time"

	"github.com/queuestream/broker/conformance"
	"github.com/queuestream/broker/conformance/containers"
	"github.com/queuestream/broker/conformance/faultproxy"
)

// proxied starts a broker of the test's own behind a proxy, whose address it
// advertises.
func proxied(t testing.TB) (*containers.KafkaInstance, *faultproxy.Proxy) {
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
	return in, faultproxy.New(t, address, in.Addrs[0])
}

// faults are all that a harness may inject here.
func faults(in *containers.KafkaInstance, p *faultproxy.Proxy) map[conformance.FaultKind]faultproxy.Inject {
	all := map[conformance.FaultKind]faultproxy.Inject{
		conformance.FaultKill:  faultproxy.Away(in.Kill, time.Second, in.Start),
		conformance.FaultPause: faultproxy.Away(in.Pause, session+time.Second, in.Resume),
	}
	maps.Copy(all, faultproxy.Faults(p))
	return all
}
