package bridge

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/queuestream/broker"
)

const good = `brokers:
  events: kafka://localhost:9092
  tasks: sqs://eu-west-1
routes:
  - name: orders
    source: {broker: events, stream: orders, start: "2026-05-01T00:00:00Z"}
    filter: fromJSON(value).type == "OrderCreated"
    target:
      broker: tasks
      queue: '=headers["region"] == "eu" ? "tasks-eu.fifo" : "tasks-us.fifo"'
    task:
      body: "={\"order\": fromJSON(value).id}"
      delay: 5m
      headers: {tenant: =lower(key)}
    poison: {policy: dlq, queue: "${DEAD:-dead.fifo}"}
    window: {records: 100, age: 30s}
    rate_limit: 12.5
    batch_same_group: true
`

func TestLoad(t *testing.T) {
	c, err := Load([]byte(good), "bridge.yaml", noEnv)
	if err != nil {
		t.Fatal(err)
	}
	r := c.Routes[0]
	if r.Poison.Queue != "dead.fifo" || r.Window.Age != 30*time.Second || r.RateLimit != 12.5 || !r.BatchSameGroup ||
		r.Task.Headers["tenant"] != "=lower(key)" || c.Brokers["tasks"] != "sqs://eu-west-1" {
		t.Fatalf("read as %+v", c)
	}
}

func noEnv(string) (string, bool) { return "", false }

func TestLoadProblems(t *testing.T) {
	replace := func(old, repl string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("the good configuration has no %q", old)
		}
		return strings.Replace(good, old, repl, 1)
	}
	for name, tt := range map[string]struct {
		yaml string
		want string // the first problem
	}{
		"no YAML":            {"routes: [", "bridge.yaml: line 1: did not find expected node content, want YAML"},
		"empty":              {"", "bridge.yaml: brokers: no broker, want at least one name with a URL"},
		"unknown field":      {replace("rate_limit: 12.5", "ratelimit: 12.5"), "bridge.yaml:17: routes[0].ratelimit: unknown field, want one of batch_same_group, concurrency"},
		"field twice":        {replace("rate_limit: 12.5", "batch_same_group: true"), "bridge.yaml:18: routes[0].batch_same_group: the field stands twice"},
		"type":               {replace("records: 100", "records: many"), `bridge.yaml:16: routes[0].window.records: "many", want a whole number`},
		"duration":           {replace("age: 30s", "age: 30"), `bridge.yaml:16: routes[0].window.age: "30", want a duration such as 500ms, 30s or 5m`},
		"negative duration":  {replace("age: 30s", "age: -30s"), `bridge.yaml:16: routes[0].window.age: "-30s", want a duration`},
		"window too old":     {replace("age: 30s", "age: 5m"), "bridge.yaml:16: routes[0].window.age: 5m0s, want less than 5m"},
		"list for a mapping": {replace("{records: 100, age: 30s}", "[1]"), "bridge.yaml:16: routes[0].window: a list, want a mapping"},
		"variable not set":   {replace("${DEAD:-dead.fifo}", "${DEAD}"), "bridge.yaml:15: routes[0].poison.queue: the environment variable DEAD is not set"},
		"unknown broker":     {replace("broker: tasks", "broker: queues"), `bridge.yaml:9: routes[0].target.broker: "queues", want one of events, tasks`},
		"no URL":             {replace("sqs://eu-west-1", "eu-west-1"), "bridge.yaml:3: brokers.tasks: no URL with a scheme"},
		"policy":             {replace("policy: dlq", "policy: drop"), `bridge.yaml:15: routes[0].poison.policy: "drop", want one of dlq, skip, block_key, halt`},
		"no dead letters":    {replace(`, queue: "${DEAD:-dead.fifo}"`, ""), "bridge.yaml:15: routes[0].poison.queue: nothing, want a value"},
		"queue for skip":     {replace("policy: dlq", "policy: skip"), "bridge.yaml:15: routes[0].poison.queue: a queue with policy skip, want policy dlq, or no queue"},
		"filter":             {replace("fromJSON(value).type ==", "fromJSON(valu).type =="), "bridge.yaml:7: routes[0].filter: unknown name valu"},
		"filter no bool":     {replace(`fromJSON(value).type == "OrderCreated"`, "key"), "bridge.yaml:7: routes[0].filter: expected bool, but got string"},
		"expression":         {replace("=lower(key)", "=lower("), "bridge.yaml:14: routes[0].task.headers.tenant: "},
		"delay":              {replace("delay: 5m", "delay: soon"), `bridge.yaml:13: routes[0].task.delay: "soon", want a duration`},
		"start":              {replace("2026-05-01T00:00:00Z", "yesterday"), `bridge.yaml:6: routes[0].source.start: "yesterday", want earliest, latest or an RFC 3339 time`},
		"broker twice":       {replace("  tasks: sqs", "  events: kafka://other\n  tasks: sqs"), "bridge.yaml:3: brokers.events: the field stands twice"},
		"header twice":       {replace("{tenant: =lower(key)}", "{tenant: a, tenant: b}"), "bridge.yaml:14: routes[0].task.headers.tenant: the field stands twice"},
		"header no name":     {replace("{tenant: =lower(key)}", `{"": a}`), "bridge.yaml:14: routes[0].task.headers.: an empty name"},
		"coordinate":         {replace("{tenant: =lower(key)}", "{x-source-offset: a}"), `bridge.yaml:14: routes[0].task.headers.x-source-offset: "x-source-offset" is one of the coordinates`},
		"no coordinate":      {replace("delay: 5m", "drop_headers: [a, x-source-key]"), `bridge.yaml:13: routes[0].task.drop_headers[1]: "x-source-key" is one of the coordinates`},
		"no variable":        {replace("${DEAD:-dead.fifo}", "${DEAD-dead.fifo}"), "bridge.yaml:15: routes[0].poison.queue: a ${ that begins no variable"},
		"dead to the target": {replace(`'=headers["region"] == "eu" ? "tasks-eu.fifo" : "tasks-us.fifo"'`, "dead.fifo"), `bridge.yaml:15: routes[0].poison.queue: "dead.fifo" is the target`},
		"group of another": {good + "  - {name: more, source: {broker: events, stream: orders, group: bridge-orders}, target: {broker: tasks, queue: q}, poison: {policy: skip}}\n",
			`bridge.yaml:19: routes[1].source.group: "bridge-orders" is the group of routes[0] too`},
		"store nowhere":   {good + "    too_large: {policy: claim_check, store: 'file:blobs'}\n", `bridge.yaml:19: routes[0].too_large.store: "file:blobs", want file:///directory`},
		"two documents":   {good + "---\nroutes: []\n", "bridge.yaml:19: a second document, want one"},
		"rate":            {replace("rate_limit: 12.5", "rate_limit: NaN"), "bridge.yaml:17: routes[0].rate_limit: NaN, want 0 (none) or a positive number"},
		"store on a host": {good + "    too_large: {policy: claim_check, store: 'file://directory/blobs'}\n", `bridge.yaml:19: routes[0].too_large.store: "file://directory/blobs", want file:///directory`},
		"store":           {good + "    too_large: {policy: claim_check, store: bucket}\n", `bridge.yaml:19: routes[0].too_large.store: "bucket", want file:///directory or s3://bucket/prefix`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Load([]byte(tt.yaml), "bridge.yaml", noEnv)
			if e, ok := errors.AsType[*ConfigError](err); !ok || !strings.HasPrefix(e.Problems[0].Error(), tt.want) {
				t.Errorf("got  %v\nwant %s", err, tt.want)
			}
		})
	}
}

// What only those who open things can tell is named with its line, too.
func TestBuildTellsLines(t *testing.T) {
	w := newWorld(t, 1)
	o := Openers{Brokers: broker.Openers{
		"memory": func(context.Context, string) (broker.Broker, error) { return shared{w.events}, nil },
		"fifo":   func(context.Context, string) (broker.Broker, error) { return shared{w.tasks}, nil },
		"broken": func(context.Context, string) (broker.Broker, error) { return nil, broker.Invalid("unknown parameter") },
	}}
	const config = `brokers:
  m: memory://x
  f: fifo://x
routes:
  - name: orders
    source: {broker: m, stream: orders}
    target: {broker: f, queue: tasks.fifo}
    task:
      group: =key
    poison: {policy: skip}
`
	_, err := Build(t.Context(), must(Load([]byte(config), "f", noEnv))(t), o)
	check(t, err)
	for change, want := range map[[2]string]string{
		{"f: fifo://x", "f: broken://x"}: "f:3: brokers.f: invalid: unknown parameter",
		{"f: fifo://x", "f: redis://x"}:  `f:3: brokers.f: open "redis://x": unsupported operation: scheme "redis": want one of broken, fifo, memory`,
		{"group: =key", "priority: 5"}:   "f:9: routes[0].task.priority: queue tasks.fifo: unsupported operation: the queue has no priorities",
		{"group: =key", "delay: 16m"}:    "f:9: routes[0].task.delay: queue tasks.fifo: unsupported operation: ",
		{"policy: skip}", "policy: skip}\n    too_large: {policy: claim_check, store: http://x}"}: `f:11: routes[0].too_large.store: invalid: blob store "http://x": scheme "http", want one of [file]`,
	} {
		cfg := must(Load([]byte(strings.Replace(config, change[0], change[1], 1)), "f", noEnv))(t)
		_, err := Build(t.Context(), cfg, o)
		if e, ok := errors.AsType[*ConfigError](err); !ok || !strings.HasPrefix(e.Error(), want) {
			t.Errorf("got  %v\nwant %s", err, want)
		}
		if err := o.Check(t.Context(), cfg); strings.Contains(want, "task.") != (err == nil) || err != nil && !strings.HasPrefix(err.Error(), want) {
			t.Errorf("without a connection: got  %v\nwant %s", err, want)
		}
	}
}

// One that a program has made names the field alone.
func TestBuildOfAConfigOfNoFile(t *testing.T) {
	o := Openers{Brokers: broker.Openers{"broken": func(context.Context, string) (broker.Broker, error) { return nil, broker.Invalid("no") }}}
	c := &Config{Brokers: map[string]string{"b": "broken://x"}, Routes: []RouteConfig{{Name: "r", Source: SourceConfig{Broker: "b"}, TooLarge: TooLargeConfig{Store: "x://y"}}}}
	_, err := Build(t.Context(), c, o)
	if err == nil || err.Error() != "brokers.b: invalid: no" {
		t.Errorf("got %v", err)
	}
	if err := o.Check(t.Context(), c); err == nil || !strings.Contains(err.Error(), "\nroutes[0].too_large.store: ") {
		t.Errorf("got %v", err)
	}
}

// A shared broker stays open.
type shared struct{ broker.Broker }

func (shared) Close() error { return nil }

func TestLoadTellsEveryProblem(t *testing.T) {
	_, err := Load([]byte("brokers: {a: kafka://x}\nroutes:\n  - name: r\n  - name: r\n"), "f", noEnv)
	e, ok := errors.AsType[*ConfigError](err)
	if !ok || len(e.Problems) < 10 {
		t.Fatalf("got %v", err)
	}
}

func TestShippedConfigurations(t *testing.T) {
	files, err := filepath.Glob("../deploy/compose/*bridge*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	more, err := filepath.Glob("../docs/bridge/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	files = append(files, more...)
	if len(files) < 2 {
		t.Fatalf("found only %v", files)
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Load(data, f, noEnv); err != nil {
			t.Error(err)
		}
	}
}

func FuzzLoad(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte("routes: [{name: &a x, task: {headers: *a}}]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Load(data, "f", noEnv)
		if _, ok := errors.AsType[*ConfigError](err); err != nil && !ok {
			t.Fatalf("%T: %v", err, err)
		}
		if err == nil && len(c.Routes) == 0 {
			t.Fatal("accepted without a route")
		}
	})
}
