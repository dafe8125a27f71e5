// Command copy copies a stream into another one exactly once, however often
// copies of it are killed:
//
//	go run ./examples/copy -broker kafka://localhost:9092 -from orders -to orders.copy -id copy-1
//
// Start as many as the stream has partitions, each with an id of its own, and
// start one that died again with the same id: what its last transaction had
// left open is then rolled back at once. Readers of the copy that read
// committed records see each record of the source once, in the same partition
// and the same order.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/kafka"
)

func main() {
	var c copier
	flag.StringVar(&c.url, "broker", "kafka://localhost:9092", "URL of the Kafka cluster")
	flag.StringVar(&c.from, "from", "", "stream to copy")
	flag.StringVar(&c.to, "to", "", "stream to copy to; it has at least as many partitions")
	flag.StringVar(&c.group, "group", "copy", "consumer group that all copiers share")
	flag.StringVar(&c.id, "id", "copy-1", "transactional id, one for each copier")
	verbose := flag.Bool("v", false, "show the log of the SDK")
	flag.Parse()

	level := slog.LevelWarn
	if *verbose {
		level = slog.LevelInfo
	}
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})))
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := c.run(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "copy:", err)
		os.Exit(1)
	}
}

type copier struct {
	url, from, to, group, id string
	amid                     func() // called between copying and committing; nil: nothing
}

// run copies until ctx ends.
func (c *copier) run(ctx context.Context, out io.Writer) (err error) {
	b, err := kafka.OpenURL(ctx, c.url)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	from, err := b.Stream(ctx, c.from, nil)
	if err != nil {
		return err
	}
	to, err := b.Stream(ctx, c.to, nil)
	if err != nil {
		return err
	}
	t := &broker.Transformer{
		Broker: b, Source: from, Group: c.group, ID: c.id,
		Handler: func(_ context.Context, in []*broker.Record, emit func(broker.Stream, ...broker.Record) error) error {
			copies := make([]broker.Record, len(in))
			for i, r := range in {
				copies[i] = broker.Record{
					Key: r.Key, Value: r.Value, Headers: r.Headers, Tombstone: r.Tombstone,
					Pin: true, Partition: r.Partition,
				}
				copies[i].SetTime(r.Time())
			}
			if err := emit(to, copies...); err != nil {
				return err
			}
			if c.amid != nil {
				c.amid()
			}
			return nil
		},
		Observe: func(_ context.Context, o broker.Observation) {
			if o.Kind == broker.ObservedCommitted {
				fmt.Fprintf(out, "committed %d\n", o.Count)
			}
		},
	}
	return t.Run(ctx)
}
