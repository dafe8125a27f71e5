package bridge

import (
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/queuestream/broker"
)

// DedupWindow is how long an SQS FIFO queue remembers a dedup id.
// https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/using-messagededuplicationid-property.html
const DedupWindow = 5 * time.Minute

func (l *loader) validate(c *Config) {
	if len(c.Brokers) == 0 {
		l.at("brokers", "no broker", "at least one name with a URL")
	}
	for _, name := range slices.Sorted(maps.Keys(c.Brokers)) {
		if scheme, _, ok := strings.Cut(c.Brokers[name], ":"); !ok || scheme == "" { // the rest is the adapter's to read
			l.at("brokers."+name, "no URL with a scheme", "for example kafka://localhost:9092")
		}
	}
	if len(c.Routes) == 0 {
		l.at("routes", "no route", "at least one")
	}
	names, groups := map[string]int{}, map[[3]string]int{}
	for i := range c.Routes {
		r, path := &c.Routes[i], fmt.Sprintf("routes[%d]", i)
		r.path = path
		l.required(path+".name", r.Name)
		if j, ok := names[r.Name]; ok && r.Name != "" {
			l.at(path+".name", fmt.Sprintf("%q is the name of routes[%d] too", r.Name, j), "a name of its own")
		}
		names[r.Name] = i
		group := [3]string{r.Source.Broker, r.Source.Stream, r.Group()}
		if j, ok := groups[group]; ok {
			l.at(path+".source.group", fmt.Sprintf("%q is the group of routes[%d] too, and each would get a part of the stream", r.Group(), j), "a group of its own")
		}
		groups[group] = i
		l.validateRoute(c, r, path)
	}
	l.oneOf("worker.log_level", c.Worker.LogLevel, "", "debug", "info", "warn", "error")
}

func (l *loader) validateRoute(c *Config, r *RouteConfig, path string) {
	l.broker(c, path+".source.broker", r.Source.Broker)
	l.required(path+".source.stream", r.Source.Stream)
	if p, err := ParsePosition(r.Source.Start); err != nil || p.Kind() == broker.PositionNow {
		l.at(path+".source.start", strconv.Quote(r.Source.Start), "earliest, latest or an RFC 3339 time")
	}
	l.broker(c, path+".target.broker", r.Target.Broker)
	l.required(path+".target.queue", r.Target.Queue)

	l.oneOf(path+".poison.policy", r.Poison.Policy, "", string(PoisonDLQ), string(PoisonSkip), string(PoisonBlockKey), string(PoisonHalt))
	if r.Poison.Policy == "" || r.Poison.Policy == string(PoisonDLQ) {
		l.required(path+".poison.queue", r.Poison.Queue)
		if r.Poison.Queue == r.Target.Queue && orDefault(r.Poison.Broker, r.Target.Broker) == r.Target.Broker {
			l.at(path+".poison.queue", strconv.Quote(r.Poison.Queue)+" is the target", "a queue of its own")
		}
	} else if r.Poison.Queue != "" {
		l.at(path+".poison.queue", "a queue with policy "+r.Poison.Policy, "policy dlq, or no queue")
	}
	if r.Poison.Broker != "" {
		l.broker(c, path+".poison.broker", r.Poison.Broker)
	}
	l.oneOf(path+".too_large.policy", r.TooLarge.Policy, "", string(TooLargeReject), string(TooLargeClaimCheck))
	if r.TooLarge.Policy == string(TooLargeClaimCheck) {
		if u, err := url.Parse(r.TooLarge.Store); err != nil || u.Scheme == "" || u.Scheme == "file" && (u.Host != "" || u.Path == "") {
			l.at(path+".too_large.store", strconv.Quote(r.TooLarge.Store), "file:///directory or s3://bucket/prefix")
		}
	} else if r.TooLarge.Store != "" {
		l.at(path+".too_large.store", "a store without the policy claim_check", "policy claim_check, or no store")
	}
	l.notNegative(path+".window.records", r.Window.Records)
	l.notNegative(path+".concurrency", r.Concurrency)
	l.notNegative(path+".poison.attempts", r.Poison.Attempts)
	if !isRate(r.RateLimit) {
		l.at(path+".rate_limit", fmt.Sprint(r.RateLimit), "0 (none) or a positive number")
	}
	if r.Window.Age >= DedupWindow {
		l.at(path+".window.age", r.Window.Age.String(), "less than 5m, within which FIFO queues suppress what is sent again")
	}
	if r.Retry.Max > 0 && r.Retry.Min > r.Retry.Max {
		l.at(path+".retry.min", r.Retry.Min.String(), "at most retry.max, "+r.Retry.Max.String())
	}
	l.headers(path+".task.headers", slices.Sorted(maps.Keys(r.Task.Headers)))
	l.headers(path+".task.drop_headers", r.Task.DropHeaders)
	for _, p := range compileProblems(r) {
		l.at(path+"."+p.Field, p.Found, p.Allowed)
	}
}

// headers refuses names that no header has, and the coordinates.
func (l *loader) headers(field string, names []string) {
	for i, name := range names {
		at := fmt.Sprintf("%s[%d]", field, i)
		if _, ok := l.cfg.lines[field+"."+name]; ok {
			at = field + "." + name
		}
		switch {
		case name == "":
			l.at(at, "an empty name", "the name of a header")
		case broker.IsSourceHeader(name):
			l.at(at, strconv.Quote(name)+" is one of the coordinates, which every task carries", "another header")
		}
	}
}

func (l *loader) required(field, v string) {
	if v == "" {
		l.at(field, "nothing", "a value")
	}
}

func (l *loader) broker(c *Config, field, name string) {
	if _, ok := c.Brokers[name]; !ok {
		l.at(field, strconv.Quote(name), "one of "+strings.Join(slices.Sorted(maps.Keys(c.Brokers)), ", "))
	}
}

func (l *loader) oneOf(field, v string, allowed ...string) {
	if !slices.Contains(allowed, v) {
		l.at(field, strconv.Quote(v), "one of "+strings.Join(slices.DeleteFunc(slices.Clone(allowed), func(s string) bool { return s == "" }), ", "))
	}
}

func (l *loader) notNegative(field string, n int) {
	if n < 0 {
		l.at(field, strconv.Itoa(n), "0 (the default) or more")
	}
}

// ParsePosition reads earliest, latest, now or an RFC 3339 time; "" is the
// zero Position.
func ParsePosition(s string) (broker.Position, error) {
	switch s {
	case "":
		return broker.Position{}, nil
	case "earliest":
		return broker.Earliest(), nil
	case "latest":
		return broker.Latest(), nil
	case "now":
		return broker.Now(), nil
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return broker.Position{}, broker.Invalid("position %q: want earliest, latest, now or an RFC 3339 time", s)
	}
	return broker.AtTime(t), nil
}
