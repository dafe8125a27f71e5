package sqs

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sns"
	awssqs "github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"

	"github.com/queuestream/broker"
)

var _ broker.Broker = (*Broker)(nil)

// closeTimeout bounds every Close.
const closeTimeout = 3 * time.Second

// A Broker opens queues of SQS and exchanges on SNS. It is also a
// [broker.Admin], a [broker.Exchanger] and a [broker.ReplyQueuer]. It is safe
// for concurrent use.
type Broker struct {
	o    Options
	log  *slog.Logger
	cfg  aws.Config
	sqs  *awssqs.Client
	sns  *sns.Client
	sts  *sts.Client
	idle func() // closes idle connections of a transport of our own

	direct bool // sqs has a sendProtocol

	polls longPolls

	mu      sync.Mutex
	closed  bool
	handles map[handle]struct{}
	account string    // of SNS topics
	swept   time.Time // when leftover reply queues were last looked for
}

// A handle is what a Broker has opened.
type handle interface {
	// drain stops fetching and waits until what is in hand is settled.
	drain(ctx context.Context) error
	Close() error
}

// SQS returns the client underneath; it retries nothing by itself.
func (b *Broker) SQS() *awssqs.Client { return b.sqs }

// SNS returns the client underneath; it retries nothing by itself.
func (b *Broker) SNS() *sns.Client { return b.sns }

// Stream returns ErrUnsupported: SQS keeps nothing that was consumed.
func (b *Broker) Stream(_ context.Context, name string, _ *broker.StreamOptions) (broker.Stream, error) {
	return nil, fail("open stream", name, broker.Unsupported("SQS has no streams"))
}

// Ping asks SQS for one queue's name. An answer that sqs:ListQueues is not
// permitted will do: the service is there and knows the credentials.
func (b *Broker) Ping(ctx context.Context) error {
	if err := b.use(); err != nil {
		return fail("ping", "", err)
	}
	_, err := control(ctx, b, func(ctx context.Context) (*awssqs.ListQueuesOutput, error) {
		return b.sqs.ListQueues(ctx, &awssqs.ListQueuesInput{MaxResults: aws.Int32(1)})
	})
	if api, ok := errors.AsType[smithy.APIError](err); ok && strings.HasPrefix(api.ErrorCode(), "AccessDenied") {
		return nil
	}
	return fail("ping", "", err)
}

// Shutdown does what [broker.Broker] says.
func (b *Broker) Shutdown(ctx context.Context) error {
	hs := b.opened()
	errs := make([]error, len(hs))
	var wg sync.WaitGroup
	for i, h := range hs {
		wg.Go(func() { errs[i] = h.drain(ctx) })
	}
	wg.Wait()
	return errors.Join(errors.Join(errs...), b.Close())
}

// Close does what [broker.Broker] says.
func (b *Broker) Close() error {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	polled := b.polls.finish()
	hs := b.opened()
	errs := make([]error, len(hs))
	var wg sync.WaitGroup
	for i, h := range hs {
		wg.Go(func() { errs[i] = h.Close() })
	}
	wg.Wait()
	polled()
	if b.idle != nil {
		b.idle()
	}
	return errors.Join(errs...)
}

func (b *Broker) opened() []handle {
	b.mu.Lock()
	defer b.mu.Unlock()
	hs := make([]handle, 0, len(b.handles))
	for h := range b.handles {
		hs = append(hs, h)
	}
	return hs
}

// use returns ErrClosed after Close.
func (b *Broker) use() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return broker.ErrClosed
	}
	return nil
}

func (b *Broker) add(h handle) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return broker.ErrClosed
	}
	b.handles[h] = struct{}{}
	return nil
}

func (b *Broker) remove(h handle) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.handles, h)
}
