package kafka

import (
	"context"
	"crypto/tls"
	"net/url"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/queuestream/broker"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/aws"
	"github.com/twmb/franz-go/pkg/sasl/oauth"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"
)

// OpenURL opens a Broker by URL; it fits broker.Openers under the scheme "kafka":
//
//	kafka://[user:password@]host:9092[,host2:9092…][?option=value&…]
//
// Options: tls (true, false), tls_server_name, sasl (plain, scram-sha-256,
// scram-sha-512, oauthbearer, aws-msk-iam; default plain if there is a user;
// with oauthbearer the password is the token, with aws-msk-iam user and
// password are the access key and its secret), aws_session_token, client_id,
// compression, linger, rack, session_timeout, heartbeat_interval,
// rebalance_timeout, instance_id, server_side_groups, transaction_timeout,
// fetch_max_wait, fetch_max_bytes, dial_timeout. Durations are written as in
// Go (500ms). An unknown option is an error.
func OpenURL(ctx context.Context, rawURL string) (broker.Broker, error) {
	o, err := ParseURL(rawURL)
	if err != nil {
		return nil, err
	}
	b, err := Open(ctx, o)
	if err != nil {
		return nil, err
	}
	return b, nil
}

// ParseURL returns the options that a URL for OpenURL stands for. Its errors
// never show the password.
func ParseURL(rawURL string) (*Options, error) {
	o, err := parseURL(rawURL)
	if err != nil {
		return nil, &broker.Error{Op: "open", Adapter: adapter, Err: err}
	}
	return o, nil
}

func parseURL(rawURL string) (*Options, error) {
	rest, ok := strings.CutPrefix(rawURL, "kafka://")
	if !ok {
		return nil, broker.Invalid("URL: want kafka://host:port")
	}
	rest, query, _ := strings.Cut(rest, "?")
	rest = strings.TrimSuffix(rest, "/")
	var user *url.Userinfo
	if at := strings.LastIndexByte(rest, '@'); at >= 0 {
		u, err := url.Parse("kafka://" + rest[:at] + "@host")
		if err != nil {
			return nil, broker.Invalid("URL: user or password is not well encoded (use %%40 for @, and so on)")
		}
		user, rest = u.User, rest[at+1:]
	}
	if strings.ContainsAny(rest, "/#") {
		return nil, broker.Invalid("URL: host list %q: want host:port,host:port", rest)
	}
	o := &Options{}
	for address := range strings.SplitSeq(rest, ",") {
		if address = strings.TrimSpace(address); address == "" {
			return nil, broker.Invalid("URL: host list %q: want host:port,host:port", rest)
		}
		if i := strings.LastIndexByte(address, ':'); i < 0 || strings.HasSuffix(address, "]") {
			address += ":9092"
		}
		o.Brokers = append(o.Brokers, address)
	}
	values, err := url.ParseQuery(query)
	if err != nil {
		return nil, broker.Invalid("URL: the part after ? is not well encoded")
	}
	if err := o.applyQuery(values, user); err != nil {
		return nil, err
	}
	return o.check()
}

func (o *Options) applyQuery(values url.Values, user *url.Userinfo) error {
	q := query{values: values}
	useTLS := q.boolean("tls")
	serverName := q.text("tls_server_name")
	mechanism, session := q.text("sasl"), q.text("aws_session_token")
	o.ClientID = q.text("client_id")
	o.Compression = q.text("compression")
	o.Linger = q.duration("linger")
	o.Rack = q.text("rack")
	o.SessionTimeout = q.duration("session_timeout")
	o.HeartbeatInterval = q.duration("heartbeat_interval")
	o.RebalanceTimeout = q.duration("rebalance_timeout")
	o.InstanceID = q.text("instance_id")
	o.ServerSideGroups = q.boolean("server_side_groups")
	o.TransactionTimeout = q.duration("transaction_timeout")
	o.FetchMaxWait = q.duration("fetch_max_wait")
	o.FetchMaxBytes = q.integer("fetch_max_bytes")
	o.DialTimeout = q.duration("dial_timeout")
	if err := q.finish(); err != nil {
		return err
	}
	if useTLS || serverName != "" {
		o.TLS = &tls.Config{MinVersion: tls.VersionTLS12, ServerName: serverName}
	}
	if user != nil && mechanism == "" {
		mechanism = "plain"
	}
	if mechanism == "" {
		return nil
	}
	m, err := saslMechanism(mechanism, user, session)
	if err != nil {
		return err
	}
	o.SASL = []sasl.Mechanism{m}
	return nil
}

func saslMechanism(name string, user *url.Userinfo, session string) (sasl.Mechanism, error) {
	var id, secret string
	if user != nil {
		id = user.Username()
		secret, _ = user.Password()
	}
	if secret == "" || id == "" && name != "oauthbearer" {
		return nil, broker.Invalid("URL: sasl=%s needs user and password", name)
	}
	switch name {
	case "plain":
		return plain.Auth{User: id, Pass: secret}.AsMechanism(), nil
	case "scram-sha-256":
		return scram.Auth{User: id, Pass: secret}.AsSha256Mechanism(), nil
	case "scram-sha-512":
		return scram.Auth{User: id, Pass: secret}.AsSha512Mechanism(), nil
	case "oauthbearer":
		return oauth.Auth{Token: secret, Zid: id}.AsMechanism(), nil
	case "aws-msk-iam":
		return aws.Auth{AccessKey: id, SecretKey: secret, SessionToken: session}.AsManagedStreamingIAMMechanism(), nil
	}
	return nil, broker.Invalid("URL: sasl %q: want plain, scram-sha-256, scram-sha-512, oauthbearer or aws-msk-iam", name)
}

// query reads options and remembers the first mistake.
type query struct {
	values url.Values
	err    error
}

func (q *query) text(key string) string {
	all := q.values[key]
	delete(q.values, key)
	if len(all) > 1 && q.err == nil {
		q.err = broker.Invalid("URL: option %s is given %d times", key, len(all))
	}
	if len(all) == 0 {
		return ""
	}
	return all[0]
}

func (q *query) boolean(key string) bool {
	s := q.text(key)
	if s == "" {
		return false
	}
	b, err := strconv.ParseBool(s)
	if err != nil && q.err == nil {
		q.err = broker.Invalid("URL: option %s=%q: want true or false", key, s)
	}
	return b
}

func (q *query) integer(key string) int {
	s := q.text(key)
	if s == "" {
		return 0
	}
	n, err := strconv.Atoi(s)
	if err != nil && q.err == nil {
		q.err = broker.Invalid("URL: option %s=%q: want a number", key, s)
	}
	return n
}

func (q *query) duration(key string) time.Duration {
	s := q.text(key)
	if s == "" {
		return 0
	}
	d, err := time.ParseDuration(s)
	if err != nil && q.err == nil {
		q.err = broker.Invalid("URL: option %s=%q: want a duration such as 500ms", key, s)
	}
	return d
}

func (q *query) finish() error {
	if q.err != nil || len(q.values) == 0 {
		return q.err
	}
	var unknown []string
	for key := range q.values {
		unknown = append(unknown, key)
	}
	sort.Strings(unknown)
	return broker.Invalid("URL: unknown option %s", strings.Join(unknown, ", "))
}
