package main

import (
	"context"
	"log/slog"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/queuestream/broker"
)

const traceFlushTimeout = 5 * time.Second

// tracing continues the trace of a record into its task: the bridge's span is
// the child of the record's, and the parent of whatever handles the task. The
// zero value traces nothing and leaves the headers as they are.
type tracing struct {
	provider *sdktrace.TracerProvider
	tracer   trace.Tracer
}

// newTracing sends spans to an OTLP endpoint over HTTP; without one it traces
// nothing. What fails at that is logged.
func newTracing(ctx context.Context, endpoint string, log *slog.Logger) (*tracing, error) {
	if endpoint == "" {
		return &tracing{}, nil
	}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { log.Warn("tracing failed", "error", err) }))
	exporter, err := otlptracehttp.New(ctx, otlptracehttp.WithEndpointURL(endpoint))
	if err != nil {
		return nil, err
	}
	return tracingTo(sdktrace.WithBatcher(exporter)), nil
}

func tracingTo(opts ...sdktrace.TracerProviderOption) *tracing {
	opts = append(opts, sdktrace.WithResource(resource.NewSchemaless(attribute.String("service.name", "bridge"))))
	p := sdktrace.NewTracerProvider(opts...)
	return &tracing{provider: p, tracer: p.Tracer("github.com/queuestream/broker/bridge")}
}

func (t *tracing) close() error {
	if t.provider == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), traceFlushTimeout)
	defer cancel()
	return t.provider.Shutdown(ctx)
}

// middleware runs each try of a record in a span, whose context goes into the
// record's headers and so into the task's. It is none where nothing is traced:
// with any, each record of a batch takes a goroutine.
func (t *tracing) middleware(route string) []broker.Middleware {
	if t.tracer == nil {
		return nil
	}
	return []broker.Middleware{func(next broker.HandlerFunc) broker.HandlerFunc {
		return func(ctx context.Context, in broker.Incoming) error {
			info := in.Info()
			ctx = propagation.TraceContext{}.Extract(ctx, in.HeaderSet())
			ctx, span := t.tracer.Start(ctx, "bridge "+route, trace.WithSpanKind(trace.SpanKindConsumer),
				trace.WithAttributes(
					attribute.String("messaging.destination.name", info.Source),
					attribute.String("messaging.consumer.group.name", info.Group),
					attribute.Int("messaging.destination.partition.id", int(info.Partition)),
					attribute.String("messaging.message.id", info.ID),
				))
			defer span.End()
			own := *in.HeaderSet() // a retry starts from the record's own trace again
			propagation.TraceContext{}.Inject(ctx, in.HeaderSet())
			err := next(ctx, in)
			*in.HeaderSet() = own
			if err != nil {
				span.RecordError(err)
				span.SetStatus(codes.Error, err.Error())
			}
			return err
		}
	}}
}
