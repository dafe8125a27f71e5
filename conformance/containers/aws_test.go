package containers_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/sns"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/aws/smithy-go"
	"github.com/queuestream/broker/conformance/containers"
)

func awsConfig(t *testing.T) aws.Config {
	t.Helper()
	// No connection is kept, so that none is left when the tests look for leaks.
	client := awshttp.NewBuildableClient().WithTransportOptions(func(tr *http.Transport) { tr.DisableKeepAlives = true })
	return aws.Config{
		Region:      containers.AWSRegion,
		Credentials: credentials.NewStaticCredentialsProvider(containers.AWSAccessKeyID, containers.AWSSecretAccessKey, ""),
		HTTPClient:  client,
	}
}

func sqsClient(t *testing.T, url string) *sqs.Client {
	t.Helper()
	return sqs.NewFromConfig(awsConfig(t), func(o *sqs.Options) { o.BaseEndpoint = aws.String(url) })
}

func snsClient(t *testing.T, url string) *sns.Client {
	t.Helper()
	return sns.NewFromConfig(awsConfig(t), func(o *sns.Options) { o.BaseEndpoint = aws.String(url) })
}

// sqsQueue creates a queue, which goes with the test, and returns its URL.
func sqsQueue(t *testing.T, cl *sqs.Client, name string, attributes map[string]string) string {
	t.Helper()
	out, err := cl.CreateQueue(within(t, 20*time.Second), &sqs.CreateQueueInput{QueueName: &name, Attributes: attributes})
	must(t, err)
	return *out.QueueUrl
}

// sqsReceive waits for n messages and deletes them.
func sqsReceive(t *testing.T, cl *sqs.Client, queue string, n int) []types.Message {
	t.Helper()
	var got []types.Message
	ctx := within(t, 20*time.Second)
	for len(got) < n {
		out, err := cl.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{
			QueueUrl: &queue, MaxNumberOfMessages: 10, WaitTimeSeconds: 5,
			MessageSystemAttributeNames: []types.MessageSystemAttributeName{types.MessageSystemAttributeNameAll},
		})
		must(t, err)
		for _, m := range out.Messages {
			_, err := cl.DeleteMessage(ctx, &sqs.DeleteMessageInput{QueueUrl: &queue, ReceiptHandle: m.ReceiptHandle})
			must(t, err)
		}
		got = append(got, out.Messages...)
	}
	return got
}

func TestSQSPublishAndRead(t *testing.T) {
	server := containers.NeedSQS(t)
	cl := sqsClient(t, server.URL)
	queue := sqsQueue(t, cl, unique(t), nil)
	if !strings.HasPrefix(queue, server.URL+"/") {
		t.Errorf("the queue's URL is %s, want one below %s", queue, server.URL)
	}
	_, err := cl.SendMessage(within(t, 20*time.Second), &sqs.SendMessageInput{QueueUrl: &queue, MessageBody: aws.String("hello")})
	must(t, err)
	if got := sqsReceive(t, cl, queue, 1); *got[0].Body != "hello" {
		t.Fatalf("got %q, want %q", *got[0].Body, "hello")
	}
}

// A FIFO queue keeps the order of a group and drops a duplicate.
func TestSQSFIFO(t *testing.T) {
	server := containers.NeedSQS(t)
	cl := sqsClient(t, server.URL)
	queue := sqsQueue(t, cl, unique(t)+".fifo", map[string]string{"FifoQueue": "true"})
	ctx := within(t, 20*time.Second)
	for _, body := range []string{"1", "2", "2", "3"} {
		_, err := cl.SendMessage(ctx, &sqs.SendMessageInput{
			QueueUrl: &queue, MessageBody: &body, MessageGroupId: aws.String("g"), MessageDeduplicationId: &body,
		})
		must(t, err)
	}
	var order string
	for _, m := range sqsReceive(t, cl, queue, 3) {
		order += *m.Body
	}
	if order != "123" {
		t.Fatalf("got the order %s, want 123", order)
	}
}

func TestSQSLimitsAreStrict(t *testing.T) {
	server := containers.NeedSQS(t)
	cl := sqsClient(t, server.URL)
	queue := sqsQueue(t, cl, unique(t), nil)
	_, err := cl.SendMessage(within(t, 20*time.Second), &sqs.SendMessageInput{
		QueueUrl: &queue, MessageBody: aws.String("x"), DelaySeconds: 901, // at most 900
	})
	if apiErr := smithy.APIError(nil); !errors.As(err, &apiErr) {
		t.Fatalf("a delay above the limit of SQS gave %v, want an error of the API", err)
	}
}

// SNS delivers to a queue of the SQS at the same endpoint.
func TestSNSToSQS(t *testing.T) {
	server := containers.NeedSNS(t)
	topics, queues := snsClient(t, server.URL), sqsClient(t, server.URL)
	snsToSQS(t, topics, queues, unique(t))
}

func snsToSQS(t *testing.T, topics *sns.Client, queues *sqs.Client, name string) {
	t.Helper()
	ctx := within(t, 20*time.Second)
	topic, err := topics.CreateTopic(ctx, &sns.CreateTopicInput{Name: &name})
	must(t, err)
	queue := sqsQueue(t, queues, name, nil)
	attrs, err := queues.GetQueueAttributes(ctx, &sqs.GetQueueAttributesInput{
		QueueUrl: &queue, AttributeNames: []types.QueueAttributeName{types.QueueAttributeNameQueueArn},
	})
	must(t, err)
	_, err = topics.Subscribe(ctx, &sns.SubscribeInput{
		TopicArn: topic.TopicArn, Protocol: aws.String("sqs"), Endpoint: aws.String(attrs.Attributes["QueueArn"]),
	})
	must(t, err)
	_, err = topics.Publish(ctx, &sns.PublishInput{TopicArn: topic.TopicArn, Message: aws.String("hello")})
	must(t, err)
	var envelope struct{ Type, Message string }
	must(t, json.Unmarshal([]byte(*sqsReceive(t, queues, queue, 1)[0].Body), &envelope))
	if envelope.Type != "Notification" || envelope.Message != "hello" {
		t.Fatalf("got %+v, want a notification of hello", envelope)
	}
}

// ElasticMQ keeps its queues in memory: a pause keeps them, a kill and a restart
// do not, and each time the server comes back at its endpoint.
func TestSQSComesBack(t *testing.T) {
	t.Parallel()
	server := containers.OwnSQS(t)
	ctx := within(t, 3*time.Minute)
	cl := sqsClient(t, server.URL)
	name := unique(t)
	queue := sqsQueue(t, cl, name, nil)
	_, err := cl.SendMessage(ctx, &sqs.SendMessageInput{QueueUrl: &queue, MessageBody: aws.String("kept")})
	must(t, err)

	must(t, server.Pause(ctx))
	short, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	_, err = cl.ListQueues(short, &sqs.ListQueuesInput{})
	cancel()
	if err == nil {
		t.Fatal("a paused server answers")
	}
	must(t, server.Resume(ctx))
	if got := sqsReceive(t, cl, queue, 1); *got[0].Body != "kept" {
		t.Fatalf("got %q after the pause, want %q", *got[0].Body, "kept")
	}

	must(t, server.Kill(ctx))
	must(t, server.Start(ctx))
	expectNoQueue(ctx, t, cl, name)
	_ = sqsQueue(t, cl, name, nil)
	must(t, server.Restart(ctx))
	expectNoQueue(ctx, t, cl, name)
	_ = sqsQueue(t, cl, name, nil)
}

func expectNoQueue(ctx context.Context, t *testing.T, cl *sqs.Client, name string) {
	t.Helper()
	_, err := cl.GetQueueUrl(ctx, &sqs.GetQueueUrlInput{QueueName: &name})
	var gone *types.QueueDoesNotExist
	if !errors.As(err, &gone) {
		t.Fatalf("the queue of before gives %v, want QueueDoesNotExist", err)
	}
}

// moto keeps everything in memory too.
func TestSNSComesBack(t *testing.T) {
	t.Parallel()
	server := containers.OwnSNS(t)
	ctx := within(t, 3*time.Minute)
	topics, queues := snsClient(t, server.URL), sqsClient(t, server.URL)
	name := unique(t)
	for _, again := range []struct {
		how string
		do  func(context.Context) error
	}{
		{"kill", func(ctx context.Context) error { return errors.Join(server.Kill(ctx), server.Start(ctx)) }},
		{"restart", server.Restart},
		{"pause", func(ctx context.Context) error { return errors.Join(server.Pause(ctx), server.Resume(ctx)) }},
	} {
		snsToSQS(t, topics, queues, name)
		must(t, again.do(ctx))
		out, err := topics.ListTopics(ctx, &sns.ListTopicsInput{})
		must(t, err)
		want := 0
		if again.how == "pause" {
			want = 1
		}
		if len(out.Topics) != want {
			t.Fatalf("%d topics after a %s, want %d", len(out.Topics), again.how, want)
		}
	}
}
