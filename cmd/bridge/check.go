package main

import (
	"context"
	"fmt"
	"time"

	"github.com/queuestream/broker/bridge"
)

type checkCmd struct {
	configFlag
	Connect bool          `help:"Also reach every broker, stream and queue with the configured credentials. Nothing is sent or committed."`
	Timeout time.Duration `default:"15s" help:"How long reaching them may take."`
}

// Run validates the configuration.
func (c *checkCmd) Run(ctx context.Context, e env) error {
	cfg, err := c.load()
	if err != nil {
		return err
	}
	if err := e.open.Check(ctx, cfg); err != nil {
		return err
	}
	for _, r := range cfg.Routes {
		if err := say(e, "route %s: %s → %s\n", r.Name, r.Source.Stream, r.Target.Queue); err != nil {
			return err
		}
	}
	if c.Connect {
		if err := c.connect(ctx, e, cfg); err != nil {
			return err
		}
	}
	return say(e, "%s: ok\n", c.Config)
}

func (c *checkCmd) connect(ctx context.Context, e env, cfg *bridge.Config) error {
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	set, err := build(ctx, cfg, e)
	if err != nil {
		return err
	}
	defer set.Close() //nolint:errcheck // nothing was sent
	if err := pingAll(ctx, set.Brokers()); err != nil {
		return err
	}
	for _, rt := range set.Routes {
		parts, err := rt.Source.Partitions(ctx)
		if err != nil {
			return fmt.Errorf("route %s: %w", rt.Name, err)
		}
		lag, err := rt.Lag(ctx)
		if err != nil {
			return fmt.Errorf("route %s: %w", rt.Name, err)
		}
		var behind int64
		for _, l := range lag {
			behind += l.Lag
		}
		if err := say(e, "route %s: %d partitions, %d records behind\n", rt.Name, len(parts), behind); err != nil {
			return err
		}
	}
	return nil
}

func say(e env, format string, args ...any) error {
	_, err := fmt.Fprintf(e.stdout, format, args...)
	return err
}
