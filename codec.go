package broker

import (
	"encoding/json"
	"fmt"
)

// A Codec turns values into bytes and back. It is safe for concurrent use.
type Codec interface {
	// ContentType is the media type of what Marshal makes.
	ContentType() string
	Marshal(v any) ([]byte, error)
	// Unmarshal decodes into v, a pointer.
	Unmarshal(data []byte, v any) error
}

// JSON is the Codec of encoding/json; unknown fields are ignored. Protobuf is
// in package codec/protobuf.
var JSON Codec = jsonCodec{}

type jsonCodec struct{}

func (jsonCodec) ContentType() string                { return "application/json" }
func (jsonCodec) Marshal(v any) ([]byte, error)      { return json.Marshal(v) }
func (jsonCodec) Unmarshal(data []byte, v any) error { return json.Unmarshal(data, v) }

// Raw is the Codec of []byte and string, which it passes on as they are.
var Raw Codec = rawCodec{}

type rawCodec struct{}

func (rawCodec) ContentType() string { return "application/octet-stream" }

func (rawCodec) Marshal(v any) ([]byte, error) {
	switch v := v.(type) {
	case []byte:
		return v, nil
	case string:
		return []byte(v), nil
	}
	return nil, Invalid("value of type %T: the raw codec takes []byte and string", v)
}

func (rawCodec) Unmarshal(data []byte, v any) error {
	switch v := v.(type) {
	case *[]byte:
		*v = data
	case *string:
		*v = string(data)
	default:
		return Invalid("value of type %T: the raw codec takes *[]byte and *string", v)
	}
	return nil
}

// decodeError says that a payload is not what its type says.
func decodeError(name string, err error) error {
	return fmt.Errorf("%w: decoding %q: %w", ErrInvalid, name, err)
}
