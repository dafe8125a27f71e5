package sqs

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/conformance"
)

// harness is what the suite needs of the SQS at endpoint.
func harness(name, endpoint string) (conformance.Harness, *atomic.Pointer[faulty]) {
	injected, gone := new(atomic.Pointer[faulty]), new(sync.Map)
	open := func(ctx context.Context, dial func(ctx context.Context, network, address string) (net.Conn, error)) (broker.Broker, error) {
		o := &Options{
			Region: "us-east-1", Endpoint: endpoint, Credentials: staticCredentials("test", "test"),
			// ElasticMQ goes on with a poll whose connection is gone, and
			// hands it the next messages: end polls instead of cutting them.
			PollWait: time.Second,
			Logger:   slog.New(slog.DiscardHandler),
		}
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.MaxIdleConnsPerHost = 64
		t.DialContext = dial
		o.Transport = &switched{t, injected, gone}
		return Open(ctx, o)
	}
	h := conformance.Harness{
		Name: name, Version: "ElasticMQ 1.7.1", Kinds: conformance.Queue,
		Open: func(ctx context.Context) (broker.Broker, error) { return open(ctx, new(net.Dialer).DialContext) },
		Victim: func(ctx context.Context) (broker.Broker, func(), error) {
			l := new(conformance.Lifeline)
			b, err := open(ctx, l.DialContext)
			return b, l.Cut, err
		},
		Duplicates: true,
		NewName: func(kind string) string {
			switch kind {
			case "ordered":
				return realName(kind) + fifoSuffix
			}
			return realName(kind)
		},
		QueueConfig: func(cfg *broker.QueueConfig) error {
			if cfg.MaxBytes > 0 {
				return fail("declare queue", "", broker.Unsupported("ElasticMQ has one MaximumMessageSize for all its queues"))
			}
			return nil
		},
		Soon:  20 * time.Second,       // ElasticMQ is slow with many FIFO groups
		Quiet: 500 * time.Millisecond, // several requests, of a MiB each in some cases
		Lease: time.Second,
		Delay: time.Second,
		Tick:  time.Second, // SQS counts whole seconds
		Expected: map[int]string{
			35: "ElasticMQ ignores the dedup scope messageGroup",
		},
	}
	h.Faults = map[conformance.FaultKind]func(context.Context) (conformance.Injection, error){}
	for kind, only := range map[conformance.FaultKind]string{
		conformance.FaultAnswerLost:    "lost answer",
		conformance.FaultConnectionCut: "cut",
		conformance.FaultThrottle:      "throttle",
	} {
		h.Faults[kind] = func(context.Context) (conformance.Injection, error) {
			f := newFaulty(nil, 3, 1)
			f.only = only
			injected.Store(f)
			return conformance.Injection{
				Stop:  func(context.Context) error { injected.Store(nil); return nil },
				Bites: f.bites.Load,
			}, nil
		}
	}
	for id := 84; id <= 88; id++ {
		h.Expected[id] = "ElasticMQ has no SNS; the cases run on moto"
	}
	return h, injected
}

// fifoOnly has every queue declared as a FIFO queue.
func fifoOnly(h conformance.Harness) conformance.Harness {
	h.NewName = func(kind string) string {
		if kind == "queue" || kind == "ordered" || kind == "exchange" {
			return realName(kind) + fifoSuffix
		}
		return realName(kind)
	}
	return h
}

// standardOnly has no queue declared as a FIFO queue.
func standardOnly(h conformance.Harness) conformance.Harness {
	both := h.QueueConfig
	h.QueueConfig = func(cfg *broker.QueueConfig) error {
		if wantsFIFO(cfg) {
			return fail("declare queue", "", broker.Unsupported("a standard queue has no groups and no dedup"))
		}
		return both(cfg)
	}
	return h
}

// inShards runs the suite, whose cases mostly wait, in several parts side by
// side, with a harness for each: faults that one injects are its own.
func inShards(t *testing.T, h func() conformance.Harness) {
	t.Helper()
	const shards = 4
	only := [shards][]string{}
	for i, c := range conformance.Cases() {
		only[i%shards] = append(only[i%shards], strconv.Itoa(c.ID))
	}
	var wg sync.WaitGroup // t.Parallel would run no more at a time than there are processors
	for i := range only {
		wg.Go(func() {
			t.Run(strconv.Itoa(i+1), func(t *testing.T) {
				h := h()
				h.Only = only[i]
				conformance.Run(t, h)
			})
		})
	}
	wg.Wait()
}

func TestConformanceStandard(t *testing.T) {
	endpoint := realEndpoint(t, "sqs")
	inShards(t, func() conformance.Harness {
		h, _ := harness("SQS standard queue", endpoint)
		return standardOnly(h)
	})
}

func TestConformanceFIFO(t *testing.T) {
	endpoint := realEndpoint(t, "sqs")
	inShards(t, func() conformance.Harness {
		h, _ := harness("SQS FIFO queue", endpoint)
		// AWS, "FIFO queue delivery logic": SQS "attempts to return as many messages with the same message group ID as
		// possible", and ApproximateReceiveCount counts each of them. Consumers with Prefetch 1 have none that wait.
		h.Expected[51] = "SQS hands out several of a group at once and counts an attempt for each, also for those that wait behind one that is nacked and are given back"
		return fifoOnly(h)
	})
}

func TestConformanceSNS(t *testing.T) {
	h, _ := harness("SNS exchanges", realEndpoint(t, "sns"))
	h.Version, h.Expected = "moto 5.1.1", nil
	h.Only = []string{"84", "85", "86", "87", "88", "89"}
	conformance.Run(t, h)
}

// TestConformanceFaulty runs what must not lose anything while every tenth
// request meets one of all the faults that the round-tripper knows.
func TestConformanceFaulty(t *testing.T) {
	for name, only := range map[string]func(conformance.Harness) conformance.Harness{"standard": standardOnly, "FIFO": fifoOnly} {
		t.Run(name, func(t *testing.T) {
			h, injected := harness("SQS "+name+" queue with faults", realEndpoint(t, "sqs"))
			// Not 9: a nack that may have been carried out is not repeated, since it
			// could take the message from its next holder (TestNackWithoutAnAnswer).
			h.Only = []string{"1", "2", "11", "14", "32"}
			h.Faults = nil
			h.Faulty = true
			f := newFaulty(nil, 10, 1)
			f.skip = "duplicate" // which the suite would rightly call two holders
			injected.Store(f)
			conformance.Run(t, only(h))
			if f.bites.Load() == 0 {
				t.Error("no fault bit")
			}
		})
	}
}
