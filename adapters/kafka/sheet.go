package kafka

import (
	"sync/atomic"
	"time"

	"github.com/queuestream/broker/internal/clock"
)

// A sheet is memory for some appendings, most likely for one partition's: the
// client goes over records partition by partition, to send and to answer them,
// and where those are that it comes to next the processor foresees if they lie
// side by side. It is not used again: what others have written since is slower
// to reach than new memory.
type sheet struct {
	items []appending
	next  atomic.Int32 // of items; it may count beyond the end
	begun int64        // Unix time in ns
}

// sheets are what a stream's appendings come from: the first for records
// without a partition yet, then one for each partition, or for some.
type sheets []atomic.Pointer[sheet]

const (
	maxSheets  = 256
	smallSheet = 5  // items: 1 KiB
	largeSheet = 85 // items: 16 KiB
	// A sheet whose items last shorter than this each is followed by a large one.
	busy = int64(2 * time.Millisecond)
)

func newSheets(partitions int) sheets {
	return make(sheets, 1+min(max(partitions, 1), maxSheets))
}

// item returns new memory for a record of a partition, or of none (negative).
func (s sheets) item(partition int) *appending {
	at := &s[0]
	if partition >= 0 {
		at = &s[1+partition%(len(s)-1)]
	}
	for {
		old := at.Load()
		if old != nil {
			if i := int(old.next.Add(1)) - 1; i < len(old.items) {
				return &old.items[i]
			}
		}
		at.CompareAndSwap(old, old.following())
	}
}

// following returns the sheet for what does not fit on this one.
func (s *sheet) following() *sheet {
	n, now := smallSheet, clock.Now()
	if s != nil && now-s.begun < busy*int64(len(s.items)) {
		n = largeSheet
	}
	return &sheet{items: make([]appending, n), begun: now}
}
