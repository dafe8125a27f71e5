package rabbitmq

import (
	"testing"

	"github.com/queuestream/broker"
)

// FuzzDecodeRecord: whatever another client stored is a record or an error.
func FuzzDecodeRecord(f *testing.F) {
	for _, r := range []broker.Record{
		{}, {Value: []byte("value")},
		{Key: []byte("k"), Value: []byte("v"), Headers: broker.Headers{{Key: "b", Value: "2"}, {Key: "a", Value: "\xff"}}},
	} {
		b, err := encodeRecord(&r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte("neither a section nor a value"))
	f.Add([]byte("\x00Sx\xd1\x00\x00\x000\x00\x00\x000a00\xa1\x100000000000000000\xa0\x06000000A000000000000000000")) // panicked
	f.Fuzz(func(_ *testing.T, b []byte) {
		var r broker.Record
		_ = decodeRecord(b, 0, &r)
	})
}
