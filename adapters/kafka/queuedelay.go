package kafka

import (
	"container/heap"
	"time"
)

// delayed are the locks of messages that are not due, the next one first.
type delayed struct{ heap lockHeap }

func (d *delayed) push(l *shareLock) { heap.Push(&d.heap, l) }

func (d *delayed) remove(l *shareLock) {
	for i, o := range d.heap {
		if o == l {
			heap.Remove(&d.heap, i)
			return
		}
	}
}

// next returns when the first is due.
func (d *delayed) next() (time.Time, bool) {
	if len(d.heap) == 0 {
		return time.Time{}, false
	}
	return d.heap[0].due, true
}

type lockHeap []*shareLock

func (h lockHeap) Len() int           { return len(h) }
func (h lockHeap) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h lockHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *lockHeap) Push(x any) {
	if l, ok := x.(*shareLock); ok {
		*h = append(*h, l)
	}
}
func (h *lockHeap) Pop() any {
	last := len(*h) - 1
	l := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return l
}

// moveDue moves what is due to the queue's own topic, where it is delivered.
func (c *Consumer) moveDue() {
	c.mu.Lock()
	var s sorting
	now := time.Now()
	for !c.closed {
		due, ok := c.delayed.next()
		if !ok || due.After(now) {
			break
		}
		l, _ := heap.Pop(&c.delayed.heap).(*shareLock) //nolint:errcheck // it holds nothing else
		s.move(l, copyOut{topic: c.q.topic.name, message: &l.d.Message, attempts: l.before, time: l.time})
	}
	c.setTimer()
	closed := c.closed
	c.mu.Unlock()
	if !closed {
		c.deal(&s)
	}
}

// setTimer sets the timer to what is due next. c.mu is held.
func (c *Consumer) setTimer() {
	if due, ok := c.delayed.next(); ok && !c.closed {
		c.timer.Reset(max(0, time.Until(due)))
	}
}
