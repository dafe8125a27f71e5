package rabbitmq

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/queuestream/broker"
)

// Headers of our own. Readers of a message do not see them.
const (
	headerPrefix  = "x-broker-"
	headerGroup   = headerPrefix + "group"
	headerSlot    = headerPrefix + "slot"    // hash of the group, for shards behind an exchange
	headerAttempt = headerPrefix + "attempt" // deliveries before this copy was published
	headerTime    = headerPrefix + "time"    // published, Unix milliseconds
	headerExpires = headerPrefix + "expires" // Unix milliseconds
	headerList    = headerPrefix + "headers" // what a table cannot hold: order, duplicates, reserved keys
)

// maxShortString is AMQP's limit of keys, ids and names, in bytes.
const maxShortString = 255

// maxHeaderKey is the longest key put into the table; longer ones go into
// headerList.
const maxHeaderKey = 128

// reservedKey tells whether a key means something to the broker, so that a
// user's header of that name must not be in the table. CC and BCC route copies.
func reservedKey(k string) bool {
	switch k {
	case "CC", "BCC", "x-death", "x-delivery-count", "x-acquired-count", "x-exception", "x-delay",
		"x-stream-offset", "x-stream-filter-value":
		return true
	}
	return strings.HasPrefix(k, headerPrefix) || brokerKey(k) || !utf8.ValidString(k)
}

// brokerKey tells whether the broker adds the key to messages.
func brokerKey(k string) bool {
	return k == "x-death" || k == "x-delivery-count" || k == "x-acquired-count" ||
		strings.HasPrefix(k, "x-first-death-") || strings.HasPrefix(k, "x-last-death-") ||
		strings.HasPrefix(k, "x-opt-")
}

// encodeHeaders puts h into t. A sorted list without duplicates and reserved
// keys needs nothing but the table, which any other client reads as well.
func encodeHeaders(h broker.Headers, t amqp.Table) {
	plain := true
	for i := range h {
		switch {
		case reservedKey(h[i].Key) || len(h[i].Key) > maxHeaderKey:
			plain = false
		case i > 0 && h[i].Key <= h[i-1].Key:
			plain = false
			if _, dup := t[h[i].Key]; !dup {
				t[h[i].Key] = h[i].Value
			}
		default:
			if _, dup := t[h[i].Key]; !dup {
				t[h[i].Key] = h[i].Value
			}
		}
	}
	if !plain {
		t[headerList] = encodeHeaderList(h)
	}
}

// encodeHeaderList writes every entry in order: the key, and 0 where the value
// is the table's, or 1 and the value.
func encodeHeaderList(h broker.Headers) []byte {
	var b []byte
	seen := make(map[string]struct{}, len(h))
	for _, e := range h {
		b = binary.AppendUvarint(b, uint64(len(e.Key)))
		b = append(b, e.Key...)
		_, dup := seen[e.Key]
		if !dup && !reservedKey(e.Key) && len(e.Key) <= maxHeaderKey {
			seen[e.Key] = struct{}{}
			b = append(b, 0)
			continue
		}
		b = append(b, 1)
		b = binary.AppendUvarint(b, uint64(len(e.Value)))
		b = append(b, e.Value...)
	}
	return b
}

// decodeHeaderList reads what encodeHeaderList wrote; text returns the value
// that the table has. It reports false for anything else.
func decodeHeaderList(b []byte, text func(key string) (string, bool)) (broker.Headers, bool) {
	var h broker.Headers
	next := func() (string, bool) {
		n, w := binary.Uvarint(b)
		if w <= 0 || n > uint64(len(b)-w) {
			return "", false
		}
		s := string(b[w : w+int(n)])
		b = b[w+int(n):]
		return s, true
	}
	for len(b) > 0 {
		k, ok := next()
		if !ok || k == "" || len(b) == 0 {
			return nil, false
		}
		inline := b[0]
		b = b[1:]
		var v string
		switch inline {
		case 0:
			v, ok = text(k)
		case 1:
			v, ok = next()
		default:
			ok = false
		}
		if !ok {
			return nil, false
		}
		h = append(h, broker.Header{Key: k, Value: v})
	}
	return h, true
}

func decodeHeaders(t amqp.Table) broker.Headers {
	if list, ok := binaryValue(t[headerList]); ok {
		h, ok := decodeHeaderList(list, func(k string) (string, bool) {
			v, ok := t[k]
			return fieldText(v), ok
		})
		if ok {
			return h
		}
	}
	var h broker.Headers
	for k, v := range t {
		if k == "" || brokerKey(k) || strings.HasPrefix(k, headerPrefix) {
			continue
		}
		h = append(h, broker.Header{Key: k, Value: fieldText(v)})
	}
	slices.SortFunc(h, func(a, b broker.Header) int { return strings.Compare(a.Key, b.Key) })
	return h
}

func binaryValue(v any) ([]byte, bool) {
	switch v := v.(type) {
	case []byte:
		return v, true
	case string:
		return []byte(v), true
	}
	return nil, false
}

// fieldText is the text of a header that another client typed.
func fieldText(v any) string {
	switch v := v.(type) {
	case nil:
		return ""
	case string:
		return v
	case []byte:
		return string(v)
	case time.Time:
		return v.UTC().Format(time.RFC3339)
	case float64:
		return strconv.FormatFloat(v, 'g', -1, 64)
	case float32:
		return strconv.FormatFloat(float64(v), 'g', -1, 32)
	}
	return fmt.Sprint(v)
}

func fieldInt(v any) (int64, bool) {
	switch v := v.(type) {
	case int64:
		return v, true
	case int32:
		return int64(v), true
	case int16:
		return int64(v), true
	case int8:
		return int64(v), true
	case uint8:
		return int64(v), true
	case uint16:
		return int64(v), true
	case uint32:
		return int64(v), true
	case int:
		return int64(v), true
	}
	return 0, false
}

// checkMessage refuses what AMQP cannot carry. A header frame must fit into
// one frame (frame_max, 128 KiB).
func checkMessage(m *broker.Message) error {
	for _, f := range []struct{ name, value string }{
		{"ID", m.ID}, {"ContentType", m.ContentType}, {"CorrelationID", m.CorrelationID},
		{"ReplyTo", m.ReplyTo}, {"GroupID", m.GroupID},
	} {
		if len(f.value) > maxShortString {
			return broker.Invalid("%s of %d bytes: at most %d", f.name, len(f.value), maxShortString)
		}
	}
	n := 0
	for i := range m.Headers {
		n += 2*len(m.Headers[i].Key) + len(m.Headers[i].Value) + 16
	}
	if n > maxHeaderBytes {
		return fmt.Errorf("headers: %w", &broker.SizeError{Size: n, Limit: maxHeaderBytes})
	}
	return nil
}

// maxHeaderBytes leaves room for the other properties in a frame of 128 KiB.
const maxHeaderBytes = 120 << 10

// encode returns m as AMQP sends it. attempt is the number of deliveries that
// m has had; expires overrides TTL, which counts from now.
func encode(m *broker.Message, attempt int, expires time.Time, now time.Time) amqp.Publishing {
	t := make(amqp.Table, len(m.Headers)+3)
	encodeHeaders(m.Headers, t)
	t[headerTime] = now.UnixMilli()
	if m.GroupID != "" {
		t[headerGroup] = m.GroupID
	}
	if attempt > 0 {
		t[headerAttempt] = int64(attempt)
	}
	p := amqp.Publishing{
		Headers: t, ContentType: m.ContentType, DeliveryMode: amqp.Persistent, Priority: uint8(m.Priority), //nolint:gosec // validated to 0..255
		CorrelationId: m.CorrelationID, ReplyTo: m.ReplyTo, MessageId: m.ID, Timestamp: now, Body: m.Body,
	}
	if expires.IsZero() && m.TTL > 0 {
		expires = now.Add(m.Delay + m.TTL)
	}
	if !expires.IsZero() {
		t[headerExpires] = expires.UnixMilli()
		if m.Delay == 0 { // an expiration would cut the ladder short
			left := max(0, min(expires.Sub(now).Milliseconds(), maxTTL.Milliseconds()))
			p.Expiration = strconv.FormatInt(left, 10)
		}
	}
	return p
}

// maxTTL is the longest expiration that the broker takes: 2³²-1 ms. What lives
// longer is dropped by its header when it is delivered.
const maxTTL = (1<<32 - 1) * time.Millisecond

// A received is what a delivery says besides its message.
type received struct {
	attempt int // deliveries with this one
	expires time.Time
}

// decode fills d from what AMQP delivered.
func decode(a *amqp.Delivery, d *broker.Delivery) received {
	d.Message = broker.Message{
		ID: a.MessageId, Body: a.Body, ContentType: a.ContentType, Headers: decodeHeaders(a.Headers),
		Priority: int(a.Priority), CorrelationID: a.CorrelationId, ReplyTo: a.ReplyTo,
		GroupID: fieldText(a.Headers[headerGroup]),
	}
	if a.Expiration != "" { // parsing nothing makes an error for each message
		if ms, err := strconv.ParseInt(a.Expiration, 10, 64); err == nil && ms > 0 {
			d.TTL = time.Duration(ms) * time.Millisecond
		}
	}
	d.Time = a.Timestamp
	if ms, ok := fieldInt(a.Headers[headerTime]); ok {
		d.Time = time.UnixMilli(ms)
	}
	var r received
	before, _ := fieldInt(a.Headers[headerAttempt])
	count, counted := fieldInt(a.Headers["x-delivery-count"])
	if !counted && a.Redelivered {
		count = 1
	}
	const most = math.MaxInt32 // whatever another client writes
	r.attempt = int(min(most, max(0, before)) + min(most, max(0, count)) + 1)
	if ms, ok := fieldInt(a.Headers[headerExpires]); ok {
		r.expires = time.UnixMilli(ms)
		if d.TTL == 0 { // it was delayed, and has no expiration of the broker's
			d.TTL = max(0, r.expires.Sub(d.Time))
		}
	}
	d.Attempt = r.attempt
	addDeath(a.Headers, d)
	return r
}

// addDeath gives a message that the broker itself dead-lettered (expired, over
// the length limit) the headers that every dead letter has.
func addDeath(t amqp.Table, d *broker.Delivery) {
	deaths, ok := t["x-death"].([]any)
	if !ok || len(deaths) == 0 {
		return
	}
	if _, ours := broker.DeadLetterOf(&d.Message); ours {
		return
	}
	last, ok := deaths[0].(amqp.Table)
	if !ok {
		return
	}
	queue := fieldText(last["queue"])
	if queue == "" || strings.HasPrefix(queue, delayPrefix) {
		return
	}
	at, _ := last["time"].(time.Time)
	d.Message = broker.DeadLetterMessage(d.Message, broker.DeadLetter{
		Reason: fieldText(last["reason"]), Queue: unshard(queue), Attempts: d.Attempt - 1, Time: at,
	})
}
