package bridge

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials"
	"go.uber.org/goleak"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/kafka"
	"github.com/queuestream/broker/adapters/sqs"
	"github.com/queuestream/broker/internal/bridgetest"
)

// A member is a process of the bridge in TestRealFaults: this test binary,
// started again with its orders in the environment.
type member struct {
	Kafka, SQS                string
	Topic, Group, Queue, Dead string
	KillAt                    killPoint // where to kill itself
	KillAfter                 int64     // how many times to pass there first
	Faults                    bool      // throttling, partial failures, 5 ms a request
}

// A killPoint is a step of a record's way through the bridge.
type killPoint string

const (
	killFetched   killPoint = "fetched"   // read, nothing done
	killSent      killPoint = "sent"      // the request is on its way
	killAccepted  killPoint = "accepted"  // the queue has it, the answer is lost
	killMarked    killPoint = "marked"    // the answer is here, nothing committed
	killCommitted killPoint = "committed" // its offset is stored
)

const memberEnv = "BRIDGE_TEST_MEMBER"

func TestMain(m *testing.M) {
	if orders := os.Getenv(memberEnv); orders != "" {
		if err := runMember([]byte(orders)); err != nil {
			fmt.Fprintln(os.Stderr, "member:", err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

func (m *member) pass(at killPoint) {
	if m.KillAt == at && atomic.AddInt64(&m.KillAfter, -1) < 0 {
		syscall.Kill(os.Getpid(), syscall.SIGKILL) //nolint:errcheck // it does not return
		select {}
	}
}

func runMember(orders []byte) (err error) {
	var m member
	if err := json.Unmarshal(orders, &m); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	defer func() { // it may be stopped before it has begun
		if ctx.Err() != nil && errors.Is(err, context.Canceled) {
			err = nil
		}
	}()
	go bridgetest.EndWithParent()
	// A killed member's partitions are free once its session has ended.
	o, err := kafka.ParseURL(m.Kafka)
	if err != nil {
		return err
	}
	o.SessionTimeout, o.HeartbeatInterval, o.RebalanceTimeout = 6*time.Second, time.Second, 20*time.Second
	k, err := kafka.Open(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, k.Close()) }()
	q, err := sqs.Open(ctx, &sqs.Options{
		Region: "us-east-1", Endpoint: m.SQS, Transport: &faultyTransport{m: &m, next: newTransport()},
		Credentials: credentials.NewStaticCredentialsProvider("x", "x", ""),
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, q.Close()) }()
	rt := &Route{
		Name: "real", Group: m.Group, Concurrency: 128,
		RetryMin: 10 * time.Millisecond, RetryMax: time.Second,
		Filter: func(*broker.Record) (bool, error) { m.pass(killFetched); return true, nil },
		Map: func(r *broker.Record, _ *broker.Message) error {
			if bytes.HasPrefix(r.Value, []byte("poison")) {
				return errors.New("poison for the test")
			}
			return nil
		},
		Observe: func(e Event) {
			if e.Kind == Enqueued {
				m.pass(killMarked)
			}
		},
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
	source, err := k.Stream(ctx, m.Topic, nil)
	if err != nil {
		return err
	}
	rt.Source = &killingStream{Stream: source, m: &m}
	if rt.Target, err = q.Queue(ctx, m.Queue, nil); err != nil {
		return err
	}
	if rt.DeadLetter, err = q.Queue(ctx, m.Dead, nil); err != nil {
		return err
	}
	go m.report(ctx, rt)
	return rt.Run(ctx)
}

// report says each second how far the member is, for the log of a failed test.
func (m *member) report(ctx context.Context, rt *Route) {
	for tick := time.Tick(time.Second); ; {
		select {
		case <-ctx.Done():
			return
		case now := <-tick:
			s := rt.Stats()
			fmt.Fprintf(os.Stderr, "%s in %d, enqueued %d, parked %d, retried %d, window %d of %v\n", now.Format("04:05.0"),
				s.In, s.Enqueued, s.Parked, s.Retried, s.WindowRecords, s.WindowAge.Round(time.Millisecond))
		}
	}
}

func newTransport() http.RoundTripper {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.MaxIdleConnsPerHost, t.MaxIdleConns = 128, 128
	return t
}

// A killingStream passes killCommitted after each commit.
type killingStream struct {
	broker.Stream
	m *member
}

func (s *killingStream) Consumer(ctx context.Context, group string, opts *broker.GroupOptions) (broker.GroupConsumer, error) {
	c, err := s.Stream.Consumer(ctx, group, opts)
	return &killingConsumer{c, s.m}, err
}

type killingConsumer struct {
	broker.GroupConsumer
	m *member
}

func (c *killingConsumer) Commit(ctx context.Context, rs ...*broker.Record) error {
	err := c.GroupConsumer.Commit(ctx, rs...)
	if err == nil {
		c.m.pass(killCommitted)
	}
	return err
}

// A faultyTransport injects what SQS does on a bad day: latency, throttling,
// 5xx, lost answers, and batches of which some entries fail.
type faultyTransport struct {
	m    *member
	next http.RoundTripper
}

func (f *faultyTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Header.Get("X-Amz-Target") != "AmazonSQS.SendMessageBatch" {
		return f.next.RoundTrip(req)
	}
	dropped := []string(nil)
	if f.m.Faults {
		<-time.After(5 * time.Millisecond)
		switch p := rand.IntN(100); {
		case p < 2:
			return answer(req, http.StatusBadRequest, `{"__type":"com.amazonaws.sqs#RequestThrottled","message":"slow down"}`), nil
		case p < 3:
			return answer(req, http.StatusServiceUnavailable, `{"__type":"com.amazonaws.sqs#ServiceUnavailable","message":"down"}`), nil
		case p < 13:
			var err error
			if req, dropped, err = dropSome(req); err != nil {
				return nil, err
			}
		}
	}
	if f.m.KillAt == killSent {
		go func() {
			res, err := f.next.RoundTrip(req) //nolint:bodyclose // the process ends here
			_, _ = res, err
		}()
		f.m.pass(killSent)
		return nil, errors.New("cut off")
	}
	res, err := f.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	f.m.pass(killAccepted)
	if f.m.Faults && rand.IntN(200) == 0 { // the answer is lost
		return nil, errors.Join(errors.New("connection reset"), res.Body.Close())
	}
	if len(dropped) > 0 {
		return failSome(res, dropped)
	}
	return res, nil
}

func answer(req *http.Request, code int, body string) *http.Response {
	return &http.Response{
		StatusCode: code, Status: strconv.Itoa(code), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: req,
		Header: http.Header{"Content-Type": {"application/x-amz-json-1.0"}}, Body: io.NopCloser(bytes.NewReader([]byte(body))),
		ContentLength: int64(len(body)),
	}
}

// dropSome takes entries at random out of a batch, but for one.
func dropSome(req *http.Request) (*http.Request, []string, error) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return nil, nil, err
	}
	var in map[string]any
	if err := json.Unmarshal(body, &in); err != nil {
		return nil, nil, err
	}
	entries, _ := in["Entries"].([]any)
	var keep []any
	var dropped []string
	for i, e := range entries {
		if id, ok := e.(map[string]any)["Id"].(string); ok && i > 0 && rand.IntN(3) == 0 {
			dropped = append(dropped, id)
		} else {
			keep = append(keep, e)
		}
	}
	in["Entries"] = keep
	if body, err = json.Marshal(in); err != nil {
		return nil, nil, err
	}
	out := req.Clone(req.Context())
	out.Body, out.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	return out, dropped, nil
}

// failSome reports the dropped entries as failed.
func failSome(res *http.Response, dropped []string) (*http.Response, error) {
	body, err := io.ReadAll(res.Body)
	if err = errors.Join(err, res.Body.Close()); err != nil {
		return nil, err
	}
	var out map[string]any
	if err := json.Unmarshal(body, &out); err != nil {
		return nil, err
	}
	failed, _ := out["Failed"].([]any)
	for _, id := range dropped {
		failed = append(failed, map[string]any{"Id": id, "Code": "InternalError", "Message": "injected", "SenderFault": false})
	}
	out["Failed"] = failed
	if body, err = json.Marshal(out); err != nil {
		return nil, err
	}
	return answer(res.Request, res.StatusCode, string(body)), nil
}
