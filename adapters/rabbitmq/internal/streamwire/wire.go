package streamwire

import (
	"encoding/binary"
	"maps"
	"slices"
)

// Keys of the commands.
const (
	keyDeclarePublisher  = 1
	keyPublish           = 2
	keyPublishConfirm    = 3
	keyPublishError      = 4
	keyQuerySequence     = 5
	keyDeletePublisher   = 6
	keySubscribe         = 7
	keyDeliver           = 8
	keyCredit            = 9
	keyStoreOffset       = 10
	keyQueryOffset       = 11
	keyUnsubscribe       = 12
	keyCreate            = 13
	keyDelete            = 14
	keyMetadata          = 15
	keyMetadataUpdate    = 16
	keyPeerProperties    = 17
	keySASLHandshake     = 18
	keySASLAuthenticate  = 19
	keyTune              = 20
	keyOpen              = 21
	keyClose             = 22
	keyHeartbeat         = 23
	keyPartitions        = 25
	keyConsumerUpdate    = 26
	keyStats             = 28
	keyCreateSuperStream = 29
	keyDeleteSuperStream = 30

	response = 0x8000 // set in the key of an answer
	version1 = 1
)

// A frame is a request under construction: four bytes of size, key, version.
type frame []byte

func newFrame(key uint16, size int) frame {
	f := make(frame, 4, 16+size)
	return f.u16(key).u16(version1)
}

func (f frame) u8(v uint8) frame   { return append(f, v) }
func (f frame) u16(v uint16) frame { return binary.BigEndian.AppendUint16(f, v) }
func (f frame) u32(v uint32) frame { return binary.BigEndian.AppendUint32(f, v) }
func (f frame) i64(v int64) frame  { return binary.BigEndian.AppendUint64(f, uint64(v)) } //nolint:gosec // bits as they are

func (f frame) str(s string) frame { return append(f.u16(uint16(len(s))), s...) } //nolint:gosec // names of at most 255 bytes

func (f frame) bytes(b []byte) frame { return append(f.u32(uint32(len(b))), b...) } //nolint:gosec // bounded by the frame

func (f frame) strs(ss []string) frame {
	f = f.u32(uint32(len(ss))) //nolint:gosec // few
	for _, s := range ss {
		f = f.str(s)
	}
	return f
}

func (f frame) dict(m map[string]string) frame {
	f = f.u32(uint32(len(m))) //nolint:gosec // few
	for _, k := range slices.Sorted(maps.Keys(m)) {
		f = f.str(k).str(m[k])
	}
	return f
}

// sized sets the size in front.
func (f frame) sized() frame {
	binary.BigEndian.PutUint32(f, uint32(len(f)-4)) //nolint:gosec // bounded by the frame
	return f
}

// A reader takes a frame apart. Beyond the end it returns zeros and is bad.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) next(n int) []byte {
	if n < 0 || n > len(r.b) {
		r.bad, r.b = true, nil
		return nil
	}
	b := r.b[:n:n]
	r.b = r.b[n:]
	return b
}

func (r *reader) u8() uint8 {
	if b := r.next(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) u16() uint16 {
	if b := r.next(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (r *reader) u32() uint32 {
	if b := r.next(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (r *reader) i64() int64 {
	if b := r.next(8); b != nil {
		return int64(binary.BigEndian.Uint64(b)) //nolint:gosec // bits as they are
	}
	return 0
}

func (r *reader) str() string { return string(r.next(int(r.u16()))) }

// count returns the length of an array whose elements have at least size bytes.
func (r *reader) count(size int) int {
	n := int(r.u32())
	if n*size > len(r.b) {
		r.bad, r.b = true, nil
		return 0
	}
	return n
}

func (r *reader) strs() []string {
	ss := make([]string, r.count(2))
	for i := range ss {
		ss[i] = r.str()
	}
	return ss
}

func (r *reader) dict() map[string]string {
	n := r.count(4)
	m := make(map[string]string, n)
	for range n {
		k := r.str()
		m[k] = r.str()
	}
	return m
}

func (r *reader) err() error {
	if r.bad {
		return errMalformed
	}
	return nil
}
