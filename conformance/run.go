package conformance

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/queuestream/broker"
)

// Run runs the suite under t, a *testing.T or what looks like one: each case is
// a part of its own, named kind/number-name. It returns the report, which holds
// the cases that were run, and writes it as JSON into the directory that the
// environment variable CONFORMANCE_REPORTS names, if it does.
func Run[S interface {
	T
	Run(name string, f func(S)) bool
}](t S, h Harness) *Report {
	t.Helper()
	h, err := h.withDefaults()
	if err != nil {
		t.Fatalf("%v", err)
	}
	report := &Report{Name: h.Name, Version: h.Version, Seed: h.Seed, Started: time.Now()}
	t.Logf("conformance of %s %s; -seed=%d (see SeedFlag) or CONFORMANCE_SEED=%d repeats this run", h.Name, h.Version, h.Seed, h.Seed)
	cases := Cases()
	for _, kind := range []Kind{Queue, Stream} {
		if h.Kinds&kind == 0 {
			continue
		}
		t.Run(kind.String(), func(t S) {
			for i := range cases {
				test := &cases[i]
				if !test.has(kind) || !h.wants(test) {
					continue
				}
				t.Run(test.Title(), func(t S) {
					r := Result{ID: test.ID, Name: test.Name, Kind: kind.String(), Group: test.Group, Status: StatusFail, Failures: []string{"the case did not end"}}
					defer func() { report.Results = append(report.Results, r) }() // also where Around ends the test
					runCase(t, &h, test, kind, report, &r)
					tell(t, test, &r)
				})
			}
		})
	}
	report.Elapsed = time.Since(report.Started)
	t.Logf("%s", report.Summary())
	if h.unreported {
		return report
	}
	if err := report.save(); err != nil {
		t.Errorf("%v", err)
	}
	return report
}

// Check runs the suite from a program that has no package testing.
func Check(ctx context.Context, h Harness) (*Report, error) {
	h, err := h.withDefaults()
	if err != nil {
		return nil, err
	}
	t := newProgramT(ctx, h.Name, &lockedWriter{w: h.Log})
	var report *Report
	t.Run("conformance", func(t *programT) { report = Run(t, h) })
	t.finish()
	if err := broker.ContextError(ctx); err != nil {
		return report, fmt.Errorf("conformance: %w", err)
	}
	return report, nil
}

func (c *Case) has(kind Kind) bool {
	return kind == Queue && c.Queue != nil || kind == Stream && c.Stream != nil
}

// tell reports a result to the test.
func tell(t T, test *Case, r *Result) {
	t.Helper()
	switch r.Status {
	case StatusFail:
		for _, f := range r.Failures {
			t.Errorf("%d %s: %s", test.ID, test.Name, f)
		}
		t.Logf("the rule: %s (%s)", test.Rule, test.Source)
	case StatusExpected:
		t.Skipf("expected difference: %s: %v", r.Reason, r.Failures)
	case StatusSkip:
		t.Skipf("%s", r.Reason)
	case StatusRefused:
		t.Logf("refused, as it must be: %s", r.Reason)
	}
}

func runCase(t T, h *Harness, test *Case, kind Kind, report *Report, r *Result) {
	h.Around(t, func(t T) {
		start := time.Now()
		c := newC(t, h, test, kind)
		defer c.cancel()
		c.bounded("the case", h.CaseTimeout+grace, func() { c.body(report) })
		c.cancel()
		c.bounded("cleaning up", time.Minute+grace, c.runCleanup)
		*r = c.seal()
		r.Elapsed = time.Since(start)
	})
	if reason, ok := h.Expected[test.ID]; ok {
		switch r.Status {
		case StatusFail:
			r.Status, r.Reason = StatusExpected, reason
		case StatusPass:
			r.Reason = "passed, though a difference is expected: " + reason
		}
	}
}

// grace is what a case gets after its context has ended.
const grace = 10 * time.Second

// bounded runs f in a goroutine and gives up on it after d.
func (c *C) bounded(what string, d time.Duration, f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer c.recover()
		f()
	}()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
		buf := make([]byte, 256<<10)
		c.Errorf("%s hangs: it did not return within %v\n%s", what, d, prose(buf[:runtime.Stack(buf, true)]))
	}
}

func (c *C) body(report *Report) {
	defer c.Wait()
	c.broker = c.OpenBroker()
	if c.kind == Queue {
		c.runQueue(c.test.Queue, report)
	} else {
		c.runStream(c.test.Stream, report)
	}
}

func (c *C) runQueue(q *QueueCase, report *Report) {
	queue, err := c.declareQueue(c.broker, q.Config)
	if errors.Is(err, broker.ErrUnsupported) && q.Needs != (broker.QueueCapabilities{}) {
		plain := c.DeclareQueue(nil)
		c.refuseQueue(q, plain)
		c.Refused("declaring: %v", err)
	}
	c.Must(err, "declare a queue")
	caps := queue.Capabilities()
	if report.Queue == nil {
		report.Queue = &caps
	}
	if err := caps.Satisfies(q.Needs); err != nil {
		c.refuseQueue(q, queue)
		c.Refused("%v", err)
	}
	q.Run(c, queue)
	c.Wait()
	if !c.Failed() {
		c.drained(queue.Name())
	}
}

func (c *C) refuseQueue(q *QueueCase, queue broker.Queue) {
	ctx, cancel := c.Soon()
	defer cancel()
	if queue.Capabilities().Satisfies(q.Needs) != nil {
		got, err := c.broker.Queue(ctx, queue.Name(), &broker.QueueOptions{Require: q.Needs})
		c.WantErr(err, broker.ErrUnsupported, "open a queue with Require %+v, which it does not claim", q.Needs)
		if err == nil {
			c.track("queue", got.Close)
		}
	}
	if q.Refuse != nil {
		q.Refuse(c, queue)
	}
}

func (c *C) runStream(s *StreamCase, report *Report) {
	stream, err := c.declareStream(s.Config)
	if errors.Is(err, broker.ErrUnsupported) && s.Needs != (broker.StreamCapabilities{}) {
		plain := c.DeclareStream(nil)
		c.refuseStream(s, plain)
		c.Refused("declaring: %v", err)
	}
	c.Must(err, "declare a stream")
	caps := stream.Capabilities()
	if report.Stream == nil {
		report.Stream = &caps
	}
	if err := caps.Satisfies(s.Needs); err != nil {
		c.refuseStream(s, stream)
		c.Refused("%v", err)
	}
	s.Run(c, stream)
}

func (c *C) refuseStream(s *StreamCase, stream broker.Stream) {
	ctx, cancel := c.Soon()
	defer cancel()
	if stream.Capabilities().Satisfies(s.Needs) != nil {
		got, err := c.broker.Stream(ctx, stream.Name(), &broker.StreamOptions{Require: s.Needs})
		c.WantErr(err, broker.ErrUnsupported, "open a stream with Require %+v, which it does not claim", s.Needs)
		if err == nil {
			c.track("stream", got.Close)
		}
	}
	if s.Refuse != nil {
		s.Refuse(c, stream)
	}
}
