package bridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/queuestream/broker"
)

// A Bridge runs several routes in one process; none stalls another. It is a
// [broker.Runner].
type Bridge struct {
	Routes []*Route
}

var _ broker.Runner = (*Bridge)(nil)

// Run runs every route until ctx ends, drains and returns nil. A route that
// halts, or that is set up wrongly, ends alone: the others go on, and Run
// returns its error when all have ended.
func (b *Bridge) Run(ctx context.Context) error {
	errs := make(chan error, len(b.Routes))
	for _, rt := range b.Routes {
		go func() { errs <- rt.Run(ctx) }()
	}
	var all error
	for range b.Routes {
		all = errors.Join(all, <-errs)
	}
	return all
}

// A HaltError tells that a route ended by itself, for what somebody has to look
// at: before a record by policy halt, or since its source was missing when it
// began, or cannot be read for another reason that does not pass.
type HaltError struct {
	Route string
	Err   error
}

// Error names the route and the cause.
func (e *HaltError) Error() string { return fmt.Sprintf("route %s halted: %v", e.Route, e.Err) }

// Unwrap returns the cause.
func (e *HaltError) Unwrap() error { return e.Err }

// restart is the back-off after a route's consumer failed for a passing reason.
var restart = broker.RetryPolicy{Min: time.Second, Max: time.Minute}

// Run runs the route until ctx ends, or until Until is reached, drains and
// returns nil. A broker that is down is tried again, for ever, and so is a
// stream that was deleted meanwhile, or whose rights were taken away; what is
// set up wrongly is an error at once, and a poison record under policy halt is
// a *HaltError.
func (rt *Route) Run(ctx context.Context) error {
	if err := rt.check(); err != nil {
		return err
	}
	if _, err := rt.Source.Partitions(ctx); isMissing(err) {
		return rt.halt(err)
	}
	for attempt := 1; ; attempt++ {
		p := rt.newProcessor()
		started := time.Now()
		err := p.Run(ctx)
		if err == nil || ctx.Err() != nil {
			return err
		}
		if !broker.IsTemporary(err) && !isMissing(err) || isPoison(err) {
			return rt.halt(err)
		}
		if time.Since(started) > restart.Max {
			attempt = 1
		}
		wait := restart.After(attempt, err)
		rt.Logger.Log(ctx, slog.LevelError, "the route failed and starts again",
			"route", rt.Name, "after", wait, "error", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// isMissing tells that the source is not there, or not for this user. Once the
// route has begun it may come back: made again (its records are others then),
// with its rights given back.
func isMissing(err error) bool {
	return errors.Is(err, broker.ErrNotFound) || errors.Is(err, broker.ErrUnauthorized)
}

func (rt *Route) halt(err error) error {
	err = &HaltError{Route: rt.Name, Err: err}
	rt.mu.Lock()
	rt.halted = err
	rt.mu.Unlock()
	rt.Logger.Error("the route ended", "route", rt.Name, "error", err)
	return err
}

// Pause stops taking up records until Resume; what is in hand is finished. The
// partitions stay assigned.
func (rt *Route) Pause() { rt.setPaused(true) }

// Resume ends Pause.
func (rt *Route) Resume() { rt.setPaused(false) }

func (rt *Route) setPaused(paused bool) {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	rt.paused = paused
	if rt.processor != nil {
		rt.applyPause(rt.processor)
	}
}

func (rt *Route) applyPause(p *broker.Processor) {
	if rt.paused {
		p.Pause()
	} else {
		p.Resume()
	}
}

// Lag returns how far the route's group is behind.
func (rt *Route) Lag(ctx context.Context) ([]broker.PartitionLag, error) {
	return rt.Source.Lag(ctx, rt.group())
}

// group is the consumer group. It may be asked for while Run begins.
func (rt *Route) group() string { return orDefault(rt.Group, defaultGroup(rt.Name)) }

// requestTasks is how many records a lane takes at once where it takes several:
// what a request to SQS holds.
const requestTasks = 10

// tenByTen tells whether records are handed over as many at a time as a request
// holds, which costs less than one by one. The target has to keep no order, since
// several tasks of a key may be in a request, and nothing may hold up one record
// alone: a filter, of which few would be left, a middleware, a blob store.
func (rt *Route) tenByTen() bool {
	if rt.Target == nil || rt.Filter != nil || rt.GroupFor != nil || len(rt.Middleware) > 0 ||
		rt.RateLimit > 0 || rt.TooLarge == TooLargeClaimCheck {
		return false
	}
	c := rt.Target.Capabilities()
	return !c.FIFO && !c.Groups
}

func (rt *Route) newProcessor() *broker.Processor {
	p := &broker.Processor{
		Stream:        rt.Source,
		Group:         rt.group(),
		Start:         rt.Start,
		Until:         rt.Until,
		ReadCommitted: rt.ReadCommitted,
		Middleware:    rt.Middleware,
		Concurrency:   rt.Concurrency,
		MaxWindow:     rt.Window,
		MaxAge:        rt.MaxAge,
		Retry:         broker.RetryPolicy{Min: rt.RetryMin, Max: rt.RetryMax},
		DrainTimeout:  rt.DrainTimeout,
		Logger:        rt.Logger,
	}
	switch {
	case rt.BatchSameGroup:
		p.BatchHandler, p.MaxBatch = rt.handleBatch, min(requestTasks, rt.Window)
	case rt.tenByTen():
		p.BatchHandler, p.MaxBatch = rt.handleBatch, min(requestTasks, rt.Window, rt.Concurrency)
		p.Concurrency = max(1, rt.Concurrency/requestTasks)
	default:
		p.Handler = rt.handle
	}
	if rt.GroupFor != nil {
		p.OrderBy = rt.orderBy
	}
	if rt.RateLimit > 0 {
		p.Middleware = append([]broker.Middleware{broker.RateLimit(rt.RateLimit)}, p.Middleware...)
	}
	if rt.Poison == PoisonDLQ {
		p.DeadLetter = rt.deadLetter
	}
	rt.mu.Lock()
	defer rt.mu.Unlock()
	if rt.processor != nil {
		rt.received += rt.processor.Stats().Received
	}
	rt.processor = p
	rt.applyPause(p)
	return p
}
