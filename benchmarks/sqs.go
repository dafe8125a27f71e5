package main

import (
	"context"
	"errors"
	"net/http"
	"os"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/ThreeDotsLabs/watermill"
	wsqs "github.com/ThreeDotsLabs/watermill-aws/sqs"
	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	awssqs "github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"gocloud.dev/pubsub"
	"gocloud.dev/pubsub/awssnssqs"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/sqs"
)

const sqsEnv = "BROKER_TEST_SQS"

func sqsScenarios() []scenario {
	needs := []string{sqsEnv}
	full := filled(sqsQueue, rawSQS(false))
	flood := scenario{
		name:     "sqs send, 1 goroutine",
		what:     "Standard queue. The raw client sends hand-made batches of 10, 32 requests at a time; the broker gets batches of 10,000, each awaited, or an AsyncPublisher (an ID goes with each message; plain: the body alone); the peers have a blocking call only.",
		messages: 60_000, needs: needs,
		contenders: []contender{
			{name: "raw batcher", open: flooding(sqsQueue, rawSQS(false))},
			{name: "broker", open: flooding(sqsQueue, brokerSQS(false))},
			{name: "raw batcher, with an ID", open: flooding(sqsQueue, rawSQS(true))},
			{name: "broker, plain", open: flooding(sqsQueue, brokerSQS(true))},
			{name: "broker, plain, async", open: flooding(sqsQueue, asyncSQS)},
			{name: "Watermill", open: flooding(sqsQueue, watermillSQS), fraction: 0.05},
			{name: "Go CDK", open: flooding(sqsQueue, cdkSQS), fraction: 0.05},
		},
		targets: []target{
			{of: "broker", over: "raw batcher, with an ID", atLeast: 0.95},
			{of: "broker", over: "raw batcher, with an ID", maxCPU: 1.15},
			{of: "broker, plain", over: "raw batcher", atLeast: 0.95},
			{of: "broker, plain", over: "raw batcher", maxCPU: 1.15},
			{of: "broker, plain, async", over: "raw batcher", atLeast: 0.95},
			{of: "broker, plain, async", over: "raw batcher", maxCPU: 1.15},
			{of: "broker", over: "Watermill", atLeast: 3.5},
		},
	}
	read := scenario{
		name:     "sqs receive and delete",
		what:     "Receives of 10 from 8 long pollers, deletes in batches of 10.",
		messages: 20_000, needs: needs,
		contenders: []contender{
			{name: "raw batcher", open: reading(full, rawSQS(false))},
			{name: "broker", open: reading(full, brokerSQS(false))},
			{name: "Watermill", open: reading(full, watermillSQS), fraction: 0.3},
			{name: "Go CDK", open: reading(full, cdkSQS)},
		},
		targets: []target{
			{of: "broker", over: "raw batcher", atLeast: 0.95},
			{of: "broker", over: "raw batcher", maxCPU: 1.15},
			{of: "broker", over: "Watermill", atLeast: 3.5},
			{of: "broker", over: "Go CDK", atLeast: 1.4},
		},
	}
	return []scenario{
		flood, sized(flood, "1 KiB", 1<<10, 30_000), sized(flood, "64 KiB", 64<<10, 3000),
		{
			name:     "sqs send, 64 goroutines",
			what:     "A blocking call for each message from 64 goroutines. The raw batcher coalesces them by hand.",
			messages: 40_000, needs: needs,
			contenders: []contender{
				{name: "raw batcher", open: sending(sqsQueue, rawSQS(false))},
				{name: "broker", open: sending(sqsQueue, brokerSQS(false))},
				{name: "Watermill", open: sending(sqsQueue, watermillSQS), fraction: 0.2},
				{name: "Go CDK", open: sending(sqsQueue, cdkSQS), fraction: 0.5},
			},
			targets: []target{
				{of: "broker", over: "raw batcher", atLeast: 0.95},
				{of: "broker", over: "raw batcher", maxCPU: 1.15},
				{of: "broker", over: "Watermill", atLeast: 3.5},
				{of: "broker", over: "Go CDK", atLeast: 1.4},
			},
		},
		read, sized(read, "1 KiB", 1<<10, 10_000), sized(read, "64 KiB", 64<<10, 2000),
		{
			name: "sqs queue, half load", what: halfLoadWhat, messages: 10_000, needs: needs,
			contenders: []contender{
				{name: "raw batcher", open: halfLoad(sqsQueue, rawSQS(false))},
				{name: "broker", open: halfLoad(sqsQueue, brokerSQS(false))},
				{name: "Watermill", open: halfLoad(sqsQueue, watermillSQS), fraction: 0.3},
				{name: "Go CDK", open: halfLoad(sqsQueue, cdkSQS)},
			},
		},
	}
}

// awsConfig is what every contender uses: the same transport, sized for many
// connections.
func awsConfig() aws.Config {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.MaxIdleConnsPerHost, t.MaxIdleConns = 128, 128
	return aws.Config{
		Region: "us-east-1", BaseEndpoint: aws.String(os.Getenv(sqsEnv)),
		Credentials: credentials.NewStaticCredentialsProvider("x", "x", ""),
		HTTPClient:  &http.Client{Transport: t},
	}
}

func sqsQueue(ctx context.Context, _ int) (place, error) {
	client, name := awssqs.NewFromConfig(awsConfig()), "bench-"+broker.NewID()
	out, err := client.CreateQueue(ctx, &awssqs.CreateQueueInput{QueueName: &name})
	if err != nil {
		return place{}, err
	}
	return place{
		name: name,
		held: func(ctx context.Context) (int64, error) {
			counts := []types.QueueAttributeName{types.QueueAttributeNameApproximateNumberOfMessages, types.QueueAttributeNameApproximateNumberOfMessagesNotVisible}
			got, err := client.GetQueueAttributes(ctx, &awssqs.GetQueueAttributesInput{QueueUrl: out.QueueUrl, AttributeNames: counts})
			if err != nil {
				return 0, err
			}
			var held int64
			for _, v := range got.Attributes {
				n, err := strconv.ParseInt(v, 10, 64)
				if err != nil {
					return 0, err
				}
				held += n
			}
			return held, nil
		},
		remove: func(ctx context.Context) error {
			_, err := client.DeleteQueue(ctx, &awssqs.DeleteQueueInput{QueueUrl: out.QueueUrl})
			return err
		},
	}, nil
}

// A rawQueue is the SDK's client and a queue.
type rawQueue struct {
	client *awssqs.Client
	url    *string
	ids    bool // an attribute with an ID goes with each message, as the broker's does
}

func openRawQueue(ctx context.Context, name string, ids bool) (rawQueue, error) {
	client := awssqs.NewFromConfig(awsConfig())
	out, err := client.GetQueueUrl(ctx, &awssqs.GetQueueUrlInput{QueueName: &name})
	if err != nil {
		return rawQueue{}, err
	}
	return rawQueue{client, out.QueueUrl, ids}, nil
}

func (q rawQueue) sendTen(ctx context.Context, bodies []string) error {
	in := &awssqs.SendMessageBatchInput{QueueUrl: q.url, Entries: make([]types.SendMessageBatchRequestEntry, len(bodies))}
	for i := range bodies {
		in.Entries[i] = types.SendMessageBatchRequestEntry{Id: aws.String(strconv.Itoa(i)), MessageBody: &bodies[i]}
		if q.ids {
			in.Entries[i].MessageAttributes = map[string]types.MessageAttributeValue{
				"id": {DataType: aws.String("String"), StringValue: aws.String(broker.NewID())},
			}
		}
	}
	out, err := q.client.SendMessageBatch(ctx, in)
	if err != nil {
		return err
	}
	return counted(int64(len(out.Successful)), len(bodies))
}

// rawSQS is what somebody who measures would write by hand.
func rawSQS(ids bool) makeRig {
	return func(ctx context.Context, p place) (rig, error) {
		q, err := openRawQueue(ctx, p.name, ids)
		if err != nil {
			return rig{}, err
		}
		send, stop := q.coalesced(ctx)
		return rig{send: send, flood: q.flood, read: q.read, stop: stop}, nil
	}
}

func (q rawQueue) flood(ctx context.Context, n int) error {
	body := string(payload())
	var left atomic.Int64
	left.Store(int64(n))
	return parallel(32, (n+9)/10, func() error {
		bodies := make([]string, min(10, left.Add(-10)+10))
		for i := range bodies {
			bodies[i] = body
		}
		return q.sendTen(ctx, bodies)
	})
}

// coalesced lets callers hand their message to one of eight senders, which take
// up to ten at a time.
func (q rawQueue) coalesced(ctx context.Context) (send func(context.Context, []byte) error, stop func() error) {
	type call struct {
		body string
		err  chan error
	}
	calls := make(chan call, goroutines)
	var senders sync.WaitGroup
	for range 8 {
		senders.Go(func() {
			for first := range calls {
				batch := []call{first}
			fill:
				for len(batch) < 10 {
					select {
					case c, ok := <-calls:
						if !ok {
							break fill
						}
						batch = append(batch, c)
					default:
						break fill
					}
				}
				bodies := make([]string, len(batch))
				for i := range batch {
					bodies[i] = batch[i].body
				}
				err := q.sendTen(ctx, bodies)
				for _, c := range batch {
					c.err <- err
				}
			}
		})
	}
	return func(_ context.Context, body []byte) error {
			c := call{string(body), make(chan error, 1)}
			calls <- c
			return <-c.err
		}, func() error {
			close(calls)
			senders.Wait()
			return nil
		}
}

// read polls from eight goroutines, each of which deletes what it got.
func (q rawQueue) read(ctx context.Context, got func([]byte) bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var mu sync.Mutex
	poll := func() error {
		out, err := q.client.ReceiveMessage(ctx, &awssqs.ReceiveMessageInput{QueueUrl: q.url, MaxNumberOfMessages: 10, WaitTimeSeconds: 20})
		if err != nil || len(out.Messages) == 0 {
			return err
		}
		in := &awssqs.DeleteMessageBatchInput{QueueUrl: q.url}
		for i, m := range out.Messages {
			in.Entries = append(in.Entries, types.DeleteMessageBatchRequestEntry{Id: aws.String(strconv.Itoa(i)), ReceiptHandle: m.ReceiptHandle})
		}
		if _, err := q.client.DeleteMessageBatch(context.WithoutCancel(ctx), in); err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		for _, m := range out.Messages {
			if !got([]byte(*m.Body)) {
				cancel()
			}
		}
		return nil
	}
	errs := make([]error, 8)
	var pollers sync.WaitGroup
	for i := range errs {
		pollers.Go(func() {
			for errs[i] == nil && ctx.Err() == nil {
				errs[i] = poll()
			}
			errs[i] = unlessEnded(ctx, errs[i])
		})
	}
	pollers.Wait()
	return errors.Join(errs...)
}

// sqsOptions leave the transport to the broker. A plain one sends the body
// alone, as the raw client and the peers do; otherwise an ID goes with it.
func sqsOptions(plain bool) *sqs.Options {
	return &sqs.Options{
		Region: "us-east-1", Endpoint: os.Getenv(sqsEnv), Credentials: credentials.NewStaticCredentialsProvider("x", "x", ""), Plain: plain,
	}
}

func openSQS(ctx context.Context, p place, plain bool) (*sqs.Broker, broker.Queue, error) {
	b, err := sqs.Open(ctx, sqsOptions(plain))
	if err != nil {
		return nil, nil, err
	}
	q, err := b.Queue(ctx, p.name, nil)
	return b, q, err
}

func brokerSQS(plain bool) makeRig {
	return func(ctx context.Context, p place) (rig, error) {
		b, q, err := openSQS(ctx, p, plain)
		if err != nil {
			return rig{}, err
		}
		return rig{send: sendTo(q), flood: floodTo(q, 10*chunk), read: readFrom(q), stop: b.Close}, nil
	}
}

// asyncSQS publishes message by message.
func asyncSQS(ctx context.Context, p place) (rig, error) {
	b, q, err := openSQS(ctx, p, true)
	if err != nil {
		return rig{}, err
	}
	return rig{
		flood: func(ctx context.Context, n int) error {
			a := broker.NewAsyncPublisher(q, nil)
			body := payload()
			var sent atomic.Int64
			for range n {
				a.Publish(ctx, broker.Message{Body: body}, func(_ broker.Receipt, err error) {
					if err == nil {
						sent.Add(1)
					}
				})
			}
			return errors.Join(a.Close(ctx), counted(sent.Load(), n))
		},
		stop: b.Close,
	}, nil
}

func watermillSQS(_ context.Context, p place) (rig, error) {
	pub, err := wsqs.NewPublisher(wsqs.PublisherConfig{AWSConfig: awsConfig(), DoNotCreateQueueIfNotExists: true}, watermill.NopLogger{})
	if err != nil {
		return rig{}, err
	}
	sub, err := wsqs.NewSubscriber(wsqs.SubscriberConfig{AWSConfig: awsConfig()}, watermill.NopLogger{})
	if err != nil {
		return rig{}, errors.Join(err, pub.Close())
	}
	return rig{
		send: watermillSend(pub, p.name), read: watermillRead(sub, p.name),
		stop: func() error { return errors.Join(pub.Close(), sub.Close()) },
	}, nil
}

func cdkSQS(ctx context.Context, p place) (rig, error) {
	q, err := openRawQueue(ctx, p.name, false)
	if err != nil {
		return rig{}, err
	}
	var to awssnssqs.TopicOptions
	to.BatcherOptions.MaxHandlers = 100
	var so awssnssqs.SubscriptionOptions
	so.Raw = true
	so.ReceiveBatcherOptions.MaxHandlers = 100
	so.AckBatcherOptions.MaxHandlers = 100
	return cdkRig(awssnssqs.OpenSQSTopic(ctx, q.client, *q.url, &to), func() (*pubsub.Subscription, error) {
		return awssnssqs.OpenSubscription(ctx, q.client, *q.url, &so), nil
	}), nil
}
