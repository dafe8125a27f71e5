package memory

import (
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"time"
)

// An idSource makes message IDs: UUIDs, version 7, as broker.NewID does, but
// up to 32 with one allocation while many are made within a millisecond. Those
// of one allocation differ in their last byte and share the random rest.
type idSource struct{ block atomic.Pointer[idBlock] }

type idBlock struct {
	text string
	ms   int64
	used atomic.Int32 // may count beyond the end
}

const (
	idLen     = 36
	idsAtOnce = 32
)

// next returns an ID for a time (UnixNano).
func (s *idSource) next(now int64) string {
	ms := now / int64(time.Millisecond)
	b := s.block.Load()
	if b != nil && b.ms == ms {
		if n := int(b.used.Add(1)) * idLen; n <= len(b.text) {
			return b.text[n-idLen : n]
		}
	}
	size := 1
	if b != nil {
		made := len(b.text) / idLen
		if b.ms == ms {
			size = min(2*made, idsAtOnce)
		} else {
			size = max(made/2, 1)
		}
	}
	b = newIDs(ms, size)
	s.block.Store(b)
	return b.text[:idLen]
}

// newIDs returns a block whose first ID is taken.
func newIDs(ms int64, size int) *idBlock {
	var id [idLen]byte
	r, q := rand.Uint64(), rand.Uint64() //nolint:gosec // unique, not secret
	hexTo(id[:8], uint64(ms)>>16)
	id[8] = '-'
	hexTo(id[9:13], uint64(ms))
	id[13] = '-'
	hexTo(id[14:18], r&0x0fff|0x7000)
	id[18] = '-'
	hexTo(id[19:23], r>>16&0x3fff|0x8000)
	id[23] = '-'
	hexTo(id[24:], q)
	var text strings.Builder
	text.Grow(size * idLen)
	for i := range size {
		hexTo(id[idLen-2:], uint64(i))
		text.Write(id[:])
	}
	b := &idBlock{text: text.String(), ms: ms}
	b.used.Store(1)
	return b
}

// hexTo writes the low digits of n that fit into s.
func hexTo(s []byte, n uint64) {
	for i := len(s) - 1; i >= 0; i-- {
		s[i] = "0123456789abcdef"[n&15]
		n >>= 4
	}
}
