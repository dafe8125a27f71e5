package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/conformance"
)

// reach makes and removes a queue and a stream, as h.Kinds says, with a client
// of its own, so that what would fail every case is told once. It takes those
// that the broker does not have out of h.Kinds, and returns why as lacks.
func reach(ctx context.Context, h *conformance.Harness, limit time.Duration) (lacks, err error) {
	bounded, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	b, err := h.Open(bounded)
	switch {
	case errors.Is(err, broker.ErrInvalid) || errors.Is(err, broker.ErrUnsupported):
		return nil, err // the URL
	case err != nil:
		return nil, failed(ctx, bounded, limit, exitUnreached, err)
	}
	defer func() {
		if cerr := b.Close(); err == nil && cerr != nil {
			err = &exitError{exitUnreached, cerr}
		}
	}()
	if err := b.Ping(bounded); err != nil {
		return nil, failed(ctx, bounded, limit, exitUnreached, err)
	}
	admin, ok := broker.As[broker.Admin](b)
	if !ok {
		return nil, &exitError{exitRefused, errors.New("the broker has no broker.Admin, which the suite makes its queues and streams with")}
	}
	for _, p := range probes {
		if h.Kinds&p.kind == 0 {
			continue
		}
		name := h.NewName(p.kind.String())
		switch err := p.declare(bounded, admin, name); {
		case errors.Is(err, broker.ErrUnsupported):
			h.Kinds &^= p.kind
			lacks = errors.Join(lacks, err)
			continue
		case err != nil:
			return nil, failed(ctx, bounded, limit, exitRefused, fmt.Errorf("the suite makes its own queues and streams, and could not: %w", err))
		}
		// Also after a signal: nothing is to stay.
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
		err := p.remove(last, admin, name)
		cancel()
		if err != nil {
			return nil, failed(ctx, last, limit, exitRefused, fmt.Errorf("the suite removes what it makes, and could not, so that %s is left: %w", name, err))
		}
	}
	return lacks, nil
}

// probes are what reach tries.
var probes = []struct {
	kind    conformance.Kind
	declare func(ctx context.Context, a broker.Admin, name string) error
	remove  func(ctx context.Context, a broker.Admin, name string) error
}{
	{
		conformance.Queue,
		func(ctx context.Context, a broker.Admin, name string) error {
			return a.DeclareQueue(ctx, name, broker.QueueConfig{})
		},
		func(ctx context.Context, a broker.Admin, name string) error { return a.DeleteQueue(ctx, name) },
	},
	{
		conformance.Stream,
		func(ctx context.Context, a broker.Admin, name string) error {
			return a.DeclareStream(ctx, name, broker.StreamConfig{})
		},
		func(ctx context.Context, a broker.Admin, name string) error { return a.DeleteStream(ctx, name) },
	},
}

// failed says how the program ends after err: as status, unless it was
// interrupted or got no answer.
func failed(ctx, bounded context.Context, limit time.Duration, status int, err error) error {
	switch {
	case ctx.Err() != nil:
		return &exitError{exitUnfinished, errors.New("interrupted before the first case")}
	case bounded.Err() != nil:
		return &exitError{exitUnreached, fmt.Errorf("no answer within %v: %w", limit, err)}
	case errors.Is(err, broker.ErrUnavailable):
		status = exitUnreached
	}
	return &exitError{status, err}
}
