package faultproxy

import (
	"sync"
	"sync/atomic"

	toxiproxy "github.com/Shopify/toxiproxy/v2/toxics"
)

// A countToxic passes on what comes and counts it.
type countToxic struct {
	ID int64 `json:"id"` // of its counter
}

const countToxicName = "count"

var (
	counters sync.Map // of *atomic.Int64, by countToxic.ID
	lastID   atomic.Int64
)

// registered makes the toxic known to toxiproxy.
var registered = sync.OnceFunc(func() { toxiproxy.Register(countToxicName, new(countToxic)) })

// Pipe implements toxics.Toxic.
func (c *countToxic) Pipe(stub *toxiproxy.ToxicStub) {
	n := new(atomic.Int64)
	if known, ok := counters.Load(c.ID); ok {
		n = known.(*atomic.Int64)
	}
	for {
		select {
		case <-stub.Interrupt:
			return
		case chunk := <-stub.Input:
			if chunk == nil {
				stub.Close()
				return
			}
			n.Add(1)
			stub.Output <- chunk
		}
	}
}
