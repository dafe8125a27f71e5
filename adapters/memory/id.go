package memory

import (
	"math/rand/v2"
	"sync"
	"time"
)

// An idSource makes message IDs: UUIDs, version 7, as broker.NewID does, but
// up to 32 with one allocation while many are made within a millisecond. Those
// of one allocation differ in their last byte and share the random rest.
type idSource struct{ blocks sync.Pool }

type idBlock struct {
	text string
	ms   int64
	size int
}

const idLen = 36

// next returns an ID for a time (UnixNano).
func (s *idSource) next(now int64) string {
	b, ok := s.blocks.Get().(*idBlock)
	if !ok {
		b = &idBlock{}
	}
	ms := now / int64(time.Millisecond)
	if b.ms != ms || b.text == "" {
		if b.ms == ms {
			b.size = min(2*b.size, 32)
		} else {
			b.size = max(b.size/2, 1)
		}
		b.fill(ms)
	}
	id := b.text[:idLen]
	b.text = b.text[idLen:]
	s.blocks.Put(b)
	return id
}

func (b *idBlock) fill(ms int64) {
	var buf [32 * idLen]byte
	first := buf[:idLen]
	r, q := rand.Uint64(), rand.Uint64() //nolint:gosec // unique, not secret
	hexTo(first[:8], uint64(ms)>>16)
	first[8] = '-'
	hexTo(first[9:13], uint64(ms))
	first[13] = '-'
	hexTo(first[14:18], r&0x0fff|0x7000)
	first[18] = '-'
	hexTo(first[19:23], r>>16&0x3fff|0x8000)
	first[23] = '-'
	hexTo(first[24:], q)
	for i := range b.size {
		s := buf[i*idLen:][:idLen]
		copy(s, first)
		hexTo(s[idLen-2:], uint64(i))
	}
	b.text = string(buf[:b.size*idLen])
	b.ms = ms
}

// hexTo writes the low digits of n that fit into s.
func hexTo(s []byte, n uint64) {
	for i := len(s) - 1; i >= 0; i-- {
		s[i] = "0123456789abcdef"[n&15]
		n >>= 4
	}
}
