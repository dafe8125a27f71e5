package sqs

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// Reply queues of programs that are gone are found by their tag and deleted;
// those in use, younger ones and queues of others are not.
func TestReplyQueuesAreSweptByTag(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		b := openFake(t, f)
		inUse, err := b.ReplyQueue(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		old := time.Now()
		f.mu.Lock()
		f.queue(replyPrefix + "gone").tags = map[string]any{tagAlive: aliveTag()[tagAlive]}
		f.queue(replyPrefix + "untagged").tags = map[string]any{}
		f.queue("other").tags = map[string]any{tagAlive: aliveTag()[tagAlive]}
		f.mu.Unlock()
		if n, err := b.SweepReplyQueues(t.Context()); n != 0 || err != nil {
			t.Errorf("swept %d that are young, %v", n, err)
		}
		<-time.After(replyLeftover + time.Minute) // inUse is kept alive meanwhile
		if time.Since(old) < replyLeftover {
			t.Fatal("no time has passed")
		}
		// Whoever makes a reply queue sweeps, once an hour.
		next, err := b.ReplyQueue(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		f.mu.Lock()
		for name, want := range map[string]bool{
			replyPrefix + "gone": false, replyPrefix + "untagged": true, "other": true, inUse.Name(): true, next.Name(): true,
		} {
			if _, ok := f.queues[name]; ok != want {
				t.Errorf("%s is there: %t", strings.TrimPrefix(name, replyPrefix), ok)
			}
		}
		f.mu.Unlock()
		if err := inUse.Close(); err != nil {
			t.Error(err)
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.queues[inUse.Name()] != nil {
			t.Error("Close left the reply queue")
		}
	})
}
