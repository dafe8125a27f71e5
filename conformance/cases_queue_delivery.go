package conformance

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/queuestream/broker"
)

var queueDelivery = map[int]QueueCase{
	1:  {Run: ackedNotLost},
	2:  {Run: noPhantom},
	3:  {Run: bytesExact},
	4:  {Needs: broker.QueueCapabilities{Headers: true}, Refuse: refuseField(broker.Message{Headers: broker.Headers{{Key: "k", Value: "v"}}}), Run: headersExact},
	5:  {Run: batchPartialFailure},
	6:  {Needs: broker.QueueCapabilities{Durable: true}, Run: publishedIsDurable},
	7:  {Run: unackedReturns},
	8:  {Run: ackIsFinal},
	9:  {Run: nackRequeues},
	10: {Run: settleOnce},
	11: {Run: competingConsumers},
}

// refuseField returns a Refuse that publishes m, whose field the queue does not
// honour: the answer is ErrUnsupported, and nothing is stored.
func refuseField(m broker.Message) func(c *C, q broker.Queue) {
	return func(c *C, q broker.Queue) { c.refused(q, m, broker.ErrUnsupported) }
}

// refused publishes m alone and in a batch. Both must fail with target and
// store nothing but m's neighbours.
func (c *C) refused(q broker.Queue, m broker.Message, target error) {
	m.Body = []byte("refused")
	ctx, cancel := c.Soon()
	defer cancel()
	_, err := q.Publish(ctx, m)
	c.WantErr(err, target, "publish %+v", m)
	rs, err := q.PublishBatch(ctx, []broker.Message{{Body: []byte("before")}, m, {Body: []byte("after")}})
	if len(rs) != 3 {
		c.Errorf("publish a batch of 3 with %+v: %d receipts", m, len(rs))
	}
	for i, want := range []error{nil, target, nil} {
		if got := broker.ErrorAt(err, i); !errors.Is(got, want) {
			c.Errorf("publish a batch of 3 with %+v in the middle: entry %d: %v, want %v", m, i, got, want)
		}
	}
	k := c.Consumer(q, nil)
	for _, d := range c.ReceiveN(k, 2) {
		if string(d.Body) == "refused" {
			c.Errorf("%+v was refused and delivered", m)
		}
		c.Ack(d)
	}
	c.quiet(k, "what was published was refused")
	c.Must(k.Close(), "close the consumer")
}

func ackedNotLost(c *C, q broker.Queue) {
	c.work(q, workload{messages: c.h.Messages, producers: 2, prefix: "m"}, nil)
}

func noPhantom(c *C, q broker.Queue) {
	k := c.Consumer(q, nil)
	c.Nothing(k, "the queue is empty")
	h := &QueueHistory{QueueRules: c.rules(q)}
	ended, cancel := context.WithCancel(c.ctx)
	cancel()
	if _, err := h.Publish(ended, q, "producer", broker.Message{Body: []byte("ended context")}); err == nil {
		c.Errorf("publish with an ended context: nil")
	}
	if _, err := h.Publish(c.ctx, q, "producer", broker.Message{Body: []byte("negative delay"), Delay: -1}); err == nil {
		c.Errorf("publish with a negative delay: nil")
	}
	for i := range 20 {
		_, err := h.Publish(c.ctx, q, "producer", broker.Message{Body: fmt.Appendf(nil, "m%d", i)})
		c.Must(err, "publish")
	}
	c.crew(q, h, c.h.Workers, nil, nil).finish()

	// A consumer that waits while its queue is deleted is told so, or waits on;
	// it is never handed an empty delivery.
	doomed := c.DeclareQueue(nil)
	waiting := c.Consumer(doomed, nil)
	ctx, cancel := c.Within(2 * c.h.Quiet)
	defer cancel()
	c.Go(func() {
		if ds, err := waiting.Receive(ctx, 1); err == nil {
			c.Errorf("the queue was deleted: received %d deliveries from it, the first %+v", len(ds), ds[0].Message)
		}
	})
	c.Must(c.Admin().DeleteQueue(c.ctx, doomed.Name()), "delete the queue")
	c.Wait()
}

func bytesExact(c *C, q broker.Queue) {
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	caps := q.Capabilities()
	largest := 1 << 20
	if caps.MaxBytes > 0 {
		largest = min(caps.MaxBytes, 16<<20)
	}
	big := make([]byte, largest)
	for i := 0; i+8 <= len(big); i += 8 {
		binary.LittleEndian.PutUint64(big[i:], uint64(i)*0x9e3779b97f4a7c15) // no two alike
	}
	bodies := [][]byte{nil, {}, {0}, []byte("\x00a\x00"), all, []byte("\xff\xfe invalid"), []byte("Grüße, 世界 \U0001f30d"), []byte("\r\n\t \ufeff\ufffe"), big[:min(64<<10+1, largest)], big}
	k := c.Consumer(q, nil)
	// A broker may count an encoding, in which bytes like these are larger: the
	// largest message is the one of which it counts the limit.
	if _, err := q.Publish(c.ctx, broker.Message{Body: big}); err == nil {
		c.Ack(c.ReceiveOne(k))
	} else if size, ok := errors.AsType[*broker.SizeError](err); ok && size.Limit < size.Size && size.Size < 2*largest {
		largest = largest*size.Limit/size.Size - 64
		big = big[:largest]
		bodies[len(bodies)-1] = big
	} else {
		c.Fatalf("publish %d bytes: %v", largest, err)
	}
	for _, body := range bodies {
		m := broker.Message{ID: broker.NewID(), Body: slices.Clone(body), ContentType: "application/x-test; v=\"1\"", CorrelationID: "corr elation/1", ReplyTo: "reply-to"}
		if len(body) == largest {
			m.ContentType, m.CorrelationID, m.ReplyTo = "", "", ""
		}
		want := m
		r := c.Publish(q, m)
		if !bytes.Equal(m.Body, body) {
			c.Errorf("publish changed the body that it was given")
		}
		clear(m.Body) // it belongs to the caller again
		d := c.ReceiveOne(k)
		if !bytes.Equal(d.Body, body) {
			c.Errorf("a body of %d bytes came back as %d bytes, first difference at %d", len(body), len(d.Body), differ(body, d.Body))
		}
		if r.ID != want.ID || d.ID != want.ID || d.ContentType != want.ContentType || d.CorrelationID != want.CorrelationID || d.ReplyTo != want.ReplyTo {
			c.Errorf("published %v, received id %q, content type %q, correlation id %q, reply to %q, receipt %q",
				[]string{want.ID, want.ContentType, want.CorrelationID, want.ReplyTo}, d.ID, d.ContentType, d.CorrelationID, d.ReplyTo, r.ID)
		}
		if d.Time.IsZero() || time.Since(d.Time) > c.h.Soon+time.Minute || time.Until(d.Time) > time.Minute {
			c.Errorf("accepted just now, and Delivery.Time is %v", d.Time)
		}
		c.Ack(d)
	}
	c.Note("largest", "%d bytes", largest)
}

func differ(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

func headersExact(c *C, q broker.Queue) {
	many := broker.Headers{}
	for i := range 25 {
		many = many.With(fmt.Sprintf("key-%d", i), fmt.Sprint(i))
	}
	k := c.Consumer(q, nil)
	for _, h := range []broker.Headers{
		nil,
		{{Key: "a", Value: "1"}},
		{{Key: "z", Value: "1"}, {Key: "a", Value: "2"}, {Key: "z", Value: "3"}},
		{{Key: "Case", Value: "A"}, {Key: "case", Value: "b"}},
		{{Key: "empty", Value: ""}, {Key: "binary", Value: "\x00\xff\r\n"}, {Key: "ключ", Value: "значение"}},
		{{Key: "long", Value: strings.Repeat("v", 10_000)}},
		{{Key: "traceparent", Value: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}, {Key: "x-delay", Value: "7"}, {Key: "AWS.x", Value: "y"}},
		many,
	} {
		given := slices.Clone(h)
		c.Publish(q, broker.Message{Body: []byte("headers"), Headers: h})
		if !slices.Equal(given, h) {
			c.Errorf("publish changed the headers that it was given: %q, they were %q", h, given)
		}
		d := c.ReceiveOne(k)
		if !slices.Equal(d.Headers, given) {
			c.Errorf("published the headers %.300q, received %.300q", given, d.Headers)
		}
		c.Ack(d)
	}
}

func batchPartialFailure(c *C, q broker.Queue) {
	var ms []broker.Message
	bad := map[int]bool{0: true, 7: true, 14: true}
	for i := range 15 {
		m := broker.Message{Body: fmt.Appendf(nil, "m%d", i)}
		if bad[i] {
			m.Delay = -1
		}
		ms = append(ms, m)
	}
	ctx, cancel := c.Soon()
	defer cancel()
	rs, err := q.PublishBatch(ctx, ms)
	be, ok := errors.AsType[*broker.BatchError](err)
	if !ok || len(be.Errs) != len(ms) || len(rs) != len(ms) {
		c.Fatalf("publish %d of which 3 are invalid: %d receipts, %T %v; want %[1]d receipts and a *broker.BatchError with %[1]d entries", len(ms), len(rs), err, err)
	}
	for i := range ms {
		if bad[i] != (be.Errs[i] != nil) || bad[i] && !errors.Is(be.Errs[i], broker.ErrInvalid) {
			c.Errorf("entry %d: %v (is invalid: %t)", i, be.Errs[i], bad[i])
		}
	}
	if rs, err := q.PublishBatch(ctx, nil); err != nil || len(rs) != 0 {
		c.Errorf("publish an empty batch: %d receipts, %v", len(rs), err)
	}
	k := c.Consumer(q, nil)
	got := map[string]string{}
	for _, d := range c.ReceiveN(k, len(ms)-len(bad)) {
		got[string(d.Body)] = d.ID
		c.Ack(d)
	}
	ids := map[string]bool{}
	for i := range ms {
		id, delivered := got[string(ms[i].Body)]
		switch {
		case delivered == bad[i]:
			c.Errorf("entry %d: delivered %t (is invalid: %t)", i, delivered, bad[i])
		case delivered && (rs[i].ID == "" || rs[i].ID != id):
			c.Errorf("entry %d: the receipt says %q, and %q was delivered", i, rs[i].ID, id)
		}
		ids[rs[i].ID] = true
		if ms[i].ID != "" {
			c.Errorf("publish set an id in the caller's batch")
		}
	}
	if len(ids) < len(got) {
		c.Errorf("%d different ids for %d messages", len(ids), len(got))
	}
	c.quiet(k, "the whole batch was received")
}

func publishedIsDurable(c *C, q broker.Queue) {
	if c.h.Restart == nil {
		c.Skip("the harness cannot restart the broker")
	}
	h := &QueueHistory{QueueRules: c.rules(q)}
	h.Faulty = true
	c.publish(q, h, workload{messages: c.h.Messages, prefix: "m"})
	c.Wait()
	c.Must(c.h.Restart(c.ctx), "restart the broker")
	c.crew(q, h, 1, nil, nil).finish()
}

func unackedReturns(c *C, q broker.Queue) {
	caps := q.Capabilities()
	a, b := c.Consumer(q, nil), c.Consumer(q, nil)
	c.Must(b.Close(), "close an idle consumer")
	for i := range 3 {
		c.Publish(q, broker.Message{Body: fmt.Appendf(nil, "m%d", i)})
	}
	held := c.ReceiveN(a, 3)
	c.Must(a.Close(), "close the consumer that holds three")
	for _, d := range held {
		c.WantErr(d.Ack(c.ctx), broker.ErrLeaseLost, "acknowledge a delivery whose consumer was closed")
	}
	k := c.Consumer(q, nil)
	seen := map[string]bool{}
	for _, d := range c.ReceiveN(k, 3) {
		seen[string(d.Body)] = true
		if caps.Attempts && d.Attempt < 2 {
			c.Errorf("the second delivery of %q says attempt %d", d.Body, d.Attempt)
		}
		c.Ack(d)
	}
	if len(seen) != 3 {
		c.Errorf("three were given back, %d of them came again", len(seen))
	}
}

func ackIsFinal(c *C, q broker.Queue) {
	opts := c.lease(q)
	k := c.Consumer(q, opts)
	for i := range 10 {
		c.Publish(q, broker.Message{Body: fmt.Appendf(nil, "m%d", i)})
	}
	ds := c.ReceiveN(k, 10)
	c.Ack(ds[:5]...)
	c.Must(broker.AckAll(c.ctx, ds[5:]...), "acknowledge five at once")
	c.quiet(k, "everything was acknowledged")
	if opts != nil {
		c.Sleep(opts.Lease + c.h.Tick)
		c.quiet(k, "everything was acknowledged, and the lease has passed")
	}
	c.Must(k.Close(), "close the consumer")
	c.quiet(c.Consumer(q, nil), "everything was acknowledged, and the consumer closed")
	c.empty(q.Name())
}

// quiet is Nothing for brokers that may deliver twice: there it only counts.
func (c *C) quiet(k broker.Consumer, why string) {
	if !c.h.Duplicates {
		c.Nothing(k, why)
		return
	}
	ds := c.TryReceive(k, 10, c.h.Quiet)
	c.Ack(ds...)
	c.Note("duplicates", "%d", len(ds))
}

// empty waits until the broker reports the queue as empty, where it tells.
func (c *C) empty(name string) {
	a := c.Admin()
	var stats broker.QueueStats
	ok := c.Until(c.h.Soon, func() bool {
		var err error
		stats, err = a.QueueStats(c.ctx, name)
		if errors.Is(err, broker.ErrUnsupported) {
			return true
		}
		c.Must(err, "statistics")
		return max(stats.Ready, 0)+max(stats.InFlight, 0)+max(stats.Delayed, 0) == 0
	})
	if !ok {
		c.Errorf("everything was acknowledged, and the broker reports %+v", stats)
	}
}

// lease returns options with the shortest lease, or nil where there is none.
func (c *C) lease(q broker.Queue) *broker.ConsumerOptions {
	if !q.Capabilities().Lease {
		return nil
	}
	return &broker.ConsumerOptions{Lease: c.h.Lease}
}

func nackRequeues(c *C, q broker.Queue) {
	k := c.Consumer(q, nil)
	m := broker.Message{ID: broker.NewID(), Body: []byte("again"), CorrelationID: "c"}
	if q.Capabilities().Headers {
		m.Headers = broker.Headers{{Key: "k", Value: "v"}, {Key: "k", Value: "w"}}
	}
	c.Publish(q, m)
	for i := range 3 {
		d := c.ReceiveOne(k)
		if d.ID != m.ID || !bytes.Equal(d.Body, m.Body) || !slices.Equal(d.Headers, m.Headers) || d.CorrelationID != m.CorrelationID {
			c.Errorf("delivery %d: %+v, published %+v", i+1, d.Message, m)
		}
		c.Nack(d, 0)
		c.WantErr(d.Ack(c.ctx), broker.ErrSettled, "acknowledge after a nack")
	}
	d := c.ReceiveOne(k)
	c.Ack(d)
	c.quiet(k, "it was acknowledged in the end")

	// One nack gives up one message.
	for i := range 5 {
		c.Publish(q, broker.Message{Body: fmt.Appendf(nil, "n%d", i)})
	}
	ds := c.ReceiveN(k, 5)
	c.Nack(ds[2], 0)
	again := c.ReceiveOne(k)
	if string(again.Body) != string(ds[2].Body) {
		c.Errorf("%q was nacked and %q came again", ds[2].Body, again.Body)
	}
	c.Ack(again)
	for i, d := range ds {
		if i != 2 {
			c.Must(d.Ack(c.ctx), "acknowledge the neighbour of a nacked delivery")
		}
	}
	c.empty(q.Name())
}

func settleOnce(c *C, q broker.Queue) {
	caps := q.Capabilities()
	k := c.Consumer(q, nil)
	c.Publish(q, broker.Message{Body: []byte("one")})
	d := c.ReceiveOne(k)
	c.Ack(d)
	verdicts := []broker.Verdict{{Kind: broker.VerdictAck}, {Kind: broker.VerdictNack}}
	if caps.Reject {
		verdicts = append(verdicts, broker.Verdict{Kind: broker.VerdictReject, Reason: "late"})
	}
	if caps.Lease {
		verdicts = append(verdicts, broker.Verdict{Kind: broker.VerdictExtend})
	}
	for _, v := range verdicts {
		batch := []broker.Outcome{{Delivery: d, Verdict: v}}
		c.WantErr(broker.ErrorAt(broker.SettleAll(c.ctx, batch), 0), broker.ErrSettled, "%s after ack", v.Kind)
	}
	c.quiet(k, "it was acknowledged; later verdicts change nothing")

	for round := range 20 {
		c.Publish(q, broker.Message{Body: fmt.Appendf(nil, "race %d", round)})
		d := c.ReceiveOne(k)
		var mu sync.Mutex
		won := 0
		for range 8 {
			c.Go(func() {
				err := d.Ack(c.ctx)
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					won++
				} else if !errors.Is(err, broker.ErrSettled) {
					c.Errorf("acknowledge concurrently: %v, want ErrSettled", err)
				}
			})
		}
		c.Wait()
		if won != 1 {
			c.Errorf("%d of 8 concurrent acknowledgements succeeded", won)
		}
	}
	c.quiet(k, "everything was acknowledged")
}

func competingConsumers(c *C, q broker.Queue) {
	var opts *broker.ConsumerOptions
	n := 50 * c.h.Workers
	if q.Capabilities().Prefetch {
		opts, n = &broker.ConsumerOptions{Prefetch: 1}, 10*c.h.Workers
	}
	h := &QueueHistory{QueueRules: c.rules(q)}
	var consumers []broker.Consumer
	for range c.h.Workers {
		consumers = append(consumers, c.Consumer(q, opts))
	}
	for i := range n {
		_, err := h.Publish(c.ctx, q, "producer", broker.Message{Body: fmt.Appendf(nil, "m%d", i)})
		c.Must(err, "publish")
	}
	// Each gets one while all others hold theirs.
	held := map[string]*broker.Delivery{}
	for i, k := range consumers {
		who := fmt.Sprintf("consumer %d", i)
		held[who] = c.ReceiveOne(k)
		h.Received(who, held[who])
	}
	for who, d := range held {
		c.Must(h.Settle(c.ctx, who, d, ackVerdict), "acknowledge")
	}
	var mu sync.Mutex
	left := n - len(consumers)
	for i, k := range consumers {
		who := fmt.Sprintf("consumer %d", i)
		c.Go(func() {
			for wait := c.patience(); wait.more(); {
				mu.Lock()
				stop := left <= 0
				mu.Unlock()
				if stop {
					return
				}
				for _, d := range wait.receive(k, 5) {
					h.Received(who, d)
					c.Must(h.Settle(c.ctx, who, d, ackVerdict), "acknowledge")
					mu.Lock()
					left--
					mu.Unlock()
				}
			}
		})
	}
	c.Wait()
	c.Check(CheckQueue(h))
}
