package rabbitmq

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"

	"github.com/rabbitmq/rabbitmq-stream-go-client/pkg/message"
	"github.com/rabbitmq/rabbitmq-stream-go-client/pkg/stream"

	samqp "github.com/rabbitmq/rabbitmq-stream-go-client/pkg/amqp"

	"github.com/queuestream/broker"
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
	done      chan struct{}

	mu      sync.Mutex
	started bool
	next    int64         // number of the next record
	queue   []*submission // not confirmed, in order of numbers
	sent    int           // of queue, on the live connection
	byID    map[int64]*submission
	wake    chan struct{}
}

// A submission is a record on its way.
type submission struct {
	msg    *samqp.AMQP10
	id     int64 // 0: not numbered, never sent
	size   int
	weight int64
	err    error
	gone   bool // the caller left before it was sent
	done   chan struct{}
}

func newPartitionWriter(s *Stream, partition string) *partitionWriter {
	return &partitionWriter{
		s: s, partition: partition, ctx: s.ctx, done: make(chan struct{}),
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
	if s.id != 0 {
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
		s.err = outcome(err, s.id != 0)
		close(s.done)
	}
	w.queue, w.sent = nil, 0
	clear(w.byID)
}

// session publishes over one producer until it dies.
func (w *partitionWriter) session() error {
	type opened struct {
		p    *stream.Producer
		last int64
	}
	o, err := acquire(w.ctx, w.s.b.streams, func(env *stream.Environment) (opened, error) {
		p, err := env.NewProducer(w.partition, stream.NewProducerOptions().SetProducerName(w.s.producer).
			SetConfirmationTimeOut(confirmTimeout).SetClientProvidedName(w.s.b.o.Name))
		if err != nil {
			return opened{}, err
		}
		last, err := p.GetLastPublishingId()
		if err != nil {
			return opened{}, errors.Join(err, p.Close())
		}
		return opened{p, last}, nil
	}, func(o opened) { _ = o.p.Close() }) // closed already when its connection died
	if err != nil {
		return err
	}
	closed, confirms := o.p.NotifyClose(), o.p.NotifyPublishConfirmation()
	w.mu.Lock()
	w.sent = 0 // everything unconfirmed goes again
	w.next = max(w.next, o.last+1, 1)
	w.mu.Unlock()
	w.signal()
	stop := make(chan struct{})
	var reader sync.WaitGroup
	reader.Go(func() { w.confirm(confirms, stop) })
	err = w.write(o.p, closed)
	// Close waits for confirms and for the socket: it must not hold this up.
	closing := make(chan struct{})
	go func() {
		defer close(closing)
		_ = o.p.Close() // closed already when its connection died
	}()
	ctx, cancel := context.WithTimeout(context.Background(), w.s.b.o.CloseTimeout)
	defer cancel()
	select {
	case <-closing:
	case <-ctx.Done():
	}
	close(stop)
	reader.Wait()
	return err
}

// write sends what is queued, in batches, until the producer dies.
func (w *partitionWriter) write(p *stream.Producer, closed stream.ChannelClose) error {
	for {
		batch := w.take()
		if len(batch) == 0 {
			select {
			case <-w.wake:
				continue
			case <-closed:
				return broker.ErrUnavailable
			case <-w.ctx.Done():
				return nil
			}
		}
		// The write blocks while the network stalls, until heartbeats find out.
		sent := make(chan error, 1)
		go func() { sent <- p.BatchSend(batch) }()
		select {
		case err := <-sent:
			if err != nil {
				return classifyStream(err)
			}
		case <-w.ctx.Done():
			return nil
		}
	}
}

// take numbers the next batch and marks it as sent.
func (w *partitionWriter) take() []message.StreamMessage {
	w.mu.Lock()
	defer w.mu.Unlock()
	var batch []message.StreamMessage
	size := 0
	for w.sent < len(w.queue) && len(batch) < streamBatch {
		s := w.queue[w.sent]
		if s.gone {
			w.queue = append(w.queue[:w.sent], w.queue[w.sent+1:]...)
			close(s.done)
			continue
		}
		if size += s.size; len(batch) > 0 && size > streamBatchBytes {
			break
		}
		if s.id == 0 {
			s.id = w.next
			w.next++
			s.msg.SetPublishingId(s.id)
			w.byID[s.id] = s
		}
		batch = append(batch, s.msg)
		w.sent++
	}
	return batch
}

// confirm completes submissions. Failures that the client makes up itself when
// a connection dies are no answers: the records are sent again.
func (w *partitionWriter) confirm(confirms stream.ChannelPublishConfirm, stop chan struct{}) {
	for {
		select {
		case statuses, ok := <-confirms:
			if !ok {
				return
			}
			w.mu.Lock()
			for _, c := range statuses {
				s := w.byID[c.GetPublishingId()]
				if s == nil {
					continue
				}
				if !c.IsConfirmed() {
					if errors.Is(c.GetError(), stream.ConfirmationTimoutError) || c.GetErrorCode() >= clientErrorCodes || c.GetErrorCode() == 0 {
						continue
					}
					s.err = classifyStream(c.GetError())
				}
				delete(w.byID, s.id)
				close(s.done)
			}
			w.prune()
			w.mu.Unlock()
		case <-stop:
			return
		}
	}
}

// clientErrorCodes: codes from here on are not of the protocol.
const clientErrorCodes = 60

// prune drops confirmed submissions from the front. w.mu is held.
func (w *partitionWriter) prune() {
	n := 0
	for n < w.sent && w.byID[w.queue[n].id] == nil {
		n++
	}
	clear(w.queue[:n])
	w.queue = w.queue[n:]
	w.sent -= n
}
