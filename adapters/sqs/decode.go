package sqs

import (
	"encoding/base64"
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/queuestream/broker"
)

// systemAttributes are what a receive asks for.
var systemAttributes = []types.MessageSystemAttributeName{
	types.MessageSystemAttributeNameSentTimestamp,
	types.MessageSystemAttributeNameApproximateReceiveCount,
	types.MessageSystemAttributeNameMessageGroupId,
	types.MessageSystemAttributeNameMessageDeduplicationId,
	types.MessageSystemAttributeNameDeadLetterQueueSourceArn,
}

// A received message, and what its Message has no field for.
type received struct {
	broker.Message
	attempt int
	time    time.Time
	due     time.Time // not to be delivered before
	lock    string    // MessageGroupId as SQS has it
	source  string    // the ARN of the queue that the service dead-lettered it from
}

// decode reads what encode wrote, and messages of others: there the body is
// the body, attributes are headers, and SQS's message id is the ID.
func decode(in *types.Message, unwrap bool) received {
	var r received
	body, attrs := aws.ToString(in.Body), in.MessageAttributes
	r.ID = aws.ToString(in.MessageId)
	if unwrap {
		if n, ok := unwrapSNS(body); ok {
			body, attrs, r.ID = n.Message, n.attributes(), n.MessageID
		}
	}
	md := r.attributes(attrs, body)
	r.ContentType, r.CorrelationID, r.ReplyTo = restore(md.ContentType), restore(md.CorrelationID), restore(md.ReplyTo)

	r.attempt = md.Attempts + max(1, systemInt(in, types.MessageSystemAttributeNameApproximateReceiveCount))
	sent := int64(systemInt(in, types.MessageSystemAttributeNameSentTimestamp))
	if md.Sent != 0 {
		sent = md.Sent
	}
	if sent != 0 {
		r.time = time.UnixMilli(sent)
	}
	if md.Due != 0 {
		r.due = time.UnixMilli(md.Due)
	}
	r.lock = in.Attributes[string(types.MessageSystemAttributeNameMessageGroupId)]
	switch {
	case md.GroupID != "":
		r.GroupID = restore(md.GroupID)
	case !strings.HasPrefix(r.lock, groupNone):
		r.GroupID = r.lock
	}
	dedup := in.Attributes[string(types.MessageSystemAttributeNameMessageDeduplicationId)]
	switch {
	case md.DedupID != "":
		r.DedupID = restore(md.DedupID)
	case !strings.HasPrefix(dedup, ownPrefix):
		r.DedupID = dedup
	}
	r.source = in.Attributes[string(types.MessageSystemAttributeNameDeadLetterQueueSourceArn)]
	return r
}

// attributes sets ID, Body and Headers, and returns the rest.
func (r *received) attributes(attrs map[string]types.MessageAttributeValue, body string) (md meta) {
	encoding, order, packed := "", "", ""
	for name, v := range attrs {
		value := aws.ToString(v.StringValue)
		switch name {
		case attrID:
			r.ID = restore(value)
		case attrEncoding:
			encoding = value
		case attrMeta:
			if json.Unmarshal([]byte(value), &md) != nil {
				md = meta{}
				r.Headers = append(r.Headers, broker.Header{Key: name, Value: value})
			}
		case attrHeaders:
			packed = value
		case attrOrder:
			order = value
		case attrRoutingKey:
		default:
			if len(v.BinaryValue) > 0 {
				value = string(v.BinaryValue)
			}
			r.Headers = append(r.Headers, broker.Header{Key: name, Value: value})
		}
	}
	sortHeaders(r.Headers, order)
	if packed != "" {
		r.Headers = append(unpack(packed), r.Headers...)
	}
	switch encoding {
	case encodingEmpty:
	case encodingBase64:
		raw, err := base64.StdEncoding.DecodeString(body)
		if err != nil {
			raw = []byte(body) // another's attribute of the same name
		}
		r.Body = raw
	default:
		r.Body = []byte(body)
	}
	return md
}

// sortHeaders puts headers into the order of the names in order (separated by
// commas) and otherwise of the alphabet.
func sortHeaders(hs broker.Headers, order string) {
	if len(hs) < 2 {
		return
	}
	var at map[string]int
	if order != "" {
		names := strings.Split(order, ",")
		at = make(map[string]int, len(names))
		for i, name := range names {
			at[name] = i - len(names)
		}
	}
	slices.SortFunc(hs, func(a, b broker.Header) int {
		if c := at[a.Key] - at[b.Key]; c != 0 {
			return c
		}
		return strings.Compare(a.Key, b.Key)
	})
}

// unpack reads the attribute qs-headers.
func unpack(packed string) broker.Headers {
	var pairs [][2]string
	if json.Unmarshal([]byte(packed), &pairs) != nil {
		return broker.Headers{{Key: attrHeaders, Value: packed}}
	}
	hs := make(broker.Headers, len(pairs))
	for i, p := range pairs {
		hs[i] = broker.Header{Key: restore(p[0]), Value: restore(p[1])}
	}
	return hs
}

func systemInt(m *types.Message, name types.MessageSystemAttributeName) int {
	n, err := strconv.Atoi(m.Attributes[string(name)])
	if err != nil {
		return 0 // not told
	}
	return n
}

// A notification is the envelope of a subscription without raw delivery
// (SNS, "Amazon SNS message and JSON formats").
type notification struct {
	Type              string
	MessageID         string `json:"MessageId"`
	TopicArn          string
	Message           string
	MessageAttributes map[string]struct{ Type, Value string }
}

// unwrapSNS reads body as a notification, and whether it is one.
func unwrapSNS(body string) (*notification, bool) {
	if !strings.HasPrefix(body, "{") {
		return nil, false
	}
	var n notification
	if json.Unmarshal([]byte(body), &n) != nil || n.Type != "Notification" || n.TopicArn == "" || n.MessageID == "" {
		return nil, false
	}
	return &n, true
}

func (n *notification) attributes() map[string]types.MessageAttributeValue {
	attrs := make(map[string]types.MessageAttributeValue, len(n.MessageAttributes))
	for name, a := range n.MessageAttributes {
		v := types.MessageAttributeValue{DataType: &a.Type, StringValue: &a.Value}
		if raw, err := base64.StdEncoding.DecodeString(a.Value); err == nil && strings.HasPrefix(a.Type, dataTypeBinary) {
			v.StringValue, v.BinaryValue = nil, raw
		}
		attrs[name] = v
	}
	return attrs
}
