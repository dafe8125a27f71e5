package sqs

import (
	"context"

	"github.com/queuestream/broker"
)

// DeclareExchange stub replaced below.
func (b *Broker) DeclareExchange(_ context.Context, name string, _ broker.ExchangeKind) error {
	return fail("declare exchange", name, broker.ErrUnsupported)
}
func (b *Broker) Bind(_ context.Context, _, ex string, _ broker.Binding) error {
	return fail("bind", ex, broker.ErrUnsupported)
}
func (b *Broker) Unbind(_ context.Context, _, ex string, _ broker.Binding) error {
	return fail("unbind", ex, broker.ErrUnsupported)
}
func (b *Broker) DeleteExchange(_ context.Context, ex string) error {
	return fail("delete exchange", ex, broker.ErrUnsupported)
}
