// Package kafka implements the streams and queues of package broker on Apache
// Kafka, with franz-go.
//
// A [Stream] is a topic. Publishing is idempotent with acks=all; groups are
// consumer groups (cooperative-sticky, or KIP-848 with
// Options.ServerSideGroups).
package kafka
