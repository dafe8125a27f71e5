package sqs

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awssqs "github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/aws/smithy-go/middleware"
	"pgregory.net/rapid"

	"github.com/queuestream/broker"
)

// The client's own serializer is what sendBody has to equal.
func TestSendBodyIsTheClients(t *testing.T) {
	var sent []byte
	client := awssqs.New(awssqs.Options{
		Region: "eu-test-1", Credentials: staticCredentials("k", "s"), BaseEndpoint: aws.String("http://fake.invalid"),
		Retryer: aws.NopRetryer{},
		HTTPClient: &http.Client{Transport: roundTrip(func(r *http.Request) (_ *http.Response, err error) {
			sent, err = io.ReadAll(r.Body)
			return fakeResponse(http.StatusOK, map[string]any{}), err
		})},
	})
	const url = `http://fake.invalid/1/q"\\`
	text := rapid.OneOf(rapid.String(), rapid.StringOf(rapid.RuneFrom([]rune("a\"\\/<&>\n\r\t\x7f\x00\u2028é𝄞\ufffd"))), rapid.SampledFrom([]string{"", "x\xff"}))
	rapid.Check(t, func(t *rapid.T) {
		var items []outgoing
		in := &awssqs.SendMessageBatchInput{QueueUrl: aws.String(url)}
		for i := range rapid.IntRange(1, batchEntries).Draw(t, "entries") {
			c := codec{fifo: rapid.Bool().Draw(t, "fifo"), contentDedup: rapid.Bool().Draw(t, "content")}
			m := broker.Message{
				ID: text.Draw(t, "id"), Body: []byte(text.Draw(t, "body")), ContentType: text.Draw(t, "type"),
				GroupID: text.Draw(t, "group"), DedupID: text.Draw(t, "dedup"),
			}
			if !c.fifo {
				m.Delay = time.Duration(rapid.SampledFrom([]int{0, 1, 900, 5000}).Draw(t, "delay")) * time.Second
			}
			for range rapid.IntRange(0, 12).Draw(t, "headers") {
				m.Headers = append(m.Headers, broker.Header{Key: text.Draw(t, "key"), Value: text.Draw(t, "value")})
			}
			w, err := c.encode(&m, extra{})
			if err != nil {
				t.Fatal(err)
			}
			items = append(items, outgoing{wire: &w})
			in.Entries = append(in.Entries, w.entry(&batchIDs[i]))
		}
		if _, err := client.SendMessageBatch(t.Context(), in); err != nil {
			t.Fatal(err)
		}
		var want, got any
		if err := json.Unmarshal(sent, &want); err != nil {
			t.Fatal(err)
		}
		own := sendBody(url, items)
		if err := json.Unmarshal(own, &got); err != nil {
			t.Fatalf("%q: %v", own, err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("got  %s\nwant %s", own, sent)
		}
	})
}

// Nothing but the body differs from what the client sends by itself.
func TestSendCarriesTheClientsHeader(t *testing.T) {
	f := newFake()
	var header http.Header
	b := openFake(t, roundTrip(func(r *http.Request) (*http.Response, error) {
		header = r.Header.Clone()
		return f.RoundTrip(r)
	}))
	if !b.direct {
		t.Error("the body is the client's own, though nothing looks at it")
	}
	q := openQueue(t, b, "q", nil)
	if _, err := q.Publish(t.Context(), broker.Message{Body: []byte("x")}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"X-Amz-Target": "AmazonSQS.SendMessageBatch", "Content-Type": "application/x-amz-json-1.0",
	} {
		if got := header.Get(name); got != want {
			t.Errorf("%s %q, want %q", name, got, want)
		}
	}
	if !strings.HasPrefix(header.Get("Authorization"), "AWS4-HMAC-SHA256 ") {
		t.Errorf("not signed: %v", header)
	}
}

// A middleware of the caller's sees, and may add to, all that is sent.
func TestMiddlewareEditsWhatIsSent(t *testing.T) {
	add := middleware.InitializeMiddlewareFunc("add", func(ctx context.Context, in middleware.InitializeInput, next middleware.InitializeHandler) (
		middleware.InitializeOutput, middleware.Metadata, error,
	) {
		if send, ok := in.Parameters.(*awssqs.SendMessageBatchInput); ok {
			for i := range send.Entries {
				attrs := send.Entries[i].MessageAttributes
				if aws.ToString(attrs[attrID].StringValue) != "id" {
					t.Errorf("it sees %v", attrs)
				}
				attrs["trace"] = types.MessageAttributeValue{DataType: &dataTypeString, StringValue: aws.String("t1")}
			}
		}
		return next.HandleInitialize(ctx, in)
	})
	f := newFake()
	q := openQueue(t, openFake(t, f, func(o *Options) {
		o.Config = &aws.Config{APIOptions: []func(*middleware.Stack) error{
			func(s *middleware.Stack) error { return s.Initialize.Add(add, middleware.Before) },
		}}
	}), "q", nil)
	if _, err := q.Publish(t.Context(), broker.Message{ID: "id", Body: []byte("x")}); err != nil {
		t.Fatal(err)
	}
	attrs := f.queue("q").messages[0].attrs.(map[string]any)
	if attrs["trace"] == nil || attrs[attrID] == nil {
		t.Errorf("sent %v", attrs)
	}
}
