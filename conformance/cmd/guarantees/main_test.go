package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/queuestream/broker/conformance"
)

func TestRun(t *testing.T) {
	report := &conformance.Report{Name: "a|b", Version: "1", Results: []conformance.Result{
		{ID: 1, Name: "AckedNotLost", Kind: "queue", Status: conformance.StatusPass},
		{ID: 13, Name: "FIFOSingle", Kind: "queue", Status: conformance.StatusRefused, Reason: "unsupported"},
		{ID: 9, Name: "NackRequeues", Kind: "queue", Status: conformance.StatusFail, Failures: []string{"lost\nmore"}},
		{ID: 7, Name: "UnackedReturns", Kind: "queue", Status: conformance.StatusPass},
		{ID: 89, Name: "RequestReply", Kind: "queue", Status: conformance.StatusSkip, Reason: "because"},
		{ID: 36, Name: "ContentDedup", Kind: "queue", Status: conformance.StatusExpected, Reason: "emulator", Notes: map[string]string{"window": "5m"}},
	}}
	path := filepath.Join(t.TempDir(), "report.json")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := report.WriteJSON(f); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	var out, summary bytes.Buffer
	if err := run([]string{path}, &out, &summary); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`| guarantee | a\|b 1 |`,
		"| [yes](#case-1) |", "| [no](#case-13) |", "[7](#case-7) [9](#case-9) | **[BROKEN](#case-9)** |",
		"| [not run](#case-89) |", "| [differs](#case-36) |",
		"### 9 NackRequeues", ": fail: lost\n", ": expected: emulator; window 5m\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in:\n%s", want, out.String())
		}
	}
	if !strings.Contains(summary.String(), " failed, ") {
		t.Errorf("the summary is %q", summary.String())
	}
	if strings.Contains(out.String(), "## Streams") {
		t.Error("a table for streams, and no stream was tested")
	}
}

func TestRunFails(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.json")
	if err := os.WriteFile(bad, []byte(`{"name": "x", "no such field": 1}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, paths := range [][]string{nil, {"missing.json"}, {bad}} {
		if err := run(paths, &bytes.Buffer{}, &bytes.Buffer{}); err == nil {
			t.Errorf("%q: no error", paths)
		}
	}
}
