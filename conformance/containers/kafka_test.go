package containers_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"github.com/queuestream/broker/conformance/containers"
)

func kafkaClient(t *testing.T, addrs []string, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	cl, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(addrs...)}, opts...)...)
	must(t, err)
	t.Cleanup(cl.Close)
	return cl
}

// kafkaTopic creates a topic with one partition, which goes with the test.
func kafkaTopic(t *testing.T, addrs []string) string {
	t.Helper()
	topic := unique(t)
	adm := kadm.NewClient(kafkaClient(t, addrs))
	_, err := adm.CreateTopic(within(t, 20*time.Second), 1, 1, nil, topic)
	must(t, err)
	return topic
}

func kafkaProduce(t *testing.T, addrs []string, topic string, values ...string) {
	t.Helper()
	cl := kafkaClient(t, addrs)
	for _, v := range values {
		must(t, cl.ProduceSync(within(t, 30*time.Second), &kgo.Record{Topic: topic, Value: []byte(v)}).FirstErr())
	}
}

// kafkaRead polls until it has n records.
func kafkaRead(ctx context.Context, cl *kgo.Client, n int) ([]*kgo.Record, error) {
	var got []*kgo.Record
	for len(got) < n {
		fetches := cl.PollFetches(ctx)
		if ctx.Err() != nil {
			return got, fmt.Errorf("%d of %d records: %w", len(got), n, errors.Join(ctx.Err(), fetches.Err()))
		}
		got = append(got, fetches.Records()...)
	}
	return got, nil
}

// kafkaExpect reads the topic from its start with a fresh client.
func kafkaExpect(t *testing.T, addrs []string, topic string, want ...string) {
	t.Helper()
	cl := kafkaClient(t, addrs, kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	got, err := kafkaRead(within(t, 30*time.Second), cl, len(want))
	must(t, err)
	for i, r := range got {
		if string(r.Value) != want[i] {
			t.Fatalf("record %d is %q, want %q", i, r.Value, want[i])
		}
	}
}

func TestKafkaPublishAndRead(t *testing.T) {
	kafka := containers.NeedKafka(t)
	topic := kafkaTopic(t, kafka.Addrs)
	kafkaProduce(t, kafka.Addrs, topic, "one", "two")
	kafkaExpect(t, kafka.Addrs, topic, "one", "two")
}

func TestKafkaCreatesNoTopicByUse(t *testing.T) {
	kafka := containers.NeedKafka(t)
	cl := kafkaClient(t, kafka.Addrs, kgo.AllowAutoTopicCreation(), kgo.UnknownTopicRetries(2))
	err := cl.ProduceSync(within(t, 20*time.Second), &kgo.Record{Topic: unique(t), Value: []byte("x")}).FirstErr()
	if err == nil {
		t.Fatal("a record was accepted for a topic that nobody created")
	}
}

// A share group's member takes records, accepts one and releases the other,
// which comes again.
func TestKafkaShareGroup(t *testing.T) {
	kafka := containers.NeedKafka(t)
	topic, group := kafkaTopic(t, kafka.Addrs), unique(t)+"-group"
	shareFromEarliest(t, kafka.Addrs, group)
	kafkaProduce(t, kafka.Addrs, topic, "accepted", "released")

	cl := kafkaClient(t, kafka.Addrs, kgo.ShareGroup(group), kgo.ConsumeTopics(topic))
	ctx := within(t, 30*time.Second)
	first, err := kafkaRead(ctx, cl, 2)
	must(t, err)
	for _, r := range first {
		if string(r.Value) == "accepted" {
			r.Ack(kgo.AckAccept)
		} else {
			r.Ack(kgo.AckRelease)
		}
	}
	err = cl.FlushAcks(ctx)
	must(t, err)
	again, err := kafkaRead(ctx, cl, 1)
	must(t, err)
	if len(again) != 1 || string(again[0].Value) != "released" {
		t.Fatalf("got %d records again, the first %q; want the released one alone", len(again), again[0].Value)
	}
	again[0].Ack(kgo.AckAccept)
	err = cl.FlushAcks(ctx)
	must(t, err)
}

// shareFromEarliest has the share group begin at the start of its topics.
func shareFromEarliest(t *testing.T, addrs []string, group string) {
	t.Helper()
	req := kmsg.NewPtrIncrementalAlterConfigsRequest()
	res := kmsg.NewIncrementalAlterConfigsRequestResource()
	res.ResourceType, res.ResourceName = kmsg.ConfigResourceTypeGroupConfig, group
	cfg := kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
	cfg.Name, cfg.Value = "share.auto.offset.reset", kmsg.StringPtr("earliest")
	res.Configs = append(res.Configs, cfg)
	req.Resources = append(req.Resources, res)
	resp, err := req.RequestWith(within(t, 20*time.Second), kafkaClient(t, addrs))
	must(t, err)
	if code := resp.Resources[0].ErrorCode; code != 0 {
		t.Fatalf("share.auto.offset.reset of %s: error code %d", group, code)
	}
}

// A secured broker lets its user in with each mechanism, and nobody else.
func TestKafkaSecure(t *testing.T) {
	t.Parallel()
	kafka := containers.OwnKafka(t, containers.KafkaOptions{Secure: true})
	s := kafka.Security
	secured := kgo.DialTLSConfig(s.TLS())
	for _, tt := range []struct {
		name string
		opts []kgo.Opt
		in   bool
	}{
		{"PLAIN", []kgo.Opt{secured, kgo.SASL(plain.Auth{User: s.User, Pass: s.Password}.AsMechanism())}, true},
		{"SCRAM-SHA-256", []kgo.Opt{secured, kgo.SASL(scram.Auth{User: s.User, Pass: s.Password}.AsSha256Mechanism())}, true},
		{"SCRAM-SHA-512", []kgo.Opt{secured, kgo.SASL(scram.Auth{User: s.User, Pass: s.Password}.AsSha512Mechanism())}, true},
		{"wrong password", []kgo.Opt{secured, kgo.SASL(scram.Auth{User: s.User, Pass: s.Password + "x"}.AsSha512Mechanism())}, false},
		{"no user", []kgo.Opt{secured}, false},
		{"no TLS", []kgo.Opt{kgo.SASL(plain.Auth{User: s.User, Pass: s.Password}.AsMechanism())}, false},
	} {
		cl := kafkaClient(t, kafka.Addrs, append(tt.opts, kgo.RequestRetries(0), kgo.RetryTimeout(5*time.Second))...)
		_, err := kadm.NewClient(cl).CreateTopic(within(t, 20*time.Second), 1, 1, nil, unique(t))
		if (err == nil) != tt.in {
			t.Errorf("%s: %v, want in: %v", tt.name, err, tt.in)
		}
	}
}

// What was acknowledged outlives a kill, a pause and a restart.
func TestKafkaComesBackWithItsData(t *testing.T) {
	t.Parallel()
	kafka := containers.OwnKafka(t, containers.KafkaOptions{})
	ctx := within(t, 3*time.Minute)
	topic := kafkaTopic(t, kafka.Addrs)
	kafkaProduce(t, kafka.Addrs, topic, "before")

	must(t, kafka.Kill(ctx))
	if err := kafka.Probe(ctx); err == nil {
		t.Fatal("a killed broker answers")
	}
	must(t, kafka.Kill(ctx)) // again is no error
	must(t, kafka.Start(ctx))
	kafkaExpect(t, kafka.Addrs, topic, "before")

	must(t, kafka.Pause(ctx))
	must(t, kafka.Pause(ctx)) // again is no error
	cl := kafkaClient(t, kafka.Addrs, kgo.RecordDeliveryTimeout(2*time.Second), kgo.ProduceRequestTimeout(time.Second))
	if err := cl.ProduceSync(ctx, &kgo.Record{Topic: topic, Value: []byte("during")}).FirstErr(); err == nil {
		t.Fatal("a paused broker acknowledges")
	}
	must(t, kafka.Resume(ctx))
	must(t, kafka.Restart(ctx))
	kafkaProduce(t, kafka.Addrs, topic, "after")
	// Whether the record sent during the pause was stored is open.
	r := kafkaClient(t, kafka.Addrs, kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	got, err := kafkaRead(ctx, r, 2)
	for err == nil && string(got[len(got)-1].Value) != "after" {
		var more []*kgo.Record
		more, err = kafkaRead(ctx, r, 1)
		got = append(got, more...)
	}
	must(t, err)
	if string(got[0].Value) != "before" {
		t.Fatalf("the first record is %q, want %q", got[0].Value, "before")
	}
}

// Clients of a broker that advertises a proxy reach it through the proxy alone:
// once that is cut, nothing gets through, although the broker is well.
func TestKafkaBehindAProxy(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("needs Kafka: not run with -short")
	}
	proxy := newProxy(t)
	kafka := containers.OwnKafka(t, containers.KafkaOptions{AdvertisedAddr: proxy.addr()})
	proxy.forward(kafka.Addrs[0])

	topic := kafkaTopic(t, []string{proxy.addr()})
	kafkaProduce(t, []string{proxy.addr()}, topic, "through")
	kafkaExpect(t, []string{proxy.addr()}, topic, "through")
	// Even a client that begins at the published port is sent to the proxy.
	meta, err := kadm.NewClient(kafkaClient(t, kafka.Addrs)).BrokerMetadata(within(t, 20*time.Second))
	must(t, err)
	for _, b := range meta.Brokers {
		if got := fmt.Sprintf("%s:%d", b.Host, b.Port); got != proxy.addr() {
			t.Errorf("a broker is advertised at %s, want %s", got, proxy.addr())
		}
	}

	proxy.cut()
	cl := kafkaClient(t, []string{proxy.addr()}, kgo.RecordDeliveryTimeout(2*time.Second), kgo.ProduceRequestTimeout(time.Second))
	if err := cl.ProduceSync(within(t, 20*time.Second), &kgo.Record{Topic: topic, Value: []byte("cut")}).FirstErr(); err == nil {
		t.Fatal("a record got through a cut proxy")
	}
	must(t, kafka.Probe(t.Context()))
}

// proxy forwards connections to an upstream that is named later, and can be cut.
type proxy struct {
	l        net.Listener
	mu       sync.Mutex
	upstream string
	conns    []net.Conn
	wg       sync.WaitGroup
}

func newProxy(t *testing.T) *proxy {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	must(t, err)
	p := &proxy{l: l}
	p.wg.Go(p.serve)
	t.Cleanup(func() {
		p.cut()
		p.wg.Wait()
	})
	return p
}

func (p *proxy) addr() string { return p.l.Addr().String() }

func (p *proxy) forward(upstream string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.upstream = upstream
}

func (p *proxy) cut() {
	p.l.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		c.Close()
	}
}

func (p *proxy) serve() {
	for {
		in, err := p.l.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		out, err := (&net.Dialer{}).DialContext(context.Background(), "tcp", p.upstream)
		if err != nil {
			in.Close()
			p.mu.Unlock()
			continue
		}
		p.conns = append(p.conns, in, out)
		p.mu.Unlock()
		pipe := func(dst, src net.Conn) {
			_, _ = io.Copy(dst, src)
			dst.Close()
			src.Close()
		}
		p.wg.Go(func() { pipe(out, in) })
		p.wg.Go(func() { pipe(in, out) })
	}
}
