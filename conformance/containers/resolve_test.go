package containers

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestVersionsArePinned(t *testing.T) {
	for _, k := range Kinds() {
		if k.Version() == "" || k.OfficialImage() == "" {
			t.Errorf("%s: version %q, official image %q: both must be in images/versions.env", k, k.Version(), k.OfficialImage())
		}
		if !strings.Contains(k.LocalImage(), ":"+k.Version()) {
			t.Errorf("%s: image %s does not carry version %s", k, k.LocalImage(), k.Version())
		}
		if got, ok := ParseKind(strings.ToUpper(string(k))); !ok || got != k {
			t.Errorf("ParseKind does not find %s", k)
		}
	}
	if _, ok := ParseKind("nats"); ok {
		t.Error("ParseKind finds a broker that there is none of")
	}
}

func TestEnvironmentNamesTheBroker(t *testing.T) {
	t.Setenv("BROKER_TEST_KAFKA", "kafka://one:9092,two:9092")
	t.Setenv("BROKER_TEST_KAFKA_CONTAINER", "")
	t.Setenv("BROKER_TEST_KAFKA_VERSION", "4.3.1")
	in, err := fromEnv(KindKafka)
	if err != nil {
		t.Fatal(err)
	}
	kafka := newKafka(in)
	if want := []string{"one:9092", "two:9092"}; !slices.Equal(kafka.Addrs, want) {
		t.Errorf("the addresses are %v, want %v", kafka.Addrs, want)
	}
	if kafka.Version() != "4.3.1" || kafka.Private() || kafka.Controlled() {
		t.Errorf("got %s, private %v, controlled %v", kafka.Version(), kafka.Private(), kafka.Controlled())
	}
	want := []string{"BROKER_TEST_KAFKA=kafka://one:9092,two:9092", "BROKER_TEST_KAFKA_VERSION=4.3.1"}
	if got := kafka.Environ(); !slices.Equal(got, want) {
		t.Errorf("Environ is %v, want %v", got, want)
	}
}

func TestEnvironmentNamesRabbitMQ(t *testing.T) {
	env := []string{
		"BROKER_TEST_RABBITMQ=amqp://u:p@host:1/",
		"BROKER_TEST_RABBITMQ_STREAM=rabbitmq-stream://u:p@host:2/",
		"BROKER_TEST_RABBITMQ_MANAGEMENT=http://u:p@host:3",
		"BROKER_TEST_RABBITMQ_CONTAINER=abc",
		"BROKER_TEST_RABBITMQ_VERSION=4.0.5",
	}
	for _, line := range env {
		name, value, _ := strings.Cut(line, "=")
		t.Setenv(name, value)
	}
	in, err := fromEnv(KindRabbitMQ)
	if err != nil {
		t.Fatal(err)
	}
	if got := in.Environ(); !slices.Equal(got, env) {
		t.Errorf("what was read is passed on as\n%v, want\n%v", got, env)
	}
	if !in.Controlled() {
		t.Error("a broker with its container's id is not controlled")
	}
}

func TestBadEndpointsAreRefused(t *testing.T) {
	for kind, value := range map[Kind]string{
		KindKafka: "kafka://nowhere", KindRabbitMQ: "kafka://host:1", KindSQS: "host:1", KindSNS: "amqp://host:1/",
	} {
		t.Setenv(kind.Env(), value)
		if _, err := fromEnv(kind); err == nil || !strings.Contains(err.Error(), kind.Env()) {
			t.Errorf("%s=%s gives %v, want an error that names the variable", kind.Env(), value, err)
		}
	}
}

func TestPowerNeedsAContainer(t *testing.T) {
	in := &Instance{kind: KindSQS}
	ctx := t.Context()
	for name, f := range map[string]func(context.Context) error{
		"Kill": in.Kill, "Stop": in.Stop, "Start": in.Start, "Restart": in.Restart, "Pause": in.Pause, "Resume": in.Resume,
	} {
		if err := f(ctx); !errors.Is(err, ErrNotControlled) {
			t.Errorf("%s gives %v, want ErrNotControlled", name, err)
		}
	}
	if err := in.Terminate(ctx); !errors.Is(err, ErrShared) {
		t.Errorf("Terminate gives %v, want ErrShared", err)
	}
	var e *Error
	if err := in.Kill(ctx); !errors.As(err, &e) || e.Op != "kill" || e.Kind != KindSQS {
		t.Errorf("Kill gives %#v", err)
	}
}

func TestAdvertisedAddrMustBeAnAddress(t *testing.T) {
	if _, err := StartKafka(t.Context(), KafkaOptions{AdvertisedAddr: "nowhere"}); err == nil {
		t.Error("an AdvertisedAddr without a port was taken")
	}
}

func TestPortsDiffer(t *testing.T) {
	ports, err := freePorts(t.Context(), 20)
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(ports)
	if len(slices.Compact(ports)) != 20 {
		t.Errorf("got %v, want 20 different ports", ports)
	}
}

// fakeTB records how a test was ended.
type fakeTB struct {
	testing.TB
	skipped, failed bool
	ctx             context.Context
}

func (f *fakeTB) Helper()                  {}
func (f *fakeTB) Context() context.Context { return f.ctx }
func (f *fakeTB) Skipf(string, ...any)     { f.skipped = true }
func (f *fakeTB) Fatalf(string, ...any)    { f.failed = true }

// Without a broker a test is skipped, and fails with CI=true. Any other error
// fails it in any case.
func TestNeed(t *testing.T) {
	if testing.Short() {
		t.Skip("with -short everything that needs a broker is skipped")
	}
	unavailable := wrap("start", KindSQS, ErrUnavailable)
	for _, c := range []struct {
		ci   string
		err  error
		skip bool
	}{
		{"", unavailable, true},
		{"true", unavailable, false},
		{"", errors.New("it does not serve"), false},
	} {
		t.Setenv("CI", c.ci)
		tb := &fakeTB{ctx: t.Context()}
		// A real Skipf ends the test; this one comes back, and then Fatalf
		// is called too.
		need(tb, KindSQS, func(context.Context) (*SQSInstance, error) { return nil, c.err })
		if tb.skipped != c.skip || (!c.skip && !tb.failed) {
			t.Errorf("CI=%q, %v: skipped %v, failed %v", c.ci, c.err, tb.skipped, tb.failed)
		}
	}
}
