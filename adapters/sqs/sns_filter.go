package sqs

import (
	"maps"
	"slices"
	"strings"

	"github.com/queuestream/broker"
)

// Limits of a filter policy (SNS, "Filter policy constraints").
const (
	maxFilterKeys         = 5
	maxFilterCombinations = 150
)

// matchAll is the policy that filters nothing.
const matchAll = "{}"

// filterPolicy returns the one policy that matches what any of the bindings
// matches, exactly, or ErrUnsupported where SNS cannot say it.
func filterPolicy(kind broker.ExchangeKind, bindings []broker.Binding) (string, error) {
	switch kind {
	case broker.ExchangeFanout:
		return matchAll, nil
	case broker.ExchangeHeaders:
		return headersPolicy(bindings)
	case broker.ExchangeDirect, broker.ExchangeTopic:
	default:
		return "", broker.Invalid("exchange kind %d", kind)
	}
	var values []any
	seen := map[string]bool{}
	add := func(id string, v any) {
		if !seen[id] {
			seen[id] = true
			values = append(values, v)
		}
	}
	for i := range bindings {
		key := bindings[i].RoutingKey
		if !isText(key) || len(key) > 256 {
			return "", broker.Unsupported("routing key %.64q: SNS filters on 1 to 256 bytes of text", key)
		}
		if kind == broker.ExchangeDirect {
			add("="+key, key)
			continue
		}
		prefix, rest := strings.CutSuffix(key, ".#")
		switch {
		case key == "#":
			return matchAll, nil
		case hasWildcard(prefix):
			return "", broker.Unsupported("topic pattern %q: SNS filters by #, by an exact key and by prefix.# only", key)
		case rest: // no word or more behind the prefix
			add("="+prefix, prefix)
			add("<"+prefix, map[string]string{"prefix": prefix + "."})
		default:
			add("="+key, key)
		}
	}
	if len(values) > maxFilterCombinations {
		return "", broker.Unsupported("%d routing keys: an SNS filter policy takes %d", len(values), maxFilterCombinations)
	}
	return marshal(map[string]any{attrRoutingKey: values}), nil
}

// hasWildcard tells whether a word of a topic pattern is * or #.
func hasWildcard(pattern string) bool {
	for word := range strings.SplitSeq(pattern, ".") {
		if word == "*" || word == "#" {
			return true
		}
	}
	return false
}

// headersPolicy says "any of the clauses": {"$or": [clause, …]}, where values
// for one and the same key stand in one clause.
func headersPolicy(bindings []broker.Binding) (string, error) {
	var clauses []map[string][]string
	add := func(clause map[string][]string) {
		if len(clause) == 1 {
			for key, values := range clause {
				for _, c := range clauses {
					if have, ok := c[key]; ok && len(c) == 1 {
						if !slices.Contains(have, values[0]) {
							c[key] = append(have, values[0])
						}
						return
					}
				}
			}
		}
		for _, c := range clauses {
			if maps.EqualFunc(c, clause, slices.Equal[[]string]) {
				return
			}
		}
		clauses = append(clauses, clause)
	}
	for i := range bindings {
		b := &bindings[i]
		if err := notNative(b.Headers); err != nil {
			return "", err
		}
		for _, h := range b.Headers {
			if !isText(h.Value) {
				return "", broker.Unsupported("header %q: SNS filters on text", h.Key)
			}
		}
		switch {
		case len(b.Headers) == 0 && b.MatchAny:
			return "", broker.Invalid("MatchAny without Headers matches nothing")
		case len(b.Headers) == 0:
			return matchAll, nil
		case b.MatchAny:
			for _, h := range b.Headers {
				add(map[string][]string{h.Key: {h.Value}})
			}
		default:
			clause := map[string][]string{}
			for _, h := range b.Headers {
				clause[h.Key] = []string{h.Value}
			}
			add(clause)
		}
	}
	keys, combinations := map[string]bool{}, 0
	for _, c := range clauses {
		n := 1
		for key, values := range c {
			keys[key] = true
			n *= len(values)
		}
		combinations += n
	}
	if len(keys) > maxFilterKeys || combinations > maxFilterCombinations {
		return "", broker.Unsupported("bindings on %d headers with %d combinations: an SNS filter policy takes %d and %d",
			len(keys), combinations, maxFilterKeys, maxFilterCombinations)
	}
	if len(clauses) == 1 {
		return marshal(clauses[0]), nil
	}
	return marshal(map[string]any{"$or": clauses}), nil
}
