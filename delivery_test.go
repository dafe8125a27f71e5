package broker_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/brokertest"
)

func TestSizes(t *testing.T) {
	if n := unsafe.Sizeof(broker.Delivery{}); n > 256 {
		t.Errorf("a Delivery has %d bytes, at most 256", n)
	}
	if n := unsafe.Sizeof(broker.Record{}); n > 112 {
		t.Errorf("a Record has %d bytes, at most 112", n)
	}
}

func TestDeliveryFirstVerdictWins(t *testing.T) {
	ctx := t.Context()
	d := delivery("1", "")
	if err := d.Ack(ctx); err != nil || !d.Settled() {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"ack": d.Ack(ctx), "nack": d.Nack(ctx, 0), "reject": d.Reject(ctx, "x"), "extend": d.Extend(ctx, 0),
	} {
		e, ok := errors.AsType[*broker.Error](err)
		if !ok || !errors.Is(err, broker.ErrSettled) || e.Op != name {
			t.Errorf("%s after ack: %v", name, err)
		}
	}
	if d.Lose() {
		t.Error("a settled delivery was lost")
	}
}

func TestDeliveryFailureLeavesItOpen(t *testing.T) {
	fail := true
	r := &brokertest.Recorder{Fail: func(*broker.Delivery, broker.Verdict) error {
		if fail {
			return broker.ErrUnavailable
		}
		return nil
	}}
	d := brokertest.NewDelivery(broker.Message{}, r)
	if err := d.Ack(t.Context()); !errors.Is(err, broker.ErrUnavailable) || d.Settled() {
		t.Fatalf("%v, settled %v", err, d.Settled())
	}
	fail = false
	if err := d.Nack(t.Context(), time.Second); err != nil {
		t.Fatal(err)
	}
}

func TestDeliveryLeases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := delivery("1", "")
		if !d.LeaseExpires().IsZero() {
			t.Error("a lease from nowhere")
		}
		d.SetLease(time.Now().Add(time.Second))
		if err := d.Extend(t.Context(), time.Minute); err != nil {
			t.Fatal(err)
		}
		if left := time.Until(d.LeaseExpires()); left != time.Minute {
			t.Errorf("%v left", left)
		}
		spend(2 * time.Minute)
		for _, err := range []error{d.Ack(t.Context()), d.Extend(t.Context(), 0)} {
			if !errors.Is(err, broker.ErrLeaseLost) {
				t.Errorf("after the lease: %v", err)
			}
		}
		if !d.Settled() {
			t.Error("a lost delivery counts as settled")
		}
		d.SetLease(time.Time{})
		if !d.LeaseExpires().IsZero() {
			t.Error("the lease is still there")
		}
	})
	for _, sentinel := range []error{broker.ErrLeaseLost, broker.ErrSettled} {
		d := brokertest.NewDelivery(broker.Message{}, &brokertest.Recorder{Fail: func(*broker.Delivery, broker.Verdict) error { return sentinel }})
		if err := d.Extend(t.Context(), 0); !errors.Is(err, sentinel) {
			t.Error(err)
		}
		if err := d.Ack(t.Context()); !errors.Is(err, sentinel) || !d.Settled() {
			t.Error(err)
		}
	}
}

func TestDeliveryBadVerdicts(t *testing.T) {
	d := delivery("1", "")
	for _, err := range []error{d.Nack(t.Context(), -1), d.Extend(t.Context(), -1)} {
		if !errors.Is(err, broker.ErrInvalid) {
			t.Error(err)
		}
	}
	var loose broker.Delivery
	if err := loose.Ack(t.Context()); !errors.Is(err, broker.ErrInvalid) || loose.Settled() {
		t.Errorf("a delivery from nowhere: %v", err)
	}
	if err := broker.AckAll(t.Context(), &loose, d); !errors.Is(broker.ErrorAt(err, 0), broker.ErrInvalid) || broker.ErrorAt(err, 1) != nil {
		t.Errorf("AckAll: %v", err)
	}
	if err := broker.AckAll(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestDeliveryRace: of many verdicts at once exactly one settles.
func TestDeliveryRace(t *testing.T) {
	for range 200 {
		var r brokertest.Recorder
		d := brokertest.NewDelivery(broker.Message{}, &r)
		var won atomic.Int64
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				var err error
				switch i % 4 {
				case 0:
					err = d.Ack(t.Context())
				case 1:
					err = d.Nack(t.Context(), 0)
				case 2:
					err = broker.AckAll(t.Context(), d)
				case 3:
					_ = d.Extend(t.Context(), time.Second)
					return
				}
				switch {
				case err == nil:
					won.Add(1)
				case !errors.Is(err, broker.ErrSettled):
					t.Error(err)
				}
			})
		}
		wg.Wait()
		verdicts := 0
		for _, o := range r.Outcomes() {
			if o.Verdict.Kind != broker.VerdictExtend {
				verdicts++
			}
		}
		if won.Load() != 1 || verdicts != 1 {
			t.Fatalf("%d won, %d carried out", won.Load(), verdicts)
		}
	}
}

// TestDeliveryLoseRace: a delivery is lost or settled, never both.
func TestDeliveryLoseRace(t *testing.T) {
	for range 200 {
		d := delivery("1", "")
		var lost atomic.Bool
		var wg sync.WaitGroup
		var err error
		wg.Go(func() { lost.Store(d.Lose()) })
		wg.Go(func() { err = d.Ack(t.Context()) })
		wg.Wait()
		if lost.Load() != errors.Is(err, broker.ErrLeaseLost) {
			t.Fatalf("lost %v, ack %v", lost.Load(), err)
		}
	}
}

type counting struct {
	broker.Settler
	n *int
}

func (c counting) SettleOne(ctx context.Context, d *broker.Delivery, v broker.Verdict) error {
	*c.n++
	return c.Settler.SettleOne(ctx, d, v)
}

func TestDeliveryWrapAndBind(t *testing.T) {
	n := 0
	d := delivery("1", "")
	d.Wrap(func(s broker.Settler) broker.Settler { return counting{s, &n} })
	if err := d.Ack(t.Context()); err != nil || n != 1 {
		t.Errorf("%v, %d calls", err, n)
	}
	d.Bind(&brokertest.Recorder{}, 7, 8)
	if d.Token() != 7 || d.Generation() != 8 {
		t.Error(d.Token(), d.Generation())
	}
}

func TestSettleAllGroupsBySettler(t *testing.T) {
	var a, b brokertest.Recorder
	ds := []*broker.Delivery{
		brokertest.NewDelivery(broker.Message{}, &a), brokertest.NewDelivery(broker.Message{}, &a),
		brokertest.NewDelivery(broker.Message{}, &b), brokertest.NewDelivery(broker.Message{}, &a),
	}
	if err := ds[1].Nack(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	err := broker.AckAll(t.Context(), append(ds, ds[0])...)
	for i, want := range []error{nil, broker.ErrSettled, nil, nil, broker.ErrSettled} {
		if !errors.Is(broker.ErrorAt(err, i), want) {
			t.Errorf("%d: %v, want %v", i, broker.ErrorAt(err, i), want)
		}
	}
	if len(a.Outcomes()) != 3 || len(b.Outcomes()) != 1 {
		t.Errorf("%d and %d outcomes", len(a.Outcomes()), len(b.Outcomes()))
	}
}

func TestVerdictKindNames(t *testing.T) {
	for k, want := range map[broker.VerdictKind]string{
		broker.VerdictAck: "ack", broker.VerdictNack: "nack", broker.VerdictReject: "reject",
		broker.VerdictExtend: "extend", 99: "verdict",
	} {
		if k.String() != want {
			t.Errorf("%d: %s", k, k)
		}
	}
}
