package broker

import (
	"context"
	"fmt"
	"time"
)

// An Incoming is what a loop hands to a handler, a *Delivery or a *Record, so
// that one Middleware serves both loops.
type Incoming interface {
	Info() Info
	// Payload returns the body (the value), which must not be modified.
	Payload() []byte
	// SetPayload replaces it for the handlers further in. The loop puts payload
	// and headers back before it settles, retries or dead-letters, so that a
	// dead-letter queue holds what was published (still encrypted, say).
	SetPayload(payload []byte)
	// HeaderSet returns the headers, for reading and replacing.
	HeaderSet() *Headers
}

// Info tells what an Incoming is and where it comes from.
type Info struct {
	Source    string    // the queue or the stream, where it is known
	Group     string    // the consumer group; empty for queues
	Key       string    // the record's key or the message's GroupID
	ID        string    // stable over redeliveries: the message's ID or "stream/partition/offset"
	Attempt   int       // from 1; 0: not known
	Time      time.Time // accepted by the broker
	Partition int32     // of a record
	Offset    Offset    // of a record
	IsRecord  bool
}

// A HandlerFunc handles an Incoming and returns a verdict as Handlers do.
type HandlerFunc func(ctx context.Context, in Incoming) error

// A Middleware wraps a HandlerFunc. The first of a list is the outermost.
type Middleware func(next HandlerFunc) HandlerFunc

// Chain puts the middlewares around h; the first is the outermost.
func Chain(h HandlerFunc, mw ...Middleware) HandlerFunc {
	for i := len(mw) - 1; i >= 0; i-- {
		h = mw[i](h)
	}
	return h
}

// Info implements [Incoming].
func (d *Delivery) Info() Info {
	return Info{Source: d.source(), Key: d.GroupID, ID: d.ID, Attempt: d.Attempt, Time: d.Time}
}

// Payload implements [Incoming].
func (d *Delivery) Payload() []byte { return d.Body }

// SetPayload implements [Incoming].
func (d *Delivery) SetPayload(b []byte) { d.Body = b }

// HeaderSet implements [Incoming].
func (d *Delivery) HeaderSet() *Headers { return &d.Headers }

// Info implements [Incoming].
func (r *Record) Info() Info {
	i := Info{
		Key: string(r.Key), Attempt: int(r.attempt), Time: r.Time(),
		Partition: r.Partition, Offset: r.offset, IsRecord: true,
	}
	if a := r.assignment; a != nil {
		i.Source, i.Group = a.Stream, a.Group
	}
	i.ID = fmt.Sprintf("%s/%d/%s", i.Source, r.Partition, r.offset)
	return i
}

// Payload implements [Incoming].
func (r *Record) Payload() []byte { return r.Value }

// SetPayload implements [Incoming].
func (r *Record) SetPayload(b []byte) { r.Value = b }

// HeaderSet implements [Incoming].
func (r *Record) HeaderSet() *Headers { return &r.Headers }

// restoring puts back what middlewares replaced once h has returned.
func restoring(h HandlerFunc) HandlerFunc {
	return func(ctx context.Context, in Incoming) error {
		payload, headers := in.Payload(), *in.HeaderSet()
		defer func() {
			in.SetPayload(payload)
			*in.HeaderSet() = headers
		}()
		return h(ctx, in)
	}
}
