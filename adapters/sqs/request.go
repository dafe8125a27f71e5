package sqs

import (
	"context"
	"encoding/base64"
	"fmt"
	"reflect"
	"strconv"

	"github.com/aws/aws-sdk-go-v2/aws"
	awssqs "github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/queuestream/broker/internal/awsclient"
)

// queueSender returns a sender to a queue.
func (b *Broker) queueSender(t *target) *sender {
	return newSender(b, t.name, maxBatch, t.fifo, func(ctx context.Context, items []outgoing, results []sent) error {
		in := &awssqs.SendMessageBatchInput{QueueUrl: &t.url, Entries: make([]types.SendMessageBatchRequestEntry, len(items))}
		for i := range items {
			if b.direct {
				in.Entries[i] = types.SendMessageBatchRequestEntry{Id: &batchIDs[i], MessageBody: &items[i].body} // for the client's checks
			} else {
				in.Entries[i] = items[i].entry(&batchIDs[i])
			}
		}
		if b.direct {
			ctx = context.WithValue(ctx, itemsKey{}, items)
		}
		out, err := b.sqs.SendMessageBatch(ctx, in)
		if err != nil {
			return err
		}
		a := newAnswer(results)
		for i := range out.Successful {
			e := &out.Successful[i]
			a.accepted(e.Id, e.MessageId, e.SequenceNumber)
		}
		for i := range out.Failed {
			e := &out.Failed[i]
			a.refused(e.Id, e.Code, e.Message, e.SenderFault)
		}
		return nil
	})
}

// isDirect tells whether nothing of the caller's looks at requests, or edits
// them, on their way through the client.
func isDirect(cfg *aws.Config) bool {
	interceptors := reflect.ValueOf(cfg.Interceptors)
	for i := range interceptors.NumField() {
		if interceptors.Field(i).Len() > 0 {
			return false
		}
	}
	return len(cfg.APIOptions) == 0
}

// entry is w as the client takes it.
func (w *wire) entry(id *string) types.SendMessageBatchRequestEntry {
	e := types.SendMessageBatchRequestEntry{
		Id: id, MessageBody: &w.body, DelaySeconds: w.delay,
		MessageGroupId: optional(w.group), MessageDeduplicationId: optional(w.dedup),
	}
	if len(w.attrs) > 0 {
		e.MessageAttributes = make(map[string]types.MessageAttributeValue, len(w.attrs))
	}
	for i := range w.attrs {
		a := &w.attrs[i]
		v := types.MessageAttributeValue{DataType: a.dataType()}
		if a.binary {
			v.BinaryValue = []byte(a.value)
		} else {
			v.StringValue = &a.value
		}
		e.MessageAttributes[a.name] = v
	}
	return e
}

// A sendProtocol is the client's own, but for the body of SendMessageBatch,
// which it writes straight from the items in the context: through the client's
// types each message costs a map of its attributes and three copies.
type sendProtocol struct{ smithyhttp.ClientProtocol }

type itemsKey struct{}

// SerializeRequest writes the body of a request into req.
func (p sendProtocol) SerializeRequest(ctx context.Context, op *smithy.OperationSchema, in smithy.Serializable, req *smithyhttp.Request) error {
	items, _ := ctx.Value(itemsKey{}).([]outgoing)
	send, ok := in.(*awssqs.SendMessageBatchInput)
	if !ok || items == nil {
		return p.ClientProtocol.SerializeRequest(ctx, op, in, req)
	}
	// Of an operation without input it writes all but the body.
	if err := p.ClientProtocol.SerializeRequest(ctx, &smithy.OperationSchema{Schema: op.Schema}, nil, req); err != nil {
		return err
	}
	out, err := req.SetStream(awsclient.NewBody(sendBody(aws.ToString(send.QueueUrl), items)))
	if err != nil {
		return fmt.Errorf("set the body: %w", err)
	}
	*req = *out
	return nil
}

// sendBody is the JSON of SendMessageBatch. All of items is valid UTF-8.
func sendBody(url string, items []outgoing) []byte {
	size := 64 + len(url)
	for i := range items {
		w := items[i].wire
		size += 40 + w.size + w.size/16 // some bytes have an escape
		if w.group != "" || w.dedup != "" || w.delay != 0 {
			size += 80 + len(w.group) + len(w.dedup)
		}
		if len(w.attrs) > 0 {
			size += 32 + 40*len(w.attrs)
		}
	}
	b := append(make([]byte, 0, size), `{"QueueUrl":`...)
	b = appendJSON(b, url)
	b = append(b, `,"Entries":[`...)
	for i := range items {
		if i > 0 {
			b = append(b, ',')
		}
		b = items[i].append(b, batchIDs[i])
	}
	return append(b, "]}"...)
}

func (w *wire) append(b []byte, id string) []byte {
	b = append(b, `{"Id":`...)
	b = appendJSON(b, id)
	b = append(b, `,"MessageBody":`...)
	b = appendJSON(b, w.body)
	if w.delay != 0 {
		b = append(b, `,"DelaySeconds":`...)
		b = strconv.AppendInt(b, int64(w.delay), 10)
	}
	if w.group != "" {
		b = append(b, `,"MessageGroupId":`...)
		b = appendJSON(b, w.group)
	}
	if w.dedup != "" {
		b = append(b, `,"MessageDeduplicationId":`...)
		b = appendJSON(b, w.dedup)
	}
	if len(w.attrs) == 0 {
		return append(b, '}')
	}
	b = append(b, `,"MessageAttributes":{`...)
	for i := range w.attrs {
		if i > 0 {
			b = append(b, ',')
		}
		a := &w.attrs[i]
		b = appendJSON(b, a.name)
		if a.binary {
			b = append(b, `:{"DataType":"Binary","BinaryValue":"`...)
			b = base64.StdEncoding.AppendEncode(b, []byte(a.value))
			b = append(b, `"}`...)
			continue
		}
		b = append(b, `:{"DataType":"String","StringValue":`...)
		b = appendJSON(b, a.value)
		b = append(b, '}')
	}
	return append(b, "}}"...)
}

// appendJSON appends s, which is valid UTF-8, as a JSON string.
func appendJSON(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	from := 0
	for i := 0; i < len(s); i++ {
		for len(s)-i >= 8 && isVerbatim(eight(s[i:i+8])) {
			i += 8
		}
		if i == len(s) {
			break
		}
		c := s[i]
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		b = append(b, s[from:i]...)
		from = i + 1
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, '\\', 'n')
		default:
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
	}
	return append(append(b, s[from:]...), '"')
}
