package sqs

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/queuestream/broker"
)

// What is wrong for good fails at once with a typed error that names the queue
// and what was done, is not tried again, and settles nothing.
func TestRefusalsAreTypedAndFinal(t *testing.T) {
	for code, want := range map[string]error{
		"QueueDoesNotExist":           broker.ErrNotFound, // deleted meanwhile
		"AccessDenied":                broker.ErrUnauthorized,
		"ExpiredTokenException":       broker.ErrUnauthorized,
		"InvalidClientTokenId":        broker.ErrUnauthorized,
		"KmsAccessDenied":             broker.ErrUnauthorized,
		"SignatureDoesNotMatch":       broker.ErrUnauthorized,
		"InvalidMessageContents":      broker.ErrInvalid,
		"UnsupportedOperation":        broker.ErrUnsupported,
		"SomethingNobodyHasHeard":     broker.ErrInvalid,
		"FilterPolicyLimitExceeded":   broker.ErrUnsupported,
		"AuthorizationError":          broker.ErrUnauthorized,
		"IncompleteSignature":         broker.ErrUnauthorized,
		"MissingParameter":            broker.ErrInvalid,
		"UnrecognizedClientException": broker.ErrUnauthorized,
	} {
		t.Run(code, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake()
				q := openQueue(t, openFake(t, f), "orders", nil)
				if _, err := q.Publish(t.Context(), broker.Message{Body: []byte("held")}); err != nil {
					t.Fatal(err)
				}
				d := receiveOne(t, consume(t, q, nil))
				refuse := func(op string, _ map[string]any, answer any) (*http.Response, error) {
					if strings.HasSuffix(op, "Batch") && answer == nil {
						return fakeError(400, code), nil
					}
					return nil, nil
				}
				set := func(fault func(string, map[string]any, any) (*http.Response, error)) {
					f.mu.Lock()
					defer f.mu.Unlock()
					f.fault = fault
				}
				set(refuse)
				final := func(op string, err, want error) {
					t.Helper()
					e, ok := errors.AsType[*broker.Error](err)
					if !errors.Is(err, want) || !ok || e.Op != op || e.Name != "orders" || broker.IsTemporary(err) || errors.Is(err, broker.ErrUnknownOutcome) {
						t.Errorf("%s: %v, want %v", op, err, want)
					}
				}
				start, before := time.Now(), f.requests("SendMessageBatch")
				_, err := q.Publish(t.Context(), broker.Message{Body: []byte("x")})
				final("publish", err, want)
				_, err = q.PublishBatch(t.Context(), bodies(3, nil))
				for i := range 3 {
					final("publish", broker.ErrorAt(err, i), want)
				}
				requests := 2
				if isContent(want) { // the three go on their own, in case only one is to blame
					requests += 4
				}
				if n, took := f.requests("SendMessageBatch")-before, time.Since(start); n != requests || took > 0 {
					t.Errorf("%d requests within %v, want %d at once", n, took, requests)
				}
				final("ack", d.Ack(t.Context()), want)
				final("extend", d.Extend(t.Context(), time.Minute), want)
				set(nil)
				if err := d.Ack(t.Context()); err != nil {
					t.Errorf("acknowledge after the refusal: %v", err)
				}
				if n := f.depth("orders"); n != 0 {
					t.Errorf("%d messages are left", n)
				}
			})
		})
	}
}

// Characters that SQS does not take are encoded, in whatever field they are; in
// plain mode they are refused and their neighbours are not.
func TestInvalidCharacters(t *testing.T) {
	const bad = "a\x00\x0b\uffff\xffb"
	f := newFake()
	q := openQueue(t, openFake(t, f), "q.fifo", nil)
	_, err := q.Publish(t.Context(), broker.Message{
		ID: "id" + bad, Body: []byte(bad), ContentType: bad, CorrelationID: bad, ReplyTo: bad,
		GroupID: bad, DedupID: bad, Headers: broker.Headers{{Key: bad, Value: bad}},
	})
	if err != nil {
		t.Fatal(err)
	}
	m := f.queue("q.fifo").messages[0]
	if !isText(m.body) || !isToken(m.group) || !isToken(m.dedup) {
		t.Errorf("sent %q in group %q with id %q", m.body, m.group, m.dedup)
	}
	for name, v := range m.attrs.(map[string]any) {
		if value := str(v.(map[string]any)["StringValue"]); !isText(value) {
			t.Errorf("attribute %s is %q", name, value)
		}
	}
	plain := openQueue(t, openFake(t, f, func(o *Options) { o.Plain = true }), "plain", nil)
	_, err = plain.PublishBatch(t.Context(), []broker.Message{{Body: []byte("a")}, {Body: []byte(bad)}, {Body: []byte("b")}})
	for i, want := range []error{nil, broker.ErrUnsupported, nil} {
		if got := broker.ErrorAt(err, i); !errors.Is(got, want) {
			t.Errorf("plain, entry %d: %v", i, got)
		}
	}
	if n := f.depth("plain"); n != 2 {
		t.Errorf("%d messages are stored, want 2", n)
	}
}

// Errors of the queue's key come by two names; SQS tells the second in a header,
// and the client then reports that. Throttling passes. What the key refuses is
// nobody's bad message: it must not look like one.
func TestKeyErrors(t *testing.T) {
	for shape, tt := range map[string]struct {
		query string
		want  error // nil: passes
	}{
		"KmsThrottled":       {"KMS.ThrottlingException", nil},
		"KmsAccessDenied":    {"KMS.AccessDeniedException", broker.ErrUnauthorized},
		"KmsDisabled":        {"KMS.DisabledException", broker.ErrUnauthorized},
		"KmsInvalidState":    {"KMS.InvalidStateException", broker.ErrUnauthorized},
		"KmsInvalidKeyUsage": {"KMS.InvalidKeyUsageException", broker.ErrUnauthorized},
		"KmsNotFound":        {"KMS.NotFoundException", broker.ErrUnauthorized},
		"KmsOptInRequired":   {"KMS.OptInRequired", broker.ErrUnauthorized},
	} {
		for _, how := range []string{"shape", "header", "entry"} {
			t.Run(shape+"/"+how, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f := newFake()
					q := openQueue(t, openFake(t, f), "q", nil)
					down := true
					time.AfterFunc(time.Minute, func() {
						f.mu.Lock()
						defer f.mu.Unlock()
						down = false
					})
					f.fault = func(op string, _ map[string]any, answer any) (*http.Response, error) {
						f.mu.Lock()
						defer f.mu.Unlock()
						switch {
						case !down || op != "SendMessageBatch":
							return nil, nil
						case how == "entry" && answer == nil: // nothing is stored of an entry that failed
							return fakeResponse(200, map[string]any{"Failed": []any{map[string]any{"Id": "0", "Code": tt.query, "SenderFault": true}}}), nil
						}
						res := fakeError(400, shape)
						if how == "header" {
							res.Header.Set("X-Amzn-Query-Error", tt.query+";Sender")
						}
						return res, nil
					}
					_, err := q.Publish(t.Context(), broker.Message{Body: []byte("x")})
					if !errors.Is(err, tt.want) || errors.Is(err, broker.ErrInvalid) {
						t.Errorf("publish: %v, want %v", err, tt.want)
					}
					if n := f.depth("q"); (n == 1) != (tt.want == nil) {
						t.Errorf("%d messages are stored", n)
					}
				})
			})
		}
	}
}

// Where the whole request is refused for one message, its neighbours are sent.
func TestRefusedRequestsAreTakenApart(t *testing.T) {
	f := newFake()
	q := openQueue(t, openFake(t, f), "q", nil)
	f.fault = func(op string, in map[string]any, answer any) (*http.Response, error) {
		if op == "SendMessageBatch" && answer == nil && strings.Contains(fmt.Sprint(in["Entries"]), "m4") {
			return fakeError(400, "InvalidParameterValue"), nil
		}
		return nil, nil
	}
	_, err := q.PublishBatch(t.Context(), bodies(10, nil))
	for i := range 10 {
		want := error(nil)
		if i == 4 {
			want = broker.ErrInvalid
		}
		if got := broker.ErrorAt(err, i); !errors.Is(got, want) {
			t.Errorf("entry %d: %v", i, got)
		}
	}
	if n := f.depth("q"); n != 9 {
		t.Errorf("%d messages are stored, want 9", n)
	}
}

// What AWS's own limit refuses although it seemed to fit fails alone.
func TestTooLongForTheService(t *testing.T) {
	f := newFake()
	q := openQueue(t, openFake(t, f), "q", nil)
	f.fault = func(op string, in map[string]any, answer any) (*http.Response, error) {
		if op != "SendMessageBatch" || answer != nil {
			return nil, nil
		}
		size := 0
		for _, e := range in["Entries"].([]any) {
			size += len(str(e.(map[string]any)["MessageBody"]))
		}
		if size > 100 {
			return fakeError(400, "AWS.SimpleQueueService.BatchRequestTooLong"), nil
		}
		return nil, nil
	}
	ms := bodies(10, nil)
	ms[4].Body = []byte(strings.Repeat("x", 101))
	_, err := q.PublishBatch(t.Context(), ms)
	for i := range ms {
		want := error(nil)
		if i == 4 {
			want = broker.ErrTooLarge
		}
		if got := broker.ErrorAt(err, i); !errors.Is(got, want) {
			t.Errorf("entry %d: %v", i, got)
		}
	}
	if n := f.depth("q"); n != 9 {
		t.Errorf("%d messages are stored, want 9", n)
	}
}

// Without credentials nothing is sent, and it is said so.
func TestNoCredentials(t *testing.T) {
	f := newFake()
	b := openFake(t, f, func(o *Options) { o.Credentials = failing{} })
	_, err := b.Queue(t.Context(), "q", nil)
	if !errors.Is(err, broker.ErrUnauthorized) || broker.IsTemporary(err) {
		t.Errorf("open: %v", err)
	}
	if n := f.requests("GetQueueUrl"); n != 0 {
		t.Errorf("%d requests", n)
	}
}

// Encryption is part of what is declared, and another key is a conflict.
func TestEncryptionKey(t *testing.T) {
	f := newFake()
	b := openFake(t, f)
	cfg := broker.QueueConfig{Options: map[string]string{"kms_key_id": "alias/orders", "kms_reuse_seconds": "600"}}
	f.fault = func(op string, in map[string]any, answer any) (*http.Response, error) {
		if op == "GetQueueUrl" && answer == nil {
			f.mu.Lock()
			defer f.mu.Unlock()
			if f.queues[str(in["QueueName"])] == nil {
				return fakeError(400, "QueueDoesNotExist"), nil
			}
		}
		return nil, nil
	}
	if err := b.DeclareQueue(t.Context(), "orders", cfg); err != nil {
		t.Fatal(err)
	}
	attrs := f.queue("orders").attrs
	if got := attrs[string(types.QueueAttributeNameKmsMasterKeyId)]; got != "alias/orders" {
		t.Errorf("key %q", got)
	}
	if got := attrs[string(types.QueueAttributeNameKmsDataKeyReusePeriodSeconds)]; got != "600" {
		t.Errorf("reuse period %q", got)
	}
	if err := b.DeclareQueue(t.Context(), "orders", cfg); err != nil {
		t.Errorf("declare it again: %v", err)
	}
	cfg.Options["kms_key_id"] = "alias/other"
	if err := b.DeclareQueue(t.Context(), "orders", cfg); !errors.Is(err, broker.ErrConflict) || !strings.Contains(err.Error(), "KmsMasterKeyId") {
		t.Errorf("declare it with another key: %v", err)
	}
}
