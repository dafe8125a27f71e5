package rabbitmq

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"

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
	if !w.started {
		w.started = true
		w.s.workers.Go(w.run)
	}
	w.queue = append(w.queue, subs...)
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
	backoff := w.s.b.o.MinBackoff
	for w.ctx.Err() == nil {
		if err := w.session(); err != nil && w.ctx.Err() == nil {
			if errors.Is(err, broker.ErrNotFound) || errors.Is(err, broker.ErrUnauthorized) {
				w.failAll(err)
			}
			w.s.b.o.Logger.Warn("publishing to a stream failed", "adapter", adapterName, "partition", w.partition, "error", err)
			sleep(w.ctx, backoff/2+rand.N(backoff/2+1))
			backoff = min(2*backoff, w.s.b.o.MaxBackoff)
			continue
		}
		backoff = w.s.b.o.MinBackoff
	}
	w.failAll(broker.ErrClosed)
}

// failAll ends every submission; those that were sent may be stored.
func (w *partitionWriter) failAll(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
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
		batch := w.take()
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

// take numbers the next batch and marks it as sent.
func (w *partitionWriter) take() []streamwire.Entry {
	w.mu.Lock()
	defer w.mu.Unlock()
	var batch []streamwire.Entry
	size := 0
	for w.sent < len(w.queue) && len(batch) < streamBatch {
		s := w.queue[w.sent]
		switch {
		case s.gone:
			w.queue = append(w.queue[:w.sent], w.queue[w.sent+1:]...)
			close(s.done)
			continue
		case s.ID != 0 && w.byID[s.ID] == nil: // decided by an earlier session
			w.sent++
			continue
		}
		if size += s.size(); len(batch) > 0 && size > streamBatchBytes {
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
