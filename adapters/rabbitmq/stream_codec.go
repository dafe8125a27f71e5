package rabbitmq

import (
	"fmt"
	"time"
	"unicode/utf8"

	samqp "github.com/rabbitmq/rabbitmq-stream-go-client/pkg/amqp"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/queuestream/broker"
)

const headerKey = headerPrefix + "key" // of a record, binary

// encodeRecord returns r as an AMQP 1.0 message: the value as data, the key and
// the headers as application properties, the time as creation-time.
func encodeRecord(r *broker.Record) ([]byte, error) {
	m := samqp.NewMessage(r.Value)
	at := r.Time()
	if at.IsZero() {
		at = time.Now()
	}
	m.Properties = &samqp.MessageProperties{CreationTime: at}
	if len(r.Key) == 0 && len(r.Headers) == 0 {
		return m.MarshalBinary()
	}
	t := make(amqp.Table, len(r.Headers)+1)
	encodeHeaders(r.Headers, t)
	for k, v := range t {
		if s, ok := v.(string); ok && !utf8.ValidString(s) { // AMQP 1.0 strings are UTF-8
			t[k] = []byte(s)
		}
	}
	if len(r.Key) > 0 {
		t[headerKey] = r.Key
	}
	m.ApplicationProperties = t
	return m.MarshalBinary()
}

// unmarshal is the library's, which panics at some of what a broken client may
// store, as an annotation that is keyed by bytes.
func unmarshal(b []byte, m *samqp.Message) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%v", p)
		}
	}()
	return m.UnmarshalBinary(b)
}

// decodeRecord reads what encodeRecord, or another client, wrote.
func decodeRecord(b []byte, partition int32, r *broker.Record) error {
	var m samqp.Message
	if err := unmarshal(b, &m); err != nil {
		return fmt.Errorf("a message that is not AMQP 1.0: %w", err)
	}
	r.Partition = partition
	switch {
	case len(m.Data) == 1:
		r.Value = m.Data[0]
	case len(m.Data) > 1:
		for _, d := range m.Data {
			r.Value = append(r.Value, d...)
		}
	case m.Value != nil:
		r.Value = []byte(fieldText(m.Value))
	}
	if r.Value == nil {
		r.Value = []byte{}
	}
	if m.Properties != nil {
		r.SetTime(m.Properties.CreationTime)
	}
	if len(m.ApplicationProperties) == 0 {
		return nil
	}
	if k, ok := binaryValue(m.ApplicationProperties[headerKey]); ok {
		r.Key = k
	}
	for k := range m.ApplicationProperties {
		if k != headerKey {
			r.Headers = decodeHeaders(m.ApplicationProperties)
			break
		}
	}
	return nil
}
