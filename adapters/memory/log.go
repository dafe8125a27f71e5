package memory

import (
	"slices"
	"sort"
	"sync/atomic"

	"github.com/queuestream/broker"
)

// A stored is a record in a log, with the transaction it belongs to. The
// record's Key, Value and Headers are the log's own.
type stored struct {
	rec  broker.Record
	tx   *txState // nil: none
	size int64
}

// A txState is shared by all records of one transaction, so that one store
// makes all of them visible.
type txState struct {
	state    atomic.Int32
	deadline int64 // UnixNano
}

const (
	txOpen int32 = iota
	txCommitted
	txAborted
)

// expire aborts the transaction if its time is over.
func (t *txState) expire(now int64) {
	if now >= t.deadline {
		t.state.CompareAndSwap(txOpen, txAborted)
	}
}

const (
	chunkRecords   = 256
	slabRecords    = 16 // one slow reader of a record holds no more than these
	recordOverhead = 160
)

// A chunk is a run of records of a log.
type chunk struct {
	recs  []stored
	maxMS int64 // no record is later
}

// A partition is one log. The stream's lock guards it.
type partition struct {
	id          int32
	first, next int64
	chunks      []*chunk
	records     int64
	bytes       int64
	open        []openTx
	aborted     int64            // records of aborted transactions that are still here
	latest      map[string]int64 // of compacted logs: the offset of each key's latest record
	tombstones  []tombstone      // of compacted logs
}

type openTx struct {
	tx    *txState
	first int64
}

type tombstone struct{ offset, ms int64 }

func offsetOf(s *stored) int64 {
	n, _ := s.rec.Offset().Int64()
	return n
}

// append stores a copy of r and returns its offset.
func (p *partition) append(r *broker.Record, tx *txState) int64 {
	s := stored{rec: *r, tx: tx, size: int64(r.Size()) + recordOverhead}
	buf := make([]byte, len(r.Key)+len(r.Value))
	k := copy(buf, r.Key)
	copy(buf[k:], r.Value)
	s.rec.Key, s.rec.Value = buf[:k:k], buf[k:]
	s.rec.Headers = append(broker.Headers(nil), r.Headers...)
	s.rec.Partition, s.rec.Pin = p.id, false
	offset := p.next
	s.rec.Bind(broker.NewOffset(offset), nil)
	if n := len(p.chunks); n == 0 || len(p.chunks[n-1].recs) >= chunkRecords {
		p.chunks = append(p.chunks, &chunk{})
	}
	c := p.chunks[len(p.chunks)-1]
	c.recs = append(c.recs, s)
	c.maxMS = max(c.maxMS, s.rec.Time().UnixMilli())
	p.next++
	p.records++
	p.bytes += s.size
	if tx != nil && !slices.ContainsFunc(p.open, func(o openTx) bool { return o.tx == tx }) {
		p.open = append(p.open, openTx{tx, offset})
	}
	return offset
}

// find returns the place of the first record at or after offset.
func (p *partition) find(offset int64) (ci, i int) {
	ci = sort.Search(len(p.chunks), func(i int) bool {
		recs := p.chunks[i].recs
		return offsetOf(&recs[len(recs)-1]) >= offset
	})
	if ci == len(p.chunks) {
		return ci, 0
	}
	recs := p.chunks[ci].recs
	return ci, sort.Search(len(recs), func(i int) bool { return offsetOf(&recs[i]) >= offset })
}

// end returns where readers stop: the end of the log or, for committed reads,
// the first record of an open transaction.
func (p *partition) end(committed bool, now int64) int64 {
	p.settle(now)
	end := p.next
	if committed {
		for _, o := range p.open {
			end = min(end, o.first)
		}
	}
	return end
}

// settle takes note of transactions that ended.
func (p *partition) settle(now int64) {
	if len(p.open) == 0 {
		return
	}
	kept := p.open[:0]
	for _, o := range p.open {
		o.tx.expire(now)
		switch o.tx.state.Load() {
		case txOpen:
			kept = append(kept, o)
			continue
		case txAborted:
			var offsets []int64
			p.each(o.first, p.next, func(s *stored) bool {
				if s.tx == o.tx {
					p.aborted++
					offsets = append(offsets, offsetOf(s))
				}
				return true
			})
			if p.latest != nil { // nothing else would remove them
				for _, n := range offsets {
					p.remove(n)
				}
			}
		case txCommitted:
			if p.latest != nil {
				var keys []string
				var offsets []int64
				p.each(o.first, p.next, func(s *stored) bool {
					if s.tx == o.tx {
						keys, offsets = append(keys, string(s.rec.Key)), append(offsets, offsetOf(s))
					}
					return true
				})
				for i := range keys {
					p.supersede(keys[i], offsets[i])
				}
			}
		}
	}
	clear(p.open[len(kept):])
	p.open = kept
}

// each calls fn with every record from an offset up to another until it
// returns false.
func (p *partition) each(from, until int64, fn func(*stored) bool) {
	ci, i := p.find(from)
	for ; ci < len(p.chunks); ci, i = ci+1, 0 {
		recs := p.chunks[ci].recs
		for ; i < len(recs); i++ {
			if offsetOf(&recs[i]) >= until || !fn(&recs[i]) {
				return
			}
		}
	}
}

// fetch appends copies of at most n records from an offset up to end, and
// returns where to go on. Copies share memory in slabs.
func (p *partition) fetch(out []*broker.Record, from, end int64, n int, committed bool, a *broker.Assignment) ([]*broker.Record, int64) {
	var batch [slabRecords]*stored
	for n > 0 && from < end {
		k := 0
		p.each(from, end, func(s *stored) bool {
			from = offsetOf(s) + 1
			if committed && s.tx != nil && s.tx.state.Load() != txCommitted {
				return true
			}
			batch[k] = s
			k++
			return k < min(n, slabRecords)
		})
		if k == 0 {
			return out, end
		}
		out = copyRecords(out, batch[:k], a)
		n -= k
	}
	return out, from
}

func copyRecords(out []*broker.Record, batch []*stored, a *broker.Assignment) []*broker.Record {
	size := 0
	for _, s := range batch {
		size += len(s.rec.Key) + len(s.rec.Value)
	}
	buf := make([]byte, 0, size)
	recs := make([]broker.Record, len(batch))
	for i, s := range batch {
		r := &recs[i]
		*r = s.rec
		if a != nil {
			r.Bind(s.rec.Offset(), a)
		}
		at := len(buf)
		buf = append(append(buf, s.rec.Key...), s.rec.Value...)
		key := at + len(s.rec.Key)
		r.Key, r.Value = buf[at:key:key], buf[key:len(buf):len(buf)]
		if len(r.Key) == 0 {
			r.Key = nil
		}
		if len(s.rec.Headers) > 0 {
			r.Headers = append(broker.Headers(nil), s.rec.Headers...)
		}
		out = append(out, r)
	}
	return out
}

// remove takes out the record at an offset, if it is there.
func (p *partition) remove(offset int64) {
	ci, i := p.find(offset)
	if ci == len(p.chunks) || offsetOf(&p.chunks[ci].recs[i]) != offset {
		return
	}
	c := p.chunks[ci]
	p.uncount(&c.recs[i])
	n := len(c.recs) - 1
	if n == 0 {
		p.chunks = append(p.chunks[:ci:ci], p.chunks[ci+1:]...)
		return
	}
	copy(c.recs[i:], c.recs[i+1:])
	c.recs[n] = stored{}
	c.recs = c.recs[:n]
	if cap(c.recs) > 16 && n < cap(c.recs)/4 {
		c.recs = append(make([]stored, 0, 2*n), c.recs...)
	}
}

func (p *partition) uncount(s *stored) {
	p.records--
	p.bytes -= s.size
	if s.tx != nil && s.tx.state.Load() == txAborted {
		p.aborted--
	}
}

// supersede removes what the committed record at offset replaces.
func (p *partition) supersede(key string, offset int64) {
	if key == "" {
		return
	}
	old, ok := p.latest[key]
	if ok && old > offset {
		p.remove(offset)
		return
	}
	if ok {
		p.remove(old)
	}
	p.latest[key] = offset
	ci, i := p.find(offset)
	if ci < len(p.chunks) {
		if s := &p.chunks[ci].recs[i]; offsetOf(s) == offset && s.rec.Tombstone {
			p.tombstones = append(p.tombstones, tombstone{offset, s.rec.Time().UnixMilli()})
		}
	}
}

// retain removes what is over the limits: tombstones before a time (UnixMilli),
// then the oldest records, those before another time and those beyond a number
// of bytes. The latest record is kept for the limit of bytes.
func (p *partition) retain(beforeMS, maxBytes, tombstonesMS int64) {
	for len(p.tombstones) > 0 && p.tombstones[0].ms < tombstonesMS {
		t := p.tombstones[0]
		p.tombstones = p.tombstones[1:]
		ci, i := p.find(t.offset)
		if ci < len(p.chunks) && offsetOf(&p.chunks[ci].recs[i]) == t.offset {
			delete(p.latest, string(p.chunks[ci].recs[i].rec.Key))
			p.remove(t.offset)
		}
	}
	for len(p.chunks) > 0 {
		s := &p.chunks[0].recs[0]
		old := s.rec.Time().UnixMilli() < beforeMS
		over := maxBytes > 0 && p.bytes > maxBytes && p.records > 1
		if !old && !over {
			break
		}
		if s.tx != nil && s.tx.state.Load() == txOpen {
			break // its transaction still has to end
		}
		p.first = offsetOf(s) + 1
		p.uncount(s)
		if p.latest != nil && p.latest[string(s.rec.Key)] == p.first-1 {
			delete(p.latest, string(s.rec.Key))
		}
		c := p.chunks[0]
		c.recs[0] = stored{}
		if c.recs = c.recs[1:]; len(c.recs) == 0 {
			p.chunks[0] = nil
			p.chunks = p.chunks[1:]
		}
	}
}

// count returns how many records a reader sees from an offset up to end.
func (p *partition) count(from, end int64, committed bool) int64 {
	if from >= end {
		return 0
	}
	if !committed || p.aborted == 0 {
		return p.rank(end) - p.rank(from)
	}
	n := int64(0)
	p.each(from, end, func(s *stored) bool {
		if s.tx == nil || s.tx.state.Load() == txCommitted {
			n++
		}
		return true
	})
	return n
}

// rank returns how many records are before an offset.
func (p *partition) rank(offset int64) int64 {
	ci, i := p.find(offset)
	n := int64(i)
	for _, c := range p.chunks[:ci] {
		n += int64(len(c.recs))
	}
	return n
}

// atTime returns the offset of the first record at or after a time, or the end.
func (p *partition) atTime(ms int64) int64 {
	for _, c := range p.chunks {
		if c.maxMS < ms {
			continue
		}
		for i := range c.recs {
			if c.recs[i].rec.Time().UnixMilli() >= ms {
				return offsetOf(&c.recs[i])
			}
		}
	}
	return p.next
}
