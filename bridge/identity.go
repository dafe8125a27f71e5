package bridge

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"

	"github.com/queuestream/broker"
)

// dedupID returns the identity of a record, the same however often it is
// read: a hash of cluster, stream, its incarnation, partition and offset. A
// salt makes other ids for the same records.
func dedupID(r *broker.Record, salt string) string {
	cluster, stream := "", ""
	if a := r.Assignment(); a != nil {
		cluster, stream = a.Identity, a.Stream
	}
	var room [256]byte
	b := appendField(appendField(room[:0], cluster), stream)
	b = binary.AppendVarint(b, int64(r.Partition))
	var digits [32]byte
	offset, _ := r.Offset().AppendText(digits[:0])
	b = appendField(appendField(b, offset), salt)
	sum := sha256.Sum256(b)
	var id [2 * sha256.Size]byte
	hex.Encode(id[:], sum[:])
	return string(id[:])
}

// appendField appends s with its length, so that no two lists of fields collide.
func appendField[T string | []byte](b []byte, s T) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}
