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
	var b []byte
	add := func(s string) { // with its length, so that no two lists collide
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	if a := r.Assignment(); a != nil {
		add(a.Identity)
		add(a.Stream)
	} else {
		add("")
		add("")
	}
	b = binary.AppendVarint(b, int64(r.Partition))
	add(r.Offset().String())
	add(salt)
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
