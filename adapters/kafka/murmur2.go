package kafka

import "encoding/binary"

// murmur2 is the hash of the Java client's partitioner. franz-go has it for
// itself alone, and what is known of a record before the client gets it (see
// newAppending) needs it too.
func murmur2(b []byte) uint32 {
	const (
		m     = 0x5bd1e995
		seed  = 0x9747b28c
		shift = 24
	)
	h := seed ^ uint32(len(b)) //nolint:gosec // as in Java, whose arrays are shorter
	for ; len(b) >= 4; b = b[4:] {
		k := binary.LittleEndian.Uint32(b) * m
		h = h*m ^ (k^k>>shift)*m
	}
	if len(b) > 0 {
		for i, c := range b {
			h ^= uint32(c) << (8 * i)
		}
		h *= m
	}
	h = (h ^ h>>13) * m
	return h ^ h>>15
}
