// Command hybrid tells the story that queues and streams make together, in
// seconds and with nothing installed:
//
//	go run ./examples/hybrid
//
// An order service publishes OrderCreated to a stream. Analytics, search and
// notification read all of it, each at its own pace. A bridge turns every order
// into one send-confirmation task on a queue, where two e-mail workers compete.
// One task fails for good, lands in the dead-letter queue, is looked at and
// redriven. Search loses its index and rebuilds it from the stream.
//
// With -stream and -queue the same program runs on real brokers:
//
//	go run ./examples/hybrid -stream kafka://localhost:9092 -queue 'sqs://us-east-1?endpoint=http://localhost:9324'
//
// There the bridge may also be the worker that is deployed:
//
//	go build -o bridge ./cmd/bridge
//	go run ./examples/hybrid -worker ./bridge -stream … -queue …
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
	"strings"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/kafka"
	"github.com/queuestream/broker/adapters/memory"
	"github.com/queuestream/broker/adapters/rabbitmq"
	"github.com/queuestream/broker/adapters/sqs"
)

func main() {
	stream := flag.String("stream", "memory://hybrid", "URL of the broker that keeps the stream: memory, kafka or amqp")
	queue := flag.String("queue", "memory://hybrid", "URL of the broker that has the queue: memory, sqs, amqp or kafka")
	worker := flag.String("worker", "", "the program cmd/bridge, to do the bridging; empty: package bridge does, in this process")
	orders := flag.Int("orders", 30, "how many orders to place")
	verbose := flag.Bool("v", false, "show the log of the SDK")
	flag.Parse()

	level := slog.LevelError + 1
	if *verbose {
		level = slog.LevelInfo
	}
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})))
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Stdout, *stream, *queue, *worker, *orders); err != nil {
		fmt.Fprintln(os.Stderr, "hybrid:", err)
		os.Exit(1)
	}
}

// run opens the brokers, tells the story and closes them.
func run(ctx context.Context, out io.Writer, streamURL, queueURL, worker string, orders int) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	if worker != "" && (strings.HasPrefix(streamURL, "memory:") || strings.HasPrefix(queueURL, "memory:")) {
		return errors.New("-worker needs brokers outside this process, see -stream and -queue")
	}
	streams, err := open(ctx, streamURL)
	if err != nil {
		return err
	}
	queues := streams
	if queueURL != streamURL {
		if queues, err = open(ctx, queueURL); err != nil {
			return errors.Join(err, streams.Close())
		}
		defer func() { err = errors.Join(err, queues.Close()) }()
	}
	defer func() { err = errors.Join(err, streams.Close()) }()

	s := &story{out: out, streams: streams, queues: queues, orders: orders, prefix: "shop-" + broker.NewID()[24:] + "-"}
	if worker != "" {
		s.worker = &worked{program: worker, streamURL: streamURL, queueURL: queueURL}
	}
	return s.tell(ctx)
}

func open(ctx context.Context, url string) (broker.Broker, error) {
	return broker.Openers{
		"memory": memory.OpenURL,
		"kafka":  kafka.OpenURL,
		"sqs":    sqs.OpenURL,
		"amqp":   rabbitmq.OpenURL,
	}.Open(ctx, url)
}
