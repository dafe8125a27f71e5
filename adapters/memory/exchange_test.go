package memory

import (
	"errors"
	"testing"
	"testing/synctest"

	"github.com/queuestream/broker"
)

// A message whose only queue is deleted while it waits there for room was
// stored nowhere, and Publish says so.
func TestExchangeWhoseQueueIsDeletedMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		b, err := Open(ctx, &Options{MaxQueueBytes: 1})
		check(t, err)
		check(t, b.DeclareQueue(ctx, "q", broker.QueueConfig{}))
		check(t, b.DeclareExchange(ctx, "x", broker.ExchangeFanout))
		check(t, b.Bind(ctx, "q", "x", broker.Binding{}))
		x, err := b.Exchange(ctx, "x")
		check(t, err)
		p := x.RouteTo("")
		_, err = p.Publish(ctx, broker.Message{Body: []byte("fills it")})
		check(t, err)
		waits := make(chan error, 1)
		go func() {
			_, err := p.Publish(ctx, broker.Message{Body: []byte("waits")})
			waits <- err
		}()
		synctest.Wait()
		check(t, b.DeleteQueue(ctx, "q"))
		if err := <-waits; !errors.Is(err, broker.ErrNotFound) {
			t.Errorf("stored nowhere: %v, want ErrNotFound", err)
		}
		check(t, errors.Join(x.Close(), b.Close()))
	})
}
