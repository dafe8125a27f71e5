package memory

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/queuestream/broker"
)

// name returns a valid name of the profile.
func profileName(p Profile, base string) string { return base + profiles[p].suffix }

// TestProfilesRefuse checks every capability of a queue in both directions.
func TestProfilesRefuse(t *testing.T) {
	for p, r := range profiles {
		t.Run("profile="+string(p), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx := t.Context()
				b := open(t, &Options{Profile: p})
				q := declare(t, b, profileName(p, "q"), broker.QueueConfig{})
				caps := q.Capabilities()
				for _, c := range []struct {
					name    string
					claimed bool
					m       broker.Message
				}{
					{"Groups", caps.Groups, broker.Message{GroupID: "g"}},
					{"Dedup", caps.Dedup, broker.Message{DedupID: "d"}},
					{"Delay", caps.Delay, broker.Message{Delay: time.Hour}},
					{"TTL", caps.TTL, broker.Message{TTL: time.Hour}},
					{"MaxPriority", caps.MaxPriority > 0, broker.Message{Priority: 1}},
					{"Headers", caps.Headers, broker.Message{Headers: make(broker.Headers, 0).With("k", "v")}},
				} {
					_, err := q.Publish(ctx, c.m)
					if c.claimed && err != nil || !c.claimed && !errors.Is(err, broker.ErrUnsupported) {
						t.Errorf("%s %v: %v", c.name, c.claimed, err)
					}
				}
				check(t, b.Purge(ctx, q.Name()))
				if n := caps.MaxBytes; n > 0 {
					_, err := q.Publish(ctx, broker.Message{Body: make([]byte, n+1)})
					wantErr(t, err, broker.ErrTooLarge)
					send(t, q, broker.Message{Body: make([]byte, n)})
					check(t, b.Purge(ctx, q.Name()))
				}
				_, err := q.Consumer(ctx, &broker.ConsumerOptions{Lease: time.Second})
				if caps.Lease && err != nil || !caps.Lease && !errors.Is(err, broker.ErrUnsupported) {
					t.Errorf("Lease %v: %v", caps.Lease, err)
				}
				send(t, q, body("x"))
				c := consume(t, q, nil)
				d := one(t, c, "x")
				for _, v := range []struct {
					name    string
					claimed bool
					v       broker.Verdict
				}{
					{"Lease", caps.Lease, broker.Verdict{Kind: broker.VerdictExtend, Lease: time.Second}},
					{"MaxLease", caps.Lease && caps.MaxLease == 0, broker.Verdict{Kind: broker.VerdictExtend, Lease: 13 * time.Hour}},
					{"Reject", caps.Reject, broker.Verdict{Kind: broker.VerdictReject}},
					{"Snooze", caps.Snooze, broker.Verdict{Kind: broker.VerdictNack, Snooze: true}},
				} {
					err := c.SettleOne(ctx, d, v.v)
					if v.claimed && err != nil || !v.claimed && !errors.Is(err, broker.ErrUnsupported) {
						t.Errorf("%s %v: %v", v.name, v.claimed, err)
					}
				}
				for _, cfg := range []struct {
					name    string
					claimed bool
					cfg     broker.QueueConfig
				}{
					{"Ordered", r.settings.Ordered, broker.QueueConfig{Ordered: true}},
					{"ContentDedup", r.settings.ContentDedup, broker.QueueConfig{ContentDedup: true}},
					{"Delay", r.settings.Delay > 0, broker.QueueConfig{Delay: time.Minute}},
					{"MaxPriority", r.settings.MaxPriority > 0, broker.QueueConfig{MaxPriority: 1}},
					{"MaxLength", r.settings.MaxLength > 0, broker.QueueConfig{MaxLength: 1}},
				} {
					err := b.DeclareQueue(ctx, profileName(p, "q-"+cfg.name), cfg.cfg)
					if cfg.claimed && err != nil || !cfg.claimed && !errors.Is(err, broker.ErrUnsupported) {
						t.Errorf("QueueConfig.%s %v: %v", cfg.name, cfg.claimed, err)
					}
				}
				err = b.DeclareStream(ctx, profileName(p, "s"), broker.StreamConfig{})
				_, err2 := b.Stream(ctx, profileName(p, "s"), nil)
				if r.streams != (err == nil) || r.streams != (err2 == nil) || !r.streams && !errors.Is(err2, broker.ErrUnsupported) {
					t.Errorf("streams %v: %v, %v", r.streams, err, err2)
				}
				_, err = b.Transactor(ctx, "t")
				if tx := r.stream.Transactions; tx != (err == nil) || !tx && !errors.Is(err, broker.ErrUnsupported) {
					t.Errorf("transactions %v: %v", tx, err)
				}
				for _, k := range allKinds {
					err := b.DeclareExchange(ctx, k.String(), k)
					if has := r.exchangeKind(k) == nil; has != (err == nil) || !has && !errors.Is(err, broker.ErrUnsupported) {
						t.Errorf("%v exchange: %v", k, err)
					}
				}
			})
		})
	}
}

func TestProfileNames(t *testing.T) {
	for _, c := range []struct {
		p    Profile
		name string
		ok   bool
	}{
		{Default, "any thing/is.fine", true}, {Default, "", false}, {Default, "a\nb", false},
		{SQSStandard, "orders-1_x", true}, {SQSStandard, "orders.fifo", false}, {SQSStandard, strings.Repeat("a", 81), false},
		{SQSFIFO, "orders.fifo", true}, {SQSFIFO, "orders", false}, {SQSFIFO, ".fifo", false}, {SQSFIFO, "a.b.fifo", false},
		{RabbitMQQuorum, "any thing", true}, {RabbitMQQuorum, "amq.x", false},
		{KafkaTopic, "a.b_c-1", true}, {KafkaTopic, "..", false}, {KafkaTopic, "a b", false}, {KafkaTopic, strings.Repeat("a", 250), false},
	} {
		b := open(t, &Options{Profile: c.p})
		err := b.DeclareQueue(t.Context(), c.name, broker.QueueConfig{})
		if c.ok && err != nil || !c.ok && !errors.Is(err, broker.ErrInvalid) {
			t.Errorf("%s %q: %v", c.p, c.name, err)
		}
	}
}

func TestSQSReorders(t *testing.T) {
	order := func(seed uint64) string {
		b := open(t, &Options{Profile: SQSStandard, Seed: seed})
		q := declare(t, b, "q", broker.QueueConfig{})
		for i := range 20 {
			send(t, q, body(fmt.Sprint(i)))
		}
		c := consume(t, q, nil)
		var got []string
		for len(got) < 20 {
			ds, err := c.Receive(t.Context(), 1)
			check(t, err)
			got = append(got, string(ds[0].Body))
			check(t, ds[0].Ack(t.Context()))
		}
		return strings.Join(got, " ")
	}
	a, b := order(1), order(2)
	if a == b || a != order(1) || strings.HasPrefix(a, "0 1 2 3 4 5 6 7 8 9") {
		t.Fatalf("%s\n%s", a, b)
	}
}

func TestSQSLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		b := open(t, &Options{Profile: SQSStandard})
		q := declare(t, b, "q", broker.QueueConfig{})
		b.srv.rules = &rules{}
		*b.srv.rules = *profiles[SQSStandard]
		b.srv.rules.maxInFlight = 3
		for range 5 {
			send(t, q, body("x"))
		}
		c := consume(t, q, nil)
		ds, err := c.Receive(ctx, 10)
		check(t, err)
		if len(ds) != 3 {
			t.Fatalf("%d in flight", len(ds))
		}
		none(t, c, time.Second)
		got := make(chan int)
		go func() {
			ds, err := c.Receive(ctx, 10)
			if err != nil {
				t.Error(err)
			}
			got <- len(ds)
		}()
		synctest.Wait()
		check(t, ds[0].Ack(ctx))
		if n := <-got; n != 1 {
			t.Fatal(n)
		}
		// Retention.
		<-time.After(4*24*time.Hour + time.Minute)
		st, err := b.QueueStats(ctx, "q")
		check(t, err)
		if st.Ready != 0 {
			t.Fatalf("%+v", st)
		}
		_, err = b.Queue(ctx, "q", &broker.QueueOptions{DeadLetter: "q", MaxAttempts: 1001})
		wantErr(t, err, broker.ErrUnsupported)
	})
}

func TestDedup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		b := open(t, nil)
		for _, c := range []struct {
			cfg      broker.QueueConfig
			a, b     broker.Message
			want     bool
			distinct bool
		}{
			{broker.QueueConfig{Dedup: true}, broker.Message{DedupID: "x", Body: []byte("1")}, broker.Message{DedupID: "x", Body: []byte("2")}, true, false},
			{broker.QueueConfig{Dedup: true}, broker.Message{DedupID: "x"}, broker.Message{DedupID: "y"}, false, false},
			{broker.QueueConfig{Dedup: true}, body("x"), body("x"), false, false},
			{broker.QueueConfig{Dedup: true}, broker.Message{DedupID: "x", GroupID: "a"}, broker.Message{DedupID: "x", GroupID: "b"}, true, false},
			{broker.QueueConfig{Dedup: true, DedupPerGroup: true}, broker.Message{DedupID: "x", GroupID: "a"}, broker.Message{DedupID: "x", GroupID: "b"}, false, false},
			{broker.QueueConfig{ContentDedup: true}, body("x"), body("x"), true, false},
			{broker.QueueConfig{ContentDedup: true}, body("x"), body("y"), false, false},
			{broker.QueueConfig{ContentDedup: true, Dedup: true}, body("x"), broker.Message{Body: []byte("x"), DedupID: "own"}, false, false},
		} {
			check(t, b.DeleteQueue(ctx, "q"))
			q := declare(t, b, "q", c.cfg)
			send(t, q, c.a)
			con := consume(t, q, nil)
			check(t, one(t, con, string(c.a.Body)).Ack(ctx)) // also after it is gone
			<-time.After(dedupTime - 1)
			r, err := q.Publish(ctx, c.b)
			check(t, err)
			if r.Duplicate != c.want {
				t.Errorf("%+v, %+v, %+v: duplicate %v", c.cfg, c.a, c.b, r.Duplicate)
			}
			<-time.After(1)
			r, err = q.Publish(ctx, c.a)
			check(t, err)
			if r.Duplicate && c.want {
				t.Errorf("%+v: duplicate after the window", c.cfg)
			}
		}
	})
}
