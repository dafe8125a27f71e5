package memory

import (
	"time"

	"github.com/queuestream/broker"
)

// A slab is room for the next deliveries and their bodies, so that few of them
// cost an allocation. A delivery that is kept keeps its neighbours' memory too:
// the constants say how much that is. They are of one broker.
type slab struct {
	singles []single // unused from used on
	used    int
	bytes   []byte // unused from filled on
	filled  int
}

// A single is a delivery and the slice that a Receive of one returns it in.
type single struct {
	d  broker.Delivery
	ds [1]*broker.Delivery
}

const (
	slabDeliveries = 12 // with slabBytes: two size classes of the runtime that waste little
	slabBytes      = 3072
	slabBody       = 1024 // a larger body has memory of its own
	slabMessage    = 2048 // the delivery of a larger message has, too
)

// slab takes one of the broker's; it is to be put back.
func (s *server) slab() *slab {
	if room, ok := s.slabs.Get().(*slab); ok {
		return room
	}
	return new(slab)
}

// single returns an empty delivery for e.
func (s *slab) single(e *entry) *single {
	if e.size > entryOverhead+slabMessage {
		return &single{}
	}
	return s.small()
}

// small is single for a message that is not large.
func (s *slab) small() *single {
	if s.used == len(s.singles) {
		s.singles, s.used = make([]single, slabDeliveries), 0
	}
	s.used++
	return &s.singles[s.used-1]
}

// body returns memory for a body of n bytes; nil: it has to have some of its own.
func (s *slab) body(n int) []byte {
	if n == 0 || n > slabBody {
		return nil
	}
	if n > len(s.bytes)-s.filled {
		s.bytes, s.filled = make([]byte, slabBytes), 0
	}
	s.filled += n
	return s.bytes[s.filled-n : s.filled : s.filled]
}

// madeAhead returns the first attempt at m, accepted at a time, but for what is
// known when it is received; nil for a message that is not small and plain. The
// publisher has m at hand, and would otherwise wait for those who receive.
func (s *server) madeAhead(m *broker.Message, at int64) *single {
	if len(m.Body) > slabBody || !isPlain(m) {
		return nil
	}
	room := s.slab()
	a := room.small()
	a.d.Body = room.body(len(m.Body))
	s.slabs.Put(room)
	a.d.ID = m.ID
	copy(a.d.Body, m.Body)
	a.d.Time = time.Unix(0, at)
	return a
}
