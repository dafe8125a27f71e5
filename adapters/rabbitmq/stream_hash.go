package rabbitmq

import (
	"encoding/binary"
	"math/bits"
)

// partitionSeed is the seed of the hash that RabbitMQ's own clients use, so
// that equal keys of all clients share a partition.
const partitionSeed = 104729

// keyHash is MurmurHash3_x86_32 of a key, with partitionSeed.
func keyHash(key []byte) uint32 {
	const c1, c2 = 0xcc9e2d51, 0x1b873593
	h, rest := uint32(partitionSeed), key
	for ; len(rest) >= 4; rest = rest[4:] {
		k := bits.RotateLeft32(binary.LittleEndian.Uint32(rest)*c1, 15) * c2
		h = bits.RotateLeft32(h^k, 13)*5 + 0xe6546b64
	}
	if len(rest) > 0 {
		var last [4]byte
		copy(last[:], rest)
		h ^= bits.RotateLeft32(binary.LittleEndian.Uint32(last[:])*c1, 15) * c2
	}
	h ^= uint32(len(key)) //nolint:gosec // as the hash is defined
	h = (h ^ h>>16) * 0x85ebca6b
	h = (h ^ h>>13) * 0xc2b2ae35
	return h ^ h>>16
}
