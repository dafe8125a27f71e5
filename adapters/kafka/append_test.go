package kafka_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"weak"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/kafka"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// holdBack makes the cluster answer no request of a kind until release. It
// returns a channel that is closed when the first has come.
func holdBack(cluster *kfake.Cluster, kind kmsg.Key) (held chan struct{}, release func()) {
	held = make(chan struct{})
	released := make(chan struct{})
	var (
		once    sync.Once
		mu      sync.Mutex
		over    bool // no request goes to sleep any more
		asleep  sync.WaitGroup
		toSleep = func() bool {
			mu.Lock()
			defer mu.Unlock()
			if !over {
				asleep.Add(1)
			}
			return !over
		}
	)
	cluster.ControlKey(kind.Int16(), func(kmsg.Request) (kmsg.Response, error, bool) { //nolint:revive // kfake's order
		once.Do(func() { close(held) })
		if toSleep() {
			cluster.SleepControl(func() { <-released })
			asleep.Done()
		}
		return nil, nil, false
	})
	return held, sync.OnceFunc(func() {
		mu.Lock()
		over = true
		mu.Unlock()
		close(released)
		asleep.Wait() // a cluster that is closed while a request wakes up does not end
	})
}

// answers collects the outcomes of an appender's records by number.
type answers struct {
	mu     sync.Mutex
	order  []int
	errs   map[int]error
	stored map[int]broker.Receipt
}

func (a *answers) of(i int) func(broker.Receipt, error) {
	return func(r broker.Receipt, err error) {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.errs == nil {
			a.errs, a.stored = map[int]error{}, map[int]broker.Receipt{}
		}
		a.order = append(a.order, i)
		a.errs[i], a.stored[i] = err, r
	}
}

func (a *answers) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.order)
}

// Records keep their order per key, each is answered once with where it is,
// and what they refer to is the program's again once they are answered.
func TestAppendOrderAndOwnership(t *testing.T) {
	onBrokers(t, func(t *testing.T, o *kafka.Options) {
		ctx := testContext(t)
		s := declare(t, open(t, o), broker.StreamConfig{Partitions: 3})
		if _, ok := broker.As[broker.AsyncAppending](broker.Stream(s)); !ok {
			t.Fatal("the stream does not pipeline by itself")
		}
		const n, keys = 3000, 20
		a := broker.NewAsyncAppender(s, &broker.AsyncOptions{MaxQueued: 500})
		var got answers
		for i := range n {
			ctx, cancel := context.WithCancel(ctx)
			r := broker.Record{Key: fmt.Appendf(nil, "k%d", i%keys), Value: fmt.Appendf(nil, "%d", i)}
			switch i % keys {
			case 0:
				r.Pin, r.Partition = true, 1
			case 1:
				r.Headers = broker.Headers{{Key: "h", Value: "x"}}
			}
			tell := got.of(i)
			a.Publish(ctx, r, func(rc broker.Receipt, err error) {
				copy(r.Value, "garbage") // it is the program's again
				copy(r.Key, "garbage")
				tell(rc, err)
			})
			cancel() // the record is in the queue: its end means nothing any more
		}
		if err := a.Close(ctx); err != nil {
			t.Fatal(err)
		}
		if len(got.order) != n {
			t.Fatalf("%d answers to %d records", len(got.order), n)
		}
		last := [keys]int{}
		for _, i := range got.order {
			if got.errs[i] != nil {
				t.Fatalf("record %d: %v", i, got.errs[i])
			}
			if i < last[i%keys] {
				t.Fatalf("key %d: %d was answered after %d", i%keys, i, last[i%keys])
			}
			last[i%keys] = i
		}
		read := 0
		for r, err := range s.Read(ctx, broker.Range{}) {
			if err != nil {
				t.Fatal(err)
			}
			var i int
			if _, err := fmt.Sscan(string(r.Value), &i); err != nil {
				t.Fatalf("the value %q is not what was published", r.Value)
			}
			if rc := got.stored[i]; string(r.Key) != fmt.Sprintf("k%d", i%keys) || rc.Partition != r.Partition || rc.Offset != r.Offset() {
				t.Fatalf("record %d is %q in %d at %v, its receipt says %+v", i, r.Key, r.Partition, r.Offset(), rc)
			}
			if i%keys == 0 && r.Partition != 1 {
				t.Errorf("record %d in partition %d, want 1", i, r.Partition)
			}
			read++
		}
		if read != n {
			t.Errorf("%d records stored, want %d", read, n)
		}
	})
}

// Many append at once, and to a client that has room for few: each finds its
// records stored in its order.
func TestAppendFromManyGoroutines(t *testing.T) {
	onBrokers(t, func(t *testing.T, o *kafka.Options) {
		ctx := testContext(t)
		o.MaxBufferedRecords = 20
		s := declare(t, open(t, o), broker.StreamConfig{Partitions: 3})
		a := broker.NewAsyncAppender(s, nil)
		const goroutines, n = 8, 500
		var wg sync.WaitGroup
		for g := range goroutines {
			wg.Go(func() {
				for i := range n {
					a.Publish(ctx, broker.Record{Key: fmt.Append(nil, g), Value: fmt.Append(nil, i)}, func(_ broker.Receipt, err error) {
						if err != nil {
							t.Errorf("record %d of %d: %v", i, g, err)
						}
					})
				}
			})
		}
		wg.Wait()
		if err := a.Close(ctx); err != nil {
			t.Fatal(err)
		}
		next := map[string]int{}
		for r, err := range s.Read(ctx, broker.Range{}) {
			if err != nil {
				t.Fatal(err)
			}
			key := string(r.Key)
			if string(r.Value) != fmt.Sprint(next[key]) {
				t.Fatalf("key %s: %s is stored where %d was expected", key, r.Value, next[key])
			}
			next[key]++
		}
		for g := range goroutines {
			if got := next[fmt.Sprint(g)]; got != n {
				t.Errorf("key %d: %d records are stored, want %d", g, got, n)
			}
		}
	})
}

// A record that cannot be stored is refused at once, and those around it are
// stored.
func TestAppendRefuses(t *testing.T) {
	onBrokers(t, func(t *testing.T, o *kafka.Options) {
		ctx := testContext(t)
		b := open(t, o)
		s := declare(t, b, broker.StreamConfig{Partitions: 1})
		a := broker.NewAsyncAppender(s, nil)
		var got answers
		for i, r := range []broker.Record{
			{Value: []byte("first")},
			{Value: make([]byte, s.Capabilities().MaxBytes+1)},
			{Key: []byte("k"), Value: []byte("x"), Tombstone: true},
			{Value: []byte("x"), Pin: true, Partition: 7},
			{Value: []byte("last")},
		} {
			before := got.count()
			a.Publish(ctx, r, got.of(i))
			if refused := i > 0 && i < 4; refused && got.count() == before {
				t.Errorf("record %d: no answer yet", i)
			}
		}
		if err := a.Flush(ctx); err != nil {
			t.Fatal(err)
		}
		for i, want := range []error{nil, broker.ErrTooLarge, broker.ErrInvalid, broker.ErrInvalid, nil} {
			if err := got.errs[i]; !errors.Is(err, want) {
				t.Errorf("record %d: %v, want %v", i, err, want)
			} else if e, ok := errors.AsType[*broker.Error](err); want != nil && (!ok || e.Op != "publish" || e.Adapter != "kafka" || e.Name != s.Name()) {
				t.Errorf("record %d: %v does not say what, where", i, err)
			}
		}
		if vs := values(t, s, false); strings.Join(vs, " ") != "first last" {
			t.Errorf("stored %q", vs)
		}
		if err := b.DeleteStream(ctx, s.Name()); err != nil {
			t.Fatal(err)
		}
		a.Publish(ctx, broker.Record{Value: []byte("late")}, got.of(5))
		if err := a.Close(ctx); err != nil {
			t.Fatal(err)
		}
		if err := got.errs[5]; !errors.Is(err, broker.ErrNotFound) {
			t.Errorf("to a topic that was deleted: %v, want ErrNotFound", err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		late := broker.NewAsyncAppender(s, nil)
		late.Publish(ctx, broker.Record{}, got.of(6))
		if err := got.errs[6]; !errors.Is(err, broker.ErrClosed) {
			t.Errorf("to a stream that was closed: %v, want ErrClosed", err)
		}
	})
}

// While there is no room, ctx bounds the wait, and what waited was not sent.
func TestAppendWaitsForRoom(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		what   string
		o      kafka.Options
		bytes  int // of each value
		client int // has room for
		room   int // at most: in the client, being handed over, waiting for that
	}{
		{"records", kafka.Options{MaxBufferedRecords: 2}, 1, 2, 2 + 2 + 2},
		{"bytes", kafka.Options{MaxBufferedBytes: 1_000_000}, 600_000, 1, 1 + 2 + 2},
	} {
		t.Run(tc.what, func(t *testing.T) {
			ctx := testContext(t)
			cluster := fake(t)
			held, release := holdBack(cluster, kmsg.Produce)
			tc.o.Brokers = cluster.ListenAddrs()
			s := declare(t, open(t, &tc.o), broker.StreamConfig{Partitions: 1})
			a := broker.NewAsyncAppender(s, nil)
			var got answers
			value := func(i int) []byte { return bytes.Repeat([]byte{byte('a' + i)}, tc.bytes) }
			short, cancel := context.WithCancelCause(ctx)
			var published atomic.Int32
			returned := make(chan struct{})
			go func() {
				defer close(returned)
				for i := range tc.room + 1 {
					a.Publish(short, broker.Record{Value: value(i)}, got.of(i))
					published.Add(1)
				}
			}()
			<-held
			eventually(t, "the client to be full", func() bool { return int(published.Load()) > tc.client })
			select {
			case <-returned:
				t.Error("there is no room, and Publish returned")
			default:
			}
			why := errors.New("the program had enough")
			cancel(why)
			<-returned
			refused := got.count()
			if refused == 0 {
				t.Error("all had room")
			}
			release()
			if err := a.Close(ctx); err != nil {
				t.Fatal(err)
			}
			stored := tc.room + 1 - refused
			for i := range tc.room + 1 {
				err := got.errs[i]
				if i < stored && err != nil {
					t.Errorf("record %d: %v", i, err)
				}
				if i >= stored && (!errors.Is(err, context.Canceled) || !errors.Is(err, why) || errors.Is(err, broker.ErrUnknownOutcome)) {
					t.Errorf("record %d had no room: %v, want the end of the context", i, err)
				}
			}
			vs := values(t, s, false)
			if len(vs) != stored {
				t.Fatalf("%d records are stored, want %d", len(vs), stored)
			}
			for i, v := range vs {
				if v != string(value(i)) {
					t.Errorf("record %d begins with %q", i, v[:1])
				}
			}
		})
	}
}

// The end of one call is no reason to fail what others publish to the same
// partition, although franz-go knows one context for a whole batch.
func TestEndOfOneCallLeavesTheOthers(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	cluster := fake(t)
	held, release := holdBack(cluster, kmsg.Produce)
	b := open(t, &kafka.Options{Brokers: cluster.ListenAddrs()})
	s := declare(t, b, broker.StreamConfig{Partitions: 1})
	var wg sync.WaitGroup
	publish := func(ctx context.Context, value string, want error) {
		n := b.Client().BufferedProduceRecords()
		wg.Go(func() {
			if _, err := s.Publish(ctx, broker.Record{Value: []byte(value)}); !errors.Is(err, want) {
				t.Errorf("%s: %v, want %v", value, err, want)
			}
		})
		eventually(t, value+" in the client's hands", func() bool { return b.Client().BufferedProduceRecords() > n })
	}
	publish(ctx, "first", nil) // in flight; the rest waits in the client
	<-held
	short, cancel := context.WithCancel(ctx)
	publish(short, "ends", broker.ErrUnknownOutcome)
	publish(ctx, "blocking", nil)
	a := broker.NewAsyncAppender(s, nil)
	var got answers
	a.Publish(ctx, broker.Record{Value: []byte("async")}, got.of(0))
	cancel()
	release()
	if err := a.Close(ctx); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if got.errs[0] != nil {
		t.Errorf("async: %v", got.errs[0])
	}
}

// Close of the appender gives up waiting with its context; Shutdown waits for
// what is on its way; Close fails it, with an outcome that nobody knows.
func TestAppendCloseUnderWay(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		what        string
		drain, full bool // of the client: what it has no room for is not handed over
	}{
		{"close", false, false},
		{"close-full", false, true},
		{"shutdown", true, false},
		{"shutdown-full", true, true},
	} {
		t.Run(tc.what, func(t *testing.T) {
			ctx := testContext(t)
			cluster := fake(t)
			held, release := holdBack(cluster, kmsg.Produce)
			o := &kafka.Options{Brokers: cluster.ListenAddrs()}
			if tc.full {
				o.MaxBufferedRecords = 2
			}
			b := open(t, o)
			s := declare(t, b, broker.StreamConfig{Partitions: 1})
			a := broker.NewAsyncAppender(s, nil)
			const n = 5
			var got answers
			for i := range n {
				a.Publish(ctx, broker.Record{Value: []byte("v")}, got.of(i))
			}
			<-held
			ended, cancel := context.WithCancel(ctx)
			cancel()
			if err := a.Close(ended); !errors.Is(err, context.Canceled) || got.count() > 0 {
				t.Errorf("Close: %v, %d answers", err, got.count())
			}
			if tc.drain {
				shut := make(chan error)
				go func() { shut <- b.Shutdown(ctx) }()
				eventually(t, "the consumers' end of a shutdown", func() bool {
					_, err := b.Stream(ctx, "s", nil)
					return errors.Is(err, broker.ErrShutdown)
				})
				release()
				if err := <-shut; err != nil {
					t.Errorf("Shutdown: %v", err)
				}
			} else if err := b.Close(); err != nil {
				t.Errorf("closing the broker: %v", err)
			}
			if err := a.Flush(ctx); err != nil {
				t.Errorf("Flush: %v", err)
			}
			release()
			if got.count() != n {
				t.Errorf("%d answers to %d records", got.count(), n)
			}
			for i := range n {
				err := got.errs[i]
				if ok := err == nil; ok != tc.drain {
					t.Errorf("record %d: %v", i, err)
				} else if !tc.drain && (!errors.Is(err, broker.ErrUnknownOutcome) || !errors.Is(err, broker.ErrClosed)) {
					t.Errorf("record %d: %v, want ErrUnknownOutcome and ErrClosed", i, err)
				}
			}
		})
	}
}

// What a record and its answer refer to is let go once it is answered, however
// long the stream is idle then.
func TestAppendLetsGo(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	s := declare(t, open(t, &kafka.Options{Brokers: fake(t).ListenAddrs()}), broker.StreamConfig{})
	publish(t, s, 1) // the client knows the topic
	a := broker.NewAsyncAppender(s, nil)
	held := func() weak.Pointer[answers] {
		got := &answers{}
		a.Publish(ctx, broker.Record{Value: []byte("v")}, got.of(0))
		if err := a.Flush(ctx); err != nil || got.count() != 1 {
			t.Errorf("%v: %d answers", err, got.count())
		}
		return weak.Make(got)
	}()
	eventually(t, "what the answer went to to be let go", func() bool {
		runtime.GC()
		return held.Value() == nil
	})
	if err := a.Close(ctx); err != nil {
		t.Error(err)
	}
}

// vandal throws away the context of each record.
type vandal struct{ seen atomic.Int64 }

func (v *vandal) OnProduceRecordBuffered(r *kgo.Record) {
	v.seen.Add(1)
	r.Context = context.Background()
}

// Records are answered whatever hooks do to them.
func TestAppendUnderHooks(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	v := &vandal{}
	o := &kafka.Options{Brokers: fake(t).ListenAddrs(), Client: []kgo.Opt{kgo.WithHooks(v)}}
	s := declare(t, open(t, o), broker.StreamConfig{})
	a := broker.NewAsyncAppender(s, nil)
	var got answers
	for i := range 5 {
		a.Publish(ctx, broker.Record{Value: []byte("v")}, got.of(i))
	}
	if err := a.Close(ctx); err != nil || got.count() != 5 || v.seen.Load() != 5 {
		t.Errorf("%v: %d answers, %d seen by the hook", err, got.count(), v.seen.Load())
	}
	publish(t, s, 5)
}

// A stream that this broker deletes and declares again takes records as at
// first, from handles of before as well.
func TestAppendToAStreamMadeAgain(t *testing.T) {
	onBrokers(t, func(t *testing.T, o *kafka.Options) {
		ctx := testContext(t)
		b := open(t, o)
		s := declare(t, b, broker.StreamConfig{Partitions: 2})
		for round := range 3 {
			if round > 0 {
				if err := errors.Join(b.DeleteStream(ctx, s.Name()), b.DeclareStream(ctx, s.Name(), broker.StreamConfig{Partitions: 2})); err != nil {
					t.Fatal(err)
				}
			}
			var got answers
			a := broker.NewAsyncAppender(s, nil)
			const n = 100
			for i := range n {
				a.Publish(ctx, broker.Record{Key: fmt.Append(nil, i), Value: []byte("x")}, got.of(i))
			}
			if err := a.Close(ctx); err != nil {
				t.Fatal(err)
			}
			for i := range n {
				if err := got.errs[i]; err != nil {
					t.Fatalf("round %d, record %d: %v", round, i, err)
				}
			}
			if stored := len(values(t, s, false)); stored != n {
				t.Errorf("round %d: %d of %d records are stored", round, stored, n)
			}
		}
	})
}

// Calls that wait for room to be the first of a topic wait for their turn, too.
func TestManyMeetATopicWithoutRoom(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	cluster := fake(t)
	held, release := holdBack(cluster, kmsg.Produce)
	b := open(t, &kafka.Options{Brokers: cluster.ListenAddrs(), MaxBufferedRecords: 2})
	full, s := declare(t, b, broker.StreamConfig{Partitions: 1}), declare(t, b, broker.StreamConfig{Partitions: 1})
	a := broker.NewAsyncAppender(full, nil)
	var got answers
	a.Publish(ctx, broker.Record{}, got.of(0))
	<-held
	a.Publish(ctx, broker.Record{}, got.of(1))
	const n = 50
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			if _, err := s.Publish(ctx, broker.Record{Value: []byte("v")}); err != nil {
				t.Error(err)
			}
		})
	}
	release()
	wg.Wait()
	if err := a.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if stored := len(values(t, s, false)); stored != n {
		t.Errorf("%d of %d records are stored", stored, n)
	}
}
