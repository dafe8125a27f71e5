// Command bridge turns events of streams into tasks on queues; Kafka to SQS is
// what it is made for. See package bridge for what it promises, and
// docs/bridge for configuration, deployment and the runbook.
//
// Exit codes, for supervisors: 0 it was told to stop, or a bounded replay
// ended; 1 something failed that starting again may mend; 2 the configuration
// or the command line is wrong, starting again is no use; 3 a route halted,
// before a poison record or since its source is missing, which somebody has to
// look at.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	_ "time/tzdata" // for expressions: the image has no time zones

	"github.com/alecthomas/kong" // command line: typed commands, help and errors from one struct

	"github.com/queuestream/broker/bridge"
)

// Exit codes.
const (
	exitOK      = 0
	exitFailure = 1
	exitConfig  = 2
	exitHalted  = 3
)

type cli struct {
	Run     runCmd           `cmd:"" help:"Run all routes until SIGTERM or SIGINT, then drain."`
	Check   checkCmd         `cmd:"" help:"Validate a configuration; with --connect also reach every broker."`
	Replay  replayCmd        `cmd:"" help:"Send a range of a route's stream again, in a group of its own."`
	Version kong.VersionFlag `help:"Print the version."`
}

// env is what the commands need of the process.
type env struct {
	stdout, stderr io.Writer
	terminal       bool // stderr is one: show progress
	open           bridge.Openers
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	go func() { // a second signal ends the process at once
		<-ctx.Done()
		stop()
	}()
	info, err := os.Stderr.Stat()
	e := env{stdout: os.Stdout, stderr: os.Stderr, terminal: err == nil && info.Mode()&os.ModeCharDevice != 0, open: openers()}
	os.Exit(run(ctx, e, os.Args[1:]))
}

// run is main without the process.
func run(ctx context.Context, e env, args []string) int {
	var c cli
	exit := -1 // set by --help and --version
	parser, err := kong.New(&c,
		kong.Name("bridge"),
		kong.Description("Turns every event of a stream into one task on a queue."),
		kong.Vars{"version": version()},
		kong.Writers(e.stdout, e.stderr),
		kong.Exit(func(code int) { exit = code }),
		kong.UsageOnError(),
		kong.Bind(e),
		kong.BindTo(ctx, (*context.Context)(nil)),
	)
	if err != nil {
		return report(e, err)
	}
	k, err := parser.Parse(args)
	if exit >= 0 {
		return exit
	}
	if err != nil {
		return report(e, &usageError{err})
	}
	return report(e, k.Run())
}

// report prints err and returns the exit code that it stands for.
func report(e env, err error) int {
	if err == nil {
		return exitOK
	}
	if _, werr := fmt.Fprintln(e.stderr, "bridge:", err); werr != nil {
		return exitFailure
	}
	if _, ok := errors.AsType[*bridge.ConfigError](err); ok {
		return exitConfig
	}
	if _, ok := errors.AsType[*usageError](err); ok {
		return exitConfig
	}
	if _, ok := errors.AsType[*bridge.HaltError](err); ok {
		return exitHalted
	}
	if _, ok := errors.AsType[*missingSourceError](err); ok {
		return exitHalted
	}
	return exitFailure
}

// A usageError is a mistake on the command line.
type usageError struct{ err error }

func (u *usageError) Error() string { return u.err.Error() }
func (u *usageError) Unwrap() error { return u.err }

func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}
