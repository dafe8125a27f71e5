package bridge

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/kafka"
	"github.com/queuestream/broker/adapters/sqs"
	"github.com/queuestream/broker/conformance/containers"
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
	r := newReal(t, 12)
	n := realRecords
	if s := os.Getenv("BRIDGE_TEST_RECORDS"); s != "" {
		n = must(strconv.Atoi(s))(t)
	}
	const keys, poisonEvery = 5000, 1000
	oracle := r.consume(r.queue)
	members := make([]*process, 3)
	for i := range members {
		members[i] = r.member("", 0)
	}
	// The input ends once n records are published and every kill has bitten.
	f := &feed{r: r, atLeast: n, keys: keys, poisonEvery: poisonEvery, arrived: oracle.count, enough: make(chan struct{})}
	fed := make(chan error, 1)
	go func() { fed <- f.run() }()

	kills := []killPoint{killFetched, killSent, killAccepted, killMarked, killCommitted}
	for i, at := range kills {
		oracle.until(t, i*n/len(kills))
		// One joins and is killed at its step; another leaves as planned.
		after := int64(20)
		if at == killCommitted {
			after = 1 // they are a second apart
		}
		r.member(at, after).killed(t)
		check(t, members[i%3].stop())
		members[i%3] = r.member("", 0)
		t.Logf("killed at %s; %d arrived", at, oracle.count())
	}
	close(f.enough)
	check(t, <-fed)
	total, poisoned := f.published, f.published/poisonEvery
	oracle.until(t, total-poisoned)
	for _, m := range members {
		check(t, m.stop())
	}
	if lag := r.lag(); lag != 0 {
		t.Errorf("%d records are not committed", lag)
	}
	oracle.verify(t, total, keys, poisonEvery)

	dead := r.consume(r.dead)
	dead.until(t, poisoned)
	for _, d := range dead.deliveries {
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
	r := newReal(t, 6)
	r.queue = r.standard(t)
	const n = 20_000
	check(t, r.publish(0, n, 500, n+1))
	oracle := r.consume(r.queue)
	first := r.member("", 0)
	oracle.until(t, n/10)
	second := r.member("", 0)
	oracle.until(t, n/3)
	check(t, first.stop())
	oracle.until(t, n)
	check(t, second.stop())
	if got := oracle.count(); got != n || r.lag() != 0 {
		t.Errorf("%d deliveries of %d records, %d not committed", got, n, r.lag())
	}
}

// A real is a topic, a FIFO queue and its dead-letter queue on real brokers.
type real struct {
	t           *testing.T
	ctx         context.Context
	kafka, sqs  string
	topic       string
	queue, dead string
	stream      broker.Stream
	queues      *sqs.Broker
	faults      bool
}

func newReal(t *testing.T, partitions int) *real {
	k, q := containers.NeedKafka(t), containers.NeedSQS(t)
	ctx := t.Context()
	id := broker.NewID()[24:]
	r := &real{
		t: t, ctx: ctx, kafka: k.URL, sqs: q.URL, faults: true,
		topic: "bridge-" + id, queue: "bridge-" + id + ".fifo", dead: "bridge-" + id + "-dead.fifo",
	}
	b := must(kafka.OpenURL(ctx, r.kafka))(t)
	admin, _ := broker.As[broker.Admin](b)
	check(t, admin.DeclareStream(ctx, r.topic, broker.StreamConfig{Partitions: partitions}))
	r.stream = must(b.Stream(ctx, r.topic, nil))(t)
	r.queues = must(sqs.Open(ctx, &sqs.Options{
		Region: "us-east-1", Endpoint: r.sqs, Credentials: credentials.NewStaticCredentialsProvider("x", "x", ""),
	}))(t)
	for _, name := range []string{r.queue, r.dead} {
		check(t, r.queues.DeclareQueue(ctx, name, broker.QueueConfig{Ordered: true, Dedup: true}))
	}
	t.Cleanup(func() {
		ctx := context.WithoutCancel(ctx)
		check(t, errors.Join(admin.DeleteStream(ctx, r.topic), b.Close(),
			r.queues.DeleteQueue(ctx, r.queue), r.queues.DeleteQueue(ctx, r.dead), r.queues.Close()))
	})
	return r
}

func (r *real) standard(t *testing.T) string {
	check(t, r.queues.DeleteQueue(r.ctx, r.queue))
	r.faults = false
	name := strings.TrimSuffix(r.queue, ".fifo")
	check(t, r.queues.DeclareQueue(r.ctx, name, broker.QueueConfig{}))
	return name
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
	_, err := r.stream.PublishBatch(r.ctx, rs)
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
	parts := must(r.stream.Lag(r.ctx, "bridge"))(r.t)
	var n int64
	for _, p := range parts {
		n += p.Lag
	}
	return n
}

// A process is a running member.
type process struct {
	cmd    *exec.Cmd
	orders string
	stderr output
	ended  chan struct{} // closed after err is set
	err    error
}

// An output is what a process says.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

func (r *real) member(at killPoint, after int64) *process {
	r.t.Helper()
	orders := must(json.Marshal(member{
		Kafka: r.kafka, SQS: r.sqs, Topic: r.topic, Group: "bridge", Queue: r.queue, Dead: r.dead,
		KillAt: at, KillAfter: after, Faults: r.faults,
	}))(r.t)
	p := &process{cmd: exec.CommandContext(r.ctx, os.Args[0]), orders: string(orders), ended: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), memberEnv+"="+p.orders)
	p.cmd.Stderr = &p.stderr
	must(p.cmd.StdinPipe())(r.t) // the member ends when it closes
	check(r.t, p.cmd.Start())
	go func() {
		p.err = p.cmd.Wait()
		close(p.ended)
	}()
	r.t.Cleanup(func() {
		if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			r.t.Error(err)
		}
		<-p.ended
		if r.t.Failed() {
			r.t.Logf("member %s:\n%s", p.orders, &p.stderr)
		}
	})
	return p
}

// killed waits for the member's death by its own hand.
func (p *process) killed(t *testing.T) {
	t.Helper()
	select {
	case <-p.ended:
	case <-time.After(stalled):
		t.Fatalf("the member %s still lives", p.orders)
	}
	if e, ok := errors.AsType[*exec.ExitError](p.err); !ok || e.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("the member %s ended with %v, want SIGKILL", p.orders, p.err)
	}
}

// stop ends the member as a deployment does.
func (p *process) stop() error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	<-p.ended
	return p.err
}

// An oracle is what arrived at a queue.
type oracle struct {
	mu         sync.Mutex
	deliveries []*broker.Delivery
	failed     error
}

func (r *real) consume(queue string) *oracle {
	r.t.Helper()
	q := must(r.queues.Queue(r.ctx, queue, nil))(r.t)
	c := must(q.Consumer(r.ctx, nil))(r.t)
	o := &oracle{}
	ctx, cancel := context.WithCancel(r.ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			ds, err := c.Receive(ctx, 1000)
			if err == nil {
				err = broker.AckAll(ctx, ds...)
			}
			o.mu.Lock()
			o.deliveries = append(o.deliveries, ds...)
			if err != nil && ctx.Err() == nil {
				o.failed = err
			}
			o.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	r.t.Cleanup(func() {
		cancel()
		<-done
		check(r.t, errors.Join(c.Close(), q.Close()))
	})
	return o
}

func (o *oracle) count() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.deliveries)
}

// stalled is after how long without any progress a test fails. A killed
// member's partitions are free after its session of 6 s; a rebalance that it
// took part in ends after 20 s.
const stalled = time.Minute

// until waits for n deliveries, as long as some arrive.
func (o *oracle) until(t *testing.T, n int) {
	t.Helper()
	last, since := -1, time.Now()
	for tick := time.Tick(20 * time.Millisecond); ; <-tick {
		o.mu.Lock()
		got, err := len(o.deliveries), o.failed
		o.mu.Unlock()
		check(t, err)
		switch {
		case got >= n:
			return
		case got != last:
			last, since = got, time.Now()
		case time.Since(since) > stalled:
			t.Fatalf("%d of %d arrived, and no more for %v", got, n, stalled)
		}
	}
}

// verify tells what is missing, twice or out of order.
func (o *oracle) verify(t *testing.T, n, keys, poisonEvery int) {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	seen := make([]int, n)
	last := map[int]int{}
	disorder := 0
	for _, d := range o.deliveries {
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
