package kafka_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/kafka"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// newUser makes a user who may do nothing.
func (c *secured) newUser(t testing.TB) user {
	t.Helper()
	u := user{"user-" + broker.NewID(), broker.NewID()}
	adm := kadm.NewClient(open(t, c.options(t, c.root, "plain")).Client())
	altered, err := adm.AlterUserSCRAMs(testContext(t), nil, []kadm.UpsertSCRAM{
		{User: u.name, Mechanism: kadm.ScramSha256, Iterations: 4096, Password: u.password},
	})
	if err == nil {
		err = altered.Error()
	}
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the broker knows the new user", func() bool {
		b, err := kafka.Open(testContext(t), c.options(t, u, "scram-sha-256"))
		if err != nil && !errors.Is(err, broker.ErrUnauthorized) {
			t.Fatal(err)
		}
		return err == nil && b.Close() == nil
	})
	return u
}

// as opens a broker for a user, whose heartbeats are rare: what it learns, it
// learns from its calls. Every request counts.
func (c *secured) as(t testing.TB, u user) (*kafka.Broker, *traffic) {
	t.Helper()
	n := &traffic{since: time.Now()}
	o := c.options(t, u, "scram-sha-256")
	o.HeartbeatInterval = 10 * time.Second
	o.Client = []kgo.Opt{kgo.WithHooks(n)}
	b := open(t, o)
	t.Cleanup(func() { n.check(t) })
	return b, n
}

// traffic counts what clients send.
type traffic struct {
	n     atomic.Int64
	since time.Time
}

var _ kgo.HookBrokerWrite = (*traffic)(nil)

func (r *traffic) OnBrokerWrite(kgo.BrokerMetadata, int16, int, time.Duration, time.Duration, error) {
	r.n.Add(1)
}

// check fails if a client asked over and over.
func (r *traffic) check(t testing.TB) {
	t.Helper()
	if n, d := r.n.Load(), time.Since(r.since); n > 500+int64(100*d.Seconds()) {
		t.Errorf("%d requests within %v: it spins", n, d)
	}
}

// allow and forbid change the rights of a user; the broker knows of it when
// they return.
func (c *secured) allow(t testing.TB, u user, acls ...*kadm.ACLBuilder) { c.change(t, u, true, acls) }

func (c *secured) forbid(t testing.TB, u user, acls ...*kadm.ACLBuilder) {
	c.change(t, u, false, acls)
}

func (c *secured) change(t testing.TB, u user, allow bool, acls []*kadm.ACLBuilder) {
	t.Helper()
	ctx := testContext(t)
	b, err := kafka.Open(ctx, c.options(t, c.root, "plain"))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close() //nolint:errcheck // it has done its work
	adm := kadm.NewClient(b.Client())
	for _, acl := range acls {
		acl = acl.ResourcePatternType(kadm.ACLPatternLiteral).Allow("User:" + u.name).AllowHosts("*")
		if allow {
			created, err := adm.CreateACLs(ctx, acl)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range created {
				if r.Err != nil {
					t.Fatalf("%+v: %v", r, r.Err)
				}
			}
		} else if _, err := adm.DeleteACLs(ctx, acl); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the broker knows the right", func() bool {
			described, err := adm.DescribeACLs(ctx, acl)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range described {
				if d.Err != nil {
					t.Fatal(d.Err)
				}
				if (len(d.Described) > 0) != allow {
					return false
				}
			}
			return true
		})
	}
}

func onTopic(name string, ops ...kadm.ACLOperation) *kadm.ACLBuilder {
	return kadm.NewACLs().Topics(name).Operations(ops...)
}

func onGroup(name string) *kadm.ACLBuilder {
	return kadm.NewACLs().Groups(name).Operations(kadm.OpRead)
}

// onRegistry lets a user know the queues' dead-letter queues.
func onRegistry() *kadm.ACLBuilder { return onTopic("queuestream.queues", kadm.OpRead) }

func onID(id string) *kadm.ACLBuilder {
	return kadm.NewACLs().TransactionalIDs(id).Operations(kadm.OpWrite)
}

// transact publishes a record in a transaction.
func transact(ctx context.Context, tr broker.Transactor, s broker.Stream) error {
	tx, err := tr.Begin(ctx)
	if err != nil {
		return err
	}
	if err := tx.Publish(ctx, s, broker.Record{Value: []byte("x")}); err != nil {
		return errors.Join(err, tx.Rollback(ctx))
	}
	return tx.Commit(ctx)
}

// refused fails unless err says that something is not allowed, for good.
func refused(t testing.TB, what string, err error) {
	t.Helper()
	if !errors.Is(err, broker.ErrUnauthorized) || broker.IsTemporary(err) {
		t.Errorf("%s: %v (temporary %v), want ErrUnauthorized for good", what, err, broker.IsTemporary(err))
	}
}

// atOnce makes a call that must end by itself.
func atOnce(t testing.TB, what string, call func(ctx context.Context) error) error {
	t.Helper()
	start := time.Now()
	err := call(testContext(t))
	if d := time.Since(start); d > 4*time.Second {
		t.Errorf("%s took %v", what, d)
	}
	return err
}

// A user without any right gets a typed error from everything, at once.
func withoutRights(t *testing.T, c *secured) {
	root := open(t, c.options(t, c.root, "plain"))
	s := declare(t, root, broker.StreamConfig{Partitions: 1})
	publish(t, s, 3)
	q := queue(t, root, broker.QueueConfig{})
	enqueue(t, q, 3)
	b, _ := c.as(t, c.newUser(t))
	for _, call := range []struct {
		name string
		do   func(ctx context.Context) error
	}{
		{"declare a stream", func(ctx context.Context) error { return b.DeclareStream(ctx, name(t), broker.StreamConfig{}) }},
		{"declare a stream that exists", func(ctx context.Context) error { return b.DeclareStream(ctx, s.Name(), broker.StreamConfig{}) }},
		{"declare a queue", func(ctx context.Context) error { return b.DeclareQueue(ctx, name(t), broker.QueueConfig{}) }},
		{"open a stream", func(ctx context.Context) error {
			_, err := b.Stream(ctx, s.Name(), nil)
			return err
		}},
		{"open a queue", func(ctx context.Context) error {
			_, err := b.Queue(ctx, q.Name(), nil)
			return err
		}},
		{"open a transactor", func(ctx context.Context) error {
			_, err := b.Transactor(ctx, name(t))
			return err
		}},
		{"delete a stream", func(ctx context.Context) error { return b.DeleteStream(ctx, s.Name()) }},
		{"delete a queue", func(ctx context.Context) error { return b.DeleteQueue(ctx, q.Name()) }},
		{"reset a group", func(ctx context.Context) error { return b.ResetGroup(ctx, s.Name(), "g", broker.Earliest()) }},
		{"delete records", func(ctx context.Context) error {
			return b.DeleteRecords(ctx, s.Name(), map[int32]int64{0: -1})
		}},
		{"purge", func(ctx context.Context) error { return b.Purge(ctx, q.Name()) }},
		{"peek", func(ctx context.Context) error {
			_, err := b.Peek(ctx, q.Name(), 1)
			return err
		}},
		{"queue stats", func(ctx context.Context) error {
			_, err := b.QueueStats(ctx, q.Name())
			return err
		}},
		{"redrive", func(ctx context.Context) error {
			_, err := b.Redrive(ctx, q.Name(), s.Name(), 0)
			return err
		}},
	} {
		refused(t, call.name, atOnce(t, call.name, call.do))
	}
	publish(t, s, 1) // nothing of that has done anything
	if got := values(t, s, false); len(got) != 4 {
		t.Errorf("the stream has %d records, want 4", len(got))
	}
}

// A user who may look at a stream and a queue, and no more, can open them; all
// else is refused. Once more is allowed, the same handles do it.
func rightsInTurn(t *testing.T, c *secured) {
	ctx := testContext(t)
	root := open(t, c.options(t, c.root, "plain"))
	stream := declare(t, root, broker.StreamConfig{Partitions: 1})
	publish(t, stream, 3)
	work := queue(t, root, broker.QueueConfig{})
	u, group, id := c.newUser(t), name(t), name(t)
	b, _ := c.as(t, u)
	c.allow(t, u, onTopic(stream.Name(), kadm.OpDescribe), onTopic(work.Name(), kadm.OpDescribe), onTopic(work.Name()+".retry", kadm.OpDescribe), onRegistry())
	s, err := b.Stream(ctx, stream.Name(), nil)
	if err != nil {
		t.Fatal(err)
	}
	q, err := b.Queue(ctx, work.Name(), nil)
	if err != nil {
		t.Fatal(err)
	}
	m := member(t, s, group, nil)
	var w broker.Consumer
	err = atOnce(t, "open a consumer", func(ctx context.Context) (err error) {
		w, err = q.Consumer(ctx, nil)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	var tr broker.Transactor
	for _, call := range []struct {
		name string
		do   func(ctx context.Context) error
		acls []*kadm.ACLBuilder // what it takes
	}{
		{"read", func(ctx context.Context) error {
			for _, err := range s.Read(ctx, broker.Range{}) {
				if err != nil {
					return err
				}
			}
			return nil
		}, []*kadm.ACLBuilder{onTopic(s.Name(), kadm.OpRead)}},
		{"lag", func(ctx context.Context) error {
			_, err := s.Lag(ctx, group)
			return err
		}, []*kadm.ACLBuilder{kadm.NewACLs().Groups(group).Operations(kadm.OpDescribe)}},
		{"receive and commit", func(ctx context.Context) error {
			rs, err := m.Receive(ctx, 3)
			if err != nil {
				return err
			}
			return m.Commit(ctx, rs...)
		}, []*kadm.ACLBuilder{onGroup(group)}},
		{"publish", func(ctx context.Context) error {
			_, err := s.Publish(ctx, broker.Record{Value: []byte("x")})
			return err
		}, []*kadm.ACLBuilder{onTopic(s.Name(), kadm.OpWrite)}},
		{"publish to a queue", func(ctx context.Context) error {
			_, err := q.Publish(ctx, broker.Message{Body: []byte("x")})
			return err
		}, []*kadm.ACLBuilder{onTopic(q.Name(), kadm.OpWrite)}},
		{"receive from a queue", func(ctx context.Context) error {
			if _, err := work.Publish(ctx, broker.Message{Body: []byte("x")}); err != nil { // root's
				return err
			}
			ds, err := w.Receive(ctx, 1)
			return errors.Join(err, broker.AckAll(ctx, ds...))
		}, []*kadm.ACLBuilder{onGroup("queue-" + q.Name()), onTopic(q.Name(), kadm.OpRead), onTopic(q.Name()+".retry", kadm.OpRead)}},
		{"open a transactor", func(ctx context.Context) (err error) {
			if tr == nil {
				tr, err = b.Transactor(ctx, id)
			}
			return err
		}, []*kadm.ACLBuilder{onID(id)}},
		{"grow", func(ctx context.Context) error {
			return b.DeclareStream(ctx, s.Name(), broker.StreamConfig{Partitions: 2})
		}, []*kadm.ACLBuilder{kadm.NewACLs().Topics(s.Name()).Operations(kadm.OpCreate, kadm.OpAlter)}},
	} {
		refused(t, call.name, atOnce(t, call.name, call.do))
		refused(t, call.name+" again", atOnce(t, call.name+" again", call.do))
		for i, acl := range call.acls {
			c.allow(t, u, acl)
			if i < len(call.acls)-1 { // what that part allows may still come before the rest is refused
				var err error
				eventually(t, call.name+" with a part of the rights is refused", func() bool {
					err = call.do(testContext(t))
					return err != nil
				})
				refused(t, call.name+" with a part of the rights", err)
			}
		}
		eventually(t, call.name+" works as it is allowed", func() bool {
			err := call.do(testContext(t))
			if err != nil && !errors.Is(err, broker.ErrUnauthorized) {
				t.Fatalf("%s when it is allowed: %v", call.name, err)
			}
			return err == nil
		})
	}
}

// Rights are taken from a user at work, and given back: each call tells, and
// the same handles go on.
func rightsWithdrawn(t *testing.T, c *secured) {
	ctx := testContext(t)
	root := open(t, c.options(t, c.root, "plain"))
	stream := declare(t, root, broker.StreamConfig{Partitions: 1})
	work := queue(t, root, broker.QueueConfig{})
	enqueue(t, work, 2)
	u, group, id := c.newUser(t), name(t), name(t)
	read, write := onTopic(stream.Name(), kadm.OpRead), onTopic(stream.Name(), kadm.OpWrite)
	take1, share := onTopic(work.Name(), kadm.OpRead), onGroup("queue-"+work.Name())
	c.allow(t, u, read, write, onGroup(group), onTopic(stream.Name(), kadm.OpDescribe),
		take1, share, onTopic(work.Name(), kadm.OpDescribe), onTopic(work.Name()+".retry", kadm.OpRead), onRegistry(),
		onID(id))
	b, _ := c.as(t, u)
	s, err := b.Stream(ctx, stream.Name(), nil)
	if err != nil {
		t.Fatal(err)
	}
	q, err := b.Queue(ctx, work.Name(), nil)
	if err != nil {
		t.Fatal(err)
	}
	publish(t, s, 2)
	m := member(t, s, group, nil)
	rs := receive(t, m, 2)
	if err := m.Commit(ctx, rs[0]); err != nil {
		t.Fatal(err)
	}
	tr := transactor(t, b, id)
	w := consumer(t, q)
	d := take(t, w, 1)[0]

	for _, withdrawn := range []struct {
		name string
		acl  *kadm.ACLBuilder
		do   func(ctx context.Context) error
	}{
		{"publish", write, func(ctx context.Context) error {
			_, err := s.Publish(ctx, broker.Record{Value: []byte("x")})
			return err
		}},
		{"publish in a transaction", write, func(ctx context.Context) error { return transact(ctx, tr, s) }},
		{"begin a transaction", onID(id), func(ctx context.Context) error { return transact(ctx, tr, s) }},
		{"commit", onGroup(group), func(ctx context.Context) error { return m.Commit(ctx, rs[1]) }},
		{"receive", read, func(ctx context.Context) error {
			if _, err := stream.Publish(ctx, broker.Record{Value: []byte("x")}); err != nil { // root's
				return err
			}
			_, err := m.Receive(ctx, 1000)
			return err
		}},
		{"acknowledge", take1, d.Ack},
		{"receive from the queue", share, func(ctx context.Context) error {
			if _, err := work.Publish(ctx, broker.Message{Body: []byte("x")}); err != nil {
				return err
			}
			ds, err := w.Receive(ctx, 1)
			return errors.Join(err, broker.AckAll(ctx, ds...))
		}},
	} {
		c.forbid(t, u, withdrawn.acl)
		eventually(t, withdrawn.name+" is refused", func() bool { return withdrawn.do(testContext(t)) != nil })
		refused(t, withdrawn.name, atOnce(t, withdrawn.name, withdrawn.do))
		c.allow(t, u, withdrawn.acl)
		eventually(t, withdrawn.name+" works again", func() bool {
			err := withdrawn.do(testContext(t))
			if err != nil && !errors.Is(err, broker.ErrUnauthorized) {
				t.Fatalf("%s when it is allowed again: %v", withdrawn.name, err)
			}
			return err == nil
		})
	}
}

// Who waits for records or messages as the right to them goes is told, and
// goes on once it is back.
func waitersTold(t *testing.T, c *secured) {
	for _, tt := range []struct {
		name       string
		open       func(t *testing.T, c *secured, u user, o *kafka.Options) waiter
		serverSide bool
	}{
		{"classic group", waitInGroup, false},
		{"KIP-848 group", waitInGroup, true},
		{"queue", waitForWork, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			u, n := c.newUser(t), &traffic{since: time.Now()}
			o := c.options(t, u, "scram-sha-256")
			o.HeartbeatInterval, o.ServerSideGroups = 200*time.Millisecond, tt.serverSide
			o.Client = []kgo.Opt{kgo.WithHooks(n)}
			w := tt.open(t, c, u, o)
			if err := errors.Join(w.send(testContext(t)), w.receive(testContext(t))); err != nil {
				t.Fatal(err)
			}
			told := make(chan error, 1)
			go func() { told <- w.receive(testContext(t)) }()
			c.forbid(t, u, w.right)
			refused(t, "receive", <-told)
			c.allow(t, u, w.right)
			if err := w.send(testContext(t)); err != nil {
				t.Fatal(err)
			}
			eventually(t, "receive works again", func() bool {
				err := w.receive(testContext(t))
				if err != nil && !errors.Is(err, broker.ErrUnauthorized) {
					t.Fatalf("receive when it is allowed again: %v", err)
				}
				return err == nil
			})
			n.check(t)
		})
	}
}

// A waiter receives what is sent, and needs a right for it.
type waiter struct {
	right         *kadm.ACLBuilder
	receive, send func(ctx context.Context) error
}

func waitInGroup(t *testing.T, c *secured, u user, o *kafka.Options) waiter {
	stream := declare(t, open(t, c.options(t, c.root, "plain")), broker.StreamConfig{Partitions: 1})
	right := onGroup(stream.Name())
	c.allow(t, u, right, onTopic(stream.Name(), kadm.OpRead))
	s, err := open(t, o).Stream(testContext(t), stream.Name(), nil)
	if err != nil {
		t.Fatal(err)
	}
	m := member(t, s, s.Name(), nil)
	return waiter{
		right,
		func(ctx context.Context) error {
			_, err := m.Receive(ctx, 1000)
			return err
		},
		func(ctx context.Context) error {
			_, err := stream.Publish(ctx, broker.Record{Value: []byte("x")})
			return err
		},
	}
}

func waitForWork(t *testing.T, c *secured, u user, o *kafka.Options) waiter {
	work := queue(t, open(t, c.options(t, c.root, "plain")), broker.QueueConfig{})
	right := onGroup("queue-" + work.Name())
	c.allow(t, u, right, onTopic(work.Name(), kadm.OpRead), onTopic(work.Name()+".retry", kadm.OpRead), onRegistry())
	q, err := open(t, o).Queue(testContext(t), work.Name(), nil)
	if err != nil {
		t.Fatal(err)
	}
	w := consumer(t, q)
	return waiter{
		right,
		func(ctx context.Context) error {
			ds, err := w.Receive(ctx, 1000)
			return errors.Join(err, broker.AckAll(ctx, ds...))
		},
		func(ctx context.Context) error {
			_, err := work.Publish(ctx, broker.Message{Body: []byte("x")})
			return err
		},
	}
}

// Whoever consumes a queue has to know its dead-letter queue, and to write to
// it: otherwise nothing is removed, and the program is told.
func deadLettersNeedRights(t *testing.T, c *secured) {
	ctx := testContext(t)
	root := open(t, c.options(t, c.root, "plain"))
	dead := queue(t, root, broker.QueueConfig{})
	work := name(t)
	if err := root.DeclareQueue(ctx, work, broker.QueueConfig{MaxAttempts: 1, DeadLetter: dead.Name()}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := root.DeleteQueue(context.WithoutCancel(ctx), work); err != nil && !errors.Is(err, broker.ErrClosed) {
			t.Error(err)
		}
	})
	u := c.newUser(t)
	c.allow(t, u, onGroup("queue-"+work), onTopic(work, kadm.OpRead, kadm.OpWrite), onTopic(work+".retry", kadm.OpRead), onTopic(dead.Name(), kadm.OpDescribe))
	b, _ := c.as(t, u)
	q, err := b.Queue(ctx, work, nil)
	if err != nil {
		t.Fatal(err)
	}
	enqueue(t, q, 2)
	_, err = q.Consumer(ctx, nil)
	refused(t, "consume without knowing of the dead-letter queue", err)

	c.allow(t, u, onRegistry())
	var w broker.Consumer
	eventually(t, "the queue is known, opened anew", func() bool {
		q, err := b.Queue(ctx, work, nil)
		if err != nil {
			t.Fatal(err)
		}
		w, err = q.Consumer(ctx, &broker.ConsumerOptions{Lease: time.Second})
		if err != nil && !errors.Is(err, broker.ErrUnauthorized) {
			t.Fatal(err)
		}
		return err == nil
	})
	ds := take(t, w, 2)
	refused(t, "reject", ds[0].Reject(ctx, "bad"))
	tried := func() error {
		short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		defer cancel()
		got, err := w.Receive(short, 1)
		if len(got) > 0 {
			t.Fatalf("%q is delivered beyond its attempts", got[0].Body)
		}
		return err
	}
	eventually(t, "the lease of what cannot be dead-lettered ends, and Receive tells why it does not go", func() bool {
		return errors.Is(tried(), broker.ErrUnauthorized)
	})
	c.allow(t, u, onTopic(dead.Name(), kadm.OpWrite))
	eventually(t, "both are dead-lettered", func() bool {
		if err := tried(); !errors.Is(err, broker.ErrUnauthorized) && !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		stats, err := root.QueueStats(ctx, dead.Name())
		if err != nil {
			t.Fatal(err)
		}
		return stats.Ready >= 2
	})
	for _, d := range take(t, consumer(t, dead), 2) {
		if why, ok := broker.DeadLetterOf(&d.Message); !ok || why.Queue != work {
			t.Errorf("%q is dead-lettered from %+v", d.Body, why)
		}
		if err := d.Ack(ctx); err != nil {
			t.Error(err)
		}
	}
}

// A user who may not know how long the broker's locks last learns it as he
// receives, and keeps what he holds.
func lockNotTold(t *testing.T, c *secured) {
	root := open(t, c.options(t, c.root, "plain"))
	work := queue(t, root, broker.QueueConfig{Lease: 3 * time.Second})
	enqueue(t, work, 1)
	u := c.newUser(t)
	c.allow(t, u, onGroup("queue-"+work.Name()), onTopic(work.Name(), kadm.OpRead), onTopic(work.Name()+".retry", kadm.OpRead), onRegistry())
	b, _ := c.as(t, u)
	q, err := b.Queue(testContext(t), work.Name(), nil)
	if err != nil {
		t.Fatal(err)
	}
	d := take(t, consumer(t, q), 1)[0]
	nothing(t, consumer(t, work), 4500*time.Millisecond)
	if err := d.Ack(testContext(t)); err != nil {
		t.Error(err)
	}
}

// A user who may read and not write consumes.
func rightToRead(t *testing.T, c *secured) {
	root := open(t, c.options(t, c.root, "plain"))
	stream := declare(t, root, broker.StreamConfig{Partitions: 1})
	publish(t, stream, 3)
	u, group := c.newUser(t), name(t)
	c.allow(t, u, onTopic(stream.Name(), kadm.OpRead), onGroup(group))
	b, _ := c.as(t, u)
	s, err := b.Stream(testContext(t), stream.Name(), nil)
	if err != nil {
		t.Fatal(err)
	}
	m := member(t, s, group, nil)
	if err := m.Commit(testContext(t), receive(t, m, 3)...); err != nil {
		t.Error(err)
	}
	lag, err := s.Lag(testContext(t), group)
	if err != nil || lag[0].Lag != 0 {
		t.Errorf("lag %v, %v", lag, err)
	}
	_, err = s.Publish(testContext(t), broker.Record{Value: []byte("x")})
	refused(t, "publish", err)
	if got := values(t, stream, false); len(got) != 3 {
		t.Errorf("the stream has %d records, want 3", len(got))
	}
}
