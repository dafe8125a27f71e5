package memory

import (
	"bytes"

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

// copy returns a copy of a body.
func (s *slab) copy(body []byte) []byte {
	n := len(body)
	if n > slabBody {
		return bytes.Clone(body)
	}
	if n > len(s.bytes)-s.filled {
		s.bytes, s.filled = make([]byte, slabBytes), 0
	}
	b := s.bytes[s.filled : s.filled+n : s.filled+n]
	s.filled += n
	copy(b, body)
	return b
}

// copyLarge gives each delivery a copy of its body if that is large: entries
// do not use those again, so that no lock is needed.
func copyLarge(ds []*broker.Delivery) {
	for _, d := range ds {
		if len(d.Body) > smallBody {
			d.Body = bytes.Clone(d.Body)
		}
	}
}
