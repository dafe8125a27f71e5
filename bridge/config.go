package bridge

import (
	"strings"
	"time"
)

// A Config is what bridge.yaml holds: the brokers by name, and the routes
// between them. Fields whose comment says "expression" take a literal, or an
// expression of github.com/expr-lang/expr behind an equals sign (queue:
// =headers["region"] == "eu" ? "tasks-eu" : "tasks-us"); see [Env] for what an
// expression knows.
type Config struct {
	Brokers map[string]string `yaml:"brokers"` // name: URL
	Routes  []RouteConfig     `yaml:"routes"`
	Worker  WorkerConfig      `yaml:"worker"` // read by cmd/bridge alone

	file  string         // that Load read
	lines map[string]int // of each field that is there
}

// Problem returns a mistake in a field by its path (routes[0].poison.queue), at
// the nearest line that Load saw.
func (c *Config) Problem(field, found, allowed string) Problem {
	line, path := 0, field
	for line == 0 && path != "" {
		line = c.lines[path]
		path = path[:max(0, strings.LastIndexAny(path, ".["))]
	}
	return Problem{File: c.file, Line: line, Field: field, Found: found, Allowed: allowed}
}

// A RouteConfig describes one route: the events of a stream that pass the
// filter become one task each.
type RouteConfig struct {
	Name   string       `yaml:"name"`
	Source SourceConfig `yaml:"source"`
	Filter string       `yaml:"filter"` // always an expression, without the equals sign; empty: every record
	Target TargetConfig `yaml:"target"`
	Task   TaskConfig   `yaml:"task"`

	Poison   PoisonConfig   `yaml:"poison"`
	TooLarge TooLargeConfig `yaml:"too_large"`

	Window      WindowConfig `yaml:"window"`
	Concurrency int          `yaml:"concurrency"` // keys in flight at once; default 64
	RateLimit   float64      `yaml:"rate_limit"`  // records a second; 0: none
	// BatchSameGroup sends several tasks of a group in one request. After a
	// partial failure later ones of the group may be stored before earlier
	// ones; without it a request holds at most one task of a group. An SQS URL
	// needs batch_groups=true, which the worker adds.
	BatchSameGroup bool          `yaml:"batch_same_group"`
	Retry          RetryConfig   `yaml:"retry"`
	DrainTimeout   time.Duration `yaml:"drain_timeout"` // default 30s

	path string // of the route in its file
}

// Group returns the consumer group of the route.
func (r *RouteConfig) Group() string { return orDefault(r.Source.Group, defaultGroup(r.Name)) }

func defaultGroup(route string) string { return "bridge-" + route }

// A SourceConfig names the stream to read.
type SourceConfig struct {
	Broker        string `yaml:"broker"`
	Stream        string `yaml:"stream"`
	Group         string `yaml:"group"`          // default: bridge-<route>
	Start         string `yaml:"start"`          // earliest (default), latest or an RFC 3339 time; where the group has no offset
	ReadCommitted *bool  `yaml:"read_committed"` // default true where the stream has transactions
}

// A TargetConfig names the queue that tasks go to.
type TargetConfig struct {
	Broker string `yaml:"broker"`
	Queue  string `yaml:"queue"` // expression
}

// A TaskConfig maps a record to a task. Each field is an expression; an empty
// one has the default that its comment tells.
type TaskConfig struct {
	Body        string            `yaml:"body"`  // default: the value; a result that is no string is encoded as JSON
	Group       string            `yaml:"group"` // what is sent in order; default: the key, where the queue has groups; empty: a group of its own
	Dedup       string            `yaml:"dedup"` // default: a hash of the coordinates, where the queue deduplicates
	Delay       string            `yaml:"delay"` // a duration such as 5m
	Priority    string            `yaml:"priority"`
	ContentType string            `yaml:"content_type"`
	Headers     map[string]string `yaml:"headers"`      // on top of the record's own and the coordinates
	DropHeaders []string          `yaml:"drop_headers"` // of the record's own
}

// A PoisonConfig tells what becomes of a record that can never become a task.
type PoisonConfig struct {
	Policy   string `yaml:"policy"`   // dlq (default), skip, block_key or halt
	Broker   string `yaml:"broker"`   // of dlq; default: the target's
	Queue    string `yaml:"queue"`    // of dlq, required
	Attempts int    `yaml:"attempts"` // sends that fail for a reason unknown to the bridge before the record counts as poison; default 10
}

// A TooLargeConfig tells what becomes of a task above the queue's size limit.
type TooLargeConfig struct {
	Policy string `yaml:"policy"` // reject (default: as poison) or claim_check
	Store  string `yaml:"store"`  // of claim_check: file:///dir or s3://bucket/prefix
}

// A WindowConfig bounds, for each partition, what is enqueued but not committed, and so what a
// crash sends again.
type WindowConfig struct {
	Records int           `yaml:"records"` // default 10000
	Age     time.Duration `yaml:"age"`     // default 1m; less than 5m, the dedup window of SQS
}

// A RetryConfig is the back-off of sends that failed for a passing reason.
type RetryConfig struct {
	Min time.Duration `yaml:"min"` // default 100ms
	Max time.Duration `yaml:"max"` // default 30s
}

// A WorkerConfig is for the deployed worker.
type WorkerConfig struct {
	Listen       string `yaml:"listen"`        // probes and metrics; default :8080
	AdminListen  string `yaml:"admin_listen"`  // pause, resume, lag; default 127.0.0.1:8081, "off": none
	Pprof        bool   `yaml:"pprof"`         // on the admin address
	LogLevel     string `yaml:"log_level"`     // debug, info (default), warn, error
	OTLPEndpoint string `yaml:"otlp_endpoint"` // URL for traces; empty: none
}
