package sqs

import (
	"bytes"
	"context"
	"crypto/md5" //nolint:gosec // SQS answers with it
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	awssqs "github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/queuestream/broker"
)

// What sending costs this process: the same answer for every request, no
// sockets. The raw client sends what somebody who measures would write by hand.
func BenchmarkSend(b *testing.B) {
	const chunk = 1000
	body := strings.Repeat("x", 256)
	answers := answerAll(body)
	b.Run("raw", func(b *testing.B) {
		client := awssqs.New(awssqs.Options{
			Region: "eu-test-1", Credentials: staticCredentials("k", "s"), BaseEndpoint: aws.String("http://fake.invalid"),
			HTTPClient: &http.Client{Transport: answers},
		})
		b.ReportAllocs()
		requests := make(chan struct{})
		var wg sync.WaitGroup
		for range defaultConcurrency {
			wg.Go(func() {
				for range requests {
					in := &awssqs.SendMessageBatchInput{QueueUrl: aws.String("http://fake.invalid/1/q")}
					for i := range batchEntries {
						in.Entries = append(in.Entries, types.SendMessageBatchRequestEntry{Id: &batchIDs[i], MessageBody: &body})
					}
					if out, err := client.SendMessageBatch(b.Context(), in); err != nil || len(out.Successful) != batchEntries {
						b.Error(err)
					}
				}
			})
		}
		defer reportCPU(b)()
		for n := 0; n < b.N; n += batchEntries {
			requests <- struct{}{}
		}
		close(requests)
		wg.Wait()
	})
	open := func(b *testing.B) broker.Queue {
		br, err := Open(b.Context(), &Options{
			Region: "eu-test-1", Credentials: staticCredentials("k", "s"), Endpoint: "http://fake.invalid", Transport: answers,
		})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() {
			if err := br.Close(); err != nil {
				b.Error(err)
			}
		})
		q, err := br.Queue(b.Context(), "q", nil)
		if err != nil {
			b.Fatal(err)
		}
		return q
	}
	b.Run("PublishBatch", func(b *testing.B) {
		q := open(b)
		b.ReportAllocs()
		text := []byte(body)
		defer reportCPU(b)()
		for left := b.N; left > 0; left -= chunk {
			ms := make([]broker.Message, min(chunk, left))
			for i := range ms {
				ms[i].Body = text
			}
			if _, err := q.PublishBatch(b.Context(), ms); err != nil {
				b.Fatal(err)
			}
		}
	})
	// As the bridge hands records over: each of some goroutines a request's worth.
	b.Run("PublishBatch of 10", func(b *testing.B) {
		q := open(b)
		b.ReportAllocs()
		text := []byte(body)
		batches := make(chan struct{})
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				for range batches {
					ms := make([]broker.Message, batchEntries)
					for i := range ms {
						ms[i].Body = text
					}
					if _, err := q.PublishBatch(b.Context(), ms); err != nil {
						b.Error(err)
					}
				}
			})
		}
		defer reportCPU(b)()
		for n := 0; n < b.N; n += batchEntries {
			batches <- struct{}{}
		}
		close(batches)
		wg.Wait()
	})
	b.Run("AsyncPublisher", func(b *testing.B) {
		q := open(b)
		b.ReportAllocs()
		text := []byte(body)
		defer reportCPU(b)()
		p := broker.NewAsyncPublisher(q, nil)
		for range b.N {
			p.Publish(b.Context(), broker.Message{Body: text}, func(_ broker.Receipt, err error) {
				if err != nil {
					b.Error(err)
				}
			})
		}
		if err := p.Close(context.WithoutCancel(b.Context())); err != nil {
			b.Fatal(err)
		}
	})
}

// reportCPU reports the CPU time for a message, which is steadier than the time.
func reportCPU(b *testing.B) func() {
	used := func() int64 {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return u.Utime.Nano() + u.Stime.Nano()
	}
	before := used()
	return func() { b.ReportMetric(float64(used()-before)/float64(b.N), "cpu-ns/op") }
}

// answerAll answers every send with success for ten entries of this body.
func answerAll(body string) http.RoundTripper {
	sum := md5.Sum([]byte(body)) //nolint:gosec // see above
	entries := make([]string, batchEntries)
	for i := range entries {
		entries[i] = fmt.Sprintf(`{"Id":"%d","MessageId":"01234567-0123-0123-0123-0123456789ab","MD5OfMessageBody":"%s"}`, i, hex.EncodeToString(sum[:]))
	}
	answer := []byte(`{"Successful":[` + strings.Join(entries, ",") + `]}`)
	f := newFake()
	return roundTrip(func(r *http.Request) (*http.Response, error) {
		if _, op, _ := strings.Cut(r.Header.Get("X-Amz-Target"), "."); op != "SendMessageBatch" {
			return f.RoundTrip(r)
		}
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return nil, err
		}
		resp := fakeResponse(http.StatusOK, nil)
		resp.Body, resp.ContentLength = io.NopCloser(bytes.NewReader(answer)), int64(len(answer))
		return resp, nil
	})
}
