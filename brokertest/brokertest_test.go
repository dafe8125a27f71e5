package brokertest_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/brokertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestRecorder(t *testing.T) {
	ctx := t.Context()
	var r brokertest.Recorder
	d := brokertest.NewDelivery(broker.Message{ID: "1"}, &r)
	if _, ok := r.Settled("1"); ok {
		t.Error("settled before it was")
	}
	waited := make(chan error, 1)
	go func() {
		waited <- r.Wait(ctx, func(os []broker.Outcome) bool { return len(os) == 2 })
	}()
	if err := errors.Join(d.Extend(ctx, time.Minute), d.Nack(ctx, time.Second)); err != nil {
		t.Fatal(err)
	}
	if err := <-waited; err != nil {
		t.Fatal(err)
	}
	if v, ok := r.Settled("1"); !ok || v.Kind != broker.VerdictNack || v.Delay != time.Second {
		t.Errorf("%+v, %v", v, ok)
	}
	r.Fail = func(*broker.Delivery, broker.Verdict) error { return brokertest.ErrInjected }
	if err := brokertest.NewDelivery(broker.Message{}, &r).Ack(ctx); !errors.Is(err, brokertest.ErrInjected) {
		t.Error(err)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if err := r.Wait(ended, func([]broker.Outcome) bool { return false }); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := brokertest.NewDelivery(broker.Message{}, nil).Ack(ended); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestRecord(t *testing.T) {
	r := brokertest.NewRecord(broker.Record{Key: []byte("k")}, "s", "g", 2, 5)
	if i := r.Info(); i.ID != "s/2/5" || i.Group != "g" || r.Time().IsZero() {
		t.Errorf("%+v", i)
	}
	if brokertest.NewRecord(broker.Record{}, "s", "", 0, 0).Assignment() != nil {
		t.Error("an assignment without a group")
	}
}

func TestQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		q := brokertest.NewQueue("q", broker.Message{ID: "1", GroupID: "g"}, broker.Message{ID: "2", GroupID: "g"}, broker.Message{ID: "3"})
		c, err := q.Consumer(ctx, nil)
		if err != nil {
			t.Fatal(err)
		}
		receive := func(max int) []*broker.Delivery {
			t.Helper()
			ctx, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			ds, err := c.Receive(ctx, max)
			if err != nil && !errors.Is(err, context.DeadlineExceeded) {
				t.Fatal(err)
			}
			return ds
		}
		ds := receive(10)
		if len(ds) != 2 || ds[0].ID != "1" || ds[1].ID != "3" || ds[0].Info().Source != "q" {
			t.Fatalf("%+v", ds)
		}
		if got := receive(1); got != nil {
			t.Errorf("the gate let %s pass", got[0].ID)
		}
		if err := ds[0].Nack(ctx, time.Minute); err != nil {
			t.Fatal(err)
		}
		if got := receive(1); got != nil {
			t.Errorf("%s overtook the head of its group", got[0].ID)
		}
		<-time.After(time.Minute)
		again := receive(1)
		if len(again) != 1 || again[0].ID != "1" || again[0].Attempt != 2 {
			t.Fatalf("%+v", again)
		}
		if err := errors.Join(again[0].Reject(ctx, "no"), ds[1].Ack(ctx)); err != nil {
			t.Fatal(err)
		}
		if dead := q.DeadLetters(); len(dead) != 1 || dead[0].Headers.Get(broker.HeaderDeadLetterReason) != "no" {
			t.Errorf("%+v", dead)
		}
		last := receive(5)
		if len(last) != 1 || last[0].ID != "2" {
			t.Fatalf("%+v", last)
		}
		if err := errors.Join(c.Close(), c.Close()); err != nil {
			t.Fatal(err)
		}
		if len(q.Waiting()) != 1 {
			t.Error("what was not settled did not come back")
		}
		if err := last[0].Ack(ctx); !errors.Is(err, broker.ErrLeaseLost) {
			t.Errorf("ack after Close: %v", err)
		}
		if _, err := c.Receive(ctx, 1); !errors.Is(err, broker.ErrClosed) {
			t.Error(err)
		}
		if _, err := c.Receive(ctx, 0); !errors.Is(err, broker.ErrInvalid) {
			t.Error(err)
		}
		if _, err := q.PublishBatch(ctx, []broker.Message{{}, {Delay: 1}}); !errors.Is(broker.ErrorAt(err, 1), broker.ErrUnsupported) {
			t.Error(err)
		}
		if _, err := q.Consumer(ctx, &broker.ConsumerOptions{Prefetch: -1}); !errors.Is(err, broker.ErrInvalid) {
			t.Error(err)
		}
		if err := q.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := q.Publish(ctx, broker.Message{}); !errors.Is(err, broker.ErrClosed) {
			t.Error(err)
		}
		if _, err := q.Consumer(ctx, nil); !errors.Is(err, broker.ErrClosed) {
			t.Error(err)
		}
	})
}

func TestStream(t *testing.T) {
	ctx := t.Context()
	s := brokertest.NewStream("s", 2)
	var rs []broker.Record
	for i := range 10 {
		rs = append(rs, broker.Record{Pin: true, Partition: int32(i % 2), Value: fmt.Append(nil, i)})
	}
	if _, err := s.PublishBatch(ctx, rs); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Publish(ctx, broker.Record{Pin: true, Partition: 2}); !errors.Is(err, broker.ErrInvalid) {
		t.Error(err)
	}
	c, err := s.Consumer(ctx, "g", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Consumer(ctx, "g", nil); err == nil {
		t.Error("a second member")
	}
	c.Pause(1)
	got, err := c.Receive(ctx, 100)
	if err != nil || len(got) != 5 {
		t.Fatalf("%d, %v", len(got), err)
	}
	if err := c.Commit(ctx, got[2]); err != nil || s.Committed("g", 0) != 3 {
		t.Error(err)
	}
	if err := c.Commit(ctx, got[1]); err != nil || s.Committed("g", 0) != 3 {
		t.Errorf("the commit moved back: %v", err)
	}
	if err := c.Seek(ctx, 0, broker.Committed()); err != nil {
		t.Fatal(err)
	}
	if got, err = c.Receive(ctx, 1); err != nil || got[0].Offset() != broker.NewOffset(3) {
		t.Fatal(err)
	}
	c.Resume(1)
	if !slices.Equal(c.Partitions(), []int32{0, 1}) {
		t.Error(c.Partitions())
	}
	s.Revoke(ctx, "g", 0)
	if err := c.Commit(ctx, got[0]); !errors.Is(err, broker.ErrFenced) {
		t.Error(err)
	}
	if err := c.Seek(ctx, 0, broker.Earliest()); !errors.Is(err, broker.ErrFenced) {
		t.Error(err)
	}
	n := 0
	for r, err := range s.Read(ctx, broker.Range{From: broker.AtOffset(broker.NewOffset(2)), Partitions: []int32{1}}) {
		if err != nil || r.Partition != 1 {
			t.Error(r, err)
		}
		n++
	}
	if n != 3 {
		t.Errorf("read %d", n)
	}
	if err := errors.Join(c.Close(), c.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Receive(ctx, 1); !errors.Is(err, broker.ErrClosed) {
		t.Error(err)
	}
	if _, err := s.Publish(ctx, broker.Record{}); !errors.Is(err, broker.ErrClosed) {
		t.Error(err)
	}
}

// A handler is tested with a delivery and a recorder, and no broker.
func ExampleNewDelivery() {
	handler := func(_ context.Context, d *broker.Delivery) error {
		if len(d.Body) == 0 {
			return broker.Reject(errors.New("empty"))
		}
		return nil
	}
	d := brokertest.NewDelivery(broker.Message{ID: "1"}, nil)
	v, _ := broker.VerdictOf(handler(context.Background(), d))
	fmt.Println(v.Kind, v.Reason)
	// Output: reject empty
}

// A Worker is tested with a queue that remembers what became of each message.
func ExampleNewQueue() {
	q := brokertest.NewQueue("jobs", broker.Message{ID: "1", Body: []byte("hello")})
	w := &broker.Worker{Queue: q, Handler: func(_ context.Context, d *broker.Delivery) error {
		fmt.Printf("%s\n", d.Body)
		return nil
	}}
	ctx, stop := context.WithCancel(context.Background())
	go func() {
		defer stop()
		_ = q.Recorder.Wait(ctx, func([]broker.Outcome) bool { _, ok := q.Recorder.Settled("1"); return ok })
	}()
	if err := w.Run(ctx); err != nil {
		fmt.Println(err)
	}
	v, _ := q.Recorder.Settled("1")
	fmt.Println(v.Kind)
	// Output:
	// hello
	// ack
}

// What a consumer gives back keeps its order, whatever came meanwhile.
func TestQueueGivesBackInOrder(t *testing.T) {
	ctx := t.Context()
	q := brokertest.NewQueue("q")
	for i := range 20 {
		if _, err := q.Publish(ctx, broker.Message{ID: fmt.Sprintf("%02d", i)}); err != nil {
			t.Fatal(err)
		}
	}
	c, err := q.Consumer(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	ds, err := c.Receive(ctx, 15)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(ds[3].Nack(ctx, 0), ds[1].Nack(ctx, 0), c.Close()); err != nil {
		t.Fatal(err)
	}
	ms := q.Waiting()
	if len(ms) != 20 || !slices.IsSortedFunc(ms, func(a, b broker.Message) int { return strings.Compare(a.ID, b.ID) }) {
		t.Errorf("%d wait, in the order %v", len(ms), ms)
	}
	e, ok := errors.AsType[*broker.Error](ds[0].Ack(ctx))
	if !ok || e.Adapter != "brokertest" || e.Name != "q" || !errors.Is(e, broker.ErrLeaseLost) {
		t.Errorf("after Close: %v", e)
	}
}

// Close gives back also what nobody can settle any more: what has outlived its
// lease, and what is being settled and comes too late.
func TestQueueGivesBackWhatIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		q := brokertest.NewQueue("q", broker.Message{ID: "1", GroupID: "g"}, broker.Message{ID: "2"})
		q.Lease = time.Second
		c, err := q.Consumer(ctx, nil)
		if err != nil {
			t.Fatal(err)
		}
		ds, err := c.Receive(ctx, 2)
		if err != nil || len(ds) != 2 {
			t.Fatal(ds, err)
		}
		held := make(chan struct{})
		q.Recorder.Fail = func(*broker.Delivery, broker.Verdict) error { <-held; return nil }
		late := make(chan error, 1)
		go func() { late <- ds[1].Ack(ctx) }()
		synctest.Wait()
		<-time.After(time.Second)
		if err := ds[0].Ack(ctx); !errors.Is(err, broker.ErrLeaseLost) {
			t.Errorf("ack after the lease: %v", err)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		close(held)
		if err := <-late; !errors.Is(err, broker.ErrLeaseLost) {
			t.Errorf("ack after Close: %v", err)
		}
		q.Recorder.Fail = nil
		if n := len(q.Waiting()); n != 2 {
			t.Fatalf("%d came back, want 2", n)
		}
		again, err := q.Consumer(ctx, nil)
		if err != nil {
			t.Fatal(err)
		}
		if ds, err = again.Receive(ctx, 5); err != nil || len(ds) != 2 || ds[0].Attempt != 2 {
			t.Errorf("%+v, %v", ds, err)
		}
	})
}

// Commits counts calls, not records, and only those that store something.
func TestStreamCountsCommits(t *testing.T) {
	ctx := t.Context()
	s := brokertest.NewStream("s", 2)
	for p := range int32(2) {
		if _, err := s.Publish(ctx, broker.Record{Pin: true, Partition: p}); err != nil {
			t.Fatal(err)
		}
	}
	c, err := s.Consumer(ctx, "g", nil)
	if err != nil {
		t.Fatal(err)
	}
	rs, err := c.Receive(ctx, 10)
	if err != nil || len(rs) != 2 {
		t.Fatal(rs, err)
	}
	for range 2 { // again: that moves nothing
		if err := c.Commit(ctx, rs...); err != nil {
			t.Fatal(err)
		}
	}
	if n := s.Commits("g"); n != 1 {
		t.Errorf("%d commits, want 1", n)
	}
}
