package broker

import (
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Headers that a dead-lettered message carries on top of its own, the same on
// every broker. Redrive removes them.
const (
	HeaderDeadLetterReason   = "x-dead-letter-reason"
	HeaderDeadLetterQueue    = "x-dead-letter-queue" // where it was consumed
	HeaderDeadLetterAttempts = "x-dead-letter-attempts"
	HeaderDeadLetterTime     = "x-dead-letter-time" // RFC 3339
	// HeaderDeadLetterOmitted is there where a record did not fit into its
	// dead-letter target: body and headers are missing, and it tells their bytes.
	HeaderDeadLetterOmitted = "x-dead-letter-omitted"
)

// Headers that tell where in a stream a message comes from.
const (
	HeaderSourceStream    = "x-source-stream"
	HeaderSourcePartition = "x-source-partition"
	HeaderSourceOffset    = "x-source-offset"
	HeaderSourceKey       = "x-source-key"
	HeaderSourceTime      = "x-source-time" // RFC 3339
)

// A DeadLetter tells why a message is in a dead-letter queue.
type DeadLetter struct {
	Reason   string // at most 1,024 bytes of it are kept
	Queue    string // where it was consumed
	Attempts int
	Time     time.Time
}

// DeadLetterMessage returns the message to store in a dead-letter queue: m
// with everything it carries, but for Delay and TTL, and why in its headers, in
// place of those that begin with x-dead-letter-, which belong to this.
// m is not changed.
func DeadLetterMessage(m Message, why DeadLetter) Message {
	h := m.Headers.Without(isDeadLetterHeader)
	m.Headers = append(h[:len(h):len(h)],
		Header{HeaderDeadLetterReason, cut(why.Reason, maxReason)},
		Header{HeaderDeadLetterQueue, why.Queue},
		Header{HeaderDeadLetterAttempts, strconv.Itoa(why.Attempts)},
		Header{HeaderDeadLetterTime, why.Time.UTC().Format(time.RFC3339Nano)})
	m.Delay, m.TTL = 0, 0
	return m
}

// maxReason bounds a reason: the error of a handler may quote a whole page, and
// with it the dead letter would be refused.
const maxReason = 1024

// cut returns at most the first n bytes of s, and no part of a character.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for i := range utf8.UTFMax { // of what is no text nothing is a beginning
		if utf8.RuneStart(s[n-i]) {
			return s[:n-i]
		}
	}
	return s[:n]
}

// DeadLetterOf reads what DeadLetterMessage wrote, and whether it is there.
func DeadLetterOf(m *Message) (DeadLetter, bool) {
	reason, ok := m.Headers.Lookup(HeaderDeadLetterReason)
	if !ok {
		return DeadLetter{}, false
	}
	d := DeadLetter{Reason: reason, Queue: m.Headers.Get(HeaderDeadLetterQueue)}
	d.Attempts, _ = strconv.Atoi(m.Headers.Get(HeaderDeadLetterAttempts))
	d.Time, _ = time.Parse(time.RFC3339Nano, m.Headers.Get(HeaderDeadLetterTime))
	return d, true
}

// RedriveMessage undoes DeadLetterMessage: it returns m as it was published.
func RedriveMessage(m Message) Message {
	m.Headers = m.Headers.Without(isDeadLetterHeader)
	return m
}

func isDeadLetterHeader(key string) bool { return strings.HasPrefix(key, "x-dead-letter-") }

// SourceHeaders returns the headers that tell where r was read, sorted by key.
func SourceHeaders(r *Record) Headers {
	stream := ""
	if a := r.Assignment(); a != nil {
		stream = a.Stream
	}
	var room [128]byte // all that is text, in one string
	b := append(room[:0], r.Key...)
	key := len(b)
	b = r.Offset().append(b)
	offset := len(b)
	b = strconv.AppendInt(b, int64(r.Partition), 10)
	partition := len(b)
	t := r.Time()
	if !t.IsZero() {
		b = t.UTC().AppendFormat(b, time.RFC3339Nano)
	}
	text := string(b)
	h := append(make(Headers, 0, 5),
		Header{HeaderSourceKey, text[:key]},
		Header{HeaderSourceOffset, text[key:offset]},
		Header{HeaderSourcePartition, text[offset:partition]},
		Header{HeaderSourceStream, stream})
	if !t.IsZero() {
		h = append(h, Header{HeaderSourceTime, text[partition:]})
	}
	return h
}
