// Package brokertest lets a program test its handlers without a broker.
//
// [NewDelivery] and [NewRecord] make what a handler is called with;
// a [Recorder] remembers how deliveries were settled. [NewQueue] is a Queue
// that hands out given messages to a Worker, and [NewStream] a Stream with
// given records for a Processor. They are simple on purpose; adapters/memory
// is the embedded broker with real semantics.
package brokertest
