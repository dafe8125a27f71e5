package sqs

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/queuestream/broker"
)

// What cannot be redriven is visible again at once, however long the redrive took.
func TestRedriveGivesBackWhatStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		b := openFake(t, f)
		dead := openQueue(t, b, "dead", nil)
		const n = 100
		_, err := dead.PublishBatch(t.Context(), bodies(n, func(i int, m *broker.Message) {
			if i > 0 { // of the first nobody knows where it came from
				*m = broker.DeadLetterMessage(*m, broker.DeadLetter{Reason: "why", Queue: "work", Time: time.Now()})
			}
		}))
		if err != nil {
			t.Fatal(err)
		}
		f.fault = func(op string, _ map[string]any, answer any) (*http.Response, error) {
			if op == "ReceiveMessage" && answer == nil {
				<-time.After(time.Second)
			}
			return nil, nil
		}
		moved, err := b.Redrive(t.Context(), "dead", "", 0)
		if moved != n-1 || !errors.Is(err, broker.ErrInvalid) || errors.Is(err, context.DeadlineExceeded) ||
			!strings.Contains(fmt.Sprint(err), "where it came from is not known") {
			t.Errorf("%d moved, %v", moved, err)
		}
		f.mu.Lock()
		left := f.queue("dead").messages
		if len(left) != 1 || left[0].visible.After(time.Now()) {
			t.Errorf("%d messages are left, the first is hidden for %v", len(left), time.Until(left[0].visible))
		}
		f.mu.Unlock()
		if n := f.depth("work"); n != moved {
			t.Errorf("%d messages came back, %d were moved", n, moved)
		}
	})
}

// What was peeked is not peeked again where the queue is so slow that it would
// be visible again meanwhile.
func TestPeekSeesEachMessageOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		b := openFake(t, f, func(o *Options) { o.RequestTimeout = time.Minute })
		q := openQueue(t, b, "q", nil)
		if _, err := q.PublishBatch(t.Context(), bodies(50, nil)); err != nil {
			t.Fatal(err)
		}
		f.fault = func(op string, _ map[string]any, answer any) (*http.Response, error) {
			if op == "ReceiveMessage" && answer == nil {
				<-time.After(20 * time.Second)
			}
			return nil, nil
		}
		ms, err := b.Peek(t.Context(), "q", 1000)
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string]bool{}
		for _, m := range ms {
			if seen[m.ID] {
				t.Fatalf("%s came twice among %d", m.ID, len(ms))
			}
			seen[m.ID] = true
		}
		if len(ms) < batchEntries {
			t.Errorf("%d messages", len(ms))
		}
	})
}
