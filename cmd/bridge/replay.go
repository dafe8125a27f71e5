package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/bridge"
)

const progressEvery = time.Second

type replayCmd struct {
	configFlag
	Route    string `required:"" help:"The route to replay."`
	From     string `default:"earliest" help:"earliest, an RFC 3339 time, or offset:N."`
	Until    string `default:"now" help:"now, an RFC 3339 time, or offset:N; not sent itself."`
	Group    string `help:"The consumer group; the same one goes on where a replay was cut off. Default: the route's group with -replay- and the time."`
	FreshIDs bool   `name:"fresh-ids" help:"Make other dedup ids, to get past a FIFO queue's 5-minute window."`
	DryRun   bool   `help:"Show what would be sent, a line of JSON a record, and send nothing."`
}

// Run replays, and ends when the range is done.
func (c *replayCmd) Run(ctx context.Context, e env) error {
	cfg, err := c.load()
	if err != nil {
		return err
	}
	from, err := position(c.From, "earliest")
	if err != nil {
		return &usageError{fmt.Errorf("--from: %w", err)}
	}
	until, err := position(c.Until, "now")
	if err != nil {
		return &usageError{fmt.Errorf("--until: %w", err)}
	}
	if isBefore(until, from) {
		return &usageError{fmt.Errorf("--until %s: it lies before --from %s", c.Until, c.From)}
	}
	one, err := onlyRoute(cfg, c.Route)
	if err != nil {
		return &usageError{err}
	}
	for i := range cfg.Routes {
		if live := &cfg.Routes[i]; c.Group == live.Group() {
			return &usageError{fmt.Errorf("--group %q: it is that of route %s, whose offsets stay as they are: want another", c.Group, live.Name)}
		}
	}
	log, err := newLogger(e, cfg.Worker.LogLevel)
	if err != nil {
		return err
	}
	set, err := build(ctx, one, e)
	if err != nil {
		return err
	}
	rt := set.Routes[0]
	rt.Logger = log
	group := orDefault(c.Group, fmt.Sprintf("%s-replay-%s", rt.Group, time.Now().UTC().Format("20060102T150405.000Z")))
	err = inRange(ctx, rt.Source, group, from)
	switch {
	case err != nil:
	case c.DryRun:
		err = dryRun(ctx, e, rt, broker.Range{From: from, Until: until})
	default:
		err = c.replay(ctx, e, rt.Replay(group, from, until))
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	return errors.Join(err, set.Shutdown(stop))
}

// inRange refuses an offset that a partition does not have, where group has no
// commit to go on from: consumers would begin at another one.
func inRange(ctx context.Context, source broker.Stream, group string, from broker.Position) error {
	if from.Kind() != broker.PositionOffset {
		return nil
	}
	parts, err := source.Partitions(ctx)
	if err != nil {
		return err
	}
	lag, err := source.Lag(ctx, group)
	if err != nil {
		return err
	}
	begun := map[int32]bool{}
	for _, l := range lag {
		begun[l.Partition] = l.HasCommit
	}
	for _, p := range parts {
		if o := from.Offset(); !begun[p.ID] && (o.Compare(p.First) < 0 || o.Compare(p.Next) > 0) {
			return &usageError{fmt.Errorf("--from: %w: offset %v in partition %d: want %v to %v", broker.ErrOutOfRange, o, p.ID, p.First, p.Next)}
		}
	}
	return nil
}

func (c *replayCmd) replay(ctx context.Context, e env, rt *bridge.Route) error {
	now := time.Now()
	if c.FreshIDs {
		rt.Salt = rt.Group
	}
	ended := make(chan error, 1)
	go func() { ended <- rt.Run(ctx) }()
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	progress := func(end string) {
		if e.terminal {
			s := rt.Stats()
			fmt.Fprintf(e.stderr, "\r%d read, %d enqueued, %d filtered, %d parked%s", s.In, s.Enqueued, s.Filtered, s.Parked, end) //nolint:errcheck // progress only
		}
	}
	for {
		select {
		case err := <-ended:
			progress("\n") // the summary has a line of its own
			if err == nil && ctx.Err() != nil {
				err = fmt.Errorf("cut off before the end; --group %s goes on from here", rt.Group)
			}
			return errors.Join(err, summary(e, rt, time.Since(now)))
		case <-tick.C:
			progress(" ")
		}
	}
}

func summary(e env, rt *bridge.Route, took time.Duration) error {
	s := rt.Stats()
	return say(e, "replay of %s in %v: %d enqueued (%d of them known to the queue already), %d filtered, %d parked, %d skipped, %d retries\n",
		rt.Name, took.Round(time.Millisecond), s.Enqueued, s.Duplicates, s.Filtered, s.Parked, s.Skipped, s.Retried)
}

// planned is a line of a dry run.
type planned struct {
	Partition int32             `json:"partition"`
	Offset    string            `json:"offset"`
	Key       string            `json:"key"`
	Outcome   string            `json:"outcome"` // send, filter or poison
	Queue     string            `json:"queue,omitempty"`
	Group     string            `json:"group,omitempty"`
	Delay     string            `json:"delay,omitempty"`
	Headers   map[string]string `json:"headers,omitempty"`
	Body      string            `json:"body,omitempty"`
	Error     string            `json:"error,omitempty"`
}

func dryRun(ctx context.Context, e env, rt *bridge.Route, rg broker.Range) error {
	enc := json.NewEncoder(e.stdout)
	s, err := rt.DryRun(ctx, rg, func(p bridge.Planned) error {
		line := planned{Partition: p.Record.Partition, Offset: p.Record.Offset().String(), Key: string(p.Record.Key), Outcome: "send"}
		switch {
		case p.Poison != nil:
			line.Outcome, line.Error = "poison", p.Poison.Error()
		case !p.Kept:
			line.Outcome = "filter"
		default:
			line.Queue, line.Group, line.Body = p.Queue, p.Task.GroupID, string(p.Task.Body)
			line.Headers = map[string]string{}
			for _, h := range p.Task.Headers {
				line.Headers[h.Key] = h.Value
			}
			if p.Task.Delay > 0 {
				line.Delay = p.Task.Delay.String()
			}
		}
		return enc.Encode(line)
	})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(e.stderr, "dry run of %s: %d records, %d would be sent, %d filtered, %d poison; nothing was sent\n",
		rt.Name, s.Records, s.Tasks, s.Filtered, s.Poison)
	return err
}

// isBefore tells whether a certainly lies before b.
func isBefore(a, b broker.Position) bool {
	switch {
	case a.Kind() != b.Kind():
		return false
	case a.Kind() == broker.PositionTime:
		return a.Time().Before(b.Time())
	}
	return a.Kind() == broker.PositionOffset && a.Offset().Compare(b.Offset()) < 0
}

// position reads what the flags take: word, an offset or a time.
func position(s, word string) (broker.Position, error) {
	if n, ok := strings.CutPrefix(s, "offset:"); ok {
		o, err := broker.ParseOffset(n)
		return broker.AtOffset(o), err
	}
	p, err := bridge.ParsePosition(s)
	if err != nil || s != word && p.Kind() != broker.PositionTime {
		err = broker.Invalid("%q: want %s, an RFC 3339 time or offset:N", s, word)
	}
	return p, err
}

func onlyRoute(cfg *bridge.Config, name string) (*bridge.Config, error) {
	var names []string
	for _, r := range cfg.Routes {
		if r.Name == name {
			one := *cfg
			one.Routes = []bridge.RouteConfig{r}
			return &one, nil
		}
		names = append(names, r.Name)
	}
	return nil, fmt.Errorf("--route %q: want one of %v", name, names)
}
