package memory

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/queuestream/broker"
)

// pausable are a queue and a stream, each with a consumer, of a broker that is
// paused.
type pausable struct {
	b      *Broker
	q      *Queue
	c      *Consumer
	held   *broker.Delivery
	s      *Stream
	m      broker.GroupConsumer
	rec    *broker.Record
	resume func()
}

func paused(t *testing.T) *pausable {
	t.Helper()
	b := open(t, nil)
	p := &pausable{b: b, q: declare(t, b, "q", broker.QueueConfig{}), s: declareStream(t, b, broker.StreamConfig{})}
	p.c = consume(t, p.q, nil)
	send(t, p.q, body("held"))
	p.held = one(t, p.c, "held")
	_, err := p.s.Publish(t.Context(), rec("", "r"))
	check(t, err)
	p.m, err = p.s.Consumer(t.Context(), "g", nil)
	check(t, err)
	rs, err := p.m.Receive(t.Context(), 1)
	check(t, err)
	p.rec, p.resume = rs[0], b.Pause()
	return p
}

// calls is every kind of call, all of which a pause holds up.
func (p *pausable) calls() map[string]func(ctx context.Context) error {
	return map[string]func(ctx context.Context) error{
		"publish": func(ctx context.Context) error { _, err := p.q.Publish(ctx, body("m")); return err },
		"publish batch": func(ctx context.Context) error {
			_, err := p.q.PublishBatch(ctx, []broker.Message{body("m")})
			return err
		},
		"receive": func(ctx context.Context) error { _, err := p.c.Receive(ctx, 1); return err },
		"extend":  func(ctx context.Context) error { return p.held.Extend(ctx, 0) },
		"append":  func(ctx context.Context) error { _, err := p.s.Publish(ctx, rec("", "m")); return err },
		"append batch": func(ctx context.Context) error {
			_, err := p.s.PublishBatch(ctx, []broker.Record{rec("", "m")})
			return err
		},
		"receive record": func(ctx context.Context) error { _, err := p.m.Receive(ctx, 1); return err },
		"commit":         func(ctx context.Context) error { return p.m.Commit(ctx, p.rec) },
		"seek":           func(ctx context.Context) error { return p.m.Seek(ctx, 0, broker.Latest()) },
		"lag":            func(ctx context.Context) error { _, err := p.s.Lag(ctx, "g"); return err },
		"stats":          func(ctx context.Context) error { _, err := p.b.QueueStats(ctx, "q"); return err },
		"open":           func(ctx context.Context) error { _, err := p.b.Queue(ctx, "q", nil); return err },
		"transactor":     func(ctx context.Context) error { _, err := p.b.Transactor(ctx, "id"); return err },
		"ping":           p.b.Ping,
	}
}

func TestPauseHoldsUpEveryCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := paused(t)
		for name, call := range p.calls() {
			start := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			err := call(ctx)
			cancel()
			if e, ok := errors.AsType[*broker.Error](err); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Second || !ok || e.Adapter != adapter {
				t.Errorf("%s: %v after %v", name, err, time.Since(start))
			}
			unknown := errors.Is(err, broker.ErrUnknownOutcome)
			if publishes := name == "publish" || name == "publish batch" || name == "append" || name == "append batch"; unknown != publishes {
				t.Errorf("%s: %v", name, err)
			}
		}
		p.resume()
		p.resume()
		check(t, p.held.Extend(t.Context(), 0))
		check(t, p.b.Ping(t.Context()))
		check(t, p.b.Close())
	})
}

// What waits goes on when the pause ends, and nothing of it is lost.
func TestResume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := paused(t)
		again := p.b.Pause() // by somebody else
		calls := p.calls()
		delete(calls, "seek") // which fences the record that commit is about
		errs := make(chan error, len(calls))
		for _, call := range calls {
			go func() { errs <- call(t.Context()) }()
		}
		time.Sleep(time.Second) // virtual
		p.resume()
		synctest.Wait()
		select {
		case err := <-errs:
			t.Fatalf("a call went on in the other pause: %v", err)
		default:
		}
		again()
		for range calls {
			check(t, <-errs)
		}
		if n := p.b.Injected(); n < int64(len(calls))-4 { // of publishes, some wait for the answer
			t.Errorf("%d calls were hit", n)
		}
		check(t, p.b.Close())
	})
}

// Close and Disconnect end what waits in a pause.
func TestPauseEndsWithTheHandle(t *testing.T) {
	for _, test := range []struct {
		name  string
		end   func(p *pausable) error
		calls map[string]error
	}{
		{"close", func(p *pausable) error { return p.b.Close() }, map[string]error{
			"publish": broker.ErrClosed, "publish batch": broker.ErrClosed, "receive": broker.ErrClosed, "extend": broker.ErrLeaseLost,
			"append": broker.ErrClosed, "append batch": broker.ErrClosed, "receive record": broker.ErrClosed, "commit": broker.ErrClosed,
			"seek": broker.ErrClosed, "lag": broker.ErrClosed, "stats": broker.ErrClosed, "ping": broker.ErrClosed,
		}},
		{"disconnect", func(p *pausable) error { p.b.Disconnect(); return nil }, map[string]error{
			"publish": broker.ErrUnknownOutcome, "publish batch": broker.ErrUnknownOutcome,
			"append": broker.ErrUnknownOutcome, "append batch": broker.ErrUnknownOutcome,
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := paused(t)
				type result struct {
					name string
					err  error
				}
				results := make(chan result)
				calls := p.calls()
				for name := range test.calls {
					go func() { results <- result{name, calls[name](t.Context())} }()
				}
				synctest.Wait()
				check(t, test.end(p))
				for range test.calls {
					if r := <-results; !errors.Is(r.err, test.calls[r.name]) {
						t.Errorf("%s: %v, want %v", r.name, r.err, test.calls[r.name])
					}
				}
				p.resume()
				check(t, p.b.Close())
			})
		})
	}
}

// In a pause some publishes take effect and some do not: the caller cannot tell.
func TestPausedPublishIsUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := paused(t)
		check(t, p.c.Close())
		const n = 40
		for range n {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			_, err := p.q.Publish(ctx, body("m"))
			wantErr(t, err, broker.ErrUnknownOutcome)
			cancel()
		}
		p.resume()
		stats, err := p.b.QueueStats(t.Context(), "q")
		check(t, err)
		if stored := stats.Ready - 1; stored < n/4 || stored > n*3/4 {
			t.Errorf("%d of %d were stored", stored, n)
		}
	})
}

func TestThrottleAndLatency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, nil)
		q := declare(t, b, "q", broker.QueueConfig{})
		c := consume(t, q, nil)
		send(t, q, body("a"))
		d := one(t, c, "a")
		check(t, b.Connect().SetFaults(Faults{Throttle: 1}))
		for name, err := range map[string]error{
			"publish": func() error { _, err := q.Publish(t.Context(), body("b")); return err }(),
			"batch":   func() error { _, err := q.PublishBatch(t.Context(), []broker.Message{body("b")}); return err }(),
			"receive": func() error { _, err := c.Receive(t.Context(), 1); return err }(),
			"ack":     d.Ack(t.Context()),
		} {
			if !errors.Is(err, broker.ErrUnavailable) || errors.Is(err, broker.ErrUnknownOutcome) || !broker.IsTemporary(err) {
				t.Errorf("%s: %v", name, err)
			}
		}
		check(t, b.SetFaults(Faults{Latency: time.Second}))
		start := time.Now()
		check(t, d.Ack(t.Context())) // the verdict that was throttled settled nothing
		_, err := q.PublishBatch(t.Context(), []broker.Message{body("b"), body("c")})
		check(t, err)
		one(t, c, "b")
		if took := time.Since(start); took != 3*time.Second {
			t.Errorf("three calls took %v", took)
		}
		check(t, b.SetFaults(Faults{}))
		if b.srv.faults.Load() != nil {
			t.Error("calls still look for faults")
		}
		wantErr(t, b.SetFaults(Faults{Throttle: 2}), broker.ErrInvalid)
		wantErr(t, b.SetFaults(Faults{Latency: -1}), broker.ErrInvalid)
	})
}

// A message published through an exchange meets the same faults.
func TestExchangeFaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, nil)
		q := declare(t, b, "q", broker.QueueConfig{})
		check(t, b.DeclareExchange(t.Context(), "x", broker.ExchangeFanout))
		check(t, b.Bind(t.Context(), "q", "x", broker.Binding{}))
		x, err := b.Exchange(t.Context(), "x")
		check(t, err)
		for _, f := range []struct {
			f      Faults
			want   error
			stored int64
		}{{Faults{Fail: 1}, broker.ErrUnavailable, 0}, {Faults{LoseAnswer: 1}, broker.ErrUnknownOutcome, 1}, {Faults{Throttle: 1}, broker.ErrUnavailable, 1}} {
			check(t, b.SetFaults(f.f))
			_, err = x.RouteTo("").Publish(t.Context(), body("m"))
			wantErr(t, err, f.want)
			check(t, b.SetFaults(Faults{}))
			if stats, err := b.QueueStats(t.Context(), q.Name()); err != nil || stats.Ready != f.stored {
				t.Errorf("%+v: %+v, %v", f.f, stats, err)
			}
		}
		resume := b.Pause()
		ended := make(chan error)
		go func() { _, err := x.RouteTo("").Publish(t.Context(), body("m")); ended <- err }()
		synctest.Wait()
		check(t, x.Close())
		wantErr(t, <-ended, broker.ErrClosed)
		resume()
	})
}

// Under Shutdown what is held may still be settled, also slowly.
func TestShutdownUnderLatency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, nil)
		q := declare(t, b, "q", broker.QueueConfig{})
		c := consume(t, q, nil)
		send(t, q, body("a"))
		d := one(t, c, "a")
		check(t, b.SetFaults(Faults{Latency: time.Second}))
		done := make(chan error)
		go func() { done <- b.Shutdown(t.Context()) }()
		synctest.Wait()
		check(t, d.Ack(t.Context()))
		check(t, <-done)
	})
}
