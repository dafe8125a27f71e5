// Package memory is an embedded broker with queues, streams and exchanges: the
// default for programs that need none, the reference for semantics, and a
// simulator of the real ones for tests.
//
//	b, err := memory.Open(ctx, nil)
//	q, err := broker.DeclareQueue(ctx, b, "orders", broker.QueueConfig{})
//	s, err := b.Stream(ctx, "events", nil) // after b.DeclareStream
package memory
