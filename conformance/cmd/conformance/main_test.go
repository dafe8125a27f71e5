package main

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kversion"
	"go.uber.org/goleak"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/conformance"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestRun(t *testing.T) {
	t.Setenv("CONFORMANCE_REPORTS", "") // a few cases are no column of the guarantees
	path := filepath.Join(t.TempDir(), "report.json")
	var out, log bytes.Buffer
	r, err := run(t.Context(), []string{
		"-only", "1, groupfifo,90", "-messages", "20", "-seed", "7", "-version", "3", "-report", path, "-v", "memory://here",
	}, &out, &log)
	if err != nil {
		t.Fatal(err)
	}
	if r.Failed() || r.Name != "memory" || r.Version != "3" || r.Seed != 7 {
		t.Errorf("%+v", r)
	}
	for _, want := range []string{"pass     queue   1 AckedNotLost\n", "pass     stream  1 AckedNotLost\n", "pass     queue  14 GroupFIFO\n", "skip     queue  90 ConnectionCut: ", "(seed 7, "} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	if !strings.Contains(log.String(), "CONFORMANCE_SEED=7") {
		t.Errorf("the log is %q", log.String())
	}
	if back := readReport(t, path); len(back.Results) != len(r.Results) {
		t.Errorf("%+v", back)
	}
}

// What keeps the suite from running ends it at once, says why, and has a
// status of its own.
func TestMistakes(t *testing.T) {
	silent := silentAddr(t)
	nobody := closedAddr(t)
	denied := deniedKafka(t)
	for _, test := range []struct {
		name   string
		args   []string
		status int
		text   string
	}{
		{"help", []string{"-h"}, 0, "usage"},
		{"no URL", nil, exitUsage, "want one URL"},
		{"two URLs", []string{"memory://", "memory://"}, exitUsage, "want one URL"},
		{"unknown flag", []string{"-nope", "memory://"}, exitUsage, "nope"},
		{"kind", []string{"-kind", "log", "memory://"}, exitUsage, "queue, stream or both"},
		{"unknown case", []string{"-only", "NoSuchCase", "memory://"}, exitUsage, "NoSuchCase"},
		{"unknown number", []string{"-only", "1,99", "memory://"}, exitUsage, `"99"`},
		{"no case", []string{"-only", "1,", "memory://"}, exitUsage, "no case"},
		{"nothing to run", []string{"-only", "PartitionOrder", "-kind", "queue", "memory://"}, exitUsage, "PartitionOrder"},
		{"nothing to run on SQS", []string{"-only", "12", "sqs://eu-west-1"}, exitUsage, "stream"},
		{"seed", []string{"-seed", "x", "memory://"}, exitUsage, "seed"},
		{"messages", []string{"-messages", "-3", "memory://"}, exitUsage, "-messages"},
		{"million", []string{"-million", "-3", "memory://"}, exitUsage, "-million"},
		{"time-out", []string{"-connect-timeout", "0s", "memory://"}, exitUsage, "-connect-timeout"},
		{"URL of streams", []string{"-stream-url", "rabbitmq-stream://h", "kafka://h"}, exitUsage, "-stream-url"},
		{"unknown scheme", []string{"nats://host"}, exitUsage, "kafka"},
		{"no scheme", []string{"localhost:9092"}, exitUsage, "kafka"},
		{"parameter", []string{"memory://?profile=none"}, exitUsage, "profile"},
		{"parameter of Kafka", []string{"kafka://host?nope=1"}, exitUsage, "nope"},
		{"parameter of RabbitMQ", []string{"amqp://host?nope=1"}, exitUsage, "nope"},
		{"report", []string{"-report", filepath.Join(t.TempDir(), "no", "file"), "memory://"}, exitUsage, "file"},
		{"no Kafka", []string{"kafka://" + nobody}, exitUnreached, nobody},
		{"no RabbitMQ", []string{"amqp://" + nobody}, exitUnreached, nobody},
		{"no SQS", []string{"sqs://a:b@eu-west-1?endpoint=http://" + nobody}, exitUnreached, nobody},
		{"silent Kafka", []string{"-connect-timeout", "300ms", "kafka://" + silent}, exitUnreached, "no answer within 300ms"},
		{"silent RabbitMQ", []string{"-connect-timeout", "300ms", "amqp://" + silent}, exitUnreached, "no answer within 300ms"},
		{"silent SQS", []string{"-connect-timeout", "300ms", "sqs://a:b@eu-west-1?endpoint=http://" + silent}, exitUnreached, "no answer within 300ms"},
		{"Kafka without a login", []string{"-connect-timeout", "2s", "kafka://" + denied}, exitUnreached, ""},
		{"Kafka that lets make nothing", []string{"kafka://reader:secret@" + denied}, exitRefused, "not authorized"},
		{"no streams", []string{"-kind", "stream", "memory://?profile=sqs-fifo"}, exitRefused, "no streams"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var out, log bytes.Buffer
			start := time.Now()
			status := program(t.Context(), test.args, &out, &log)
			if status != test.status || !strings.Contains(log.String(), test.text) {
				t.Errorf("status %d, want %d; %q in\n%s", status, test.status, test.text, log.String())
			}
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("took %v", took)
			}
			if out.Len() > 0 {
				t.Errorf("it ran:\n%s", out.String())
			}
		})
	}
}

// silentAddr is where somebody listens and says nothing.
func silentAddr(t *testing.T) string {
	t.Helper()
	l := listen(t)
	var conns []net.Conn
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns = append(conns, c)
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
		for _, c := range conns {
			c.Close()
		}
	})
	return l.Addr().String()
}

// closedAddr is where nobody listens.
func closedAddr(t *testing.T) string {
	t.Helper()
	l := listen(t)
	l.Close()
	return l.Addr().String()
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// deniedKafka is a cluster whose user "reader" may make no topics.
func deniedKafka(t *testing.T) string {
	t.Helper()
	return fakeKafka(t, kfake.EnableSASL(), kfake.EnableACLs(), kfake.User("PLAIN", "reader", "secret"))
}

func fakeKafka(t *testing.T, opts ...kfake.Opt) string {
	t.Helper()
	c, err := kfake.NewCluster(append(opts, kfake.NumBrokers(1))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c.ListenAddrs()[0]
}

// What a broker does not have is left out, and said once.
func TestWithoutQueues(t *testing.T) {
	old := fakeKafka(t, kfake.MaxVersions(kversion.V3_9_0()))
	var out, log bytes.Buffer
	if status := program(t.Context(), []string{"-only", "23,74", "-messages", "20", "kafka://" + old}, &out, &log); status != 0 {
		t.Errorf("status %d", status)
	}
	if n := strings.Count(log.String(), "share groups"); n != 1 {
		t.Errorf("told %d times why there are no queues:\n%s", n, log.String())
	}
	if !strings.Contains(out.String(), "pass     stream 74 CloseTwice\n") || strings.Contains(out.String(), "queue") {
		t.Errorf("%s", out.String())
	}
}

// A case that fails is told, and makes the status.
func TestFailedCase(t *testing.T) {
	var out, log bytes.Buffer
	// kfake takes options of topics that do not exist.
	status := program(t.Context(), []string{"-only", "83", "-kind", "stream", "kafka://" + fakeKafka(t)}, &out, &log)
	if status != exitFailed || !strings.Contains(out.String(), "fail     stream 83 UnsupportedRefused\n         ") {
		t.Errorf("status %d\n%s%s", status, out.String(), log.String())
	}
}

// A run that is interrupted reports what had ended by then.
func TestInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	path := filepath.Join(t.TempDir(), "report.json")
	var out bytes.Buffer
	var log watcher
	log.see("34-DedupExpires: skipped", cancel)
	status := program(ctx, []string{"-only", "14,34,38", "-messages", "20", "-v", "-report", path, "memory://"}, &out, &log)
	if status != exitUnfinished || !strings.Contains(log.String(), "interrupted after 2 of 4 cases") {
		t.Errorf("status %d\n%s", status, log.String())
	}
	r := readReport(t, path)
	if len(r.Results) != 2 || r.Find(14, conformance.Queue) == nil || r.Find(34, conformance.Queue) == nil || r.Failed() {
		t.Errorf("%+v", r.Results)
	}
	if !strings.Contains(out.String(), "pass     queue  14 GroupFIFO\n") {
		t.Error(out.String())
	}
	out.Reset()
	var again bytes.Buffer
	if status := program(ctx, []string{"memory://"}, &out, &again); status != exitUnfinished || !strings.Contains(again.String(), "before the first case") || out.Len() > 0 {
		t.Errorf("status %d\n%s", status, again.String())
	}
}

// A watcher calls a function when a text is written.
type watcher struct {
	bytes.Buffer
	text string
	then func()
}

func (w *watcher) see(text string, then func()) { w.text, w.then = text, then }

func (w *watcher) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte(w.text)) {
		w.then()
	}
	return w.Buffer.Write(p)
}

func readReport(t *testing.T, path string) *conformance.Report {
	t.Helper()
	f, err := os.Open(path) //nolint:gosec // the test's own
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := conformance.ReadReport(f)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// A queue of Kafka is declared with a lease that a cluster takes by default: 15
// to 60 s.
func TestKafkaLease(t *testing.T) {
	h, err := (&target{url: "kafka://h"}).harness()
	if err != nil {
		t.Fatal(err)
	}
	for lease, want := range map[time.Duration]time.Duration{0: 0, h.Lease: 30 * time.Second} {
		cfg := broker.QueueConfig{Lease: lease}
		if err := h.QueueConfig(&cfg); err != nil || cfg.Lease != want {
			t.Errorf("%v became %v, %v", lease, cfg.Lease, err)
		}
	}
}

func TestHarness(t *testing.T) {
	for _, test := range []struct {
		url, kind string
		want      conformance.Kind
	}{
		{"kafka://h", "", conformance.Both},
		{"amqp://h", "", conformance.Both},
		{"sqs://eu", "", conformance.Queue},
		{"memory://", "", conformance.Both},
		{"SQS://eu", "", conformance.Queue},
		{"sqs://eu", "queue", conformance.Queue},
		{"sqs://eu", "stream", conformance.Stream},
		{"sqs://eu", "both", conformance.Both},
	} {
		h, err := (&target{url: test.url, kind: test.kind}).harness()
		if err != nil || h.Kinds != test.want {
			t.Errorf("%+v: %v, %v", test, h.Kinds, err)
		}
		if fifo := strings.HasSuffix(h.NewName("ordered"), ".fifo"); fifo != (h.Name == "sqs") {
			t.Errorf("%+v: %s", test, h.NewName("ordered"))
		}
	}
}
