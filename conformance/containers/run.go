package containers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// Run is a set of brokers, one of each kind, that serve all processes of one
// test run. A runner starts it, passes Environ to the command that tests, and
// closes it. Two runs side by side share nothing.
type Run struct {
	id        string
	instances []*Instance
	own       bool // some were started, rather than found in the environment
}

// StartRun finds or starts the brokers of the given kinds, all at once. A kind
// that the environment names is taken from there. Kinds that can be neither
// found nor started are reported by the error, which then wraps ErrUnavailable;
// the returned Run has the others. Any other error ends the start, and nothing
// is left behind.
func StartRun(ctx context.Context, kinds []Kind) (*Run, error) {
	o, err := currentOwner()
	if err != nil {
		return nil, wrap("start", "", err)
	}
	// A runner below another runner is a run of its own.
	o.run = o.process
	r := &Run{id: o.run}
	var (
		wg        sync.WaitGroup
		instances = make([]*Instance, len(kinds))
		errs      = make([]error, len(kinds))
	)
	for i, kind := range kinds {
		wg.Go(func() { instances[i], errs[i] = sharedInstance(ctx, kind) })
	}
	wg.Wait()
	for i, in := range instances {
		if errs[i] == nil {
			r.instances = append(r.instances, in)
			r.own = r.own || in.image != ""
		}
	}
	for _, err := range errs {
		if err != nil && !errors.Is(err, ErrUnavailable) {
			return nil, errors.Join(append(errs, r.Close(context.WithoutCancel(ctx)))...)
		}
	}
	return r, errors.Join(errs...)
}

// Instances returns the brokers of the run.
func (r *Run) Instances() []*Instance { return r.instances }

// Has reports whether the run has a broker of the kind.
func (r *Run) Has(kind Kind) bool {
	for _, in := range r.instances {
		if in.kind == kind {
			return true
		}
	}
	return false
}

// Environ returns the environment, as NAME=value, for the processes of the run.
func (r *Run) Environ() []string {
	env := []string{envRun + "=" + r.id}
	for _, in := range r.instances {
		env = append(env, in.Environ()...)
	}
	return env
}

// Close removes the brokers that the run started and those that its processes
// started for themselves. Brokers that came from the environment stay.
func (r *Run) Close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	e, err := openEngine(ctx)
	if errors.Is(err, ErrUnavailable) && !r.own {
		return nil
	}
	if err != nil {
		return wrap("remove", "", err)
	}
	defer e.close()
	if _, err := e.removeLabelled(ctx, labelRun, r.id); err != nil {
		return wrap("remove", "", err)
	}
	if o, err := currentOwner(); err == nil {
		_ = os.Remove(o.lock.Name()) // the next sweep would do it
	}
	return nil
}

// Describe returns a line for people: the product, its version and where it runs.
func (in *Instance) Describe() string {
	version := in.version
	if version == "" {
		version = "of unknown version"
	}
	where := "given by " + in.kind.Env()
	if in.image != "" {
		where = "image " + in.image
	}
	return fmt.Sprintf("%s %s (%s)", in.kind.Product(), version, where)
}
