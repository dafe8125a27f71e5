package conformance

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/queuestream/broker"
)

var queueInput = map[int]QueueCase{
	81: {Run: oversize},
	82: {Run: badName},
	83: {Run: unsupportedRefused},
}

func oversize(c *C, q broker.Queue) {
	if q.Capabilities().MaxBytes == 0 { // not known, or there is none: declare one
		limited, err := c.declareQueue(c.broker, func(_ *C, cfg *broker.QueueConfig) { cfg.MaxBytes = 64 << 10 })
		if errors.Is(err, broker.ErrUnsupported) {
			c.Skip("the limit is unknown: QueueCapabilities.MaxBytes is 0, and so is QueueConfig.MaxBytes (%v)", err)
		}
		c.Must(err, "declare a queue with MaxBytes")
		q = limited
	}
	caps := q.Capabilities()
	limit := caps.MaxBytes
	if limit > 64<<20 {
		c.Skip("the limit is %d bytes, too much for a test", limit)
	}
	c.Note("limit", "%d bytes", limit)
	k := c.Consumer(q, nil)
	fits := bytes.Repeat([]byte("x"), limit)
	c.Publish(q, broker.Message{Body: fits})
	d := c.ReceiveOne(k)
	if !bytes.Equal(d.Body, fits) {
		c.Errorf("a body of the largest size, %d bytes, came back as %d bytes", limit, len(d.Body))
	}
	c.Ack(d)
	tooLarge := []broker.Message{
		{Body: append(bytes.Clone(fits), 'x')},
		{Body: []byte(strings.Repeat("é", limit/2+1))}, // fewer characters than the limit has bytes
	}
	if caps.Headers {
		tooLarge = append(tooLarge, broker.Message{Body: fits, Headers: broker.Headers{{Key: "k", Value: "v"}}})
	}
	for i, m := range tooLarge {
		_, err := q.Publish(c.ctx, m)
		c.WantErr(err, broker.ErrTooLarge, "publish oversize message %d: %d bytes, the limit is %d", i, m.Size(), limit)
		rs, err := q.PublishBatch(c.ctx, []broker.Message{{Body: []byte("before")}, m, {Body: []byte("after")}})
		if len(rs) != 3 || broker.ErrorAt(err, 0) != nil || !errors.Is(broker.ErrorAt(err, 1), broker.ErrTooLarge) || broker.ErrorAt(err, 2) != nil {
			c.Errorf("publish it between two small ones: %d receipts, %v", len(rs), err)
		}
		c.expectBodies(k, "the neighbours of an oversize message", "before", "after")
	}
	// What fits one by one must fit as a batch.
	var ms []broker.Message
	var want []string
	for i := range 5 {
		body := bytes.Repeat([]byte{byte('a' + i)}, limit*2/3)
		ms, want = append(ms, broker.Message{Body: body}), append(want, string(body))
	}
	c.PublishAll(q, ms...)
	c.expectBodies(k, "a batch that is larger than one message may be", want...)
}

func badName(c *C, q broker.Queue) {
	admin := c.Admin()
	for _, name := range []string{"", strings.Repeat("n", 256), "nul\x00", "line\nfeed"} {
		err := admin.DeclareQueue(c.ctx, name, broker.QueueConfig{})
		c.WantErr(err, broker.ErrInvalid, "declare a queue named %.20q", name)
		if err == nil {
			c.Cleanup(c.deletion(admin, name))
		}
	}
	missing := c.Name("queue")
	c.Prompt("using a queue that does not exist", c.h.Soon, func() {
		ctx, cancel := c.Soon()
		defer cancel()
		m, err := c.broker.Queue(ctx, missing, nil)
		if err == nil {
			c.track("queue", m.Close)
			_, err = m.Publish(ctx, broker.Message{Body: []byte("nowhere")})
			c.WantErr(err, broker.ErrNotFound, "publish to a queue that does not exist")
			var k broker.Consumer
			if k, err = m.Consumer(ctx, nil); err == nil {
				c.track("consumer", k.Close)
				_, err = k.Receive(ctx, 1)
			}
		}
		c.WantErr(err, broker.ErrNotFound, "use a queue that does not exist")
		if e, ok := errors.AsType[*broker.Error](err); ok && !strings.Contains(e.Error(), missing) {
			c.Errorf("the error does not name the queue %q: %v", missing, err)
		}
		if broker.IsTemporary(err) {
			c.Errorf("a missing queue is no temporary error: %v", err)
		}
	})
	if _, err := admin.QueueStats(c.ctx, missing); !errors.Is(err, broker.ErrUnsupported) {
		c.WantErr(err, broker.ErrNotFound, "statistics of a queue that does not exist")
	}
	if err := admin.DeleteQueue(c.ctx, missing); err != nil {
		c.Errorf("delete a queue that does not exist: %v, want nil", err)
	}
	if c.h.OpenBad == nil {
		c.Note("credentials", "none to be wrong")
		return
	}
	c.Prompt("using wrong credentials", c.h.Soon, func() {
		ctx, cancel := c.Soon()
		defer cancel()
		b, err := c.h.OpenBad(ctx)
		if err == nil {
			c.track("broker", b.Close)
			err = b.Ping(ctx)
		}
		c.WantErr(err, broker.ErrUnauthorized, "open with wrong credentials")
		if broker.IsTemporary(err) {
			c.Errorf("wrong credentials are no temporary error: %v", err)
		}
	})
}

func unsupportedRefused(c *C, q broker.Queue) {
	caps := q.Capabilities()
	huge := broker.MaxDuration + 1
	tests := []struct {
		why    string
		m      broker.Message
		is     bool
		target error
	}{
		{"Groups", broker.Message{GroupID: "g"}, !caps.Groups, broker.ErrUnsupported},
		{"Dedup", broker.Message{DedupID: "d"}, !caps.Dedup, broker.ErrUnsupported},
		{"Delay", broker.Message{Delay: time.Second}, !caps.Delay, broker.ErrUnsupported},
		{"MaxDelay", broker.Message{Delay: caps.MaxDelay + time.Second}, caps.Delay && caps.MaxDelay > 0, broker.ErrUnsupported},
		{"TTL", broker.Message{TTL: time.Minute}, !caps.TTL, broker.ErrUnsupported},
		{"MaxPriority", broker.Message{Priority: caps.MaxPriority + 1}, caps.MaxPriority < math.MaxUint8, broker.ErrUnsupported},
		{"Headers", broker.Message{Headers: broker.Headers{{Key: "k", Value: "v"}}}, !caps.Headers, broker.ErrUnsupported},
		{"a negative delay", broker.Message{Delay: -1}, true, broker.ErrInvalid},
		{"a huge delay", broker.Message{Delay: huge}, true, broker.ErrInvalid},
		{"a negative time to live", broker.Message{TTL: -1}, true, broker.ErrInvalid},
		{"a huge time to live", broker.Message{TTL: huge}, true, broker.ErrInvalid},
		{"a negative priority", broker.Message{Priority: -1}, true, broker.ErrInvalid},
		{"a huge priority", broker.Message{Priority: 256}, true, broker.ErrInvalid},
		{"a header without a key", broker.Message{Headers: broker.Headers{{Value: "v"}}}, caps.Headers, broker.ErrInvalid},
	}
	for _, t := range tests {
		if t.is {
			c.refused(q, t.m, t.target)
		}
	}
	c.refusedOptions(q, caps)
	c.refusedVerdicts(q, caps)
	c.refusedConfig()
}

func (c *C) refusedOptions(q broker.Queue, caps broker.QueueCapabilities) {
	for _, t := range []struct {
		opts   broker.ConsumerOptions
		is     bool
		target error
	}{
		{broker.ConsumerOptions{Lease: c.h.Lease}, !caps.Lease, broker.ErrUnsupported},
		{broker.ConsumerOptions{Lease: caps.MaxLease + time.Second}, caps.Lease && caps.MaxLease > 0, broker.ErrUnsupported},
		{broker.ConsumerOptions{Lease: -1}, true, broker.ErrInvalid},
		{broker.ConsumerOptions{Prefetch: -1}, true, broker.ErrInvalid},
	} {
		if !t.is {
			continue
		}
		k, err := q.Consumer(c.ctx, &t.opts)
		c.WantErr(err, t.target, "open a consumer with %+v", t.opts)
		if err == nil {
			c.track("consumer", k.Close)
		}
	}
	got, err := c.broker.Queue(c.ctx, q.Name(), &broker.QueueOptions{MaxAttempts: -1})
	c.WantErr(err, broker.ErrInvalid, "open a queue with MaxAttempts -1")
	if err == nil {
		c.track("queue", got.Close)
	}
}

func (c *C) refusedVerdicts(q broker.Queue, caps broker.QueueCapabilities) {
	k := c.Consumer(q, nil)
	c.Publish(q, broker.Message{Body: []byte("held")})
	d := c.ReceiveOne(k)
	for _, t := range []struct {
		v      broker.Verdict
		is     bool
		target error
	}{
		{broker.Verdict{Kind: broker.VerdictNack, Delay: time.Second}, !caps.NackDelay, broker.ErrUnsupported},
		{broker.Verdict{Kind: broker.VerdictNack, Delay: caps.MaxNackDelay + time.Second}, caps.NackDelay && caps.MaxNackDelay > 0, broker.ErrUnsupported},
		{broker.Verdict{Kind: broker.VerdictNack, Delay: -1}, true, broker.ErrInvalid},
		{broker.Verdict{Kind: broker.VerdictNack, Delay: broker.MaxDuration + 1}, true, broker.ErrInvalid},
		{broker.Verdict{Kind: broker.VerdictNack, Snooze: true}, !caps.Snooze, broker.ErrUnsupported},
		{broker.Verdict{Kind: broker.VerdictReject, Reason: "no"}, !caps.Reject, broker.ErrUnsupported},
		{broker.Verdict{Kind: broker.VerdictExtend, Lease: time.Minute}, !caps.Lease, broker.ErrUnsupported},
		{broker.Verdict{Kind: broker.VerdictExtend, Lease: caps.MaxLease + time.Second}, caps.Lease && caps.MaxLease > 0, broker.ErrUnsupported},
		{broker.Verdict{Kind: broker.VerdictExtend, Lease: -1}, true, broker.ErrInvalid},
		{broker.Verdict{Kind: 99}, true, broker.ErrInvalid},
	} {
		if t.is {
			err := broker.ErrorAt(broker.SettleAll(c.ctx, []broker.Outcome{{Delivery: d, Verdict: t.v}}), 0)
			c.WantErr(err, t.target, "settle with %+v", t.v)
		}
	}
	if err := d.Ack(c.ctx); err != nil {
		c.Errorf("acknowledge after refused verdicts, which settle nothing: %v", err)
	}
	c.quiet(k, "it was acknowledged")
	c.Must(k.Close(), "close the consumer")
}

// refusedConfig declares a queue with one setting at a time: the queue then
// claims what was set, or declaring it is ErrUnsupported.
func (c *C) refusedConfig() {
	for _, t := range []struct {
		what string
		cfg  broker.QueueConfig
		want broker.QueueCapabilities
	}{
		{"Ordered", broker.QueueConfig{Ordered: true}, broker.QueueCapabilities{Groups: true}},
		{"Dedup", broker.QueueConfig{Dedup: true}, broker.QueueCapabilities{Dedup: true}},
		{"ContentDedup", broker.QueueConfig{ContentDedup: true}, broker.QueueCapabilities{ContentDedup: true}},
		{"MaxPriority", broker.QueueConfig{MaxPriority: 3}, broker.QueueCapabilities{MaxPriority: 3}},
		{"MaxLength", broker.QueueConfig{MaxLength: 100}, broker.QueueCapabilities{Bounded: true}},
		{"MaxBytes", broker.QueueConfig{MaxBytes: 2048}, broker.QueueCapabilities{}},
		{"Lease", broker.QueueConfig{Lease: c.h.Lease}, broker.QueueCapabilities{Lease: true}},
		{"Delay", broker.QueueConfig{Delay: c.h.Delay}, broker.QueueCapabilities{}},
		{"TTL", broker.QueueConfig{TTL: time.Hour}, broker.QueueCapabilities{}},
	} {
		q, err := c.declareQueue(c.broker, func(_ *C, cfg *broker.QueueConfig) { *cfg = t.cfg })
		if err != nil {
			c.WantErr(err, broker.ErrUnsupported, "declare a queue with %s", t.what)
			continue
		}
		caps := q.Capabilities()
		if err := caps.Satisfies(t.want); err != nil {
			c.Errorf("a queue was declared with %s and does not claim it: %v", t.what, err)
		}
		if t.cfg.MaxBytes > 0 && caps.MaxBytes != t.cfg.MaxBytes {
			c.Errorf("a queue was declared with MaxBytes %d and claims %d", t.cfg.MaxBytes, caps.MaxBytes)
		}
	}
	for _, cfg := range []broker.QueueConfig{{MaxAttempts: -1}, {MaxPriority: -1}, {MaxLength: -1}, {Lease: -1}, {Delay: -1}, {TTL: -1}, {MaxBytes: -1}} {
		name := c.Name("queue")
		err := c.Admin().DeclareQueue(c.ctx, name, cfg)
		if !errors.Is(err, broker.ErrUnsupported) {
			c.WantErr(err, broker.ErrInvalid, "declare a queue with %s", strings.TrimSpace(fmt.Sprintf("%+v", cfg)))
		}
		if err == nil {
			c.Cleanup(c.deletion(c.Admin(), name))
		}
	}
	name := c.Name("queue")
	err := c.Admin().DeclareQueue(c.ctx, name, broker.QueueConfig{Options: map[string]string{"no-such-option": "1"}})
	if !errors.Is(err, broker.ErrUnsupported) {
		c.WantErr(err, broker.ErrInvalid, "declare a queue with an option that the adapter does not know")
	}
	if err == nil {
		c.Cleanup(c.deletion(c.Admin(), name))
	}
}
