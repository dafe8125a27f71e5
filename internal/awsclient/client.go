// Package awsclient is what the users of the AWS SDK in this module share.
package awsclient

import (
	"bytes"
	"io"
	"net/http"

	"github.com/aws/aws-sdk-go-v2/aws"
)

// Buffered returns a client that hands requests to next with their bodies in
// memory.
//
// The SDK closes a request's body as soon as the answer's header is there, and
// its body's WriteTo then returns io.EOF, which net/http takes for a failed
// request: where the answer overtakes the last look at the body, which is
// usual on a busy machine, the connection is closed while the answer is being
// read. The messages of a poll are then hidden until their lease ends. A body
// that net/http knows also goes out in one packet with its header.
func Buffered(next aws.HTTPClient) aws.HTTPClient { return buffered{next} }

type buffered struct{ next aws.HTTPClient }

func (c buffered) Do(r *http.Request) (*http.Response, error) {
	if r.Body != nil && r.Body != http.NoBody && r.ContentLength > 0 {
		m := memory{size: r.ContentLength}
		if n, err := io.Copy(&m, r.Body); err != nil {
			return nil, err
		} else if n != r.ContentLength {
			return nil, io.ErrUnexpectedEOF
		}
		r.Body = io.NopCloser(bytes.NewReader(m.bytes))
	}
	return c.next.Do(r)
}

// A Body is a request's that is in memory already, and stays as it is: a client
// of Buffered does not copy it.
type Body struct {
	bytes.Reader
	all []byte
}

// NewBody returns a Body of b, which must not change any more.
func NewBody(b []byte) *Body {
	body := &Body{all: b}
	body.Reset(b)
	return body
}

// WriteTo implements io.WriterTo.
func (b *Body) WriteTo(w io.Writer) (int64, error) {
	m, ok := w.(*memory)
	if !ok || m.bytes != nil {
		return b.Reader.WriteTo(w)
	}
	n := b.Len()
	m.bytes = b.all[len(b.all)-n:]
	_, err := b.Seek(0, io.SeekEnd)
	return int64(n), err
}

// A memory is what a body is read into.
type memory struct {
	size  int64
	bytes []byte
}

func (m *memory) Write(p []byte) (int, error) {
	if m.bytes == nil {
		m.bytes = make([]byte, 0, m.size)
	}
	m.bytes = append(m.bytes, p...)
	return len(p), nil
}
