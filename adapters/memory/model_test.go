package memory

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/queuestream/broker"
	"pgregory.net/rapid"
)

// A step is one operation of a random program. What its numbers mean depends
// on the operation; each is taken modulo what there is to choose from.
type step struct {
	Op      int
	A, B, C int
}

const (
	opSend = iota
	opReceive
	opAck
	opNack
	opReject
	opExtend
	opAdvance
	opClose
	opPurge
	ops
)

var opNames = [ops]string{"send", "receive", "ack", "nack", "reject", "extend", "advance", "close", "purge"}

func (s step) String() string { return fmt.Sprintf("{%s %d %d %d}", opNames[s.Op], s.A, s.B, s.C) }

// A spec is the specification of a queue: a list of messages, and rules that
// look at all of them each time. It allows whatever the capabilities leave
// open (the order on a standard SQS queue) and demands the rest.
type spec struct {
	caps     broker.QueueCapabilities
	cfg      broker.QueueConfig
	lease    time.Duration
	anyOrder bool

	msgs   []*specMessage // in the order published
	seen   map[string]time.Time
	dead   []string
	serial int
}

type specMessage struct {
	body      string
	group     string
	priority  int
	published time.Time
	due       time.Time
	expires   time.Time // zero: never
	attempts  int
	holder    *specDelivery // nil: in the queue
	serial    int
	first     time.Time // its place, once it was delivered
	apart     bool      // from its group, which it joins when it is due
	late      bool      // it has done so
}

type specDelivery struct {
	d        *broker.Delivery
	m        *specMessage
	consumer int
	until    time.Time // zero: no lease
	settled  bool      // by a verdict
}

func (s *spec) remove(m *specMessage) {
	s.msgs = slices.DeleteFunc(s.msgs, func(o *specMessage) bool { return o == m })
}

// giveBack returns a message, or moves it to the dead letters.
func (s *spec) giveBack(m *specMessage, at time.Time, delay time.Duration, snooze bool) {
	m.holder = nil
	switch {
	case !snooze && m.attempts >= s.cfg.MaxAttempts:
		s.remove(m)
		s.dead = append(s.dead, m.body)
		return
	case snooze:
		m.attempts--
	}
	m.due = at.Add(delay)
}

// next returns when something happens by itself next, after now.
func (s *spec) next() (time.Time, bool) {
	var next time.Time
	consider := func(t time.Time) {
		if !t.IsZero() && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	for _, m := range s.msgs {
		if m.holder != nil {
			consider(m.holder.until)
			continue
		}
		consider(m.expires)
		if m.due.After(time.Now()) {
			consider(m.due)
		}
	}
	return next, !next.IsZero()
}

// advance carries out what happened by now, one moment after the other.
func (s *spec) advance(now time.Time) {
	for _, m := range slices.Clone(s.msgs) {
		if h := m.holder; h != nil && !h.until.IsZero() && !h.until.After(now) {
			s.giveBack(m, h.until, 0, false)
		}
	}
	joins := slices.DeleteFunc(slices.Clone(s.msgs), func(m *specMessage) bool { return !m.apart || m.due.After(now) })
	slices.SortStableFunc(joins, func(a, b *specMessage) int { return a.due.Compare(b.due) })
	for _, m := range joins {
		m.apart, m.late = false, true
		s.remove(m)
		s.msgs = append(s.msgs, m)
	}
	for _, m := range slices.Clone(s.msgs) {
		if m.holder == nil && !m.expires.IsZero() && !m.expires.After(now) {
			s.remove(m)
		}
	}
}

// blocked tells whether an earlier message of m's group is still there.
func (s *spec) blocked(m *specMessage) bool {
	if m.group == "" || m.apart {
		return false
	}
	for _, o := range s.msgs {
		if o == m {
			return false
		}
		if o.group == m.group && !o.apart {
			return true
		}
	}
	return false
}

// eligible returns what may be received now, in order.
func (s *spec) eligible(now time.Time) []*specMessage {
	var ms []*specMessage
	for _, m := range s.msgs {
		if m.holder == nil && !m.due.After(now) && !s.blocked(m) {
			ms = append(ms, m)
		}
	}
	slices.SortStableFunc(ms, func(a, b *specMessage) int {
		if a.priority != b.priority {
			return b.priority - a.priority
		}
		return cmp.Or(a.place().Compare(b.place()), a.serial-b.serial)
	})
	return ms
}

// place is when m took its place in the queue: at once, also while it waits
// for a redelivery or behind its group, but when it became due for the first time.
func (m *specMessage) place() time.Time {
	if !m.first.IsZero() {
		return m.first
	}
	return m.firstPlace()
}

func (m *specMessage) firstPlace() time.Time {
	if (m.group == "" || m.late) && m.due.After(m.published) {
		return m.due.Add(-1) // before what is published at that moment
	}
	return m.published
}

// stats counts as QueueStats does.
func (s *spec) stats(now time.Time) (ready, inFlight, delayed int64) {
	for _, m := range s.msgs {
		switch {
		case m.holder != nil:
			inFlight++
		case m.due.After(now) && !s.blocked(m):
			delayed++
		default:
			ready++
		}
	}
	return ready, inFlight, delayed
}

// A run is one program against one queue and its specification.
type run struct {
	*spec
	b         *Broker
	q         *Queue
	consumers [2]*Consumer
	given     []*specDelivery
}

var modelProfiles = []struct {
	profile Profile
	suffix  string
	cfg     broker.QueueConfig
}{
	{Default, "", broker.QueueConfig{MaxPriority: 2, Dedup: true}},
	{SQSStandard, "", broker.QueueConfig{}},
	{SQSFIFO, ".fifo", broker.QueueConfig{DedupPerGroup: true, ContentDedup: true}},
	{RabbitMQQuorum, "", broker.QueueConfig{Ordered: true}},
	{KafkaTopic, "", broker.QueueConfig{}},
}

// runProgram returns what the queue did against its specification, if anything.
func runProgram(t *testing.T, profile int, seed uint64, steps []step) error {
	var err error
	synctest.Test(t, func(t *testing.T) {
		p := modelProfiles[profile]
		ctx := t.Context()
		b := open(t, &Options{Profile: p.profile, Seed: seed})
		declare(t, b, "dead"+p.suffix, broker.QueueConfig{})
		cfg := p.cfg
		cfg.MaxAttempts, cfg.DeadLetter = 3, "dead"+p.suffix
		q := declare(t, b, "q"+p.suffix, cfg)
		r := &run{b: b, q: q, spec: &spec{
			caps: q.Capabilities(), cfg: cfg, lease: q.q.lease(), anyOrder: b.srv.rules.reorders,
			seen: map[string]time.Time{},
		}}
		for i := range r.consumers {
			r.consumers[i] = consume(t, q, nil)
		}
		for i, s := range steps {
			if err = r.step(ctx, s); err != nil {
				err = fmt.Errorf("step %d %v: %w", i, s, err)
				return
			}
			r.advance(time.Now())
			st, e := b.QueueStats(ctx, q.Name())
			check(t, e)
			ready, inFlight, delayed := r.stats(time.Now())
			if st.Ready != ready || st.InFlight != inFlight || st.Delayed != delayed {
				err = fmt.Errorf("after step %d %v: stats %+v, want ready %d, in flight %d, delayed %d", i, s, st, ready, inFlight, delayed)
				return
			}
		}
		err = r.finish(ctx, "dead"+p.suffix)
	})
	return err
}

func (r *run) step(ctx context.Context, s step) error {
	now := time.Now()
	r.advance(now)
	switch s.Op {
	case opSend:
		return r.send(ctx, s)
	case opReceive:
		return r.receive(ctx, s.A%2, 1+s.B%4, time.Duration(s.C%50)*time.Second)
	case opAdvance:
		d := time.Duration(s.A%100) * time.Second
		if s.B%4 == 0 {
			d = 5 * time.Minute // the window of dedup, exactly
		}
		for end := now.Add(d); time.Now().Before(end); {
			next, ok := r.next()
			if !ok || next.After(end) {
				next = end
			}
			<-time.After(time.Until(next))
			r.advance(time.Now())
		}
	case opClose:
		return r.reopen(ctx, s.A%2)
	case opPurge:
		r.msgs = slices.DeleteFunc(r.msgs, func(m *specMessage) bool { return m.holder == nil })
		return r.b.Purge(ctx, r.q.Name())
	default:
		if len(r.given) > 0 {
			return r.settle(ctx, r.given[s.A%len(r.given)], s)
		}
	}
	return nil
}

func (r *run) send(ctx context.Context, s step) error {
	now := time.Now()
	r.serial++
	m := broker.Message{Body: []byte(strconv.Itoa(r.serial))}
	if r.caps.Groups && s.A%2 == 0 {
		m.GroupID = "g" + strconv.Itoa(s.A%3)
	}
	if r.caps.Dedup && s.B%3 == 0 {
		m.DedupID = "d" + strconv.Itoa(s.B%5)
	}
	if r.caps.Delay && s.C%3 == 0 {
		m.Delay = time.Duration(s.C%20) * time.Second
	}
	if r.caps.TTL && s.B%4 == 1 {
		m.TTL = time.Duration(1+s.A%60) * time.Second
	}
	if r.caps.MaxPriority > 0 {
		m.Priority = s.C % (r.caps.MaxPriority + 1)
	}
	receipt, err := r.q.Publish(ctx, m)
	if err != nil {
		return err
	}
	key := ""
	if m.DedupID != "" {
		key = m.DedupID
	} else if r.cfg.ContentDedup {
		key = "body " + string(m.Body)
	}
	if r.cfg.DedupPerGroup && key != "" {
		key += " " + m.GroupID
	}
	duplicate := key != "" && now.Before(r.seen[key])
	if receipt.Duplicate != duplicate {
		return fmt.Errorf("receipt says duplicate %v", receipt.Duplicate)
	}
	if duplicate {
		return nil
	}
	if key != "" {
		r.seen[key] = now.Add(r.caps.DedupWindow)
	}
	sm := &specMessage{
		body: string(m.Body), group: m.GroupID, priority: m.Priority,
		published: now, due: now.Add(m.Delay), serial: r.serial,
	}
	sm.apart = m.GroupID != "" && m.Delay > 0 && r.b.srv.rules.delaysApart
	if m.TTL > 0 {
		sm.expires = now.Add(m.TTL)
	} else if d := r.b.srv.rules.retention; d > 0 {
		sm.expires = now.Add(d)
	}
	r.msgs = append(r.msgs, sm)
	return nil
}

func (r *run) receive(ctx context.Context, consumer, max int, wait time.Duration) error {
	deadline := time.Now().Add(wait)
	got := make(chan struct{})
	var ds []*broker.Delivery
	var err error
	go func() {
		defer close(got)
		ctx, cancel := context.WithDeadline(ctx, deadline)
		defer cancel()
		if ds, err = r.consumers[consumer].Receive(ctx, max); errors.Is(err, context.DeadlineExceeded) {
			err = nil
		}
	}()
	if wait == 0 {
		if <-got; len(ds) > 0 {
			return fmt.Errorf("an ended context took %d", len(ds))
		}
		return err
	}
	// Walk the specification to the moment when something can be received.
	for len(r.eligible(time.Now())) == 0 {
		next, ok := r.next()
		if !ok || !next.Before(deadline) {
			next = deadline
		}
		<-time.After(time.Until(next))
		if r.advance(time.Now()); next.Equal(deadline) {
			break
		}
	}
	at := time.Now()
	<-got
	if err != nil {
		return err
	}
	if now := time.Now(); now.After(at) {
		return fmt.Errorf("received %v late", now.Sub(at))
	}
	if len(ds) == 0 && at.Equal(deadline) {
		return nil
	}
	return r.delivered(ds, consumer, max)
}

// delivered checks deliveries, one after the other as they were taken.
func (r *run) delivered(ds []*broker.Delivery, consumer, max int) error {
	now := time.Now()
	for i, d := range ds {
		can := r.eligible(now)
		at := slices.IndexFunc(can, func(m *specMessage) bool { return m.body == string(d.Body) })
		if at < 0 {
			return fmt.Errorf("delivery %d: %q cannot be received now", i, d.Body)
		}
		m := can[at]
		if at > 0 && !r.anyOrder {
			return fmt.Errorf("delivery %d: %q before %q", i, d.Body, can[0].body)
		}
		if m.attempts++; d.Attempt != m.attempts {
			return fmt.Errorf("delivery %d: %q is attempt %d, not %d", i, d.Body, d.Attempt, m.attempts)
		}
		if m.first.IsZero() {
			m.first = m.firstPlace()
		}
		if !d.Time.Equal(m.published) || d.GroupID != m.group {
			return fmt.Errorf("delivery %d: %+v is not %+v", i, d, m)
		}
		sd := &specDelivery{d: d, m: m, consumer: consumer}
		if r.caps.Lease {
			sd.until = now.Add(r.lease)
		}
		if !d.LeaseExpires().Equal(sd.until) {
			return fmt.Errorf("delivery %d: the lease ends at %v, not %v", i, d.LeaseExpires(), sd.until)
		}
		m.holder = sd
		r.given = append(r.given, sd)
	}
	if can := r.eligible(now); len(ds) < max && len(can) > 0 {
		return fmt.Errorf("received %d of %d while %q was there", len(ds), max, can[0].body)
	}
	return nil
}

func (r *run) settle(ctx context.Context, sd *specDelivery, s step) error {
	now := time.Now()
	var err error
	delay := time.Duration(0)
	lease := time.Duration(s.C%60) * time.Second
	v := broker.Verdict{}
	switch s.Op {
	case opAck:
		err = sd.d.Ack(ctx)
	case opNack:
		if r.caps.NackDelay {
			delay = time.Duration(s.B%10) * time.Second
		}
		v = broker.Verdict{Kind: broker.VerdictNack, Delay: delay, Snooze: r.caps.Snooze && s.C%4 == 0}
		err = broker.SettleAll(ctx, []broker.Outcome{{Delivery: sd.d, Verdict: v}})
	case opReject:
		err = sd.d.Reject(ctx, "no good")
	case opExtend:
		err = sd.d.Extend(ctx, lease)
	}
	holds := sd.m.holder == sd
	var want error
	switch {
	case sd.settled:
		want = broker.ErrSettled
	case s.Op == opExtend && !r.caps.Lease && holds:
		want = broker.ErrUnsupported
	case !holds:
		want = broker.ErrLeaseLost
	}
	switch {
	case !errors.Is(err, want):
		return fmt.Errorf("%q: error %v, want %v", sd.m.body, err, want) //nolint:errorlint // two of them
	case want != nil:
		return nil //nolint:nilerr // as it must be
	}
	sd.settled = s.Op != opExtend
	switch s.Op {
	case opAck:
		r.remove(sd.m)
	case opNack:
		r.giveBack(sd.m, now, delay, v.Snooze)
	case opReject:
		r.remove(sd.m)
		r.dead = append(r.dead, sd.m.body)
	case opExtend:
		if lease == 0 {
			lease = r.lease
		}
		sd.until = now.Add(lease)
	}
	return nil
}

func (r *run) reopen(ctx context.Context, i int) error {
	if err := r.consumers[i].Close(); err != nil {
		return err
	}
	now := time.Now()
	for _, m := range slices.Clone(r.msgs) {
		if m.holder != nil && m.holder.consumer == i {
			r.giveBack(m, now, 0, false)
		}
	}
	for _, sd := range r.given {
		if sd.consumer == i {
			sd.consumer = -1
		}
	}
	c, err := r.q.consumer(ctx, nil)
	r.consumers[i] = c
	return err
}

// finish checks that the dead letters are those of the specification.
func (r *run) finish(ctx context.Context, name string) error {
	synctest.Wait() // a timer may be moving the last one
	st, err := r.b.QueueStats(ctx, name)
	if err != nil {
		return err
	}
	if st.Ready != int64(len(r.dead)) {
		return fmt.Errorf("%d dead letters, want %d", st.Ready, len(r.dead))
	}
	if len(r.dead) == 0 {
		return nil
	}
	ms, err := r.b.Peek(ctx, name, len(r.dead))
	if err != nil {
		return err
	}
	var got []string
	for i := range ms {
		why, ok := broker.DeadLetterOf(&ms[i])
		if !ok || why.Queue != r.q.Name() || why.Attempts < 1 || why.Attempts > r.cfg.MaxAttempts {
			return fmt.Errorf("dead letter %q: %+v", ms[i].Body, why)
		}
		got = append(got, string(ms[i].Body))
	}
	slices.Sort(got)
	want := slices.Sorted(slices.Values(r.dead))
	if !slices.Equal(got, want) {
		return fmt.Errorf("dead letters %v, want %v", got, want)
	}
	return nil
}

// Programs that once failed, shrunk.
var regressions = []struct {
	name    string
	profile int
	steps   []step
}{
	{"a snoozed message with a delay keeps its place", 3, []step{
		{opSend, 1, 0, 1}, {opSend, 1, 0, 1}, {opReceive, 0, 0, 1}, {opNack, 0, 1, 0}, {opAdvance, 1, 0, 0}, {opReceive, 0, 0, 1},
	}},
}

func TestRegressions(t *testing.T) {
	for _, r := range regressions {
		t.Run(r.name, func(t *testing.T) {
			if err := runProgram(t, r.profile, 1, r.steps); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestModel(t *testing.T) {
	for i, p := range modelProfiles {
		name := string(p.profile)
		if name == "" {
			name = "default"
		}
		t.Run(name, func(t *testing.T) {
			gen := rapid.Custom(func(t *rapid.T) step {
				// Receiving and sending come often, the rest now and then.
				op := rapid.SampledFrom([]int{
					opSend, opSend, opSend, opSend, opReceive, opReceive, opReceive, opAck, opAck, opNack, opNack,
					opReject, opExtend, opExtend, opAdvance, opAdvance, opClose, opPurge,
				}).Draw(t, "op")
				n := rapid.IntRange(0, 119)
				return step{op, n.Draw(t, "a"), n.Draw(t, "b"), n.Draw(t, "c")}
			})
			rapid.Check(t, func(rt *rapid.T) {
				steps := rapid.SliceOfN(gen, rapid.SampledFrom([]int{0, 10, 40}).Draw(rt, "least"), 60).Draw(rt, "steps")
				if err := runProgram(t, i, 1, steps); err != nil {
					rt.Fatal(err)
				}
			})
		})
	}
}
