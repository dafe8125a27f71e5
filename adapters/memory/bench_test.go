package memory

import (
	"context"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/queuestream/broker"
)

const benchBody = 256

// flow moves b.N messages from n publishers to n receivers through publish
// and receive.
func flow(b *testing.B, n int, publish func() error, receive func() error) {
	var wg sync.WaitGroup
	share := func(i int) int { return (b.N + i) / n }
	b.ReportAllocs()
	b.ResetTimer()
	for i := range n {
		wg.Add(2)
		go func() {
			defer wg.Done()
			for range share(i) {
				if err := publish(); err != nil {
					b.Error(err)
					return
				}
			}
		}()
		go func() {
			defer wg.Done()
			for range share(i) {
				if err := receive(); err != nil {
					b.Error(err)
					return
				}
			}
		}()
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
}

func BenchmarkQueue(b *testing.B) {
	for _, n := range []int{1, 4} {
		for _, lease := range []bool{true, false} {
			b.Run(strconv.Itoa(n)+"x"+strconv.Itoa(n)+"/lease="+strconv.FormatBool(lease), func(b *testing.B) {
				ctx := context.Background()
				profile := Default
				if !lease {
					profile = RabbitMQQuorum
				}
				br, err := Open(ctx, &Options{Profile: profile, MaxQueueBytes: 1 << 20})
				if err != nil {
					b.Fatal(err)
				}
				defer func() { _ = br.Close() }()
				if err := br.DeclareQueue(ctx, "q", broker.QueueConfig{}); err != nil {
					b.Fatal(err)
				}
				q, err := br.Queue(ctx, "q", nil)
				if err != nil {
					b.Fatal(err)
				}
				c, err := q.Consumer(ctx, nil)
				if err != nil {
					b.Fatal(err)
				}
				m := broker.Message{Body: make([]byte, benchBody)}
				flow(b, n, func() error {
					_, err := q.Publish(ctx, m)
					return err
				}, func() error {
					ds, err := c.Receive(ctx, 1)
					if err != nil {
						return err
					}
					return ds[0].Ack(ctx)
				})
			})
		}
	}
}

// BenchmarkChannel is the measure: a channel of structs that copies each body.
func BenchmarkChannel(b *testing.B) {
	type item struct{ body []byte }
	for _, n := range []int{1, 4} {
		b.Run(strconv.Itoa(n)+"x"+strconv.Itoa(n), func(b *testing.B) {
			ch := make(chan *item, 1024)
			body := make([]byte, benchBody)
			flow(b, n, func() error {
				ch <- &item{body: append([]byte(nil), body...)}
				return nil
			}, func() error {
				<-ch
				return nil
			})
		})
	}
}

// BenchmarkWake measures from Publish to the return of a parked Receive.
func BenchmarkWake(b *testing.B) {
	ctx := context.Background()
	br, err := Open(ctx, nil)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = br.Close() }()
	if err := br.DeclareQueue(ctx, "q", broker.QueueConfig{}); err != nil {
		b.Fatal(err)
	}
	q, err := br.openQueue(ctx, "q", nil)
	if err != nil {
		b.Fatal(err)
	}
	c, err := q.consumer(ctx, nil)
	if err != nil {
		b.Fatal(err)
	}
	took := make([]time.Duration, 0, b.N)
	var sent time.Time
	done := make(chan struct{})
	go func() {
		for range b.N {
			ds, err := c.Receive(ctx, 1)
			if err != nil {
				b.Error(err)
				return
			}
			took = append(took, time.Since(sent))
			if err := ds[0].Ack(ctx); err != nil {
				b.Error(err)
				return
			}
			done <- struct{}{}
		}
	}()
	m := broker.Message{Body: make([]byte, benchBody)}
	for range b.N {
		for {
			q.q.mu.Lock()
			parked := q.q.receivers.n
			q.q.mu.Unlock()
			if parked == 1 {
				break
			}
		}
		sent = time.Now()
		if _, err := q.Publish(ctx, m); err != nil {
			b.Fatal(err)
		}
		<-done
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Nanoseconds()), "p50-ns")
	b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds()), "p99-ns")
}

func BenchmarkStream(b *testing.B) {
	ctx := context.Background()
	br, err := Open(ctx, nil)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = br.Close() }()
	if err := br.DeclareStream(ctx, "s", broker.StreamConfig{Partitions: 4, RetentionBytes: 1 << 24}); err != nil {
		b.Fatal(err)
	}
	s, err := br.Stream(ctx, "s", nil)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("publish", func(b *testing.B) {
		r := broker.Record{Key: []byte("key"), Value: make([]byte, benchBody)}
		b.ReportAllocs()
		for b.Loop() {
			if _, err := s.Publish(ctx, r); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("receive", func(b *testing.B) {
		r := broker.Record{Value: make([]byte, benchBody)}
		for range 10_000 {
			if _, err := s.Publish(ctx, r); err != nil {
				b.Fatal(err)
			}
		}
		c, err := s.Consumer(ctx, "g", nil)
		if err != nil {
			b.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		b.ReportAllocs()
		n := 0
		for b.Loop() {
			if n > 0 {
				n--
				continue
			}
			rs, err := c.Receive(ctx, 100)
			if err != nil {
				b.Fatal(err)
			}
			if n = len(rs) - 1; n < 99 {
				for _, p := range c.Partitions() {
					if err := c.Seek(ctx, p, broker.Earliest()); err != nil {
						b.Fatal(err)
					}
				}
			}
		}
	})
}
