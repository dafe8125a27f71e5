package kafka

import (
	"context"
	"fmt"
	"math/bits"
	"strconv"
	"strings"
	"time"

	"github.com/queuestream/broker"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Headers of a queue's records that carry a message's fields. Names that begin
// with headerPrefix are the adapter's own.
const (
	headerPrefix        = "queuestream-"
	headerID            = headerPrefix + "id"
	headerContentType   = headerPrefix + "content-type"
	headerCorrelationID = headerPrefix + "correlation-id"
	headerReplyTo       = headerPrefix + "reply-to"
	headerAttempts      = headerPrefix + "attempts" // before this copy
	headerDue           = headerPrefix + "due"      // Unix time in ms; in the retry topic
	headerTime          = headerPrefix + "time"     // of the first copy, Unix time in ms
)

// HeaderKey is the header in which a delivery shows the key of a record that
// another program has written to the queue's topic, and with which a message
// is given one.
const HeaderKey = "kafka-key"

const (
	// queueOverhead is kept free in a record for the adapter's headers and for
	// those of a dead letter.
	queueOverhead = 2048
	maxReason     = 1024
)

// A copyOut is a message on its way to a topic.
type copyOut struct {
	topic    string
	message  *broker.Message
	attempts int       // before this copy
	due      time.Time // of the retry topic; zero elsewhere
	time     time.Time // of the first copy; zero: this is the first
}

// validateQueueMessage checks what the adapter asks of a message on top of
// broker.ValidateMessage.
func validateQueueMessage(m *broker.Message, c *broker.QueueCapabilities) error {
	if err := broker.ValidateMessage(m, c); err != nil {
		return err
	}
	for i := range m.Headers {
		if strings.HasPrefix(m.Headers[i].Key, headerPrefix) {
			return broker.Invalid("Headers[%d] %q: names that begin with %s are the adapter's own", i, m.Headers[i].Key, headerPrefix)
		}
	}
	if n := len(m.ID) + len(m.CorrelationID) + len(m.ReplyTo); n > queueOverhead/2 {
		return broker.Invalid("ID, CorrelationID and ReplyTo of %d bytes: want at most %d in all", n, queueOverhead/2)
	}
	return nil
}

// encode writes a message into a record.
func (o *copyOut) encode(it *item, cp *copies) {
	m, r := o.message, &it.rec
	r.Topic = o.topic
	r.Value = cp.of(m.Body)
	if r.Value == nil {
		r.Value = []byte{}
	}
	r.Headers = make([]kgo.RecordHeader, 0, len(m.Headers)+4)
	add := func(key, value string) {
		if value != "" {
			r.Headers = append(r.Headers, kgo.RecordHeader{Key: key, Value: []byte(value)})
		}
	}
	add(headerID, m.ID)
	add(headerContentType, m.ContentType)
	add(headerCorrelationID, m.CorrelationID)
	add(headerReplyTo, m.ReplyTo)
	if o.attempts > 0 {
		add(headerAttempts, strconv.Itoa(o.attempts))
	}
	if !o.time.IsZero() {
		add(headerTime, strconv.FormatInt(o.time.UnixMilli(), 10))
	}
	if !o.due.IsZero() {
		due := o.due.Add(time.Millisecond - time.Nanosecond) // rounded up: never early
		add(headerDue, strconv.FormatInt(due.UnixMilli(), 10))
		r.Partition = retryPartition(time.Until(o.due))
	}
	for i := range m.Headers {
		if m.Headers[i].Key == HeaderKey && r.Key == nil {
			r.Key = []byte(m.Headers[i].Value)
			continue
		}
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: m.Headers[i].Key, Value: []byte(m.Headers[i].Value)})
	}
}

// retryPartitions is how many partitions a retry topic has: one for each range
// of delays, since a partition hands out only so many records at a time, in
// order, and a short delay must not wait for long ones.
const retryPartitions = 12

// retryPartition returns the partition of a delay: below 1 s, 4 s, 16 s, …
func retryPartition(delay time.Duration) int32 {
	n := bits.Len64(uint64(max(0, delay) / time.Second))
	return int32(min((n+1)/2, retryPartitions-1)) //nolint:gosec // below retryPartitions
}

// An arrival is what a record of a queue's topics says.
type arrival struct {
	message  broker.Message
	attempts int       // before this copy
	due      time.Time // zero: now
	time     time.Time
}

func decode(r *kgo.Record) arrival {
	a := arrival{time: r.Timestamp, message: broker.Message{Body: r.Value}}
	m := &a.message
	if len(r.Headers) > 0 || r.Key != nil {
		m.Headers = make(broker.Headers, 0, len(r.Headers))
	}
	for i := range r.Headers {
		key, value := r.Headers[i].Key, string(r.Headers[i].Value)
		switch key {
		case headerID:
			m.ID = value
		case headerContentType:
			m.ContentType = value
		case headerCorrelationID:
			m.CorrelationID = value
		case headerReplyTo:
			m.ReplyTo = value
		case headerAttempts:
			if n, err := strconv.Atoi(value); err == nil && n > 0 {
				a.attempts = n
			}
		case headerTime:
			if n, err := strconv.ParseInt(value, 10, 64); err == nil {
				a.time = time.UnixMilli(n)
			}
		case headerDue:
			if n, err := strconv.ParseInt(value, 10, 64); err == nil {
				a.due = time.UnixMilli(n)
			}
		default:
			m.Headers = append(m.Headers, broker.Header{Key: key, Value: value})
		}
	}
	if r.Key != nil {
		m.Headers = append(m.Headers, broker.Header{Key: HeaderKey, Value: string(r.Key)})
	}
	if len(m.Headers) == 0 {
		m.Headers = nil
	}
	if m.ID == "" { // of another program: where it lies names it
		m.ID = fmt.Sprintf("%s/%d/%d", r.Topic, r.Partition, r.Offset)
	}
	return a
}

// send writes copies and returns an error for each.
func (b *Broker) send(ctx context.Context, outs []copyOut) []error {
	l := messageLoad{outs, make([]error, len(outs))}
	b.deliver(ctx, &l, len(outs))
	return l.errs
}

// A messageLoad is the load of messages.
type messageLoad struct {
	outs []copyOut
	errs []error
}

func (l *messageLoad) size(i int) int { return len(l.outs[i].message.Body) }

func (l *messageLoad) partition(int) int { return -1 }

func (l *messageLoad) encode(i int, it *item, cp *copies) error {
	l.outs[i].encode(it, cp)
	return nil
}

func (l *messageLoad) answer(i int, _ int32, _ int64, err error) { l.errs[i] = err }

// deadLetter returns the copy for the dead-letter queue.
func (q *Queue) deadLetter(m *broker.Message, reason string, attempts int, accepted time.Time) copyOut {
	if len(reason) > maxReason {
		reason = strings.ToValidUTF8(reason[:maxReason], "")
	}
	dead := broker.DeadLetterMessage(*m, broker.DeadLetter{Reason: reason, Queue: q.name, Attempts: attempts, Time: time.Now()})
	return copyOut{topic: q.dead, message: &dead, time: accepted}
}
