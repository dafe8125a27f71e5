package bridge

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/expr-lang/expr"
	"github.com/expr-lang/expr/vm"

	"github.com/queuestream/broker"
)

// An Env is what an expression knows of a record. The functions are those of
// expr-lang (fromJSON(value).customer.id, lower(key), …).
type Env struct {
	Key       string            `expr:"key"`
	Value     string            `expr:"value"`
	Headers   map[string]string `expr:"headers"` // the first of each name
	Stream    string            `expr:"stream"`
	Partition int               `expr:"partition"`
	Offset    string            `expr:"offset"`
	Time      time.Time         `expr:"time"`
	Tombstone bool              `expr:"tombstone"`
}

func newEnv(r *broker.Record) Env {
	env := Env{
		Key: string(r.Key), Value: string(r.Value),
		Partition: int(r.Partition), Offset: r.Offset().String(),
		Time: r.Time(), Tombstone: r.Tombstone,
		Headers: make(map[string]string, len(r.Headers)),
	}
	if a := r.Assignment(); a != nil {
		env.Stream = a.Stream
	}
	for _, h := range slices.Backward(r.Headers) {
		env.Headers[h.Key] = h.Value
	}
	return env
}

// A template is a field that holds a literal, or an expression behind "=".
type template struct {
	literal string
	program *vm.Program
}

func (t template) isZero() bool { return t.literal == "" && t.program == nil }

func compileTemplate(s string) (template, error) {
	source, ok := strings.CutPrefix(s, "=")
	if !ok {
		return template{literal: s}, nil
	}
	p, err := expr.Compile(source, expr.Env(Env{}))
	return template{program: p}, err
}

// text evaluates the template to a string; what is no text becomes JSON.
func (t template) text(env *Env) (string, error) {
	if t.program == nil {
		return t.literal, nil
	}
	v, err := expr.Run(t.program, *env)
	if err != nil {
		return "", err
	}
	switch v := v.(type) {
	case string:
		return v, nil
	case []byte:
		return string(v), nil
	case nil:
		return "", errors.New("the expression has no value (nil)")
	case time.Duration:
		return v.String(), nil
	}
	b, err := json.Marshal(v)
	return string(b), err
}

// A mapper is a route's filter and mapping, compiled.
type mapper struct {
	filter      *vm.Program
	queue       template
	body        template
	group       template
	dedup       template
	delay       template
	priority    template
	contentType template
	headers     []headerTemplate
	drop        []string
}

type headerTemplate struct {
	name  string
	value template
}

// compileRoute compiles all expressions of r and returns every mistake, with
// its field relative to the route.
func compileRoute(r *RouteConfig) (*mapper, []Problem) {
	m := &mapper{drop: r.Task.DropHeaders}
	var problems []Problem
	fail := func(field, source string, err error) {
		problems = append(problems, Problem{Field: field, Found: firstLines(err, 4), Allowed: "an expression such as " + source})
	}
	if r.Filter != "" {
		var err error
		if m.filter, err = expr.Compile(r.Filter, expr.Env(Env{}), expr.AsBool()); err != nil {
			fail("filter", `fromJSON(value).type == "OrderCreated"`, err)
		}
	}
	for _, f := range []struct {
		field, source string
		to            *template
	}{
		{"target.queue", r.Target.Queue, &m.queue},
		{"task.body", r.Task.Body, &m.body},
		{"task.group", r.Task.Group, &m.group},
		{"task.dedup", r.Task.Dedup, &m.dedup},
		{"task.delay", r.Task.Delay, &m.delay},
		{"task.priority", r.Task.Priority, &m.priority},
		{"task.content_type", r.Task.ContentType, &m.contentType},
	} {
		var err error
		if *f.to, err = compileTemplate(f.source); err != nil {
			fail(f.field, "=fromJSON(value).name", err)
		}
	}
	if t := m.delay; t.program == nil && t.literal != "" {
		if _, err := parseDelay(t.literal); err != nil {
			problems = append(problems, Problem{Field: "task.delay", Found: strconv.Quote(t.literal), Allowed: "a duration such as 5m, or an expression that gives one"})
		}
	}
	if t := m.priority; t.program == nil && t.literal != "" {
		if _, err := parsePriority(t.literal); err != nil {
			problems = append(problems, Problem{Field: "task.priority", Found: strconv.Quote(t.literal), Allowed: "0 to 255, or an expression that gives one"})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(r.Task.Headers)) {
		t, err := compileTemplate(r.Task.Headers[name])
		if err != nil {
			fail("task.headers."+name, `=headers["tenant"]`, err)
		}
		m.headers = append(m.headers, headerTemplate{name, t})
	}
	return m, problems
}

func compileProblems(r *RouteConfig) []Problem {
	_, problems := compileRoute(r)
	return problems
}

func (m *mapper) keep(r *broker.Record) (bool, error) {
	if m.filter == nil {
		return true, nil
	}
	v, err := expr.Run(m.filter, newEnv(r))
	if err != nil {
		return false, fmt.Errorf("filter: %w", err)
	}
	keep, ok := v.(bool)
	if !ok {
		return false, fmt.Errorf("filter: the result is %T, not a bool", v)
	}
	return keep, nil
}

// groupOf is the task's group.
func (m *mapper) groupOf(r *broker.Record) (string, error) {
	env := newEnv(r)
	group, err := m.group.text(&env)
	if err != nil {
		return "", fmt.Errorf("task.group: %w", err)
	}
	return group, nil
}

// edits tells whether edit has anything to do. What expressions know of a record
// costs a copy of it.
func (m *mapper) edits() bool {
	return !m.body.isZero() || !m.dedup.isZero() || !m.contentType.isZero() || !m.delay.isZero() ||
		!m.priority.isZero() || len(m.headers) > 0 || len(m.drop) > 0
}

// edit sets the other fields of the task t that the configuration maps.
func (m *mapper) edit(r *broker.Record, t *broker.Message) error {
	env := newEnv(r)
	var errs error
	set := func(field string, tpl template, apply func(string) error) {
		if tpl.isZero() {
			return
		}
		s, err := tpl.text(&env)
		if err == nil {
			err = apply(s)
		}
		if err != nil {
			errs = errors.Join(errs, fmt.Errorf("%s: %w", field, err))
		}
	}
	to := func(p *string) func(string) error {
		return func(s string) error { *p = s; return nil }
	}
	set("task.body", m.body, func(s string) error { t.Body = []byte(s); return nil })
	set("task.dedup", m.dedup, to(&t.DedupID))
	set("task.content_type", m.contentType, to(&t.ContentType))
	set("task.delay", m.delay, func(s string) (err error) { t.Delay, err = parseDelay(s); return err })
	set("task.priority", m.priority, func(s string) (err error) { t.Priority, err = parsePriority(s); return err })
	if len(m.drop) > 0 {
		t.Headers = t.Headers.Without(func(key string) bool { return slices.Contains(m.drop, key) })
	}
	for _, h := range m.headers {
		set("task.headers."+h.name, h.value, func(s string) error { t.Headers.Set(h.name, s); return nil })
	}
	return errs
}

func parseDelay(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err == nil && d < 0 {
		err = fmt.Errorf("delay %v: must not be negative", d)
	}
	return d, err
}

func parsePriority(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err == nil && (n < 0 || n > math.MaxUint8) {
		err = fmt.Errorf("priority %d: want 0 to 255", n)
	}
	return n, err
}

// firstLines keeps the first n lines of an error, joined: expr shows the
// source and a caret below its message.
func firstLines(err error, n int) string {
	lines := strings.Split(strings.TrimSpace(err.Error()), "\n")
	return strings.Join(lines[:min(n, len(lines))], "\n    ")
}
