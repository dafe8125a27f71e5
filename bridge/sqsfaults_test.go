package bridge

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/sqs"
)

// A fakeFIFO is what a bridge needs of SQS, behind a round-tripper so that it
// runs in virtual time: one FIFO queue that suppresses duplicates.
type fakeFIFO struct {
	t *testing.T
	// fault may refuse a whole request (an answer) or some of its entries, which
	// are then not stored, by index.
	fault func(req *http.Request, entries []fakeEntry) (*http.Response, map[int]fakeFailure, error)
	lose  func() bool // whether to lose the answer to a request that was carried out
	// several lets several of a group be in a request.
	several bool

	mu      sync.Mutex
	repeats int // entries that were suppressed
	seen    map[string]bool
	arrived []fakeEntry
}

type fakeEntry struct {
	ID        string `json:"Id"`
	Body      string `json:"MessageBody"`
	Group     string `json:"MessageGroupId"`
	Dedup     string `json:"MessageDeduplicationId"`
	Attribute map[string]struct {
		DataType, StringValue string
		BinaryValue           []byte
	} `json:"MessageAttributes"`
}

// fakeLimit is what a message may have, and all of a request.
const fakeLimit = 262_144

// size is counted as SQS does.
func (e *fakeEntry) size() int {
	n := len(e.Body)
	for name, a := range e.Attribute {
		n += len(name) + len(a.DataType) + len(a.StringValue) + len(a.BinaryValue)
	}
	return n
}

type fakeFailure struct {
	Code        string
	SenderFault bool
}

var groupIDs = regexp.MustCompile("^[a-zA-Z0-9!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~]{1,128}$")

func (f *fakeFIFO) RoundTrip(req *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return nil, err
	}
	reply := func(v any) (*http.Response, error) {
		b, err := json.Marshal(v)
		return answer(req, http.StatusOK, string(b)), err
	}
	switch op := strings.TrimPrefix(req.Header.Get("X-Amz-Target"), "AmazonSQS."); op {
	case "GetQueueUrl":
		return reply(map[string]string{"QueueUrl": "http://fake.invalid/1/tasks.fifo"})
	case "GetQueueAttributes":
		return reply(map[string]any{"Attributes": map[string]string{
			"FifoQueue": "true", "ContentBasedDeduplication": "false", "MaximumMessageSize": strconv.Itoa(fakeLimit), "VisibilityTimeout": "30",
			"MessageRetentionPeriod": "345600", "DelaySeconds": "0", "ReceiveMessageWaitTimeSeconds": "0",
			"QueueArn": "arn:aws:sqs:us-east-1:1:tasks.fifo",
		}})
	case "SendMessageBatch":
		<-time.After(5 * time.Millisecond)
		var in struct{ Entries []fakeEntry }
		if err := json.Unmarshal(body, &in); err != nil {
			return nil, err
		}
		var failed map[int]fakeFailure
		if f.fault != nil {
			var res *http.Response
			if res, failed, err = f.fault(req, in.Entries); res != nil || err != nil {
				return res, err
			}
		}
		out := f.store(in.Entries, failed)
		if f.lose != nil && f.lose() {
			return nil, errors.New("connection reset")
		}
		return reply(out)
	default:
		return nil, fmt.Errorf("the fake SQS knows no %s", op)
	}
}

func (f *fakeFIFO) store(entries []fakeEntry, failed map[int]fakeFailure) any {
	f.mu.Lock()
	defer f.mu.Unlock()
	var ok, bad []map[string]any
	groups, size := map[string]bool{}, 0
	for i, e := range entries {
		if size += e.size(); size > fakeLimit {
			f.t.Errorf("SQS would refuse a request of %d bytes", size)
		}
		if !groupIDs.MatchString(e.Group) || !groupIDs.MatchString(e.Dedup) || len(e.Attribute) > 10 {
			f.t.Errorf("SQS would refuse group %q, dedup id %q, %d attributes", e.Group, e.Dedup, len(e.Attribute))
		}
		if groups[e.Group] && !f.several {
			f.t.Errorf("two of group %q in a request", e.Group)
		}
		groups[e.Group] = true
		if x, is := failed[i]; is {
			bad = append(bad, map[string]any{"Id": e.ID, "Code": x.Code, "Message": "injected", "SenderFault": x.SenderFault})
			continue
		}
		ok = append(ok, map[string]any{"Id": e.ID, "MessageId": e.Dedup, "SequenceNumber": strconv.Itoa(len(f.seen))})
		if f.seen[e.Dedup] {
			f.repeats++
			continue
		}
		f.seen[e.Dedup] = true
		f.arrived = append(f.arrived, e)
	}
	return map[string]any{"Successful": ok, "Failed": bad}
}

func (f *fakeFIFO) all() []fakeEntry {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]fakeEntry(nil), f.arrived...)
}

// toSQS opens a FIFO queue on a fake SQS.
func (w *world) toSQS(f *fakeFIFO) broker.Queue {
	w.t.Helper()
	if f.t = w.t; f.seen == nil {
		f.seen = map[string]bool{}
	}
	b := must(sqs.Open(w.ctx, &sqs.Options{
		Region: "us-east-1", Endpoint: "http://fake.invalid", Transport: f, Logger: slog.New(slog.DiscardHandler),
		Credentials: credentials.NewStaticCredentialsProvider("x", "x", ""), BatchGroups: f.several,
	}))(w.t)
	w.t.Cleanup(func() { check(w.t, b.Close()) })
	return must(b.Queue(w.ctx, "tasks.fifo", nil))(w.t)
}

// checkArrived fails unless the numbers 0 … n-1 but for those in except arrived
// once each, in order per group.
func checkArrived(t *testing.T, arrived []fakeEntry, n int, except ...int) {
	t.Helper()
	last, seen := map[string]int{}, make([]int, n)
	for _, e := range arrived {
		i, err := strconv.Atoi(e.Body)
		check(t, err)
		seen[i]++
		if prev, ok := last[e.Group]; ok && i < prev {
			t.Errorf("group %s: %d after %d", e.Group, i, prev)
		}
		last[e.Group] = i
	}
	for _, i := range except {
		seen[i]++
	}
	for i, k := range seen {
		if k != 1 {
			t.Errorf("%d arrived %d times", i, k)
		}
	}
}

// Every subset of a batch of 10 fails, for reasons that pass: nothing is lost,
// nothing comes twice and every key keeps its order.
func TestSQSEverySubsetOfABatchFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3)
		const n, subsets = 12_000, 1 << 10
		w.publish(n, 700)
		var mu sync.Mutex
		subset := 0
		reasons := []fakeFailure{{"InternalError", false}, {"ThrottlingException", true}, {"ServiceUnavailable", false}, {"KmsThrottled", true}}
		f := &fakeFIFO{fault: func(_ *http.Request, entries []fakeEntry) (*http.Response, map[int]fakeFailure, error) {
			mu.Lock()
			defer mu.Unlock()
			failed := map[int]fakeFailure{}
			if len(entries) == 10 && subset < subsets {
				for i := range entries {
					if subset>>i&1 == 1 {
						failed[i] = reasons[(subset+i)%len(reasons)]
					}
				}
				subset++
			}
			return nil, failed, nil
		}}
		rt := w.route(nil)
		rt.Target = w.toSQS(f)
		stop := w.start(rt)
		w.until("the end of the stream", func() bool { return w.lag("bridge-r") == 0 })
		check(t, stop())
		checkArrived(t, f.all(), n)
		if subset < subsets {
			t.Errorf("only %d of %d subsets were tried", subset, subsets)
		}
		s := rt.Stats()
		requests, tasks := int64(0), int64(0)
		for size, count := range s.BatchSizes {
			requests, tasks = requests+count, tasks+int64(size)*count
		}
		if s.Parked != 0 || s.Retried == 0 || len(s.BatchSizes) != 11 || s.BatchSizes[10] < subsets || tasks < n || requests > tasks {
			t.Errorf("%d parked; requests by size: %v", s.Parked, s.BatchSizes)
		}
	})
}

// An entry's code decides, whoever SQS says is at fault: what passes is tried
// again, what the message is at fault for is parked, and its batch mates go on.
// Of a code that nobody knows it is SenderFault that tells.
func TestSQSEntryCodes(t *testing.T) {
	for code, parked := range map[string]bool{
		"InternalError": false, "ThrottlingException": false, "KmsThrottled": false, "ServiceUnavailable": false,
		"AccessDenied": false, "QueueDoesNotExist": false, "ExpiredToken": false,
		"KMS.ThrottlingException": false, "KMS.DisabledException": false,
		"InvalidMessageContents": true, "InvalidParameterValue": true, "ACodeToCome": true,
	} {
		for _, senderFault := range []bool{false, true} {
			parked := parked && (senderFault || code != "ACodeToCome")
			t.Run(fmt.Sprintf("%s,SenderFault=%v", code, senderFault), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t, 1)
					const n, bad = 50, 17
					w.publish(n, 25)
					var mu sync.Mutex
					tries := 0
					f := &fakeFIFO{fault: func(_ *http.Request, entries []fakeEntry) (*http.Response, map[int]fakeFailure, error) {
						mu.Lock()
						defer mu.Unlock()
						for i, e := range entries {
							if e.Body == strconv.Itoa(bad) {
								if tries++; parked || tries <= 20 { // more than Attempts
									return nil, map[int]fakeFailure{i: {code, senderFault}}, nil
								}
							}
						}
						return nil, nil, nil
					}}
					rt := w.route(nil)
					rt.Target = w.toSQS(f)
					stop := w.start(rt)
					w.until("the end of the stream", func() bool { return w.lag("bridge-r") == 0 })
					check(t, stop())
					if dead := w.drain(w.dead); parked {
						checkArrived(t, f.all(), n, bad)
						if len(dead) != 1 || !strings.Contains(dead[0].Headers.Get(broker.HeaderDeadLetterReason), code) {
							t.Errorf("dead letters: %v", dead)
						}
					} else if checkArrived(t, f.all(), n); len(dead) != 0 {
						t.Errorf("dead letters: %v", dead)
					}
				})
			})
		}
	}
}

// 4. Order: BatchSameGroup sends ten of a group in a request, where the queue was
// opened so; a hot key is ten times as fast, and in order as long as nothing
// fails.
func TestContract4SeveralOfAGroup(t *testing.T) {
	for _, several := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, 1)
			const n = 1000
			w.publish(n, 1)
			f := &fakeFIFO{several: several}
			rt := w.route(func(rt *Route) { rt.BatchSameGroup = several })
			rt.Target = w.toSQS(f)
			began := time.Now()
			stop := w.start(rt)
			w.until("the end of the stream", func() bool { return w.lag("bridge-r") == 0 })
			took := time.Since(began)
			check(t, stop())
			checkArrived(t, f.all(), n)
			if sizes := rt.Stats().BatchSizes; several != (sizes[10] > n/20) || several != (took < n*5*time.Millisecond/5) {
				t.Errorf("several %v: %v, requests by size: %v", several, took, sizes)
			}
		})
	}
}

// What stops all sending for longer than the dedup window: nothing is parked,
// nothing is lost, and the route resumes by itself.
func TestSQSDownThenUp(t *testing.T) {
	for _, down := range []struct {
		name   string
		status int // with code; 0: no answer
		code   string
		err    error // without an answer; nil: it never comes
	}{
		{name: "credentials expired", status: http.StatusForbidden, code: "ExpiredToken"},
		{name: "access denied", status: http.StatusForbidden, code: "AccessDenied"},
		{name: "queue deleted", status: http.StatusBadRequest, code: "QueueDoesNotExist"},
		{name: "throttled", status: http.StatusBadRequest, code: "RequestThrottled"},
		{name: "5xx", status: http.StatusServiceUnavailable, code: "ServiceUnavailable"},
		{name: "connections refused", err: errors.New("connection refused")},
		{name: "hangs"},
	} {
		t.Run(down.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 2)
				const n, downFor = 100, 6 * time.Minute
				w.publish(n, 10)
				began, requests := time.Now(), 0
				var mu sync.Mutex
				f := &fakeFIFO{fault: func(req *http.Request, _ []fakeEntry) (*http.Response, map[int]fakeFailure, error) {
					mu.Lock()
					requests++
					isDown := requests > 5 && time.Since(began) < downFor
					mu.Unlock()
					if !isDown {
						return nil, nil, nil
					}
					switch {
					case down.status > 0:
						return answer(req, down.status, `{"__type":"com.amazonaws.sqs#`+down.code+`","message":"injected"}`), nil, nil
					case down.err != nil:
						return nil, nil, down.err
					}
					<-req.Context().Done()
					return nil, nil, req.Context().Err()
				}}
				rt := w.route(func(rt *Route) { rt.RetryMax = 5 * time.Second })
				rt.Target = w.toSQS(f)
				stop := w.start(rt)
				<-time.After(time.Until(began.Add(downFor - time.Second)))
				mu.Lock()
				made := requests
				mu.Unlock()
				if lag := w.lag("bridge-r"); lag == 0 || made > 20_000 {
					t.Errorf("lag %d after %d requests", lag, made)
				}
				w.until("the end of the stream", func() bool { return w.lag("bridge-r") == 0 })
				check(t, stop())
				checkArrived(t, f.all(), n)
				if s := rt.Stats(); s.Parked != 0 || s.Retried == 0 {
					t.Errorf("stats: %+v", s)
				}
			})
		})
	}
}

// The end of Run amid batches that hang: what was cut off is not committed, and
// the next run sends it with the same ids.
func TestSQSStopAmidBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2)
		const n = 500
		w.publish(n, 100)
		hang := true
		var mu sync.Mutex
		requests := 0
		f := &fakeFIFO{}
		f.fault = func(req *http.Request, entries []fakeEntry) (*http.Response, map[int]fakeFailure, error) {
			mu.Lock()
			requests++
			hangs := hang && requests > 10
			mu.Unlock()
			if hangs { // it has been stored all the same
				f.store(entries, nil)
				<-req.Context().Done()
				return nil, nil, req.Context().Err()
			}
			return nil, nil, nil
		}
		route := func() *Route {
			return w.route(func(rt *Route) { rt.Target, rt.DrainTimeout = w.toSQS(f), 2*time.Second })
		}
		stop := w.start(route())
		w.until("a hang", func() bool { mu.Lock(); defer mu.Unlock(); return requests > 12 })
		ctx, cancel := context.WithTimeout(w.ctx, time.Minute)
		defer cancel()
		ended := make(chan error, 1)
		go func() { ended <- stop() }()
		select {
		case err := <-ended:
			check(t, err)
		case <-ctx.Done():
			t.Fatal("Run did not end")
		}
		if w.lag("bridge-r") == 0 {
			t.Error("all is committed, and some was cut off")
		}
		mu.Lock()
		hang = false
		mu.Unlock()
		stop = w.start(route())
		w.until("the end of the stream", func() bool { return w.lag("bridge-r") == 0 })
		check(t, stop())
		checkArrived(t, f.all(), n)
	})
}

// Keys and bodies that SQS does not take as they are.
func TestSQSOddRecords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		var many broker.Headers
		for i := range 30 {
			many = append(many, broker.Header{Key: fmt.Sprint("header ", i), Value: "v\x00\xff"})
		}
		rs := []broker.Record{
			{Key: []byte("\x00\xff\xfe"), Value: []byte("a")},
			{Key: bytes.Repeat([]byte("k"), 129), Value: []byte("b")},
			{Key: bytes.Repeat([]byte("k"), 130), Value: []byte("c")},
			{Value: []byte("d")},
			{Key: []byte("ключ"), Value: []byte("e")},
			{Key: []byte("k"), Value: []byte("\x00\x01\xff")},
			{Key: []byte("k"), Value: []byte{}},
			{Key: []byte("k"), Tombstone: true},
			{Key: []byte("k"), Value: []byte("f"), Headers: many},
		}
		_, err := w.stream.PublishBatch(w.ctx, rs)
		check(t, err)
		f := &fakeFIFO{}
		rt := w.route(nil)
		rt.Target = w.toSQS(f)
		stop := w.start(rt)
		w.until("the end of the stream", func() bool { return w.lag("bridge-r") == 0 })
		check(t, stop())
		groups := map[string]bool{}
		for _, e := range f.all() {
			groups[e.Group] = true
		}
		if s := rt.Stats(); s.Enqueued != int64(len(rs)) || len(f.all()) != len(rs) || len(groups) != 6 {
			t.Errorf("%d arrived in %d groups, want %d in 6; stats %+v", len(f.all()), len(groups), len(rs), s)
		}
	})
}
