package sqs

import (
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/queuestream/broker"
)

// Options configure a Broker. The zero value uses the default configuration
// chain of AWS (environment, shared files, container and instance roles).
type Options struct {
	Region      string                  // "": from the chain
	Endpoint    string                  // of SQS, SNS and STS; "": AWS's own
	SNSEndpoint string                  // of SNS and STS; "": Endpoint
	Credentials aws.CredentialsProvider // nil: from the chain
	RoleARN     string                  // a role to assume with these credentials
	AccountID   string                  // of SNS topics; "": asked from STS once
	Config      *aws.Config             // replaces the chain; Region, Credentials and RoleARN still apply
	Transport   http.RoundTripper       // nil: one sized for pollers and senders. Close closes its idle connections

	// RequestTimeout bounds one HTTP request, beyond the time that a long poll
	// asks for. A request that times out is sent again. 0: 10 s.
	RequestTimeout time.Duration
	// PollWait is the length of a long poll, in whole seconds. 0: 20 s, the
	// longest that SQS has. A consumer has one such poll at a time; further
	// ones, while there is much to fetch, last 1 s.
	PollWait time.Duration
	// MaxPollers bounds a consumer's long polls at a time. 0: 8. An idle
	// consumer has one.
	MaxPollers int
	// SendConcurrency bounds the requests that one handle has under way for
	// sending, and as many again for settling. 0: 32.
	SendConcurrency int

	// Plain sends nothing but the body, the headers that are attributes as
	// they are, and the group and dedup ids, for consumers that do not know
	// this SDK. A message with more than that is refused. See the package
	// documentation.
	Plain bool
	// UnwrapSNS reads bodies that are SNS notifications (of a subscription
	// without raw delivery) as the message that was published.
	UnwrapSNS bool
	// FairGroups lets standard queues take GroupID as the tenant of SQS fair
	// queues. It gives no order. Otherwise they refuse it.
	FairGroups bool
	// BatchGroups sends several messages of a FIFO group in one request, which
	// is faster where groups are few. If SQS then fails an earlier one of them
	// and takes a later one, the earlier one is stored behind it by the retry.
	BatchGroups bool

	Logger *slog.Logger // nil: slog.Default()
}

const (
	defaultRequestTimeout = 10 * time.Second
	maxPollWait           = 20 * time.Second
	shortPoll             = time.Second
	defaultMaxPollers     = 8
	defaultConcurrency    = 32
	defaultPrefetch       = 500
)

// withDefaults returns a copy of o that is valid and complete.
func (o *Options) withDefaults() (Options, error) {
	var c Options
	if o != nil {
		c = *o
	}
	switch {
	case c.RequestTimeout < 0:
		return c, broker.Invalid("RequestTimeout %v: must not be negative", c.RequestTimeout)
	case c.PollWait < 0 || c.PollWait > maxPollWait:
		return c, broker.Invalid("PollWait %v: want 0 to %v", c.PollWait, maxPollWait)
	case c.PollWait%time.Second != 0:
		return c, broker.Invalid("PollWait %v: want whole seconds", c.PollWait)
	case c.MaxPollers < 0:
		return c, broker.Invalid("MaxPollers %d: must not be negative", c.MaxPollers)
	case c.SendConcurrency < 0:
		return c, broker.Invalid("SendConcurrency %d: must not be negative", c.SendConcurrency)
	}
	setDefault(&c.RequestTimeout, defaultRequestTimeout)
	setDefault(&c.PollWait, maxPollWait)
	setDefault(&c.MaxPollers, defaultMaxPollers)
	setDefault(&c.SendConcurrency, defaultConcurrency)
	setDefault(&c.SNSEndpoint, c.Endpoint)
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return c, nil
}

func setDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

// parseURL reads sqs://[key:secret@][region][?endpoint=…&…].
func parseURL(raw string) (*Options, error) {
	u, err := url.Parse(raw)
	// What net/url says, and what it takes a secret with a slash for, shows a
	// part of the secret.
	if err != nil || u.User == nil && strings.Contains(u.Host, ":") && strings.Contains(raw, "@") {
		return nil, broker.Invalid("URL: malformed; what is reserved must be percent-encoded in key and secret (%%2F for /)")
	}
	if u.Scheme != "sqs" || u.Opaque != "" {
		return nil, broker.Invalid("URL scheme %q: want sqs://[key:secret@]region?endpoint=…", u.Scheme)
	}
	if u.Path != "" && u.Path != "/" || u.Fragment != "" {
		return nil, broker.Invalid("URL: want nothing behind the region but ?parameters; queues are opened by name")
	}
	if strings.ContainsAny(u.Host, ".:") {
		return nil, broker.Invalid("URL host %q: want a region such as eu-central-1; an address goes into ?endpoint=http://…", u.Host)
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return nil, broker.Invalid("URL: the part after ? is not well encoded")
	}
	o := &Options{Region: u.Host}
	if u.User != nil {
		secret, _ := u.User.Password()
		if u.User.Username() == "" || secret == "" {
			return nil, broker.Invalid("URL user: want both key and secret")
		}
		o.Credentials = staticCredentials(u.User.Username(), secret)
	}
	for key, values := range query {
		if len(values) > 1 {
			return nil, broker.Invalid("URL parameter %s stands %d times: want once", key, len(values))
		}
		value := values[0]
		switch key {
		case "endpoint":
			o.Endpoint, err = endpoint(value)
		case "sns_endpoint":
			o.SNSEndpoint, err = endpoint(value)
		case "role":
			o.RoleARN = value
		case "account":
			o.AccountID = value
		case "request_timeout":
			o.RequestTimeout, err = time.ParseDuration(value)
		case "poll_wait":
			o.PollWait, err = time.ParseDuration(value)
		case "max_pollers":
			o.MaxPollers, err = strconv.Atoi(value)
		case "send_concurrency":
			o.SendConcurrency, err = strconv.Atoi(value)
		case "plain":
			o.Plain, err = strconv.ParseBool(value)
		case "unwrap_sns":
			o.UnwrapSNS, err = strconv.ParseBool(value)
		case "fair_groups":
			o.FairGroups, err = strconv.ParseBool(value)
		case "batch_groups":
			o.BatchGroups, err = strconv.ParseBool(value)
		default:
			err = broker.Invalid("unknown; want endpoint, sns_endpoint, role, account, request_timeout, " +
				"poll_wait, max_pollers, send_concurrency, plain, unwrap_sns, fair_groups or batch_groups")
		}
		if err != nil {
			if strings.Contains(value, "@") {
				value = "…" // it may hold a password
			}
			return nil, broker.Invalid("URL parameter %s=%q: %w", key, value, err)
		}
	}
	return o, nil
}

func endpoint(value string) (string, error) {
	u, err := url.Parse(value)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil {
		return "", broker.Invalid("want http://host[:port] or https://host[:port]")
	}
	return value, nil
}
