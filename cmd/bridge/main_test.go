package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/goleak"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/memory"
	"github.com/queuestream/broker/adapters/sqs"
	"github.com/queuestream/broker/bridge"
	"github.com/queuestream/broker/internal/bridgetest"
)

func TestMain(m *testing.M) {
	if os.Getenv(mainEnv) != "" {
		go bridgetest.EndWithParent()
		main()
	}
	goleak.VerifyTestMain(m)
}

// A shared broker stays open when the worker closes it.
type shared struct{ broker.Broker }

func (shared) Close() error                   { return nil }
func (shared) Shutdown(context.Context) error { return nil }

// A bench is an embedded broker with a stream of n records, and a worker's
// configuration around it.
type bench struct {
	t              *testing.T
	broker         *memory.Broker
	stream         broker.Stream
	config         string
	admin, listen  string
	terminal       bool
	stdout, stderr bridgetest.Output
}

func newBench(t *testing.T, n int, more string) *bench {
	t.Helper()
	ctx := t.Context()
	m, err := memory.Open(ctx, nil)
	check(t, err)
	t.Cleanup(func() { check(t, m.Close()) })
	b := &bench{t: t, broker: m, admin: freeAddr(t), listen: freeAddr(t)}
	check(t, m.DeclareStream(ctx, "orders", broker.StreamConfig{Partitions: 2}))
	for _, q := range []string{"tasks", "dead"} {
		check(t, m.DeclareQueue(ctx, q, broker.QueueConfig{Ordered: true, Dedup: true}))
	}
	b.stream, err = m.Stream(ctx, "orders", nil)
	check(t, err)
	rs := make([]broker.Record, n)
	for i := range rs {
		rs[i] = broker.Record{Key: fmt.Appendf(nil, "k%d", i%5), Value: fmt.Appendf(nil, `{"n":%d}`, i)}
	}
	_, err = b.stream.PublishBatch(ctx, rs)
	check(t, err)
	b.config = filepath.Join(t.TempDir(), "bridge.yaml")
	check(t, os.WriteFile(b.config, fmt.Appendf(nil, `brokers: {m: "memory://x"}
routes:
  - name: r
    source: {broker: m, stream: orders}
    target: {broker: m, queue: tasks}
    poison: {queue: dead}
%s
worker: {listen: %q, admin_listen: %q, pprof: true}
`, more, b.listen, b.admin), 0o600))
	return b
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // a test on the loopback
	check(t, err)
	defer func() { check(t, l.Close()) }()
	return l.Addr().String()
}

func (b *bench) run(ctx context.Context, args ...string) int {
	e := env{stdout: &b.stdout, stderr: &b.stderr, terminal: b.terminal, open: bridge.Openers{Brokers: broker.Openers{
		"memory": func(context.Context, string) (broker.Broker, error) { return shared{b.broker}, nil },
		"sqs":    sqs.OpenURL,
	}}}
	return run(ctx, e, args)
}

// get answers the body of a URL, or "" while the worker does not answer 200.
func (b *bench) get(method, addr, path string) string {
	b.t.Helper()
	req, err := http.NewRequestWithContext(b.t.Context(), method, "http://"+addr+path, nil)
	check(b.t, err)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Do(req)
	if err != nil {
		return ""
	}
	body, err := io.ReadAll(res.Body)
	check(b.t, err)
	check(b.t, res.Body.Close())
	if res.StatusCode != http.StatusOK {
		return ""
	}
	return string(body)
}

func (b *bench) until(what string, done func() bool) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 20*time.Second)
	defer cancel()
	for !done() {
		select {
		case <-ctx.Done():
			b.t.Fatalf("waited in vain for %s; stderr:\n%s", what, b.stderr.String())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (b *bench) ready(queue string) int64 {
	b.t.Helper()
	s, err := b.broker.QueueStats(b.t.Context(), queue)
	check(b.t, err)
	return s.Ready
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestRun(t *testing.T) {
	b := newBench(t, 100, "")
	ctx, cancel := context.WithCancel(t.Context())
	code := make(chan int, 1)
	go func() { code <- b.run(ctx, "run", "-c", b.config) }()
	b.until("the tasks", func() bool { return b.ready("tasks") == 100 })
	b.until("readiness", func() bool { return b.get("GET", b.listen, "/readyz") == "ok\n" })
	if b.get("GET", b.listen, "/livez") != "ok\n" {
		t.Error("not alive")
	}
	b.until("no lag", func() bool {
		var lag []partitionLag
		check(t, json.Unmarshal([]byte(b.get("GET", b.admin, "/routes/r/lag")), &lag))
		return len(lag) == 2 && lag[0].Lag+lag[1].Lag == 0
	})
	metrics := b.get("GET", b.listen, "/metrics")
	for _, want := range []string{
		`bridge_records_total{outcome="enqueued",route="r"} 100`,
		`bridge_records_total{outcome="in",route="r"} 100`,
		`bridge_lag_records{partition="1",route="r"} 0`,
		`bridge_window_records{route="r"} 0`,
		`bridge_window_age_seconds{route="r"} 0`,
		`bridge_retries_total{route="r"} 0`,
		`bridge_duplicates_avoided_total{route="r"} 0`,
		`bridge_records_total{outcome="filtered",route="r"} 0`,
		`bridge_records_total{outcome="parked",route="r"} 0`,
		`bridge_handle_seconds_count{outcome="enqueued",route="r"} 100`,
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("no metric %s", want)
		}
	}
	if b.get("POST", b.admin, "/routes/r/pause") == "" || !strings.Contains(b.get("GET", b.admin, "/routes"), `"paused": true`) {
		t.Error("pause")
	}
	if b.get("POST", b.admin, "/routes/r/resume") == "" || strings.Contains(b.get("GET", b.admin, "/routes/r"), `"paused": true`) {
		t.Error("resume")
	}
	if b.get("GET", b.admin, "/routes/x") != "" || b.get("GET", b.admin, "/debug/pprof/cmdline") == "" {
		t.Error("unknown route, or pprof")
	}
	cancel()
	if c := <-code; c != exitOK {
		t.Errorf("exit code %d: %s", c, b.stderr.String())
	}
}

// What adapters log is JSON beside the worker's.
func TestAdaptersLogAsTheWorkerDoes(t *testing.T) {
	b := newBench(t, 1, "")
	e := env{stdout: &b.stdout, stderr: &b.stderr, open: bridge.Openers{Brokers: broker.Openers{
		"memory": func(context.Context, string) (broker.Broker, error) {
			slog.Warn("from an adapter")
			return shared{b.broker}, nil
		},
	}}}
	if code := run(t.Context(), e, []string{"replay", "-c", b.config, "--route", "r"}); code != exitOK || !strings.Contains(b.stderr.String(), `"level":"WARN","msg":"from an adapter"}`) {
		t.Errorf("exit code %d: %s", code, b.stderr.String())
	}
}

// A deployment may end a worker that has not begun: no failure.
func TestStoppedWhileStarting(t *testing.T) {
	b := newBench(t, 1, "")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	e := env{stdout: &b.stdout, stderr: &b.stderr, open: bridge.Openers{Brokers: broker.Openers{
		"memory": func(ctx context.Context, _ string) (broker.Broker, error) {
			cancel()
			return nil, ctx.Err()
		},
	}}}
	if code := run(ctx, e, []string{"run", "-c", b.config}); code != exitOK || !strings.Contains(b.stderr.String(), "ended before it ran") {
		t.Errorf("exit code %d: %s", code, b.stderr.String())
	}
}

// A request that goes on and on neither keeps the worker nor makes its end a failure.
func TestStopCutsRequestsOff(t *testing.T) {
	began, end := make(chan struct{}), make(chan struct{})
	slow := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(began)
		<-r.Context().Done()
		close(end)
	})
	srv, addr, err := listen(t.Context(), "127.0.0.1:0", slow, slog.New(slog.DiscardHandler))
	check(t, err)
	asked := make(chan error, 1)
	go func() {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr, nil)
		if err == nil {
			var res *http.Response
			if res, err = http.DefaultClient.Do(r); err == nil {
				err = res.Body.Close()
			}
		}
		asked <- err
	}()
	<-began
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := (&servers{public: srv}).shutdown(ended); err != nil {
		t.Error(err)
	}
	<-end
	if err := <-asked; err == nil {
		t.Error("the request was answered")
	}
}

func TestExitCodes(t *testing.T) {
	halt := newBench(t, 3, "    task: {body: =fromJSON(value).n.x}\n")
	data, err := os.ReadFile(halt.config)
	check(t, err)
	check(t, os.WriteFile(halt.config, bytes.Replace(data, []byte("{queue: dead}"), []byte("{policy: halt}"), 1), 0o600))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	bad := newBench(t, 0, "    concurrency: many\n")
	param := newBench(t, 0, "")
	data, err = os.ReadFile(param.config)
	check(t, err)
	check(t, os.WriteFile(param.config, bytes.Replace(data, []byte("memory://x"), []byte("sqs://eu-west-1?endpont=x"), 1), 0o600))
	two := newBench(t, 0, "  - {name: s, source: {broker: m, stream: orders}, target: {broker: m, queue: tasks}, poison: {policy: skip}}\n")
	rank := newBench(t, 0, "    task: {priority: 5}\n")
	gone, astray := newBench(t, 0, ""), newBench(t, 0, "")
	for b, change := range map[*bench][2]string{gone: {"stream: orders", "stream: nowhere"}, astray: {"queue: tasks", "queue: nowhere"}} {
		data, err = os.ReadFile(b.config)
		check(t, err)
		check(t, os.WriteFile(b.config, bytes.Replace(data, []byte(change[0]), []byte(change[1]), 1), 0o600))
	}
	for name, tt := range map[string]struct {
		b      *bench
		args   []string
		code   int
		stderr string
	}{
		"halted":           {halt, []string{"run", "-c", halt.config}, exitHalted, "route r halted"},
		"no source":        {gone, []string{"run", "-c", gone.config}, exitHalted, `open stream "nowhere"`},
		"no target":        {astray, []string{"run", "-c", astray.config}, exitFailure, `open queue "nowhere"`},
		"configuration":    {bad, []string{"run", "-c", bad.config}, exitConfig, `:7: routes[0].concurrency: "many", want a whole number`},
		"URL":              {param, []string{"run", "-c", param.config}, exitConfig, "endpont"},
		"URL offline":      {param, []string{"check", "-c", param.config}, exitConfig, ":1: brokers.m: "},
		"queue":            {rank, []string{"check", "-c", rank.config, "--connect"}, exitConfig, ":7: routes[0].task.priority: "},
		"no such file":     {bad, []string{"check", "-c", "/nowhere.yaml"}, exitConfig, "/nowhere.yaml"},
		"no such command":  {bad, []string{"walk"}, exitConfig, "walk"},
		"no such route":    {halt, []string{"replay", "-c", halt.config, "--route", "x"}, exitConfig, `--route "x": want one of [r]`},
		"no position":      {halt, []string{"replay", "-c", halt.config, "--route", "r", "--from", "monday"}, exitConfig, "--from"},
		"end as start":     {halt, []string{"replay", "-c", halt.config, "--route", "r", "--from", "now"}, exitConfig, `--from: invalid: "now"`},
		"start as end":     {halt, []string{"replay", "-c", halt.config, "--route", "r", "--until", "earliest"}, exitConfig, `--until: invalid: "earliest"`},
		"live group":       {halt, []string{"replay", "-c", halt.config, "--route", "r", "--group", "bridge-r"}, exitConfig, `--group "bridge-r"`},
		"end before start": {halt, []string{"replay", "-c", halt.config, "--route", "r", "--from", "2026-05-02T00:00:00Z", "--until", "2026-05-01T00:00:00Z"}, exitConfig, "--until 2026-05-01T00:00:00Z: it lies before"},
		"end below start":  {halt, []string{"replay", "-c", halt.config, "--route", "r", "--from", "offset:2", "--until", "offset:1"}, exitConfig, "--until offset:1: it lies before"},
		"another's group":  {two, []string{"replay", "-c", two.config, "--route", "r", "--group", "bridge-s"}, exitConfig, `--group "bridge-s": it is that of route s`},
		"no such offset":   {halt, []string{"replay", "-c", halt.config, "--route", "r", "--from", "offset:500"}, exitConfig, "offset 500 in partition 0: want 0 to"},
		"nor in dry runs":  {halt, []string{"replay", "-c", halt.config, "--route", "r", "--from", "offset:500", "--dry-run"}, exitConfig, "offset 500"},
		"help":             {bad, []string{"--help"}, exitOK, ""},
	} {
		t.Run(name, func(t *testing.T) {
			if code := tt.b.run(ctx, tt.args...); code != tt.code || !strings.Contains(tt.b.stderr.String(), tt.stderr) {
				t.Errorf("exit code %d, want %d; stderr:\n%s", code, tt.code, tt.b.stderr.String())
			}
		})
	}
}

// What the worker alone reads is checked with the rest, and named with its line.
func TestWorkerMistakes(t *testing.T) {
	const config = `brokers: {x: memory://x}
routes:
  - {name: r, source: {broker: x, stream: s}, target: {broker: x, queue: q}, poison: {policy: skip}}
worker:
  log_level: info
  `
	for field, want := range map[string]string{
		`listen: "8080"`:                                `:6: worker.listen: "8080", want an address such as :8080`,
		`listen: ":80x"`:                                ":6: worker.listen: ",
		`admin_listen: 127.0.0.1`:                       ":6: worker.admin_listen: ",
		`admin_listen: 127.0.0.1:99999`:                 ":6: worker.admin_listen: ",
		"admin_listen: off\n  pprof: true":              ":7: worker.pprof: ",
		`otlp_endpoint: collector:4318`:                 ":6: worker.otlp_endpoint: ",
		`otlp_endpoint: "http://"`:                      ":6: worker.otlp_endpoint: ",
		`otlp_endpoint: https://c:4318/v1/traces`:       "",
		`listen: "127.0.0.1:8081"`:                      ":6: worker.listen: the port of 127.0.0.1:8081 is that of 127.0.0.1:8081",
		"listen: 127.0.0.1:80\n  admin_listen: \":80\"": ":6: worker.listen: ",
		`admin_listen: "[::]:8080"`:                     ":6: worker.admin_listen: ",
		`admin_listen: off`:                             "",
		`listen: "[::1]:0"`:                             "",
	} {
		file := filepath.Join(t.TempDir(), "bridge.yaml")
		check(t, os.WriteFile(file, []byte(config+field+"\n"), 0o600))
		var stdout, stderr bytes.Buffer
		code := run(t.Context(), env{stdout: &stdout, stderr: &stderr, open: openers()}, []string{"check", "-c", file})
		if bad := want != ""; (code == exitConfig) != bad || (code == exitOK) == bad || !strings.Contains(stderr.String(), want) {
			t.Errorf("%s: exit code %d; stderr: %s", field, code, stderr.String())
		}
	}
}

// A route with batch_same_group gets an SQS client that does its part.
func TestBatchSameGroupReachesSQS(t *testing.T) {
	const config = `brokers: {x: memory://x, q: %q}
routes:
  - name: r
    source: {broker: x, stream: s}
    target: {broker: q, queue: q.fifo}
    poison: {policy: skip}
    batch_same_group: %v
`
	for _, tt := range []struct {
		url, want string
		on        bool
	}{
		{"sqs://eu-west-1", "sqs://eu-west-1", false},
		{"sqs://eu-west-1", "sqs://eu-west-1?batch_groups=true", true},
		{"sqs://eu-west-1?endpoint=http://x:1", "sqs://eu-west-1?batch_groups=true&endpoint=http%3A%2F%2Fx%3A1", true},
		{"sqs://k:s@eu-west-1?batch_groups=1", "sqs://k:s@eu-west-1?batch_groups=1", true},
		{"sqs://eu-west-1?batch_groups=false", ":7: routes[0].batch_same_group: true, and the URL of broker q says batch_groups=false", true},
		{"amqp://x", "amqp://x", true},
	} {
		file := filepath.Join(t.TempDir(), "bridge.yaml")
		check(t, os.WriteFile(file, fmt.Appendf(nil, config, tt.url, tt.on), 0o600))
		cfg, err := configFlag{Config: file}.load()
		if err != nil {
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s: %v", tt.url, err)
			}
			continue
		}
		if got := cfg.Brokers["q"]; got != tt.want {
			t.Errorf("%s, %v: opens %s, want %s", tt.url, tt.on, got, tt.want)
		}
		check(t, openers().Check(t.Context(), cfg))
	}
}

func TestCheck(t *testing.T) {
	b := newBench(t, 7, "")
	if code := b.run(t.Context(), "check", "-c", b.config, "--connect"); code != exitOK {
		t.Fatalf("exit code %d: %s", code, b.stderr.String())
	}
	if out := b.stdout.String(); !strings.Contains(out, "route r: 2 partitions, 7 records behind") || !strings.HasSuffix(out, ": ok\n") {
		t.Errorf("printed %q", out)
	}
}

func TestReplay(t *testing.T) {
	b := newBench(t, 40, "    filter: int(fromJSON(value).n) % 2 == 0\n")
	if code := b.run(t.Context(), "replay", "-c", b.config, "--route", "r", "--dry-run"); code != exitOK {
		t.Fatalf("exit code %d: %s", code, b.stderr.String())
	}
	if lines := strings.Count(b.stdout.String(), "\n"); lines != 40 || b.ready("tasks") != 0 ||
		!strings.Contains(b.stderr.String(), "40 records, 20 would be sent, 20 filtered, 0 poison; nothing was sent") {
		t.Errorf("%d lines, %d tasks; stderr %s", lines, b.ready("tasks"), b.stderr.String())
	}
	if code := b.run(t.Context(), "replay", "-c", b.config, "--route", "r", "--group", "again"); code != exitOK {
		t.Fatalf("exit code %d: %s", code, b.stderr.String())
	}
	if b.ready("tasks") != 20 || !strings.Contains(b.stdout.String(), "20 enqueued (0 of them known to the queue already), 20 filtered") {
		t.Errorf("%d tasks; printed %s", b.ready("tasks"), b.stdout.String())
	}
	// On a terminal the progress has a line of its own.
	b.terminal = true
	if code := b.run(t.Context(), "replay", "-c", b.config, "--route", "r", "--group", "shown"); code != exitOK ||
		!strings.HasSuffix(b.stderr.String(), "\r40 read, 20 enqueued, 20 filtered, 0 parked\n") {
		t.Errorf("exit code %d, progress %q", code, b.stderr.String())
	}
	// The same again: the queue knows them, unless they get ids of their own.
	if code := b.run(t.Context(), "replay", "-c", b.config, "--route", "r", "--group", "once"); code != exitOK || b.ready("tasks") != 20 {
		t.Errorf("exit code %d, %d tasks, want 20", code, b.ready("tasks"))
	}
	if code := b.run(t.Context(), "replay", "-c", b.config, "--route", "r", "--group", "fresh", "--fresh-ids"); code != exitOK || b.ready("tasks") != 40 {
		t.Errorf("exit code %d, %d tasks, want 40", code, b.ready("tasks"))
	}
}

// What fails at tracing is logged as everything is.
func TestTracingFailuresAreLogged(t *testing.T) {
	var out bytes.Buffer
	tr, err := newTracing(t.Context(), "http://127.0.0.1:1/v1/traces", slog.New(slog.NewJSONHandler(&out, nil)))
	check(t, err)
	otel.Handle(errors.New("nobody listens"))
	check(t, tr.close())
	if !strings.Contains(out.String(), `"msg":"tracing failed","error":"nobody listens"`) {
		t.Errorf("logged %q", out.String())
	}
}

func TestTracing(t *testing.T) {
	rec := tracetest.NewSpanRecorder()
	tr := tracingTo(sdktrace.WithSpanProcessor(rec))
	parent := trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, TraceFlags: trace.FlagsSampled}
	r := &broker.Record{Headers: broker.Headers{{Key: "a", Value: "b"}}}
	propagation.TraceContext{}.Inject(trace.ContextWithSpanContext(t.Context(), trace.NewSpanContext(parent)), &r.Headers)
	was := r.Headers.Get("traceparent")
	var inside string
	err := tr.middleware("r")[0](func(_ context.Context, in broker.Incoming) error {
		inside = in.HeaderSet().Get("traceparent")
		return nil
	})(t.Context(), r)
	check(t, err)
	check(t, tr.close())
	if mw := (&tracing{}).middleware("r"); len(mw) > 0 {
		t.Error("a middleware that traces nothing")
	}
	spans := rec.Ended()
	if len(spans) != 1 || spans[0].Parent().SpanID() != parent.SpanID || spans[0].SpanContext().TraceID() != parent.TraceID {
		t.Fatalf("spans: %v", spans)
	}
	if !strings.Contains(inside, spans[0].SpanContext().SpanID().String()) || r.Headers.Get("traceparent") != was {
		t.Errorf("inside %s, afterwards %s", inside, r.Headers.Get("traceparent"))
	}
}
