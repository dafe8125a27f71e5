package conformance

import (
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"

	"github.com/queuestream/broker"
)

var queueFlow = map[int]QueueCase{
	68: {Needs: broker.QueueCapabilities{Prefetch: true}, Refuse: receiveBound, Run: prefetchBound},
	69: {Run: publishBlocks},
	70: {Needs: broker.QueueCapabilities{Bounded: true}, Config: func(_ *C, cfg *broker.QueueConfig) { cfg.MaxLength = 10 }, Run: queueFull},
	71: {Run: slowConsumer},
	72: {Run: throttled},
}

// receiveBound holds for every queue: Receive returns at most max.
func receiveBound(c *C, q broker.Queue) {
	k := c.Consumer(q, nil)
	for i := range 20 {
		c.Publish(q, broker.Message{Body: fmt.Appendf(nil, "m%d", i)})
	}
	for got := 0; got < 20; {
		ds := c.Receive(k, 1+c.rng.IntN(4)) // which checks the bound
		got += len(ds)
		c.Ack(ds...)
	}
	for _, bad := range []int{0, -1} {
		_, err := k.Receive(c.ctx, bad)
		c.WantErr(err, broker.ErrInvalid, "receive at most %d", bad)
	}
}

func prefetchBound(c *C, q broker.Queue) {
	receiveBound(c, q)
	const prefetch = 5
	a := c.Consumer(q, &broker.ConsumerOptions{Prefetch: prefetch})
	for i := range 50 {
		c.Publish(q, broker.Message{Body: fmt.Appendf(nil, "m%d", i)})
	}
	held := c.ReceiveOne(a)
	b := c.Consumer(q, nil)
	got := len(c.bodies(b))
	if got < 50-1-prefetch {
		c.Errorf("a consumer that holds one delivery and may prefetch %d kept %d of 50 from another", prefetch, 50-got)
	}
	c.Ack(held)
	for got++; got < 50; got++ {
		c.Ack(c.ReceiveOne(a))
	}
}

func publishBlocks(c *C, q broker.Queue) {
	const callers, each, size = 32, 16, 8 << 10
	grown := heapGrowth()
	k := c.Consumer(q, nil)
	for range callers {
		c.Go(func() {
			for range each {
				c.Publish(q, broker.Message{Body: make([]byte, size)})
			}
		})
	}
	for got := 0; got < callers*each; {
		ds := c.Receive(k, 20)
		got += len(ds)
		c.Ack(ds...)
	}
	c.Wait()
	if n := grown(); n > heapBound {
		c.Errorf("after %d messages of %d bytes, all acknowledged, the heap has grown by %d bytes", callers*each, size, n)
	}
}

// heapBound is far above what a few MiB of messages may leave behind.
const heapBound = 64 << 20

// heapGrowth returns what tells how much the heap has grown since.
func heapGrowth() func() int64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	return func() int64 {
		runtime.GC()
		runtime.ReadMemStats(&after)
		return int64(after.HeapAlloc) - int64(before.HeapAlloc) //nolint:gosec // below the address space
	}
}

func queueFull(c *C, q broker.Queue) {
	accepted := map[string]bool{}
	var full error
	for i := range 200 {
		ctx, cancel := c.Soon()
		body := fmt.Sprintf("m%d", i)
		_, err := q.Publish(ctx, broker.Message{Body: []byte(body)})
		cancel()
		if err == nil {
			accepted[body] = true
			continue
		}
		full = err
		break
	}
	c.WantErr(full, broker.ErrFull, "publish to a queue with at most 10 messages after %d", len(accepted))
	if full == nil || len(accepted) < 10 {
		c.Errorf("%d messages were accepted, the limit is 10", len(accepted))
	}
	if !broker.IsTemporary(full) && full != nil {
		c.Errorf("a full queue is a temporary error: %v", full)
	}
	c.Note("refused after", "%d of 10", len(accepted))
	k := c.Consumer(q, nil)
	d := c.ReceiveOne(k)
	c.Ack(d)
	delete(accepted, string(d.Body))
	c.Eventually("there is room again", func() bool {
		_, err := q.Publish(c.ctx, broker.Message{Body: []byte("later")})
		if err != nil && !errors.Is(err, broker.ErrFull) {
			c.Fatalf("publish: %v", err)
		}
		if err == nil {
			accepted["later"] = true
			return true
		}
		d := c.TryReceive(k, 1, c.h.Quiet)
		c.Ack(d...)
		for _, d := range d {
			delete(accepted, string(d.Body))
		}
		return false
	})
	for _, body := range c.bodies(k) {
		if !accepted[body] {
			c.Errorf("%q was delivered, and not accepted or delivered before", body)
		}
		delete(accepted, body)
	}
	if len(accepted) > 0 {
		c.Errorf("accepted and dropped: %v", accepted)
	}
}

func slowConsumer(c *C, q broker.Queue) {
	var opts *broker.ConsumerOptions
	if q.Capabilities().Prefetch {
		opts = &broker.ConsumerOptions{Prefetch: 1}
	}
	slow := c.Consumer(q, opts)
	const n = 100
	for i := range n + 1 {
		c.Publish(q, broker.Message{Body: fmt.Appendf(nil, "m%d", i)})
	}
	held := c.ReceiveOne(slow)
	fast := c.Consumer(q, nil)
	var got atomic.Int64
	for {
		ds := c.TryReceive(fast, 10, c.h.Quiet)
		if ds == nil {
			break
		}
		got.Add(int64(len(ds)))
		c.Ack(ds...)
	}
	least := int64(n - 1) // one prefetched
	if opts == nil {
		least = 1
	}
	if got.Load() < least {
		c.Errorf("a consumer that holds one delivery and receives nothing kept %d of %d from another", n-got.Load(), n)
	}
	c.Ack(held)
	c.Must(slow.Close(), "close the slow consumer")
	if rest := int64(len(c.atLeast(fast, int(n-got.Load())))); got.Load()+rest != n {
		c.Errorf("%d of %d were delivered in the end", got.Load()+rest, n)
	}
}

func throttled(c *C, q broker.Queue) {
	c.underFault(q, FaultThrottle)
}
