package differential

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/queuestream/broker"
)

// A program is a fixed sequence of calls, and what is decided on each message
// whenever it comes: what a broker is free to choose, the order of messages
// that have none, then changes no message's fate.
type program struct {
	sends []send
	plans [][]decision // of sends, attempt by attempt; afterwards: acknowledge
	steps []step
}

type send struct {
	m     broker.Message
	twin  bool // of the message before it: the same DedupID
	batch int  // sent together with the ones before it that have the same number; 0: alone
}

type decision int

const (
	ack decision = iota
	ackTwice
	nack
	nackLater
	snooze
	extendAndAck
	reject
	decisions
)

var decisionNames = [decisions]string{"ack", "ack twice", "nack", "nack later", "snooze", "extend and ack", "reject"}

// A step sends the next few messages, or receives with one of two consumers
// and decides at once, or after the other consumer has received.
type step struct {
	send     int
	consumer int
	max      int
	hold     bool
}

const (
	messages  = 24
	shortWait = 300 * time.Millisecond // of a Receive that may bring nothing
	later     = time.Second            // delays are whole seconds on SQS
)

// newProgram uses what caps claim, and a little that they may not.
func newProgram(seed uint64, caps broker.QueueCapabilities) program {
	r := rand.New(rand.NewPCG(seed, 2))
	var p program
	for i := range messages {
		m := broker.Message{ID: broker.NewID(), Body: fmt.Appendf(nil, "%03d \x00\xff", i)}
		if caps.Groups {
			m.GroupID = fmt.Sprintf("g%d", r.IntN(4))
		}
		if caps.Headers && r.IntN(2) == 0 {
			m.Headers = broker.Headers{{Key: "b", Value: "\x00\xfe"}, {Key: "a", Value: "1"}, {Key: "a", Value: "2"}}
		}
		if caps.Delay && r.IntN(6) == 0 {
			m.Delay = later
		}
		s := send{m: m, batch: 0}
		if caps.Dedup {
			if s.m.DedupID = fmt.Sprintf("d%d", i); i > 0 && r.IntN(5) == 0 && !p.sends[i-1].twin {
				s.m.DedupID, s.m.GroupID, s.twin = p.sends[i-1].m.DedupID, p.sends[i-1].m.GroupID, true
			}
		}
		if r.IntN(2) == 0 {
			s.batch = 1 + i/4
		}
		p.sends = append(p.sends, s)
		var plan []decision
		for range r.IntN(maxAttempts + 1) {
			d := decision(r.IntN(int(decisions)))
			if d == nackLater && !caps.NackDelay || d == snooze && !caps.Snooze || d == extendAndAck && !caps.Lease {
				d = nack
			}
			plan = append(plan, d)
		}
		p.plans = append(p.plans, plan)
	}
	for left := messages; left > 0; {
		n := min(1+r.IntN(5), left)
		left -= n
		p.steps = append(p.steps, step{send: n})
		for range r.IntN(3) {
			p.steps = append(p.steps, step{consumer: r.IntN(2), max: 1 + r.IntN(4), hold: r.IntN(3) == 0})
		}
	}
	return p
}

// A fate is all that a program sees of one message.
type fate struct {
	published  string
	deliveries []string // attempt, decision, result
	headers    string
	dead       string // what the dead-letter queue says of it
	first      int    // when it came first
	due        time.Time
	open       bool // held by a consumer
	done       bool // acknowledged, rejected, or not stored
	attempts   int
}

// A runner carries out one program on one broker and judges by the one
// specification what it does.
type runner struct {
	t         *testing.T
	p         program
	caps      broker.QueueCapabilities
	q         broker.Queue
	exact     bool // attempts
	passed    bool // messages that are not due are passed by their group
	most      int  // attempts
	consumers [2]broker.Consumer
	fates     []fate
	sent      int
	received  int
	tick      time.Duration
}

func (p *pair) run(ctx context.Context, t *testing.T, b broker.Broker, prog func(broker.QueueCapabilities) program, tick time.Duration) []fate {
	t.Helper()
	queue, dead := p.newName("queue"), p.newName("dead")
	q := p.declared(ctx, t, b, p.cfg, queue, dead)
	r := &runner{t: t, caps: q.Capabilities(), q: q, exact: p.countsMore == "", passed: p.joinsWhenDue != "", most: p.maxAttempts(), tick: tick, p: prog(q.Capabilities()), fates: make([]fate, messages)}
	for i := range r.consumers {
		c, err := q.Consumer(ctx, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.consumers[i] = c
	}
	var held []*broker.Delivery
	for _, s := range r.p.steps {
		if s.send > 0 {
			r.send(ctx, s.send)
			continue
		}
		ds := r.receive(ctx, s.consumer, s.max, shortWait)
		r.decide(ctx, held)
		if held = nil; s.hold {
			held = ds
		} else {
			r.decide(ctx, ds)
		}
	}
	r.decide(ctx, held)
	end, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for i := 0; slices.ContainsFunc(r.fates, func(f fate) bool { return !f.done }); i++ {
		if end.Err() != nil {
			r.missing(ctx, b, queue, dead)
		}
		r.decide(ctx, r.receive(ctx, i%2, 4, shortWait))
	}
	if ds := r.receive(ctx, 0, 1, shortWait); len(ds) > 0 {
		t.Errorf("%q came after all were done", ds[0].Body)
	}
	for _, c := range r.consumers {
		if err := c.Close(); err != nil {
			t.Errorf("close a consumer: %v", err)
		}
	}
	r.deadLetters(ctx, b, dead)
	if err := q.Close(); err != nil {
		t.Errorf("close the queue: %v", err)
	}
	return r.fates
}

// missing says where the messages are that did not come.
func (r *runner) missing(ctx context.Context, b broker.Broker, names ...string) {
	for i, f := range r.fates {
		if !f.done {
			r.t.Errorf("%d is missing: %+v", i, f)
		}
	}
	for _, name := range names {
		stats, err := b.(broker.Admin).QueueStats(ctx, name)
		r.t.Errorf("%s: %+v, %v", name, stats, err)
		ms, err := b.(broker.Admin).Peek(ctx, name, messages)
		for i := range ms {
			why, _ := broker.DeadLetterOf(&ms[i])
			r.t.Errorf("%s holds %q %+v", name, ms[i].Body, why)
		}
		if err != nil {
			r.t.Errorf("peek: %v", err)
		}
	}
	r.t.FailNow()
}

func (r *runner) send(ctx context.Context, n int) {
	for n > 0 {
		i := r.sent
		size := 1
		for b := r.p.sends[i].batch; b > 0 && size < n && r.p.sends[i+size].batch == b; size++ {
		}
		ms := make([]broker.Message, size)
		for j := range ms {
			ms[j] = r.p.sends[i+j].m
		}
		errs := make([]error, size)
		if size == 1 {
			_, errs[0] = r.q.Publish(ctx, ms[0])
		} else {
			_, err := r.q.PublishBatch(ctx, ms)
			for j := range errs {
				errs[j] = broker.ErrorAt(err, j)
			}
		}
		for j, err := range errs {
			f := &r.fates[i+j]
			f.published, f.due = class(err), time.Now().Add(ms[j].Delay)
			f.done = err != nil || r.p.sends[i+j].twin
		}
		r.sent += size
		n -= size
	}
}

// receive judges each delivery: it is of a message that may come now, is what
// was sent, counts its attempt, and respects its group.
func (r *runner) receive(ctx context.Context, consumer, limit int, wait time.Duration) []*broker.Delivery {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	ds, err := r.consumers[consumer].Receive(ctx, limit)
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		r.t.Fatalf("receive: %v", err)
	}
	if len(ds) > limit {
		r.t.Errorf("%d deliveries where %d were asked for", len(ds), limit)
	}
	for _, d := range ds {
		i := slices.IndexFunc(r.p.sends[:r.sent], func(s send) bool { return string(s.m.Body) == string(d.Body) })
		if i < 0 {
			r.t.Fatalf("%q was never sent", d.Body)
		}
		f := &r.fates[i]
		switch {
		case f.done:
			r.t.Errorf("%d came, %+v", i, *f)
		case f.open:
			r.t.Errorf("%d came while it is held", i)
		case time.Now().Add(r.tick).Before(f.due):
			r.t.Errorf("%d came %v early", i, time.Until(f.due))
		}
		f.attempts++
		if r.caps.Attempts && d.Attempt < f.attempts || r.exact && d.Attempt > f.attempts {
			r.t.Errorf("%d: attempt %d, want %d", i, d.Attempt, f.attempts)
		}
		if f.open = true; f.first == 0 {
			r.received++
			f.first, f.headers = r.received, fmt.Sprintf("%q", d.Headers)
		}
		if want := fmt.Sprintf("%q", r.p.sends[i].m.Headers); f.headers != want {
			r.t.Errorf("%d: headers %s, want %s", i, f.headers, want)
		}
		for j := range r.sent {
			g := r.p.sends[j].m.GroupID
			if g == "" || g != r.p.sends[i].m.GroupID || j == i || r.fates[j].done {
				continue
			}
			switch before := r.fates[j].first == 0; {
			case !before: // it is held, or waits for its redelivery
				r.t.Errorf("%d came while %d of its group was not done, %+v", i, j, r.fates[j])
			case j < i && !(r.passed && r.p.sends[j].m.Delay > 0):
				r.t.Errorf("%d came before %d of its group, %+v", i, j, r.fates[j])
			}
		}
	}
	return ds
}

// decide does what the message's plan says for this attempt.
func (r *runner) decide(ctx context.Context, ds []*broker.Delivery) {
	for _, d := range ds {
		i := slices.IndexFunc(r.p.sends, func(s send) bool { return string(s.m.Body) == string(d.Body) })
		f := &r.fates[i]
		what := ack
		if n := len(f.deliveries); n < len(r.p.plans[i]) {
			what = r.p.plans[i][n]
		}
		var err error
		var again string
		due := time.Now()
		switch what {
		case nack:
			err = d.Nack(ctx, 0)
		case nackLater:
			due = due.Add(later)
			err = d.Nack(ctx, later)
		case snooze:
			batch := []broker.Outcome{{Delivery: d, Verdict: broker.Verdict{Kind: broker.VerdictNack, Snooze: true}}}
			err = broker.SettleAll(ctx, batch)
		case reject:
			err = d.Reject(ctx, "a reason")
		case extendAndAck:
			again = "extend " + class(d.Extend(ctx, 0)) + ", "
			err = d.Ack(ctx)
		case ackTwice:
			err = d.Ack(ctx)
			again = class(d.Ack(ctx)) + " then, "
		default:
			err = d.Ack(ctx)
		}
		f.open, f.due = false, due
		f.deliveries = append(f.deliveries, fmt.Sprintf("%d: %s: %s%s", f.attempts, decisionNames[what], again, class(err)))
		if err != nil {
			r.t.Errorf("%d: %s: %v", i, decisionNames[what], err)
		}
		switch what {
		case nack, nackLater:
			f.done = f.attempts == r.most
		case snooze:
			f.attempts--
		default:
			f.done = true
		}
	}
}

// deadLetters notes what arrived in the dead-letter queue.
func (r *runner) deadLetters(ctx context.Context, b broker.Broker, name string) {
	want := 0
	for i := range r.fates {
		if n := len(r.fates[i].deliveries); n > 0 {
			last := r.fates[i].deliveries[n-1]
			if strings.Contains(last, ": nack") || strings.Contains(last, decisionNames[reject]) {
				want++
			}
		}
	}
	q, err := b.Queue(ctx, name, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	defer q.Close() //nolint:errcheck // so does the broker
	c, err := q.Consumer(ctx, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // so does the broker
	end, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for got := 0; got < want; {
		ds, err := c.Receive(end, 10)
		if err != nil {
			r.t.Fatalf("%d of %d dead letters: %v", got, want, err)
		}
		for _, d := range ds {
			i := slices.IndexFunc(r.p.sends, func(s send) bool { return string(s.m.Body) == string(d.Body) })
			why, ok := broker.DeadLetterOf(&d.Message)
			if i < 0 || !ok || r.fates[i].dead != "" {
				r.t.Fatalf("dead letter %q %v", d.Body, why)
			}
			reason := "attempts"
			if why.Reason == "a reason" {
				reason = why.Reason
			}
			if r.exact {
				reason += fmt.Sprintf(" after %d attempts", why.Attempts)
			}
			r.fates[i].dead = reason
			if err := d.Ack(ctx); err != nil {
				r.t.Errorf("acknowledge a dead letter: %v", err)
			}
			got++
		}
	}
}

// class returns the sentinel that err wraps, for comparisons.
func class(err error) string {
	if err == nil {
		return "ok"
	}
	for _, s := range []error{
		broker.ErrUnsupported, broker.ErrInvalid, broker.ErrTooLarge, broker.ErrSettled, broker.ErrLeaseLost,
		broker.ErrNotFound, broker.ErrConflict, broker.ErrFull, broker.ErrClosed, broker.ErrUnavailable,
	} {
		if errors.Is(err, s) {
			return s.Error()
		}
	}
	return "another error: " + err.Error()
}

// refused is class, but does not tell whether the adapter or the broker said
// no: only the adapter knows what it supports.
func refused(err error) string {
	if errors.Is(err, broker.ErrUnsupported) || errors.Is(err, broker.ErrInvalid) {
		return "refused"
	}
	return class(err)
}

// diff tells how two runs differ in what the specification leaves no choice.
func diff(a, b []fate, p program, passed bool) string {
	var out strings.Builder
	for i := range a {
		x, y := a[i], b[i]
		if x.published != y.published || !slices.Equal(x.deliveries, y.deliveries) || x.headers != y.headers || x.dead != y.dead {
			fmt.Fprintf(&out, "%d: %+v, %+v\n", i, x, y)
		}
	}
	byGroup := func(fs []fate) string {
		var order []int
		for i := range fs {
			if m := &p.sends[i].m; fs[i].first > 0 && m.GroupID != "" && !(passed && m.Delay > 0) {
				order = append(order, i)
			}
		}
		slices.SortStableFunc(order, func(i, j int) int {
			return cmp.Or(strings.Compare(p.sends[i].m.GroupID, p.sends[j].m.GroupID), fs[i].first-fs[j].first)
		})
		return fmt.Sprint(order)
	}
	if x, y := byGroup(a), byGroup(b); x != y {
		fmt.Fprintf(&out, "order in groups: %s, %s\n", x, y)
	}
	return out.String()
}
