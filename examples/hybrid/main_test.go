package main

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/queuestream/broker/conformance/containers"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func tell(t *testing.T, stream, queue, worker string) {
	t.Helper()
	var out bytes.Buffer
	err := run(t.Context(), &out, stream, queue, worker, 30)
	if err != nil || !strings.Contains(out.String(), "30 orders, 30 in the index, 30 pings, 30 got exactly one e-mail") {
		t.Errorf("%v; the story:\n%s", err, &out)
	}
}

func TestStory(t *testing.T) { tell(t, "memory://hybrid", "memory://hybrid", "") }

// The same on real Kafka and ElasticMQ, through package bridge and through the
// worker.
func TestRealStory(t *testing.T) {
	k, q := containers.NeedKafka(t), containers.NeedSQS(t)
	queue := "sqs://x:x@elasticmq?poll_wait=1s&endpoint=" + q.URL
	t.Run("library", func(t *testing.T) { tell(t, k.URL, queue, "") })
	t.Run("worker", func(t *testing.T) {
		worker := filepath.Join(t.TempDir(), "bridge")
		if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", worker, "../../cmd/bridge").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		tell(t, k.URL, queue, worker)
	})
}

func TestWorkerNeedsRealBrokers(t *testing.T) {
	if err := run(t.Context(), &bytes.Buffer{}, "memory://hybrid", "memory://hybrid", "bridge", 1); err == nil || !strings.Contains(err.Error(), "-worker") {
		t.Error(err)
	}
}
