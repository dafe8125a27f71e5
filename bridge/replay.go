package bridge

import (
	"context"

	"github.com/queuestream/broker"
)

// A Planned is what a dry run shows of one record.
type Planned struct {
	Record *broker.Record
	Queue  string         // empty when the record is filtered
	Task   broker.Message // as it would be sent, with its ids
	Kept   bool           // false: filtered
	Poison error          // why the record would be poison
}

// A Summary counts what a dry run saw.
type Summary struct {
	Records, Tasks, Filtered, Poison int
}

// DryRun reads a range of the source without a group, tells what each record
// would become, and sends and commits nothing. It ends at the end of the
// range, with ctx, or with emit's first error.
func (rt *Route) DryRun(ctx context.Context, rg broker.Range, emit func(Planned) error) (Summary, error) {
	var s Summary
	if err := rt.check(); err != nil {
		return s, err
	}
	identity := ""
	if i, ok := broker.As[broker.Identifier](rt.Source); ok {
		var err error
		if identity, err = i.Identity(ctx); err != nil {
			return s, err
		}
	}
	rg.ReadCommitted = rg.ReadCommitted || rt.ReadCommitted
	for r, err := range rt.Source.Read(ctx, rg) {
		if err != nil {
			return s, err
		}
		// As if a member of the route's group had read it.
		r.Bind(r.Offset(), &broker.Assignment{Stream: rt.Source.Name(), Group: rt.group(), Partition: r.Partition, Identity: identity})
		q, task, kept, err := rt.plan(ctx, r)
		if err == nil && kept {
			err = rt.refused(q, task)
		}
		p := Planned{Record: r, Task: task, Kept: kept}
		s.Records++
		switch {
		case err != nil && !isPoison(err):
			return s, err
		case err != nil:
			p.Poison = err
			s.Poison++
		case !kept:
			s.Filtered++
		default:
			p.Queue = q.Name()
			s.Tasks++
		}
		if err := emit(p); err != nil {
			return s, err
		}
	}
	return s, broker.ContextError(ctx)
}

// refused tells for what the queue would refuse the task, as far as it shows
// before it is sent.
func (rt *Route) refused(q broker.Queue, task broker.Message) error {
	c := q.Capabilities()
	c.Groups = c.Groups || rt.GroupFor != nil // which may be the tenant of a fair queue
	err := broker.ValidateMessage(&task, &c)
	if rt.claims(task, err) {
		return nil
	}
	return err
}

// Replay returns a route that sends a range of the source again, in a group of
// its own so that the live offsets stay where they are, and whose Run ends at
// until. A replay that was cut off goes on where it was when it is run again
// with the same group. Run refuses the group of rt, and an empty one.
func (rt *Route) Replay(group string, from, until broker.Position) *Route {
	if until.IsZero() {
		until = broker.Now()
	}
	return &Route{
		live: rt.group(),
		Name: rt.Name, Source: rt.Source, Group: group, Start: from, Until: until, ReadCommitted: rt.ReadCommitted,
		Target: rt.Target, TargetFor: rt.TargetFor, Filter: rt.Filter, GroupFor: rt.GroupFor, Map: rt.Map, Salt: rt.Salt,
		Poison: rt.Poison, DeadLetter: rt.DeadLetter, Attempts: rt.Attempts, TooLarge: rt.TooLarge, Blobs: rt.Blobs,
		Concurrency: rt.Concurrency, Window: rt.Window, MaxAge: rt.MaxAge, BatchSameGroup: rt.BatchSameGroup,
		RateLimit: rt.RateLimit, RetryMin: rt.RetryMin, RetryMax: rt.RetryMax, DrainTimeout: rt.DrainTimeout,
		Middleware: rt.Middleware, Logger: rt.Logger, Observe: rt.Observe,
	}
}
