package containers

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"time"
)

// What AWS clients need besides the endpoint. The emulators take any
// credentials; these are the ones that tests use.
const (
	AWSRegion          = "us-east-1"
	AWSAccessKeyID     = "test"
	AWSSecretAccessKey = "test"
)

// SQSInstance is an ElasticMQ server with the limits of SQS. It keeps
// everything in memory: a restart or a kill loses all queues.
type SQSInstance struct {
	*Instance
	// URL is the endpoint, http://host:port. Queue URLs carry the host and
	// port that a request came to, so that they lead through a proxy too.
	URL string
}

// SNSInstance is a moto server: SNS, with an SQS of its own at the same
// endpoint, to which SNS delivers. It keeps everything in memory: a restart or
// a kill loses all topics and queues.
type SNSInstance struct {
	*Instance
	// URL is the endpoint of both services, http://host:port.
	URL string
}

// SQS returns the SQS server of this test run: the one that the environment
// names, else one started once for this process. The error wraps ErrUnavailable
// when there is none.
func SQS(ctx context.Context) (*SQSInstance, error) {
	in, err := sharedInstance(ctx, KindSQS)
	if err != nil {
		return nil, err
	}
	return newSQS(in), nil
}

// SNS returns the SNS server of this test run: the one that the environment
// names, else one started once for this process. The error wraps ErrUnavailable
// when there is none.
func SNS(ctx context.Context) (*SNSInstance, error) {
	in, err := sharedInstance(ctx, KindSNS)
	if err != nil {
		return nil, err
	}
	return newSNS(in), nil
}

// StartSQS starts an SQS server for the caller alone, about five seconds on two
// cores. The caller terminates it; what it forgets goes with the process.
func StartSQS(ctx context.Context) (*SQSInstance, error) {
	in, err := private(ctx, sqsSpec())
	if err != nil {
		return nil, err
	}
	return newSQS(in), nil
}

// StartSNS starts an SNS server for the caller alone, about three seconds on two
// cores. The caller terminates it; what it forgets goes with the process.
func StartSNS(ctx context.Context) (*SNSInstance, error) {
	in, err := private(ctx, snsSpec())
	if err != nil {
		return nil, err
	}
	return newSNS(in), nil
}

func newSQS(in *Instance) *SQSInstance {
	return &SQSInstance{Instance: in, URL: endpointURL("http://", in.at[roleClient], "")}
}

func newSNS(in *Instance) *SNSInstance {
	return &SNSInstance{Instance: in, URL: endpointURL("http://", in.at[roleClient], "")}
}

func sqsSpec() spec {
	return spec{
		kind:  KindSQS,
		ports: []port{{roleClient, 9324}},
		files: func(addrs) []file { return []file{config("elasticmq.conf", "/opt/elasticmq.conf")} },
		ready: func(ctx context.Context, at addrs) error {
			return httpReady(ctx, endpointURL("http://", at[roleClient], "")+"/?Action=ListQueues")
		},
		grace: 5 * time.Second,
	}
}

func snsSpec() spec {
	return spec{
		kind:  KindSNS,
		ports: []port{{roleClient, 5000}},
		ready: func(ctx context.Context, at addrs) error {
			return httpReady(ctx, endpointURL("http://", at[roleClient], "")+"/moto-api/data.json")
		},
		grace: 2 * time.Second, // nothing to keep
	}
}

// httpEnv reads http://host:port.
func httpEnv(value string) (addrs, error) {
	u, err := url.Parse(value)
	if err != nil {
		return nil, err
	}
	if (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return nil, fmt.Errorf("%q is not http://host:port", value)
	}
	return addrs{roleClient: strings.TrimSuffix(value, "/")}, nil
}
