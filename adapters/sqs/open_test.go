package sqs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
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
