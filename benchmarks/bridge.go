package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	awssqs "github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/kafka"
	"github.com/queuestream/broker/adapters/sqs"
	"github.com/queuestream/broker/bridge"
)

// requestTime is what a request to the slow fake SQS takes.
const requestTime = 5 * time.Millisecond

func bridgeScenarios() []scenario {
	begin, source := share(filled(kafkaTopic, rawKafka))
	return []scenario{
		{
			name:     "bridge, kafka to standard sqs",
			what:     "Real Kafka and ElasticMQ. By hand: poll, send batches of 10, 32 requests at a time, commit; no retries, no poison, no order. Plain: no ID goes with a task, as by hand. All join a group and leave it.",
			messages: 60_000, needs: []string{kafkaEnv, sqsEnv}, begin: begin,
			contenders: []contender{
				{name: "raw clients by hand", open: bridging(source, rawPipe)},
				{name: "bridge", open: bridging(source, bridgePipe(false))},
				{name: "bridge, plain", open: bridging(source, bridgePipe(true))},
			},
			targets: []target{
				{of: "bridge", over: "raw clients by hand", atLeast: 0.9}, {of: "bridge", over: "raw clients by hand", maxCPU: 1.15},
				{of: "bridge, plain", over: "raw clients by hand", atLeast: 0.9}, {of: "bridge, plain", over: "raw clients by hand", maxCPU: 1.15},
			},
		},
		{
			name:     "bridge, kafka to fifo sqs, 5 ms a request",
			what:     "In-process fakes of both; the fake SQS checks that the keys keep their order and nothing comes twice. By hand: what keeps the order without thinking, one request of 10 at a time.",
			messages: 40_000,
			contenders: []contender{
				{name: "one request at a time", open: onFakes(rawOneByOne), fraction: 0.1},
				{name: "bridge", open: onFakes(bridgeFIFO)},
			},
			targets: []target{{of: "bridge", over: "one request at a time", atLeast: 10}},
		},
	}
}

// bridging moves what the source holds to a queue of its own.
func bridging(source makePlace, pipe func(ctx context.Context, topic, queue string, n int) (work func() error, stop func() error, err error)) opener {
	return func(ctx context.Context, n int) (func() error, func() error, error) {
		topic, err := source(ctx, n)
		if err != nil {
			return nil, nil, err
		}
		var work func() error
		_, done, err := set(ctx, sqsQueue, func(ctx context.Context, p place) (r rig, err error) {
			work, r.stop, err = pipe(ctx, topic.name, p.name, n)
			return r, err
		}, n, n)
		return work, done, err
	}
}

func rawPipe(ctx context.Context, topic, queue string, n int) (func() error, func() error, error) {
	q, err := openRawQueue(ctx, queue)
	if err != nil {
		return nil, nil, err
	}
	return func() error {
		cl, err := kgo.NewClient(kgo.SeedBrokers(kafkaAddrs()...), kgo.ConsumeTopics(topic), kgo.ConsumerGroup("g-"+broker.NewID()),
			kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.DisableAutoCommit())
		if err != nil {
			return err
		}
		defer cl.Close()
		slots := make(chan struct{}, 32)
		for got := 0; got < n; {
			fs := cl.PollRecords(ctx, 5000)
			if err := fs.Err0(); err != nil {
				return err
			}
			rs := fs.Records()
			got += len(rs)
			errs := make(chan error, len(rs))
			var wg sync.WaitGroup
			for ten := range slices.Chunk(rs, 10) {
				slots <- struct{}{}
				wg.Go(func() {
					bodies := make([]string, len(ten))
					for i, r := range ten {
						bodies[i] = string(r.Value)
					}
					errs <- q.sendTen(ctx, bodies)
					<-slots
				})
			}
			wg.Wait()
			close(errs)
			for err := range errs {
				if err != nil {
					return err
				}
			}
			if err := cl.CommitUncommittedOffsets(ctx); err != nil {
				return err
			}
		}
		return nil
	}, nothing, nil
}

func bridgePipe(plain bool) func(ctx context.Context, topic, queue string, n int) (func() error, func() error, error) {
	return func(ctx context.Context, topic, queue string, n int) (func() error, func() error, error) {
		return bridgeRun(ctx, kafkaAddrs(), topic, n, sqsOptions(plain), queue, func(rt *bridge.Route) {
			rt.Map = func(_ *broker.Record, t *broker.Message) error { // the body alone
				t.Headers = nil
				return nil
			}
		})
	}
}

// bridgeRun runs a route until n records are committed.
func bridgeRun(ctx context.Context, addrs []string, topic string, n int, o *sqs.Options, queue string, edit func(*bridge.Route)) (func() error, func() error, error) {
	k, err := kafka.Open(ctx, &kafka.Options{Brokers: addrs})
	if err != nil {
		return nil, nil, err
	}
	s, err := k.Stream(ctx, topic, nil)
	if err != nil {
		return nil, nil, err
	}
	b, err := sqs.Open(ctx, o)
	if err != nil {
		return nil, nil, err
	}
	target, err := b.Queue(ctx, queue, nil)
	if err != nil {
		return nil, nil, err
	}
	rt := &bridge.Route{
		Name: "bench", Group: "g-" + broker.NewID(), Source: s, Target: target, Poison: bridge.PoisonHalt, Until: broker.Now(), Concurrency: 512,
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
	if edit != nil {
		edit(rt)
	}
	return func() error {
		if err := rt.Run(ctx); err != nil {
			return err
		}
		return counted(rt.Stats().Enqueued, n)
	}, func() error { return errors.Join(b.Close(), k.Close()) }, nil
}

// onFakes starts a fake Kafka with n records of 5,000 keys and a fake FIFO
// queue.
func onFakes(run func(ctx context.Context, addrs []string, f *fakeFIFO, n int) (func() error, func() error, error)) opener {
	return func(ctx context.Context, n int) (func() error, func() error, error) {
		cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(12, "orders"))
		if err != nil {
			return nil, nil, err
		}
		cl, err := kgo.NewClient(kgo.SeedBrokers(cluster.ListenAddrs()...), kgo.DefaultProduceTopic("orders"))
		if err != nil {
			return nil, nil, err
		}
		rs := make([]*kgo.Record, n)
		for i := range rs {
			rs[i] = &kgo.Record{Key: fmt.Appendf(nil, "key-%d", i%5000), Value: fmt.Appendf(nil, "%-256d", i)}
		}
		if err := cl.ProduceSync(ctx, rs...).FirstErr(); err != nil {
			return nil, nil, err
		}
		cl.Close()
		f := &fakeFIFO{last: map[string]string{}, seen: map[string]bool{}}
		work, done, err := run(ctx, cluster.ListenAddrs(), f, n)
		if err != nil {
			return nil, nil, err
		}
		return func() error {
				if err := work(); err != nil {
					return err
				}
				return f.verify(n)
			}, func() error {
				err := done()
				cluster.Close()
				return err
			}, nil
	}
}

func bridgeFIFO(ctx context.Context, addrs []string, f *fakeFIFO, n int) (func() error, func() error, error) {
	return bridgeRun(ctx, addrs, "orders", n, &sqs.Options{
		Region: "us-east-1", Endpoint: "http://fake", Transport: f, Credentials: credentials.NewStaticCredentialsProvider("x", "x", ""),
	}, "orders.fifo", nil)
}

func rawOneByOne(ctx context.Context, addrs []string, f *fakeFIFO, n int) (func() error, func() error, error) {
	cl, err := kgo.NewClient(kgo.SeedBrokers(addrs...), kgo.ConsumeTopics("orders"), kgo.ConsumerGroup("g"),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.DisableAutoCommit())
	if err != nil {
		return nil, nil, err
	}
	cfg := awsConfig()
	cfg.BaseEndpoint, cfg.HTTPClient = aws.String("http://fake"), &http.Client{Transport: f}
	client := awssqs.NewFromConfig(cfg)
	return func() error {
		for got := 0; got < n; {
			fs := cl.PollRecords(ctx, 10)
			if err := fs.Err0(); err != nil {
				return err
			}
			rs := fs.Records()
			if len(rs) == 0 {
				continue
			}
			in := &awssqs.SendMessageBatchInput{QueueUrl: aws.String("http://fake/1/orders.fifo")}
			for i, r := range rs {
				in.Entries = append(in.Entries, types.SendMessageBatchRequestEntry{
					Id: aws.String(fmt.Sprint(i)), MessageBody: aws.String(string(r.Value)), MessageGroupId: aws.String(string(r.Key)),
					MessageDeduplicationId: aws.String(fmt.Sprintf("%d-%d", r.Partition, r.Offset)),
				})
			}
			if _, err := client.SendMessageBatch(ctx, in); err != nil {
				return err
			}
			got += len(rs)
		}
		return cl.CommitUncommittedOffsets(ctx)
	}, func() error { cl.Close(); return nil }, nil
}

// A fakeFIFO answers what the clients ask of one FIFO queue, slowly, and keeps
// what tells order and duplicates.
type fakeFIFO struct {
	mu       sync.Mutex
	last     map[string]string // group: the last body
	seen     map[string]bool   // dedup ids
	disorder atomic.Int64
}

func (f *fakeFIFO) RoundTrip(req *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return nil, err
	}
	var out any
	switch op := strings.TrimPrefix(req.Header.Get("X-Amz-Target"), "AmazonSQS."); op {
	case "GetQueueUrl":
		out = map[string]string{"QueueUrl": "http://fake/1/orders.fifo"}
	case "GetQueueAttributes":
		out = map[string]any{"Attributes": map[string]string{
			"FifoQueue": "true", "ContentBasedDeduplication": "false", "MaximumMessageSize": "1048576",
			"VisibilityTimeout": "30", "MessageRetentionPeriod": "345600", "DelaySeconds": "0", "ReceiveMessageWaitTimeSeconds": "0",
			"QueueArn": "arn:aws:sqs:us-east-1:1:orders.fifo",
		}}
	case "SendMessageBatch":
		<-time.After(requestTime)
		if out, err = f.send(body); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("the fake SQS knows no %s", op)
	}
	b, err := json.Marshal(out)
	if err != nil {
		return nil, err
	}
	return &http.Response{
		StatusCode: http.StatusOK, Status: "200 OK", Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: req,
		Header: http.Header{"Content-Type": {"application/x-amz-json-1.0"}}, Body: io.NopCloser(strings.NewReader(string(b))), ContentLength: int64(len(b)),
	}, nil
}

func (f *fakeFIFO) send(body []byte) (any, error) {
	var in struct {
		Entries []struct{ Id, MessageBody, MessageGroupId, MessageDeduplicationId string }
	}
	if err := json.Unmarshal(body, &in); err != nil {
		return nil, err
	}
	ok := make([]map[string]string, len(in.Entries))
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, e := range in.Entries {
		ok[i] = map[string]string{"Id": e.Id, "MessageId": e.MessageDeduplicationId, "SequenceNumber": fmt.Sprint(len(f.seen))}
		if f.seen[e.MessageDeduplicationId] {
			continue
		}
		f.seen[e.MessageDeduplicationId] = true
		if prev, ok := f.last[e.MessageGroupId]; ok && number(e.MessageBody) < number(prev) {
			f.disorder.Add(1)
		}
		f.last[e.MessageGroupId] = e.MessageBody
	}
	return map[string]any{"Successful": ok}, nil
}

func number(body string) int {
	n := 0
	for _, c := range body {
		if c < '0' || c > '9' {
			break
		}
		n = 10*n + int(c-'0')
	}
	return n
}

func (f *fakeFIFO) verify(n int) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if d := f.disorder.Load(); d > 0 {
		return fmt.Errorf("%d out of order", d)
	}
	return counted(int64(len(f.seen)), n)
}
