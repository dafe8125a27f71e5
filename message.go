package broker

import (
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
	"slices"
	"time"
)

// A Message is a unit of work. A field that the queue cannot honour fails
// Publish with [ErrUnsupported]; none is ever dropped silently.
type Message struct {
	ID            string // set before sending when empty, so that a retry keeps it
	Body          []byte // nil and empty are the same
	ContentType   string
	Headers       Headers
	GroupID       string        // ordering scope; empty means unordered
	DedupID       string        // stored once within the queue's dedup window
	Delay         time.Duration // before the first delivery
	TTL           time.Duration // 0: the queue's own
	Priority      int           // higher first; 0: none
	CorrelationID string
	ReplyTo       string // the queue for the reply
}

// Headers keep order, duplicates and binary values. *Headers is an
// OpenTelemetry text map carrier (Get, Set, Keys).
type Headers []Header

// A Header is one entry of Headers. Key and Value may hold any bytes; an
// adapter whose broker allows only text encodes them.
type Header struct{ Key, Value string }

// With returns a copy of h with one more entry; h is not changed.
func (h Headers) With(key, value string) Headers {
	return append(h[:len(h):len(h)], Header{key, value})
}

// Get returns the first value of key, or "".
func (h Headers) Get(key string) string {
	v, _ := h.Lookup(key)
	return v
}

// Lookup returns the first value of key and whether there is one.
func (h Headers) Lookup(key string) (string, bool) {
	for i := range h {
		if h[i].Key == key {
			return h[i].Value, true
		}
	}
	return "", false
}

// Keys returns every key once, in order of first appearance.
func (h Headers) Keys() []string {
	keys := make([]string, 0, len(h))
	for i := range h {
		if !slices.Contains(keys, h[i].Key) {
			keys = append(keys, h[i].Key)
		}
	}
	return keys
}

// Set replaces all entries of key by one. It never writes to a backing array
// that a copy of h may share.
func (h *Headers) Set(key, value string) {
	out := make(Headers, 0, len(*h)+1)
	found := false
	for _, e := range *h {
		if e.Key != key {
			out = append(out, e)
		} else if !found {
			out, found = append(out, Header{key, value}), true
		}
	}
	if !found {
		out = append(out, Header{key, value})
	}
	*h = out
}

// Without returns a copy of h without the entries for which drop is true, or h
// itself when there is none.
func (h Headers) Without(drop func(key string) bool) Headers {
	match := func(e Header) bool { return drop(e.Key) }
	if !slices.ContainsFunc(h, match) {
		return h
	}
	return slices.DeleteFunc(slices.Clone(h), match)
}

// Size returns the bytes of all keys and values.
func (h Headers) Size() int {
	n := 0
	for i := range h {
		n += len(h[i].Key) + len(h[i].Value)
	}
	return n
}

// A Receipt is what a broker answered to a publish.
type Receipt struct {
	ID        string // of the message, set even when publishing failed
	Sequence  string // the broker's own id or sequence number, if it gives one
	Partition int32  // streams
	Offset    Offset // streams
	// Duplicate: the broker said that it had stored this message before and
	// did not store it again. False where the broker does not tell.
	Duplicate bool
}

// NewID returns a random UUID (version 7, RFC 9562): unique, and ordered by
// time to the millisecond.
func NewID() string {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], uint64(time.Now().UnixMilli())<<16|rand.Uint64()&0xffff)
	binary.BigEndian.PutUint64(b[8:], rand.Uint64())
	b[6] = b[6]&0x0f | 0x70
	b[8] = b[8]&0x3f | 0x80
	var s [36]byte
	hex.Encode(s[:8], b[:4])
	hex.Encode(s[9:13], b[4:6])
	hex.Encode(s[14:18], b[6:8])
	hex.Encode(s[19:23], b[8:10])
	hex.Encode(s[24:], b[10:])
	s[8], s[13], s[18], s[23] = '-', '-', '-', '-'
	return string(s[:])
}
