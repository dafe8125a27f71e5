package sqs

import (
	"bytes"
	"crypto/md5" //nolint:gosec // SQS answers with it
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/queuestream/broker"
)

// A fakeSQS is a small SQS behind a round-tripper: no sockets, so that it runs
// in virtual time. It knows visibility, delay, attempts, FIFO groups and dedup;
// queues exist by use unless their name begins with "missing".
type fakeSQS struct {
	mu     sync.Mutex
	queues map[string]*fakeQueue
	count  map[string]int // requests by operation
	seq    int
	wake   chan struct{}
	// fault, if set, is asked before each request is carried out (answer nil)
	// and after it, and may answer instead.
	fault func(op string, in map[string]any, answer any) (*http.Response, error)
}

type fakeQueue struct {
	messages []*fakeMessage
	dedup    map[string]*fakeMessage
	attempts map[string][]*fakeMessage // by ReceiveRequestAttemptId
	attrs    map[string]string
	tags     map[string]any
}

type fakeMessage struct {
	id, body, group, dedup string
	attrs                  any
	sent, visible          time.Time
	receives               int
	handle                 string
	deleted                bool
}

func newFake() *fakeSQS {
	return &fakeSQS{queues: map[string]*fakeQueue{}, count: map[string]int{}, wake: make(chan struct{})}
}

// openFake opens a Broker over f.
func openFake(t *testing.T, f http.RoundTripper, edit ...func(*Options)) *Broker {
	t.Helper()
	o := &Options{Region: "eu-test-1", Credentials: staticCredentials("k", "s"), Endpoint: "http://fake.invalid", Transport: f}
	for _, e := range edit {
		e(o)
	}
	b, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

func (f *fakeSQS) requests(op string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.count[op]
}

// depth counts the messages of a queue.
func (f *fakeSQS) depth(name string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.queue(name).messages)
}

func (f *fakeSQS) queue(name string) *fakeQueue {
	q := f.queues[name]
	if q == nil {
		q = &fakeQueue{dedup: map[string]*fakeMessage{}, attempts: map[string][]*fakeMessage{}, attrs: map[string]string{
			"QueueArn": "arn:aws:sqs:eu-test-1:1:" + name, "VisibilityTimeout": "30", "MaximumMessageSize": "1048576", "DelaySeconds": "0",
		}}
		f.queues[name] = q
	}
	return q
}

func (f *fakeSQS) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	raw, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	_, op, _ := strings.Cut(r.Header.Get("X-Amz-Target"), ".")
	in := map[string]any{}
	if err := json.Unmarshal(raw, &in); err != nil {
		return nil, fmt.Errorf("fake: %q: %w", raw, err)
	}
	f.mu.Lock()
	f.count[op]++
	fault := f.fault
	f.mu.Unlock()
	if fault != nil {
		if resp, err := fault(op, in, nil); resp != nil || err != nil {
			return resp, err
		}
	}
	out, code := f.answer(r, op, in)
	if code != "" {
		return fakeError(400, code), nil
	}
	if fault != nil {
		if resp, err := fault(op, in, out); resp != nil || err != nil {
			return resp, err
		}
	}
	return fakeResponse(200, out), nil
}

func fakeResponse(status int, body any) *http.Response {
	raw, err := json.Marshal(body)
	if err != nil {
		panic(err)
	}
	return &http.Response{
		StatusCode: status, Status: http.StatusText(status), ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{"Content-Type": {"application/x-amz-json-1.0"}}, Body: io.NopCloser(bytes.NewReader(raw)),
		ContentLength: int64(len(raw)),
	}
}

func fakeError(status int, code string) *http.Response {
	return fakeResponse(status, map[string]any{"__type": "com.amazonaws.sqs#" + code, "message": code})
}

// failEntries turns an answer's successful entries with these ids into failed ones.
func failEntries(answer any, code string, senderFault bool, ids ...string) *http.Response {
	out := answer.(map[string]any)
	var ok, failed []any
	for _, e := range out["Successful"].([]any) {
		id := e.(map[string]any)["Id"]
		bad := false
		for _, want := range ids {
			bad = bad || id == want
		}
		if bad {
			failed = append(failed, map[string]any{"Id": id, "Code": code, "SenderFault": senderFault, "Message": code})
		} else {
			ok = append(ok, e)
		}
	}
	return fakeResponse(200, map[string]any{"Successful": ok, "Failed": failed})
}

func str(v any) string { s, _ := v.(string); return s }
func num(v any) int    { n, _ := v.(float64); return int(n) }

func (f *fakeSQS) answer(r *http.Request, op string, in map[string]any) (any, string) {
	if op == "ReceiveMessage" {
		return f.receive(r, in)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	name := str(in["QueueName"])
	if url := str(in["QueueUrl"]); url != "" {
		name = url[strings.LastIndexByte(url, '/')+1:]
	}
	if strings.HasPrefix(name, "missing") {
		return nil, "QueueDoesNotExist"
	}
	q := f.queue(name)
	switch op {
	case "CreateQueue":
		attrs, _ := in["Attributes"].(map[string]any)
		for key, value := range attrs {
			q.attrs[key] = str(value)
		}
		q.tags, _ = in["tags"].(map[string]any)
		return map[string]any{"QueueUrl": "http://fake.invalid/1/" + name}, ""
	case "DeleteQueue":
		delete(f.queues, name)
		return map[string]any{}, ""
	case "ListQueues":
		delete(f.queues, "") // made by the look-up above
		urls := []string{}
		for name := range f.queues {
			if strings.HasPrefix(name, str(in["QueueNamePrefix"])) {
				urls = append(urls, "http://fake.invalid/1/"+name)
			}
		}
		return map[string]any{"QueueUrls": urls}, ""
	case "ListQueueTags":
		return map[string]any{"Tags": q.tags}, ""
	case "TagQueue":
		maps.Copy(q.tags, in["Tags"].(map[string]any))
		return map[string]any{}, ""
	case "GetQueueUrl":
		return map[string]any{"QueueUrl": "http://fake.invalid/1/" + name}, ""
	case "GetQueueAttributes":
		return map[string]any{"Attributes": maps.Clone(q.attrs)}, ""
	case "SendMessageBatch":
		return f.each(in, func(e map[string]any) (map[string]any, string) { return f.send(q, e) }), ""
	case "DeleteMessageBatch", "ChangeMessageVisibilityBatch":
		return f.each(in, func(e map[string]any) (map[string]any, string) {
			for i, m := range q.messages {
				if m.handle != str(e["ReceiptHandle"]) || m.handle == "" {
					continue
				}
				if op == "DeleteMessageBatch" {
					m.deleted = true
					q.messages = append(q.messages[:i:i], q.messages[i+1:]...)
				} else {
					m.visible = time.Now().Add(time.Duration(num(e["VisibilityTimeout"])) * time.Second)
				}
				return map[string]any{}, ""
			}
			return nil, "ReceiptHandleIsInvalid"
		}), ""
	}
	return nil, "InvalidAction"
}

func (f *fakeSQS) each(in map[string]any, do func(e map[string]any) (map[string]any, string)) map[string]any {
	ok, failed := []any{}, []any{}
	for _, e := range in["Entries"].([]any) {
		entry := e.(map[string]any)
		out, code := do(entry)
		if code != "" {
			failed = append(failed, map[string]any{"Id": entry["Id"], "Code": code, "SenderFault": true})
			continue
		}
		out["Id"] = entry["Id"]
		ok = append(ok, out)
	}
	close(f.wake)
	f.wake = make(chan struct{})
	return map[string]any{"Successful": ok, "Failed": failed}
}

func (f *fakeSQS) send(q *fakeQueue, e map[string]any) (map[string]any, string) {
	f.seq++
	m := &fakeMessage{
		id: fmt.Sprint("id", f.seq), body: str(e["MessageBody"]), group: str(e["MessageGroupId"]),
		dedup: str(e["MessageDeduplicationId"]), attrs: e["MessageAttributes"], sent: time.Now(),
	}
	m.visible = m.sent.Add(time.Duration(num(e["DelaySeconds"])) * time.Second)
	sum := md5.Sum([]byte(m.body)) //nolint:gosec // as above
	if old := q.dedup[m.dedup]; m.dedup != "" && old != nil && time.Since(old.sent) < dedupWindow {
		m = old
	} else {
		q.messages = append(q.messages, m)
		if m.dedup != "" {
			q.dedup[m.dedup] = m
		}
	}
	return map[string]any{"MessageId": m.id, "MD5OfMessageBody": hex.EncodeToString(sum[:])}, ""
}

func (f *fakeSQS) receive(r *http.Request, in map[string]any) (any, string) {
	end := time.Now().Add(time.Duration(num(in["WaitTimeSeconds"])) * time.Second)
	url := str(in["QueueUrl"])
	for {
		f.mu.Lock()
		q, wake := f.queue(url[strings.LastIndexByte(url, '/')+1:]), f.wake
		got, next := f.take(q, in)
		f.mu.Unlock()
		left := time.Until(end)
		if len(got) > 0 || left <= 0 {
			return map[string]any{"Messages": got}, ""
		}
		t := time.NewTimer(min(left, next))
		select {
		case <-wake:
		case <-t.C:
		case <-r.Context().Done():
		}
		t.Stop()
		if r.Context().Err() != nil {
			return nil, "RequestTimeout"
		}
	}
}

// take returns messages, and how long until another one may be visible.
func (f *fakeSQS) take(q *fakeQueue, in map[string]any) (got []any, next time.Duration) {
	now := time.Now()
	next = time.Hour
	locked := map[string]bool{}
	attempt := str(in["ReceiveRequestAttemptId"])
	for _, m := range q.attempts[attempt] {
		if !m.deleted && now.Before(m.visible) {
			got = append(got, m.answer(now, in))
		}
	}
	if got != nil {
		return got, 0
	}
	for _, m := range q.messages {
		if m.group != "" && locked[m.group] {
			continue
		}
		if d := m.visible.Sub(now); d > 0 {
			next = min(next, d)
			locked[m.group] = true
			continue
		}
		if len(got) == num(in["MaxNumberOfMessages"]) {
			break
		}
		m.receives++
		m.handle = fmt.Sprintf("%s-%d", m.id, m.receives)
		got = append(got, m.answer(now, in))
		if attempt != "" {
			q.attempts[attempt] = append(q.attempts[attempt], m)
		}
	}
	return got, next
}

// answer hides m and returns it as ReceiveMessage does.
func (m *fakeMessage) answer(now time.Time, in map[string]any) any {
	m.visible = now.Add(time.Duration(num(in["VisibilityTimeout"])) * time.Second)
	sum := md5.Sum([]byte(m.body)) //nolint:gosec // as above
	system := map[string]any{
		"SentTimestamp": fmt.Sprint(m.sent.UnixMilli()), "ApproximateReceiveCount": fmt.Sprint(m.receives),
	}
	if m.group != "" {
		system["MessageGroupId"], system["MessageDeduplicationId"] = m.group, m.dedup
	}
	return map[string]any{
		"MessageId": m.id, "ReceiptHandle": m.handle, "Body": m.body, "MD5OfBody": hex.EncodeToString(sum[:]),
		"Attributes": system, "MessageAttributes": m.attrs,
	}
}

var errCut = errors.New("connection cut")

func bodies(n int, edit func(i int, m *broker.Message)) []broker.Message {
	ms := make([]broker.Message, n)
	for i := range ms {
		ms[i] = broker.Message{Body: fmt.Appendf(nil, "m%d", i)}
		if edit != nil {
			edit(i, &ms[i])
		}
	}
	return ms
}
