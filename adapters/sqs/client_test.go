package sqs

import (
	"io"
	"net/http"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/queuestream/broker"
)

// What a transport sees of a request's body when it looks at it once more
// after the answer's header: its end, and no error.
func TestRequestBodyOutlivesTheAnswer(t *testing.T) {
	f := newFake()
	var body io.Reader
	look := roundTrip(func(r *http.Request) (*http.Response, error) {
		body = r.Body
		return f.RoundTrip(r)
	})
	for name, edit := range map[string]func(*Options){
		"Transport": func(o *Options) { o.Transport = look },
		"Config": func(o *Options) {
			o.Transport, o.Config = nil, &aws.Config{HTTPClient: &http.Client{Transport: look}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			q := openQueue(t, openFake(t, f, edit), "q", nil)
			if _, err := q.Publish(t.Context(), broker.Message{Body: []byte("x")}); err != nil {
				t.Fatal(err)
			}
			if n, err := io.Copy(io.Discard, body); n != 0 || err != nil {
				t.Errorf("after the answer: %d more bytes, %v", n, err)
			}
		})
	}
}

type roundTrip func(r *http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
