package broker

import (
	"context"
	"maps"
	"slices"
	"strings"
)

// HeaderType is the header that names a message's type.
const HeaderType = "x-type"

// A MessageType binds a Go type to a name and a codec. It is a plain value:
// declare it once and use it on both sides.
//
//	var SendEmail = broker.NewType[Email]("send-email")
type MessageType[T any] struct {
	Name  string // travels in the header x-type; empty: no header, and none is checked
	Codec Codec  // nil: JSON
}

// A Job is a delivery with its decoded body.
type Job[T any] struct {
	*Delivery
	Value T
}

// An Event is a record with its decoded value; a tombstone has the zero Value.
type Event[T any] struct {
	*Record
	Value T
}

// NewType returns a MessageType with the JSON codec.
func NewType[T any](name string) MessageType[T] { return MessageType[T]{Name: name} }

func (t MessageType[T]) codec() Codec {
	if t.Codec == nil {
		return JSON
	}
	return t.Codec
}

func (t MessageType[T]) headers() Headers {
	if t.Name == "" {
		return nil
	}
	return Headers{{HeaderType, t.Name}}
}

// Message encodes v as a message.
func (t MessageType[T]) Message(v T) (Message, error) {
	body, err := t.codec().Marshal(v)
	if err != nil {
		return Message{}, &Error{Op: "encode", Name: t.Name, Err: err}
	}
	return Message{Body: body, ContentType: t.codec().ContentType(), Headers: t.headers()}, nil
}

// Record encodes v as a record.
func (t MessageType[T]) Record(key string, v T) (Record, error) {
	value, err := t.codec().Marshal(v)
	if err != nil {
		return Record{}, &Error{Op: "encode", Name: t.Name, Err: err}
	}
	r := Record{Value: value, Headers: t.headers()}
	if key != "" {
		r.Key = []byte(key)
	}
	return r, nil
}

// Publish encodes v, applies edit and publishes.
func (t MessageType[T]) Publish(ctx context.Context, p Publisher, v T, edit ...func(*Message)) (Receipt, error) {
	m, err := t.Message(v)
	if err != nil {
		return Receipt{}, err
	}
	for _, e := range edit {
		e(&m)
	}
	return p.Publish(ctx, m)
}

// Append encodes v and publishes it to a stream.
func (t MessageType[T]) Append(ctx context.Context, s Stream, key string, v T) (Receipt, error) {
	r, err := t.Record(key, v)
	if err != nil {
		return Receipt{}, err
	}
	return s.Publish(ctx, r)
}

// Decode decodes a body (a value) with the given headers. A payload of another
// type is ErrInvalid.
func (t MessageType[T]) Decode(payload []byte, h Headers) (T, error) {
	var v T
	if got, ok := h.Lookup(HeaderType); ok && t.Name != "" && got != t.Name {
		return v, &Error{Op: "decode", Name: t.Name, Err: Invalid("a message of type %q", got)}
	}
	if err := t.codec().Unmarshal(payload, &v); err != nil {
		return v, &Error{Op: "decode", Name: t.Name, Err: decodeError(t.Name, err)}
	}
	return v, nil
}

// Handler returns a Handler that decodes; what does not decode is rejected.
func (t MessageType[T]) Handler(fn func(context.Context, Job[T]) error) Handler {
	return func(ctx context.Context, d *Delivery) error {
		v, err := t.Decode(d.Body, d.Headers)
		if err != nil {
			return Reject(err)
		}
		return fn(ctx, Job[T]{d, v})
	}
}

// RecordHandler returns a RecordHandler that decodes; what does not decode is
// rejected. A tombstone is passed on with the zero Value.
func (t MessageType[T]) RecordHandler(fn func(context.Context, Event[T]) error) RecordHandler {
	return func(ctx context.Context, r *Record) error {
		if r.Tombstone {
			return fn(ctx, Event[T]{Record: r})
		}
		v, err := t.Decode(r.Value, r.Headers)
		if err != nil {
			return Reject(err)
		}
		return fn(ctx, Event[T]{r, v})
	}
}

// Mux dispatches deliveries by the name of their type (the header x-type); one
// that is not there is rejected. The entry "" takes what no other takes.
//
//	worker.Handler = broker.Mux{
//		SendEmail.Name: SendEmail.Handler(sendEmail),
//		Resize.Name:    Resize.Handler(resize),
//	}.Handle
type Mux map[string]Handler

// Handle is a Handler.
func (m Mux) Handle(ctx context.Context, d *Delivery) error {
	name := d.Headers.Get(HeaderType)
	if h := m[name]; h != nil {
		return h(ctx, d)
	}
	if h := m[""]; h != nil {
		return h(ctx, d)
	}
	return Reject(Invalid("type %q: want one of %s", name, strings.Join(slices.Sorted(maps.Keys(m)), ", ")))
}

// RecordMux is Mux for records.
type RecordMux map[string]RecordHandler

// Handle is a RecordHandler.
func (m RecordMux) Handle(ctx context.Context, r *Record) error {
	name := r.Headers.Get(HeaderType)
	if h := m[name]; h != nil {
		return h(ctx, r)
	}
	if h := m[""]; h != nil {
		return h(ctx, r)
	}
	return Reject(Invalid("type %q: want one of %s", name, strings.Join(slices.Sorted(maps.Keys(m)), ", ")))
}
