package kafka_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/kafka"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// A pollCount counts the polls of a client's buffer.
type pollCount struct{ n atomic.Int64 }

func (p *pollCount) OnPollStart(context.Context) { p.n.Add(1) }

// ahead returns a member that was handed one of n records of a partition; the
// others were fetched with it.
func ahead(t *testing.T, o *kafka.Options, n int) (broker.GroupConsumer, *broker.Record) {
	s := declare(t, open(t, o), broker.StreamConfig{Partitions: 1})
	publish(t, s, n)
	m := member(t, s, name(t), nil)
	return m, receive(t, m, 1)[0]
}

func wantOffset(t *testing.T, r *broker.Record, n int64) {
	t.Helper()
	if r.Offset() != broker.NewOffset(n) {
		t.Errorf("record at %v, want %d", r.Offset(), n)
	}
}

// What was fetched ahead of a pause stays, and ends the Receive that waits once
// the pause ends.
func TestPauseHoldsWhatIsAhead(t *testing.T) {
	onBrokers(t, func(t *testing.T, o *kafka.Options) {
		var polls pollCount
		counted := *o
		counted.Client = append(counted.Client, kgo.WithHooks(&polls))
		m, _ := ahead(t, &counted, 10)
		m.Pause(0)
		before := polls.n.Load()
		got := make(chan []*broker.Record, 1)
		go func() { got <- receive(t, m, 2) }()
		eventually(t, "a poll that waits", func() bool { return polls.n.Load() >= before+2 })
		select {
		case rs := <-got:
			t.Fatalf("%d records of a paused partition", len(rs))
		default:
		}
		began := time.Now()
		m.Resume(0)
		rs := <-got
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("the Receive that waited came %v after the resume", took)
		}
		wantOffset(t, rs[0], 1)
		wantOffset(t, rs[1], 2)
		if n := polls.n.Load() - before; n > 4 {
			t.Errorf("%d polls: a Receive of what is paused spins", n)
		}
	})
}

// What ends a wait for records, but for its length, asks no broker first.
func TestResumeAsksNoBroker(t *testing.T) {
	t.Parallel()
	cluster := fake(t)
	var polls pollCount
	m, _ := ahead(t, &kafka.Options{Brokers: cluster.ListenAddrs(), Client: []kgo.Opt{
		kgo.WithHooks(&polls), kgo.MetadataMinAge(10 * time.Millisecond), // or the client knows the topic by itself
	}}, 10)
	m.Pause(0)
	before := polls.n.Load()
	got := make(chan []*broker.Record, 1)
	go func() { got <- receive(t, m, 1) }()
	eventually(t, "a poll that waits", func() bool { return polls.n.Load() >= before+2 })
	_, release := holdBack(cluster, kmsg.Metadata)
	defer release()
	m.Resume(0)
	select {
	case rs := <-got:
		wantOffset(t, rs[0], 1)
	case <-time.After(3 * time.Second): // the broker was asked for up to 5 s
		t.Error("what is ahead waits for an answer of the broker's")
		release()
		<-got
	}
}

// Partitions that are paused one after the other do not each keep as much as a
// whole fetch.
func TestPausedPartitionsAheadWithinBounds(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	const partitions, size, part = 8, 1000, 10_000
	cluster := fake(t)
	var mu sync.Mutex
	next := map[int32]int64{}                                                                    // where fetches begin
	cluster.ControlKey(kmsg.Fetch.Int16(), func(req kmsg.Request) (kmsg.Response, error, bool) { //nolint:revive // kfake's order
		cluster.KeepControl()
		mu.Lock()
		defer mu.Unlock()
		for _, t := range req.(*kmsg.FetchRequest).Topics { //nolint:forcetypeassert // by its key
			for _, p := range t.Partitions {
				next[p.Partition] = max(next[p.Partition], p.FetchOffset)
			}
		}
		return nil, nil, false
	})
	fetched := func() (sum int64) {
		mu.Lock()
		defer mu.Unlock()
		for _, n := range next {
			sum += n
		}
		return sum
	}
	s := declare(t, open(t, &kafka.Options{
		Brokers: cluster.ListenAddrs(), FetchMaxPartitionBytes: part, FetchMaxBytes: 10 * part, FetchMaxWait: 10 * time.Millisecond, Compression: "none",
	}), broker.StreamConfig{Partitions: partitions})
	m := member(t, s, name(t), nil)
	eventually(t, "partitions", func() bool {
		wait, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
		defer cancel()
		_, _ = m.Receive(wait, 1)
		return len(m.Partitions()) == partitions
	})
	rs := make([]broker.Record, 300)
	for p := range int32(partitions) {
		m.Pause(p)
		for i := range rs {
			rs[i] = broker.Record{Value: make([]byte, size), Partition: p, Pin: true}
		}
		// One by one, since a batch is fetched as a whole.
		for i := range rs {
			if _, err := s.Publish(ctx, rs[i]); err != nil {
				t.Fatal(err)
			}
		}
		for last := int64(-1); last != fetched(); {
			last = fetched()
			wait, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
			if rs, err := m.Receive(wait, 1); len(rs) > 0 || wait.Err() == nil {
				t.Fatalf("%d records of what is paused, %v", len(rs), err)
			}
			cancel()
		}
	}
	if n, most := fetched()*size, int64(50*part); n > most {
		t.Errorf("%d bytes of paused partitions, want at most %d", n, most)
	}
	m.Resume(m.Partitions()...)
	receive(t, m, partitions*len(rs))
}

// A seek and a rebalance forget what was fetched ahead.
func TestWhatIsAheadEndsWithItsPosition(t *testing.T) {
	onBrokers(t, func(t *testing.T, o *kafka.Options) {
		ctx := testContext(t)
		m, r := ahead(t, o, 10)
		if err := m.Seek(ctx, 0, broker.AtOffset(broker.NewOffset(7))); err != nil {
			t.Fatal(err)
		}
		wantOffset(t, receive(t, m, 1)[0], 7)
		if err := m.Seek(ctx, 0, broker.Earliest()); err != nil {
			t.Fatal(err)
		}
		for i, r := range receive(t, m, 5) {
			wantOffset(t, r, int64(i))
		}
		if err := m.Commit(ctx, r); err != nil {
			t.Fatal(err)
		}
		if err := m.Seek(ctx, 0, broker.Committed()); err != nil {
			t.Fatal(err)
		}
		for i, r := range receive(t, m, 9) {
			wantOffset(t, r, int64(1+i))
		}
	})
}

// What was fetched of many partitions is handed out of each in turn.
func TestPartitionsInTurn(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	s := declare(t, open(t, &kafka.Options{Brokers: fake(t).ListenAddrs()}), broker.StreamConfig{Partitions: 3})
	var rs []broker.Record
	for i := range 300 {
		rs = append(rs, broker.Record{Pin: true, Partition: int32(i % 3)})
	}
	if _, err := s.PublishBatch(ctx, rs); err != nil {
		t.Fatal(err)
	}
	m := member(t, s, name(t), nil)
	next := map[int32]int64{}
	for range 30 {
		for _, r := range receive(t, m, 10) {
			wantOffset(t, r, next[r.Partition])
			next[r.Partition]++
		}
		if most, least := max(next[0], next[1], next[2]), min(next[0], next[1], next[2]); most-least > 10 {
			t.Fatalf("%v records of partitions that have as many", next)
		}
	}
}

// Calls of Receive at the same time get each record once.
func TestReceiveSideBySide(t *testing.T) {
	onBrokers(t, func(t *testing.T, o *kafka.Options) {
		const n = 2000
		m, first := ahead(t, o, n)
		ctx, cancel := context.WithCancel(testContext(t))
		defer cancel()
		var (
			mu   sync.Mutex
			seen = map[broker.Offset]int{first.Offset(): 1}
			wg   sync.WaitGroup
		)
		for range 4 {
			wg.Go(func() {
				for {
					rs, err := m.Receive(ctx, 7)
					if err != nil {
						if ctx.Err() == nil {
							t.Error(err)
						}
						return
					}
					mu.Lock()
					for _, r := range rs {
						seen[r.Offset()]++
					}
					if len(seen) == n {
						cancel()
					}
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		for o, times := range seen {
			if times != 1 {
				t.Errorf("record %v was handed out %d times", o, times)
			}
		}
		if len(seen) != n {
			t.Errorf("%d records, want %d", len(seen), n)
		}
	})
}

// While records are handed out, more are fetched, once and not without bound:
// what a member that nobody asks holds is one fetch, and another ahead.
func TestReadsAheadWithinBounds(t *testing.T) {
	ctx := testContext(t)
	cluster := fake(t)
	var fetched atomic.Int64
	cluster.ControlKey(kmsg.Fetch.Int16(), func(req kmsg.Request) (kmsg.Response, error, bool) { //nolint:revive // kfake's order
		cluster.KeepControl()
		for _, t := range req.(*kmsg.FetchRequest).Topics { //nolint:forcetypeassert // by its key
			for _, p := range t.Partitions {
				fetched.Store(max(fetched.Load(), p.FetchOffset))
			}
		}
		return nil, nil, false
	})
	s := declare(t, open(t, &kafka.Options{
		Brokers: cluster.ListenAddrs(), FetchMaxPartitionBytes: 10_000, FetchMaxWait: 10 * time.Millisecond, Compression: "none",
	}), broker.StreamConfig{Partitions: 1})
	for range 100 {
		if _, err := s.Publish(ctx, broker.Record{Value: make([]byte, 1000)}); err != nil {
			t.Fatal(err)
		}
	}
	m := member(t, s, name(t), nil)
	receive(t, m, 1)
	eventually(t, "the fetch ahead", func() bool { return fetched.Load() > 0 })
	for i := int64(1); i < 100; i++ {
		wantOffset(t, receive(t, m, 1)[0], i)
		if f := fetched.Load(); f > i+40 {
			t.Fatalf("after %d records a fetch begins at %d", i, f)
		}
	}
}
