package conformance

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"time"

	"github.com/queuestream/broker"
)

var streamLife = map[int]StreamCase{
	73: {Config: partitions(2), Run: streamContextCancel},
	74: {Run: streamCloseTwice},
	75: {Config: partitions(2), Run: streamCloseFlushes},
	76: {Run: streamUseAfterClose},
	77: {Config: partitions(4), Run: streamConcurrentUse},
	78: {Config: partitions(2), Run: streamNoLeaks},
	79: {Config: partitions(2), Run: streamCloseWithUnread},
	80: {Config: partitions(2), Run: streamCloseWhileDown},
}

// promptly runs f, which must return soon, and returns what it returned.
func (r *streamRun) promptly(what string, f func() error) error {
	done := make(chan error, 1)
	r.Go(func() { done <- f() })
	timer := time.NewTimer(r.C.h.Soon)
	defer timer.Stop()
	select {
	case err := <-done:
		return err
	case <-timer.C:
		r.Fatalf("%s did not return within %v", what, r.C.h.Soon)
		return nil
	}
}

// firstErr returns what ends a Read.
func firstErr(ctx context.Context, s broker.Stream, rg broker.Range) error {
	for _, err := range s.Read(ctx, rg) {
		if err != nil {
			return err
		}
	}
	return nil
}

func streamContextCancel(c *C, s broker.Stream) {
	r := newStreamRun(c, s)
	zero, _ := r.twoFull(20)
	ended, cancel := context.WithCancel(c.Context())
	cancel()
	m := r.join(c.Name("group"), broker.GroupOptions{}, nil)
	first := m.collect(5)
	never := r.make("never", 3, 1)
	for what, f := range map[string]func() error{
		"Publish":      func() error { _, err := r.trySend(ended, s, "p", never[0]); return err },
		"PublishBatch": func() error { _, err := r.trySendBatch(ended, s, "p", never[1:]); return err },
		"Receive":      func() error { _, err := m.poll(ended, 10); return err },
		"Commit":       func() error { return m.consumer().Commit(ended, first...) },
		"Read":         func() error { return firstErr(ended, s, broker.Range{}) },
		"Consumer": func() error {
			gc, err := s.Consumer(ended, c.Name("group"), nil)
			if err == nil {
				c.track("member", gc.Close)
			}
			return err
		},
	} {
		if err := r.promptly(what+" with an ended context", f); !errors.Is(err, context.Canceled) {
			c.Errorf("%s with an ended context: %v, want context.Canceled", what, err)
		}
	}
	// These may answer from memory, but must return.
	for what, f := range map[string]func() error{
		"Partitions": func() error { _, err := s.Partitions(ended); return err },
		"Lag":        func() error { _, err := s.Lag(ended, m.group); return err },
		"Ping":       func() error { return c.Broker().Ping(ended) },
	} {
		if err := r.promptly(what+" with an ended context", f); err != nil && !errors.Is(err, context.Canceled) {
			c.Errorf("%s with an ended context: %v, want nil or context.Canceled", what, err)
		}
	}
	for p, l := range r.stored(m.group) {
		if l.HasCommit {
			c.Errorf("Commit with an ended context stored %v for partition %d", l.Committed, p)
		}
	}
	rest := m.collect(35)
	r.sameValues(valuesOf(of(append(first, rest...), 0)), sentValues(zero), "what Receive returned around an ended context")

	// A blocked Receive returns when its context ends, and again when that has
	// a deadline; nothing that comes at that moment is lost.
	var want, got []string
	for range 20 {
		ctx, cancel := context.WithCancel(c.Context())
		rs := r.pinned("race", 1, 0)
		want = append(want, sentValues(rs)...)
		sent := make(chan struct{})
		c.Go(func() { defer close(sent); r.send("p", rs...); cancel() })
		recs, err := m.poll(ctx, 10)
		if err != nil && !errors.Is(err, context.Canceled) {
			c.Errorf("Receive while its context ends: %v, want context.Canceled", err)
		}
		<-sent
		got = append(got, valuesOf(recs)...)
	}
	got = append(got, valuesOf(m.collect(len(want)-len(got)))...)
	r.sameValues(got, want, "what came while contexts ended")
	m.nothing("everything was received")

	// Read stops in the middle.
	ctx, cancel := context.WithCancel(c.Context())
	defer cancel()
	n := 0
	err := r.promptly("Read whose context ends in the middle", func() error {
		for _, err := range s.Read(ctx, broker.Range{}) {
			if err != nil {
				return err
			}
			if n++; n == 1 {
				cancel()
			}
		}
		return nil
	})
	if err != nil && !errors.Is(err, context.Canceled) {
		c.Errorf("Read whose context ended in the middle: %v, want context.Canceled", err)
	}
	r.judge()
}

// declareOn declares and opens a stream through another client.
func (r *streamRun) declareOn(b broker.Broker) broker.Stream {
	var cfg broker.StreamConfig
	if edit := r.C.h.StreamConfig; edit != nil {
		r.Must(edit(&cfg), "edit the stream's configuration")
	}
	admin, ok := broker.As[broker.Admin](b)
	if !ok {
		r.Skip("the broker has no broker.Admin")
	}
	ctx, cancel := r.Soon()
	defer cancel()
	name := r.Name("stream")
	r.Must(admin.DeclareStream(ctx, name, cfg), "declare a stream")
	if !r.Harness().Embedded {
		r.Cleanup(func(ctx context.Context) error { return r.Admin().DeleteStream(ctx, name) })
	}
	return r.reopen(b, &namedStream{name: name})
}

// A namedStream has nothing but a name.
type namedStream struct {
	broker.Stream
	name string
}

func (s *namedStream) Name() string { return s.name }

func streamCloseTwice(c *C, s broker.Stream) {
	r := newStreamRun(c, s)
	b := c.OpenBroker()
	other := r.declareOn(b)
	r.sendTo(other, r.make("twice", 3, 0)...)
	gc, err := other.Consumer(c.Context(), c.Name("group"), nil)
	c.Must(err, "join a group")
	for _, h := range []struct {
		what  string
		close func() error
	}{{"member", gc.Close}, {"stream", other.Close}, {"broker", b.Close}} {
		r.parallel(4, func(int) {
			if err := r.promptly("Close of the "+h.what, h.close); err != nil {
				c.Errorf("Close of the %s, called by four at once: %v", h.what, err)
			}
		})
		if err := r.promptly("Close of the "+h.what, h.close); err != nil {
			c.Errorf("Close of the %s again: %v", h.what, err)
		}
	}
	ctx, cancel := c.Soon()
	defer cancel()
	if err := r.promptly("Shutdown after Close", func() error { return b.Shutdown(ctx) }); err != nil && !errors.Is(err, broker.ErrClosed) {
		c.Errorf("Shutdown after Close: %v, want nil or ErrClosed", err)
	}
}

// sendTo publishes to a stream that is not the case's; nothing is recorded.
func (r *streamRun) sendTo(s broker.Stream, rs ...broker.Record) {
	ctx, cancel := r.Soon()
	defer cancel()
	_, err := s.PublishBatch(ctx, rs)
	r.Must(err, "publish a batch of %d", len(rs))
}

func streamCloseFlushes(c *C, s broker.Stream) {
	r := newStreamRun(c, s)
	group := c.Name("group")
	again, err := c.Broker().Stream(c.Context(), s.Name(), nil)
	c.Must(err, "open the stream again")
	zero, one := r.pinned("zero", 20, 0), r.pinned("one", 20, 1)
	ctx, cancel := c.Soon()
	defer cancel()
	_, err = r.trySend(ctx, again, "p", zero...)
	c.Must(err, "publish")
	_, err = r.trySendBatch(ctx, again, "p", one)
	c.Must(err, "publish a batch")
	m := r.joinStream(again, group, broker.GroupOptions{}, nil)
	all := m.collect(40)
	m.done(of(all, 0)[:7]...)
	m.done(of(all, 1)...)
	m.close()
	c.Must(r.promptly("Close", again.Close), "close the stream")
	m = r.join(group, broker.GroupOptions{}, nil)
	r.sameValues(valuesOf(m.collect(13)), sentValues(zero[7:]), "behind what was committed before Close")
	m.nothing("the rest was committed before Close")
	if !c.Harness().Embedded { // another client, drained by Shutdown
		b := c.OpenBroker()
		other := r.reopen(b, s)
		last := r.pinned("last", 5, 0)
		_, err = r.trySend(ctx, other, "q", last...)
		c.Must(err, "publish")
		c.Must(r.promptly("Shutdown", func() error { return b.Shutdown(ctx) }), "shut the broker down")
	}
	r.judge()
}

func streamUseAfterClose(c *C, s broker.Stream) {
	r := newStreamRun(c, s)
	b := c.OpenBroker()
	other := r.declareOn(b)
	rs := r.make("before", 3, 1)
	r.sendTo(other, rs...)
	gc, err := other.Consumer(c.Context(), c.Name("group"), nil)
	c.Must(err, "join a group")
	ctx, cancel := c.Soon()
	defer cancel()
	got, err := gc.Receive(ctx, 3)
	c.Must(err, "receive")
	closed := func(what string, f func() error) {
		c.WantErr(r.promptly(what, f), broker.ErrClosed, "%s", what)
	}

	// A blocked Receive returns; what is published next is not for it.
	blocked := make(chan error, 1)
	waiting, err := other.Consumer(ctx, c.Name("group"), &broker.GroupOptions{Start: broker.Latest()})
	c.Must(err, "join another group")
	c.Go(func() {
		for {
			if _, err := waiting.Receive(c.Context(), 1); err != nil {
				blocked <- err
				return
			}
		}
	})
	c.Until(c.Harness().Quiet, func() bool { return false })
	c.Must(waiting.Close(), "leave while Receive blocks")
	closed("a Receive that blocks while its member is closed", func() error { return <-blocked })

	c.Must(gc.Close(), "leave the group")
	closed("Receive of a closed member", func() error { _, err := gc.Receive(ctx, 1); return err })
	closed("Seek of a closed member", func() error { return gc.Seek(ctx, 0, broker.Earliest()) })
	if err := r.promptly("Commit of a closed member", func() error { return gc.Commit(ctx, got...) }); !errors.Is(err, broker.ErrClosed) && !errors.Is(err, broker.ErrFenced) {
		c.Errorf("Commit of a closed member: %v, want ErrClosed or ErrFenced", err)
	}
	if ps := gc.Partitions(); len(ps) != 0 {
		c.Errorf("a closed member has the partitions %v", ps)
	}
	gc.Pause(0)
	gc.Resume(0)

	c.Must(other.Close(), "close the stream")
	streamClosed := func(which string, s broker.Stream) {
		closed("Publish to "+which, func() error { _, err := s.Publish(ctx, rs[0]); return err })
		closed("PublishBatch to "+which, func() error { _, err := s.PublishBatch(ctx, rs); return err })
		closed("Consumer of "+which, func() error { _, err := s.Consumer(ctx, c.Name("group"), nil); return err })
		closed("Partitions of "+which, func() error { _, err := s.Partitions(ctx); return err })
		closed("Lag of "+which, func() error { _, err := s.Lag(ctx, c.Name("group")); return err })
		closed("Read of "+which, func() error { return firstErr(ctx, s, broker.Range{}) })
	}
	streamClosed("a closed stream", other)
	if other.Name() == "" {
		c.Errorf("a closed stream has no name")
	}
	again := r.reopen(b, other)
	if got, err := r.countOf(again); err != nil || got != 3 {
		c.Errorf("opened again, the stream has %d records (%v), want 3", got, err)
	}
	c.Must(b.Close(), "close the broker")
	streamClosed("a stream of a closed broker", again)
	closed("Stream of a closed broker", func() error { _, err := b.Stream(ctx, other.Name(), nil); return err })
	closed("Ping of a closed broker", func() error { return b.Ping(ctx) })
}

// countOf counts the records of a stream that is not the case's.
func (r *streamRun) countOf(s broker.Stream) (int, error) {
	ctx, cancel := r.Soon()
	defer cancel()
	n := 0
	for _, err := range s.Read(ctx, broker.Range{}) {
		if err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

func streamConcurrentUse(c *C, s broker.Stream) {
	r := newStreamRun(c, s)
	group := c.Name("group")
	var got tally
	members, stop := r.share(group, 2, &got)
	values := make([][]string, 4)
	r.parallel(8, func(w int) {
		ctx, cancel := c.Soon()
		defer cancel()
		switch {
		case w < 4:
			who := "producer " + itoa(w)
			rs := r.make(who, 50, 8)
			values[w] = sentValues(rs)
			r.send(who, rs[:25]...)
			r.sendBatch(who, rs[25:])
		case w < 6:
			for range 10 {
				if _, err := s.Partitions(ctx); err != nil {
					c.Errorf("Partitions: %v", err)
				}
				if _, err := s.Lag(ctx, group); err != nil {
					c.Errorf("Lag: %v", err)
				}
				if err := firstErr(ctx, s, broker.Range{}); err != nil {
					c.Errorf("Read: %v", err)
				}
				_, _ = s.Name(), s.Capabilities()
			}
		default:
			for range 50 {
				m := members[w-6].consumer()
				ps := m.Partitions()
				m.Pause(ps...)
				m.Resume(ps...)
				if err := m.Commit(ctx); err != nil {
					c.Errorf("Commit of nothing: %v", err)
				}
			}
		}
	})
	r.complete("the group", &got, slices.Concat(values...))
	stop()
	r.stored(group)
	r.judge()
}

func streamNoLeaks(c *C, s broker.Stream) {
	r := newStreamRun(c, s)
	use := func() {
		b := c.OpenBroker()
		other := r.declareOn(b)
		r.sendTo(other, r.make("leak", 50, 0)...)
		ctx, cancel := c.Soon()
		defer cancel()
		for _, err := range other.Read(ctx, broker.Range{}) {
			c.Must(err, "read")
			break
		}
		opts := &broker.GroupOptions{OnAssigned: func([]int32) {}, OnRevoked: func(context.Context, []int32) {}, OnLost: func([]int32) {}}
		for range 2 {
			gc, err := other.Consumer(ctx, c.Name("group"), opts)
			c.Must(err, "join a group")
			_, err = gc.Receive(ctx, 1)
			c.Must(err, "receive")
		}
		c.Must(b.Close(), "close the broker with everything that is open")
	}
	use() // what is made once stays
	before := runtime.NumGoroutine()
	const cycles = 6
	for range cycles {
		use()
	}
	// One for each second cycle is a leak; less comes and goes beside the case.
	if !c.Until(c.Harness().Soon, func() bool { return runtime.NumGoroutine() < before+cycles/2 }) {
		buf := make([]byte, 64<<10)
		c.Errorf("%d goroutines after Close, before there were %d\n%s", runtime.NumGoroutine(), before, prose(buf[:runtime.Stack(buf, true)]))
	}
}

func streamCloseWithUnread(c *C, s broker.Stream) {
	r := newStreamRun(c, s)
	group := c.Name("group")
	zero, one := r.twoFull(c.Harness().Messages)
	m := r.join(group, broker.GroupOptions{}, nil)
	first := m.collect(1)
	m.done(first...)
	c.Must(r.promptly("Close of a member with unread records", m.closeErr), "close")
	m = r.join(group, broker.GroupOptions{}, nil)
	rest := m.collect(len(zero) + len(one) - 1)
	r.sameSet(valuesOf(append(first, rest...)), append(sentValues(zero), sentValues(one)...), "around the Close")
	m.close()

	again, err := c.Broker().Stream(c.Context(), s.Name(), nil)
	c.Must(err, "open the stream again")
	m = r.joinStream(again, c.Name("group"), broker.GroupOptions{}, nil)
	m.collect(1)
	c.Must(r.promptly("Close of a stream whose member has unread records", again.Close), "close")
	r.judge()
}

func streamCloseWhileDown(c *C, s broker.Stream) {
	r := newStreamRun(c, s)
	r.twoFull(20)
	b := c.Fresh()
	again := r.reopen(b, s)
	gc, err := again.Consumer(c.Context(), c.Name("group"), nil)
	c.Must(err, "join a group")
	got, err := gc.Receive(c.Context(), 1)
	c.Must(err, "receive")
	kind := FaultBlackHole
	if c.Harness().Faults[kind] == nil {
		kind = FaultPause
	}
	in := c.Inject(kind)
	r.callsEnd(b, again, gc, got)
	c.Go(func() {
		ctx, cancel := c.Within(closeBound)
		defer cancel()
		// Whatever comes of it: it must not keep Close waiting.
		_, _ = r.trySend(ctx, again, "p", r.make("into the void", 1, 0)...)
	})
	c.pass(c.h.Quiet)
	start := time.Now()
	for what, f := range map[string]func() error{"member": gc.Close, "stream": again.Close} {
		if err := r.promptly("Close of the "+what+" while the broker is down", f); err != nil {
			c.Logf("close of the %s while the broker is down: %v", what, err)
		}
	}
	if b != c.Broker() {
		if err := r.promptly("Close of the broker while it is down", b.Close); err != nil {
			c.Logf("close of the broker while it is down: %v", err)
		}
	}
	c.Note("closed after", "%v", time.Since(start).Round(time.Millisecond))
	c.Must(in.Stop(c.Context()), "end the fault")
	r.judge()
}

// callsEnd checks that each call returns when its context ends, whatever the
// broker does not answer.
func (r *streamRun) callsEnd(b broker.Broker, s broker.Stream, m broker.GroupConsumer, got []*broker.Record) {
	admin := r.Admin()
	r.endWithin([]endingCall{
		{"publish", func(ctx context.Context) error {
			_, err := r.trySend(ctx, s, "p", r.make("void", 1, 0)...)
			return err
		}},
		{"publish a batch", func(ctx context.Context) error {
			_, err := r.trySendBatch(ctx, s, "p", r.make("void", 2, 0))
			return err
		}},
		{"receive and seek", func(ctx context.Context) error { // one goroutine does both
			for {
				if _, err := m.Receive(ctx, 100); err != nil {
					break
				}
			}
			ctx, cancel := r.Within(r.C.h.Quiet)
			defer cancel()
			return m.Seek(ctx, got[0].Partition, broker.Latest())
		}},
		{"commit", func(ctx context.Context) error { return m.Commit(ctx, got...) }},
		{"read", func(ctx context.Context) error { return firstErr(ctx, s, broker.Range{}) }},
		{"partitions", func(ctx context.Context) error { _, err := s.Partitions(ctx); return err }},
		{"lag", func(ctx context.Context) error { _, err := s.Lag(ctx, r.Name("group")); return err }},
		{"join a group", func(ctx context.Context) error {
			more, err := s.Consumer(ctx, r.Name("group"), nil)
			if err == nil {
				r.track("member", more.Close)
			}
			return err
		}},
		{"open a stream", func(ctx context.Context) error {
			more, err := b.Stream(ctx, s.Name(), nil)
			if err == nil {
				r.track("stream", more.Close)
			}
			return err
		}},
		{"ping", b.Ping},
		{"declare a stream", func(ctx context.Context) error { return admin.DeclareStream(ctx, s.Name(), broker.StreamConfig{}) }},
	})
}
