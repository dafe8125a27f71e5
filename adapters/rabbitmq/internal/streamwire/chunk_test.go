package streamwire

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"

	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

func packers(t *testing.T) []func(io.Writer) io.WriteCloser {
	return []func(io.Writer) io.WriteCloser{
		nil,
		func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) },
		func(w io.Writer) io.WriteCloser { return snappy.NewBufferedWriter(w) },
		func(w io.Writer) io.WriteCloser { return lz4.NewWriter(w) },
		func(w io.Writer) io.WriteCloser {
			z, err := zstd.NewWriter(w)
			if err != nil {
				t.Fatal(err)
			}
			return z
		},
	}
}

// batch returns messages as one entry, compressed as other clients do.
func batch(t *testing.T, kind int, messages ...string) frame {
	t.Helper()
	var plain frame
	for _, m := range messages {
		plain = plain.bytes([]byte(m))
	}
	packed := []byte(plain)
	if kind > 0 {
		var b bytes.Buffer
		w := packers(t)[kind](&b)
		if _, err := w.Write(plain); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		packed = b.Bytes()
	}
	f := frame{}.u8(0x80 | uint8(kind)<<4).u16(uint16(len(messages))).u32(uint32(len(plain)))
	return f.bytes(packed)
}

// TestChunk: plain messages and batches of every compression, with their
// offsets.
func TestChunk(t *testing.T) {
	data := frame{}.bytes([]byte("0"))
	want := "7:0 "
	offset := 8
	for kind := range packers(t) {
		a, b := fmt.Sprintf("a%d", kind), fmt.Sprintf("b%d", kind)
		data = append(data, batch(t, kind, a, b)...)
		want += fmt.Sprintf("%d:%s %d:%s ", offset, a, offset+1, b)
		offset += 2
	}
	c := &Chunk{First: 7, Records: offset - 7, data: data}
	got := ""
	if err := c.Each(func(o int64, m []byte) bool { got += fmt.Sprintf("%d:%s ", o, m); return true }); err != nil || got != want {
		t.Fatalf("%q, want %q, %v", got, want, err)
	}
	n := 0
	if err := c.Each(func(int64, []byte) bool { n++; return n < 4 }); err != nil || n != 4 {
		t.Fatal(n, err)
	}
	for cut := range len(data) {
		short := &Chunk{First: 7, Records: c.Records, data: data[:cut]}
		if err := short.Each(func(int64, []byte) bool { return true }); err == nil {
			t.Fatalf("cut to %d of %d: no error", cut, len(data))
		}
	}
	odd := &Chunk{Records: 1, data: frame{}.u8(0xf0).u16(1).u32(0).u32(0)}
	if err := odd.Each(func(int64, []byte) bool { return true }); !errors.Is(err, errMalformed) {
		t.Fatal(err)
	}
}

func FuzzChunk(f *testing.F) {
	f.Add([]byte(frame{}.bytes([]byte("m"))), 1)
	f.Add([]byte{0x90, 0, 1, 0, 0, 0, 5, 0, 0, 0, 2, 1, 2}, 1)
	f.Fuzz(func(t *testing.T, data []byte, records int) {
		records %= 1000
		n := 0
		err := (&Chunk{Records: records, data: data}).Each(func(int64, []byte) bool { n++; return true })
		if err == nil && n != max(0, records) {
			t.Fatalf("%d of %d, and no error", n, records)
		}
	})
}

func FuzzHandle(f *testing.F) {
	f.Add([]byte(newFrame(keyMetadataUpdate, 8).u16(6).str("s"))[4:])
	f.Add([]byte(chunkFrame(0, 1, 2, false))[4:])
	f.Fuzz(func(_ *testing.T, b []byte) {
		k := &Conn{tune: make(chan tuning, 1), calls: map[uint32]func([]byte){}, c: discard{}, done: make(chan struct{})}
		_ = k.handle(&reader{b: b}) // it must not panic
	})
}

// discard is a connection that takes everything.
type discard struct{ net.Conn }

func (discard) Write(b []byte) (int, error) { return len(b), nil }
