package memory

import (
	"context"
	"fmt"
	"testing"

	"github.com/queuestream/broker"
)

// BenchmarkAppend appends beside groups that nobody receives for: their number
// makes no difference.
func BenchmarkAppend(b *testing.B) {
	for _, idle := range []int{0, 1000} {
		b.Run(fmt.Sprintf("idle-groups=%d", idle), func(b *testing.B) {
			ctx := context.Background()
			br, err := Open(ctx, nil)
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = br.Close() }()
			if err := br.DeclareStream(ctx, "s", broker.StreamConfig{RetentionBytes: 1 << 24}); err != nil {
				b.Fatal(err)
			}
			s, err := br.Stream(ctx, "s", nil)
			if err != nil {
				b.Fatal(err)
			}
			for i := range idle {
				if _, err := s.Consumer(ctx, fmt.Sprint("g", i), nil); err != nil {
					b.Fatal(err)
				}
			}
			r := broker.Record{Value: make([]byte, benchBody)}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := s.Publish(ctx, r); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
