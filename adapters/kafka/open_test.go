package kafka_test

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/kafka"
)

// Open ends with its context also where a server accepts and stays silent.
func TestOpenEndsWithItsContext(t *testing.T) {
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	ctx, cancel := context.WithCancel(t.Context())
	accepted := make(chan net.Conn, 1)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				close(accepted)
				return
			}
			select {
			case accepted <- c:
			default:
			}
			time.AfterFunc(100*time.Millisecond, cancel)
		}
	}()
	began := time.Now()
	b, err := kafka.OpenURL(ctx, "kafka://"+l.Addr().String())
	if err == nil || b != nil || !errors.Is(err, context.Canceled) {
		t.Errorf("OpenURL: %v, %v, want the context's error and no broker", b, err)
	}
	if e, ok := errors.AsType[*broker.Error](err); !ok || e.Op != "open" {
		t.Errorf("the error is %#v, want a *broker.Error of open", err)
	}
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("it took %v", d)
	}
	_ = l.Close()
	for c := range accepted {
		_ = c.Close()
	}
}
