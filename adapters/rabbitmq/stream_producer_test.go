package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/rabbitmq/internal/streamwire"
)

// testWriter returns the writer of a stream that has no broker.
func testWriter(t *testing.T) (*partitionWriter, context.CancelFunc) {
	o, err := (&Options{URLs: []string{"amqp://host"}}).withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	return newPartitionWriter(&Stream{b: &Broker{o: o}, ctx: ctx, cancel: cancel}, "s-0"), cancel
}

func submissionOf(size int) *submission {
	return &submission{Entry: streamwire.Entry{Message: make([]byte, size)}, done: make(chan struct{})}
}

// TestWriterEnds: what a publisher that was under way submits after the stream
// was closed is decided like what came before.
func TestWriterEnds(t *testing.T) {
	w, closeStream := testWriter(t)
	closeStream()
	for _, when := range []string{"before", "after"} {
		s := submissionOf(1)
		w.submit(s)
		select {
		case <-s.done:
		case <-time.After(20 * time.Second):
			t.Fatalf("submitted %s the writer's end: nobody decides it", when)
		}
		if !errors.Is(s.err, broker.ErrClosed) || errors.Is(s.err, broker.ErrUnknownOutcome) {
			t.Errorf("submitted %s the writer's end: %v", when, s.err)
		}
		w.s.workers.Wait()
	}
}

// TestWriterFrames: no batch exceeds what the connection takes in a frame, and
// what does so alone is refused; the rest goes on.
func TestWriterFrames(t *testing.T) {
	w, _ := testWriter(t)
	w.started, w.next = true, 1
	const room = 1000
	large, resent := submissionOf(room), submissionOf(2*room)
	resent.ID, w.next = 1, 2 // over an earlier connection, which took more
	w.byID[1] = resent
	all := []*submission{resent, submissionOf(400), submissionOf(400), large, submissionOf(400), submissionOf(room - streamwire.EntryOverhead)}
	w.submit(all...)
	var sizes []int
	for batch := w.take(room); len(batch) > 0; batch = w.take(room) {
		total := 0
		for _, e := range batch {
			total += streamwire.EntryOverhead + len(e.Message)
		}
		sizes = append(sizes, total)
	}
	if !slices.Equal(sizes, []int{824, 412, 1000}) {
		t.Errorf("frames of %v", sizes)
	}
	for s, sent := range map[*submission]bool{large: false, resent: true} {
		if !errors.Is(s.err, broker.ErrTooLarge) || errors.Is(s.err, broker.ErrUnknownOutcome) != sent {
			t.Errorf("%d bytes: %v", len(s.Message), s.err)
		}
	}
	ids := make([]int64, 0, 4)
	for _, e := range w.queue {
		ids = append(ids, e.ID)
	}
	w.confirm(ids, streamwire.OK)
	if len(w.queue) != 0 || len(w.byID) != 0 || w.sent != 0 || len(ids) != 4 {
		t.Errorf("left: %d, %d, %d of %v", len(w.queue), len(w.byID), w.sent, ids)
	}
}

// TestBackoff: the waits grow between the two bounds, and begin anew once
// something has worked for a while.
func TestBackoff(t *testing.T) {
	for _, o := range []*Options{
		{URLs: []string{"amqp://host"}, MinBackoff: time.Millisecond, MaxBackoff: 8 * time.Millisecond},
		{URLs: []string{"amqp://host"}, MinBackoff: broker.MaxDuration, MaxBackoff: broker.MaxDuration},
	} {
		o, err := o.withDefaults()
		if err != nil {
			t.Fatal(err)
		}
		b := newBackoff(o)
		last := time.Duration(0)
		for range 100 {
			d := b.after(0)
			if d < o.MinBackoff/2 || d > o.MaxBackoff || b.next > o.MaxBackoff || b.next < last {
				t.Fatalf("waits %v, and next about %v, of %v to %v", d, b.next, o.MinBackoff, o.MaxBackoff)
			}
			last = b.next
		}
		if d := b.after(time.Minute); d > o.MinBackoff {
			t.Errorf("after a minute that worked: waits %v, want %v at most", d, o.MinBackoff)
		}
	}
}

// TestStreamProducersOfOneName: handles with the same Producer, in one Broker and
// in two, publish at once, and every record is stored once.
func TestStreamProducersOfOneName(t *testing.T) {
	b1, b2 := testBroker(t, streamOptions), testBroker(t, streamOptions)
	s := testStream(t, b1, broker.StreamConfig{Partitions: 1})
	want := map[string]int{}
	errs := make(chan error, 3)
	var wg sync.WaitGroup
	for i, b := range []*Broker{b1, b1, b2} {
		p, err := b.Stream(testContext(t), s.Name(), &broker.StreamOptions{Producer: "orders"})
		if err != nil {
			t.Fatal(err)
		}
		if name := p.(*Stream).producer; !strings.HasPrefix(name, "orders.") {
			t.Errorf("publishes as %q", name)
		}
		rs := make([]broker.Record, 1000)
		for j := range rs {
			rs[j].Value = fmt.Append(nil, i, ".", j)
			want[string(rs[j].Value)] = 1
		}
		ctx := testContext(t)
		wg.Go(func() {
			_, err := p.PublishBatch(ctx, rs)
			errs <- errors.Join(err, p.Close())
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			t.Error(err)
		}
	}
	got := map[string]int{}
	for r, err := range s.Read(testContext(t), broker.Range{}) {
		if err != nil {
			t.Fatal(err)
		}
		got[string(r.Value)]++
	}
	if !maps.Equal(got, want) {
		t.Errorf("%d of %d records are stored", len(got), len(want))
	}
}

// TestProducerName: the longest name fits the broker's limit, and a longer one
// is refused with the limit in the text.
func TestProducerName(t *testing.T) {
	longest := strings.Repeat("n", maxProducerName)
	if name, err := producerName(longest); err != nil || len(name) != maxShortString {
		t.Errorf("%d bytes become %d: %v", len(longest), len(name), err)
	}
	if _, err := producerName(longest + "n"); !errors.Is(err, broker.ErrInvalid) || !strings.Contains(err.Error(), fmt.Sprint(maxProducerName)) {
		t.Errorf("%d bytes: %v", len(longest)+1, err)
	}
	one, err1 := producerName("")
	two, err2 := producerName("")
	if one == two || err1 != nil || err2 != nil {
		t.Errorf("two handles without a name: %q %v, %q %v", one, err1, two, err2)
	}
}
