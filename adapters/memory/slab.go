package memory

import (
	"github.com/queuestream/broker"
)

// A slab is room for a consumer's next deliveries and their bodies, so that few
// of them cost an allocation. A delivery that is kept keeps its neighbours'
// memory too, and so does the consumer: the constants say how much that is.
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

// single returns an empty delivery for e.
func (s *slab) single(e *entry) *single {
	if e.size > entryOverhead+slabMessage {
		return &single{}
	}
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

// fillAll copies what the entries hold into their deliveries. queue.mu is not
// held: nobody changes that while it may be copied.
func fillAll(ds []*broker.Delivery, es []*entry) {
	for i, d := range ds {
		es[i].fill(d)
	}
}
