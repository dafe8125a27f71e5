package rabbitmq

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/rabbitmq/internal/streamwire"
)

// streamBatch bounds what one frame of the stream protocol carries.
const (
	streamBatch      = 500
	streamBatchBytes = 512 << 10
)

// maxRecordBytes keeps a record and its properties in one frame of 1 MiB.
const maxRecordBytes = 1<<20 - 4096

// A partitionWriter publishes to one partition under a producer's name with
// ascending numbers of its own. After a connection broke it sends what was not
// confirmed again with the same numbers, so that the broker stores it once.
type partitionWriter struct {
	s         *Stream
	partition string
	ctx       context.Context // ends with the stream's Close
	refused   chan refusal    // the broker does not know the producer any more

	mu      sync.Mutex
	started bool
	ended   bool          // run has returned
	next    int64         // number of the next record
	queue   []*submission // not confirmed, in order of numbers
	sent    int           // of queue, on the live connection
	byID    map[int64]*submission
	wake    chan struct{}
}

// A refusal is the broker's answer to a producer, not to a record.
type refusal struct{ code streamwire.CodeError }

// A submission is a record on its way.
type submission struct {
	streamwire.Entry // ID 0: not numbered, never sent

	weight int64
	err    error
	gone   bool // the caller left before it was sent
	done   chan struct{}
}

func (s *submission) size() int { return len(s.Message) + streamwire.EntryOverhead }

func newPartitionWriter(s *Stream, partition string) *partitionWriter {
	return &partitionWriter{
		s: s, partition: partition, ctx: s.ctx, refused: make(chan refusal, 1),
		byID: map[int64]*submission{}, wake: make(chan struct{}, 1),
	}
}

// submit queues records in order; the caller holds window for each.
func (w *partitionWriter) submit(subs ...*submission) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.queue = append(w.queue, subs...)
	if w.ended { // the publisher was under way when the stream was closed
		w.failAll(broker.ErrClosed)
		return
	}
	if !w.started {
		w.started = true
		w.s.workers.Go(w.run)
	}
	w.signal()
}

func (w *partitionWriter) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// leave gives a submission up. It reports whether it was never sent.
func (w *partitionWriter) leave(s *submission) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if s.ID != 0 {
		return false
	}
	s.gone = true
	return true
}

func (w *partitionWriter) run() {
	wait := newBackoff(w.s.b.o)
	for w.ctx.Err() == nil {
		began := time.Now()
		err := w.session()
		if err == nil || w.ctx.Err() != nil {
			continue
		}
		if errors.Is(err, broker.ErrNotFound) || errors.Is(err, broker.ErrUnauthorized) {
			w.mu.Lock()
			w.failAll(err)
			w.mu.Unlock()
		}
		w.s.b.o.Logger.Warn("publishing to a stream failed", "adapter", adapterName, "partition", w.partition, "error", err)
		wait.sleep(w.ctx, began)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = true
	w.failAll(broker.ErrClosed)
}

// failAll ends every submission; those that were sent may be stored. w.mu is held.
func (w *partitionWriter) failAll(err error) {
	for _, s := range w.queue {
		if s.ID == 0 || w.byID[s.ID] != nil { // else it is decided
			s.err = outcome(err, s.ID != 0)
			close(s.done)
		}
	}
	w.queue, w.sent = nil, 0
	clear(w.byID)
}

// session publishes over one connection until it dies.
func (w *partitionWriter) session() error {
	k, err := w.s.b.streams.leader(w.ctx, rolePublish, w.partition)
	if err != nil {
		return classifyStream(err)
	}
	p, last, err := k.DeclarePublisher(w.ctx, w.s.producer, w.partition, w.confirm)
	if err != nil {
		return classifyStream(err)
	}
	defer p.Close()
	select {
	case <-w.refused: // of an earlier session
	default:
	}
	w.mu.Lock()
	w.sent = 0 // everything unconfirmed goes again
	w.next = max(w.next, last+1, 1)
	w.mu.Unlock()
	for {
		batch := w.take(p.Room())
		if len(batch) > 0 {
			if err := p.Send(batch); err != nil {
				return classifyStream(err)
			}
			continue
		}
		select {
		case <-w.wake:
		case <-p.Done():
			return classifyStream(p.Err())
		case r := <-w.refused:
			return classifyStream(r.code)
		case <-w.ctx.Done():
			return nil
		}
	}
}

// take numbers the next batch and marks it as sent. room is what a frame of the
// connection takes; what exceeds it alone is refused.
func (w *partitionWriter) take(room int) []streamwire.Entry {
	w.mu.Lock()
	defer w.mu.Unlock()
	var batch []streamwire.Entry
	size := 0
	for w.sent < len(w.queue) && len(batch) < streamBatch {
		s := w.queue[w.sent]
		switch {
		case s.gone:
			w.queue = slices.Delete(w.queue, w.sent, w.sent+1)
			close(s.done)
			continue
		case s.ID != 0 && w.byID[s.ID] == nil: // decided by an earlier session
			w.sent++
			continue
		case s.size() > room:
			s.err = outcome(&broker.SizeError{Size: len(s.Message), Limit: room - streamwire.EntryOverhead}, s.ID != 0)
			delete(w.byID, s.ID)
			w.queue = slices.Delete(w.queue, w.sent, w.sent+1)
			close(s.done)
			continue
		}
		if size += s.size(); len(batch) > 0 && size > min(room, streamBatchBytes) {
			break
		}
		if s.ID == 0 {
			s.ID = w.next
			w.next++
			w.byID[s.ID] = s
		}
		batch = append(batch, s.Entry)
		w.sent++
	}
	return batch
}

// confirm completes submissions; it runs on the connection's reader. An earlier
// connection's answers count as well: the numbers are the same.
func (w *partitionWriter) confirm(ids []int64, code streamwire.CodeError) {
	if code == streamwire.ErrStreamNotAvailable || code == streamwire.ErrPublisherDoesNotExist {
		select { // no answer to the records: they go again
		case w.refused <- refusal{code}:
		default:
		}
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, id := range ids {
		s := w.byID[id]
		if s == nil {
			continue
		}
		if code != streamwire.OK {
			s.err = classifyStream(code)
		}
		delete(w.byID, id)
		close(s.done)
	}
	w.prune()
}

// prune drops confirmed submissions from the front. w.mu is held.
func (w *partitionWriter) prune() {
	n := 0
	for n < w.sent && w.byID[w.queue[n].ID] == nil {
		n++
	}
	clear(w.queue[:n])
	w.queue = w.queue[n:]
	w.sent -= n
}
