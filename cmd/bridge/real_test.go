package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/kafka"
	"github.com/queuestream/broker/adapters/sqs"
	"github.com/queuestream/broker/conformance/containers"
)

// mainEnv makes the test binary the worker.
const mainEnv = "BRIDGE_TEST_MAIN"

// The worker as it is deployed, on real Kafka and ElasticMQ: check, run with a
// second member joining and the first told to stop, dry run and replay. The
// queue suppresses nothing, so that each duplicate would show.
func TestRealWorker(t *testing.T) {
	k, q := containers.NeedKafka(t), containers.NeedSQS(t)
	ctx := t.Context()
	name := "worker-" + broker.NewID()[24:]
	events, err := kafka.OpenURL(ctx, k.URL)
	check(t, err)
	admin, _ := broker.As[broker.Admin](events)
	check(t, admin.DeclareStream(ctx, name, broker.StreamConfig{Partitions: 4}))
	stream, err := events.Stream(ctx, name, nil)
	check(t, err)
	tasks, err := sqs.Open(ctx, &sqs.Options{
		Region: "elasticmq", Endpoint: q.URL, Credentials: credentials.NewStaticCredentialsProvider("x", "x", ""),
	})
	check(t, err)
	for _, queue := range []string{name, name + "-dead"} {
		check(t, tasks.DeclareQueue(ctx, queue, broker.QueueConfig{}))
	}
	t.Cleanup(func() {
		ctx := context.WithoutCancel(ctx)
		check(t, errors.Join(admin.DeleteStream(ctx, name), events.Close(),
			tasks.DeleteQueue(ctx, name), tasks.DeleteQueue(ctx, name+"-dead"), tasks.Close()))
	})
	w := &worker{t: t, kafka: k.URL, sqs: "sqs://x:x@elasticmq?endpoint=" + q.URL, name: name}
	arrived := w.consume(tasks)

	const n = 4000
	publish(t, stream, n)
	first, second := w.config(), w.config()
	if code, out := w.start("check", "-c", first.file, "--connect").wait(); code != exitOK || !strings.Contains(out, "ok") {
		t.Fatalf("check ended with %d: %s", code, out)
	}
	a := w.start("run", "-c", first.file)
	arrived.until(t, n/10)
	b := w.start("run", "-c", second.file)
	arrived.until(t, n/3)
	a.terminate()
	if code, out := a.wait(); code != exitOK {
		t.Errorf("the first worker ended with %d: %s", code, out)
	}
	publish(t, stream, n)
	arrived.until(t, 2*n)
	w.until("readiness", func() bool { return second.get("GET", second.listen, "/readyz") == "ok\n" })
	metrics := second.get("GET", second.listen, "/metrics")
	for _, want := range []string{`bridge_batch_tasks_bucket{route="r",le="10"}`, `bridge_records_total{outcome="enqueued",route="r"}`} {
		if !strings.Contains(metrics, want) {
			t.Errorf("no metric %s", want)
		}
	}
	w.until("no lag", func() bool { return strings.Count(second.get("GET", second.admin, "/routes/r/lag"), `"lag": 0`) == 4 })
	b.terminate()
	if code, out := b.wait(); code != exitOK {
		t.Errorf("the second worker ended with %d: %s", code, out)
	}
	if got := arrived.count(); got != 2*n {
		t.Errorf("%d tasks of %d records", got, 2*n)
	}

	replay := []string{"replay", "-c", first.file, "--route", "r", "--from", "offset:10", "--until", "offset:20"}
	code, out := w.start(append(replay, "--dry-run")...).wait()
	if code != exitOK || strings.Count(out, `"outcome":"send"`) != 40 || !strings.Contains(out, "40 would be sent") {
		t.Errorf("the dry run ended with %d: %s", code, out)
	}
	if code, out := w.start(replay...).wait(); code != exitOK || !strings.Contains(out, "40 enqueued") {
		t.Errorf("the replay ended with %d: %s", code, out)
	}
	arrived.until(t, 2*n+40)
	if got := arrived.count(); got != 2*n+40 {
		t.Errorf("%d tasks after the replay, want %d", got, 2*n+40)
	}
}

func publish(t *testing.T, s broker.Stream, n int) {
	t.Helper()
	rs := make([]broker.Record, n)
	for i := range rs {
		rs[i] = broker.Record{Key: fmt.Appendf(nil, "k%d", i%100), Value: strconv.AppendInt(nil, int64(i), 10)}
	}
	_, err := s.PublishBatch(t.Context(), rs)
	check(t, err)
}

// A worker is what all processes of the test share.
type worker struct {
	t                *testing.T
	kafka, sqs, name string
}

// A workerConfig is a process's configuration; the rest of bench is unused.
type workerConfig struct {
	bench
	file string
}

func (w *worker) config() *workerConfig {
	w.t.Helper()
	c := &workerConfig{bench: bench{t: w.t, listen: freeAddr(w.t), admin: freeAddr(w.t)}, file: filepath.Join(w.t.TempDir(), "bridge.yaml")}
	check(w.t, os.WriteFile(c.file, fmt.Appendf(nil, `brokers: {events: %q, tasks: %q}
routes:
  - name: r
    source: {broker: events, stream: %[3]s}
    target: {broker: tasks, queue: %[3]s}
    poison: {queue: %[3]s-dead}
worker: {listen: %[4]q, admin_listen: %[5]q}
`, w.kafka, w.sqs, w.name, c.listen, c.admin), 0o600))
	return c
}

// A process is a run of the worker's main.
type process struct {
	t   *testing.T
	cmd *exec.Cmd
	out buffer
	end func() error
}

func (w *worker) start(args ...string) *process {
	w.t.Helper()
	p := &process{t: w.t, cmd: exec.CommandContext(w.t.Context(), os.Args[0], args...)}
	p.cmd.Env = append(os.Environ(), mainEnv+"=1")
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.out
	_, err := p.cmd.StdinPipe() // the process ends when it closes
	check(w.t, err)
	check(w.t, p.cmd.Start())
	p.end = sync.OnceValue(p.cmd.Wait)
	w.t.Cleanup(func() {
		if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			w.t.Error(err)
		}
		p.end() //nolint:errcheck // it was killed, or has ended before
	})
	return p
}

func (p *process) terminate() {
	p.t.Helper()
	check(p.t, p.cmd.Process.Signal(syscall.SIGTERM))
}

// wait returns the exit code and all output.
func (p *process) wait() (int, string) {
	p.t.Helper()
	if err := p.end(); err != nil {
		if _, ok := errors.AsType[*exec.ExitError](err); !ok {
			p.t.Fatal(err)
		}
	}
	return p.cmd.ProcessState.ExitCode(), p.out.String()
}

// An inbox counts what arrives at the queue.
type inbox struct {
	mu     sync.Mutex
	n      int
	failed error
}

func (w *worker) consume(b *sqs.Broker) *inbox {
	w.t.Helper()
	q, err := b.Queue(w.t.Context(), w.name, nil)
	check(w.t, err)
	c, err := q.Consumer(w.t.Context(), nil)
	check(w.t, err)
	in := &inbox{}
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			ds, err := c.Receive(ctx, 500)
			if err == nil {
				err = broker.AckAll(ctx, ds...)
			}
			in.mu.Lock()
			in.n += len(ds)
			if err != nil && ctx.Err() == nil {
				in.failed = err
			}
			in.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	w.t.Cleanup(func() {
		cancel()
		<-done
		check(w.t, errors.Join(c.Close(), q.Close()))
	})
	return in
}

func (in *inbox) count() int {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.n
}

// until waits for n tasks, as long as some arrive.
func (in *inbox) until(t *testing.T, n int) {
	t.Helper()
	last, since := -1, time.Now()
	for tick := time.Tick(10 * time.Millisecond); ; <-tick {
		in.mu.Lock()
		got, err := in.n, in.failed
		in.mu.Unlock()
		check(t, err)
		switch {
		case got >= n:
			return
		case got != last:
			last, since = got, time.Now()
		case time.Since(since) > time.Minute:
			t.Fatalf("%d of %d tasks arrived, and no more for a minute", got, n)
		}
	}
}

func (w *worker) until(what string, done func() bool) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	for !done() {
		select {
		case <-ctx.Done():
			w.t.Fatalf("waited in vain for %s", what)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
