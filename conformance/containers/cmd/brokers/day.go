package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/queuestream/broker/conformance/containers"
)

// up starts the brokers of a developer's day.
func (t *tool) up(ctx context.Context) error {
	if err := containers.Prepare(ctx, t.kinds, t.build()); err != nil {
		return err
	}
	instances, err := containers.Up(ctx, t.place, t.kinds)
	if err != nil {
		return err
	}
	for _, in := range instances {
		say("%s is up", in.Describe())
	}
	exports := exports(instances)
	if t.file != "" {
		if err := os.MkdirAll(filepath.Dir(t.file), 0o750); err != nil {
			return err
		}
		if err := os.WriteFile(t.file, []byte(exports), 0o600); err != nil {
			return err
		}
	}
	fmt.Print(exports)
	return nil
}

// exports returns lines for a shell to evaluate.
func exports(instances []*containers.Instance) string {
	var b strings.Builder
	for _, in := range instances {
		for _, line := range in.Environ() {
			name, value, _ := strings.Cut(line, "=")
			fmt.Fprintf(&b, "export %s='%s'\n", name, strings.ReplaceAll(value, "'", `'\''`))
		}
	}
	return b.String()
}

// down removes them.
func (t *tool) down(ctx context.Context) error {
	n, err := containers.Down(ctx, t.place)
	if err != nil {
		return err
	}
	if t.file != "" {
		_ = os.Remove(t.file)
	}
	say("%d brokers removed", n)
	return nil
}

// env prints the environment again.
func (t *tool) env(ctx context.Context) error {
	instances, err := containers.Found(ctx, t.place)
	if err != nil {
		return err
	}
	if len(instances) == 0 {
		return fmt.Errorf("nothing is up for %s: run \"make up\"", t.place)
	}
	fmt.Print(exports(instances))
	return nil
}

// status lists the brokers and says which serve.
func (t *tool) status(ctx context.Context) error {
	instances, err := containers.Found(ctx, t.place)
	if err != nil {
		return err
	}
	for _, in := range instances {
		state := "serves"
		if err := in.Probe(ctx); err != nil {
			state = "does not serve: " + err.Error()
		}
		fmt.Printf("%-9s %s, %s\n", in.Kind(), in.Describe(), state)
	}
	return nil
}

// images builds the missing images.
func (t *tool) images(ctx context.Context) error {
	opts := t.build()
	opts.Force = t.force
	return containers.BuildImages(ctx, t.kinds, opts)
}

// build says how images are built for a person, who sees it, and on whose host
// what it takes may be installed.
func (t *tool) build() containers.BuildOptions {
	return containers.BuildOptions{
		NoInstall: os.Getenv("NO_INSTALL") == "1",
		Log:       func(line string) { fmt.Fprintln(os.Stderr, line) },
	}
}

// sweep removes leftovers.
func (t *tool) sweep(ctx context.Context) error {
	n, err := containers.Sweep(ctx)
	if err != nil {
		return err
	}
	say("%d leftovers removed", n)
	return nil
}
