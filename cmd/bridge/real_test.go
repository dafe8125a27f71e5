package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/internal/bridgetest"
)

// mainEnv makes the test binary the worker.
const mainEnv = "BRIDGE_TEST_MAIN"

// The worker as it is deployed, on real Kafka and ElasticMQ: check, run with a
// second member joining and the first told to stop, dry run and replay. The
// queue suppresses nothing, so that each duplicate would show.
func TestRealWorker(t *testing.T) {
	name := "worker-" + broker.NewID()[24:]
	brokers := bridgetest.Open(t, name, 4, broker.QueueConfig{}, name, name+"-dead")
	w := &worker{t: t, kafka: brokers.KafkaURL, sqs: "sqs://x:x@elasticmq?endpoint=" + brokers.SQSURL, name: name}
	arrived, stream := brokers.Consume(t, name), brokers.Stream

	const n = 4000
	publish(t, stream, n)
	first, second := w.config(), w.config()
	if code, out := w.start("check", "-c", first.file, "--connect").Wait(); code != exitOK || !strings.Contains(out, "ok") {
		t.Fatalf("check ended with %d: %s", code, out)
	}
	a := w.start("run", "-c", first.file)
	arrived.Until(t, n/10)
	b := w.start("run", "-c", second.file)
	arrived.Until(t, n/3)
	a.Terminate()
	if code, out := a.Wait(); code != exitOK {
		t.Errorf("the first worker ended with %d: %s", code, out)
	}
	publish(t, stream, n)
	arrived.Until(t, 2*n)
	w.until("readiness", func() bool { return second.get("GET", second.listen, "/readyz") == "ok\n" })
	metrics := second.get("GET", second.listen, "/metrics")
	for _, want := range []string{`bridge_batch_tasks_bucket{route="r",le="10"}`, `bridge_records_total{outcome="enqueued",route="r"}`} {
		if !strings.Contains(metrics, want) {
			t.Errorf("no metric %s", want)
		}
	}
	w.until("no lag", func() bool { return strings.Count(second.get("GET", second.admin, "/routes/r/lag"), `"lag": 0`) == 4 })
	b.Terminate()
	if code, out := b.Wait(); code != exitOK {
		t.Errorf("the second worker ended with %d: %s", code, out)
	}
	if got := arrived.Count(); got != 2*n {
		t.Errorf("%d tasks of %d records", got, 2*n)
	}

	replay := []string{"replay", "-c", first.file, "--route", "r", "--from", "offset:10", "--until", "offset:20"}
	code, out := w.start(append(replay, "--dry-run")...).Wait()
	if code != exitOK || strings.Count(out, `"outcome":"send"`) != 40 || !strings.Contains(out, "40 would be sent") {
		t.Errorf("the dry run ended with %d: %s", code, out)
	}
	if code, out := w.start(replay...).Wait(); code != exitOK || !strings.Contains(out, "40 enqueued") {
		t.Errorf("the replay ended with %d: %s", code, out)
	}
	arrived.Until(t, 2*n+40)
	if got := arrived.Count(); got != 2*n+40 {
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

func (w *worker) start(args ...string) *bridgetest.Process {
	w.t.Helper()
	return bridgetest.Start(w.t, mainEnv, "1", args...)
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
