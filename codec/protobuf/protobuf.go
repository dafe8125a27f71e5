// Package protobuf is the protobuf codec for broker.MessageType. It is apart
// from the root package so that programs without protobuf do not link it.
//
//	var OrderCreated = broker.MessageType[*pb.OrderCreated]{
//		Name: "order-created", Codec: protobuf.Codec,
//	}
package protobuf

import (
	"reflect"

	"google.golang.org/protobuf/proto"

	"github.com/queuestream/broker"
)

// Codec encodes values whose type is a pointer to a generated message.
var Codec broker.Codec = codec{}

type codec struct{}

func (codec) ContentType() string { return "application/x-protobuf" }

func (codec) Marshal(v any) ([]byte, error) {
	m, ok := v.(proto.Message)
	if !ok {
		return nil, broker.Invalid("value of type %T: want a proto.Message", v)
	}
	return proto.Marshal(m)
}

// Unmarshal decodes into v, a pointer to a message or to a pointer to one,
// which it makes.
func (codec) Unmarshal(data []byte, v any) error {
	if m, ok := v.(proto.Message); ok {
		return proto.Unmarshal(data, m)
	}
	p := reflect.ValueOf(v)
	if p.Kind() != reflect.Pointer || p.IsNil() || p.Elem().Kind() != reflect.Pointer {
		return broker.Invalid("value of type %T: want a pointer to a proto.Message", v)
	}
	fresh := reflect.New(p.Elem().Type().Elem())
	m, ok := fresh.Interface().(proto.Message)
	if !ok {
		return broker.Invalid("value of type %T: want a pointer to a proto.Message", v)
	}
	if err := proto.Unmarshal(data, m); err != nil {
		return err
	}
	p.Elem().Set(fresh)
	return nil
}
