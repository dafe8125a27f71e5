// Package streamwire speaks RabbitMQ's stream protocol, version 1, over one
// connection: no pools, no reconnects, no retries. Every call is bounded by its
// context and by the connection; a connection that breaks ends all that is open
// on it, at once and with the reason.
//
// The protocol: https://github.com/rabbitmq/rabbitmq-server/blob/main/deps/rabbitmq_stream/docs/PROTOCOL.adoc
package streamwire
