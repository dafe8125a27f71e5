package bridge

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// A Problem is one mistake in a configuration.
type Problem struct { //nolint:errname // part of a ConfigError
	File    string // as given to Load
	Line    int    // 0: the field is absent
	Field   string // routes[0].poison.policy
	Found   string
	Allowed string
}

// Error returns "file:line: field: found …, want …".
func (p Problem) Error() string {
	where := p.File
	if p.Line > 0 {
		where = fmt.Sprintf("%s:%d", where, p.Line)
	}
	what := p.Found
	if p.Allowed != "" {
		what += ", want " + p.Allowed
	}
	all := slices.DeleteFunc([]string{where, p.Field, what}, func(s string) bool { return s == "" })
	return strings.Join(all, ": ")
}

// A ConfigError holds every mistake found in a configuration.
type ConfigError struct{ Problems []Problem }

// Error returns a line for each problem.
func (e *ConfigError) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = p.Error()
	}
	return strings.Join(lines, "\n")
}

// Load reads a configuration in YAML. ${NAME} in a value is replaced by the
// environment variable, ${NAME:-default} has a default, $$ is a dollar sign;
// a variable that is not set and has no default is a mistake, as is an unknown
// field. getenv nil means os.LookupEnv; file is for messages. The error is a
// *ConfigError with every mistake found.
func Load(data []byte, file string, getenv func(string) (string, bool)) (*Config, error) {
	if getenv == nil {
		getenv = os.LookupEnv
	}
	cfg := &Config{file: file, lines: map[string]int{}}
	l := &loader{cfg: cfg, getenv: getenv}
	var root, more yaml.Node
	d := yaml.NewDecoder(bytes.NewReader(data))
	err := d.Decode(&root)
	if err == nil {
		err = d.Decode(&more)
	}
	switch {
	case err == nil:
		l.problem(more.Line, "", "a second document", "one")
		return nil, l.err()
	case !errors.Is(err, io.EOF):
		l.problem(0, "", strings.TrimPrefix(err.Error(), "yaml: "), "YAML")
		return nil, l.err()
	}
	if len(root.Content) > 0 {
		l.decode(root.Content[0], reflect.ValueOf(cfg).Elem(), "")
	}
	if len(l.problems) == 0 {
		l.validate(cfg)
	}
	return cfg, l.err()
}

type loader struct {
	cfg      *Config
	getenv   func(string) (string, bool)
	problems []Problem
}

func (l *loader) err() error {
	if len(l.problems) == 0 {
		return nil
	}
	slices.SortStableFunc(l.problems, func(a, b Problem) int { return a.Line - b.Line })
	return &ConfigError{Problems: l.problems}
}

func (l *loader) problem(line int, field, found, allowed string) {
	l.problems = append(l.problems, Problem{File: l.cfg.file, Line: line, Field: field, Found: found, Allowed: allowed})
}

// at reports a mistake in a field by its path, at the nearest line there is.
func (l *loader) at(field, found, allowed string) {
	l.problems = append(l.problems, l.cfg.Problem(field, found, allowed))
}

var durationType = reflect.TypeFor[time.Duration]()

func (l *loader) decode(n *yaml.Node, v reflect.Value, path string) {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	l.cfg.lines[path] = n.Line
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		l.decode(n, v.Elem(), path)
	case reflect.Struct:
		l.decodeStruct(n, v, path)
	case reflect.Map:
		if !l.is(n, yaml.MappingNode, path, "a mapping") {
			return
		}
		v.Set(reflect.MakeMap(v.Type()))
		for i := 0; i+1 < len(n.Content); i += 2 {
			key, e := reflect.ValueOf(n.Content[i].Value), reflect.New(v.Type().Elem()).Elem()
			if v.MapIndex(key).IsValid() {
				l.twice(n.Content[i], path)
			}
			l.decode(n.Content[i+1], e, join(path, n.Content[i].Value))
			v.SetMapIndex(key, e)
		}
	case reflect.Slice:
		if !l.is(n, yaml.SequenceNode, path, "a list") {
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content)))
		for i, c := range n.Content {
			l.decode(c, v.Index(i), fmt.Sprintf("%s[%d]", path, i))
		}
	default:
		if l.is(n, yaml.ScalarNode, path, "a single value") {
			l.decodeScalar(n, v, path)
		}
	}
}

func (l *loader) decodeStruct(n *yaml.Node, v reflect.Value, path string) {
	if !l.is(n, yaml.MappingNode, path, "a mapping") {
		return
	}
	fields := map[string]int{}
	for i := range v.NumField() {
		if name := v.Type().Field(i).Tag.Get("yaml"); name != "" {
			fields[name] = i
		}
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		field, ok := fields[key.Value]
		switch {
		case !ok:
			l.problem(key.Line, join(path, key.Value), "unknown field",
				"one of "+strings.Join(slices.Sorted(maps.Keys(fields)), ", "))
		case seen[key.Value]:
			l.twice(key, path)
		default:
			l.decode(n.Content[i+1], v.Field(field), join(path, key.Value))
		}
		seen[key.Value] = true
	}
}

func (l *loader) twice(key *yaml.Node, path string) {
	l.problem(key.Line, join(path, key.Value), "the field stands twice", "it once")
}

func (l *loader) decodeScalar(n *yaml.Node, v reflect.Value, path string) {
	s, err := l.expand(n.Value)
	if err != nil {
		l.problem(n.Line, path, err.Error(), "a variable that is set, or ${NAME:-default}")
		return
	}
	want := ""
	switch {
	case v.Type() == durationType:
		var d time.Duration
		if d, err = time.ParseDuration(s); err == nil && d < 0 {
			err = strconv.ErrRange
		}
		v.SetInt(int64(d))
		want = "a duration such as 500ms, 30s or 5m"
	case v.Kind() == reflect.String:
		v.SetString(s)
	case v.Kind() == reflect.Bool:
		var b bool
		b, err = strconv.ParseBool(s)
		v.SetBool(b)
		want = "true or false"
	case v.Kind() == reflect.Int:
		var i int64
		i, err = strconv.ParseInt(s, 10, 32)
		v.SetInt(i)
		want = "a whole number"
	case v.Kind() == reflect.Float64:
		var f float64
		f, err = strconv.ParseFloat(s, 64)
		v.SetFloat(f)
		want = "a number"
	}
	if err != nil {
		l.problem(n.Line, path, strconv.Quote(s), want)
	}
}

func (l *loader) is(n *yaml.Node, kind yaml.Kind, path, want string) bool {
	if n.Kind == kind {
		return true
	}
	found := map[yaml.Kind]string{yaml.MappingNode: "a mapping", yaml.SequenceNode: "a list", yaml.ScalarNode: strconv.Quote(n.Value)}[n.Kind]
	l.problem(n.Line, path, found, want)
	return false
}

// variable matches what expand replaces, and a "${" that begins no variable.
var variable = regexp.MustCompile(`\$\$|\$\{([A-Za-z_][A-Za-z0-9_]*)(:-[^}]*)?\}|\$\{`)

func (l *loader) expand(s string) (string, error) {
	var missing error
	out := variable.ReplaceAllStringFunc(s, func(m string) string {
		switch m {
		case "$$":
			return "$"
		case "${":
			missing = errors.New("a ${ that begins no variable ($${ is a plain one)")
			return m
		}
		name, def, hasDefault := strings.Cut(m[2:len(m)-1], ":-")
		if v, ok := l.getenv(name); ok && (v != "" || !hasDefault) {
			return v
		}
		if !hasDefault {
			missing = fmt.Errorf("the environment variable %s is not set", name)
		}
		return def
	})
	return out, missing
}

func join(path, field string) string {
	if path == "" {
		return field
	}
	return path + "." + field
}
