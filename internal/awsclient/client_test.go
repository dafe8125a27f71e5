package awsclient

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
)

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) Do(r *http.Request) (*http.Response, error) { return f(r) }

// Whatever a body is, the next client gets all of it, and again on a retry.
func TestBuffered(t *testing.T) {
	const text = "some bytes"
	memory := []byte(text)
	for name, body := range map[string]io.ReadSeeker{
		"Body":     NewBody(memory),
		"reader":   bytes.NewReader([]byte(text)),
		"readable": struct{ io.ReadSeeker }{strings.NewReader(text)}, // no WriteTo
	} {
		t.Run(name, func(t *testing.T) {
			var got []byte
			client := Buffered(roundTrip(func(r *http.Request) (*http.Response, error) {
				if r.ContentLength != int64(len(text)) {
					t.Errorf("ContentLength %d", r.ContentLength)
				}
				var err error
				got, err = io.ReadAll(r.Body)
				return nil, err //nolint:nilnil // nobody looks
			}))
			for try := range 2 {
				if _, err := body.Seek(0, io.SeekStart); err != nil {
					t.Fatal(err)
				}
				r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://fake.invalid", io.NopCloser(body))
				if err != nil {
					t.Fatal(err)
				}
				r.ContentLength = int64(len(text))
				resp, err := client.Do(r)
				if err != nil || string(got) != text {
					t.Errorf("try %d: %q, %v", try, got, err)
				}
				if resp != nil {
					_ = resp.Body.Close()
				}
			}
			r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://fake.invalid", io.NopCloser(body))
			if err != nil {
				t.Fatal(err)
			}
			r.ContentLength = int64(len(text))
			if _, err := client.Do(r); err == nil { //nolint:bodyclose // there is none
				t.Error("a body that was read already goes out short")
			}
		})
	}
	if string(memory) != text {
		t.Errorf("the bytes are now %q", memory)
	}
}

// What is in memory already is not copied.
func TestBodyIsNotCopied(t *testing.T) {
	b := make([]byte, 1<<20)
	body := NewBody(b)
	var m memory
	n, err := io.Copy(&m, io.NopCloser(body))
	if err != nil || n != int64(len(b)) || &m.bytes[0] != &b[0] {
		t.Errorf("%d bytes, %v", n, err)
	}
	if n, err := body.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("afterwards there are still %d bytes, %v", n, err)
	}
	if _, err := body.Seek(10, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	var rest bytes.Buffer
	if n, err := io.Copy(&rest, body); err != nil || n != int64(len(b)-10) || rest.Len() != len(b)-10 {
		t.Errorf("another writer gets %d bytes, %v", n, err)
	}
}
