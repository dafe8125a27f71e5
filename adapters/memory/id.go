package memory

import (
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
	"sync"
	"time"
)

// An idSource makes message IDs: UUIDs, version 7, as broker.NewID does, but
// up to 16 with one allocation while many are made within a millisecond.
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
			b.size = min(2*b.size, 16)
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
