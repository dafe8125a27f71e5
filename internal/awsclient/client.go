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
		body := make([]byte, r.ContentLength)
		if _, err := io.ReadFull(r.Body, body); err != nil {
			return nil, err
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
	}
	return c.next.Do(r)
}
