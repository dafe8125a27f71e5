package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/queuestream/broker"
)

// worked is a bridge that is the program cmd/bridge, as it is deployed, with a
// configuration of its own.
type worked struct {
	program, streamURL, queueURL string
	config                       string
}

var _ broker.Runner = (*worked)(nil)

func (w *worked) route(stream, group, queue, dead string) *worked {
	literal := func(s string) string { return fmt.Sprintf("%q", strings.ReplaceAll(s, "$", "$$")) }
	w.config = fmt.Sprintf(`brokers: {events: %s, tasks: %s}
routes:
  - name: confirmations
    source: {broker: events, stream: %s, group: %s}
    target: {broker: tasks, queue: %s}
    poison: {policy: dlq, queue: %s}
worker: {listen: "127.0.0.1:0", admin_listen: "off", log_level: warn}
`, literal(w.streamURL), literal(w.queueURL), literal(stream), literal(group), literal(queue), literal(dead))
	return w
}

// Run runs the program until ctx ends, and then tells it to drain.
func (w *worked) Run(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp("", "hybrid-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	file := filepath.Join(dir, "bridge.yaml")
	if err := os.WriteFile(file, []byte(w.config), 0o600); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, w.program, "run", "-c", file) //nolint:gosec // the user's own choice
	cmd.Stderr = os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = time.Minute // longer than its drain_timeout
	err = cmd.Run()
	if ctx.Err() != nil && (cmd.ProcessState == nil || cmd.ProcessState.Success()) {
		return nil // it was told to end, and did
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", w.program, err)
	}
	return err
}
