package kafka

import (
	"math/bits"
	"reflect"
	"sync"

	"github.com/queuestream/broker"
	"github.com/twmb/franz-go/pkg/kgo"
)

// slabs lends the clients the memory that they decode records into. A program
// gets records of the root package, which share keys and values with the
// client's and nothing else, so that those can be used again at once.
var slabs slabPool

// A slabPool keeps slices by the power of two that holds them.
type slabPool [maxSlabBits + 1]sync.Pool

// maxSlabBits bounds what is kept: batches of more records are rare.
const maxSlabBits = 14

// GetRecords is for the client: kgo.PoolRecords.
func (p *slabPool) GetRecords(n int) []kgo.Record {
	size := bits.Len(uint(max(n, 1) - 1))
	if size > maxSlabBits {
		return make([]kgo.Record, n)
	}
	if s, ok := p[size].Get().(*[]kgo.Record); ok {
		return *s
	}
	return make([]kgo.Record, 1<<size)
}

// PutRecords is for the client: kgo.PoolRecords.
func (p *slabPool) PutRecords(rs []kgo.Record) {
	if size := bits.Len(uint(len(rs)) - 1); size <= maxSlabBits && len(rs) == 1<<size {
		p[size].Put(&rs)
	}
}

// checkPools refuses memory of the program's that would be used again while
// records still refer to it.
func checkPools(client *kgo.Client) error {
	pools := reflect.ValueOf(client.OptValue(kgo.WithPools)) // of a type that is not exported
	for i := range pools.Len() {
		if p, ok := pools.Index(i).Interface().(kgo.PoolDecompressBytes); ok {
			return broker.Invalid("Client: WithPools(%T): a kgo.PoolDecompressBytes would take keys and values back from records; want none", p)
		}
	}
	return nil
}
