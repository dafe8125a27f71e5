package containers

import (
	"context"
	"errors"
	"testing"
	"time"
)

// NeedKafka returns the Kafka broker of this test run. Without one it skips the
// test and says what to do, or fails it when CI=true. With -short it skips.
func NeedKafka(tb testing.TB) *KafkaInstance {
	tb.Helper()
	return need(tb, KindKafka, Kafka)
}

// NeedRabbitMQ is NeedKafka for RabbitMQ.
func NeedRabbitMQ(tb testing.TB) *RabbitMQInstance {
	tb.Helper()
	return need(tb, KindRabbitMQ, RabbitMQ)
}

// NeedSQS is NeedKafka for ElasticMQ.
func NeedSQS(tb testing.TB) *SQSInstance {
	tb.Helper()
	return need(tb, KindSQS, SQS)
}

// NeedSNS is NeedKafka for moto.
func NeedSNS(tb testing.TB) *SNSInstance {
	tb.Helper()
	return need(tb, KindSNS, SNS)
}

// OwnKafka starts a Kafka broker for this test alone, which may kill it; it is
// removed when the test ends. Where none can be started it skips or fails the
// test as NeedKafka does.
func OwnKafka(tb testing.TB, opts KafkaOptions) *KafkaInstance {
	tb.Helper()
	return own(tb, KindKafka, func(ctx context.Context) (*KafkaInstance, error) { return StartKafka(ctx, opts) })
}

// OwnRabbitMQ is OwnKafka for RabbitMQ.
func OwnRabbitMQ(tb testing.TB) *RabbitMQInstance {
	tb.Helper()
	return own(tb, KindRabbitMQ, StartRabbitMQ)
}

// OwnSQS is OwnKafka for ElasticMQ.
func OwnSQS(tb testing.TB) *SQSInstance {
	tb.Helper()
	return own(tb, KindSQS, StartSQS)
}

// OwnSNS is OwnKafka for moto.
func OwnSNS(tb testing.TB) *SNSInstance {
	tb.Helper()
	return own(tb, KindSNS, StartSNS)
}

func need[I any](tb testing.TB, kind Kind, get func(context.Context) (I, error)) I {
	tb.Helper()
	if testing.Short() {
		tb.Skipf("needs %s: not run with -short", kind.Product())
	}
	in, err := get(tb.Context())
	if err == nil {
		return in
	}
	if errors.Is(err, ErrUnavailable) && !inCI() {
		tb.Skipf("needs %s, and there is none: run \"make test\", or \"make up\" and export what it prints, or set %s to an endpoint\n%v",
			kind.Product(), kind.Env(), err)
	}
	tb.Fatalf("needs %s: %v", kind.Product(), err)
	return in
}

// terminator is an instance that can be removed.
type terminator interface{ Terminate(context.Context) error }

func own[I terminator](tb testing.TB, kind Kind, start func(context.Context) (I, error)) I {
	tb.Helper()
	in := need(tb, kind, start)
	tb.Cleanup(func() {
		// The test's context has ended by now.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(tb.Context()), time.Minute)
		defer cancel()
		if err := in.Terminate(ctx); err != nil {
			tb.Errorf("remove the test's own %s: %v", kind.Product(), err)
		}
	})
	return in
}
