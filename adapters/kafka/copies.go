package kafka

import (
	"math/bits"
	"reflect"
	"sync"

	"github.com/twmb/franz-go/pkg/kgo"
)

// copies are those of the bytes that a flight refers to, if the call may
// return while a record is still on its way: what a caller hands in is the
// caller's again once the call returns. A nil *copies takes none.
type copies struct {
	room   []byte // to copy to, from its length on
	lends  bool   // the room comes from chunks and returns to them
	lent   []*[]byte
	needed int // bytes to come
}

// begin makes c ready for copies of size bytes in all, in chunks that are lent
// where they may be.
func (c *copies) begin(lends bool, size int) *copies {
	c.needed, c.lends = size, lends && size >= minLent
	if c.lends { // a small room of its own would be used up first
		c.room = nil
	}
	return c
}

func (c *copies) of(b []byte) []byte {
	if c == nil || len(b) == 0 {
		return b
	}
	if len(b) > cap(c.room)-len(c.room) {
		c.grow(len(b))
	}
	n := len(c.room)
	c.room = append(c.room, b...)
	c.needed -= len(b)
	return c.room[n:len(c.room):len(c.room)]
}

func (c *copies) grow(n int) {
	size := max(n, min(c.needed, chunkSize))
	if !c.lends || size > maxChunk {
		c.room = make([]byte, 0, max(n, c.needed))
		return
	}
	chunk := chunks.get(size)
	c.lent = append(c.lent, chunk)
	c.room = (*chunk)[:0]
}

// giveBack ends the use of all copies; what is kept is a small room, for the
// next use of c.
func (c *copies) giveBack() {
	if c == nil {
		return
	}
	for _, chunk := range c.lent {
		chunks.put(chunk)
	}
	clear(c.lent)
	c.lent = c.lent[:0]
	if c.room = c.room[:0]; c.lends || cap(c.room) > minLent {
		c.room = nil
	}
}

const (
	minLent   = 16 << 10  // smaller flights have memory of their own
	chunkSize = 256 << 10 // of a chunk, unless one record needs more
	maxChunk  = 2 << 20   // larger ones are rare
)

// chunks keeps memory for copies: made anew for each flight, clearing it and
// collecting it would cost more than to copy.
var chunks chunkPool

// A chunkPool keeps chunks by the power of two that is their size.
type chunkPool [bitsOfMaxChunk + 1]sync.Pool

const bitsOfMaxChunk = 21

func (p *chunkPool) get(size int) *[]byte {
	class := bits.Len(uint(size - 1))
	if c, ok := p[class].Get().(*[]byte); ok {
		return c
	}
	c := make([]byte, 1<<class)
	return &c
}

func (p *chunkPool) put(c *[]byte) { p[bits.Len(uint(len(*c)-1))].Put(c) }

// lendsCopies tells whether nobody but the client sees a record's bytes: hooks
// may keep what they were shown.
func lendsCopies(client *kgo.Client) bool {
	return reflect.ValueOf(client.OptValue(kgo.WithHooks)).Len() == 0 // of a type that is not exported
}
