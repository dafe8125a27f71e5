// Package s3 is a blob.Store in a bucket of Amazon S3 or of a service with its
// interface.
package s3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/bridge/blob"
	"github.com/queuestream/broker/internal/awsclient"
)

// A Store keeps bodies in Bucket under Prefix.
type Store struct {
	Client *s3.Client
	Bucket string
	Prefix string // ends with "/" or is empty
}

var _ blob.Store = (*Store)(nil)

// OpenURL opens s3://bucket/prefix with the default AWS configuration chain.
// Query parameters: region, endpoint (for services with S3's interface; it
// implies path-style addresses).
func OpenURL(ctx context.Context, rawURL string) (*Store, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return nil, err
	}
	if u.Scheme != "s3" || u.Host == "" {
		return nil, broker.Invalid("blob store %q: want s3://bucket/prefix", rawURL)
	}
	q := u.Query()
	for name := range q {
		if name != "region" && name != "endpoint" {
			return nil, broker.Invalid("blob store: unknown parameter %q, want region or endpoint", name)
		}
	}
	var opts []func(*config.LoadOptions) error
	if r := q.Get("region"); r != "" {
		opts = append(opts, config.WithRegion(r))
	}
	cfg, err := config.LoadDefaultConfig(ctx, opts...)
	if err != nil {
		return nil, fmt.Errorf("blob store: %w", err)
	}
	prefix := strings.Trim(u.Path, "/")
	if prefix != "" {
		prefix += "/"
	}
	return &Store{Client: newClient(cfg, q.Get("endpoint")), Bucket: u.Host, Prefix: prefix}, nil
}

func newClient(cfg aws.Config, endpoint string) *s3.Client {
	return s3.NewFromConfig(cfg, func(o *s3.Options) {
		o.HTTPClient = awsclient.Buffered(o.HTTPClient)
		if endpoint != "" {
			o.BaseEndpoint, o.UsePathStyle = aws.String(endpoint), true
		}
	})
}

// Put stores body; S3 answers once it is durable.
func (s *Store) Put(ctx context.Context, key string, body []byte) error {
	_, err := s.Client.PutObject(ctx, &s3.PutObjectInput{
		Bucket: &s.Bucket, Key: aws.String(s.Prefix + key), Body: bytes.NewReader(body),
	})
	return s.wrap("put", key, err)
}

// Get fetches the body.
func (s *Store) Get(ctx context.Context, key string) ([]byte, error) {
	out, err := s.Client.GetObject(ctx, &s3.GetObjectInput{Bucket: &s.Bucket, Key: aws.String(s.Prefix + key)})
	if err != nil {
		if _, ok := errors.AsType[*types.NoSuchKey](err); ok {
			return nil, fmt.Errorf("%w: s3://%s/%s%s", blob.ErrNotFound, s.Bucket, s.Prefix, key)
		}
		return nil, s.wrap("get", key, err)
	}
	b, err := io.ReadAll(out.Body)
	return b, s.wrap("get", key, errors.Join(err, out.Body.Close()))
}

// Delete removes the body; S3 reports no missing one.
func (s *Store) Delete(ctx context.Context, key string) error {
	_, err := s.Client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &s.Bucket, Key: aws.String(s.Prefix + key)})
	return s.wrap("delete", key, err)
}

func (s *Store) wrap(op, key string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s s3://%s/%s%s: %w", op, s.Bucket, s.Prefix, key, err)
}
