package examples_test

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/memory"
)

// Change data capture: a compacted stream keeps the latest row of each key,
// and a tombstone deletes one, so that a new replica needs no dump.
func Example_changeDataCapture() {
	ctx := context.Background()
	b, err := memory.Open(ctx, nil)
	must(err)
	defer b.Close() //nolint:errcheck // the example is over
	must(b.DeclareStream(ctx, "users", broker.StreamConfig{Compact: true}))
	users, err := b.Stream(ctx, "users", nil)
	must(err)
	_, err = users.PublishBatch(ctx, []broker.Record{
		{Key: []byte("1"), Value: []byte("Ada")},
		{Key: []byte("2"), Value: []byte("Bob")},
		{Key: []byte("1"), Value: []byte("Ada Lovelace")},
		{Key: []byte("2"), Tombstone: true},
		{Key: []byte("3"), Value: []byte("Cleo")},
	})
	must(err)

	replica := map[string]string{}
	for r, err := range users.Read(ctx, broker.Range{From: broker.Earliest()}) {
		must(err)
		if r.Tombstone {
			delete(replica, string(r.Key))
		} else {
			replica[string(r.Key)] = string(r.Value)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(replica)) {
		fmt.Println(id, replica[id])
	}
	// Output:
	// 1 Ada Lovelace
	// 3 Cleo
}
