package sqs

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/queuestream/broker"
)

type failing struct{}

func (failing) Retrieve(context.Context) (aws.Credentials, error) {
	return aws.Credentials{}, errors.New("no credentials anywhere")
}

// Requests are signed with what STS gives for the role, which is asked once.
func TestRole(t *testing.T) {
	const role = "arn:aws:iam::123456789012:role/worker"
	f := newFake()
	var mu sync.Mutex
	assumed, signed := 0, 0
	transport := roundTrip(func(r *http.Request) (*http.Response, error) {
		mu.Lock()
		defer mu.Unlock()
		auth, token := r.Header.Get("Authorization"), r.Header.Get("X-Amz-Security-Token")
		if r.Header.Get("X-Amz-Target") != "" {
			if !strings.Contains(auth, "Credential=ROLEKEY/") || token != "role-token" {
				t.Errorf("signed with %q, token %q", auth, token)
			}
			signed++
			return f.RoundTrip(r)
		}
		form, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		if !bytes.Contains(form, []byte("Action=AssumeRole")) || !bytes.Contains(form, []byte("role%2Fworker")) || !strings.Contains(auth, "Credential=k/") {
			t.Errorf("asked STS %s, signed with %q", form, auth)
		}
		assumed++
		body := fmt.Sprintf(`<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult><Credentials>`+
			`<AccessKeyId>ROLEKEY</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>role-token</SessionToken>`+
			`<Expiration>%s</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>`, time.Now().Add(time.Hour).UTC().Format(time.RFC3339))
		return &http.Response{
			StatusCode: 200, ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{"Content-Type": {"text/xml"}},
			Body: io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body)),
		}, nil
	})
	q := openQueue(t, openFake(t, transport, func(o *Options) { o.RoleARN = role }), "q", nil)
	if _, err := q.Publish(t.Context(), broker.Message{Body: []byte("x")}); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if assumed != 1 || signed == 0 {
		t.Errorf("STS was asked %d times, %d requests were signed", assumed, signed)
	}
}

// A program that may not list queues is ready all the same; one whose
// credentials are wrong is not.
func TestPingWithoutListQueues(t *testing.T) {
	for code, want := range map[string]error{
		"AccessDenied":          nil,
		"AccessDeniedException": nil,
		"ExpiredToken":          broker.ErrUnauthorized,
		"InvalidClientTokenId":  broker.ErrUnauthorized,
		"SignatureDoesNotMatch": broker.ErrUnauthorized,
	} {
		f := newFake()
		b := openFake(t, f)
		f.fault = func(string, map[string]any, any) (*http.Response, error) { return fakeError(403, code), nil }
		if err := b.Ping(t.Context()); !errors.Is(err, want) {
			t.Errorf("%s: %v", code, err)
		}
	}
}

// An endpoint whose certificate is not trusted is told at once: no retry mends it.
func TestUntrustedCertificate(t *testing.T) {
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	defer server.Close()
	b := openFake(t, newFake(), func(o *Options) { o.Endpoint, o.Transport = server.URL, nil })
	_, err := b.Queue(t.Context(), "q", nil)
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); !ok || !errors.Is(err, broker.ErrUnauthorized) || broker.IsTemporary(err) {
		t.Errorf("open a queue: %v", err)
	}
}

// What runs outlives a certificate that is not trusted for a while.
func TestLapsedCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		q := openQueue(t, openFake(t, f), "q", nil)
		var failures atomic.Int32 // to come
		f.fault = func(string, map[string]any, any) (*http.Response, error) {
			if failures.Add(-1) >= 0 {
				return nil, &tls.CertificateVerificationError{Err: errors.New("it has expired")}
			}
			return nil, nil //nolint:nilnil // no fault
		}
		failures.Store(2)
		if _, err := q.Publish(t.Context(), broker.Message{Body: []byte("x")}); err != nil || failures.Load() >= 0 {
			t.Errorf("publish: %v", err)
		}
		failures.Store(2)
		ds, err := consume(t, q, nil).Receive(t.Context(), 1)
		if err != nil || len(ds) != 1 || failures.Load() >= 0 {
			t.Fatalf("receive: %d deliveries, %v", len(ds), err)
		}
		failures.Store(2)
		if err := ds[0].Ack(t.Context()); err != nil || failures.Load() >= 0 {
			t.Errorf("acknowledge: %v", err)
		}
	})
}

// Publishing needs no rights on the dead-letter queue of the queue's redrive
// policy; consuming does, and says so.
func TestPublisherWithoutRightsOnTheDeadLetterQueue(t *testing.T) {
	f := newFake()
	b := openFake(t, f)
	f.queue("q").attrs["RedrivePolicy"] = `{"deadLetterTargetArn":"arn:aws:sqs:eu-test-1:1:dead","maxReceiveCount":3}`
	code := "AccessDenied"
	f.fault = func(_ string, in map[string]any, answer any) (*http.Response, error) {
		if answer == nil && strings.HasSuffix(str(in["QueueName"])+str(in["QueueUrl"]), "dead") {
			return fakeError(400, code), nil
		}
		return nil, nil
	}
	q := openQueue(t, b, "q", nil)
	if _, err := q.Publish(t.Context(), broker.Message{Body: []byte("x")}); err != nil {
		t.Error(err)
	}
	_, err := q.Consumer(t.Context(), nil)
	if e, ok := errors.AsType[*broker.Error](err); !ok || !errors.Is(err, broker.ErrUnauthorized) || e.Op != "open consumer" || e.Name != "q" {
		t.Errorf("consumer: %v", err)
	}
	if _, err := b.Queue(t.Context(), "q", &broker.QueueOptions{DeadLetter: "dead"}); !errors.Is(err, broker.ErrUnauthorized) {
		t.Errorf("a dead-letter queue that is asked for: %v", err)
	}
	code = "QueueDoesNotExist"
	if _, err := b.Queue(t.Context(), "q", nil); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("without the dead-letter queue: %v", err)
	}
	code = "InternalFailure" // passes: no mistake of the caller's
	if _, err := b.Queue(t.Context(), "q", nil); !broker.IsTemporary(err) || errors.Is(err, broker.ErrInvalid) {
		t.Errorf("while SQS fails: %v", err)
	}
}

func TestURLMistakes(t *testing.T) {
	for url, want := range map[string]string{
		"sqs://localhost:9324":               "endpoint=",
		"sqs://sqs.eu-west-1.amazonaws.com":  "endpoint=",
		"sqs://k:hush%zz@eu-west-1":          "percent-encoded",
		"sqs://k:hush hush\x7f@eu-west-1":    "percent-encoded",
		"sqs://k:hush/hush@eu-west-1":        "percent-encoded",
		"sqs://k:12/hush@eu-west-1":          "percent-encoded",
		"sqs://k:12?hush@eu-west-1":          "percent-encoded",
		"sqs://k:h@us/hush@eu-west-1":        "behind the region",
		"sqs:eu-west-1":                      "sqs://",
		"sqs://eu-west-1#plain":              "behind the region",
		"sqs://eu-west-1?plain=1;role=x":     "after ?",
		"sqs://eu-west-1?plain=1&plain=0":    "plain stands 2 times",
		"sqs://r?endpoint=http://u:hush@h":   "endpoint",
		"sqs://r?endpoint=ftp://u:hush@h":    "endpoint",
		"sqs://r?endpoint=http://u:hush@h h": "endpoint",
		"sqs://k@eu-west-1":                  "both key and secret",
		"sqs://eu-west-1/queue":              "opened by name",
		"sqs://eu-west-1?endpont=x":          "endpont",
		"sqs://eu-west-1?max_pollers=many":   "max_pollers",
	} {
		_, err := OpenURL(t.Context(), url)
		if !errors.Is(err, broker.ErrInvalid) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hush") {
			t.Errorf("%s: %v", url, err)
		}
	}
}
