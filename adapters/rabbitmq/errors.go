package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"strings"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/queuestream/broker"
)

const adapterName = "rabbitmq"

// fail wraps err, unless it is nil or says the same already.
func fail(op, name string, err error) error {
	if err == nil {
		return nil
	}
	if e, ok := err.(*broker.Error); ok && e.Adapter == adapterName { //nolint:errorlint // only the outermost counts
		return err
	}
	return &broker.Error{Op: op, Adapter: adapterName, Name: name, Temporary: temporary(err), Err: err}
}

func temporary(err error) bool {
	return errors.Is(err, broker.ErrUnavailable) || errors.Is(err, broker.ErrFull) || errors.Is(err, errNacked)
}

// errNacked: the broker refused a message for reasons that it does not tell.
var errNacked = errors.New("the broker refused the message (basic.nack)")

// classify adds the sentinel that an AMQP reply code stands for.
// https://www.rabbitmq.com/docs/channels#error-handling
func classify(err error) error {
	if err == nil {
		return nil
	}
	sentinel := broker.ErrUnavailable
	if e, ok := errors.AsType[*amqp.Error](err); ok {
		switch e.Code {
		case amqp.NotFound, amqp.NoRoute:
			sentinel = broker.ErrNotFound
		case amqp.AccessRefused:
			sentinel = broker.ErrUnauthorized
		case amqp.NotAllowed:
			// 530 is both "vhost not found" and "access to the vhost refused";
			// only the text tells them apart.
			sentinel = broker.ErrUnauthorized
			if strings.Contains(e.Reason, "not found") {
				sentinel = broker.ErrNotFound
			}
		case amqp.PreconditionFailed, amqp.ResourceLocked:
			sentinel = broker.ErrConflict
		case amqp.ContentTooLarge:
			sentinel = broker.ErrTooLarge
		case amqp.NotImplemented:
			sentinel = broker.ErrUnsupported
		case amqp.SyntaxError, amqp.InvalidPath:
			sentinel = broker.ErrInvalid
		}
	}
	if errors.Is(err, sentinel) {
		return err
	}
	return fmt.Errorf("%w: %w", sentinel, err)
}

// classifyPublish is classify for what closed a channel because of a message.
func classifyPublish(err error) error {
	e, ok := errors.AsType[*amqp.Error](err)
	if !ok || e.Code != amqp.PreconditionFailed {
		return classify(err)
	}
	if strings.Contains(e.Reason, "larger than") { // message size N is larger than configured max size M
		return fmt.Errorf("%w: %w", broker.ErrTooLarge, err)
	}
	return fmt.Errorf("%w: %w", broker.ErrInvalid, err)
}

// unavailable is what a call gets that ends while there is no connection.
func unavailable(ctx context.Context, last error) error {
	err := broker.ContextError(ctx)
	if last != nil {
		return fmt.Errorf("%w: %w (last error: %w)", broker.ErrUnavailable, err, last)
	}
	return fmt.Errorf("%w: %w", broker.ErrUnavailable, err)
}
