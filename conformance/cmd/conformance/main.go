// Command conformance finds out what a broker, or a cluster of them, really
// does: it runs the suite on queues, streams and exchanges of its own there,
// which it removes, and tells what held.
//
//	go run ./conformance/cmd/conformance kafka://localhost:9092
//	go run ./conformance/cmd/conformance -only 14,GroupHeadBlocks -seed 7 'sqs://eu-central-1'
//	go run ./conformance/cmd/conformance -report kafka.json -million 1000000 kafka://…
//	go run ./conformance/cmd/guarantees kafka.json
//
// It ends with status 1 where a case failed, and with 2 where it could not run.
// Nothing is broken on purpose: the cases that need a fault are skipped, as the
// report says. Run it on a cluster that can bear the load.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/kafka"
	"github.com/queuestream/broker/adapters/memory"
	"github.com/queuestream/broker/adapters/rabbitmq"
	"github.com/queuestream/broker/adapters/sqs"
	"github.com/queuestream/broker/conformance"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	report, err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "conformance:", err)
		os.Exit(2)
	case report.Failed():
		os.Exit(1)
	}
}

var openers = broker.Openers{
	"memory": memory.OpenURL,
	"kafka":  kafka.OpenURL,
	"sqs":    sqs.OpenURL,
	"amqp":   rabbitmq.OpenURL,
	"amqps":  rabbitmq.OpenURL,
}

func run(ctx context.Context, args []string, out, log io.Writer) (*conformance.Report, error) {
	flags := flag.NewFlagSet("conformance", flag.ContinueOnError)
	flags.SetOutput(log)
	conformance.SeedFlag(flags)
	kind := flags.String("kind", "", "queue, stream or both; by default what the scheme has")
	only := flags.String("only", "", "the cases to run, by number or name, separated by commas; by default all")
	name := flags.String("name", "", "the broker's name in the report; by default the scheme")
	version := flags.String("version", "", "the broker's version in the report")
	path := flags.String("report", "", "the file to write the report to, as JSON")
	messages := flags.Int("messages", 200, "how many messages an ordinary case publishes")
	million := flags.Int("million", 0, "how many the case Million publishes; 0: it is skipped")
	verbose := flags.Bool("v", false, "show what the cases do")
	flags.Usage = func() {
		_, _ = fmt.Fprintln(log, "usage: conformance [flags] url\n\nurl is memory://, kafka://, sqs:// or amqp://, as the adapter's OpenURL takes it.")
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if flags.NArg() != 1 {
		return nil, fmt.Errorf("want one URL after the flags, not %d: see -h", flags.NArg())
	}
	h, err := harness(flags.Arg(0), *kind)
	if err != nil {
		return nil, err
	}
	h.Name, h.Version = cmp.Or(*name, h.Name), *version
	h.Messages, h.Million = *messages, *million
	if *only != "" {
		h.Only = strings.Split(*only, ",")
		if err := known(h.Only); err != nil {
			return nil, err
		}
	}
	if *verbose {
		h.Log = log
	}
	b, err := h.Open(ctx) // rather than a failure of each case
	if err != nil {
		return nil, err
	}
	if err := errors.Join(b.Ping(ctx), b.Close()); err != nil {
		return nil, err
	}
	report, err := conformance.Check(ctx, h)
	if report == nil {
		return nil, err
	}
	return report, errors.Join(err, write(report, out, *path))
}

// harness returns what fits the broker at url.
func harness(url, kind string) (conformance.Harness, error) {
	scheme, _, _ := strings.Cut(url, ":")
	h := conformance.Harness{
		Name: scheme, Kinds: conformance.Both,
		Open: func(ctx context.Context) (broker.Broker, error) { return openers.Open(ctx, url) },
		Soon: 30 * time.Second, Quiet: 500 * time.Millisecond, Tick: 20 * time.Millisecond,
	}
	switch strings.ToLower(scheme) {
	case "memory":
		h.Embedded, h.Soon, h.Quiet = true, 0, 0
	case "kafka":
		h.Lease, h.Delay = 2*time.Second, time.Second
		h.StreamConfig = func(cfg *broker.StreamConfig) error {
			if cfg.Compact { // the cleaner spares what is written to, and waits for enough to do
				cfg.Options = map[string]string{"segment.ms": "500", "min.cleanable.dirty.ratio": "0.01", "delete.retention.ms": "500"}
			}
			return nil
		}
	case "sqs":
		h.Kinds, h.Duplicates = conformance.Queue, true
		h.Lease, h.Delay, h.Tick = time.Second, time.Second, time.Second // SQS counts whole seconds
		run, n := broker.NewID()[24:], new(atomic.Int64)
		h.NewName = func(kind string) string {
			name := fmt.Sprintf("qs-%s-%s-%d", kind, run, n.Add(1))
			if kind == "ordered" {
				name += ".fifo"
			}
			return name
		}
	case "amqp", "amqps":
		h.Expected = map[int]string{
			59: "a stream's retention removes whole segments, when the next one begins, and never the last: https://www.rabbitmq.com/docs/streams#retention",
		}
	}
	switch kind {
	case "":
	case "queue":
		h.Kinds = conformance.Queue
	case "stream":
		h.Kinds = conformance.Stream
	case "both":
		h.Kinds = conformance.Both
	default:
		return h, fmt.Errorf("-kind %q: want queue, stream or both", kind)
	}
	return h, nil
}

// known tells of a name that no case has, instead of running nothing.
func known(only []string) error {
	for _, pattern := range only {
		found := false
		for _, c := range conformance.Cases() {
			found = found || strings.EqualFold(c.Name, pattern) || strconv.Itoa(c.ID) == pattern
		}
		if !found {
			return fmt.Errorf("-only %q: no case has that number or name", pattern)
		}
	}
	return nil
}

// write tells how each case ended, and leaves the report at path.
func write(r *conformance.Report, out io.Writer, path string) (err error) {
	for i := range r.Results {
		x := &r.Results[i]
		line := fmt.Sprintf("%-8s %-6s %2d %s", x.Status, x.Kind, x.ID, x.Name)
		if x.Reason != "" {
			line += ": " + x.Reason
		}
		for _, f := range x.Failures {
			line += "\n         " + strings.ReplaceAll(f, "\n", "\n         ")
		}
		if _, err := fmt.Fprintln(out, line); err != nil {
			return err
		}
	}
	if _, err := fmt.Fprintln(out, r.Summary()); err != nil || path == "" {
		return err
	}
	f, err := os.Create(path) //nolint:gosec // the user names it
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return r.WriteJSON(f)
}
