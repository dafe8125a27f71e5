package streamwire

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"

	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// A Chunk is what the broker stores and sends at once: messages of consecutive
// offsets from First on.
type Chunk struct {
	First   int64
	Records int
	Time    int64 // when it was stored, in ms since 1970
	entries int
	data    []byte
}

// Each calls fn with every message and its offset until fn returns false. The
// message is part of the chunk's memory.
func (c *Chunk) Each(fn func(offset int64, message []byte) bool) error {
	offset, left := c.First, c.Records
	for r := (&reader{b: c.data}); left > 0; {
		if len(r.b) == 0 {
			return fmt.Errorf("%w: chunk %d ends %d messages early", errMalformed, c.First, left)
		}
		if r.b[0]&0x80 == 0 {
			m := r.next(int(r.u32()))
			if r.bad {
				return fmt.Errorf("%w: in chunk %d at %d", errMalformed, c.First, offset)
			}
			if !fn(offset, m) {
				return nil
			}
			offset, left = offset+1, left-1
			continue
		}
		kind := r.u8() >> 4 & 7
		n, raw := int(r.u16()), int(r.u32())
		packed := r.next(int(r.u32()))
		if r.bad || n > left {
			return fmt.Errorf("%w: in chunk %d at %d", errMalformed, c.First, offset)
		}
		plain, err := unpack(kind, packed, raw)
		if err != nil {
			return fmt.Errorf("chunk %d at %d: %w", c.First, offset, err)
		}
		for sub := (&reader{b: plain}); n > 0; n-- {
			m := sub.next(int(sub.u32()))
			if sub.bad {
				return fmt.Errorf("%w: in a batch of chunk %d at %d", errMalformed, c.First, offset)
			}
			if !fn(offset, m) {
				return nil
			}
			offset, left = offset+1, left-1
		}
	}
	return nil
}

// unpack undoes the compression of a batch within a chunk.
func unpack(kind uint8, packed []byte, size int) ([]byte, error) {
	if size > readLimit {
		return nil, fmt.Errorf("%w: a batch of %d bytes", errMalformed, size)
	}
	in := bytes.NewReader(packed)
	var out io.Reader
	switch kind {
	case 0:
		return packed, nil
	case 1:
		z, err := gzip.NewReader(in)
		if err != nil {
			return nil, fmt.Errorf("gzip: %w", err)
		}
		out = z
	case 2:
		out = snappy.NewReader(in)
	case 3:
		out = lz4.NewReader(in)
	case 4:
		z, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(readLimit))
		if err != nil {
			return nil, fmt.Errorf("zstd: %w", err)
		}
		defer z.Close()
		out = z
	default:
		return nil, fmt.Errorf("%w: compression %d", errMalformed, kind)
	}
	plain := make([]byte, size)
	if _, err := io.ReadFull(out, plain); err != nil {
		return nil, fmt.Errorf("compression %d: %w", kind, err)
	}
	return plain, nil
}
