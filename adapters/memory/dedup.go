package memory

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
	"time"

	"github.com/queuestream/broker"
)

// A dedupKey is what makes two messages of a queue the same one.
type dedupKey struct{ group, id string }

// A dedupTable remembers the keys of a window of time. The zero value is empty.
type dedupTable struct {
	seen  map[dedupKey]string // the ID of the first message
	order []dedupEntry        // by time
}

type dedupEntry struct {
	key  dedupKey
	ends int64
}

func (t *dedupTable) find(k dedupKey, now int64) (string, bool) {
	t.prune(now)
	id, ok := t.seen[k]
	return id, ok
}

func (t *dedupTable) add(k dedupKey, id string, now int64, window time.Duration) {
	if t.seen == nil {
		t.seen = map[dedupKey]string{}
	}
	t.seen[k] = id
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
	default:
		return k, false
	}
	if q.cfg.DedupPerGroup {
		k.group = m.GroupID
	}
	return k, true
}

// An idBlock makes message IDs (UUIDs, version 7) with one allocation for up
// to 16 of them while many are made within a millisecond.
type idBlock struct {
	text string
	ms   int64
	size int
}

const idLen = 36

func (b *idBlock) next(now int64) string {
	ms := now / int64(time.Millisecond)
	if b.ms != ms || len(b.text) == 0 {
		if b.ms == ms {
			b.size = min(2*b.size, 16)
		} else {
			b.size = max(b.size/2, 1)
		}
		b.fill(ms)
	}
	id := b.text[:idLen]
	b.text = b.text[idLen:]
	return id
}

func (b *idBlock) fill(ms int64) {
	var buf [16 * idLen]byte
	for i := range b.size {
		s := buf[i*idLen:][:idLen]
		var u [16]byte
		binary.BigEndian.PutUint64(u[:8], uint64(ms)<<16|rand.Uint64()&0xffff)
		binary.BigEndian.PutUint64(u[8:], rand.Uint64())
		u[6] = u[6]&0x0f | 0x70
		u[8] = u[8]&0x3f | 0x80
		hex.Encode(s[:8], u[:4])
		hex.Encode(s[9:13], u[4:6])
		hex.Encode(s[14:18], u[6:8])
		hex.Encode(s[19:23], u[8:10])
		hex.Encode(s[24:], u[10:])
		s[8], s[13], s[18], s[23] = '-', '-', '-', '-'
	}
	b.text = string(buf[:b.size*idLen])
	b.ms = ms
}
