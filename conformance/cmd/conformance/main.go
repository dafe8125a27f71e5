// Command conformance finds out what a broker, or a cluster of them, really
// does: it runs the suite on queues, streams and exchanges of its own there,
// which it removes, and tells what held.
//
//	go install ./conformance/cmd/conformance
//	conformance kafka://localhost:9092
//	conformance -only 14,GroupHeadBlocks -seed 7 'sqs://eu-central-1'
//	conformance -report kafka.json -million 1000000 kafka://…
//	go run ./conformance/cmd/guarantees kafka.json
//
// It ends with status
//
//	0  where every case held, or what is not claimed was refused
//	1  where a case failed
//	2  where the command line is wrong: a flag, a case, the URL
//	3  where the broker cannot be reached, or lets this user not in
//	4  where it does not let the suite make and remove what it needs
//	5  where the run was interrupted, or the report could not be written
//
// ("go run" makes a 1 of each). It tries the broker before the first case: what
// has no streams, or no queues, is run without.
//
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
	"strings"
	"syscall"
	"time"

	"github.com/queuestream/broker/conformance"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends it at once
	os.Exit(program(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// How the program ends, beside 0.
const (
	exitFailed     = 1
	exitUsage      = 2
	exitUnreached  = 3
	exitRefused    = 4
	exitUnfinished = 5
)

// An exitError ends the program with a status of its own.
type exitError struct {
	status int
	err    error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

// program is main, and returns the status.
func program(ctx context.Context, args []string, out, log io.Writer) int {
	report, err := run(ctx, args, out, log)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		_, _ = fmt.Fprintln(log, "conformance:", err)
		if e, ok := errors.AsType[*exitError](err); ok {
			return e.status
		}
		return exitUsage
	}
	if report.Failed() {
		return exitFailed
	}
	return 0
}

// run does what args ask for. An error that is no exitError is a mistake in them.
func run(ctx context.Context, args []string, out, log io.Writer) (*conformance.Report, error) {
	flags := flag.NewFlagSet("conformance", flag.ContinueOnError)
	flags.SetOutput(log)
	conformance.SeedFlag(flags)
	var t target
	flags.StringVar(&t.kind, "kind", "", "queue, stream or both; by default what the broker has")
	flags.StringVar(&t.streamURL, "stream-url", "", "where RabbitMQ's streams listen (rabbitmq-stream://…); by default at port 5552 of the URL's host")
	only := flags.String("only", "", "the cases to run, by number or name, separated by commas; by default all")
	name := flags.String("name", "", "the broker's name in the report; by default the scheme")
	version := flags.String("version", "", "the broker's version in the report")
	path := flags.String("report", "", "the file to write the report to, as JSON")
	messages := flags.Int("messages", 200, "how many messages an ordinary case publishes")
	million := flags.Int("million", 0, "how many the case Million publishes; 0: it is skipped")
	limit := flags.Duration("connect-timeout", 15*time.Second, "how long reaching the broker, and making something there, may take")
	verbose := flags.Bool("v", false, "show what the cases do")
	flags.Usage = func() {
		_, _ = fmt.Fprintln(log, "usage: conformance [flags] url\n\nurl is memory://, kafka://, sqs:// or amqp://, as the adapter's OpenURL takes it.")
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	switch {
	case flags.NArg() != 1:
		return nil, fmt.Errorf("want one URL after the flags, not %d: see -h", flags.NArg())
	case *messages < 1:
		return nil, fmt.Errorf("-messages %d: want at least 1", *messages)
	case *million < 0:
		return nil, fmt.Errorf("-million %d: must not be negative", *million)
	case *limit <= 0:
		return nil, fmt.Errorf("-connect-timeout %v: want more than 0", *limit)
	}
	t.url = flags.Arg(0)
	h, err := t.harness()
	if err != nil {
		return nil, err
	}
	h.Name, h.Version = cmp.Or(*name, h.Name), *version
	h.Messages, h.Million = *messages, *million
	if *only != "" {
		if err := choose(&h, strings.Split(*only, ",")); err != nil {
			return nil, err
		}
	}
	if *verbose {
		h.Log = log
	}
	lacks, err := reach(ctx, &h, *limit)
	if err != nil {
		return nil, err
	}
	if lacks != nil {
		if h.Kinds == 0 || t.kind != "" {
			return nil, &exitError{exitRefused, lacks}
		}
		_, _ = fmt.Fprintf(log, "conformance: only the cases for a %v are run: %v\n", h.Kinds, lacks)
	}
	file, err := create(*path) // before a long run, rather than at its end
	if err != nil {
		return nil, err
	}
	report, err := check(ctx, h)
	if report == nil {
		return nil, err
	}
	if werr := write(report, out, file); werr != nil {
		err = errors.Join(err, &exitError{exitUnfinished, werr})
	}
	return report, err
}

// check runs the suite. Where ctx ends it before its end the report has what
// was run until then.
func check(ctx context.Context, h conformance.Harness) (*conformance.Report, error) {
	done := 0
	h.Around = func(t conformance.T, run func(conformance.T)) {
		if ctx.Err() != nil {
			return
		}
		run(t)
		if ctx.Err() == nil {
			done++
		}
	}
	report, err := conformance.Check(ctx, h)
	if err != nil && ctx.Err() != nil {
		err = &exitError{exitUnfinished, fmt.Errorf("interrupted after %d of %d cases", done, len(report.Results))}
		report.Results = report.Results[:done]
	}
	return report, err
}
