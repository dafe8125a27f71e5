package main

import (
	"context"
	"errors"
	"net/http"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	wsqs "github.com/ThreeDotsLabs/watermill-aws/sqs"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	awssqs "github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"gocloud.dev/pubsub/awssnssqs"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/sqs"
)

const sqsEnv = "BROKER_TEST_SQS"

func sqsScenarios() []scenario {
	return []scenario{
		{
			name:     "sqs send, 1 goroutine",
			what:     "Standard queue. The raw client sends hand-made batches of 10, 32 requests at a time; the broker gets batches of 1,000, each awaited, or an AsyncPublisher; the peers have a blocking call only.",
			messages: 20_000, needs: sqsEnv,
			contenders: []contender{
				{name: "raw batcher", open: onSQS(rawSendAll)},
				{name: "broker", open: onSQS(brokerSendBatch)},
				{name: "broker, async", open: onSQS(brokerSendAsync)},
				{name: "Watermill", open: onSQS(watermillSend(1)), fraction: 0.1},
				{name: "Go CDK", open: onSQS(cdkSQSSend(1)), fraction: 0.1},
			},
			targets: []target{
				{of: "broker", over: "raw batcher", atLeast: 0.95},
				{of: "broker", over: "raw batcher", maxCPU: 1.15},
				{of: "broker, async", over: "raw batcher", atLeast: 0.95},
				{of: "broker, async", over: "raw batcher", maxCPU: 1.15},
				{of: "broker", over: "Watermill", atLeast: 3.5},
			},
		},
		{
			name:     "sqs send, 64 goroutines",
			what:     "A blocking call for each message from 64 goroutines. The raw batcher coalesces them by hand.",
			messages: 20_000, needs: sqsEnv,
			contenders: []contender{
				{name: "raw batcher", open: onSQS(rawSendCoalesced)},
				{name: "broker", open: onSQS(brokerSend(goroutines))},
				{name: "Watermill", open: onSQS(watermillSend(goroutines)), fraction: 0.3},
				{name: "Go CDK", open: onSQS(cdkSQSSend(goroutines))},
			},
			targets: []target{
				{of: "broker", over: "raw batcher", atLeast: 0.95},
				{of: "broker", over: "Watermill", atLeast: 3.5},
				{of: "broker", over: "Go CDK", atLeast: 1.4},
			},
		},
		{
			name:     "sqs receive and delete",
			what:     "Receives of 10 from 8 long pollers, deletes in batches of 10.",
			messages: 20_000, needs: sqsEnv,
			contenders: []contender{
				{name: "raw batcher", open: onFilledSQS(rawReceive)},
				{name: "broker", open: onFilledSQS(brokerReceive)},
				{name: "Watermill", open: onFilledSQS(watermillReceive), fraction: 0.3},
				{name: "Go CDK", open: onFilledSQS(cdkSQSReceive)},
			},
			targets: []target{
				{of: "broker", over: "raw batcher", atLeast: 0.95},
				{of: "broker", over: "Watermill", atLeast: 3.5},
				{of: "broker", over: "Go CDK", atLeast: 1.4},
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

// A queueRun does the work on a queue of its own.
type queueRun func(ctx context.Context, q sqsQueue, n int) (work func() error, done func() error, err error)

type sqsQueue struct {
	client *awssqs.Client
	name   string
	url    string
}

func onSQS(run queueRun) opener {
	return func(ctx context.Context, n int) (func() error, func() error, error) {
		client := awssqs.NewFromConfig(awsConfig())
		q := sqsQueue{client: client, name: "bench-" + broker.NewID()}
		out, err := client.CreateQueue(ctx, &awssqs.CreateQueueInput{QueueName: &q.name})
		if err != nil {
			return nil, nil, err
		}
		q.url = *out.QueueUrl
		work, done, err := run(ctx, q, n)
		if err != nil {
			return nil, nil, err
		}
		return work, func() error {
			err := done()
			_, derr := client.DeleteQueue(ctx, &awssqs.DeleteQueueInput{QueueUrl: &q.url})
			return errors.Join(err, derr)
		}, nil
	}
}

func onFilledSQS(run queueRun) opener {
	return onSQS(func(ctx context.Context, q sqsQueue, n int) (func() error, func() error, error) {
		fill, _, err := rawSendAll(ctx, q, n)
		if err != nil {
			return nil, nil, err
		}
		if err := fill(); err != nil {
			return nil, nil, err
		}
		return run(ctx, q, n)
	})
}

func (q sqsQueue) sendTen(ctx context.Context, bodies []string) error {
	in := &awssqs.SendMessageBatchInput{QueueUrl: &q.url, Entries: make([]types.SendMessageBatchRequestEntry, len(bodies))}
	for i := range bodies {
		in.Entries[i] = types.SendMessageBatchRequestEntry{Id: aws.String(strconv.Itoa(i)), MessageBody: &bodies[i]}
	}
	out, err := q.client.SendMessageBatch(ctx, in)
	if err != nil {
		return err
	}
	return counted(int64(len(out.Successful)), len(bodies))
}

func textPayload() string {
	b := payload()
	for i := range b {
		b[i] = 'a' + b[i]%26
	}
	return string(b)
}

func rawSendAll(ctx context.Context, q sqsQueue, n int) (func() error, func() error, error) {
	body := textPayload()
	return func() error {
		return parallel(32, (n+9)/10, func() error {
			bodies := make([]string, 10)
			for i := range bodies {
				bodies[i] = body
			}
			return q.sendTen(ctx, bodies)
		})
	}, nothing, nil
}

// rawSendCoalesced is what somebody who measures would write by hand: callers
// hand their message to one of the senders, which take up to ten at a time.
func rawSendCoalesced(ctx context.Context, q sqsQueue, n int) (func() error, func() error, error) {
	type call struct {
		body string
		err  chan error
	}
	body := textPayload()
	return func() error {
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
		err := parallel(goroutines, n, func() error {
			c := call{body, make(chan error, 1)}
			calls <- c
			return <-c.err
		})
		close(calls)
		senders.Wait()
		return err
	}, nothing, nil
}

func openSQS(ctx context.Context, q sqsQueue) (*sqs.Broker, broker.Queue, error) {
	cfg := awsConfig()
	b, err := sqs.Open(ctx, &sqs.Options{Config: &cfg, Endpoint: os.Getenv(sqsEnv)})
	if err != nil {
		return nil, nil, err
	}
	queue, err := b.Queue(ctx, q.name, nil)
	return b, queue, err
}

func brokerSendBatch(ctx context.Context, q sqsQueue, n int) (func() error, func() error, error) {
	b, queue, err := openSQS(ctx, q)
	if err != nil {
		return nil, nil, err
	}
	body := []byte(textPayload())
	return func() error {
		for left := n; left > 0; left -= chunk {
			ms := make([]broker.Message, min(chunk, left))
			for i := range ms {
				ms[i].Body = body
			}
			if _, err := queue.PublishBatch(ctx, ms); err != nil {
				return err
			}
		}
		return nil
	}, b.Close, nil
}

func brokerSendAsync(ctx context.Context, q sqsQueue, n int) (func() error, func() error, error) {
	b, queue, err := openSQS(ctx, q)
	if err != nil {
		return nil, nil, err
	}
	body := []byte(textPayload())
	return func() error {
		p := broker.NewAsyncPublisher(queue, nil)
		var sent atomic.Int64
		for range n {
			p.Publish(ctx, broker.Message{Body: body}, func(_ broker.Receipt, err error) {
				if err == nil {
					sent.Add(1)
				}
			})
		}
		if err := p.Close(ctx); err != nil {
			return err
		}
		return counted(sent.Load(), n)
	}, b.Close, nil
}

func brokerSend(goroutines int) queueRun {
	return func(ctx context.Context, q sqsQueue, n int) (func() error, func() error, error) {
		b, queue, err := openSQS(ctx, q)
		if err != nil {
			return nil, nil, err
		}
		body := []byte(textPayload())
		return func() error {
			return parallel(goroutines, n, func() error {
				_, err := queue.Publish(ctx, broker.Message{Body: body})
				return err
			})
		}, b.Close, nil
	}
}

func watermillSend(goroutines int) queueRun {
	return func(_ context.Context, q sqsQueue, n int) (func() error, func() error, error) {
		p, err := wsqs.NewPublisher(wsqs.PublisherConfig{AWSConfig: awsConfig(), DoNotCreateQueueIfNotExists: true}, watermill.NopLogger{})
		if err != nil {
			return nil, nil, err
		}
		body := []byte(textPayload())
		return func() error {
			return parallel(goroutines, n, func() error {
				return p.Publish(q.name, message.NewMessage(watermill.NewUUID(), body))
			})
		}, p.Close, nil
	}
}

func cdkSQSSend(goroutines int) queueRun {
	return func(ctx context.Context, q sqsQueue, n int) (func() error, func() error, error) {
		var o awssnssqs.TopicOptions
		o.BatcherOptions.MaxHandlers = 100
		return cdkSend(ctx, awssnssqs.OpenSQSTopic(ctx, q.client, q.url, &o), goroutines, n)
	}
}

func rawReceive(ctx context.Context, q sqsQueue, n int) (func() error, func() error, error) {
	return func() error {
		var got atomic.Int64
		errs := make(chan error, 8)
		for range 8 {
			go func() {
				for got.Load() < int64(n) {
					out, err := q.client.ReceiveMessage(ctx, &awssqs.ReceiveMessageInput{QueueUrl: &q.url, MaxNumberOfMessages: 10, WaitTimeSeconds: 1})
					if err != nil {
						errs <- err
						return
					}
					if len(out.Messages) == 0 {
						continue
					}
					in := &awssqs.DeleteMessageBatchInput{QueueUrl: &q.url}
					for i, m := range out.Messages {
						in.Entries = append(in.Entries, types.DeleteMessageBatchRequestEntry{Id: aws.String(strconv.Itoa(i)), ReceiptHandle: m.ReceiptHandle})
					}
					if _, err := q.client.DeleteMessageBatch(ctx, in); err != nil {
						errs <- err
						return
					}
					got.Add(int64(len(out.Messages)))
				}
				errs <- nil
			}()
		}
		var all error
		for range 8 {
			all = errors.Join(all, <-errs)
		}
		return all
	}, nothing, nil
}

func brokerReceive(ctx context.Context, q sqsQueue, n int) (func() error, func() error, error) {
	b, queue, err := openSQS(ctx, q)
	if err != nil {
		return nil, nil, err
	}
	return queueConsume(ctx, queue, n, b.Close)
}

func watermillReceive(ctx context.Context, q sqsQueue, n int) (func() error, func() error, error) {
	sub, err := wsqs.NewSubscriber(wsqs.SubscriberConfig{AWSConfig: awsConfig()}, watermill.NopLogger{})
	if err != nil {
		return nil, nil, err
	}
	return func() error {
		in, err := sub.Subscribe(ctx, q.name)
		if err != nil {
			return err
		}
		for range n {
			select {
			case m := <-in:
				m.Ack()
			case <-time.After(time.Minute):
				return errors.New("nothing for a minute")
			}
		}
		return nil
	}, sub.Close, nil
}

func cdkSQSReceive(ctx context.Context, q sqsQueue, n int) (func() error, func() error, error) {
	var o awssnssqs.SubscriptionOptions
	o.Raw = true
	o.ReceiveBatcherOptions.MaxHandlers = 100
	o.AckBatcherOptions.MaxHandlers = 100
	return cdkReceive(ctx, awssnssqs.OpenSubscription(ctx, q.client, q.url, &o), n)
}
