package sqs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/queuestream/broker"
)

// drainQueue receives and acknowledges until nothing came for a minute, and
// returns what came: bodies by group in order.
func drainQueue(t *testing.T, c broker.Consumer) (byGroup map[string][]string, all map[string]int) {
	t.Helper()
	byGroup, all = map[string][]string{}, map[string]int{}
	for {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		ds, err := c.Receive(ctx, 10)
		cancel()
		if errors.Is(err, context.DeadlineExceeded) {
			return byGroup, all
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range ds {
			if all[string(d.Body)]++; all[string(d.Body)] == 1 {
				byGroup[d.GroupID] = append(byGroup[d.GroupID], string(d.Body))
			}
			if err := d.Ack(t.Context()); err != nil && !errors.Is(err, broker.ErrLeaseLost) {
				t.Errorf("ack %q: %v", d.Body, err)
			}
		}
	}
}

// What is tried again is counted, and the log tells of it, but not of each try.
func TestRetriesAreTold(t *testing.T) {
	for _, queue := range []string{"q", "q" + fifoSuffix} {
		synctest.Test(t, func(t *testing.T) {
			f, began, tries := newFake(), time.Now(), atomic.Int64{}
			down := roundTrip(func(r *http.Request) (*http.Response, error) {
				if strings.HasSuffix(r.Header.Get("X-Amz-Target"), ".SendMessageBatch") && time.Since(began) < time.Minute {
					tries.Add(1)
					return nil, errors.New("nobody listens")
				}
				return f.RoundTrip(r)
			})
			var log bytes.Buffer
			q := openQueue(t, openFake(t, down, func(o *Options) { o.Logger = slog.New(slog.NewTextHandler(&log, nil)) }), queue, nil)
			if _, err := q.Publish(t.Context(), broker.Message{Body: []byte("x"), GroupID: group(q)}); err != nil {
				t.Fatal(err)
			}
			if _, err := q.PublishBatch(t.Context(), bodies(5, func(_ int, m *broker.Message) { m.GroupID = group(q) })); err != nil {
				t.Fatal(err)
			}
			if n := q.Retries(); n == 0 || n != tries.Load() {
				t.Errorf("%d retries, %d tries failed", n, tries.Load())
			}
			if n := strings.Count(log.String(), "sending failed; trying again"); n < 4 || n > 7 || !strings.Contains(log.String(), "queue="+queue) || !strings.Contains(log.String(), "nobody listens") {
				t.Errorf("%d lines of a minute: %s", n, log.String())
			}
		})
	}
}

func group(q *Queue) string {
	if q.t.fifo {
		return "g"
	}
	return ""
}

func TestEveryFaultLosesNothing(t *testing.T) {
	for _, queue := range []string{"q", "q" + fifoSuffix} {
		for _, fault := range append([]string{""}, faults...) {
			t.Run(queue+"/"+fault, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					bad := newFaulty(newFake(), 3, 7)
					bad.only, bad.polls = fault, true
					q := openQueue(t, openFake(t, bad), queue, nil)
					const n = 100
					ms := bodies(n, func(i int, m *broker.Message) {
						if q.t.fifo {
							m.GroupID = fmt.Sprint("g", i%7)
						}
					})
					rs, err := q.PublishBatch(t.Context(), ms)
					if err != nil || len(rs) != n {
						t.Fatalf("%d receipts, %v", len(rs), err)
					}
					byGroup, all := drainQueue(t, consume(t, q, nil))
					if len(all) != n {
						t.Errorf("%d of %d came", len(all), n)
					}
					if q.t.fifo {
						for g, got := range byGroup {
							for i := 1; i < len(got); i++ {
								var a, b int
								if _, err := fmt.Sscanf(got[i-1]+" "+got[i], "m%d m%d", &a, &b); err != nil || a > b {
									t.Errorf("group %s: %s before %s", g, got[i-1], got[i])
								}
							}
						}
					}
					if skipped := q.t.fifo && (fault == "duplicate" || fault == "reorder"); bad.bites.Load() == 0 && !skipped {
						t.Error("no fault bit")
					}
				})
			})
		}
	}
}

func TestPublishesCoalesce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		slow := 5 * time.Millisecond
		f.fault = func(string, map[string]any, any) (*http.Response, error) {
			<-time.After(slow)
			return nil, nil
		}
		q := openQueue(t, openFake(t, f), "q", nil)
		var wg sync.WaitGroup
		for i := range 200 {
			wg.Go(func() {
				if _, err := q.Publish(t.Context(), broker.Message{Body: fmt.Append(nil, i)}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := f.requests("SendMessageBatch"); n > 40 {
			t.Errorf("200 concurrent publishes took %d requests", n)
		}
	})
}

func TestFinalFailuresNameTheEntryAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		q := openQueue(t, openFake(t, f), "q", nil)
		f.fault = func(op string, _ map[string]any, answer any) (*http.Response, error) {
			if op == "SendMessageBatch" && answer != nil {
				return failEntries(answer, "InvalidMessageContents", true, "1", "4"), nil
			}
			return nil, nil
		}
		rs, err := q.PublishBatch(t.Context(), bodies(6, nil))
		var be *broker.BatchError
		if !errors.As(err, &be) || len(be.Errs) != 6 || len(rs) != 6 {
			t.Fatal(err)
		}
		for i, err := range be.Errs {
			if bad := i == 1 || i == 4; bad != errors.Is(err, broker.ErrInvalid) || bad != (err != nil) {
				t.Errorf("entry %d: %v", i, err)
			}
		}
	})
}

// An entry whose code is known is judged by that; otherwise by whose fault it is.
func TestEntryFaultsAreTheSendersOrPass(t *testing.T) {
	for _, tt := range []struct {
		code        string
		senderFault bool
		want        error // nil: it passes
	}{
		{"NeverHeardOf", true, broker.ErrInvalid},
		{"NeverHeardOf", false, nil},
		{"RequestThrottled", true, nil},
		{"InvalidMessageContents", false, broker.ErrInvalid},
	} {
		t.Run(fmt.Sprint(tt.code, tt.senderFault), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake()
				q := openQueue(t, openFake(t, f), "q", nil)
				failed := false
				f.fault = func(op string, _ map[string]any, answer any) (*http.Response, error) {
					if op != "SendMessageBatch" || answer == nil || failed {
						return nil, nil
					}
					failed = true
					return failEntries(answer, tt.code, tt.senderFault, "0"), nil
				}
				_, err := q.Publish(t.Context(), broker.Message{Body: []byte("x")})
				if !failed || !errors.Is(err, tt.want) {
					t.Errorf("%v, want %v", err, tt.want)
				}
			})
		})
	}
}

func TestOutageBlocksUntilTheContextEnds(t *testing.T) {
	for _, tt := range []struct {
		name    string
		answer  func() (*http.Response, error)
		unknown bool
	}{
		{"throttled", func() (*http.Response, error) { return fakeError(400, "ThrottlingException"), nil }, false},
		{"cut", func() (*http.Response, error) { return nil, errCut }, true},
		{"5xx", func() (*http.Response, error) { return fakeError(500, "InternalFailure"), nil }, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake()
				q := openQueue(t, openFake(t, f), "q.fifo", nil)
				f.fault = func(op string, _ map[string]any, answer any) (*http.Response, error) {
					if op == "SendMessageBatch" && answer == nil {
						return tt.answer()
					}
					return nil, nil
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				start := time.Now()
				r, err := q.Publish(ctx, broker.Message{Body: []byte("x")})
				if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, broker.ErrUnknownOutcome) != tt.unknown || r.ID == "" {
					t.Errorf("publish: %v", err)
				}
				if d := time.Since(start); d != time.Minute {
					t.Errorf("publish returned after %v", d)
				}
				if n := f.requests("SendMessageBatch"); n > 40 {
					t.Errorf("%d requests in a minute of outage", n)
				}
				ctx, cancel = context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				rs, err := q.PublishBatch(ctx, bodies(20, func(i int, m *broker.Message) { m.GroupID = "g" }))
				if len(rs) != 20 || !errors.Is(broker.ErrorAt(err, 0), context.DeadlineExceeded) {
					t.Errorf("batch: %v", err)
				}
				if err := broker.ErrorAt(err, 19); errors.Is(err, broker.ErrUnknownOutcome) || !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("what was never sent: %v", err)
				}
			})
		})
	}
}

func TestSizeIsCountedAsItIsSent(t *testing.T) {
	const size = 1024
	for _, plain := range []bool{false, true} {
		f := newFake()
		f.queue("small").attrs["MaximumMessageSize"] = fmt.Sprint(size)
		q := openQueue(t, openFake(t, f, func(o *Options) { o.Plain = plain }), "small", nil)
		limit := q.Capabilities().MaxBytes
		if want := map[bool]int{true: size, false: size - 47}[plain]; limit != want {
			t.Errorf("plain %t: MaxBytes %d, want %d", plain, limit, want)
		}
		text := func(n int) []byte { return bytes.Repeat([]byte("x"), n) }
		header := broker.Headers{{Key: "k", Value: "v"}} // and its type, String: 8 bytes
		fits := []broker.Message{{Body: text(limit)}, {Body: text(limit - 8), Headers: header}, {Body: []byte(strings.Repeat("é", limit/2))}}
		over := []broker.Message{
			{Body: text(limit + 1)}, {Body: text(limit), Headers: header},
			{Body: text(limit - 7), Headers: header}, {Body: []byte(strings.Repeat("é", limit/2+1))},
		}
		if !plain {
			binary := (limit - 23) / 4 * 3 // qs-encoding takes 23, base64 makes 4 of 3
			fits = append(fits, broker.Message{Body: bytes.Repeat([]byte{0xff}, binary)})
			over = append(over, broker.Message{Body: bytes.Repeat([]byte{0xff}, binary+1)},
				// Two headers of one key are packed into an attribute, and binary values there into base64.
				broker.Message{Body: []byte("x"), Headers: broker.Headers{
					{Key: "k", Value: strings.Repeat("\x00", 330)}, {Key: "k", Value: strings.Repeat("\x00", limit-334)},
				}})
		}
		for i, m := range fits {
			if _, err := q.Publish(t.Context(), m); err != nil {
				t.Errorf("plain %t: fitting %d: %v", plain, i, err)
			}
		}
		for i, m := range over {
			_, err := q.Publish(t.Context(), m)
			se, ok := errors.AsType[*broker.SizeError](err)
			if !errors.Is(err, broker.ErrTooLarge) || !ok || se.Size <= se.Limit {
				t.Errorf("plain %t: oversize %d: %v", plain, i, err)
			}
			_, err = q.PublishBatch(t.Context(), []broker.Message{{Body: []byte("a")}, m, {Body: []byte("b")}})
			for j, want := range []error{nil, broker.ErrTooLarge, nil} {
				if got := broker.ErrorAt(err, j); !errors.Is(got, want) {
					t.Errorf("plain %t: oversize %d, entry %d: %v", plain, i, j, got)
				}
			}
		}
		if n, want := f.depth("small"), len(fits)+2*len(over); n != want {
			t.Errorf("plain %t: %d messages are stored, want %d", plain, n, want)
		}
	}
}

func TestBadInput(t *testing.T) {
	f := newFake()
	b := openFake(t, f)
	if _, err := b.Queue(t.Context(), "missing", nil); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("missing queue: %v", err)
	}
	if _, err := b.Queue(t.Context(), "bad name!", nil); !errors.Is(err, broker.ErrInvalid) {
		t.Errorf("bad name: %v", err)
	}
	if _, err := b.Queue(t.Context(), "q", &broker.QueueOptions{DeadLetter: "missing"}); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("missing dead-letter queue: %v", err)
	}
	if _, err := b.Queue(t.Context(), "q", &broker.QueueOptions{DeadLetter: "q.fifo"}); !errors.Is(err, broker.ErrInvalid) {
		t.Errorf("dead-letter queue of another kind: %v", err)
	}
	if _, err := b.Stream(t.Context(), "s", nil); !errors.Is(err, broker.ErrUnsupported) {
		t.Errorf("stream: %v", err)
	}
	for _, tt := range []struct {
		queue string
		m     broker.Message
	}{
		{"q", broker.Message{GroupID: "g"}},
		{"q", broker.Message{DedupID: "d"}},
		{"q", broker.Message{TTL: time.Second}},
		{"q", broker.Message{Priority: 1}},
		{"q.fifo", broker.Message{Delay: time.Second}},
	} {
		q := openQueue(t, b, tt.queue, nil)
		if _, err := q.Publish(t.Context(), tt.m); !errors.Is(err, broker.ErrUnsupported) {
			t.Errorf("%s %+v: %v", tt.queue, tt.m, err)
		}
	}
	if n := f.requests("SendMessageBatch"); n != 0 {
		t.Errorf("%d sends of what is refused", n)
	}
}

func TestPlainMode(t *testing.T) {
	f := newFake()
	q := openQueue(t, openFake(t, f, func(o *Options) { o.Plain = true }), "q", nil)
	for _, m := range []broker.Message{
		{Body: nil}, {Body: []byte{0}}, {Body: []byte("x"), ContentType: "t"}, {Body: []byte("x"), ReplyTo: "r"},
		{Body: []byte("x"), Headers: broker.Headers{{Key: "a b", Value: "v"}}}, {Body: []byte("x"), Delay: time.Hour},
	} {
		if _, err := q.Publish(t.Context(), m); !errors.Is(err, broker.ErrUnsupported) {
			t.Errorf("%+v: %v", m, err)
		}
	}
	if _, err := q.Publish(t.Context(), broker.Message{Body: []byte("x"), Headers: broker.Headers{{Key: "k", Value: "v"}}}); err != nil {
		t.Fatal(err)
	}
	if m := f.queue("q").messages[0]; m.body != "x" || len(m.attrs.(map[string]any)) != 1 {
		t.Errorf("sent %q with %v", m.body, m.attrs)
	}
}

func TestFairGroups(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := openQueue(t, openFake(t, newFake(), func(o *Options) { o.FairGroups = true }), "q", nil)
		if _, err := q.PublishBatch(t.Context(), bodies(2, func(_ int, m *broker.Message) { m.GroupID = "tenant" })); err != nil {
			t.Fatal(err)
		}
		_, all := drainQueue(t, consume(t, q, nil))
		if len(all) != 2 {
			t.Errorf("%d of 2 came", len(all))
		}
	})
}

// A message whose first sending may have been carried out is not said to have
// failed where the second is refused for what has nothing to do with it.
func TestOutcomeIsUnknownWhereOnlyTheSecondTryIsRefused(t *testing.T) {
	for code, want := range map[string]error{"AccessDenied": broker.ErrUnauthorized, "QueueDoesNotExist": broker.ErrNotFound} {
		synctest.Test(t, func(t *testing.T) {
			f := newFake()
			q := openQueue(t, openFake(t, f), "q", nil)
			lose := true
			f.fault = func(op string, _ map[string]any, answer any) (*http.Response, error) {
				switch {
				case op != "SendMessageBatch", answer == nil && lose:
					return nil, nil
				case lose:
					lose = false
					return nil, errCut
				}
				return fakeError(400, code), nil
			}
			_, err := q.Publish(t.Context(), broker.Message{Body: []byte("x")})
			if !errors.Is(err, broker.ErrUnknownOutcome) || !errors.Is(err, want) {
				t.Errorf("publish: %v", err)
			}
			lose = true
			_, err = q.PublishBatch(t.Context(), bodies(2, nil))
			for i := range 2 {
				if err := broker.ErrorAt(err, i); !errors.Is(err, broker.ErrUnknownOutcome) || !errors.Is(err, want) {
					t.Errorf("message %d of a batch: %v", i, err)
				}
			}
			if _, err = q.Publish(t.Context(), broker.Message{Body: []byte("x")}); errors.Is(err, broker.ErrUnknownOutcome) || !errors.Is(err, want) {
				t.Errorf("refused at once: %v", err)
			}
			if n := f.depth("q"); n != 3 {
				t.Errorf("%d stored, want 3", n)
			}
		})
	}
}

// What is tried again when Shutdown begins is being published: it is waited for.
func TestShutdownWaitsBetweenTries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		b := openFake(t, f)
		q := openQueue(t, b, "q", nil)
		refuseSends(f, "q")
		time.AfterFunc(20*time.Second, func() {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.fault = nil
		})
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := q.Publish(t.Context(), broker.Message{Body: []byte("x")}); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			if _, err := q.PublishBatch(t.Context(), bodies(15, nil)); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := b.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		wg.Wait()
		if n := f.depth("q"); n != 16 {
			t.Errorf("%d messages are stored, want 16", n)
		}
	})
}

// One that never succeeds holds Shutdown up no longer than ctx allows.
func TestShutdownEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		b := openFake(t, f)
		q := openQueue(t, b, "q", nil)
		refuseSends(f, "q")
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := q.Publish(t.Context(), broker.Message{Body: []byte("x")}); !errors.Is(err, broker.ErrClosed) || !errors.Is(err, broker.ErrUnknownOutcome) {
				t.Error(err)
			}
		})
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		start := time.Now()
		err := b.Shutdown(ctx)
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 10*time.Second+closeTimeout {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		if e, ok := errors.AsType[*broker.Error](err); !ok || e.Op != "shutdown" || e.Adapter != adapterName || e.Name == "" {
			t.Errorf("does not say what it is about: %v", err)
		}
		wg.Wait()
	})
}
