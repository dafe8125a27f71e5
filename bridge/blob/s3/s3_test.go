package s3

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"

	"github.com/queuestream/broker/bridge/blob"
)

// A bucket is as much of S3 as a Store needs.
type bucket struct {
	mu     sync.Mutex
	bodies map[string][]byte
}

func (b *bucket) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	defer b.mu.Unlock()
	answer, status := []byte(nil), http.StatusOK
	switch r.Method {
	case http.MethodPut:
		body, err := io.ReadAll(r.Body)
		if err != nil {
			status = http.StatusBadRequest
		}
		b.bodies[r.URL.Path] = body
	case http.MethodDelete:
		delete(b.bodies, r.URL.Path)
		status = http.StatusNoContent
	case http.MethodGet:
		body, ok := b.bodies[r.URL.Path]
		if answer = body; !ok {
			answer, status = []byte(`<Error><Code>NoSuchKey</Code><Message>none</Message></Error>`), http.StatusNotFound
		}
	}
	w.WriteHeader(status)
	_, _ = w.Write(answer) // cut short, the client fails
}

// store returns one on b, whose requests go through look.
func store(t *testing.T, b *bucket, look func(r *http.Request, next http.RoundTripper) (*http.Response, error)) *Store {
	t.Helper()
	srv := httptest.NewServer(b)
	t.Cleanup(srv.Close)
	cfg := aws.Config{
		Region: "eu-test-1", Credentials: credentials.NewStaticCredentialsProvider("k", "s", ""),
		// as http does without TLS: no checksum behind the body
		RequestChecksumCalculation: aws.RequestChecksumCalculationWhenRequired,
		HTTPClient: &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
			return look(r, srv.Client().Transport)
		})},
	}
	return &Store{Client: newClient(cfg, srv.URL), Bucket: "claims", Prefix: "bridge/"}
}

type roundTrip func(r *http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestPutGetDelete(t *testing.T) {
	ctx := t.Context()
	b := &bucket{bodies: map[string][]byte{}}
	s := store(t, b, func(r *http.Request, next http.RoundTripper) (*http.Response, error) { return next.RoundTrip(r) })
	body := strings.Repeat("body ", 100_000)
	if err := s.Put(ctx, "a/b", []byte(body)); err != nil {
		t.Fatal(err)
	}
	if stored, ok := b.bodies["/claims/bridge/a/b"]; !ok || string(stored) != body {
		t.Fatalf("stored %d bytes of %d", len(stored), len(body))
	}
	if got, err := s.Get(ctx, "a/b"); err != nil || string(got) != body {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if err := s.Delete(ctx, "a/b"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(ctx, "a/b"); !errors.Is(err, blob.ErrNotFound) {
		t.Errorf("after Delete: %v, want ErrNotFound", err)
	}
}

// What a transport sees of a request's body when it looks at it once more
// after the answer's header: its end, and no error.
func TestRequestBodyOutlivesTheAnswer(t *testing.T) {
	var body io.Reader
	s := store(t, &bucket{bodies: map[string][]byte{}}, func(r *http.Request, next http.RoundTripper) (*http.Response, error) {
		body = r.Body
		return next.RoundTrip(r)
	})
	if err := s.Put(t.Context(), "k", []byte("x")); err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, body); n != 0 || err != nil {
		t.Errorf("after the answer: %d more bytes, %v", n, err)
	}
}
