package conformance

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/memory"
)

// realHarness runs on a memory broker in real time.
func realHarness(only ...string) Harness {
	return Harness{
		Name: "memory", Version: "1", Kinds: Queue, Only: only, Embedded: true,
		Open:  func(ctx context.Context) (broker.Broker, error) { return memory.Open(ctx, nil) },
		Lease: 100 * time.Millisecond, Delay: 50 * time.Millisecond, Quiet: 30 * time.Millisecond, Tick: 5 * time.Millisecond,
		Patience: 5 * time.Second, Million: 20_000, unreported: true,
	}
}

func TestMemoryQueueInRealTime(t *testing.T) { allRun(t, Run(t, inRealTime(t, realHarness()))) }

// A broker that lives in its client has one client.
func TestMemoryQueueEmbedded(t *testing.T) {
	Run(t, realHarness("1", "7", "11", "14", "56", "74", "79", "80", "89", "96"))
}

func TestTable(t *testing.T) {
	cases := Cases()
	for i, c := range cases {
		switch {
		case c.ID != i+1:
			t.Errorf("case %d is at %d", c.ID, i)
		case c.Name == "" || c.Rule == "" || c.Source == "" || c.Group == "":
			t.Errorf("case %d is incomplete: %+v", c.ID, c)
		case c.Kind&Queue != 0 && (c.Queue == nil || c.Queue.Run == nil):
			t.Errorf("case %d %s has no half for queues", c.ID, c.Name)
		case c.Kind&Stream != 0 && (c.Stream == nil || c.Stream.Run == nil):
			t.Errorf("case %d %s has no half for streams", c.ID, c.Name)
		}
	}
	if len(cases) != 98 {
		t.Errorf("%d cases", len(cases))
	}
	halves := map[Kind]map[int]bool{Queue: {}, Stream: {}}
	for id := range queueCases() {
		halves[Queue][id] = true
	}
	for id := range streamCases() {
		halves[Stream][id] = true
	}
	for kind, ids := range halves {
		for id := range ids {
			if id < 1 || id > len(cases) || cases[id-1].Kind&kind == 0 {
				t.Errorf("case %d has a half for %ss that the table does not know", id, kind)
			}
		}
	}
	covered := map[int]bool{}
	for _, g := range guarantees {
		for _, id := range g.cases {
			covered[id] = true
		}
	}
	for _, c := range cases {
		if !covered[c.ID] {
			t.Errorf("case %d %s belongs to no guarantee", c.ID, c.Name)
		}
	}
}

func TestReport(t *testing.T) {
	h := realHarness("1", "FIFOSingle", "6", "PublishedIsDurable", "91")
	h.Seed = 7
	var log bytes.Buffer
	h.Log = &log
	report, err := Check(t.Context(), h)
	if err != nil {
		t.Fatal(err)
	}
	want := map[int]Status{1: StatusPass, 6: StatusRefused, 13: StatusPass, 91: StatusSkip}
	for id, status := range want {
		if r := report.Find(id, Queue); r == nil || r.Status != status {
			t.Errorf("case %d: %+v, want %s", id, r, status)
		}
	}
	if len(report.Results) != len(want) || report.Failed() || report.Queue == nil {
		t.Errorf("%+v", report)
	}
	if !strings.Contains(log.String(), "CONFORMANCE_SEED=7") {
		t.Errorf("the seed is not in the log: %s", log.String())
	}
	var out bytes.Buffer
	if err := report.WriteJSON(&out); err != nil {
		t.Fatal(err)
	}
	back, err := ReadReport(&out)
	if err != nil {
		t.Fatal(err)
	}
	if back.Summary() != report.Summary() || len(back.Results) != len(report.Results) || back.Seed != 7 {
		t.Errorf("written %s, read %s", report.Summary(), back.Summary())
	}
}

func TestBadHarness(t *testing.T) {
	open := func(context.Context) (broker.Broker, error) { return nil, errors.New("down") }
	for _, h := range []Harness{{}, {Name: "x", Open: open}, {Name: "x", Open: open, Kinds: 8}, {Name: "x", Kinds: Queue}} {
		if _, err := Check(t.Context(), h); err == nil {
			t.Errorf("%+v: no error", h)
		}
	}
	t.Setenv("CONFORMANCE_SEED", "not a number")
	if _, err := Check(t.Context(), realHarness("1")); err == nil {
		t.Error("a seed that is no number: no error")
	}
	t.Setenv("CONFORMANCE_SEED", "11")
	report, err := Check(t.Context(), realHarness("none"))
	if err != nil || report.Seed != 11 {
		t.Errorf("%+v, %v", report, err)
	}
}

func TestBrokerDown(t *testing.T) {
	h := realHarness("AckedNotLost")
	h.Open = func(context.Context) (broker.Broker, error) { return nil, errors.New("down") }
	report, err := Check(t.Context(), h)
	if err != nil {
		t.Fatal(err)
	}
	if r := report.Results[0]; r.Status != StatusFail || !strings.Contains(r.Failures[0], "down") {
		t.Errorf("%+v", r)
	}
}

// runOne runs a case that is not in the table.
func runOne(t *testing.T, h Harness, run func(c *C, q broker.Queue)) Result {
	t.Helper()
	h, err := h.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	var r Result
	test := &Case{ID: 1, Name: "test", Kind: Queue, Queue: &QueueCase{Run: run}}
	runCase(t, &h, test, Queue, &Report{}, &r)
	return r
}

func TestHowCasesEnd(t *testing.T) {
	h := realHarness()
	h.Soon = 50 * time.Millisecond
	for _, tt := range []struct {
		name string
		run  func(c *C, q broker.Queue)
		want Status
		says string
	}{
		{"pass", func(c *C, _ broker.Queue) { c.Note("k", "%d", 1) }, StatusPass, ""},
		{"fail", func(c *C, _ broker.Queue) { c.Fatalf("bad %d", 1) }, StatusFail, "bad 1"},
		{"fail in a goroutine", func(c *C, _ broker.Queue) { c.Go(func() { c.Fatalf("bad") }); c.Wait() }, StatusFail, "bad"},
		{"panic", func(*C, broker.Queue) { panic("oops") }, StatusFail, "oops"},
		{"panic in a goroutine", func(c *C, _ broker.Queue) { c.Go(func() { panic("oops") }) }, StatusFail, "oops"},
		{"skip", func(c *C, _ broker.Queue) { c.Skip("no %s", "way") }, StatusSkip, "no way"},
		{"refused", func(c *C, _ broker.Queue) { c.Refused("rightly") }, StatusRefused, "rightly"},
		{"a failure before a skip counts", func(c *C, _ broker.Queue) { c.Errorf("bad"); c.Skip("late") }, StatusFail, "bad"},
		{"impatient", func(c *C, _ broker.Queue) { c.Sleep(time.Hour) }, StatusSkip, "1h0m0s"},
		{"not eventually", func(c *C, _ broker.Queue) { c.Eventually("rain", func() bool { return false }) }, StatusFail, "rain"},
		{"nothing comes", func(c *C, q broker.Queue) { c.ReceiveOne(c.Consumer(q, nil)) }, StatusFail, "nothing was delivered"},
		{"an untyped error", func(c *C, _ broker.Queue) { c.WantErr(broker.ErrClosed, broker.ErrClosed, "close") }, StatusFail, "not a *broker.Error"},
		{"no fault", func(c *C, _ broker.Queue) { c.Inject(FaultKill) }, StatusSkip, "broker killed"},
		{"a call that hangs", func(c *C, _ broker.Queue) { c.Prompt("it", time.Millisecond, func() { <-c.ctx.Done() }) }, StatusFail, "it hangs"},
		{"a message that stays", func(c *C, q broker.Queue) { c.Publish(q, broker.Message{}) }, StatusPass, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := runOne(t, h, tt.run)
			if text := strings.Join(append(slices.Clone(r.Failures), r.Reason), "\n"); r.Status != tt.want || !strings.Contains(text, tt.says) {
				t.Errorf("%s %q, want %s %q", r.Status, text, tt.want, tt.says)
			}
		})
	}
}

func TestExpectedDifference(t *testing.T) {
	h := realHarness()
	h.Expected = map[int]string{1: "the emulator forgets"}
	if r := runOne(t, h, func(c *C, _ broker.Queue) { c.Errorf("forgotten") }); r.Status != StatusExpected || r.Reason != "the emulator forgets" || len(r.Failures) != 1 {
		t.Errorf("%+v", r)
	}
	if r := runOne(t, h, func(*C, broker.Queue) {}); r.Status != StatusPass || !strings.Contains(r.Reason, "passed, though") {
		t.Errorf("%+v", r)
	}
}

func TestFaultThatNeverBites(t *testing.T) {
	h := realHarness()
	stopped := 0
	h.Faults = map[FaultKind]func(context.Context) (Injection, error){
		FaultPause: func(context.Context) (Injection, error) {
			return Injection{Stop: func(context.Context) error { stopped++; return nil }, Bites: func() int64 { return 0 }}, nil
		},
	}
	r := runOne(t, h, func(c *C, _ broker.Queue) { c.Inject(FaultPause) })
	if r.Status != StatusFail || !strings.Contains(r.Failures[0], "never bit") || stopped != 1 {
		t.Errorf("%+v, stopped %d times", r, stopped)
	}
}

// Each Run leaves a report of its own where the environment says.
func TestReportsDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "reports")
	t.Setenv(reportsEnv, dir)
	h := realHarness("1")
	h.Name, h.Version, h.unreported = "a name", "1.2", false
	want := Run(t, h)
	Run(t, h)
	files, err := filepath.Glob(filepath.Join(dir, "a-name-1.2-*.json"))
	if err != nil || len(files) != 2 {
		t.Fatalf("files %v, %v: want one for each of two runs", files, err)
	}
	f, err := os.Open(files[0])
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got, err := ReadReport(f)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Results) != len(want.Results) || got.Find(1, Queue) == nil {
		t.Errorf("read %+v", got.Results)
	}
}
