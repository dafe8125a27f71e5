package memory

import (
	"crypto/sha256"
	"time"

	"github.com/queuestream/broker"
)

// A dedupKey is what makes two messages of a queue the same one.
type dedupKey struct{ group, id string }

// A dedupTable remembers the keys of a window of time. The zero value is empty.
type dedupTable struct {
	seen  map[dedupKey]struct{}
	order []dedupEntry // by time
}

type dedupEntry struct {
	key  dedupKey
	ends int64
}

func (t *dedupTable) has(k dedupKey, now int64) bool {
	t.prune(now)
	_, ok := t.seen[k]
	return ok
}

func (t *dedupTable) add(k dedupKey, now int64, window time.Duration) {
	if t.seen == nil {
		t.seen = map[dedupKey]struct{}{}
	}
	t.seen[k] = struct{}{}
	t.order = append(t.order, dedupEntry{k, now + int64(window)})
}

func (t *dedupTable) prune(now int64) {
	n := 0
	for n < len(t.order) && t.order[n].ends <= now {
		delete(t.seen, t.order[n].key)
		t.order[n] = dedupEntry{}
		n++
	}
	if t.order = t.order[n:]; len(t.order) == 0 {
		t.order = nil
	}
}

// dedupKey returns what m is known by, if the queue deduplicates it.
func (q *queue) dedupKey(m *broker.Message) (dedupKey, bool) {
	var k dedupKey
	switch {
	case m.DedupID != "":
		k.id = "id:" + m.DedupID
	case q.cfg.ContentDedup:
		sum := sha256.Sum256(m.Body)
		k.id = "body:" + string(sum[:])
	case q.srv.rules.caps.Idempotent: // the adapter sends the message's own ID
		k.id = "message:" + m.ID
	default:
		return k, false
	}
	if q.cfg.DedupPerGroup {
		k.group = m.GroupID
	}
	return k, true
}
