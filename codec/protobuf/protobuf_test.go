package protobuf_test

import (
	"errors"
	"testing"

	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/codec/protobuf"
)

func TestRoundTrip(t *testing.T) {
	mt := broker.MessageType[*wrapperspb.StringValue]{Name: "s", Codec: protobuf.Codec}
	m, err := mt.Message(wrapperspb.String("hello"))
	if err != nil || m.ContentType != "application/x-protobuf" {
		t.Fatalf("%+v, %v", m, err)
	}
	v, err := mt.Decode(m.Body, m.Headers)
	if err != nil || v.GetValue() != "hello" {
		t.Fatalf("%v, %v", v, err)
	}
	var direct wrapperspb.StringValue
	if err := protobuf.Codec.Unmarshal(m.Body, &direct); err != nil || direct.GetValue() != "hello" {
		t.Fatalf("%v, %v", direct.GetValue(), err)
	}
}

func TestRefusals(t *testing.T) {
	if _, err := (broker.MessageType[string]{Codec: protobuf.Codec}).Message("x"); !errors.Is(err, broker.ErrInvalid) {
		t.Errorf("a string: %v", err)
	}
	var s string
	var p *string
	for _, v := range []any{s, &s, &p, nil} {
		if err := protobuf.Codec.Unmarshal(nil, v); !errors.Is(err, broker.ErrInvalid) {
			t.Errorf("%T: %v", v, err)
		}
	}
	mt := broker.MessageType[*wrapperspb.StringValue]{Codec: protobuf.Codec}
	if _, err := mt.Decode([]byte{0xff}, nil); !errors.Is(err, broker.ErrInvalid) {
		t.Errorf("garbage: %v", err)
	}
}
