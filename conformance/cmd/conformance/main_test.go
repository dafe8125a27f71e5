package main

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

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
		"-only", "1,groupfifo,90", "-messages", "20", "-seed", "7", "-version", "3", "-report", path, "-v", "memory://here",
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
	f, err := os.Open(path) //nolint:gosec // the test's own
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if back, err := conformance.ReadReport(f); err != nil || len(back.Results) != len(r.Results) {
		t.Errorf("%+v, %v", back, err)
	}
}

func TestRunFails(t *testing.T) {
	for _, test := range []struct {
		args string
		want error
		text string
	}{
		{"-h", flag.ErrHelp, ""},
		{"", nil, "want one URL"},
		{"memory:// memory://", nil, "want one URL"},
		{"-kind log memory://", nil, "queue, stream or both"},
		{"-only NoSuchCase memory://", nil, "NoSuchCase"},
		{"-seed x memory://", nil, "seed"},
		{"nats://host", broker.ErrUnsupported, "kafka"},
		{"memory://?profile=none", broker.ErrInvalid, "profile"},
	} {
		r, err := run(t.Context(), strings.Fields(test.args), &bytes.Buffer{}, &bytes.Buffer{})
		if err == nil || r != nil || test.want != nil && !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) {
			t.Errorf("%q: %v", test.args, err)
		}
	}
}

func TestHarness(t *testing.T) {
	for url, want := range map[string]conformance.Kind{
		"kafka://h": conformance.Both, "amqp://h": conformance.Both, "sqs://eu": conformance.Queue, "memory://": conformance.Both,
	} {
		h, err := harness(url, "")
		if err != nil || h.Kinds != want {
			t.Errorf("%s: %v, %v", url, h.Kinds, err)
		}
		if h.NewName != nil && !strings.HasSuffix(h.NewName("ordered"), ".fifo") {
			t.Errorf("%s: %s", url, h.NewName("ordered"))
		}
	}
	for kind, want := range map[string]conformance.Kind{"queue": conformance.Queue, "stream": conformance.Stream, "both": conformance.Both} {
		if h, err := harness("sqs://eu", kind); err != nil || h.Kinds != want {
			t.Errorf("%s: %v, %v", kind, h.Kinds, err)
		}
	}
}
