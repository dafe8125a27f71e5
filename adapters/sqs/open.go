package sqs

import (
	"context"
	"net"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	"github.com/aws/aws-sdk-go-v2/service/sns"
	awssqs "github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/internal/awsclient"
)

// Open returns a Broker over SQS and SNS. It reads the AWS configuration and
// sends nothing; [Broker.Ping] tells whether the service answers. ctx bounds
// Open alone.
func Open(ctx context.Context, opts *Options) (*Broker, error) {
	o, err := opts.withDefaults()
	if err != nil {
		return nil, &broker.Error{Op: "open", Adapter: adapterName, Err: err}
	}
	b := &Broker{o: o, log: o.Logger, handles: map[handle]struct{}{}}
	b.polls.init()
	cfg, err := loadConfig(ctx, o)
	if err != nil {
		return nil, &broker.Error{Op: "open", Adapter: adapterName, Err: err}
	}
	b.idle = setClient(&cfg, o)
	if o.RoleARN != "" {
		role := sts.NewFromConfig(cfg, func(s *sts.Options) { s.BaseEndpoint = optional(o.SNSEndpoint) })
		cfg.Credentials = aws.NewCredentialsCache(stscreds.NewAssumeRoleProvider(role, o.RoleARN))
	}
	if cfg.Region == "" {
		return nil, &broker.Error{Op: "open", Adapter: adapterName,
			Err: broker.Invalid("no region: set Options.Region, sqs://REGION or AWS_REGION")}
	}
	b.cfg, b.direct = cfg, isDirect(&cfg)
	// Retries are made here, where an entry's own code and its caller's context
	// are known; the client's would share one bucket of tokens, which an outage
	// drains.
	b.sqs = awssqs.NewFromConfig(cfg, func(s *awssqs.Options) {
		s.Retryer = aws.NopRetryer{}
		s.BaseEndpoint = optional(o.Endpoint)
		if b.direct {
			s.Protocol = sendProtocol{s.Protocol}
		}
	})
	b.sns = sns.NewFromConfig(cfg, func(s *sns.Options) {
		s.Retryer = aws.NopRetryer{}
		s.BaseEndpoint = optional(o.SNSEndpoint)
	})
	b.sts = sts.NewFromConfig(cfg, func(s *sts.Options) {
		s.Retryer = aws.NopRetryer{}
		s.BaseEndpoint = optional(o.SNSEndpoint)
	})
	return b, nil
}

// OpenURL opens
//
//	sqs://[key:secret@]region[?endpoint=http://host:port&…]
//
// The parameters are those of [Options] in snake case: endpoint, sns_endpoint,
// role, account, request_timeout, poll_wait, max_pollers, send_concurrency,
// plain, unwrap_sns, fair_groups, batch_groups. Without key and secret the
// default chain of AWS applies; an empty region is taken from there too.
func OpenURL(ctx context.Context, url string) (broker.Broker, error) {
	o, err := parseURL(url)
	if err != nil {
		return nil, &broker.Error{Op: "open", Adapter: adapterName, Err: err}
	}
	b, err := Open(ctx, o)
	if err != nil {
		return nil, err
	}
	return b, nil
}

func loadConfig(ctx context.Context, o Options) (aws.Config, error) {
	if o.Config != nil {
		cfg := o.Config.Copy()
		if o.Region != "" {
			cfg.Region = o.Region
		}
		if o.Credentials != nil {
			cfg.Credentials = o.Credentials
		}
		return cfg, nil
	}
	var load []func(*config.LoadOptions) error
	if o.Region != "" {
		load = append(load, config.WithRegion(o.Region))
	}
	if o.Credentials != nil {
		load = append(load, config.WithCredentialsProvider(o.Credentials))
	}
	return config.LoadDefaultConfig(ctx, load...)
}

// setClient gives cfg an HTTP client: over o.Transport, or the one that a
// Config brought, or one sized for pollers and senders that keeps what the
// chain configured (AWS_CA_BUNDLE). It returns what closes idle connections.
func setClient(cfg *aws.Config, o Options) func() {
	next, idle := httpClient(cfg, o)
	cfg.HTTPClient = awsclient.Buffered(next)
	return idle
}

func httpClient(cfg *aws.Config, o Options) (next aws.HTTPClient, idle func()) {
	if o.Transport != nil {
		own := &http.Client{Transport: o.Transport}
		return own, own.CloseIdleConnections
	}
	base, ok := cfg.HTTPClient.(*awshttp.BuildableClient)
	if cfg.HTTPClient != nil && !ok {
		return cfg.HTTPClient, func() {}
	}
	if base == nil {
		base = awshttp.NewBuildableClient()
	}
	t := base.GetTransport()
	size(t, o)
	return &http.Client{
		Transport: t,
		// A redirect would lose the signature.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, t.CloseIdleConnections
}

// size lets a transport keep as many connections as pollers and senders use
// at a time: net/http keeps 2 to a host, the SDK 10.
func size(t *http.Transport, o Options) {
	t.MaxIdleConnsPerHost = max(256, 2*o.SendConcurrency+o.MaxPollers)
	t.MaxIdleConns = 4 * t.MaxIdleConnsPerHost
	t.DialContext = (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 30 * time.Second}).DialContext
	t.TLSHandshakeTimeout = 5 * time.Second
	t.WriteBufferSize, t.ReadBufferSize = 64<<10, 64<<10
}

func staticCredentials(key, secret string) aws.CredentialsProvider {
	return credentials.NewStaticCredentialsProvider(key, secret, "")
}

func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}
