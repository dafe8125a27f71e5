package sqs

import (
	"errors"
	"math/bits"
	"net/http"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/queuestream/broker"
)

// refuseSubset has the next request of op refuse the entries in mask, which are
// not carried out, with code.
func refuseSubset(f *fakeSQS, op string, mask int, code string) {
	var refused []any
	pending := true
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fault = func(o string, in map[string]any, answer any) (*http.Response, error) {
		if o != op || !pending {
			return nil, nil
		}
		if answer == nil {
			var rest []any
			for i, e := range in["Entries"].([]any) {
				if mask&(1<<i) == 0 {
					rest = append(rest, e)
				} else {
					refused = append(refused, map[string]any{"Id": strconv.Itoa(i), "Code": code, "SenderFault": true, "Message": code})
				}
			}
			in["Entries"] = rest
			return nil, nil
		}
		pending = false
		out := answer.(map[string]any)
		out["Failed"] = append(out["Failed"].([]any), refused...)
		return fakeResponse(200, out), nil
	}
}

// Whatever subset of a batch of ten fails: for a passing reason, those are
// carried out by another request and nothing else is; for a final one, they
// and no others report it.
func TestEverySubsetOfABatch(t *testing.T) {
	for _, tt := range []struct {
		name, op, again, final string
		want                   error // of what is refused for good
	}{
		{"send", "SendMessageBatch", "RequestThrottled", "InvalidMessageContents", broker.ErrInvalid},
		{"delete", "DeleteMessageBatch", "InternalError", "ReceiptHandleIsInvalid", broker.ErrLeaseLost},
		{"visibility", "ChangeMessageVisibilityBatch", "InternalError", "MessageNotInflight", broker.ErrLeaseLost},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake()
				q := openQueue(t, openFake(t, f), "q", nil)
				c := consume(t, q, nil)
				for mask := range 1 << batchEntries {
					code, want := tt.again, error(nil)
					if bits.OnesCount(uint(mask))%2 == 0 {
						code, want = tt.final, tt.want
					}
					var batch []broker.Outcome
					if tt.op != "SendMessageBatch" {
						if _, err := q.PublishBatch(t.Context(), bodies(batchEntries, nil)); err != nil {
							t.Fatal(err)
						}
						batch = verdicts(t, c, tt.op)
					}
					refuseSubset(f, tt.op, mask, code)
					before := f.requests(tt.op)
					var err error
					if batch == nil {
						_, err = q.PublishBatch(t.Context(), bodies(batchEntries, nil))
					} else {
						err = broker.SettleAll(t.Context(), batch)
					}
					checkSubset(t, mask, want, err, f.requests(tt.op)-before)
					checkQueue(t, f, tt.op, batch, mask, want != nil)
				}
			})
		})
	}
}

// verdicts receives a batch, and returns what is to be done with it by op.
func verdicts(t *testing.T, c broker.Consumer, op string) []broker.Outcome {
	t.Helper()
	batch := make([]broker.Outcome, batchEntries)
	for i, d := range receiveAll(t, c, batchEntries) {
		batch[i] = broker.Outcome{Delivery: d, Verdict: broker.Verdict{Kind: broker.VerdictAck}}
		if op != "DeleteMessageBatch" {
			batch[i].Verdict = broker.Verdict{Kind: broker.VerdictExtend, Lease: time.Hour}
		}
	}
	return batch
}

func receiveAll(t *testing.T, c broker.Consumer, n int) []*broker.Delivery {
	t.Helper()
	var all []*broker.Delivery
	for len(all) < n {
		ds, err := c.Receive(t.Context(), n-len(all))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, ds...)
	}
	return all
}

func checkSubset(t *testing.T, mask int, want, err error, requests int) {
	t.Helper()
	for i := range batchEntries {
		got, refused := broker.ErrorAt(err, i), mask&(1<<i) != 0 && want != nil
		if refused && !errors.Is(got, want) || !refused && got != nil {
			t.Errorf("subset %010b: entry %d: %v", mask, i, got)
		}
	}
	if most := 1 + batchEntries; requests > most || mask == 0 && requests != 1 || want != nil && requests != 1 {
		t.Errorf("subset %010b: %d requests", mask, requests)
	}
}

// checkQueue checks that op was carried out once for each entry but those in
// mask, if they were refused for good, and empties the queue.
func checkQueue(t *testing.T, f *fakeSQS, op string, batch []broker.Outcome, mask int, refused bool) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	stored, extended := map[string]int{}, map[string]bool{}
	for _, m := range f.queue("q").messages {
		stored[m.body]++
		extended[m.body] = time.Until(m.visible) > 30*time.Minute
	}
	for i := range batchEntries {
		body, done := "m"+strconv.Itoa(i), !refused || mask&(1<<i) == 0
		if batch != nil {
			body = string(batch[i].Delivery.Body)
		}
		want := 1
		if op == "SendMessageBatch" && !done || op == "DeleteMessageBatch" && done {
			want = 0
		}
		if n := stored[body]; n != want {
			t.Errorf("subset %010b: entry %d is stored %d times, want %d", mask, i, n, want)
		}
		if op == "ChangeMessageVisibilityBatch" && extended[body] != done {
			t.Errorf("subset %010b: entry %d is extended: %t", mask, i, !done)
		}
	}
	f.queue("q").messages = nil
}
