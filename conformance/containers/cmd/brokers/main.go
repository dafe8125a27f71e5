// Command brokers starts the real brokers that tests run against.
//
//	brokers [-only kafka,rabbitmq] run -- go test ./...
//	brokers up | down | env | status
//	brokers images | sweep
//
// Run "brokers help" for what each does.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/queuestream/broker/conformance/containers"
)

const usage = `usage: brokers [flags] command

  run -- COMMAND   start each broker once, run COMMAND with their endpoints in its
                   environment, and remove them again, however COMMAND ends
  up               start brokers that stay, and print the environment to export
  down             remove what "up" started
  env              print the environment of what "up" started
  status           list what "up" started
  images           build the brokers' images, where they are missing
  sweep            remove what runs that were killed have left

A broker whose endpoint the environment has (BROKER_TEST_KAFKA,
BROKER_TEST_RABBITMQ, BROKER_TEST_SQS, BROKER_TEST_SNS) is not started by "run".

flags:
`

func main() { os.Exit(run(os.Args[1:])) }

// tool is one call of the program.
type tool struct {
	kinds []containers.Kind
	place string // what "up" and "down" are about
	file  string // where "up" writes the environment too
	force bool
}

func run(args []string) int {
	fs := flag.NewFlagSet("brokers", flag.ContinueOnError)
	fs.Usage = func() {
		fmt.Fprint(fs.Output(), usage)
		fs.PrintDefaults()
	}
	var t tool
	only := fs.String("only", "", "comma-separated brokers: kafka, rabbitmq, sqs, sns (default: all)")
	fs.StringVar(&t.place, "place", "", "directory that up, down, env and status are about (default: the current one)")
	fs.StringVar(&t.file, "file", "", "up: file to write the environment to, besides printing it")
	fs.BoolVar(&t.force, "force", false, "images: build those that exist again")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	if err := t.complete(*only); err != nil {
		say("%v", err)
		return 2
	}
	rest := fs.Args()
	if len(rest) == 0 || rest[0] == "help" {
		fs.Usage()
		return 2
	}
	if rest[0] == "run" {
		return t.run(rest[1:])
	}
	commands := map[string]func(context.Context) error{
		"up": t.up, "down": t.down, "env": t.env, "status": t.status, "images": t.images, "sweep": t.sweep,
	}
	command, ok := commands[rest[0]]
	if !ok || len(rest) > 1 {
		fs.Usage()
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command(ctx); err != nil {
		say("%v", err)
		return 1
	}
	return 0
}

// complete fills in what the flags left open.
func (t *tool) complete(only string) error {
	t.kinds = containers.Kinds()
	if only != "" {
		t.kinds = nil
		for name := range strings.SplitSeq(only, ",") {
			kind, ok := containers.ParseKind(strings.TrimSpace(name))
			if !ok {
				return fmt.Errorf("no broker is named %q", name)
			}
			t.kinds = append(t.kinds, kind)
		}
	}
	if t.place == "" {
		dir, err := os.Getwd()
		if err != nil {
			return err
		}
		t.place = dir
	}
	return nil
}

// say tells a person; what other programs read goes to the standard output.
func say(format string, args ...any) { fmt.Fprintf(os.Stderr, "brokers: "+format+"\n", args...) }
