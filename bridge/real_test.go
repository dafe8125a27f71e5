package bridge

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/internal/bridgetest"
)

// realRecords is how many records TestRealFaults sends at least;
// BRIDGE_TEST_RECORDS changes it. ElasticMQ walks the list of all the ids of
// the last 5 min at each request to a FIFO queue: it begins with 2,800 messages
// a second and is below 1,000 after 60,000, with no bridge in between.
const realRecords = 20_000

// realBacklog is how many records may be under way, in the stream and in the
// queue. ElasticMQ also walks the queue at each receive: with 5,000 messages
// waiting it hands out some 30 a second.
const realBacklog = 500

// On real Kafka and ElasticMQ, with throttling, partial failures, lost answers
// and 5 ms a request, members joining and leaving and one SIGKILL at each step:
// nothing is lost, order per key of first deliveries is kept, a FIFO queue sees
// no duplicate, and every poison record is in the dead-letter queue with its
// reason and coordinates.
func TestRealFaults(t *testing.T) {
	r := newReal(t, 12, ".fifo", broker.QueueConfig{Ordered: true, Dedup: true})
	r.faults = true
	n := realRecords
	if s := os.Getenv("BRIDGE_TEST_RECORDS"); s != "" {
		n = must(strconv.Atoi(s))(t)
	}
	const keys, poisonEvery = 5000, 1000
	oracle := r.Consume(t, r.queue)
	members := make([]*bridgetest.Process, 3)
	for i := range members {
		members[i] = r.member("", 0)
	}
	// The input ends once n records are published and every kill has bitten.
	f := &feed{r: r, atLeast: n, keys: keys, poisonEvery: poisonEvery, arrived: oracle.Count, enough: make(chan struct{})}
	fed := make(chan error, 1)
	go func() { fed <- f.run() }()

	kills := []killPoint{killFetched, killSent, killAccepted, killMarked, killCommitted}
	for i, at := range kills {
		oracle.Until(t, i*n/len(kills))
		// One joins and is killed at its step; another leaves as planned.
		after := int64(20)
		if at == killCommitted {
			after = 1 // they are a second apart
		}
		r.member(at, after).Killed()
		members[i%3].Stop()
		members[i%3] = r.member("", 0)
		t.Logf("killed at %s; %d arrived", at, oracle.Count())
	}
	close(f.enough)
	check(t, <-fed)
	total, poisoned := f.published, f.published/poisonEvery
	oracle.Until(t, total-poisoned)
	for _, m := range members {
		m.Stop()
	}
	if lag := r.lag(); lag != 0 {
		t.Errorf("%d records are not committed", lag)
	}
	verify(t, oracle.All(), total, keys, poisonEvery)

	dead := r.Consume(t, r.dead)
	dead.Until(t, poisoned)
	for _, d := range dead.All() {
		why, ok := broker.DeadLetterOf(&d.Message)
		if !ok || why.Reason != "poison for the test" || d.Headers.Get(broker.HeaderSourceStream) != r.topic ||
			d.Headers.Get(broker.HeaderSourceOffset) == "" || !strings.HasPrefix(string(d.Body), "poison") {
			t.Errorf("dead letter %q: %+v, %v", d.Body, why, d.Headers)
		}
	}
}

// A planned handover (SIGTERM, a second member joining) makes no duplicate,
// although the queue suppresses none.
func TestRealHandover(t *testing.T) {
	r := newReal(t, 6, "", broker.QueueConfig{})
	const n = 20_000
	check(t, r.publish(0, n, 500, n+1))
	oracle := r.Consume(t, r.queue)
	first := r.member("", 0)
	oracle.Until(t, n/10)
	second := r.member("", 0)
	oracle.Until(t, n/3)
	first.Stop()
	oracle.Until(t, n)
	second.Stop()
	if got := oracle.Count(); got != n || r.lag() != 0 {
		t.Errorf("%d deliveries of %d records, %d not committed", got, n, r.lag())
	}
}

// A member that is frozen for longer than its session, and goes on where it was
// when another one has its partitions, does no harm: nothing is lost, a FIFO
// queue sees no duplicate, the order per key is kept, and it commits nothing.
func TestRealFrozenMember(t *testing.T) {
	r := newReal(t, 6, ".fifo", broker.QueueConfig{Ordered: true, Dedup: true})
	const n, keys, none = 6000, 500, 1 << 30
	oracle := r.Consume(t, r.queue)
	frozen, other := r.member("", 0), r.member("", 0)
	f := &feed{r: r, atLeast: n, keys: keys, poisonEvery: none, arrived: oracle.Count, enough: make(chan struct{})}
	close(f.enough)
	fed := make(chan error, 1)
	go func() { fed <- f.run() }()
	oracle.Until(t, n/4)
	frozen.Signal(syscall.SIGSTOP)
	// The feed waits for what is under way, so the other has all partitions by then.
	oracle.Until(t, n*3/4)
	frozen.Signal(syscall.SIGCONT)
	check(t, <-fed)
	oracle.Until(t, f.published)
	other.Stop()
	frozen.Stop()
	if lag := r.lag(); lag != 0 {
		t.Errorf("%d records are not committed", lag)
	}
	verify(t, oracle.All(), f.published, keys, none)
}

// A real is a topic, a queue and its dead-letter queue on real brokers.
type real struct {
	*bridgetest.Brokers
	t           *testing.T
	ctx         context.Context
	topic       string
	queue, dead string
	faults      bool // in the requests of members
}

func newReal(t *testing.T, partitions int, suffix string, cfg broker.QueueConfig) *real {
	t.Helper()
	name := "bridge-" + broker.NewID()[24:]
	r := &real{t: t, ctx: t.Context(), topic: name, queue: name + suffix, dead: name + "-dead" + suffix}
	r.Brokers = bridgetest.Open(t, r.topic, partitions, cfg, r.queue, r.dead)
	return r
}

// publish appends the numbers from … from+n-1; every poisonEvery-th is poison.
func (r *real) publish(from, n, keys, poisonEvery int) error {
	rs := make([]broker.Record, n)
	for i := range rs {
		number := from + i
		rs[i] = broker.Record{Key: fmt.Appendf(nil, "key-%d", number%keys), Value: fmt.Append(nil, number)}
		if number%poisonEvery == poisonEvery-1 {
			rs[i].Value = fmt.Appendf(nil, "poison %d", number)
		}
	}
	_, err := r.Stream.PublishBatch(r.ctx, rs)
	return err
}

// A feed publishes as fast as what it publishes arrives.
type feed struct {
	r                          *real
	atLeast, keys, poisonEvery int
	arrived                    func() int
	enough                     chan struct{} // closed: it may end
	published                  int
}

func (f *feed) run() error {
	enough := false
	for tick := time.Tick(5 * time.Millisecond); !enough || f.published < f.atLeast; <-tick {
		select {
		case <-f.r.ctx.Done():
			return f.r.ctx.Err()
		case <-f.enough:
			enough = true
		default:
		}
		for f.published-f.published/f.poisonEvery-f.arrived() < realBacklog && (!enough || f.published < f.atLeast) {
			const batch = 100
			if err := f.r.publish(f.published, batch, f.keys, f.poisonEvery); err != nil {
				return err
			}
			f.published += batch
		}
	}
	return nil
}

func (r *real) lag() int64 {
	r.t.Helper()
	parts := must(r.Stream.Lag(r.ctx, "bridge"))(r.t)
	var n int64
	for _, p := range parts {
		n += p.Lag
	}
	return n
}

// member starts a process of the bridge.
func (r *real) member(at killPoint, after int64) *bridgetest.Process {
	r.t.Helper()
	orders := must(json.Marshal(member{
		Kafka: r.KafkaURL, SQS: r.SQSURL, Topic: r.topic, Group: "bridge", Queue: r.queue, Dead: r.dead,
		KillAt: at, KillAfter: after, Faults: r.faults,
	}))(r.t)
	return bridgetest.Start(r.t, memberEnv, string(orders))
}

// verify tells what is missing, twice or out of order.
func verify(t *testing.T, arrived []*broker.Delivery, n, keys, poisonEvery int) {
	t.Helper()
	seen := make([]int, n)
	last := map[int]int{}
	disorder := 0
	for _, d := range arrived {
		i, err := strconv.Atoi(string(d.Body))
		check(t, err)
		if seen[i]++; seen[i] > 1 {
			continue
		}
		if prev, ok := last[i%keys]; ok && i < prev {
			disorder++
		}
		last[i%keys] = i
	}
	missing, twice := 0, 0
	for i, k := range seen {
		switch poison := i%poisonEvery == poisonEvery-1; {
		case poison && k > 0:
			t.Errorf("the poison record %d was enqueued", i)
		case !poison && k == 0:
			missing++
		case k > 1:
			twice++
		}
	}
	t.Logf("%d records: %d missing, %d twice, %d out of order", n, missing, twice, disorder)
	if missing+twice+disorder > 0 {
		t.Errorf("%d missing, %d twice, %d out of order", missing, twice, disorder)
	}
}
