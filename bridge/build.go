package bridge

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/bridge/blob"
)

// Openers are what Build opens things with.
type Openers struct {
	Brokers broker.Openers
	// Blobs opens a blob store by the scheme of its URL; "file" is built in.
	Blobs map[string]func(ctx context.Context, url string) (blob.Store, error)
}

// Build opens the brokers that the configuration names and makes its routes.
// Close of the returned set closes them. A broker that cannot be opened is an
// error that names it.
func Build(ctx context.Context, c *Config, o Openers) (_ *Set, err error) {
	s := &Set{brokers: map[string]broker.Broker{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	for i := range c.Routes {
		r := c.route(i)
		rt, err := s.build(ctx, c, r, o)
		if e, ok := errors.AsType[*ConfigError](err); ok {
			return nil, e
		}
		if err != nil {
			return nil, fmt.Errorf("route %s: %w", r.Name, err)
		}
		s.Routes = append(s.Routes, rt)
	}
	return s, nil
}

// A Set is the routes of a configuration, with the brokers that they use.
type Set struct {
	Bridge
	brokers map[string]broker.Broker
}

// Brokers returns the open brokers by name.
func (s *Set) Brokers() map[string]broker.Broker { return s.brokers }

// Shutdown drains and closes the brokers; call it after Run has returned.
func (s *Set) Shutdown(ctx context.Context) error {
	var errs error
	for _, b := range s.brokers {
		errs = errors.Join(errs, b.Shutdown(ctx))
	}
	return errs
}

// Close closes the brokers at once.
func (s *Set) Close() error {
	var errs error
	for _, b := range s.brokers {
		errs = errors.Join(errs, b.Close())
	}
	return errs
}

func (s *Set) broker(ctx context.Context, c *Config, name string, o Openers) (broker.Broker, error) {
	if b, ok := s.brokers[name]; ok {
		return b, nil
	}
	b, err := o.Brokers.Open(ctx, c.Brokers[name])
	if err != nil {
		return nil, fmt.Errorf("broker %s: %w", name, c.mistake("brokers."+name, err))
	}
	s.brokers[name] = b
	return b, nil
}

func (s *Set) build(ctx context.Context, c *Config, r *RouteConfig, o Openers) (*Route, error) {
	m, problems := compileRoute(r)
	if len(problems) > 0 {
		return nil, &ConfigError{Problems: problems}
	}
	start, err := ParsePosition(r.Source.Start)
	if err != nil {
		return nil, err
	}
	rt := &Route{
		Name: r.Name, Group: r.Group(), Start: start,
		Poison: PoisonPolicy(r.Poison.Policy), Attempts: r.Poison.Attempts, TooLarge: SizePolicy(r.TooLarge.Policy),
		Concurrency: r.Concurrency, Window: r.Window.Records, MaxAge: r.Window.Age,
		BatchSameGroup: r.BatchSameGroup, RateLimit: r.RateLimit,
		RetryMin: r.Retry.Min, RetryMax: r.Retry.Max, DrainTimeout: r.DrainTimeout,
	}
	if m.filter != nil {
		rt.Filter = m.keep
	}
	if m.edits() {
		rt.Map = m.edit
	}
	if !m.group.isZero() {
		rt.GroupFor = m.groupOf
	}
	source, err := s.broker(ctx, c, r.Source.Broker, o)
	if err != nil {
		return nil, err
	}
	if rt.Source, err = source.Stream(ctx, r.Source.Stream, nil); err != nil {
		return nil, fmt.Errorf("source: %w", c.mistake(r.path+".source.stream", err))
	}
	rt.ReadCommitted = rt.Source.Capabilities().Transactions
	if r.Source.ReadCommitted != nil {
		rt.ReadCommitted = *r.Source.ReadCommitted
	}
	target, err := s.broker(ctx, c, r.Target.Broker, o)
	if err != nil {
		return nil, err
	}
	if m.queue.program != nil {
		rt.TargetFor = chooseQueue(target, m)
	} else {
		if rt.Target, err = target.Queue(ctx, m.queue.literal, nil); err != nil {
			return nil, fmt.Errorf("target: %w", c.mistake(r.path+".target.queue", err))
		}
		if field, err := m.fits(rt.Target.Capabilities()); err != nil {
			return nil, c.mistake(r.path+".task."+field, fmt.Errorf("queue %s: %w", rt.Target.Name(), err))
		}
	}
	if r.Poison.Queue != "" {
		dead, err := s.broker(ctx, c, orDefault(r.Poison.Broker, r.Target.Broker), o)
		if err != nil {
			return nil, err
		}
		if rt.DeadLetter, err = dead.Queue(ctx, r.Poison.Queue, nil); err != nil {
			return nil, fmt.Errorf("poison: %w", c.mistake(r.path+".poison.queue", err))
		}
	}
	if r.TooLarge.Store != "" {
		if rt.Blobs, err = openBlobs(ctx, r.TooLarge.Store, o); err != nil {
			return nil, fmt.Errorf("too_large: %w", c.mistake(r.path+".too_large.store", err))
		}
	}
	return rt, nil
}

// fits tells which field of the mapping the queue cannot honour and why, before
// it would turn every record into poison.
func (m *mapper) fits(c broker.QueueCapabilities) (field string, err error) {
	delay, priority := time.Duration(0), 0 // of literals, which are valid
	if m.delay.program == nil {
		delay, _ = parseDelay(m.delay.literal)
	}
	if m.priority.program == nil {
		priority, _ = parsePriority(m.priority.literal)
	}
	switch {
	case !m.group.isZero() && !c.Groups:
		return "group", broker.Unsupported("the queue has no groups")
	case !m.dedup.isZero() && !c.Dedup:
		return "dedup", broker.Unsupported("the queue does not deduplicate")
	case !m.delay.isZero() && !c.Delay:
		return "delay", broker.Unsupported("the queue has no delay per message")
	case c.MaxDelay > 0 && delay > c.MaxDelay:
		return "delay", broker.Unsupported("%v, the longest is %v", delay, c.MaxDelay)
	case !m.priority.isZero() && c.MaxPriority == 0:
		return "priority", broker.Unsupported("the queue has no priorities")
	case priority > c.MaxPriority:
		return "priority", broker.Unsupported("%d, the highest is %d", priority, c.MaxPriority)
	}
	return "", nil
}

// mistake makes err one in the configuration, if no start will ever get past it.
func (c *Config) mistake(field string, err error) error {
	if broker.IsTemporary(err) || !errors.Is(err, broker.ErrInvalid) && !errors.Is(err, broker.ErrUnsupported) {
		return err
	}
	return &ConfigError{Problems: []Problem{c.Problem(field, err.Error(), "")}}
}

// route returns route i, which knows its place in any case.
func (c *Config) route(i int) *RouteConfig {
	r := c.Routes[i]
	r.path = orDefault(r.path, fmt.Sprintf("routes[%d]", i))
	return &r
}

// Check finds mistakes in the URLs of a configuration (a scheme that nothing
// opens, an unknown parameter), and reaches nothing. Its error is a
// *ConfigError.
func (o Openers) Check(ctx context.Context, c *Config) error {
	ctx, cancel := context.WithCancel(ctx)
	cancel() // a URL is read before anything is reached
	var problems []Problem
	add := func(field string, err error) {
		if e, ok := errors.AsType[*ConfigError](c.mistake(field, err)); ok {
			problems = append(problems, e.Problems...)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.Brokers)) {
		b, err := o.Brokers.Open(ctx, c.Brokers[name])
		if err == nil {
			err = b.Close()
		}
		add("brokers."+name, err)
	}
	for i := range c.Routes {
		if r := c.route(i); r.TooLarge.Store != "" {
			_, err := openBlobs(ctx, r.TooLarge.Store, o)
			add(r.path+".too_large.store", err)
		}
	}
	if problems == nil {
		return nil
	}
	return &ConfigError{Problems: problems}
}

// MaxQueues bounds the queues that an expression may choose among.
const MaxQueues = 1000

// chooseQueue opens a queue when a record first goes to it.
func chooseQueue(b broker.Broker, m *mapper) func(context.Context, *broker.Record) (broker.Queue, error) {
	c := &chosen{b: b, queues: map[string]*chosenQueue{}}
	return func(ctx context.Context, r *broker.Record) (broker.Queue, error) {
		env := newEnv(r)
		name, err := m.queue.text(&env)
		if err != nil {
			return nil, &poison{fmt.Errorf("target.queue: %w", err)}
		}
		return c.queue(ctx, name)
	}
}

// chosen are the queues that an expression has chosen. One that is being opened
// holds up its own records and no others.
type chosen struct {
	b      broker.Broker
	mu     sync.Mutex
	queues map[string]*chosenQueue
}

type chosenQueue struct {
	opening chan struct{} // holds a token while somebody opens it
	q       broker.Queue  // once it is open
}

func (c *chosen) queue(ctx context.Context, name string) (broker.Queue, error) {
	c.mu.Lock()
	e := c.queues[name]
	if e == nil {
		if len(c.queues) >= MaxQueues {
			c.mu.Unlock()
			return nil, &poison{fmt.Errorf("target.queue: %q would be queue %d, at most %d", name, MaxQueues+1, MaxQueues)}
		}
		e = &chosenQueue{opening: make(chan struct{}, 1)}
		c.queues[name] = e
	}
	q := e.q
	c.mu.Unlock()
	if q != nil {
		return q, nil
	}
	select {
	case e.opening <- struct{}{}:
		defer func() { <-e.opening }()
	case <-ctx.Done():
		return nil, broker.ContextError(ctx)
	}
	c.mu.Lock()
	q = e.q
	c.mu.Unlock()
	if q != nil { // by another one meanwhile
		return q, nil
	}
	q, err := c.b.Queue(ctx, name, nil)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		if c.queues[name] == e {
			delete(c.queues, name) // names that lead nowhere take no room
		}
		if errors.Is(err, broker.ErrNotFound) {
			err = &poison{fmt.Errorf("target.queue: %w", err)}
		}
		return nil, err
	}
	e.q, c.queues[name] = q, e
	return q, nil
}

func openBlobs(ctx context.Context, rawURL string, o Openers) (blob.Store, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return nil, err
	}
	if u.Scheme == "file" {
		if u.Path == "" || u.Host != "" {
			return nil, broker.Invalid("blob store %q: want file:///directory", rawURL)
		}
		return blob.Dir{Path: u.Path}, nil
	}
	if open, ok := o.Blobs[u.Scheme]; ok {
		return open(ctx, rawURL)
	}
	schemes := []string{"file"}
	for s := range o.Blobs {
		schemes = append(schemes, s)
	}
	slices.Sort(schemes)
	return nil, broker.Invalid("blob store %q: scheme %q, want one of %v", rawURL, u.Scheme, schemes)
}
