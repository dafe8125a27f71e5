package sqs

import (
	"bytes"
	"encoding/json"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
)

// faulty is a round-tripper that does to requests of the data path what AWS
// may do: one in every so many is throttled, fails with 5xx before or after it
// was carried out, loses its answer, or has one entry of its batch refused;
// receives on standard queues come shuffled and with duplicates. The endpoint
// must not check signatures, since requests are rewritten.
type faulty struct {
	next  http.RoundTripper
	every int
	only  string // "": any fault, else just that one
	skip  string // a fault that is left out
	polls bool   // the answers of receives are lost, too: what they held returns when its lease ends
	bites atomic.Int64
	gone  *sync.Map // receipt handles that were deleted without an answer

	mu   sync.Mutex
	rng  *rand.Rand
	seen []any // messages that were received from standard queues
}

func newFaulty(next http.RoundTripper, every int, seed uint64) *faulty {
	return &faulty{next: next, every: every, gone: new(sync.Map), rng: rand.New(rand.NewPCG(seed, seed))} //nolint:gosec // a test's choices
}

var faults = []string{"throttle", "cut", "5xx before", "5xx after", "lost answer", "entry", "duplicate", "reorder"}

func (f *faulty) choose() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.every == 0 || f.rng.IntN(f.every) != 0 {
		return ""
	}
	if f.only != "" {
		return f.only
	}
	if fault := faults[f.rng.IntN(len(faults))]; fault != f.skip {
		return fault
	}
	return ""
}

func (f *faulty) RoundTrip(r *http.Request) (*http.Response, error) {
	_, op, _ := strings.Cut(r.Header.Get("X-Amz-Target"), ".")
	batch := strings.HasSuffix(op, "Batch")
	if !batch && op != "ReceiveMessage" {
		return f.next.RoundTrip(r)
	}
	raw, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	in := map[string]any{}
	if err := json.Unmarshal(raw, &in); err != nil {
		return nil, err
	}
	fault := f.choose()
	if op == "DeleteMessageBatch" {
		for _, e := range in["Entries"].([]any) {
			handle := e.(map[string]any)["ReceiptHandle"]
			if fault == "5xx after" || fault == "lost answer" {
				f.gone.Store(handle, true)
			}
		}
	}
	standard := !strings.HasSuffix(str(in["QueueUrl"]), fifoSuffix)
	switch {
	case fault == "throttle":
		f.bites.Add(1)
		return fakeError(400, "ThrottlingException"), nil
	case fault == "cut":
		f.bites.Add(1)
		return nil, errCut
	case fault == "5xx before":
		f.bites.Add(1)
		return fakeError(503, "ServiceUnavailable"), nil
	case fault == "5xx after" && (batch || f.polls):
		f.bites.Add(1)
		if _, err := f.forward(r, in); err != nil {
			return nil, err
		}
		return fakeError(500, "InternalFailure"), nil
	case fault == "lost answer" && (batch || f.polls):
		f.bites.Add(1)
		if _, err := f.forward(r, in); err != nil {
			return nil, err
		}
		return nil, errCut
	case fault == "entry" && batch:
		return f.refuseOne(r, in)
	}
	if most, ok := in["MaxNumberOfMessages"].(float64); ok && fault == "duplicate" {
		in["MaxNumberOfMessages"] = min(most, batchEntries-1) // room for one more
	}
	out, err := f.forward(r, in)
	if err != nil || out.StatusCode != 200 || op != "ReceiveMessage" || !standard {
		return out, err
	}
	return f.disorder(out, fault)
}

func (f *faulty) forward(r *http.Request, in map[string]any) (*http.Response, error) {
	raw, err := json.Marshal(in)
	if err != nil {
		return nil, err
	}
	r = r.Clone(r.Context())
	r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(raw)), int64(len(raw))
	out, err := f.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	raw, err = io.ReadAll(out.Body)
	if cerr := out.Body.Close(); err == nil {
		err = cerr
	}
	out.Body, out.ContentLength = io.NopCloser(bytes.NewReader(raw)), int64(len(raw))
	if strings.HasSuffix(r.Header.Get("X-Amz-Target"), ".DeleteMessageBatch") && out.StatusCode == 200 && err == nil {
		return f.deletedTwice(in, raw)
	}
	return out, err
}

// deletedTwice answers a second delete of a message as AWS does (it succeeds);
// ElasticMQ refuses it.
func (f *faulty) deletedTwice(in map[string]any, raw []byte) (*http.Response, error) {
	handles := map[any]any{}
	for _, e := range in["Entries"].([]any) {
		entry := e.(map[string]any)
		handles[entry["Id"]] = entry["ReceiptHandle"]
	}
	var body struct{ Successful, Failed []map[string]any }
	if err := json.Unmarshal(raw, &body); err != nil {
		return nil, err
	}
	var failed []map[string]any
	for _, e := range body.Failed {
		if _, ok := f.gone.Load(handles[e["Id"]]); ok {
			body.Successful = append(body.Successful, map[string]any{"Id": e["Id"]})
			continue
		}
		failed = append(failed, e)
	}
	return fakeResponse(200, map[string]any{"Successful": body.Successful, "Failed": failed}), nil
}

// refuseOne keeps one entry from the service and reports it as failed.
func (f *faulty) refuseOne(r *http.Request, in map[string]any) (*http.Response, error) {
	f.bites.Add(1)
	entries := in["Entries"].([]any)
	f.mu.Lock()
	i := f.rng.IntN(len(entries))
	f.mu.Unlock()
	failed := map[string]any{"Id": entries[i].(map[string]any)["Id"], "Code": "InternalError", "SenderFault": true}
	body := map[string]any{"Successful": []any{}}
	if len(entries) > 1 {
		in["Entries"] = append(entries[:i:i], entries[i+1:]...)
		out, err := f.forward(r, in)
		if err != nil || out.StatusCode != 200 {
			return out, err
		}
		if err := json.NewDecoder(out.Body).Decode(&body); err != nil {
			return nil, err
		}
	}
	others, _ := body["Failed"].([]any)
	body["Failed"] = append(others, failed)
	return fakeResponse(200, body), nil
}

// disorder shuffles what was received, and adds something received before.
func (f *faulty) disorder(out *http.Response, fault string) (*http.Response, error) {
	body := map[string]any{}
	if err := json.NewDecoder(out.Body).Decode(&body); err != nil {
		return nil, err
	}
	ms, _ := body["Messages"].([]any)
	f.mu.Lock()
	switch {
	case fault == "reorder" && len(ms) > 1:
		f.bites.Add(1)
		f.rng.Shuffle(len(ms), func(i, j int) { ms[i], ms[j] = ms[j], ms[i] })
	case fault == "duplicate" && len(f.seen) > 0 && len(ms) > 0 && len(ms) < batchEntries:
		f.bites.Add(1)
		ms = append(ms, f.seen[f.rng.IntN(len(f.seen))])
	}
	if f.seen = append(f.seen, ms...); len(f.seen) > 100 {
		f.seen = f.seen[len(f.seen)-100:]
	}
	f.mu.Unlock()
	body["Messages"] = ms
	return fakeResponse(200, body), nil
}

// switched passes requests on, through faults while there are some. What was
// deleted without an answer it remembers beyond them: the delete may be
// repeated once they are over.
type switched struct {
	*http.Transport
	faults *atomic.Pointer[faulty]
	gone   *sync.Map
}

func (s *switched) RoundTrip(r *http.Request) (*http.Response, error) {
	f := s.faults.Load()
	if f == nil {
		if !strings.HasSuffix(r.Header.Get("X-Amz-Target"), ".DeleteMessageBatch") {
			return s.Transport.RoundTrip(r)
		}
		f = &faulty{}
	}
	through := &faulty{next: s.Transport, every: f.every, only: f.only, skip: f.skip, polls: f.polls, gone: s.gone, rng: rand.New(rand.NewPCG(rand.Uint64(), 1))} //nolint:gosec // a test's choices
	defer func() { f.bites.Add(through.bites.Load()) }()
	return through.RoundTrip(r)
}
