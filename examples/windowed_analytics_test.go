package examples_test

import (
	"context"
	"fmt"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/memory"
)

// Windowed analytics: a batch handler counts page views a minute by the time
// of the event, however late it is read.
func Example_windowedAnalytics() {
	ctx := context.Background()
	b, err := memory.Open(ctx, nil)
	must(err)
	defer b.Close() //nolint:errcheck // the example is over
	must(b.DeclareStream(ctx, "views", broker.StreamConfig{Partitions: 3}))
	views, err := b.Stream(ctx, "views", nil)
	must(err)

	noon := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	for _, after := range []time.Duration{0, 20 * time.Second, 59 * time.Second, 60 * time.Second, 150 * time.Second} {
		r := broker.Record{Key: []byte("/home")}
		r.SetTime(noon.Add(after))
		_, err := views.Publish(ctx, r)
		must(err)
	}

	perMinute := map[time.Time]int{}
	p := &broker.Processor{
		Stream: views, Group: "analytics", Until: broker.Now(), Concurrency: 1, Logger: quiet,
		BatchHandler: func(_ context.Context, rs []*broker.Record) error {
			for _, r := range rs {
				perMinute[r.Time().UTC().Truncate(time.Minute)]++
			}
			return nil
		},
	}
	must(p.Run(ctx))
	for minute := range 3 {
		t := noon.Add(time.Duration(minute) * time.Minute)
		fmt.Println(t.Format("15:04"), perMinute[t])
	}
	// Output:
	// 12:00 3
	// 12:01 1
	// 12:02 1
}
