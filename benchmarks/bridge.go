package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
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

// slow is what a request to the slow fake SQS takes.
const slow = 5 * time.Millisecond

// bento's figures were taken apart from this module, which cannot build it, on
// a machine of the same kind, with fakes of its own.
const bento = "Bento (with fakes of its own)"

func bridgeScenarios() []scenario {
	begin, source := share(filled(kafkaTopic, rawKafka))
	return []scenario{
		{
			name:     "bridge, kafka to standard sqs",
			what:     "Real Kafka and ElasticMQ. By hand: poll, send batches of 10, 32 requests at a time, commit; no retries, no poison, no order. Plain: no ID goes with a task, as by hand. All join a group and leave it.",
			messages: 60_000, needs: []string{kafkaEnv, sqsEnv}, begin: begin,
			contenders: []contender{
				{name: "raw clients by hand", open: bridging(source, rawPipe(false))},
				{name: "raw clients by hand, with an ID", open: bridging(source, rawPipe(true))},
				{name: "bridge", open: bridging(source, bridgePipe(false))},
				{name: "bridge, plain", open: bridging(source, bridgePipe(true))},
			},
			targets: []target{
				{of: "bridge", over: "raw clients by hand, with an ID", atLeast: 0.9},
				{of: "bridge", over: "raw clients by hand, with an ID", maxCPU: 1.15},
				{of: "bridge, plain", over: "raw clients by hand", atLeast: 0.9}, {of: "bridge, plain", over: "raw clients by hand", maxCPU: 1.15},
			},
		},
		{
			name:     "bridge, kafka to fifo sqs, 5 ms a request",
			what:     "In-process fakes of both; the fake SQS checks that the keys keep their order and nothing comes twice. By hand: what keeps the order without thinking, one request of 10 at a time.",
			messages: 40_000,
			contenders: []contender{
				{name: "one request at a time", open: onFakes(fifoQueue, slow, rawOneByOne), fraction: 0.1},
				{name: "bridge", open: onFakes(fifoQueue, slow, bridgeOnFakes(false, nil))},
			},
			targets: []target{{of: "bridge", over: "one request at a time", atLeast: 10}},
		},
		{
			name:     "bridge, kafka to standard sqs, 5 ms a request",
			what:     "In-process fakes of both. By hand: poll, send batches of 10, 32 requests at a time, commit.",
			messages: 100_000,
			contenders: []contender{
				{name: "raw clients by hand", open: onFakes(standardQueue, slow, pipeOnFakes(false))},
				{name: "bridge", open: onFakes(standardQueue, slow, bridgeOnFakes(false, nil))},
			},
			targets: []target{
				{of: "bridge", over: "raw clients by hand", atLeast: 0.9},
				{of: "bridge", over: bento, figure: 14_900, atLeast: 1.5},
			},
		},
		{
			name:     "bridge, kafka to standard sqs, 0 ms a request",
			what:     "The same with a fake SQS that answers at once: what the clients themselves cost. The bridge sends an ID and the record's coordinates, five attributes, with each task; with the ID alone; and, plain, the body alone.",
			messages: 100_000,
			contenders: []contender{
				{name: "raw clients by hand", open: onFakes(standardQueue, 0, pipeOnFakes(false))},
				{name: "raw clients by hand, with an ID", open: onFakes(standardQueue, 0, pipeOnFakes(true))},
				{name: "bridge", open: onFakes(standardQueue, 0, bridgeOnFakes(false, nil))},
				{name: "bridge, the ID alone", open: onFakes(standardQueue, 0, bridgeOnFakes(false, bodyAlone))},
				{name: "bridge, plain", open: onFakes(standardQueue, 0, bridgeOnFakes(true, bodyAlone))},
			},
			targets: []target{
				{of: "bridge", over: bento, figure: 47_800, atLeast: 1.5},
				{of: "bridge, the ID alone", over: "raw clients by hand, with an ID", atLeast: 0.9},
				{of: "bridge, plain", over: "raw clients by hand", atLeast: 0.9},
			},
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

func rawPipe(ids bool) func(ctx context.Context, topic, queue string, n int) (func() error, func() error, error) {
	return func(ctx context.Context, topic, queue string, n int) (func() error, func() error, error) {
		q, err := openRawQueue(ctx, queue, ids)
		return func() error { return pipeByHand(ctx, kafkaAddrs(), topic, q, n) }, nothing, err
	}
}

func pipeByHand(ctx context.Context, addrs []string, topic string, q rawQueue, n int) error {
	cl, err := kgo.NewClient(kgo.SeedBrokers(addrs...), kgo.ConsumeTopics(topic), kgo.ConsumerGroup("g-"+broker.NewID()),
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
}

func bridgePipe(plain bool) func(ctx context.Context, topic, queue string, n int) (func() error, func() error, error) {
	return func(ctx context.Context, topic, queue string, n int) (func() error, func() error, error) {
		return bridgeRun(ctx, kafkaAddrs(), topic, n, sqsOptions(plain), queue, bodyAlone)
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

// Queues of the fake SQS.
const (
	fifoQueue     = "orders.fifo"
	standardQueue = "orders"
)

// onFakes starts a fake Kafka with n records of 5,000 keys and a fake SQS with
// one queue, which takes a time for each batch that it is sent.
func onFakes(queue string, takes time.Duration, run fakesRun) opener {
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
		f := &fakeSQS{queue: queue, takes: takes, last: map[string]int{}, seen: map[int]bool{}}
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

// A fakesRun is a bridge between a fake Kafka and a fake SQS.
type fakesRun func(ctx context.Context, addrs []string, f *fakeSQS, n int) (work func() error, stop func() error, err error)

func bridgeOnFakes(plain bool, edit func(*bridge.Route)) fakesRun {
	return func(ctx context.Context, addrs []string, f *fakeSQS, n int) (func() error, func() error, error) {
		return bridgeRun(ctx, addrs, "orders", n, &sqs.Options{
			Region: "us-east-1", Endpoint: "http://fake", Transport: f, Plain: plain,
			Credentials: credentials.NewStaticCredentialsProvider("x", "x", ""),
		}, f.queue, edit)
	}
}

// bodyAlone makes a route's tasks as a pipe by hand does: no headers.
func bodyAlone(rt *bridge.Route) {
	rt.Map = func(_ *broker.Record, t *broker.Message) error {
		t.Headers = nil
		return nil
	}
}

func (f *fakeSQS) client() *awssqs.Client {
	cfg := awsConfig()
	cfg.BaseEndpoint, cfg.HTTPClient = aws.String("http://fake"), &http.Client{Transport: f}
	return awssqs.NewFromConfig(cfg)
}

func (f *fakeSQS) url() string { return "http://fake/1/" + f.queue }

func pipeOnFakes(ids bool) fakesRun {
	return func(ctx context.Context, addrs []string, f *fakeSQS, n int) (func() error, func() error, error) {
		return func() error {
			return pipeByHand(ctx, addrs, "orders", rawQueue{f.client(), aws.String(f.url()), ids}, n)
		}, nothing, nil
	}
}

func rawOneByOne(ctx context.Context, addrs []string, f *fakeSQS, n int) (func() error, func() error, error) {
	cl, err := kgo.NewClient(kgo.SeedBrokers(addrs...), kgo.ConsumeTopics("orders"), kgo.ConsumerGroup("g"),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.DisableAutoCommit())
	if err != nil {
		return nil, nil, err
	}
	client := f.client()
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
			in := &awssqs.SendMessageBatchInput{QueueUrl: aws.String(f.url())}
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

// A fakeSQS answers what the clients ask of one queue, and keeps what
// tells order and duplicates: every body begins with the number of its record.
type fakeSQS struct {
	queue    string
	takes    time.Duration
	mu       sync.Mutex
	last     map[string]int // group: the last number
	seen     map[int]bool
	disorder int
	repeats  int
}

func (f *fakeSQS) RoundTrip(req *http.Request) (*http.Response, error) {
	body := make([]byte, req.ContentLength)
	if _, err := io.ReadFull(req.Body, body); err != nil {
		return nil, err
	}
	var out string
	var err error
	switch op := strings.TrimPrefix(req.Header.Get("X-Amz-Target"), "AmazonSQS."); op {
	case "GetQueueUrl":
		out = `{"QueueUrl":"` + f.url() + `"}`
	case "GetQueueAttributes":
		fifo := ""
		if f.queue == fifoQueue {
			fifo = `,"FifoQueue":"true","ContentBasedDeduplication":"false"`
		}
		out = `{"Attributes":{"MaximumMessageSize":"1048576","VisibilityTimeout":"30","MessageRetentionPeriod":"345600",` +
			`"DelaySeconds":"0","ReceiveMessageWaitTimeSeconds":"0","QueueArn":"arn:aws:sqs:us-east-1:1:` + f.queue + `"` + fifo + `}}`
	case "SendMessageBatch":
		if f.takes > 0 {
			<-time.After(f.takes)
		}
		if out, err = f.send(body); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("the fake SQS knows no %s", op)
	}
	return &http.Response{
		StatusCode: http.StatusOK, Status: "200 OK", Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: req,
		Header: http.Header{"Content-Type": {"application/x-amz-json-1.0"}}, Body: io.NopCloser(strings.NewReader(out)), ContentLength: int64(len(out)),
	}, nil
}

// send reads what it checks by looking for it: decoding all that is sent would
// cost as much as a client.
func (f *fakeSQS) send(body []byte) (string, error) {
	entries, ok := entriesOf(body, f.queue == fifoQueue)
	if !ok {
		return "", fmt.Errorf("the fake SQS does not understand %.200q", body)
	}
	var out strings.Builder
	out.WriteString(`{"Successful":[`)
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, e := range entries {
		n := number(e.body)
		if i > 0 {
			out.WriteByte(',')
		}
		fmt.Fprintf(&out, `{"Id":"%s","MessageId":"%d","SequenceNumber":"%d"}`, e.id, n, len(f.seen))
		if f.seen[n] {
			f.repeats++
		}
		f.seen[n] = true
		if f.queue != fifoQueue {
			continue
		}
		if prev, ok := f.last[string(e.group)]; ok && n < prev {
			f.disorder++
		}
		f.last[string(e.group)] = n
	}
	out.WriteString("]}")
	return out.String(), nil
}

// An entry is what the fake looks at of a SendMessageBatch entry: from body and
// group on, without escapes.
type entry struct{ id, body, group []byte }

// entriesOf finds the entries of a compact JSON text.
func entriesOf(text []byte, groups bool) (_ []entry, ok bool) {
	out := make([]entry, 0, 10)
	_, text, more := bytes.Cut(text, []byte(`{"Id":"`))
	for more {
		var one []byte
		one, text, more = bytes.Cut(text, []byte(`{"Id":"`))
		e := entry{id: upToQuote(one)}
		// Not from the quote on: that is everywhere, and the search would stop there.
		_, body, ok := bytes.Cut(one, []byte(`MessageBody":"`))
		if !ok {
			return nil, false
		}
		e.body = upToQuote(body)
		if groups {
			_, group, ok := bytes.Cut(one, []byte(`MessageGroupId":"`))
			if !ok {
				return nil, false
			}
			e.group = upToQuote(group)
		}
		out = append(out, e)
	}
	return out, len(out) > 0
}

func upToQuote(text []byte) []byte { return text[:max(0, bytes.IndexByte(text, '"'))] }

func number(body []byte) int {
	n := 0
	for _, c := range body {
		if c < '0' || c > '9' {
			break
		}
		n = 10*n + int(c-'0')
	}
	return n
}

func (f *fakeSQS) verify(n int) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.disorder > 0 || f.repeats > 0 {
		return fmt.Errorf("%d out of order, %d twice", f.disorder, f.repeats)
	}
	return counted(int64(len(f.seen)), n)
}
