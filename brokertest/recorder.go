package brokertest

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/queuestream/broker"
)

// A Recorder is a Settler that remembers every verdict it carried out. The
// zero value accepts all; its methods may be called from any goroutine.
type Recorder struct {
	// Fail, unless nil, is asked before each verdict; an error refuses it.
	Fail func(d *broker.Delivery, v broker.Verdict) error

	mu       sync.Mutex
	outcomes []broker.Outcome
	changed  chan struct{}
}

// SettleOne implements [broker.Settler].
func (r *Recorder) SettleOne(ctx context.Context, d *broker.Delivery, v broker.Verdict) error {
	batch := []broker.Outcome{{Delivery: d, Verdict: v}}
	r.Settle(ctx, batch)
	return batch[0].Err
}

// Settle implements [broker.Settler].
func (r *Recorder) Settle(ctx context.Context, batch []broker.Outcome) {
	for i := range batch {
		o := &batch[i]
		if o.Err = broker.ContextError(ctx); o.Err == nil && r.Fail != nil {
			o.Err = r.Fail(o.Delivery, o.Verdict)
		}
		if o.Err == nil && o.Verdict.Kind == broker.VerdictExtend && o.Verdict.Lease > 0 {
			o.Delivery.SetLease(time.Now().Add(o.Verdict.Lease))
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.outcomes = append(r.outcomes, batch...)
	if r.changed != nil {
		close(r.changed)
		r.changed = nil
	}
}

// Outcomes returns what was asked for so far, in order, failures included.
func (r *Recorder) Outcomes() []broker.Outcome {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.outcomes)
}

// Settled returns the verdict that settled the delivery of message id, and
// whether there is one. Of several deliveries of the message it is the last.
func (r *Recorder) Settled(id string) (broker.Verdict, bool) {
	for _, o := range slices.Backward(r.Outcomes()) {
		if o.Delivery.ID == id && o.Err == nil && o.Verdict.Kind != broker.VerdictExtend {
			return o.Verdict, true
		}
	}
	return broker.Verdict{}, false
}

// Wait blocks until cond is true of the outcomes, asking again after each
// change, or until ctx ends.
func (r *Recorder) Wait(ctx context.Context, cond func([]broker.Outcome) bool) error {
	for {
		r.mu.Lock()
		outcomes := slices.Clone(r.outcomes)
		if r.changed == nil {
			r.changed = make(chan struct{})
		}
		changed := r.changed
		r.mu.Unlock()
		if cond(outcomes) { // which may ask r
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return broker.ContextError(ctx)
		}
	}
}

// NewDelivery returns a first delivery of m, settled by s (nil: a Recorder of
// its own). A missing ID is set.
func NewDelivery(m broker.Message, s broker.Settler) *broker.Delivery {
	if m.ID == "" {
		m.ID = broker.NewID()
	}
	if s == nil {
		s = &Recorder{}
	}
	d := &broker.Delivery{Message: m, Attempt: 1, Time: time.Now()}
	d.Bind(s, 0, 0)
	return d
}

// NewRecord returns a record as read from partition and offset of a stream by
// a member of group; an empty group: read without one.
func NewRecord(r broker.Record, stream, group string, partition int32, offset int64) *broker.Record {
	r.Partition = partition
	if r.Time().IsZero() {
		r.SetTime(time.Now())
	}
	var a *broker.Assignment
	if group != "" {
		a = &broker.Assignment{Stream: stream, Group: group, Partition: partition}
	}
	r.Bind(broker.NewOffset(offset), a)
	return &r
}
