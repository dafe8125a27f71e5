// Command try is the other half of deploy/compose: it declares a topic and its
// queues, places orders on the topic, and works on the tasks that the bridge
// makes of them.
//
//	try declare | publish -n 20 | work
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/kafka"
	"github.com/queuestream/broker/adapters/sqs"
)

const (
	stream = "orders"
	queue  = "confirmations.fifo"
	dead   = "confirmations-dead.fifo"
)

func main() {
	n := 10
	flags := flag.NewFlagSet("try", flag.ExitOnError)
	flags.IntVar(&n, "n", n, "how many orders publish places")
	if len(os.Args) < 2 {
		fail(errors.New("want declare, publish or work"))
	}
	fail(flags.Parse(os.Args[2:]))
	if n < 1 {
		fail(fmt.Errorf("-n %d: want at least 1", n))
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	commands := map[string]func(context.Context) error{
		"declare": declare,
		"publish": func(ctx context.Context) error { return publish(ctx, n) },
		"work":    work,
	}
	command, ok := commands[os.Args[1]]
	if !ok {
		fail(fmt.Errorf("%q: want declare, publish or work", os.Args[1]))
	}
	fail(command(ctx))
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "try:", err)
		os.Exit(1)
	}
}

// declare waits for both brokers, which may be starting.
func declare(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	policy := broker.RetryPolicy{Min: 200 * time.Millisecond, Max: 5 * time.Second}
	for attempt := 1; ; attempt++ {
		err := declareOnce(ctx)
		if err == nil || ctx.Err() != nil || !broker.IsTemporary(err) {
			return err
		}
		fmt.Fprintln(os.Stderr, "try: waiting:", err)
		select {
		case <-ctx.Done():
		case <-time.After(policy.After(attempt, err)):
		}
	}
}

func declareOnce(ctx context.Context) (err error) {
	k, err := kafka.OpenURL(ctx, os.Getenv("KAFKA_URL"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, k.Close()) }()
	q, err := sqs.OpenURL(ctx, os.Getenv("SQS_URL"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, q.Close()) }()
	streams, _ := broker.As[broker.Admin](k)
	queues, _ := broker.As[broker.Admin](q)
	return errors.Join(
		streams.DeclareStream(ctx, stream, broker.StreamConfig{Partitions: 3}),
		queues.DeclareQueue(ctx, dead, broker.QueueConfig{Ordered: true, Dedup: true}),
		queues.DeclareQueue(ctx, queue, broker.QueueConfig{Ordered: true, Dedup: true, DeadLetter: dead, MaxAttempts: 5}),
	)
}

func publish(ctx context.Context, n int) (err error) {
	k, err := kafka.OpenURL(ctx, os.Getenv("KAFKA_URL"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, k.Close()) }()
	s, err := k.Stream(ctx, stream, nil)
	if err != nil {
		return err
	}
	rs := make([]broker.Record, n)
	for i := range rs {
		rs[i] = broker.Record{
			Key:   fmt.Appendf(nil, "customer-%d", i%5),
			Value: fmt.Appendf(nil, `{"type":"OrderCreated","order":%d}`, i+1),
		}
	}
	_, err = s.PublishBatch(ctx, rs)
	return err
}

func work(ctx context.Context) (err error) {
	b, err := sqs.OpenURL(ctx, os.Getenv("SQS_URL"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	q, err := b.Queue(ctx, queue, nil)
	if err != nil {
		return err
	}
	w := &broker.Worker{Queue: q, Concurrency: 4, Handler: func(_ context.Context, d *broker.Delivery) error {
		slog.Info("confirmed", "task", string(d.Body), "customer", d.GroupID,
			"partition", d.Headers.Get(broker.HeaderSourcePartition), "offset", d.Headers.Get(broker.HeaderSourceOffset))
		return nil
	}}
	return w.Run(ctx)
}
